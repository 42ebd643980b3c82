"""The wire format, version 1.3: short for a single chunk, long for several (docs/bitstream.md is normative).

The parser checks every size before anything is allocated, refuses trailing bytes, and raises only BitstreamError.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from splitwire.codec.errors import Corrupt, LimitExceeded, Truncated, UnsupportedVersion

MAGIC = b"SPLW"
MAJOR = 1
LONG, SHORT = 0, 1
"""Flags of the two forms; each value is also the minor version that introduced the form."""
MINOR_OF_CODER = {4: 2, 5: 3}
"""The minor version that introduced a coder, where that is not 0."""
HEADER = struct.Struct("<4sBBBB8sIH")
COUNT = struct.Struct("<H")
CHUNK = struct.Struct("<BBBBIII")
SHORT_CHUNK = struct.Struct("<BB")
CHECKSUM = struct.Struct("<I")
HEAD_SIZE = HEADER.size + COUNT.size
SHORT_SIZE = HEADER.size + SHORT_CHUNK.size + CHECKSUM.size


@dataclass(frozen=True, kw_only=True)
class DecoderLimits:
    """The most that a decoder accepts. frame_bytes: length of a frame. elements: decoded, over all tensors."""

    frame_bytes: int = 64 << 20
    elements: int = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive planes of one tensor, decodable without the other chunks.

    planes: how many; all chunks of a tensor together have batch × channels. None means all planes: a short frame does
    not hold the number.
    damaged: the payload does not match its checksum; only `parse_frame(…, keep_damaged=True)` returns such a chunk.
    """

    tensor: int
    coder: int
    lanes: int
    planes: int | None
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
    return SHORT_SIZE if chunks == 1 else HEAD_SIZE + chunks * CHUNK.size + CHECKSUM.size


def build_frame(frame: Frame) -> bytes:
    """Serialise a frame. A single chunk, with all planes of tensor 0, takes the short form.

    The fields are not checked: the encoder keeps them in range.
    """
    form = SHORT if len(frame.chunks) == 1 else LONG
    minor = max(form, *(MINOR_OF_CODER.get(c.coder, 0) for c in frame.chunks))
    head = HEADER.pack(MAGIC, MAJOR, minor, form, frame.op, frame.fingerprint, frame.frame_id, frame.batch)
    if form == SHORT:
        (chunk,) = frame.chunks
        head += SHORT_CHUNK.pack(chunk.coder, chunk.lanes)
        return b"".join([head, CHECKSUM.pack(zlib.crc32(chunk.payload, zlib.crc32(head))), chunk.payload])
    head += COUNT.pack(len(frame.chunks)) + b"".join(
        CHUNK.pack(c.tensor, c.coder, c.lanes, 0, c.planes, len(c.payload), zlib.crc32(c.payload)) for c in frame.chunks
    )
    return b"".join([head, CHECKSUM.pack(zlib.crc32(head)), *(c.payload for c in frame.chunks)])


def peek_fingerprint(data: bytes | memoryview) -> bytes:
    """The pair fingerprint of a frame, for routing. Checks only the magic and the version. Raises BitstreamError."""
    if len(data) < SHORT_SIZE:
        raise Truncated(f"a frame is at least {SHORT_SIZE} bytes; got {len(data)}")
    magic, major, minor, *_ = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise Corrupt(f"not a splitwire frame: it must begin with {MAGIC!r}, begins with {bytes(magic)!r}")
    if major != MAJOR:
        raise UnsupportedVersion(
            f"frame is of version {major}.{minor}, this build reads {MAJOR}.x; update splitwire on this side"
        )
    return bytes(data[8:16])


def parse_frame(data: bytes | memoryview, limits: DecoderLimits | None = None, *, keep_damaged: bool = False) -> Frame:
    """Parse and check everything but the entropy-coded content. Raises BitstreamError, whatever the bytes.

    keep_damaged: mark a chunk whose checksum does not match, instead of refusing the frame. A damaged header is still
    refused, and so is a damaged short frame, which has one checksum for header and payload.
    """
    limits = limits or DecoderLimits()
    view = memoryview(data).cast("B")
    if len(view) > limits.frame_bytes:
        raise LimitExceeded(f"frame of {len(view)} bytes is over the limit of {limits.frame_bytes}")
    fingerprint = peek_fingerprint(view)
    _, _, minor, flags, op, _, frame_id, batch = HEADER.unpack_from(view)
    if flags not in (LONG, SHORT):
        raise UnsupportedVersion(
            f"frame of version {MAJOR}.{minor} has flags {flags}, this build knows {LONG} and {SHORT}; update splitwire"
        )
    chunks = [_short_chunk(view)] if flags == SHORT else _long_chunks(view, limits, keep_damaged)
    if not batch or not chunks:
        raise Corrupt(f"frame header is invalid: batch {batch} and chunks {len(chunks)} must be at least 1")
    return Frame(op=op, fingerprint=fingerprint, frame_id=frame_id, batch=batch, chunks=chunks)


def _short_chunk(view: memoryview) -> Chunk:
    """The chunk of a short frame, which has at least SHORT_SIZE bytes."""
    end = HEADER.size + SHORT_CHUNK.size
    coder, lanes = SHORT_CHUNK.unpack_from(view, HEADER.size)
    (checksum,) = CHECKSUM.unpack_from(view, end)
    payload = view[SHORT_SIZE:]
    if zlib.crc32(payload, zlib.crc32(view[:end])) != checksum:
        raise Corrupt("frame is damaged or not of its full length: its checksum does not match")
    if not lanes:
        raise Corrupt("frame header is invalid: lanes must be at least 1")
    return Chunk(tensor=0, coder=coder, lanes=lanes, planes=None, payload=payload)


def _long_chunks(view: memoryview, limits: DecoderLimits, keep_damaged: bool) -> list[Chunk]:
    """The chunks of a long frame. Checks the header's checksum and the chunks' as well."""
    (count,) = COUNT.unpack_from(view, HEADER.size)
    table_end = HEAD_SIZE + count * CHUNK.size
    start = table_end + CHECKSUM.size
    if len(view) < start:
        raise Truncated(f"frame with {count} chunks needs at least {start} bytes; got {len(view)}")
    (checksum,) = CHECKSUM.unpack_from(view, table_end)
    entries = [CHUNK.unpack_from(view, HEAD_SIZE + i * CHUNK.size) for i in range(count)]
    total = start + sum(entry[5] for entry in entries)
    # Before the checksum, so that a length over the limit gets the error LimitExceeded.
    if total > limits.frame_bytes:
        raise LimitExceeded(f"frame announces {total} bytes, over the limit of {limits.frame_bytes}")
    if zlib.crc32(view[:table_end]) != checksum:
        raise Corrupt("frame header is damaged: its checksum does not match")
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
    return chunks
