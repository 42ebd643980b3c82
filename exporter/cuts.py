"""Which tensors separate the network: everything after them follows from them alone.

`separation` decides for given tensors; `find_cuts` finds all cuts in one sweep.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from splitwire.codec.errors import CutNotBounded, UnsupportedModel, UsageError

from .dataflow import Kind, activations_used_by, classify, is_size_op, reads
from .graph import Source
from .names import Names

MAX_DIMS = 3
"""A tensor at the cut has 1 to 3 axes beside the batch (codec.profile.TensorSpec)."""

SUGGESTED_EACH_SIDE = 2


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Tensors that together separate the network.

    tensors: their ONNX names, in execution order. label: how the user names the cut, in the form that `--cut` takes.
    shapes: of one image's tensors, without the batch axis. position: index of the last node before the cut, in
    execution order.
    """

    tensors: tuple[str, ...]
    label: str
    shapes: tuple[tuple[int, ...], ...]
    position: int

    @property
    def elements(self) -> int:
        """Elements that one image sends."""
        return sum(math.prod(shape) for shape in self.shapes)


@dataclass(frozen=True, kw_only=True)
class Separation:
    """What tensors separate.

    after: nodes that depend on one of them and are needed for an output, in execution order.
    crossing: other activations that these nodes read: empty if the tensors are a cut.
    """

    after: tuple[ir.Node, ...]
    crossing: tuple[ir.Value, ...]


def separation(graph: ir.Graph, cut: Collection[ir.Value]) -> Separation:
    """What lies after `cut`, and what would have to cross beside it. O(graph)."""
    kinds = classify(graph)
    nodes = list(graph)
    members = set(cut)
    follows = set(cut)
    later: list[ir.Node] = []
    for node in nodes:
        if members.isdisjoint(node.outputs) and any(v in follows for v in reads(node)):
            follows.update(node.outputs)
            later.append(node)
    needed = {v for v in graph.outputs if v in follows and v not in members}
    after: list[ir.Node] = []
    crossing: set[ir.Value] = set()
    for node in reversed(later):
        if needed.isdisjoint(node.outputs):
            continue
        after.append(node)
        for value in reads(node):
            if value in follows:
                needed.add(value)
            elif kinds.get(value) == Kind.ACTIVATION and not is_size_op(node):
                crossing.add(value)
    in_order = [v for v in kinds if v in crossing]
    return Separation(after=tuple(reversed(after)), crossing=tuple(in_order))


def find_cuts(graph: ir.Graph, names: Names, *, max_tensors: int = 1) -> list[Cut]:
    """Every single-tensor cut that the codec can carry, in execution order.

    Sweeps the nodes: where exactly one activation is alive, it is a cut, and there are no others (a tensor separates
    the graph exactly if it is alone alive right after it in some, hence in every, topological order). Sizes and
    constants are not alive: the back makes them again. Outputs made before the cut leave from the front.
    """
    kinds = classify(graph)
    nodes = list(graph)
    last_use: dict[ir.Value, int] = {}
    for t, node in enumerate(nodes):
        last_use.update(dict.fromkeys(activations_used_by(node, kinds), t))
    dying: defaultdict[int, list[ir.Value]] = defaultdict(list)
    for value, t in last_use.items():
        dying[t].append(value)
    alive = {v for v in graph.inputs if v in last_use}
    cuts: dict[str, Cut] = {}
    for t, node in enumerate(nodes):
        alive.update(v for v in node.outputs if v in last_use)
        alive.difference_update(dying[t])
        if len(alive) != 1:
            continue
        (value,) = alive
        shape = carried_shape(value)
        if value.producer() is not None and value.name and value.name not in cuts and shape is not None:
            cuts[value.name] = Cut(tensors=(value.name,), label=names.label(value), shapes=(shape,), position=t)
    return list(cuts.values())


