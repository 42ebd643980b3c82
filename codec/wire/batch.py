"""Several frames in one body, and the reply or the error of each (docs/http.md is normative).

Each record has a checksum over itself, its length and its key included. So a damaged body is refused whole, before
anything is computed, and its sender can send it again. Every size is checked before anything is allocated; the records
are views of the body.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from splitwire.codec.errors import Corrupt, LimitExceeded, Truncated, UnsupportedVersion

FRAMES_MEDIA_TYPE = "application/vnd.splitwire.frames"
REPLIES_MEDIA_TYPE = "application/vnd.splitwire.replies"

MAGIC = b"SPLB"
VERSION = 1
FRAMES, REPLIES = 0, 1
"""What the records of a body are."""
HEAD = struct.Struct("<4sBBH")
RECORD = struct.Struct("<IBI")
CHECKED = struct.Struct("<IB")
"""The part of RECORD that its checksum covers, before the bytes of the record."""
MAX_RECORDS = 256
MAX_KEY = 160
REPLY, ERROR = 0, 1
"""What one record of REPLIES is: a reply of version 1 without its own checksum, or the JSON body of an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameRecord:
    """One frame. key: the text of its idempotency key, printable ASCII; "" for none."""

    frame: bytes | memoryview
    key: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyRecord:
    """The answer to one frame. is_error: the body is JSON as of an HTTP error; else it is a reply."""

    body: bytes | memoryview
    is_error: bool = False


def build_frames(records: Sequence[FrameRecord]) -> bytes:
    """The body of a request. The caller keeps to MAX_RECORDS and MAX_KEY."""
    parts: list[bytes | memoryview] = [HEAD.pack(MAGIC, VERSION, FRAMES, len(records))]
    for record in records:
        key = record.key.encode("ascii")
        parts += _record(len(key), key, record.frame)
    return b"".join(parts)


def build_replies(records: Sequence[ReplyRecord]) -> bytes:
    """The body of an answer, one record per frame of the request, in its order."""
    parts: list[bytes | memoryview] = [HEAD.pack(MAGIC, VERSION, REPLIES, len(records))]
    for record in records:
        parts += _record(ERROR if record.is_error else REPLY, b"", record.body)
    return b"".join(parts)


def parse_frames(data: bytes | memoryview, *, max_records: int = MAX_RECORDS) -> list[FrameRecord]:
    """Read the body of a request. Raises BitstreamError, and nothing else, for anything but a valid one."""
    records = []
    for i, (tag, body) in enumerate(_parse(data, FRAMES, max_records)):
        if tag > MAX_KEY or tag > len(body):
            raise Corrupt(f"record {i} has a key of {tag} bytes; at most {MAX_KEY}, and not longer than the record")
        key = bytes(body[:tag])
        if not key.isascii() or not key.decode("latin-1").isprintable():
            raise Corrupt(f"the key of record {i} is not printable ASCII")
        records.append(FrameRecord(frame=body[tag:], key=key.decode("ascii")))
    return records


def parse_replies(data: bytes | memoryview) -> list[ReplyRecord]:
    """Read the body of an answer. Raises BitstreamError, and nothing else, for anything but a valid one."""
    records = []
    for i, (tag, body) in enumerate(_parse(data, REPLIES, MAX_RECORDS)):
        if tag not in (REPLY, ERROR):
            raise Corrupt(f"record {i} is of kind {tag}; known are {REPLY} (reply) and {ERROR} (error)")
        records.append(ReplyRecord(body=body, is_error=tag == ERROR))
    return records


def record_bytes(record: FrameRecord) -> int:
    """How many bytes of the body a frame takes."""
    return RECORD.size + len(record.key) + len(record.frame)


def _record(tag: int, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    length = sum(map(len, parts))
    checksum = zlib.crc32(CHECKED.pack(length, tag))
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return [RECORD.pack(length, tag, checksum), *parts]


def _parse(data: bytes | memoryview, kind: int, max_records: int) -> list[tuple[int, memoryview]]:
    """(tag, bytes) of each record."""
    view = memoryview(data).cast("B")
    if len(view) < HEAD.size:
        raise Truncated(f"a batch is at least {HEAD.size} bytes; got {len(view)}")
    magic, version, announced, count = HEAD.unpack_from(view)
    if magic != MAGIC:
        raise Corrupt(f"not a batch: it must begin with {MAGIC!r}, begins with {magic!r}")
    if version != VERSION:
        raise UnsupportedVersion(f"batch of version {version}, this build reads {VERSION}; update splitwire")
    if announced != kind:
        raise Corrupt(f"batch of kind {announced}; expected {kind}")
    if count > max_records:
        raise LimitExceeded(f"batch of {count} records; the limit is {max_records}")
    if not count:
        raise Corrupt("batch without records")
    records = []
    at = HEAD.size
    for i in range(count):
        if len(view) - at < RECORD.size:
            raise Truncated(f"batch of {count} records ends in record {i}")
        length, tag, checksum = RECORD.unpack_from(view, at)
        body = view[at + RECORD.size : at + RECORD.size + length]
        if len(body) < length:
            raise Truncated(f"record {i} announces {length} bytes, has {len(body)}")
        if zlib.crc32(body, zlib.crc32(view[at : at + CHECKED.size])) != checksum:
            raise Corrupt(f"record {i} is damaged: its checksum does not match")
        records.append((tag, body))
        at += RECORD.size + length
    if at != len(view):
        raise Corrupt(f"batch has {len(view) - at} bytes after its last record")
    return records
