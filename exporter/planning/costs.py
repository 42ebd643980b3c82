"""The costs of a network: multiply–accumulates, parameters and moved bytes, per node and up to a cut.

All figures are for one image, and come from the shapes alone. `shared.device.DeviceProfile` converts them to seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from splitwire.codec.shared.device import DeviceProfile
from splitwire.exporter.network.dataflow import Kind, classify, is_size_op, reads, subgraphs
from splitwire.exporter.network.source import Source

Work = Literal["conv", "depthwise", "matmul", "other"]
Shape = tuple[int, ...]
Counter = Callable[[ir.Node, list[Shape], list[Shape]], tuple[Work, int]]
"""(node, shapes of its inputs, shapes of its outputs) → (kind of work, multiply–accumulates)."""

DEPTHWISE_CHANNELS = 8
"""A grouped convolution with at most this number of input channels per group runs at the depthwise rate: it does too
little work per loaded element to run as a matrix product."""

ACTIVATIONS = frozenset({"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
"""ONNX Runtime computes these inside the convolution before them, at no cost."""

EIGHT_BITS = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
"""Element types of quantized weights."""

VIEWS = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that move no data."""

FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class NodeCost:
    """The costs of one node for one image.

    macs: multiply–accumulates of a convolution or matrix product; 0 for other nodes, whose cost is in `bytes`.
    parameters: elements of the weights that no earlier node reads. bytes: of activations, read and written.
    weight_bytes: of all weights that the node reads.
    free: the node is fused into the one before, or computed once when the graph is loaded.
    """

    work: Work
    macs: int = 0
    parameters: int = 0
    bytes: int = 0
    weight_bytes: int = 0
    free: bool = False

    def seconds(self, device: DeviceProfile) -> float:
        """The longest of the times for computing, moving activations and reading weights, plus the fixed overhead."""
        if self.free:
            return 0.0
        computing = self.macs / device.rate(self.work)
        moving = self.bytes / device.elementwise_bytes
        reading = self.weight_bytes / device.weight_bytes
        return max(computing, moving, reading) + device.node_overhead_us * 1e-6


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of all nodes of a graph in execution order."""

    nodes: tuple[NodeCost, ...]

    @property
    def macs(self) -> int:
        """Multiply–accumulates of the whole network."""
        return sum(n.macs for n in self.nodes)

    @property
    def parameters(self) -> int:
        """Weights of the whole network."""
        return sum(n.parameters for n in self.nodes)

    def macs_before(self, position: int) -> int:
        """Multiply–accumulates of the nodes 0 … position (`Cut.position`)."""
        return sum(n.macs for n in self.nodes[: position + 1])

    def parameters_before(self, position: int) -> int:
        """Weights of the nodes 0 … position."""
        return sum(n.parameters for n in self.nodes[: position + 1])

    def seconds_before(self, position: int, device: DeviceProfile) -> float:
        """Estimated time of the nodes 0 … position on `device`."""
        return sum(n.seconds(device) for n in self.nodes[: position + 1])

    def seconds_after(self, position: int, device: DeviceProfile) -> float:
        """Estimated time of the nodes after `position` on `device`."""
        return sum(n.seconds(device) for n in self.nodes[position + 1 :])

    def seconds(self, device: DeviceProfile) -> float:
        """Estimated time of the whole network on `device`."""
        return self.seconds_before(len(self.nodes), device)


def measure_costs(source: Source) -> Costs:
    """The costs of every node, from the shapes at batch 1, or at the fixed batch and divided by it.

    A size that shape inference does not find counts as 1. The body of an If, Loop or Scan counts once, independent of
    the number of iterations.
    """
    shapes = _shapes(source)
    batch = source.batch or 1
    counted: set[str] = set()
    kinds = classify(source.graph)
    return Costs(nodes=tuple(_cost(node, shapes, kinds, counted, batch) for node in source.graph))


def _shapes(source: Source) -> Callable[[ir.Value | None], Shape]:
    """A function from value to shape. The shapes are inferred again at batch 1, because many depend on the batch."""
    model = source.model.clone()
    graph = model.graph
    entry = graph.inputs[0]
    entry.shape = ir.Shape([source.batch or 1, *source.input_shape[1:]])
    for node in graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    for value in graph.outputs:
        value.shape = None
    graph = ShapeInferencePass(strict_mode=False, data_prop=True)(model).model.graph
    known = ir.convenience.create_value_mapping(graph)

    def shape(value: ir.Value | None) -> Shape:
        typed = known.get(value.name or "", value) if value is not None else None
        if typed is None or typed.shape is None:
            return ()
        return tuple(d if isinstance(d, int) else 1 for d in typed.shape)

    return shape


def _cost(
    node: ir.Node,
    shapes: Callable[[ir.Value | None], Shape],
    kinds: dict[ir.Value, Kind],
    counted: set[str],
    batch: int,
) -> NodeCost:
    parameters = 0
    weights = 0
    for value in dict.fromkeys(reads(node)):
        tensor = _weight(value)
        if tensor is not None:
            weights += tensor.nbytes
            if value.name not in counted:
                counted.add(str(value.name))
                parameters += tensor.size
    if is_size_op(node) or all(kinds.get(v) != Kind.ACTIVATION for v in node.outputs):
        return NodeCost(work="other", parameters=parameters, free=True)
    if _is_fused(node):
        return NodeCost(work="other", parameters=parameters, free=True)
    work, macs = _macs(node, shapes)
    for body in subgraphs(node):
        macs += sum(_macs(inner, shapes)[1] for inner in ir.traversal.RecursiveGraphIterator(body))
    values = [v for v in dict.fromkeys((*node.inputs, *node.outputs)) if v is not None and not v.is_initializer()]
    values = [v for v in values if _weight(v) is None]
    moved = 0 if node.op_type in VIEWS else FLOAT_BYTES * sum(math.prod(shapes(v)) for v in values if shapes(v))
    return NodeCost(
        work=work, macs=macs // batch, parameters=parameters, bytes=moved // batch, weight_bytes=weights // batch
    )


def _weight(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor, if the value is a weight: an initializer, or a Constant node of several numbers, as Paddle writes it.

    Weights are floating-point, or quantized to 8 bits. (Sizes and axes are int64.)
    """
    node = value.producer()
    if value.is_initializer():
        tensor = value.const_value
    elif node is not None and node.op_type == "Constant" and node.domain == "":
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None and tensor.size < 2:
            return None
    else:
        return None
    if tensor is None or not (tensor.dtype.is_floating_point() or tensor.dtype in EIGHT_BITS):
        return None
    return tensor


