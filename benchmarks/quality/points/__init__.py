"""Operating points of several schemes at the same cuts, by real frames on held-out inputs (transform_points.py).

subjects   the cuts: network, layer, inputs to calibrate and to measure on
judges     answers, their agreement with the whole network, their score against labels
measure    the points of each scheme: bytes, damage, agreement, score; the cost of a transform
records    what was measured at one cut of one scheme, kept in a file
equal      bytes at equal damage, ratios, geometric means
page       tables for the terminal and for docs/results/transform.md
"""
