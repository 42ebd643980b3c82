"""Make constants of inputs that never change in deployment: the shape of the image, a scale factor, a threshold.

Detectors of other frameworks have such inputs beside the image, but the cut needs a single input. A constant is part of
the half that reads it, and does not cross the cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from splitwire.codec.errors import UnsupportedModel, UsageError

Constants = Mapping[str, ArrayLike]
"""Name of an input → its value: a number, nested lists of numbers, an array."""

_FOLLOWS = "splitwire_constant"
"""Prefix of the nodes that repeat a constant for each image of the batch."""


def bake_constants(model: ir.Model, constants: Constants) -> None:
    """Replace inputs of the main graph by constants, in place.

    A single number fills an input of a fixed shape. A value with the right number of elements is reshaped. If the first
    axis of the input is the batch, every image gets the same row. Raises UsageError: no such input, a value that does
    not fit the type or the shape of the input, or no input left for the image.
    """
    graph = model.graph
    inputs = {str(v.name): v for v in graph.inputs}
    for name in constants:
        if name not in inputs:
            raise UsageError(f"there is no input {name!r} to make constant; the network takes {described(graph)}")
    if constants and len(constants) == len(inputs):
        raise UsageError(f"every input is made constant: nothing is left for the image; inputs: {described(graph)}")
    arrays = {name: _array(inputs[name], constant) for name, constant in constants.items()}
    image = next((v for name, v in inputs.items() if name not in arrays), None)
    for name, array in arrays.items():
        value = inputs[name]
        graph.inputs.remove(value)
        first, batch = (next(iter(v.shape or ()), 1) if v is not None else 1 for v in (value, image))
        if not isinstance(first, int) and not isinstance(batch, int) and array.shape[0] != 1 and first == batch:
            raise UsageError(
                f"the first axis of {name!r} is the batch: its constant has one row, for every image; got"
                f" {array.shape[0]}"
            )
        if image is not None and not isinstance(first, int) and not isinstance(batch, int) and array.shape[0] == 1:
            _follow(graph, image, value, array)
        else:
            value.shape = ir.Shape(array.shape)
            value.const_value = ir.tensor(array, name=name)
            graph.register_initializer(value)


def check_none(constants: Constants | None) -> None:
    """Raise UsageError if there are constants: torch modules take none."""
    if constants:
        raise UsageError(
            "constants are for the inputs of an ONNX file; a torch module takes one tensor: wrap it in one that makes"
            " the others"
        )


def check_input(graph: ir.Graph) -> None:
    """Raise UnsupportedModel unless the network takes one tensor that can be an image."""
    if len(graph.inputs) > 1:
        named = f"{graph.inputs[-1].name}=VALUE"
        raise UnsupportedModel(
            f"the network must have one input, and takes {described(graph)}; where all but one are the same in"
            f" deployment, give their values: --constant '{named}', or constants={{{graph.inputs[-1].name!r}: …}}"
        )
    taken = (ir.DataType.FLOAT, ir.DataType.UINT8)
    plain = all(isinstance(v.type, ir.TensorType) for v in graph.inputs)
    if not graph.inputs or not plain or graph.inputs[0].dtype not in taken or graph.inputs[0].shape is None:
        raise UnsupportedModel(f"the network must have one float32 or uint8 input; it has: {described(graph)}")


def described(graph: ir.Graph) -> str:
    """The inputs, in words."""
    shown = [f"{v.name!r} ({_kind(v)}{_dims(v)})" for v in graph.inputs]
    return ", ".join(shown) or "none"


def _kind(value: ir.Value) -> str:
    return value.dtype.name.lower() if value.dtype and isinstance(value.type, ir.TensorType) else "no tensor"


def _dims(value: ir.Value) -> str:
    if value.shape is None:
        return ""
    return " " + ("×".join(str(d) if isinstance(d, int) else str(d.value or "?") for d in value.shape) or "scalar")


def _array(value: ir.Value, constant: ArrayLike) -> NDArray[Any]:
    """The constant in the type and the shape of the input. Raises UsageError."""
    what = f"the constant for {value.name!r}{_dims(value)}"
    try:
        dtype = value.dtype.numpy() if value.dtype is not None else None
        raw = np.asarray(constant)
    except (TypeError, ValueError):
        raise UsageError(f"{what} must be numbers in equal rows; got {_shown(constant)}") from None
    if dtype is None or dtype.kind not in "fiubV" or (raw.dtype.kind not in "fiub" and raw.dtype != dtype):
        kind = value.dtype.name.lower() if value.dtype else "no tensor"
        raise UsageError(f"{what} must be numbers, and the input {kind}; got {_shown(constant)}")
    if dtype.kind in "iub":
        info = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        whole = raw.dtype.kind != "f" or bool((np.isfinite(raw) & (raw == np.trunc(raw))).all())
        if not whole or (raw.size and not info[0] <= raw.min() <= raw.max() <= info[1]):
            raise UsageError(f"{what} takes whole numbers from {info[0]} to {info[1]}; got {_shown(constant)}")
    elif raw.dtype.kind in "fiu" and raw.size and np.abs(raw[np.isfinite(raw)]).max(initial=0) > _largest(dtype):
        raise UsageError(f"{what} takes {dtype.name} numbers up to {_largest(dtype):g}; got {_shown(constant)}")
    array = raw.astype(dtype)
    if value.shape is None:
        return array
    dims = [d if isinstance(d, int) and d > 0 else None for d in value.shape]
    if len(dims) == array.ndim and all(d in (None, n) for d, n in zip(dims, array.shape, strict=True)):
        return array
    fixed = [1 if d is None and i == 0 else d for i, d in enumerate(dims)]  # a batch of one
    shape = tuple(d for d in fixed if d is not None)
    if len(shape) == len(dims) and array.size == np.prod(shape, dtype=int):
        return array.reshape(shape)
    if len(shape) == len(dims) and array.size == 1:
        return np.full(shape, array.reshape(()))
    raise UsageError(f"{what} has another shape than the input; got {_shown(constant)} of shape {array.shape}")


def _largest(dtype: np.dtype[Any]) -> float:
    """The largest finite number; bfloat16, which NumPy does not know, has the range of float32."""
    return float(np.finfo(dtype).max) if dtype.kind == "f" else float(np.finfo(np.float32).max)


def _shown(constant: object) -> str:
    text = " ".join(str(constant).split())
    return text if len(text) <= 60 else text[:59] + "…"


def _follow(graph: ir.Graph, image: ir.Value, value: ir.Value, array: NDArray[Any]) -> None:
    """Let the readers of `value` read the constant instead, repeated for each image of the batch."""
    name = str(value.name)

    def constant(what: str, data: NDArray[Any]) -> ir.Value:
        initializer = ir.Value(name=f"{_FOLLOWS}_{name}_{what}", const_value=ir.tensor(data))
        initializer.dtype, initializer.shape = ir.DataType.from_numpy(data.dtype), ir.Shape(data.shape)
        graph.register_initializer(initializer)
        return initializer

    row, rest = constant("row", array), constant("axes", np.array(array.shape[1:], np.int64))
    sizes = ir.node("Shape", [image], name=f"{_FOLLOWS}_{name}_sizes")
    batch = ir.node("Gather", [sizes.outputs[0], constant("first", np.array([0], np.int64))])
    shape = ir.node("Concat", [batch.outputs[0], rest], {"axis": 0})
    whole = ir.node("Expand", [row, shape.outputs[0]])
    for i, node in enumerate((sizes, batch, shape, whole)):
        node.name = f"{_FOLLOWS}_{name}_{i}"
        node.outputs[0].name, node.outputs[0].dtype = node.name, ir.DataType.INT64
    repeated = whole.outputs[0]
    repeated.type, repeated.shape = value.type, value.shape
    ir.convenience.replace_all_uses_with(value, repeated, replace_graph_outputs=True)
    graph.insert_before(graph[0], [sizes, batch, shape, whole])
