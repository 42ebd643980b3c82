"""Correct what a graph declares about its values: outdated shapes are removed, missing types and shapes are added."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from splitwire.exporter.network.dataflow import Flow, Kind
from splitwire.exporter.network.inference import types_in_runtime
from splitwire.exporter.network.quiet import quiet

_NO_TENSORS = frozenset({"SplitToSequence", "SequenceConstruct", "SequenceEmpty", "SequenceMap", "Optional", "ZipMap"})
"""In a graph with one of these operators, values may be sequences. The pass of onnx_ir takes these for tensors."""


def infer_missing(model: ir.Model) -> None:
    """Add missing types and shapes, as far as ONNX's inference knows them. Declared ones stay, with their symbols."""
    missing = [v for n in model.graph for v in n.outputs if v.name and (v.shape is None or v.dtype is None)]
    if not missing:
        return
    inferred = _inferred(model)
    tensors = not any(n.op_type in _NO_TENSORS for n in model.graph.all_nodes())
    for value in missing:
        known = inferred.get(value.name or "")
        if known is not None:
            if value.type is None and tensors:
                value.type = known.type
            if value.shape is None and isinstance(value.type, ir.TensorType):
                value.shape = known.shape


def ask_types(model: ir.Model) -> None:
    """Add the types that ONNX's inference does not know (those of com.microsoft operators) from ONNX Runtime.

    Raises UnsupportedModel if a type is missing and ONNX Runtime does not load the graph.
    """
    by_name = {str(v.name): v for n in model.graph for v in n.outputs if v.name and v.type is None}
    if by_name:
        for value in by_name.values():
            value.shape = None
        for name, text in types_in_runtime(model, list(by_name)).items():
            by_name[name].type = _type(text)
        infer_missing(model)  # the shapes of these values, and types and shapes that depend on them


def drop_stale_shapes(model: ir.Model) -> None:
    """Remove all shapes except the input's, in place, if one of them contradicts the input.

    Some files were edited: the input and output have a new batch symbol or size, but the values between them still have
    the old shapes. ONNX Runtime ignores these; the search for cuts must not rely on them.
    """
    graph = model.graph
    batch = graph.inputs[0].shape[0] if graph.inputs[0].shape else None
    dynamic = not isinstance(batch, int)
    declared = {v: v.shape for n in graph for v in n.outputs if v.name and v.shape is not None}
    if not declared:
        return
    copy = model.clone()
    forget_shapes(copy.graph)
    inferred = _inferred(copy, clone=False)
    activations = {v for v, kind in Flow(graph).kinds.items() if kind == Kind.ACTIVATION}
    for value, shape in declared.items():
        known = inferred.get(value.name or "")
        anew = None if known is None else known.shape
        unknown = anew is None or (len(anew) > 0 and not isinstance(anew[0], int) and anew[0].value is None)
        if anew is not None and _contradicts(shape, anew):
            break
        if dynamic and unknown and value in activations and len(shape) > 1 and isinstance(shape[0], int):
            break  # a batch of 1 in a dynamic graph, after an operator that inference cannot follow
    else:
        return
    forget_shapes(graph)


def forget_shapes(graph: ir.Graph) -> None:
    """Remove the shapes of all node outputs; inference can compute them again from the input."""
    for node in graph:
        for value in node.outputs:
            value.shape = None


def _contradicts(declared: ir.Shape, anew: ir.Shape) -> bool:
    """Whether a declared shape differs from the inferred one: another number, or a number where a symbol is inferred.

    (A symbol where a number is inferred is no contradiction: the file only says less than it could.)
    """
    if len(declared) != len(anew):
        return True
    return any(
        isinstance(d, int) and (d != a if isinstance(a, int) else a.value is not None)
        for d, a in zip(declared, anew, strict=True)
    )


def _inferred(model: ir.Model, *, clone: bool = True) -> dict[str, ir.Value]:
    """Name → value, in a copy of the graph with all types and shapes that ONNX's inference knows."""
    copy = model.clone() if clone else model
    with quiet():
        copy = ShapeInferencePass(strict_mode=False)(copy).model
    return ir.convenience.create_value_mapping(copy.graph, include_subgraphs=False)


def _type(text: str) -> ir.TypeProtocol | None:
    """The type for ONNX Runtime's text, such as "seq(tensor(float))"; None if onnx_ir has no such type (maps)."""
    kind, _, inner = text.removesuffix(")").partition("(")
    if kind == "tensor":
        return ir.TensorType(ir.DataType[inner.upper()]) if inner.upper() in ir.DataType.__members__ else None
    wrapper = {"seq": ir.SequenceType, "optional": ir.OptionalType}.get(kind)
    element = _type(inner) if wrapper is not None else None
    return None if wrapper is None or element is None else wrapper(element)
