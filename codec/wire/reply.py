"""The reply: the cloud's answer to a frame, as one strict msgpack map. The cloud writes it and the edge reads it.

    {version, frame_id, decode_ms, back_ms, outputs: [{name, dtype, shape, data}, …]}      (docs/runtime.md)

Version 2 puts five bytes in front of that map: 2, and the map's CRC-32. An edge that reads it asks for it; the bytes
say which of the two they are, because a map begins with another byte.

It is msgpack and never pickle: decoding creates numbers, strings and views of the received bytes, and nothing else. The
size of an output is checked against its shape before an array is made, so the edge never allocates more than it has
received.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from splitwire.codec.errors import BadResponse, SplitwireError, UnsupportedModel

FRAME_MEDIA_TYPE = "application/vnd.splitwire.frame"
REPLY_MEDIA_TYPE = "application/vnd.splitwire.reply"
REPLY_VERSION = 1
"""The version in the map."""
CHECKED_VERSION = 2
"""The version whose first byte is this number, and which has a checksum."""
_CHECKED = struct.Struct("<BI")

_ASKS = re.compile(r";\s*r\s*=\s*([0-9]{1,3})(?![0-9.])")

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for invalid bytes; a bad key in a map is a UnicodeDecodeError."""

MAX_OUTPUTS = 255
MAX_DIMS = 32
MAX_NAME = 4096
MAX_SENTENCE = 400

