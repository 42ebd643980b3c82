"""What a value of an ONNX graph depends on: nothing, the size of the input, or the input itself; and who reads it.

Sizes and constants never count as data that crosses a cut: the back half can make them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
        values += [v for v in _mentioned(body) if v.graph is node.graph]
    return values


def _mentioned(body: ir.Graph) -> Iterator[ir.Value]:
    """Every value that the nodes of `body` and of the bodies inside it read, or that leaves one of these bodies."""
    for node in body:
        yield from (v for v in node.inputs if v is not None)
        for inner in subgraphs(node):
            yield from _mentioned(inner)
    yield from body.outputs


def is_size_op(node: ir.Node) -> bool:
    """Whether the node's output depends on the size of its input only."""
    return node.op_type in SIZE_OPS and node.domain in ("", "ai.onnx")


class Flow:
    """Who makes and who reads what in one graph, which must be in topological order and not change afterwards.

    nodes: in execution order. position: of each node in it. reads: of each node, see `reads`. used: the activations
    whose values, not just sizes, each node needs. kinds: of every graph input and every node output; initialisers are
    absent, they are constants. needed: whether an output of the graph depends on the node.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes = tuple(graph)
        self.position = {node: t for t, node in enumerate(self.nodes)}
        self.reads = [reads(node) for node in self.nodes]
        self.kinds: dict[ir.Value, Kind] = dict.fromkeys(graph.inputs, Kind.ACTIVATION)
        self.used: list[list[ir.Value]] = []
        for node, values in zip(self.nodes, self.reads, strict=True):
            kind = max((self.kinds.get(v, Kind.CONSTANT) for v in values), default=Kind.CONSTANT)
            if is_size_op(node):
                kind = min(kind, Kind.SIZE)
            self.kinds.update(dict.fromkeys(node.outputs, kind))
            activations = dict.fromkeys(v for v in values if self.kind(v) == Kind.ACTIVATION)
            self.used.append([] if is_size_op(node) else list(activations))
        self.needed = self._needed()

    def kind(self, value: ir.Value) -> Kind:
        """What `value` depends on."""
        return self.kinds.get(value, Kind.CONSTANT)

    def made_at(self, value: ir.Value) -> int:
        """Position of the node that makes `value`; −1 for inputs and initialisers."""
        producer = value.producer()
        return -1 if producer is None else self.position[producer]

    def in_order(self, values: Iterable[ir.Value]) -> list[ir.Value]:
        """The different ones of `values` in execution order."""
        return sorted(set(values), key=lambda v: (self.made_at(v), v.index() or 0))

    def _needed(self) -> list[bool]:
        wanted = set(self.graph.outputs)
        needed = [False] * len(self.nodes)
        for t in reversed(range(len(self.nodes))):
            if not wanted.isdisjoint(self.nodes[t].outputs):
                needed[t] = True
                wanted.update(self.reads[t])
        return needed


def classify(graph: ir.Graph) -> dict[ir.Value, Kind]:
    """The kind of every graph input and every node output; see Flow.kinds."""
    return Flow(graph).kinds
