"""Entropy coders, one per module, each a thin validated layer over its kernels.

A coder has a literal wire id that is never reused; `codec.py` picks it by the id in the chunk table.
"""
