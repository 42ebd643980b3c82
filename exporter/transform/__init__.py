"""Transform coding at the cut: an analysis at the end of the front, a synthesis at the start of the back.

In the order in which a design is made: layout, statistics and material, objective or noise, klt, coding, ladder,
refine, tensor, fold. design.py holds them together; docs/transform.md derives them.
"""
