"""Convert networks from float16 or bfloat16 to float32, in which the edge's CPU computes and the codec works.

The weights keep their values. The computation becomes more exact, and does not overflow at 65,504.
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
"""Names of attributes that hold an element type."""


def in_float32(module: torch.nn.Module) -> tuple[torch.nn.Module, str | None]:
    """(the module, None); or, if it has weights in half precision, (a copy in float32, a note)."""
    weights = [*module.parameters(), *module.buffers()]
    half_types = sorted({_TORCH_HALF[w.dtype] for w in weights if w.dtype in _TORCH_HALF})
    if not half_types:
        return module, None
    try:
        wide = copy.deepcopy(module).float()
    except Exception as e:  # the module may hold anything beside its weights
        raise UnsupportedModel(
            f"the module holds {' and '.join(half_types)} weights, and cannot be copied to float32; call module.float()"
        ) from e
    return wide, _note(half_types)


def widen(model: ir.Model) -> str | None:
    """Convert a graph without functions from half precision to float32, in place. Returns a note if it did."""
    half_types: set[str] = set()
    output_types: set[str] = set()  # half-precision types of the outputs
    outputs = set(model.graph.outputs)
    named = [str(v.name) for v in model.graph.outputs if v.dtype in _HALF]
    for graph in _graphs([model.graph]):
        values = [*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs)]
        for value in dict.fromkeys((*values, *graph.initializers.values())):
            _widen_type(value.type, output_types if value in outputs else half_types)
            if value.const_value is not None and value.const_value.dtype in _HALF:
                half_types.add(_HALF[value.const_value.dtype])
                value.const_value = _wide(value.const_value)
                value.dtype = ir.DataType.FLOAT
        for node in graph:
            for attribute in list(node.attributes.values()):
                wide = _widened(attribute, output_types if outputs.issuperset(node.outputs) else half_types)
                if wide is not None:
                    node.attributes[attribute.name] = wide
    if output_types and not half_types:
        return f"{_listed(named)} in {' and '.join(sorted(output_types))}: the pair gives float32 there"
    return _note(sorted(half_types | output_types)) if half_types else None


def _listed(outputs: Sequence[str]) -> str:
    if len(outputs) == 1:
        return f"the output {outputs[0]!r} is"
    more = f" and {len(outputs) - _SHOWN} more" if len(outputs) > _SHOWN else ""
    return f"the outputs {', '.join(map(repr, outputs[:_SHOWN]))}{more} are"


def _note(half_types: Iterable[str]) -> str:
    return (
        f"the network is in {' and '.join(half_types)}: it was converted to float32, with the same weights, and both"
        " halves compute in float32 (--back float16 converts the back half for a GPU)"
    )


def _graphs(graphs: Iterable[ir.Graph]) -> Iterator[ir.Graph]:
    """The graphs, and all bodies of nodes inside them."""
    for graph in graphs:
        yield graph
        for node in graph:
            yield from _graphs(subgraphs(node))


def _widen_type(kind: ir.TypeProtocol | None, half_types: set[str]) -> None:
    """Change the element type of a tensor, sequence or optional type, and add the old one to `half_types`."""
    while kind is not None and not isinstance(kind, ir.TensorType):
        kind = getattr(kind, "elem_type", None)
    if kind is not None and kind.dtype in _HALF:
        half_types.add(_HALF[kind.dtype])
        kind.dtype = ir.DataType.FLOAT


def _widened(attribute: ir.Attr, half_types: set[str]) -> ir.Attr | None:
    """The attribute in float32; None if it is not in half precision."""
    if attribute.type == ir.AttributeType.INT and attribute.name in _TYPES:
        if attribute.as_int() not in [int(t) for t in _HALF]:
            return None
        half_types.add(_HALF[ir.DataType(attribute.as_int())])
        return ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT))
    if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _HALF:
        half_types.add(_HALF[attribute.as_tensor().dtype])
        return ir.AttrTensor(attribute.name, _wide(attribute.as_tensor()))
    return None


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().astype(np.float32), ir.DataType.FLOAT, name=tensor.name)
