"""Shapes that shape inference leaves open, measured: the graph runs at several batch sizes.

TorchScript exports compute the shape of a Reshape from sizes, by operators that ONNX does not infer through; from there
on every axis is unknown (`unk__7`), the batch too. What is written here holds at three batch sizes with a different
input each. Values whose shape may depend on the data are left alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from splitwire.codec.errors import UnsupportedModel

from .dataflow import Flow, Kind, subgraphs
from .inference import Graph, InputType, noise

SIZES = (1, 2, 3)
"""Batch sizes that are run where the batch is dynamic: three, to tell a line from a quotient rounded up or down."""

_BY_DATA = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress", "Loop", "StringSplit", "ImageDecoder"})
"""Operators whose output has as many elements as the data says."""

_SHAPED_BY = {
    **dict.fromkeys(("Range", "ConstantOfShape", "HannWindow", "HammingWindow", "BlackmanWindow", "If"), 0),
    **dict.fromkeys(("Reshape", "Expand", "Slice", "Tile", "Pad", "Resize", "Upsample", "TopK", "OneHot", "Split"), 1),
    **dict.fromkeys(("SplitToSequence", "SequenceAt", "Squeeze", "Unsqueeze", "CenterCropPad", "Col2Im"), 1),
    **dict.fromkeys(("AffineGrid", "DFT", "STFT", "MelWeightMatrix"), 1),
    "MaxUnpool": 2,
}
"""Operator → its first input whose value decides over the shape of its output."""


def complete_shapes(model: ir.Model, shape: Sequence[int]) -> None:
    """Write the shapes of activations that are missing or incomplete into the graph, as far as measuring gives them.

    shape: of one input, (1, …). Axes become numbers, the symbol of the input's batch, or a multiple of it with an
    offset (`4*batch`). Does nothing if no tensor with a batch is open, or if ONNX Runtime cannot run the graph. The
    weights are not copied; time: one run of the graph at each of SIZES, or two at the fixed batch.
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
    for value, seen in zip(values, measured, strict=True):
        if len({len(dims) for dims in seen}) == 1:
            value.shape = ir.Shape([_dim(batch, numbers) for numbers in zip(*seen, strict=True)])


def _name_batch(graph: ir.Graph) -> int | ir.SymbolicDim:
    """The input's batch: its size, or its symbol; this gets a name with which one can calculate if it has none."""
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
    """Whether all axes are numbers or follow from the batch."""
    return value.shape is not None and all(d == batch or isinstance(d, int) or _follows(d, batch) for d in value.shape)


def _follows(dim: ir.SymbolicDim, batch: int | ir.SymbolicDim) -> bool:
    if dim.value is None or isinstance(batch, int):
        return False
    try:
        return dim.free_symbols() == {batch.value}
    except ValueError:  # not a formula
        return False


def _shaped_by_sizes(flow: Flow) -> Iterator[ir.Value]:
    """The tensors among the activations whose shape follows from the shape of the input alone."""
    loose: set[ir.Value] = set()
    for node, read in zip(flow.nodes, flow.reads, strict=True):
        if not loose.isdisjoint(read) or _asks_data(flow, node):
            loose.update(node.outputs)
            continue
        for value in node.outputs:
            if flow.kind(value) == Kind.ACTIVATION and value.name and isinstance(value.type, ir.TensorType | None):
                yield value


def _asks_data(flow: Flow, node: ir.Node) -> bool:
    """Whether the shapes of the node's outputs depend on what its inputs hold."""
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
    """Of each value its shapes at `sizes`, each with another input. Raises UnsupportedModel."""
    model = model.clone()
    graph = model.graph
    found = {v.name: v for node in graph for v in node.outputs}
    asked = [ir.node("Shape", [found[v.name]], name=f"splitwire_shape_{i}") for i, v in enumerate(values)]
    for node in asked:
        node.outputs[0].name, node.outputs[0].dtype = node.name, ir.DataType.INT64
    graph.extend(asked)
    graph.outputs.clear()
    graph.outputs.extend(node.outputs[0] for node in asked)
    session = Graph.of(RemoveUnusedNodesPass()(model).model, what="network", brief=True)
    rng = np.random.default_rng(0)
    dtype: InputType = "uint8" if graph.inputs[0].dtype == ir.DataType.UINT8 else "float32"
    runs = [session.run(noise((n, *shape[1:]), dtype, rng)) for n in sizes]
    return [tuple(tuple(int(n) for n in dims) for dims in seen) for seen in zip(*runs, strict=True)]


def _dim(batch: int | ir.SymbolicDim, numbers: Sequence[int]) -> int | ir.SymbolicDim | None:
    """The axis that has these lengths at SIZES, or at the fixed batch; None if it is not a line."""
    if len(set(numbers)) == 1:
        return numbers[0]
    steps = {b - a for a, b in itertools.pairwise(numbers)}
    if isinstance(batch, int) or len(steps) > 1:
        return None
    (step,) = steps
    offset = numbers[0] - step * SIZES[0]
    return batch if (step, offset) == (1, 0) else batch * step + offset
