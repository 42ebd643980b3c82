"""Transform coding at the cut: an analysis at the end of the front, a synthesis at the start of the back.

design.py holds it together, in this order: bands/ (layout, statistics, noise, klt, coding), refinement/ (material,
objective, threshold, refine), ladder, rate, tensor, fold. threads.py: how many threads it gets. docs/transform.md
derives them.
"""
