"""The wire format, version 1.0: header, chunk table, payloads (docs/bitstream.md is normative).

The parser checks every size before anything is allocated, refuses trailing bytes, and raises only BitstreamError.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import Corrupt, LimitExceeded, Truncated, UnsupportedVersion

MAGIC = b"SPLW"
MAJOR, MINOR = 1, 0
HEADER = struct.Struct("<4sBBBB8sIHH")
CHUNK = struct.Struct("<BBBBIII")
CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a decoder is ready to accept. frame_bytes: length of a frame. elements: decoded, over all tensors."""

    frame_bytes: int = 64 << 20
    elements: int = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive planes of one tensor, decodable on their own. planes: how many (batch × channels in all chunks).

    damaged: the payload does not match its checksum; only `parse_frame(…, keep_damaged=True)` gives such a chunk.
    """

    tensor: int
    coder: int
    lanes: int
    planes: int
    payload: bytes | memoryview
    damaged: bool = False


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A parsed frame; payloads are views into the bytes that were parsed."""

    op: int
    fingerprint: bytes
    frame_id: int
    batch: int
    chunks: Sequence[Chunk]


def side_information(chunks: int) -> int:
    """Bytes of a frame that are not payload."""
    return HEADER.size + chunks * CHUNK.size + CHECKSUM.size


def build_frame(frame: Frame) -> bytes:
    """Serialise. The fields are ours and already in range."""
    head = HEADER.pack(
        MAGIC, MAJOR, MINOR, 0, frame.op, frame.fingerprint, frame.frame_id, frame.batch, len(frame.chunks)
    )
    table = b"".join(
        CHUNK.pack(c.tensor, c.coder, c.lanes, 0, c.planes, len(c.payload), zlib.crc32(c.payload)) for c in frame.chunks
    )
    head += table
    return b"".join([head, CHECKSUM.pack(zlib.crc32(head)), *(c.payload for c in frame.chunks)])


def peek_fingerprint(data: bytes | memoryview) -> bytes:
    """The pair fingerprint of a frame, to route by; checks magic and version only. Raises BitstreamError."""
    if len(data) < HEADER.size:
        raise Truncated(f"a frame is at least {side_information(1)} bytes; got {len(data)}")
    magic, major, minor, *_ = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise Corrupt(f"not a splitwire frame: it must begin with {MAGIC!r}, begins with {bytes(magic)!r}")
    if major != MAJOR:
        raise UnsupportedVersion(
            f"frame is of version {major}.{minor}, this build reads {MAJOR}.x; update splitwire on this side"
        )
    return bytes(data[8:16])


def parse_frame(data: bytes | memoryview, limits: Limits | None = None, *, keep_damaged: bool = False) -> Frame:
    """Parse and check everything but the entropy-coded content. Raises BitstreamError, whatever the bytes.

    keep_damaged: mark a chunk whose checksum does not match, instead of refusing the frame. The header must be whole.
    """
    limits = limits or Limits()
    view = memoryview(data).cast("B")
    if len(view) > limits.frame_bytes:
        raise LimitExceeded(f"frame of {len(view)} bytes is over the limit of {limits.frame_bytes}")
    fingerprint = peek_fingerprint(view)
    _, _, _, flags, op, _, frame_id, batch, count = HEADER.unpack_from(view)
    table_end = HEADER.size + count * CHUNK.size
    if len(view) < table_end + CHECKSUM.size:
        raise Truncated(f"frame with {count} chunks needs at least {table_end + CHECKSUM.size} bytes; got {len(view)}")
    (checksum,) = CHECKSUM.unpack_from(view, table_end)
    entries = [CHUNK.unpack_from(view, HEADER.size + i * CHUNK.size) for i in range(count)]
    start = table_end + CHECKSUM.size
    total = start + sum(entry[5] for entry in entries)
    # Before the checksum, because a length nobody could mean deserves its own answer.
    if total > limits.frame_bytes:
        raise LimitExceeded(f"frame announces {total} bytes, over the limit of {limits.frame_bytes}")
    if zlib.crc32(view[:table_end]) != checksum:
        raise Corrupt("frame header is damaged: its checksum does not match")
    if flags or not batch or not count:
        raise Corrupt(f"frame header is invalid: flags {flags} must be 0, batch {batch} and chunks {count} at least 1")
    if len(view) < total:
        raise Truncated(f"frame announces {total} bytes, has {len(view)}")
    if len(view) > total:
        raise Corrupt(f"frame announces {total} bytes, has {len(view)}: {len(view) - total} too many")
    chunks = []
    for i, (tensor, coder, lanes, reserved, planes, length, crc) in enumerate(entries):
        payload = view[start : start + length]
        start += length
        if reserved or not lanes or not planes:
            raise Corrupt(f"chunk {i} is invalid: reserved {reserved} must be 0, lanes {lanes} and planes {planes} not")
        damaged = zlib.crc32(payload) != crc
        if damaged and not keep_damaged:
            raise Corrupt(f"chunk {i} is damaged: its checksum does not match")
        chunks.append(Chunk(tensor=tensor, coder=coder, lanes=lanes, planes=planes, payload=payload, damaged=damaged))
    return Frame(op=op, fingerprint=fingerprint, frame_id=frame_id, batch=batch, chunks=chunks)
