"""Give the back half the sizes of the front's tensors that it needs, without the tensors.

swin and convnext with a dynamic batch need this: the `Shape` of the input controls a Reshape after the cut. A fixed
size becomes a constant. A size that a tensor at the cut has too is read from that tensor. Any other size is sent as an
int64 vector of length 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from splitwire.exporter.network.dataflow import Flow, Kind, is_size_op

from .separation import Separation

PREFIX = "splitwire_size"


class Sizes:
    """The sizes of the front's tensors that the nodes after a cut read, and nodes that replace them.

    sent: the values that the front must send, int64 of shape (1,); mostly none. The constructor adds nodes to the
    graph, but existing nodes do not read them yet: the front can be extracted. After `redirect`, all nodes read the
    replacements in the back half: then the back can be extracted, and the front no longer.
    """

    def __init__(self, flow: Flow, cut: Sequence[ir.Value], parts: Separation) -> None:
        self.sent: list[ir.Value] = []
        self._graph = flow.graph
        self._first = flow.nodes[0]
        self._cut = cut
        self._known: dict[object, ir.Value] = {}
        self._count = 0
        self._answers = [(node.outputs[0], self._answer(node)) for node in _asked(flow, cut, parts)]

    def redirect(self) -> None:
        """Let all nodes read the replacements; see the class."""
        for asked, answer in self._answers:
            if asked is not answer:
                ir.convenience.replace_all_uses_with(asked, answer)

    def _answer(self, node: ir.Node) -> ir.Value:
        (source,) = (v for v in node.inputs if v is not None)
        if source.shape is None:
            shape = node if node.op_type == "Shape" else self._add(ir.node("Shape", [source]), after=node)
            self.sent.append(shape.outputs[0])
            whole = shape.outputs[0]
        else:
            axes = range(len(source.shape))
            if node.op_type == "Shape":
                axes = axes[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)]
            dims = [self._dim(node, source, axis, source.shape[axis]) for axis in axes]
            whole = self._make("Concat", dims, axis=0) if dims else self._constant([])
        return whole if node.op_type == "Shape" else self._make("ReduceProd", [whole], keepdims=0)

    def _dim(self, asked: ir.Node, source: ir.Value, axis: int, dim: int | ir.SymbolicDim) -> ir.Value:
        """The dimension `dim` (axis `axis` of `source`) as an int64 vector of length 1."""
        if isinstance(dim, int):
            return self._constant([dim])
        key: object = (source, axis) if dim.value is None else dim
        if key not in self._known:
            self._known[key] = self._from_cut(dim) or self._send(asked, source, axis)
        return self._known[key]

    def _from_cut(self, dim: ir.SymbolicDim) -> ir.Value | None:
        """The dimension from the shapes of the tensors at the cut: an equal symbol, or a linear function of a
        symbol."""
        if dim.value is None:
            return None
        symbols = [
            (v, axis, d) for v in self._cut for axis, d in enumerate(v.shape or ()) if isinstance(d, ir.SymbolicDim)
        ]
        for value, axis, symbol in symbols:
            if symbol == dim:
                return self._take(value, axis)
        for value, axis, symbol in symbols:
            line = _line(dim, symbol)
            if line is not None:
                factor, offset = (self._constant([n]) for n in line)
                return self._make("Add", [self._make("Mul", [self._take(value, axis), factor]), offset])
        return None

    def _take(self, value: ir.Value, axis: int) -> ir.Value:
        return self._make("Gather", [self._make("Shape", [value]), self._constant([axis])], axis=0)

    def _send(self, asked: ir.Node, source: ir.Value, axis: int) -> ir.Value:
        """Let the front send the dimension. The new nodes follow `asked` in the front."""
        index = self._add(_constant_node([axis]), after=asked)
        shape = self._add(ir.node("Shape", [source]), after=index)
        taken = self._add(ir.node("Gather", [shape.outputs[0], index.outputs[0]], {"axis": 0}), after=shape)
        taken.outputs[0].shape = ir.Shape([1])
        self.sent.append(taken.outputs[0])
        return taken.outputs[0]

    def _constant(self, numbers: list[int]) -> ir.Value:
        return self._add(_constant_node(numbers)).outputs[0]

    def _make(self, operator: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
        return self._add(ir.node(operator, inputs, attributes)).outputs[0]

    def _add(self, node: ir.Node, after: ir.Node | None = None) -> ir.Node:
        """Name the node and insert it after `after`, or else before all nodes: the tensors at the cut are inputs of the
        back half, so they are available there."""
        node.name = f"{PREFIX}_{self._count}"
        node.outputs[0].name, node.outputs[0].dtype = node.name, ir.DataType.INT64
        self._count += 1
        if after is None:
            self._graph.insert_before(self._first, node)
        else:
            self._graph.insert_after(after, node)
        return node


def _constant_node(numbers: list[int]) -> ir.Node:
    return ir.node("Constant", [], {"value": ir.tensor(np.array(numbers, dtype=np.int64))})


def _line(dim: ir.SymbolicDim, symbol: ir.SymbolicDim) -> tuple[int, int] | None:
    """(a, b) if dim = a · symbol + b, as in `4*batch`; None otherwise."""
    if dim.free_symbols() != {symbol.value}:
        return None
    values = [n for n in (dim.evaluate({str(symbol.value): n}) for n in (1, 2, 5)) if isinstance(n, int)]
    if len(values) < 3:
        return None
    a = values[1] - values[0]
    return (a, values[0] - a) if values[2] == values[0] + 4 * a else None


def _asked(flow: Flow, cut: Sequence[ir.Value], parts: Separation) -> list[ir.Node]:
    """The Shape and Size nodes of front activations that the nodes after the cut depend on, in order."""
    visited = set(parts.after)
    in_back = {v for node in parts.after for v in node.outputs} | set(cut)
    asked = set()
    stack = [v for node in parts.after for v in flow.reads[flow.position[node]]]
    while stack:
        value = stack.pop()
        node = value.producer()
        if node is None or node in visited or flow.kind(value) != Kind.SIZE:
            continue
        visited.add(node)
        sources = flow.reads[flow.position[node]]
        if is_size_op(node) and any(flow.kind(v) == Kind.ACTIVATION for v in sources):
            if in_back.isdisjoint(sources):
                asked.add(node)
        else:
            stack.extend(sources)
    return [node for node in flow.nodes if node in asked]
