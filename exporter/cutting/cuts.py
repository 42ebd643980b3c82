"""Find the tensors that separate the network: everything after them depends only on them.

`separation` (separation.py) decides whether given tensors do. `find_cuts` finds all cuts. `find_cut` finds the one that
the user names, or explains why it is no cut.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from splitwire.codec.errors import CutNotBounded, UnsupportedModel, UsageError
from splitwire.exporter.network.adapting.outputs import split_names
from splitwire.exporter.network.dataflow import Flow

from .names import Names, Resolved
from .separation import alive_sets, closed, separation, single_cuts

MAX_DIMS = 3
"""Largest number of axes of a tensor at the cut, without the batch (codec.profile.TensorSpec)."""

MAX_CLOSED = 8
"""Largest number of crossing tensors that an error message lists or proposes as a cut."""

SUGGESTED_EACH_SIDE = 2


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Tensors that together separate the network.

    tensors: their ONNX names, in execution order. label: the name of the cut for the user, in the form that `--cut`
    takes. shapes: of the tensors of one image, without the batch axis. position: index of the last node before the cut,
    in execution order. extra: indices of later nodes that are in the front half too, because they lead to an output
    that does not depend on the cut (in networks with several outputs); mostly ().
    """

    tensors: tuple[str, ...]
    label: str
    shapes: tuple[tuple[int, ...], ...]
    position: int
    extra: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements that are sent for one image."""
        return sum(math.prod(shape) for shape in self.shapes)


def find_cuts(graph: ir.Graph, names: Names, *, max_tensors: int = 1) -> list[Cut]:
    """The cuts that the codec can carry, in execution order.

    The list has all single tensors. With max_tensors > 1 it also has the sets of at most max_tensors tensors that are
    alive at the same time between two nodes: the pyramids of detectors, skip connections, branches. names: of the same
    graph.
    """
    flow = names.flow if names.flow.graph is graph else Flow(graph)
    cuts: dict[frozenset[ir.Value], Cut] = {}
    for value, late in single_cuts(flow):
        if carried_shape(value) is not None:
            cuts[frozenset([value])] = _cut(flow, names, [value], late)
    if max_tensors > 1:
        for values in alive_sets(flow, max_tensors):
            if len(values) > 1 and all(carried_shape(v) is not None for v in values):
                cuts.setdefault(frozenset(values), _cut(flow, names, values, None))
    return sorted(cuts.values(), key=lambda c: (c.position, len(c.tensors)))


def _cut(flow: Flow, names: Names, values: Sequence[ir.Value], late: Collection[int] | None) -> Cut:
    """late: positions of the nodes after the cut; None if these are all nodes after the last of `values`."""
    position = max(flow.made_at(v) for v in values)
    extra: tuple[int, ...] = ()
    if late is not None:
        after = range(position + 1, len(flow.nodes))
        extra = tuple(t for t in after if flow.used[t] and flow.needed[t] and t not in late)
    return Cut(
        tensors=tuple(str(v.name) for v in values),
        label=names.spec(values),
        shapes=tuple(carried_shape(v) or () for v in values),
        position=position,
        extra=extra,
    )


def carried_shape(value: ir.Value) -> tuple[int, ...] | None:
    """Shape of one image's tensor; None if the codec cannot carry it (it needs float32, batch first, 1 to 3 fixed
    axes)."""
    if _not_carried(value) is not None or value.shape is None:
        return None
    sizes = tuple(d for d in list(value.shape)[1:] if isinstance(d, int))
    return sizes if len(sizes) == len(value.shape) - 1 else None


def _not_carried(value: ir.Value) -> str | None:
    """Why the codec cannot carry the tensor; None if it can, or if only a run shows the shape."""
    if not isinstance(value.type, ir.TensorType):
        return "is no plain tensor (a sequence, say); the codec carries float32 tensors"
    if value.dtype != ir.DataType.FLOAT:
        return f"holds {value.type.dtype.name.lower()}; the codec carries float32"
    if value.shape is None:
        return "has a number of axes that cannot be inferred from the graph"
    dims = list(value.shape)
    text = f"has the shape {value.shape}; "
    if not 2 <= len(dims) <= MAX_DIMS + 1:
        return text + f"the codec carries the batch and 1 to {MAX_DIMS} axes after it"
    if not _is_batch(dims[0], value):
        return text + "the codec carries tensors with the batch first, one row for each image"
    if any(isinstance(d, int) and d < 1 for d in dims):
        return text + "it is empty"
    loose = [d for d in dims[1:] if not isinstance(d, int) and d.value is not None]
    return text + f"the size {loose[0]} depends on the data, and the codec carries fixed shapes" if loose else None


def _is_batch(dim: object, value: ir.Value) -> bool:
    """Whether `dim` is the batch of the graph's input, or unknown (in graphs of the TorchScript exporter)."""
    entry = value.graph.inputs[0] if value.graph is not None and value.graph.inputs else None
    known = isinstance(dim, int) or (isinstance(dim, ir.SymbolicDim) and dim.value is not None)
    return not known or entry is None or not entry.shape or dim == entry.shape[0]


