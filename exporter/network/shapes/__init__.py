"""Shapes and types of the values: as the graph declares them, corrected, or else measured."""
