"""Changes to a frame, as by a link or by an attacker. Each change also gets another frame of the same pair."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable

import numpy as np

EXTREMES = (0, 1, 2, 7, 8, 9, 127, 128, 255, 256, 32767, 65535, 1 << 16, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
FIELDS = ((4, 1), (5, 1), (6, 1), (7, 1), (16, 4), (20, 2), (22, 2), (22, 1), (23, 1))
CHUNK_FIELDS = ((0, 1), (1, 1), (2, 1), (3, 1), (4, 4), (8, 4), (12, 4))

Rng = np.random.Generator
Mutation = Callable[[Rng, bytearray, bytes], bytearray]


COMPACT_FIELDS = ((0, 1), (1, 1), (4, 1), (5, 1), (6, 1), (7, 1))


def is_compact(frame: bytes | bytearray) -> bool:
    return len(frame) > 0 and frame[0] > 127


def smallest(frame: bytes | bytearray) -> int:
    """Bytes of a frame without its payload, and of a long one's header without its chunk table."""
    return checksum_at(frame) + 4 if is_compact(frame) else 28


def is_short(frame: bytes | bytearray) -> bool:
    return not is_compact(frame) and frame[6] == 1


def checksum_at(frame: bytes | bytearray) -> int:
    """Where the checksum of a compact frame lies, if its variable fields are what its flags say."""
    position = 5
    if frame[0] & 64:
        position += 2 + varint_size(frame, 7)
    return position + (varint_size(frame, position) if frame[0] & 32 else 0)


def varint_size(frame: bytes | bytearray, position: int) -> int:
    """Bytes of the number there; five if it does not end."""
    return next((i for i in range(5) if frame[position + i : position + i + 1] < b"\x80"), 4) + 1


def lanes_of(frame: bytes | bytearray) -> int:
    """The lanes that a compact frame says."""
    return (frame[6] & 7) + 1 if frame[0] & 64 else 1


def varint(value: int) -> bytes:
    """Seven bits per byte, lowest first; all but the last byte have the high bit."""
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value // 128)


def batch_of(frame: bytes | bytearray) -> int:
    """The batch that a header says."""
    if not is_compact(frame):
        return int.from_bytes(frame[20:22], "little")
    if not frame[0] & 64:
        return 1
    return sum((byte & 127) << 7 * i for i, byte in enumerate(frame[7 : 7 + varint_size(frame, 7)]))


def head_of(frame: bytes | bytearray) -> int:
    """How many bytes lie before the payloads, by its header."""
    return checksum_at(frame) + 4 if is_compact(frame) else 28 + 16 * chunks_of(frame)


def chunks_of(frame: bytes | bytearray) -> int:
    """How many entries its chunk table has by its header, and has room for; 0 if for none, or in a short frame."""
    long = len(frame) >= 44 and not is_short(frame) and not is_compact(frame)
    count = int.from_bytes(frame[22:24], "little") if long else 0
    return count if len(frame) >= 28 + 16 * count else 0


