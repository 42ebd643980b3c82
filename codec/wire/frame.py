"""The wire format, version 1.4: compact or short for a single chunk, long for several (docs/bitstream.md is normative).

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
MINOR_OF_CODER = {4: 2, 5: 3, 6: 4}
"""The minor version that introduced a coder, where that is not 0."""
HEADER = struct.Struct("<4sBBBB8sIH")
COUNT = struct.Struct("<H")
CHUNK = struct.Struct("<BBBBIII")
SHORT_CHUNK = struct.Struct("<BB")
CHECKSUM = struct.Struct("<I")
COMPACT, EXTENDED, WITH_ID = 0x80, 0x40, 0x20
"""Bits of the first byte of a compact frame; no other form begins with the first of them. The low five bits are the
operating point, or 0 in an extended one, which has its fields after the fingerprint."""
POINTS_IN_HEAD = 32
COMPACT_HEADER = struct.Struct("<B4s")
EXTENSION = struct.Struct("<BB")
COMPACT_SIZE = COMPACT_HEADER.size + CHECKSUM.size
"""Bytes of the smallest compact frame, without payload and frame id."""
SHORT_FINGERPRINT = 4
"""How many bytes of the fingerprint a compact frame has."""
COMPACT_IDS = 1 << 7
"""Frame ids below this take at most one byte in a compact frame; EdgeSession counts modulo it."""
MAX_BATCH = 65535
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

    coder: its wire id; None means the operating point's: a compact frame that is not extended does not hold it.
    planes: how many; all chunks of a tensor together have batch × channels. None means all planes: a short frame does
    not hold the number.
    damaged: the payload does not match its checksum; only `parse_frame(…, keep_damaged=True)` returns such a chunk.
    """

    tensor: int
    coder: int | None
    lanes: int
    planes: int | None
    payload: bytes | memoryview
    damaged: bool = False


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A parsed frame; payloads are views into the bytes that were parsed.

    fingerprint: of the pair, 8 bytes; of a parsed compact frame the first 4 of them.
    """

    op: int
    fingerprint: bytes
    frame_id: int
    batch: int
    chunks: Sequence[Chunk]


def side_information(chunks: int, *, compact: bool = False) -> int:
    """Bytes of a frame that are not payload. compact: of one image in one lane, with a frame id of one byte."""
    if compact and chunks == 1:
        return COMPACT_SIZE + 1
    return SHORT_SIZE if chunks == 1 else HEAD_SIZE + chunks * CHUNK.size + CHECKSUM.size


def build_frame(frame: Frame, *, compact: bool = False) -> bytes:
    """Serialise a frame. A single chunk, with all planes of tensor 0, takes the short form, or the compact one.

    compact: take the compact form where the short one is possible. The fields are not checked: the encoder keeps them
    in range.
    """
    if compact and len(frame.chunks) == 1:
        return _build_compact(frame)
    form = SHORT if len(frame.chunks) == 1 else LONG
    minor = max(form, *(MINOR_OF_CODER.get(c.coder or 0, 0) for c in frame.chunks))
    head = HEADER.pack(MAGIC, MAJOR, minor, form, frame.op, frame.fingerprint, frame.frame_id, frame.batch)
    if form == SHORT:
        (chunk,) = frame.chunks
        head += SHORT_CHUNK.pack(chunk.coder, chunk.lanes)
        return b"".join([head, CHECKSUM.pack(zlib.crc32(chunk.payload, zlib.crc32(head))), chunk.payload])
    head += COUNT.pack(len(frame.chunks)) + b"".join(
        CHUNK.pack(c.tensor, c.coder, c.lanes, 0, c.planes, len(c.payload), zlib.crc32(c.payload)) for c in frame.chunks
    )
    return b"".join([head, CHECKSUM.pack(zlib.crc32(head)), *(c.payload for c in frame.chunks)])


def _build_compact(frame: Frame) -> bytes:
    (chunk,) = frame.chunks
    extended = frame.batch > 1 or chunk.lanes > 1 or frame.op >= POINTS_IN_HEAD
    first = COMPACT | (EXTENDED if extended else frame.op) | (WITH_ID if frame.frame_id else 0)
    head = COMPACT_HEADER.pack(first, frame.fingerprint[:SHORT_FINGERPRINT])
    if extended:
        assert chunk.coder is not None  # noqa: S101 - the encoder says it
        head += EXTENSION.pack(frame.op, chunk.coder << 3 | chunk.lanes - 1) + _varint(frame.batch)
    head += _varint(frame.frame_id) if frame.frame_id else b""
    return b"".join([head, CHECKSUM.pack(zlib.crc32(chunk.payload, zlib.crc32(head))), chunk.payload])


def _varint(value: int) -> bytes:
    """LEB128: seven bits per byte, lowest first; the high bit says that another byte follows."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def is_compact(data: bytes | memoryview) -> bool:
    """Whether bytes begin as a compact frame does."""
    return len(data) > 0 and data[0] >= COMPACT


