"""What a value of an ONNX graph depends on: nothing, the size of the input, or the input itself.

Sizes and constants never count as data that crosses a cut: the back half can make them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import onnx_ir as ir

SIZE_OPS = frozenset({"Shape", "Size"})
"""Operators whose output depends on the size of their input only."""


class Kind(IntEnum):
    """What a value depends on; the kind of a node's output is the largest kind among what it reads."""

    CONSTANT = 0
    SIZE = 1
    ACTIVATION = 2


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies of an If, Loop or Scan node."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def reads(node: ir.Node) -> list[ir.Value]:
    """Values of the node's own graph that it reads: its inputs, and what the bodies of If, Loop and Scan capture."""
    values = [v for v in node.inputs if v is not None]
    for body in subgraphs(node):
        inner = [v for n in ir.traversal.RecursiveGraphIterator(body) for v in n.inputs]
        values += [v for v in (*inner, *body.outputs) if v is not None and v.graph is node.graph]
    return values


def is_size_op(node: ir.Node) -> bool:
    """Whether the node's output depends on the size of its input only."""
    return node.domain in ("", "ai.onnx") and node.op_type in SIZE_OPS


def classify(graph: ir.Graph) -> dict[ir.Value, Kind]:
    """The kind of every graph input and every node output; initialisers are absent, they are constants.

    The graph must be in topological order.
    """
    kinds = dict.fromkeys(graph.inputs, Kind.ACTIVATION)
    for node in graph:
        kind = max((kinds.get(v, Kind.CONSTANT) for v in reads(node)), default=Kind.CONSTANT)
        if is_size_op(node):
            kind = min(kind, Kind.SIZE)
        kinds.update(dict.fromkeys(node.outputs, kind))
    return kinds


def activations_used_by(node: ir.Node, kinds: dict[ir.Value, Kind]) -> list[ir.Value]:
    """The activations whose values (not just sizes) the node needs."""
    if is_size_op(node):
        return []
    return [v for v in reads(node) if kinds.get(v) == Kind.ACTIVATION]
