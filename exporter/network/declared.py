"""What a graph declares of its values, against what they are: shapes that are out of date, types that are missing."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from .dataflow import Flow, Kind
from .inference import types_in_runtime
from .quiet import quiet

_NO_TENSORS = frozenset({"SplitToSequence", "SequenceConstruct", "SequenceEmpty", "SequenceMap", "Optional", "ZipMap"})
"""Where one of these is, values may be sequences, which onnx_ir's pass takes for tensors of their element type."""


def infer_missing(model: ir.Model) -> None:
    """Fill in the types and shapes that are missing, as far as ONNX's inference goes; what is declared, its symbols
    too, stays."""
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
    """Fill in the types that ONNX's inference does not know, those of com.microsoft's operators: ONNX Runtime does.

    Raises UnsupportedModel if a type is missing and ONNX Runtime does not take the graph.
    """
    by_name = {str(v.name): v for n in model.graph for v in n.outputs if v.name and v.type is None}
    if by_name:
        for value in by_name.values():
            value.shape = None
        for name, text in types_in_runtime(model, list(by_name)).items():
            by_name[name].type = _type(text)
        infer_missing(model)  # their shapes, and what follows from them


def drop_stale_shapes(model: ir.Model) -> None:
    """Forget all shapes behind the input if one of them contradicts it, in place.

    People write a symbol over the batch of input and output, or another size, and leave what an older inference wrote
    between them. ONNX Runtime takes no notice of that; a cut must not be judged by it.
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
            break  # one image where there are many, behind an operator that inference does not see through
    else:
        return
    forget_shapes(graph)


def forget_shapes(graph: ir.Graph) -> None:
    """What the nodes make has no shape any more, until it is inferred from the input."""
    for node in graph:
        for value in node.outputs:
            value.shape = None


def _contradicts(declared: ir.Shape, anew: ir.Shape) -> bool:
    """Whether a declared shape cannot be that which follows from the input: a number against another, or against a
    symbol. (A symbol against a number is a file that says less than it could.)"""
    if len(declared) != len(anew):
        return True
    return any(
        isinstance(d, int) and (d != a if isinstance(a, int) else a.value is not None)
        for d, a in zip(declared, anew, strict=True)
    )


def _inferred(model: ir.Model, *, clone: bool = True) -> dict[str, ir.Value]:
    """Name → value of a copy of the graph in which ONNX's inference has filled in what it can."""
    copy = model.clone() if clone else model
    with quiet():
        copy = ShapeInferencePass(strict_mode=False)(copy).model
    return ir.convenience.create_value_mapping(copy.graph, include_subgraphs=False)


def _type(text: str) -> ir.TypeProtocol | None:
    """The type that ONNX Runtime calls "seq(tensor(float))", say; None for what onnx_ir has none for (maps)."""
    kind, _, inner = text.removesuffix(")").partition("(")
    if kind == "tensor":
        return ir.TensorType(ir.DataType[inner.upper()]) if inner.upper() in ir.DataType.__members__ else None
    wrapper = {"seq": ir.SequenceType, "optional": ir.OptionalType}.get(kind)
    element = _type(inner) if wrapper is not None else None
    return None if wrapper is None or element is None else wrapper(element)
