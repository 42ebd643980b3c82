"""Read an ONNX file as an onnx_ir model, with corrected declarations and with its weights.

Weights outside the file ("external data") are read only from the folder of the model, as ONNX Runtime does. After all
links are followed, they must lie below the folder of the given path, or below the folder of the model file itself (the
Hugging Face cache keeps both files as links into one folder, `blobs/`). The reason: a model may come from an untrusted
source, and the bytes that it refers to end up in front.onnx. Other files of the machine must not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from splitwire.codec.errors import UnsupportedModel, UsageError

from .inference import MAX_MODEL_BYTES, MIN_APART, load_external, weight_bytes
from .quiet import first_line, quiet

_SHOWN = 40
"""Characters of a file's text that a message shows."""

_Message = Any
"""A protobuf message; protobuf has no type annotations."""


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """model: the graph. foreign: the outputs of types that onnx_ir does not have, name → a phrase such as "is a map".
    These outputs have no type in `model`."""

    model: ir.Model
    foreign: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the bytes of a weight are: `size` bytes from `offset` in `file`, a path without links."""

    file: Path
    offset: int
    size: int


def read_onnx(path: Path) -> OnnxFile:
    """Read a file. If there are over 2 GB of weights, the large external ones are read when they are needed.

    Axes that are declared as 0 or less become free. Raises UsageError (no such file, not ONNX), UnsupportedModel
    (weights missing, too short, or outside the folder of the model).
    """
    try:
        if not path.is_file():
            raise UsageError(f"{path}: no such ONNX file")
        with path.open("rb") as file:
            if file.read(8)[4:] == b"ORTM":
                raise UsageError(f"{path}: a model in ONNX Runtime's own format; give the ONNX file it was made from")
        with quiet():
            proto = _parse(path)
    except OSError as e:
        raise UsageError(f"{path}: cannot be read: {e.strerror or e}") from e
    except UsageError:
        raise
    except Exception as e:  # protobuf and onnx raise a dozen kinds for a damaged file
        raise UsageError(f"{path}: not an ONNX file ({first_line(e)})") from e
    foreign = {v.name: f"is {kind}" for v in proto.graph.output if (kind := _foreign(v.type))}
    _make_safe(proto)
    apart = {t.name: _locate(path, t) for t in proto.graph.initializer if _is_external(t)}
    for tensor in proto.graph.initializer:
        _forget_place(tensor)
    for message in _messages(proto):  # tensors in attributes, bodies, functions, and in sparse tensors
        if isinstance(message, onnx.TensorProto) and _is_external(message):
            _bring_in(message, _locate(path, message))
    for message in _messages(proto):
        _densify(message, path)
    try:
        with quiet():
            model = ir.from_proto(proto)
    except Exception as e:  # onnx_ir wraps its errors; the innermost names the cause
        cause: BaseException = e
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UsageError(f"{path}: not an ONNX file ({first_line(cause)})") from e
    for name, place in apart.items():
        value = model.graph.initializers.get(name)
        tensor = None if value is None else value.const_value
        if value is None or tensor is None:
            raise UnsupportedModel(f"{path}: not a valid ONNX model: a weight has no name")
        value.const_value = ir.ExternalTensor(
            place.file.name,
            place.offset,
            place.size,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=place.file.parent,
        )
    _check_weights(model)
    # over 2 GB the large ones stay in their file: the next steps need only their shapes
    load_external(model, below=float("inf") if weight_bytes(model) <= MAX_MODEL_BYTES else MIN_APART)
    return OnnxFile(model=model, foreign=foreign)


def _parse(path: Path) -> onnx.ModelProto:
    """Parse as binary, whatever the name is, as ONNX Runtime does; otherwise in the text format that the name says."""
    try:
        return onnx.load(path, format="protobuf", load_external_data=False)
    except Exception:
        if path.suffix.lower() in (".onnx", ".pb", ""):
            raise
        return onnx.load(path, load_external_data=False)


def _messages(message: _Message) -> Iterator[_Message]:
    """`message` and every message in it; tensors are not searched."""
    yield message
    if isinstance(message, onnx.TensorProto):
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if isinstance(value, _SEQUENCE) else (value,):
                yield from _messages(inner)


_SEQUENCE = type(onnx.GraphProto().node)
"""Protobuf's class for a repeated field of messages."""


def _foreign(kind: onnx.TypeProto) -> str | None:
    """The type in words, if onnx_ir does not have it."""
    which = kind.WhichOneof("value")
    if which in (None, "tensor_type", "sparse_tensor_type"):
        return None
    if which == "sequence_type":
        inner = _foreign(kind.sequence_type.elem_type)
        return f"a sequence of {inner.removeprefix('a ')}s" if inner else None
    if which == "optional_type":
        return _foreign(kind.optional_type.elem_type)
    return "a map" if which == "map_type" else "an opaque value"