def carried_shape(value: ir.Value) -> tuple[int, ...] | None:
    """Shape of one image's tensor, or None if the codec cannot carry it: float32, batch first, 1 to 3 fixed axes."""
    if value.dtype not in (ir.DataType.FLOAT, None) or value.shape is None:
        return None
    dims = list(value.shape)
    sizes = tuple(d for d in dims[1:] if isinstance(d, int))
    if not 1 <= len(sizes) <= MAX_DIMS or len(sizes) != len(dims) - 1 or min(sizes) < 1:
        return None
    if not _is_batch(dims[0], value):
        return None
    return sizes


def _is_batch(dim: object, value: ir.Value) -> bool:
    """Whether `dim` is the batch of the graph's input, or unknown (the TorchScript exporter loses it)."""
    entry = value.graph.inputs[0] if value.graph is not None and value.graph.inputs else None
    known = isinstance(dim, int) or (isinstance(dim, ir.SymbolicDim) and dim.value is not None)
    return not known or entry is None or entry.shape is None or dim == entry.shape[0]


def find_cut(source: Source, names: Names, layer: str) -> tuple[Cut, str | None]:
    """The cut at what leaves `layer`, made sure to be one, and a note about the name.

    shapes is () for a tensor whose shape is not known before it is run.

    Raises UsageError (unknown layer, nothing before or nothing after it), CutNotBounded (does not separate; the
    message names the tensors that cross and the nearest cuts), UnsupportedModel (the codec cannot carry its shape).
    """
    resolved = names.resolve(layer)
    graph = source.graph
    nearest = _suggest(graph, names, max((_position(graph, v) for v in resolved.values), default=0))
    if len(resolved.values) != 1:
        listed = ", ".join(names.label(v) for v in resolved.values) or "none"
        raise CutNotBounded(
            f"layer {layer!r} does not separate the network: {len(resolved.values)} tensors leave it ({listed});"
            f" {nearest}"
        )
    (value,) = resolved.values
    if value.is_graph_input():
        raise UsageError(f"{layer!r} is the input: nothing would run on the edge; {nearest}")
    parts = separation(graph, (value,))
    if not parts.after:
        raise UsageError(f"nothing comes after {layer!r}: no output of the network follows from it; {nearest}")
    if parts.crossing:
        listed = ", ".join(names.label(v) for v in parts.crossing)
        verb = "crosses" if len(parts.crossing) == 1 else "cross"
        raise CutNotBounded(
            f"layer {layer!r} does not separate the network: {listed} also {verb} to the back half; {nearest}"
        )
    if carried_shape(value) is None and not _unknown(value):
        raise UnsupportedModel(
            f"the tensor after {layer!r} is {value.dtype} of shape {value.shape}; the codec carries float32, batch"
            f" first, 1 to {MAX_DIMS} fixed axes; {nearest}"
        )
    cut = Cut(
        tensors=(str(value.name),),
        label=names.label(value),
        shapes=(carried_shape(value) or (),),
        position=_position(graph, value),
    )
    return cut, resolved.note


def _unknown(value: ir.Value) -> bool:
    """Whether shape inference gave up on the value; then the front half is run to see its shape."""
    known = value.shape is not None and all(isinstance(d, int) or d.value is not None for d in value.shape)
    return not known and value.dtype in (ir.DataType.FLOAT, None)


def _position(graph: ir.Graph, value: ir.Value) -> int:
    """Index of the node that makes `value` (−1 for an input)."""
    producer = value.producer()
    return -1 if producer is None else next(i for i, node in enumerate(graph) if node is producer)


def _suggest(graph: ir.Graph, names: Names, position: int) -> str:
    """The nearest single-tensor cuts around a node, in words; those with a module path first."""
    cuts = find_cuts(graph, names)
    if names.knows_modules:
        values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
        cuts = [c for c in cuts if names.has_path(values[c.tensors[0]])] or cuts
    before = [c for c in cuts if c.position <= position][-SUGGESTED_EACH_SIDE:]
    after = [c for c in cuts if c.position > position][:SUGGESTED_EACH_SIDE]
    if not before + after:
        return "no single tensor separates this network"
    listed = ", ".join(f"{c.label} ({'×'.join(map(str, c.shapes[0]))})" for c in (*before, *after))
    return f"nearest cuts: {listed}"
