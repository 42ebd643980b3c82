"""Measure the shapes that shape inference leaves open, by running the graph at several batch sizes.

TorchScript exports compute the shape of a Reshape from sizes, with operators that ONNX's inference cannot follow. After
that every axis is unknown (`unk__7`), and the batch too. A measured shape holds at three batch sizes, each with another
input. Shapes that may depend on the data are not measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from splitwire.codec.errors import UnsupportedModel
from splitwire.exporter.network.dataflow import Flow, Kind, subgraphs
from splitwire.exporter.network.inference import Graph, InputType, noise

SIZES = (1, 2, 3)
"""Batch sizes of the runs if the batch is dynamic. Three show whether an axis is linear in the batch."""

_BY_DATA = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress", "Loop", "StringSplit", "ImageDecoder"})
"""Operators with an output size that depends on the data."""

_SHAPED_BY = {
    **dict.fromkeys(("Range", "ConstantOfShape", "HannWindow", "HammingWindow", "BlackmanWindow", "If"), 0),
    **dict.fromkeys(("Reshape", "Expand", "Slice", "Tile", "Pad", "Resize", "Upsample", "TopK", "OneHot", "Split"), 1),
    **dict.fromkeys(("SplitToSequence", "SequenceAt", "Squeeze", "Unsqueeze", "CenterCropPad", "Col2Im"), 1),
    **dict.fromkeys(("AffineGrid", "DFT", "STFT", "MelWeightMatrix"), 1),
    "MaxUnpool": 2,
}
"""Operator → index of the first input with values that determine the shape of the output."""


def complete_shapes(model: ir.Model, shape: Sequence[int]) -> None:
    """Measure missing and incomplete shapes of activations, and write them into the graph.

    shape: of one input, (1, …). Axes become numbers, the symbol of the input's batch, or a linear function of it
    (`4*batch`). Does nothing if all tensors with a batch have a known shape, or if ONNX Runtime cannot run the graph.
    Takes one run at each of SIZES, or two at the fixed batch; does not copy the weights.
    """
    graph = model.graph
    batch = _name_batch(graph)
    values = [v for v in _shaped_by_sizes(Flow(graph)) if not _is_known(v, batch)]
    if all(v.shape is not None and len(v.shape) < 2 for v in values):  # lists of sizes, never at a cut
        return
    sizes = (batch, batch) if isinstance(batch, int) else SIZES
    try:
        measured = _measure(model, values, shape, sizes)
    except UnsupportedModel:
        return
    for value, shapes_seen in zip(values, measured, strict=True):
        if len({len(dims) for dims in shapes_seen}) == 1:
            value.shape = ir.Shape([_dim(batch, numbers) for numbers in zip(*shapes_seen, strict=True)])


def _name_batch(graph: ir.Graph) -> int | ir.SymbolicDim:
    """The size or the symbol of the input's batch. A symbol gets a name that formulas can use, if it has none."""
    entry = graph.inputs[0]
    old = next(iter(entry.shape or ()), None) or ir.SymbolicDim(None)
    if isinstance(old, int) or (old.value is not None and str(old.value).isidentifier()):
        return old
    values = [*graph.inputs, *(v for node in graph for v in node.outputs)]
    taken = {str(d) for v in values for d in v.shape or ()}
    names = ("batch", *(f"batch_{i}" for i in range(len(taken))))
    new = ir.SymbolicDim(next(name for name in names if name not in taken))
    for value in [entry] if old.value is None else values:
        if value.shape is not None:
            value.shape = ir.Shape([new if d == old and isinstance(d, ir.SymbolicDim) else d for d in value.shape])
    return new


def _is_known(value: ir.Value, batch: int | ir.SymbolicDim) -> bool:
    """Whether each axis is a number or a function of the batch."""
    return value.shape is not None and all(d == batch or isinstance(d, int) or _follows(d, batch) for d in value.shape)


def _follows(dim: ir.SymbolicDim, batch: int | ir.SymbolicDim) -> bool:
    if dim.value is None or isinstance(batch, int):
        return False
    try:
        return dim.free_symbols() == {batch.value}
    except ValueError:  # not a formula
        return False


def _shaped_by_sizes(flow: Flow) -> Iterator[ir.Value]:
    """The activations (tensors only) with a shape that depends only on the shape of the input."""
    loose: set[ir.Value] = set()
    for node, inputs in zip(flow.nodes, flow.reads, strict=True):
        if not loose.isdisjoint(inputs) or _asks_data(flow, node):
            loose.update(node.outputs)
            continue
        for value in node.outputs:
            if flow.kind(value) == Kind.ACTIVATION and value.name and isinstance(value.type, ir.TensorType | None):
                yield value


def _asks_data(flow: Flow, node: ir.Node) -> bool:
    """Whether the values of the inputs influence the shapes of the node's outputs."""
    first = 1 if node.op_type.startswith("Reduce") else _SHAPED_BY.get(node.op_type, len(node.inputs))
    if any(v is not None and flow.kind(v) == Kind.ACTIVATION for v in node.inputs[first:]):
        return True
    return any(n.op_type in _BY_DATA for n in _with_bodies([node]))


def _with_bodies(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    for node in nodes:
        yield node
        for body in subgraphs(node):
            yield from _with_bodies(body)


def _measure(
    model: ir.Model, values: Sequence[ir.Value], shape: Sequence[int], sizes: Sequence[int]
) -> list[tuple[tuple[int, ...], ...]]:
    """The shapes of each value at the batch sizes `sizes`, each run with another input. Raises UnsupportedModel."""
    model = model.clone()
    graph = model.graph
    by_name = {v.name: v for node in graph for v in node.outputs}
    shape_nodes = [ir.node("Shape", [by_name[v.name]], name=f"splitwire_shape_{i}") for i, v in enumerate(values)]
    for node in shape_nodes:
        node.outputs[0].name, node.outputs[0].dtype = node.name, ir.DataType.INT64
    graph.extend(shape_nodes)
    graph.outputs.clear()
    graph.outputs.extend(node.outputs[0] for node in shape_nodes)
    session = Graph.of(RemoveUnusedNodesPass()(model).model, what="network", brief=True)
    rng = np.random.default_rng(0)
    dtype: InputType = "uint8" if graph.inputs[0].dtype == ir.DataType.UINT8 else "float32"
    runs = [session.run(noise((n, *shape[1:]), dtype, rng)) for n in sizes]
    return [tuple(tuple(int(n) for n in dims) for dims in shapes) for shapes in zip(*runs, strict=True)]


def _dim(batch: int | ir.SymbolicDim, numbers: Sequence[int]) -> int | ir.SymbolicDim | None:
    """The axis that has these lengths at SIZES, or at the fixed batch; None if they are not linear in the batch."""
    if len(set(numbers)) == 1:
        return numbers[0]
    steps = {b - a for a, b in itertools.pairwise(numbers)}
    if isinstance(batch, int) or len(steps) > 1:
        return None
    (step,) = steps
    offset = numbers[0] - step * SIZES[0]
    return batch if (step, offset) == (1, 0) else batch * step + offset
