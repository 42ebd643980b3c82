"""What each value of an ONNX graph depends on (nothing, the size of the input, or the input), and which nodes read it.

Sizes and constants do not count as data that crosses a cut: the back half can compute them itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum

import onnx_ir as ir

SIZE_OPS = frozenset({"Shape", "Size"})
"""Operators with an output that depends only on the size of the input."""


class Kind(IntEnum):
    """What a value depends on. The kind of a node's output is the largest kind among the values that the node reads."""

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
    """The values of its graph that a node reads: its inputs, and those that its bodies (If, Loop, Scan) capture."""
    values = [v for v in node.inputs if v is not None]
    for body in subgraphs(node):
        values += [v for v in _mentioned(body) if v.graph is node.graph]
    return values


def _mentioned(body: ir.Graph) -> Iterator[ir.Value]:
    """Every value that `body`, or a body inside it, reads or returns."""
    for node in body:
        yield from (v for v in node.inputs if v is not None)
        for inner in subgraphs(node):
            yield from _mentioned(inner)
    yield from body.outputs


def is_size_op(node: ir.Node) -> bool:
    """Whether the output of the node depends only on the size of its input."""
    return node.op_type in SIZE_OPS and node.domain in ("", "ai.onnx")


class Flow:
    """The data flow of one graph. The graph must be in topological order, and must not change afterwards.

    nodes: in execution order. position: node → its index in `nodes`. Per node: reads: the values that it reads, see the
    function `reads`; used: the activations of which it needs the values, not only the sizes; needed: whether an output
    of the graph depends on it. kinds: of every graph input and every node output. Initialisers are not in `kinds`: they
    are constants.
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
        """Position of the node that computes `value`; −1 for inputs and initialisers."""
        producer = value.producer()
        return -1 if producer is None else self.position[producer]

    def in_order(self, values: Iterable[ir.Value]) -> list[ir.Value]:
        """`values` in execution order, each one once."""
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
    """The kind of every graph input and every node output (`Flow.kinds`)."""
    return Flow(graph).kinds