def _is_fused(node: ir.Node) -> bool:
    """Whether ONNX Runtime fuses the node into the convolution before it.

    It fuses an activation or a batch norm that is the only reader of the convolution.
    """
    if node.op_type not in ACTIVATIONS and node.op_type != "BatchNormalization":
        return False
    source = node.inputs[0]
    before = source.producer() if source is not None else None
    return source is not None and before is not None and before.op_type == "Conv" and len(source.uses()) == 1


def _macs(node: ir.Node, shapes: Callable[[ir.Value | None], Shape]) -> tuple[Work, int]:
    """Kind of the work, and multiply–accumulates at the batch of the graph."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _COUNTERS:
        return "other", 0
    inputs = [shapes(v) for v in node.inputs]
    outputs = [shapes(v) for v in node.outputs]
    try:
        return _COUNTERS[node.op_type](node, inputs, outputs)
    except IndexError:  # an unknown shape
        return "other", 0


def _convolution(weight: int) -> Counter:
    """Weights (M, C/groups, k…): every output element needs C/groups·k… products."""

    def count(node: ir.Node, inputs: list[Shape], outputs: list[Shape]) -> tuple[Work, int]:
        w = inputs[weight]
        return _conv_work(node, w[1]), math.prod(outputs[0]) * math.prod(w[1:])

    return count


def _transposed(node: ir.Node, inputs: list[Shape], outputs: list[Shape]) -> tuple[Work, int]:
    """Weights (C, M/groups, k…): every input element needs M/groups·k… products."""
    w = inputs[1]
    return _conv_work(node, w[1]), math.prod(inputs[0]) * math.prod(w[1:])


def _conv_work(node: ir.Node, channels: int) -> Work:
    groups = node.attributes.get_int("group", 1)
    return "depthwise" if groups > 1 and channels <= DEPTHWISE_CHANNELS else "conv"


def _matmul(left_input: int) -> Counter:
    """(…, n, k) by (…, k, m): every output element needs k products."""

    def count(node: ir.Node, inputs: list[Shape], outputs: list[Shape]) -> tuple[Work, int]:
        return "matmul", math.prod(outputs[0]) * inputs[left_input][-1]

    return count


def _gemm(node: ir.Node, inputs: list[Shape], outputs: list[Shape]) -> tuple[Work, int]:
    rows = 0 if node.attributes.get_int("transA", 0) else 1
    return "matmul", math.prod(outputs[0]) * inputs[0][rows]


def _einsum(node: ir.Node, inputs: list[Shape], outputs: list[Shape]) -> tuple[Work, int]:
    """The product of the sizes of all letters, and of the elements that an ellipsis stands for."""
    terms = node.attributes.get_string("equation", "").replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    broadcast = 1
    for term, shape in zip(terms, inputs, strict=False):
        head, dots, tail = term.partition("...")
        sizes.update(zip(head, shape, strict=False))
        if dots:
            end = len(shape) - len(tail)
            broadcast = max(broadcast, math.prod(shape[len(head) : end]))
            sizes.update(zip(tail, shape[end:], strict=True))
    return ("matmul", broadcast * math.prod(sizes.values())) if len(terms) > 1 else ("other", 0)


def _recurrent(node: ir.Node, inputs: list[Shape], outputs: list[Shape]) -> tuple[Work, int]:
    """X (steps, batch, in), W (directions, gates·hidden, in), R (directions, gates·hidden, hidden)."""
    x, w, r = inputs[:3]
    return "matmul", x[0] * x[1] * (math.prod(w) + math.prod(r))


def _attention(node: ir.Node, inputs: list[Shape], outputs: list[Shape]) -> tuple[Work, int]:
    """Q·Kᵀ and the result by V; 4-D (batch, heads, length, size) or 3-D (batch, length, heads·size)."""
    q, k, v = inputs[:3]
    return "matmul", math.prod(q) * k[-2] + math.prod(q[:-1]) * k[-2] * v[-1]


_COUNTERS: dict[str, Counter] = {
    "Attention": _attention,
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "ConvTranspose": _transposed,
    "DeformConv": _convolution(1),
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul(0),
    "MatMulInteger": _matmul(0),
    "QLinearConv": _convolution(3),
    "QLinearMatMul": _matmul(0),
    "RNN": _recurrent,
}
