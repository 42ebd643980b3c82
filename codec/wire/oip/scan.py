"""Counts the fields of a ModelInferRequest before protobuf reads it, because protobuf allocates for each.

A field takes two bytes on the wire and a hundred in memory: a body within the limit could become gigabytes. This walk
reads tags and lengths only, and stops at the first limit that is passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from splitwire.codec.errors import Corrupt, LimitExceeded, Truncated

MAX_FIELDS = 8192
"""Fields of one request, in all its messages."""
MAX_PACKED = 64 << 10
"""Bytes of numbers that take more memory than bytes on the wire: varints, and what is not float32, float64 or bytes."""


@dataclass(frozen=True)
class _Message:
    """inner: messages by field number. free: numbers of the fields whose bytes take no more memory than on the wire."""

    inner: Mapping[int, _Message] = field(default_factory=dict)
    free: frozenset[int] = frozenset()


_LEAF = _Message()
_PARAMETERS = _Message({2: _LEAF})  # an entry of a map: key and value
_CONTENTS = _Message(free=frozenset({6, 7, 8}))
_INPUT = _Message({4: _PARAMETERS, 5: _CONTENTS})
_OUTPUT = _Message({2: _PARAMETERS})
_REQUEST = _Message({4: _PARAMETERS, 5: _INPUT, 6: _OUTPUT}, frozenset({7}))


def check_infer_request(data: bytes) -> None:
    """Raise LimitExceeded for too many fields or numbers, Truncated or Corrupt for what is no message."""
    _scan(data, 0, len(data), _REQUEST, MAX_FIELDS)


def _scan(data: bytes, at: int, end: int, message: _Message, left: int) -> int:
    """Walk the message in data[at:end]. left: fields that may follow; returns how many may then."""
    while at < end:
        left -= 1
        if left < 0:
            raise LimitExceeded(f"the request has more than {MAX_FIELDS} fields; send tensors as raw contents")
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        match kind:
            case 0:
                _, at = _varint(data, at, end)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                length, at = _varint(data, at, end)
                stop = at + length
                if stop > end:
                    raise Truncated(f"the message ends in field {number}, which announces {length} bytes")
                inner = message.inner.get(number)
                if inner is not None:
                    left = _scan(data, at, stop, inner, left)
                elif length > MAX_PACKED and number not in message.free:
                    raise LimitExceeded(f"field {number} has {length} bytes; the limit is {MAX_PACKED}")
                at = stop
            case _:
                raise Corrupt(f"field {number} of the message has the wire type {kind}")
        if at > end:
            raise Truncated(f"the message ends in field {number}")
    return left


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise Truncated("the message ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Corrupt("a number of the message has more than ten bytes")