def flip_bits(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    for i in rng.integers(0, 8 * len(frame), rng.integers(1, 17)).tolist():
        frame[i // 8] ^= 1 << i % 8
    return frame


def overwrite(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    start = int(rng.integers(len(frame)))
    size = min(int(rng.integers(1, 33)), len(frame) - start)
    frame[start : start + size] = bytes(size) if rng.random() < 0.2 else rng.bytes(size)
    return frame


def truncate(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    return frame[: rng.integers(len(frame))]


def random_tail(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    return frame + rng.bytes(int(rng.integers(1, 65)))


def shift(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    """Some bytes left out, or there twice."""
    start, size = int(rng.integers(len(frame))), int(rng.integers(1, 9))
    return frame[:start] + (frame[start + size :] if rng.random() < 0.5 else frame[max(0, start - size) :])


def splice(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    """The beginning of one frame and the end of another, cut anywhere or at the same place."""
    cut = int(rng.integers(min(len(frame), len(other))))
    return frame[:cut] + other[cut if rng.random() < 0.5 else int(rng.integers(len(other))) :]


def foreign_payloads(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    """One frame's header and chunk table, the other's payloads."""
    return frame[: head_of(frame)] + other[head_of(other) :]


def swap_chunks(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    """Two entries of the chunk table change places, their payloads too or not."""
    count = chunks_of(frame)
    if count < 2:
        return flip_bits(rng, frame, other)
    entries = [frame[24 + 16 * k : 40 + 16 * k] for k in range(count)]
    ends = np.cumsum([28 + 16 * count, *(int.from_bytes(e[8:12], "little") for e in entries)])
    payloads = [frame[a:b] for a, b in itertools.pairwise(ends.tolist())]
    i, j = rng.choice(count, 2, replace=False)
    entries[i], entries[j] = entries[j], entries[i]
    if rng.random() < 0.5:
        payloads[i], payloads[j] = payloads[j], payloads[i]
    return frame[:24] + b"".join(entries) + frame[24 + 16 * count : 28 + 16 * count] + b"".join(payloads)


def lie(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    """Some fields of the header or of the chunk table hold what they should not: lengths, counts, ids, sizes."""
    for _ in range(rng.integers(1, 4)):
        count = chunks_of(frame)
        start = 24 + 16 * int(rng.integers(count)) if count and rng.random() < 0.7 else 0
        fields = CHUNK_FIELDS if start else COMPACT_FIELDS if is_compact(frame) else FIELDS
        offset, size = fields[int(rng.integers(len(fields)))]
        now = int.from_bytes(frame[start + offset : start + offset + size], "little")
        value = EXTREMES[int(rng.integers(len(EXTREMES)))] if rng.random() < 0.5 else now + int(rng.integers(-3, 4))
        frame[start + offset : start + offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    return frame


def inflate(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    """A consistent header that promises many times the features that are there, up to and over the limit."""
    times = int(2 ** rng.uniform(1, 16))
    if is_compact(frame):
        if frame[0] & 64:
            return frame[:7] + varint(min(65535, times)) + frame[7 + varint_size(frame, 7) :]
        return frame
    struct.pack_into("<H", frame, 20, min(65535, times * int.from_bytes(frame[20:22], "little")))
    for k in range(chunks_of(frame)):
        (planes,) = struct.unpack_from("<I", frame, 28 + 16 * k)
        struct.pack_into("<I", frame, 28 + 16 * k, min((1 << 32) - 1, times * planes))
    return frame


def other_form(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    """A single chunk in the other form, as an older or newer encoder would send it; else only the flag."""
    if is_compact(frame):
        frame[0] ^= int(rng.integers(1, 16))
        return frame
    if is_short(frame):
        made = bytearray(long_form(bytes(frame), int(rng.integers(1, 64))))
        if seal(frame.copy()) != frame:  # changed before: its checksum is not to become right by this
            made[40] ^= 1
        return made
    head = frame[:6] + b"\1" + frame[7:22]
    return head + (frame[25:27] + bytes(4) + frame[44:] if chunks_of(frame) == 1 else frame[22:])


def random_payload(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    """A valid header and nothing but noise behind it."""
    start = head_of(frame)
    return frame[:start] + rng.bytes(len(frame) - start)


def sound_states(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    """Noise behind a valid header, in which every lane's state is in range: the coders over rANS begin to decode it."""
    start = head_of(frame)
    frame = random_payload(rng, frame, other)
    lanes = lanes_of(frame) if is_compact(frame) else frame[23] if is_short(frame) else frame[26]
    for i in range(start, min(start + 4 * min(lanes, 8), len(frame) - 3), 4):
        struct.pack_into("<HH", frame, i, int(rng.integers(1, 1 << 15)), int(rng.integers(1 << 16)))
    return frame


def change_sizes(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    """Another value, mostly out of range, in a chunk of sizes; or a chunk of levels that claims to hold sizes."""
    count = chunks_of(frame)
    entries = [24 + 16 * k for k in range(count)]
    lengths = [int.from_bytes(frame[e + 8 : e + 12], "little") for e in entries]
    starts = [28 + 16 * count + sum(lengths[:k]) for k in range(count)]
    sizes = [k for k, e in enumerate(entries) if frame[e + 1] == 3 and lengths[k] >= 8]
    if not sizes:
        if count:
            frame[entries[int(rng.integers(count))] + 1] = 3
        return frame
    at = starts[int(rng.choice(sizes))]
    value = int(rng.choice([-1, (1 << 26) + 1, 1 << 62, -(1 << 63), 7]))
    frame[at : at + 8] = value.to_bytes(8, "little", signed=True)
    return frame


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, overwrite, truncate, random_tail, shift, splice, foreign_payloads, swap_chunks, lie, inflate,
    random_payload, sound_states, change_sizes, other_form,
)  # fmt: skip


def make_checksums_right(rng: Rng, frame: bytearray) -> bytearray:
    """Every checksum as a sender would have written it; half the time the last length too."""
    count = chunks_of(frame)
    if count and rng.random() < 0.5:
        entry = 8 + 16 * count
        before = 28 + 16 * count + sum(int.from_bytes(frame[24 + 16 * k + 8 :][:4], "little") for k in range(count - 1))
        struct.pack_into("<I", frame, entry + 8, max(0, len(frame) - before))
    return seal(frame)


def seal(frame: bytearray) -> bytearray:
    """Its checksums made right, wherever it has room for them."""
    if is_compact(frame):
        at = checksum_at(frame)
        if len(frame) >= at + 4:
            struct.pack_into("<I", frame, at, zlib.crc32(frame[:at] + frame[at + 4 :]))
        return frame
    count = chunks_of(frame)
    if len(frame) >= smallest(frame) and is_short(frame):
        struct.pack_into("<I", frame, 24, zlib.crc32(frame[:24] + frame[28:]))
    elif count:
        position = 28 + 16 * count
        for entry in range(24, 24 + 16 * count, 16):
            (length,) = struct.unpack_from("<I", frame, entry + 8)
            struct.pack_into("<I", frame, entry + 12, zlib.crc32(frame[position : position + length]))
            position += length
        struct.pack_into("<I", frame, 24 + 16 * count, zlib.crc32(frame[: 24 + 16 * count]))
    return frame


def long_form(frame: bytes, planes: int) -> bytes:
    """A short frame with a chunk table in its place, as version 1.0 wrote it. planes: batch × channels."""
    chunk = struct.pack("<BBBBIII", 0, frame[22], frame[23], 0, planes, len(frame) - 28, 0)
    return bytes(seal(bytearray(frame[:5] + b"\0\0" + frame[7:22] + b"\1\0" + chunk + bytes(4) + frame[28:])))
