"""Statistics → operating points: quantizers, ranges, tables, and their effect on the outputs."""
