"""Torch modules and the nodes of the graph: which call of which module a node belongs to."""