def find_cut(names: Names, layer: str) -> tuple[Cut, str | None]:
    """The cut that `layer` names, after a check that it is one; and a note about the name.

    layer: module path, call of a module, ONNX tensor or node name; or several of these with commas between them. A
    shape is () if only a run of the front half shows it.
    Raises UsageError (unknown layer; nothing before or after it; a tensor that the back half does not read),
    CutNotBounded (the tensors do not separate the network; the message names the other tensors that cross, the cut with
    all of them, and the nearest cuts), UnsupportedModel (the codec cannot carry a tensor).
    """
    flow = names.flow
    resolved = named(names, layer)
    values = flow.in_order(v for _, r in resolved for v in r.values)
    what = f"layer {layer!r}" if len(resolved) == 1 else f"the cut {layer!r}"
    if not values:
        raise UsageError(f"no data leaves {what}, only sizes or constants; {_nearest(flow, names, 0)}")
    nearest = _nearest(flow, names, max(flow.made_at(v) for v in values))
    if any(v.is_graph_input() for v in values):
        raise UsageError(f"{layer!r} is the input: nothing would run on the edge; {nearest}")
    parts = separation(flow, values)
    if not parts.late:
        raise UsageError(f"nothing comes after {layer!r}: no output of the network follows from it; {nearest}")
    if parts.crossing:
        verb = "crosses" if len(parts.crossing) == 1 else "cross"
        raise CutNotBounded(
            f"{what} does not separate the network: {_listed(names, parts.crossing)} also {verb} to the back half;"
            f" {_closed(flow, names, values)}{nearest}"
        )
    spare = [v for v in values if v not in parts.read]
    if len(resolved) > 1 and spare:
        raise UsageError(
            f"the cut {layer!r} has a tensor too many: the back half does not read {_listed(names, spare)}; without it,"
            f" cut at {names.spec([v for v in values if v in parts.read])}"
        )
    values = [v for v in values if v in parts.read]
    for value in values:
        reason = _not_carried(value)
        if reason is not None:
            raise UnsupportedModel(f"the tensor {names.label(value)} at {what} {reason}; {nearest}")
    late = {flow.position[node] for node in parts.after}
    cut = _cut(flow, names, values, late)
    notes = [r.note for _, r in resolved if r.note]
    return cut, "; ".join(notes) or None


def named(names: Names, layer: str) -> list[tuple[str, Resolved]]:
    """Each name in `layer`, and its values. The name of a tensor may contain commas."""
    return [(part, names.resolve(part)) for part in split_names(layer, names.has_tensor)]


def _listed(names: Names, values: Sequence[ir.Value]) -> str:
    more = [f"{len(values) - MAX_CLOSED} more"] if len(values) > MAX_CLOSED else []
    return ", ".join([*(names.label(v) for v in values[:MAX_CLOSED]), *more])


def _closed(flow: Flow, names: Names, values: Sequence[ir.Value]) -> str:
    """In words: the cut of `values` and the other tensors that cross; empty if there is none."""
    labels = [
        names.spec(members)
        for members in closed(flow, values)
        if len(members) <= MAX_CLOSED and not any(_not_carried(v) or v.is_graph_input() for v in members)
    ]
    if not labels:
        return ""
    return f"together they do: --cut '{min(labels, key=lambda spec: spec.count(','))}'; "


def _nearest(flow: Flow, names: Names, position: int) -> str:
    """In words: the nearest cuts of one tensor around a node. Cuts with a module path are preferred."""
    cuts = find_cuts(flow.graph, names)
    if names.knows_modules:
        cuts = [c for c in cuts if c.label != c.tensors[0]] or cuts
    before = [c for c in cuts if c.position <= position][-SUGGESTED_EACH_SIDE:]
    after = [c for c in cuts if c.position > position][:SUGGESTED_EACH_SIDE]
    if not before + after:
        single = [value for value, _ in single_cuts(flow)]
        if not single:
            return "no single tensor separates this network"
        if all(value.dtype != ir.DataType.FLOAT for value in single):
            return "there is no float32 tensor to cut at"
        return "the codec can carry none of the tensors that separate this network"
    listed = ", ".join(f"{c.label} ({'×'.join(map(str, c.shapes[0]))})" for c in (*before, *after))
    return f"nearest cuts: {listed}"


def why_not_carried(value: ir.Value) -> str | None:
    """Why `carried_shape` returns None for the value; None if it returns a shape."""
    if carried_shape(value) is not None:
        return None
    return _not_carried(value) or f"has the shape {value.shape}; a size is not known before the network is run"
