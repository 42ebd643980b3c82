"""Statistics → operating points: quantizers, ranges, tables, and what each does to the answers."""