DTYPES: Mapping[str, np.dtype[Any]] = {
    "bool": np.dtype("?"),
    "uint8": np.dtype("u1"),
    "int8": np.dtype("i1"),
    "int16": np.dtype("<i2"),
    "uint16": np.dtype("<u2"),
    "int32": np.dtype("<i4"),
    "uint32": np.dtype("<u4"),
    "int64": np.dtype("<i8"),
    "uint64": np.dtype("<u8"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}
"""The element types of outputs, little-endian on the wire. A name is never reused for another type."""

Outputs = dict[str, NDArray[Any]]
"""Outputs of a network for a batch of inputs, by name, in the network's order."""

Milliseconds = Annotated[float, Meta(ge=0)]
Dim = Annotated[int, Meta(ge=0, le=1 << 31)]


class _Tensor(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(max_length=MAX_NAME)]
    dtype: Annotated[str, Meta(max_length=MAX_NAME)]
    shape: Annotated[tuple[Dim, ...], Meta(max_length=MAX_DIMS)]
    data: memoryview  # a view of the reply: nothing is allocated while parsing


class _Reply(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    frame_id: Annotated[int, Meta(ge=0)]
    decode_ms: Milliseconds
    back_ms: Milliseconds
    outputs: Annotated[tuple[_Tensor, ...], Meta(min_length=1, max_length=MAX_OUTPUTS)]


class _Version(Struct):
    """The version of a reply, read alone for the message about a reply with unknown fields."""

    version: int


@dataclass(frozen=True, kw_only=True)
class DecodedReply:
    """outputs: by name, in the back graph's order; writable arrays. decode_ms, back_ms: time spent in the cloud."""

    outputs: Outputs
    frame_id: int
    decode_ms: float
    back_ms: float


def encode_reply(outputs: Mapping[str, NDArray[Any]], *, frame_id: int, decode_ms: float, back_ms: float) -> bytes:
    """Encode outputs and times (ms). Raises UnsupportedModel for an element type that is not in DTYPES."""
    tensors = []
    for name, array in outputs.items():
        wire = DTYPES.get(array.dtype.name)
        if wire is None:
            raise UnsupportedModel(f"output {name!r} is {array.dtype}; a reply can carry {', '.join(DTYPES)}")
        flat = np.ascontiguousarray(array, dtype=wire).reshape(-1)
        tensors.append(_Tensor(name=name, dtype=array.dtype.name, shape=array.shape, data=flat.view(np.uint8).data))
    reply = _Reply(
        version=REPLY_VERSION, frame_id=frame_id, decode_ms=decode_ms, back_ms=back_ms, outputs=tuple(tensors)
    )
    return msgspec.msgpack.encode(reply)


def with_checksum(reply: bytes) -> bytes:
    """A reply of version 2 from one of version 1."""
    return _CHECKED.pack(CHECKED_VERSION, zlib.crc32(reply)) + reply


def asks_for_checksum(media_types: str) -> bool:
    """Whether a Content-Type or Accept header says that its sender reads replies of version 2: a parameter r of 2 or
    more."""
    match = _ASKS.search(media_types)
    return match is not None and int(match[1]) >= CHECKED_VERSION


def decode_reply(data: bytes | memoryview) -> DecodedReply:
    """Decode a reply, of version 1 or 2, to outputs and times.

    Raises BadResponse, and nothing else, for anything but a valid reply. The transport bounds len(data). The arrays
    made here hold at most len(data) bytes.
    """
    if len(data) >= _CHECKED.size and data[0] == CHECKED_VERSION:
        (_, checksum) = _CHECKED.unpack_from(data)
        data = memoryview(data)[_CHECKED.size :]
        if zlib.crc32(data) != checksum:
            raise BadResponse("the server's reply is damaged: its checksum does not match")
    try:
        reply = msgspec.msgpack.decode(data, type=_Reply)
    except UNREADABLE as e:
        raise _refused(data, e) from e
    if reply.version != REPLY_VERSION:
        raise _newer(reply.version)
    for name, ms in (("decode_ms", reply.decode_ms), ("back_ms", reply.back_ms)):
        if not math.isfinite(ms):
            raise BadResponse(f"the server's reply says {name} = {ms}; expected a finite time")
    outputs: Outputs = {}
    for tensor in reply.outputs:
        if tensor.name in outputs:
            raise BadResponse(f"the server's reply holds output {tensor.name!r} twice")
        outputs[tensor.name] = _to_array(tensor)
    return DecodedReply(outputs=outputs, frame_id=reply.frame_id, decode_ms=reply.decode_ms, back_ms=reply.back_ms)


def printable(text: str) -> str:
    """Make text from the far end safe to show: one line, no control characters, at most MAX_SENTENCE long."""
    if len(text) <= MAX_SENTENCE and text.isprintable():  # most are, and a busy server says a lot of them
        return text
    clean = "".join(c if c.isprintable() else " " for c in text[: MAX_SENTENCE + 1])
    return clean if len(clean) <= MAX_SENTENCE else clean[:MAX_SENTENCE] + "…"


def _to_array(tensor: _Tensor) -> NDArray[Any]:
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise BadResponse(f"output {tensor.name!r} has dtype {tensor.dtype!r}; known are {', '.join(DTYPES)}")
    expected = math.prod(tensor.shape) * dtype.itemsize  # Python integers: no overflow, whatever the shape
    if expected != tensor.data.nbytes:
        raise BadResponse(
            f"output {tensor.name!r} of shape {tensor.shape} and {tensor.dtype} must have {expected} bytes, "
            f"has {tensor.data.nbytes}"
        )
    if tensor.dtype == "bool" and expected and np.frombuffer(tensor.data, dtype=np.uint8).max() > 1:
        raise BadResponse(f"output {tensor.name!r} is bool but holds bytes other than 0 and 1")
    # A copy is aligned, writable and in native byte order, and does not keep the whole reply in memory.
    return np.frombuffer(tensor.data, dtype=dtype).astype(dtype.newbyteorder("=")).reshape(tensor.shape)


def _refused(data: bytes | memoryview, cause: Exception) -> SplitwireError:
    """The error for bytes that are no version-1 reply. A reply of a newer version has its own message."""
    try:
        version = msgspec.msgpack.decode(data, type=_Version).version
    except UNREADABLE:
        version = REPLY_VERSION
    if version != REPLY_VERSION:
        return _newer(version)
    return BadResponse(f"the server's reply is damaged: {printable(str(cause))}")


def _newer(version: int) -> SplitwireError:
    return BadResponse(
        f"the server's reply has version {version}, this splitwire reads {REPLY_VERSION}; update the older side"
    )
