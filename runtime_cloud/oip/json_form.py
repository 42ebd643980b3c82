"""An HTTP body ↔ InferRequest and InferAnswer: JSON, with or without the bytes of tensors behind it.

JSON alone                         tensors as lists of numbers
JSON and binary tensors            Inference-Header-Content-Length: length of the JSON; the tensors follow in order
a frame alone                      Inference-Header-Content-Length: 0
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct, UnsetType
from numpy.typing import NDArray

from splitwire.codec.errors import Corrupt, LimitExceeded, Truncated, UsageError
from splitwire.codec.wire.oip.tensors import BYTES, DATATYPES, MAX_ELEMENTS
from splitwire.codec.wire.reply import DTYPES, UNREADABLE, printable

from .errors import NotSupported
from .requests import InferAnswer, InferRequest, InputTensor, Values, WantedOutput, refuse, scheduling

MAX_JSON = 4 << 20
"""Bytes of JSON in a request. A number in it takes 2 bytes and, as an object, 32."""
MAX_JSON_ELEMENTS = 1 << 20
"""Elements of all outputs that are written as JSON."""
MAX_DEPTH = 64
"""Levels of lists and objects in JSON."""
_OPEN_CLOSE = {ord(c): 1 if c in "[{" else -1 for c in "[]{}"}
_STEPS = np.array([_OPEN_CLOSE.get(i, 0) for i in range(256)], np.int8)
_NO_BRACKETS = bytes(i for i in range(256) if i not in _OPEN_CLOSE)


class _Input(Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: Raw | UnsetType = UNSET


class _Output(Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Request(Struct):
    inputs: list[_Input]
    id: str = ""
    outputs: list[_Output] | None = None
    parameters: dict[str, Any] | None = None


class _Repository(Struct):
    """The body of a load or unload."""

    parameters: dict[str, Any] | None = None


class _Index(Struct):
    """The body of an index."""

    ready: bool = False


def check_depth(text: bytes | memoryview) -> None:
    """Raise UsageError for JSON with more than MAX_DEPTH levels, LimitExceeded for more than MAX_JSON bytes.

    Brackets within strings count too.
    """
    if len(text) > MAX_JSON:
        raise LimitExceeded(
            f"the request has {len(text)} bytes of JSON; the limit is {MAX_JSON}: send tensors in binary form"
        )
    brackets = bytes(text).translate(None, _NO_BRACKETS)
    if len(brackets) > MAX_DEPTH:  # else it cannot be that deep
        depth = np.cumsum(_STEPS[np.frombuffer(brackets, np.uint8)], dtype=np.int32)
        if int(depth.max()) > MAX_DEPTH:
            raise UsageError(f"the JSON is nested more than {MAX_DEPTH} levels deep")


def _decode(text: bytes | memoryview, kind: type[Any]) -> Any:
    check_depth(text)
    try:
        return msgspec.json.decode(text, type=kind)
    except UNREADABLE as e:
        raise UsageError(f"the JSON of the request cannot be read: {printable(str(e))}") from e


def header_length(value: str | None, body: int) -> int | None:
    """The number in Inference-Header-Content-Length; None without one. body: length of the body.

    Raises UsageError for what is no number up to the length of the body.
    """
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 12) or int(value) > body:
        raise UsageError(
            f"Inference-Header-Content-Length is {printable(value[:32])!r}; it must be 0 to {body}, the length of the "
            "body"
        )
    return int(value)


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """A body with its Content-Encoding undone. limit: most bytes of the result.

    Raises LimitExceeded, without having made more than that; Corrupt; NotSupported for another encoding.
    """
    if encoding not in ("gzip", "deflate"):
        raise NotSupported(f"the content encoding {printable(encoding[:32])!r}: send gzip, deflate, or none")
    decoder = zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
    try:
        data = decoder.decompress(body, limit + 1)
    except zlib.error as e:
        raise Corrupt(f"the body is no {encoding}: {e}") from e
    if len(data) > limit:
        raise LimitExceeded(f"the body is longer than the limit of {limit} bytes when decompressed")
    if not decoder.eof:
        raise Truncated(f"the {encoding} body ends early")
    if decoder.unused_data:
        raise Corrupt(f"{len(decoder.unused_data)} bytes follow the {encoding} body")
    return data


def read_request(body: bytes, length: int | None, frame_name: str) -> InferRequest:
    """The request in a body. length: as Inference-Header-Content-Length says; None for JSON alone, 0 for a frame alone.

    frame_name: the input for a frame alone. Raises UsageError, BitstreamError.
    """
    if length == 0:
        frame = InputTensor(name=frame_name, datatype=BYTES, shape=(1,), elements=(body,))
        return InferRequest(inputs=(frame,), binary=True)
    view = memoryview(body)
    text = view if length is None else view[:length]
    request: _Request = _decode(text, _Request)
    parameters = request.parameters or {}
    priority, timeout = scheduling(parameters)
    binary = _flag(parameters, "binary_data_output", False)
    at = len(text)
    inputs = []
    for i in request.inputs:
        tensor, at = _input(i, view, at)
        inputs.append(tensor)
    if at != len(view):
        raise Corrupt(f"{len(view) - at} bytes follow the tensors that the request announces")
    outputs = None
    if request.outputs:
        outputs = []
        for o in request.outputs:
            p = o.parameters or {}
            refuse(p, f"output {printable(o.name[:64])!r}")
            outputs.append(WantedOutput(name=o.name, binary=_flag(p, "binary_data", binary)))
    return InferRequest(
        inputs=inputs, outputs=outputs, id=request.id, binary=binary, priority=priority, timeout_us=timeout
    )


def _input(i: _Input, view: memoryview, at: int) -> tuple[InputTensor, int]:
    """An input whose bytes, if it has any, begin at `at`; and where those of the next one begin."""
    shown = repr(printable(i.name[:64]))
    parameters = i.parameters or {}
    refuse(parameters, f"input {shown}")
    shape = tuple(i.shape)
    if "binary_data_size" not in parameters:
        if isinstance(i.data, UnsetType):
            raise UsageError(f"input {shown} has neither data nor binary_data_size")
        data = i.data
        if i.datatype == BYTES:
            return InputTensor(name=i.name, datatype=BYTES, shape=shape, elements=_strings(data, shown)), at
        return InputTensor(name=i.name, datatype=i.datatype, shape=shape, values=_numbers(data, shown)), at
    size = parameters["binary_data_size"]
    if not isinstance(i.data, UnsetType):
        raise UsageError(f"input {shown} has data and binary_data_size; give one of them")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise UsageError(f"binary_data_size of input {shown} must be an integer of 0 or more")
    if size > len(view) - at:
        raise Truncated(f"input {shown} announces {size} bytes, {len(view) - at} are left")
    return InputTensor(name=i.name, datatype=i.datatype, shape=shape, data=view[at : at + size]), at + size


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise UsageError(f"the parameter {name} must be true or false")
    return value


def _numbers(data: Raw, shown: str) -> Values:
    """Reads numbers, in one list or nested as the shape is; the shape is checked by then."""

    def values(dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        text = bytes(data)
        if text.count(b",") + 1 > max(1, count):  # before a number becomes an object
            raise Corrupt(f"input {shown} has more elements than the {count} of its shape")
        kind = float if dtype.kind == "f" else int
        try:
            flat = msgspec.json.decode(text, type=list[kind])  # type: ignore[valid-type]  # a type in a variable
        except UNREADABLE:
            try:
                flat = msgspec.json.decode(text)
            except UNREADABLE as e:
                raise UsageError(f"the data of input {shown} cannot be read: {printable(str(e))}") from e
            flat = _flatten(flat, kind, shown)
        if len(flat) != count:
            raise Corrupt(f"input {shown} has {len(flat)} elements, its shape says {count}")
        try:
            with np.errstate(over="ignore"):  # 1e300 becomes infinite, as it would in binary form
                return np.array(flat, dtype=dtype)
        except OverflowError as e:
            raise UsageError(f"an element of input {shown} is out of the range of {dtype.name}") from e

    return values


def _flatten(values: Any, kind: type[int | float], shown: str) -> list[Any]:
    """The numbers in nested lists, in order. Their depth and number are bounded by the JSON."""
    level: list[Any] = values if isinstance(values, list) else [values]
    while any(isinstance(v, list) for v in level):
        if not all(isinstance(v, list) for v in level):
            raise UsageError(f"the data of input {shown} is nested unevenly")
        level = [v for inner in level for v in inner]
    for v in level:
        if isinstance(v, bool) or not isinstance(v, (int, float) if kind is float else int):
            raise UsageError(f"the data of input {shown} holds something else than numbers")
    return level


def _strings(data: Raw, shown: str) -> list[bytes]:
    """Elements of type BYTES in JSON: strings, which stand for their UTF-8 bytes."""
    if bytes(data).count(b'"') > 2 * 8 * MAX_ELEMENTS:  # before a string becomes an object
        raise LimitExceeded(f"input {shown} has more elements than the limit of {MAX_ELEMENTS}")
    try:
        strings = msgspec.json.decode(data, type=list[str])
    except UNREADABLE as e:
        raise UsageError(
            f"the data of input {shown} is no list of strings; a frame is not text, send it in binary form"
        ) from e
    return [s.encode("utf-8", "surrogatepass") for s in strings]


def write_answer(answer: InferAnswer) -> tuple[bytes, int | None]:
    """(body, length of its JSON; None if it is JSON alone). Raises UsageError for what JSON cannot hold."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes | memoryview] = []
    elements = 0
    for name, array, binary in answer.outputs:
        output: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[array.dtype.name],
            "shape": list(array.shape),
        }
        if binary:
            data = np.ascontiguousarray(array, dtype=DTYPES[array.dtype.name]).tobytes()
            output["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        else:
            elements += array.size
            if elements > MAX_JSON_ELEMENTS:
                raise LimitExceeded(f"the outputs are over {MAX_JSON_ELEMENTS} elements: ask for binary_data")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise UsageError(f"output {name!r} holds NaN or an infinity, which JSON has not: ask for binary_data")
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    head: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if answer.id:
        head["id"] = answer.id
    if answer.parameters:
        head["parameters"] = dict(answer.parameters)
    head["outputs"] = outputs
    text = msgspec.json.encode(head)
    if not parts and not any(binary for *_, binary in answer.outputs):
        return text, None
    return b"".join([text, *parts]), len(text)


def read_load(body: bytes) -> None:
    """Check the body of a load, which names nothing: the model is the one of the path. Raises UsageError."""
    for name in _parameters(body):
        raise UsageError(
            f"a load takes a model of the repository, and no parameters; got {printable(name[:64])!r}: models are not "
            "uploaded"
        )


def read_unload(body: bytes) -> None:
    """Check the body of an unload. No model depends on another, so `unload_dependents` changes nothing."""
    for name in _parameters(body):
        if name != "unload_dependents":
            raise UsageError(f"an unload takes no parameter {printable(name[:64])!r}")


def read_index(body: bytes) -> bool:
    """Whether an index is of the ready models only; the body may be empty."""
    return bool(body) and bool(_decode(body, _Index).ready)


def _parameters(body: bytes) -> Sequence[str]:
    request: _Repository = _decode(body, _Repository) if body else _Repository()
    return list(request.parameters or {})