def _make_safe(proto: onnx.ModelProto) -> None:
    """Free axes that are declared as 0 or less. Remove types that onnx_ir does not have; they are inferred later."""
    for message in _messages(proto):
        if isinstance(message, onnx.TensorShapeProto.Dimension):
            if message.HasField("dim_value") and message.dim_value <= 0:
                message.ClearField("dim_value")
        elif isinstance(message, onnx.GraphProto | onnx.FunctionProto):
            for i in reversed(range(len(message.value_info))):
                if _foreign(message.value_info[i].type):
                    del message.value_info[i]
            for output in message.output if isinstance(message, onnx.GraphProto) else ():
                if _foreign(output.type):
                    output.ClearField("type")


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _locate(path: Path, tensor: onnx.TensorProto) -> _Place:
    """Where the bytes of a weight are. Raises UnsupportedModel if they are missing, too few, or outside the folder."""
    reference = {e.key: e.value for e in tensor.external_data}
    location, what = reference.get("location", ""), f"{path}: the weight {tensor.name!r}"
    unfit = f"{path}: the weights do not fit the model: {tensor.name!r}"
    if not location or "\0" in location:
        raise UnsupportedModel(f"{what} does not say in which file it lies; save the model again")
    if Path(location).is_absolute() or PureWindowsPath(location).drive or location.startswith("\\"):
        raise UnsupportedModel(
            f"{what} lies at an absolute path, {location!r}; weights are read from the model's folder alone: put that"
            " file there, and save the model with its bare name as the location"
        )
    try:
        file = (path.parent / location).resolve(strict=True)
        size = file.stat().st_size
        homes = (path.parent.resolve(strict=True), path.resolve(strict=True).parent)
    except (OSError, RuntimeError) as e:  # RuntimeError: links in a circle, before Python 3.13
        cause = getattr(e, "strerror", None) or e
        why = "is missing" if isinstance(e, FileNotFoundError) else f"cannot be read: {cause}"
        hint = "; its separators are those of Windows" if "\\" in location else ""
        raise UnsupportedModel(
            f"{unfit} lies in {location!r}, which {why}{hint}; the file belongs beside the model"
        ) from e
    if not any(file.is_relative_to(home) for home in homes):
        raise UnsupportedModel(
            f"{what} lies outside the model's folder: {location!r} leads to {file}; weights are read from that folder"
            " alone: put the file itself there"
        )
    if not file.is_file():
        raise UnsupportedModel(f"{unfit} lies in {location!r}, which is not a file")
    numbers = {k: reference[k] for k in ("offset", "length") if reference.get(k)}
    for key, text in numbers.items():
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", text):
            raise UnsupportedModel(
                f"{unfit}: its {key} in {location!r} must be a whole number of bytes; the model says {_short(text)!r}"
            )
    offset, length = (int(numbers[k]) if k in numbers else None for k in ("offset", "length"))
    try:
        needed = _size(tensor)
    except ValueError as e:
        raise UnsupportedModel(f"{unfit}: {e}") from e
    start = offset or 0
    end = start + (needed if length is None else length)
    if start < 0 or end - start < needed or size < end:
        raise UnsupportedModel(
            f"{unfit} needs {needed:,} bytes, and is said to be bytes {start:,} to {end:,} of {location!r}, which has"
            f" {size:,} bytes"
        )
    return _Place(file=file, offset=start, size=needed)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _size(tensor: onnx.TensorProto) -> int:
    """The number of bytes that shape and type require. Raises ValueError."""
    if any(d < 0 for d in tensor.dims):
        raise ValueError(f"its shape is {list(tensor.dims)}")
    kind = ir.DataType(tensor.data_type)
    if kind in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        raise ValueError(f"values of the type {kind.name.lower()} cannot lie in another file")
    return int(-(-math.prod(tensor.dims) * kind.bitwidth // 8))


def _bring_in(tensor: onnx.TensorProto, place: _Place) -> None:
    """Copy the bytes into the message."""
    with place.file.open("rb") as file:
        file.seek(place.offset)
        tensor.raw_data = file.read(place.size)
    _forget_place(tensor)


def _forget_place(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _densify(message: _Message, path: Path) -> None:
    """Make sparse weights and constants dense, in place: onnx_ir has no sparse ones."""
    try:
        if isinstance(message, onnx.GraphProto):
            message.initializer.extend(_dense(s) for s in message.sparse_initializer)
            message.ClearField("sparse_initializer")
        elif isinstance(message, onnx.NodeProto) and message.op_type == "Constant":
            for attribute in message.attribute:
                if attribute.name == "sparse_value":
                    plain = onnx.helper.make_attribute("value", _dense(attribute.sparse_tensor))
                    attribute.CopyFrom(plain)
    except (ValueError, IndexError, MemoryError) as e:
        raise UnsupportedModel(f"{path}: a sparse weight is damaged: {first_line(e)}") from e


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """The dense tensor. Raises ValueError, IndexError, MemoryError if the parts contradict each other."""
    shape = tuple(sparse.dims)
    dense = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(sparse.values.data_type))
    indices, values = numpy_helper.to_array(sparse.indices), numpy_helper.to_array(sparse.values)
    if indices.ndim == 1:  # positions in the flattened tensor; otherwise one row of coordinates for each value
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return numpy_helper.from_array(dense, sparse.values.name)


def _check_weights(model: ir.Model) -> None:
    """Raise UnsupportedModel if a weight does not have the number of bytes that its shape and type require."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and not isinstance(tensor, ir.ExternalTensor):
            try:
                tensor.numpy()
            except Exception as e:  # NumPy and onnx_ir raise various kinds
                raise UnsupportedModel(
                    f"the weights do not fit the model: {name!r} of shape {tensor.shape} does not have the bytes for it"
                    f" ({first_line(e)})"
                ) from e
