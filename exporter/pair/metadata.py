"""Read and replace the profile in an ONNX file, without parsing, loading or changing anything else.

An ONNX file is one protobuf message. Its `metadata_props` are fields of the outermost level. The graph is a single
field of the same level, and is skipped.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import onnx

from splitwire.codec.errors import ProfileError
from splitwire.codec.profile import MAX_PROFILE_BYTES, METADATA_KEY, CodecProfile

_METADATA_FIELD = onnx.ModelProto.DESCRIPTOR.fields_by_name["metadata_props"].number
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the profile is in a file: the bytes `start` to `end`, with tag and length."""

    path: Path
    start: int
    end: int
    profile: CodecProfile


def find_profile(path: Path) -> Place:
    """Find the profile. Raises ProfileError if the file is not ONNX or has no profile, OSError if it cannot be read."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while (start := file.tell()) < size:
            tag = _varint(file, path)
            field, kind = tag >> 3, tag & 7
            if kind == _VARINT:
                _varint(file, path)
                continue
            length = _varint(file, path) if kind == _BYTES else _FIXED.get(kind)
            if not field or length is None or length > size - file.tell():
                raise _not_onnx(path)
            end = file.tell() + length
            # other fields, and metadata too long for a profile, are not read
            if field == _METADATA_FIELD and kind == _BYTES and length <= 2 * MAX_PROFILE_BYTES:
                try:
                    entry = onnx.StringStringEntryProto.FromString(file.read(length))
                except Exception as e:  # protobuf's DecodeError, whose module has no types
                    raise _not_onnx(path) from e
                if entry.key == METADATA_KEY:
                    return Place(path=path, start=start, end=end, profile=CodecProfile.from_json(entry.value))
            file.seek(end)
    raise ProfileError(f"{path} carries no splitwire profile; make it with `splitwire export`")


def copy_with(place: Place, profile: CodecProfile, target: Path) -> None:
    """Write the file to `target` with another profile in place of the old one. All other bytes stay."""
    entry = onnx.StringStringEntryProto(key=METADATA_KEY, value=profile.to_json()).SerializeToString(deterministic=True)
    with place.path.open("rb") as source, target.open("wb") as file:
        _copy(source, file, place.start)
        file.write(_as_varint(_METADATA_FIELD << 3 | _BYTES) + _as_varint(len(entry)) + entry)
        source.seek(place.end)
        _copy(source, file, None)


def _copy(source: IO[bytes], target: IO[bytes], count: int | None) -> None:
    """Copy `count` bytes, or all remaining ones if None, in pieces: a half may have gigabytes."""
    left = count
    while piece := source.read(_CHUNK if left is None else min(_CHUNK, left)):
        target.write(piece)
        left = None if left is None else left - len(piece)


def _varint(file: IO[bytes], path: Path) -> int:
    value = 0
    for i in range(_LONGEST_VARINT):
        byte = file.read(1)
        if not byte:
            raise _not_onnx(path)
        value |= (byte[0] & 0x7F) << 7 * i
        if byte[0] < 0x80:
            return value
    raise _not_onnx(path)


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _not_onnx(path: Path) -> ProfileError:
    return ProfileError(f"{path} is damaged, or no ONNX file; export the model again")