def peek_fingerprint(data: bytes | memoryview) -> bytes:
    """The pair fingerprint of a frame, for routing: 8 bytes, or the first 4 of them from a compact frame.

    Checks only the length of the header, the magic and the version. Raises BitstreamError.
    """
    if is_compact(data):
        if len(data) < COMPACT_SIZE:
            raise Truncated(f"a compact frame is at least {COMPACT_SIZE} bytes; got {len(data)}")
        if data[0] & EXTENDED and data[0] % POINTS_IN_HEAD:
            raise UnsupportedVersion(
                f"extended compact frame of version {data[0] % POINTS_IN_HEAD}, this build knows 0; update splitwire"
            )
        return bytes(data[1 : 1 + SHORT_FINGERPRINT])
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


def peek_batch(data: bytes | memoryview) -> int:
    """The number of images that a frame's header says, for admission: 0 to 65,535, not checked any further.

    Raises BitstreamError.
    """
    peek_fingerprint(data)
    if not is_compact(data):
        return int.from_bytes(data[HEADER.size - 2 : HEADER.size], "little")
    if not data[0] & EXTENDED:
        return 1
    return _read_varint(memoryview(data), COMPACT_HEADER.size + EXTENSION.size, "batch", 1, MAX_BATCH)[0]


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
    if is_compact(view):
        return _parse_compact(view, fingerprint)
    _, _, minor, flags, op, _, frame_id, batch = HEADER.unpack_from(view)
    if flags not in (LONG, SHORT):
        raise UnsupportedVersion(
            f"frame of version {MAJOR}.{minor} has flags {flags}, this build knows {LONG} and {SHORT}; update splitwire"
        )
    chunks = [_short_chunk(view)] if flags == SHORT else _long_chunks(view, limits, keep_damaged)
    if not batch or not chunks:
        raise Corrupt(f"frame header is invalid: batch {batch} and chunks {len(chunks)} must be at least 1")
    return Frame(op=op, fingerprint=fingerprint, frame_id=frame_id, batch=batch, chunks=chunks)


def _parse_compact(view: memoryview, fingerprint: bytes) -> Frame:
    """A compact frame, whose length and first byte `peek_fingerprint` has checked."""
    first, position = view[0], COMPACT_HEADER.size
    op, coder, lanes, batch, frame_id = first % POINTS_IN_HEAD, None, 1, 1, 0
    if first & EXTENDED:
        op, coding = EXTENSION.unpack_from(view, position)  # a frame of COMPACT_SIZE has this many bytes
        coder, lanes = coding >> 3, (coding & 7) + 1
        batch, position = _read_varint(view, position + EXTENSION.size, "batch", 1, MAX_BATCH)
    if first & WITH_ID:
        frame_id, position = _read_varint(view, position, "frame id", 1, (1 << 32) - 1)
    end = position + CHECKSUM.size
    if len(view) < end:
        raise Truncated(f"frame with this header needs at least {end} bytes; got {len(view)}")
    payload = view[end:]
    (checksum,) = CHECKSUM.unpack_from(view, position)
    if zlib.crc32(payload, zlib.crc32(view[:position])) != checksum:
        raise Corrupt("frame is damaged or not of its full length: its checksum does not match")
    chunk = Chunk(tensor=0, coder=coder, lanes=lanes, planes=None, payload=payload)
    return Frame(op=op, fingerprint=fingerprint, frame_id=frame_id, batch=batch, chunks=[chunk])


def _read_varint(view: memoryview, position: int, name: str, least: int, most: int) -> tuple[int, int]:
    """A varint of at most five bytes and the position behind it. Raises Truncated, Corrupt."""
    value = 0
    for i in range(5):
        if position + i >= len(view):
            raise Truncated(f"frame ends within its {name}")
        byte = view[position + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            # A last byte of zero would be a second way to write the same number.
            if not least <= value <= most or (i and not byte):
                break
            return value, position + i + 1
    raise Corrupt(f"frame header is invalid: {name} must be {least}..{most}, in as few bytes as it takes")


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
