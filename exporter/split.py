"""The split: one graph becomes two at a tensor that separates it.

Requires a cut (cuts.find_cut). Ensures that both halves pass the ONNX checker, that the front goes from the network's
input to the cut and the back from the cut to the outputs, and that no initialiser is in both unless both read it.
Names, doc strings, metadata and the dynamic batch stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from splitwire.codec.errors import ExportError, UnsupportedModel

from .cuts import separation
from .dataflow import Kind, classify, is_size_op, reads


@dataclass(frozen=True, kw_only=True)
class Halves:
    """front: input → the cut's tensors, then `sizes`, then `early`. back: the cut's tensors, then `sizes` → the other
    outputs.

    early: names of the outputs that are known before the cut and leave from the front. sizes: names of int64 vectors
    that the front makes and the back reads: sizes of the front's tensors that the back can have neither from constants
    nor from the shapes of the cut's tensors; mostly ().
    """

    front: ir.Model
    back: ir.Model
    early: tuple[str, ...]
    sizes: tuple[str, ...] = ()


def split(model: ir.Model, tensors: Sequence[str]) -> Halves:
    """Split `model`, which is left as it is, at the values named `tensors`.

    Raises UnsupportedModel if the back half needs the size of a tensor of the front that the cut does not show,
    ExportError if a half does not pass the ONNX checker.
    """
    model = model.clone()
    graph = model.graph
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    cut = [values[name] for name in tensors]
    parts = separation(graph, cut)
    if not parts.after or parts.crossing:
        raise ValueError(f"{', '.join(tensors)}: not a cut; find_cut was not asked")
    for value in cut:
        value.dtype = (
            value.dtype or ir.DataType.FLOAT
        )  # shape inference gave up; ONNX Runtime refuses the half if this is wrong
    made_after = {v for node in parts.after for v in node.outputs}
    late = [v for v in graph.outputs if v in made_after]
    early = [v for v in graph.outputs if v not in made_after and v not in cut]
    front = ir.convenience.extract(graph, graph.inputs, [*cut, *early])
    _make_sizes_again(graph, cut, parts.after)
    back = ir.convenience.extract(graph, cut, late)
    for half in (front, back):
        _order_initialisers(half, list(graph.initializers))
    halves = Halves(
        front=_model(model, front), back=_model(model, back), early=tuple(v.name for v in early if v.name is not None)
    )
    _ensure(halves, tensors)
    return halves


def _order_initialisers(half: ir.Graph, order: list[str]) -> None:
    """Initialisers in the whole's order: extraction leaves a set's, and the same export would give other bytes."""
    values = {name: half.initializers.pop(name) for name in order if name in half.initializers}
    half.initializers.update(values)


def _make_sizes_again(graph: ir.Graph, cut: Sequence[ir.Value], after: tuple[ir.Node, ...]) -> None:
    """Where the back half asks for the size of a tensor of the front, answer from constants and the cut's own size.

    (swin and convnext with a dynamic batch: `Shape` of the input decides a Reshape behind the cut.) Changes `graph`.
    """
    for j, node in enumerate(_sizes_from_front(graph, after)):
        source = node.inputs[0]
        if source is None or source.shape is None:
            raise UnsupportedModel("the back half needs a size of the front that is not known; cut elsewhere")
        if node.op_type == "Size":
            fixed = [_fixed(d, source) for d in source.shape]
            answer = [_constant(np.array(math.prod(fixed)))]
        else:
            start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
            dims = [_dim(d, cut, source) for d in list(source.shape)[start:end]]
            answer = [n for nodes in dims for n in nodes]
            answer.append(ir.node("Concat", [nodes[-1].outputs[0] for nodes in dims], {"axis": 0}))
        for k, part in enumerate(answer):
            part.name = f"splitwire_size_{j}_{k}"
            part.outputs[0].name, part.outputs[0].dtype = part.name, ir.DataType.INT64
        graph.insert_before(graph[0], answer)  # at the front: in the back half the cut is an input
        ir.convenience.replace_all_uses_with(node.outputs[0], answer[-1].outputs[0])


def _sizes_from_front(graph: ir.Graph, after: tuple[ir.Node, ...]) -> list[ir.Node]:
    """The Shape and Size nodes over activations of the front that `after` depends on, in execution order."""
    kinds = classify(graph)
    known = set(after)
    found: set[ir.Node] = set()
    stack = [v for node in after for v in reads(node)]
    while stack:
        value = stack.pop()
        node = value.producer()
        if node is None or node in known or kinds.get(value) != Kind.SIZE:
            continue
        known.add(node)
        if is_size_op(node) and any(kinds.get(v) == Kind.ACTIVATION for v in reads(node)):
            found.add(node)
        else:
            stack.extend(reads(node))
    return [node for node in graph if node in found]


def _dim(dim: int | ir.SymbolicDim, cut: Sequence[ir.Value], source: ir.Value) -> list[ir.Node]:
    """Nodes whose last gives one dimension of `source` as an int64 vector of length 1, from the cut alone."""
    if not isinstance(dim, int) and dim.value is not None:
        for value, axis in ((v, i) for v in cut for i, own in enumerate(v.shape or ()) if own == dim):
            shape, index = ir.node("Shape", [value]), _constant(np.array([axis]))
            return [shape, index, ir.node("Gather", [shape.outputs[0], index.outputs[0]], {"axis": 0})]
    return [_constant(np.array([_fixed(dim, source)]))]


def _fixed(dim: int | ir.SymbolicDim, source: ir.Value) -> int:
    if isinstance(dim, int):
        return dim
    raise UnsupportedModel(
        f"the back half needs the size {dim.value or '?'} of {source.name!r}, which the cut does not show;"
        " cut elsewhere"
    )


def _constant(value: NDArray[np.int64]) -> ir.Node:
    return ir.node("Constant", [], {"value": ir.tensor(value.astype(np.int64))})


def _model(whole: ir.Model, graph: ir.Graph) -> ir.Model:
    return ir.Model(
        graph,
        ir_version=whole.ir_version,
        producer_name=whole.producer_name,
        producer_version=whole.producer_version,
        domain=whole.domain,
        model_version=whole.model_version,
        doc_string=whole.doc_string,
        functions=list(whole.functions.values()),
        metadata_props=dict(whole.metadata_props),
    )


def _ensure(halves: Halves, tensors: Sequence[str]) -> None:
    """The postconditions that need no inference; verify.py checks the numbers."""
    front, back = halves.front.graph, halves.back.graph
    meeting = [*tensors, *halves.sizes]
    if [v.name for v in front.outputs][: len(meeting)] != meeting or [v.name for v in back.inputs] != meeting:
        raise ExportError(f"internal: the halves do not meet at {', '.join(tensors)}; please report this network")
    for name in set(front.initializers) & set(back.initializers):
        if not all(any(True for _ in g.initializers[name].uses()) for g in (front, back)):
            raise ExportError(f"internal: the weight {name!r} is in both halves; please report this network")
    for side, half in (("front", halves.front), ("back", halves.back)):
        try:
            onnx.checker.check_model(ir.to_proto(half))
        except onnx.checker.ValidationError as e:
            reason = str(e).strip().splitlines()[0]
            raise ExportError(f"the {side} half does not pass the ONNX checker: {reason}") from e
