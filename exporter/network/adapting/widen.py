"""Networks in float16 or bfloat16 become float32: what the edge's CPU computes in, and the codec carries.

The weights keep their values; what is computed gets more exact, and does not overflow at 65,504.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
import torch

from splitwire.codec.errors import UnsupportedModel
from splitwire.exporter.network.dataflow import subgraphs

_HALF = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
_TORCH_HALF = {torch.float16: "float16", torch.bfloat16: "bfloat16"}

_SHOWN = 8
"""Names that a note lists."""

_TYPES = frozenset({"to", "dtype", "stash_type", "output_dtype", "softmax_precision"})
"""Attributes that hold an element type."""


def in_float32(module: torch.nn.Module) -> tuple[torch.nn.Module, str | None]:
    """The module, and None; or a copy in float32 of one with weights in half precision, and a note."""
    weights = [*module.parameters(), *module.buffers()]
    found = sorted({_TORCH_HALF[w.dtype] for w in weights if w.dtype in _TORCH_HALF})
    if not found:
        return module, None
    try:
        wide = copy.deepcopy(module).float()
    except Exception as e:  # whatever the module holds beside its weights
        raise UnsupportedModel(
            f"the module holds {' and '.join(found)} weights, and cannot be copied to float32; call module.float()"
        ) from e
    return wide, _note(found)


def widen(model: ir.Model) -> str | None:
    """Change a graph without functions to float32, in place, where it is in half precision; returns a note."""
    found: set[str] = set()
    given: set[str] = set()  # what the outputs alone are in
    outputs = set(model.graph.outputs)
    named = [str(v.name) for v in model.graph.outputs if v.dtype in _HALF]
    for graph in _graphs([model.graph]):
        values = [*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs)]
        for value in dict.fromkeys((*values, *graph.initializers.values())):
            _widen_type(value.type, given if value in outputs else found)
            if value.const_value is not None and value.const_value.dtype in _HALF:
                found.add(_HALF[value.const_value.dtype])
                value.const_value = _wide(value.const_value)
                value.dtype = ir.DataType.FLOAT
        for node in graph:
            for attribute in list(node.attributes.values()):
                wide = _widened(attribute, given if outputs.issuperset(node.outputs) else found)
                if wide is not None:
                    node.attributes[attribute.name] = wide
    if given and not found:
        return f"{_listed(named)} in {' and '.join(sorted(given))}: the pair gives float32 there"
    return _note(sorted(found | given)) if found else None


def _listed(outputs: Sequence[str]) -> str:
    if len(outputs) == 1:
        return f"the output {outputs[0]!r} is"
    more = f" and {len(outputs) - _SHOWN} more" if len(outputs) > _SHOWN else ""
    return f"the outputs {', '.join(map(repr, outputs[:_SHOWN]))}{more} are"


def _note(found: Iterable[str]) -> str:
    return (
        f"the network is in {' and '.join(found)}: it was converted to float32, with the same weights, and both halves"
        " compute in float32 (--back float16 converts the back half for a GPU)"
    )


def _graphs(graphs: Iterable[ir.Graph]) -> Iterator[ir.Graph]:
    """The graphs and the bodies inside them."""
    for graph in graphs:
        yield graph
        for node in graph:
            yield from _graphs(subgraphs(node))


def _widen_type(kind: ir.TypeProtocol | None, found: set[str]) -> None:
    """Of a tensor, or of a sequence or an optional one of tensors."""
    while kind is not None and not isinstance(kind, ir.TensorType):
        kind = getattr(kind, "elem_type", None)
    if kind is not None and kind.dtype in _HALF:
        found.add(_HALF[kind.dtype])
        kind.dtype = ir.DataType.FLOAT


def _widened(attribute: ir.Attr, found: set[str]) -> ir.Attr | None:
    """The attribute in float32; None where it is not in half precision."""
    if attribute.type == ir.AttributeType.INT and attribute.name in _TYPES:
        if attribute.as_int() not in [int(t) for t in _HALF]:
            return None
        found.add(_HALF[ir.DataType(attribute.as_int())])
        return ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT))
    if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _HALF:
        found.add(_HALF[attribute.as_tensor().dtype])
        return ir.AttrTensor(attribute.name, _wide(attribute.as_tensor()))
    return None


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().astype(np.float32), ir.DataType.FLOAT, name=tensor.name)
