"""Hostile frames: `make hostile` decodes 100,000 damaged and forged ones; `make test` the first 3,000 of them.

Two classes, and what is asked of each:
* damaged: bytes changed on the way, checksums as they were. Refused with our error, or decoded to exactly what was
  sent.
* forged: the same with every checksum made right again, so that the coder itself is reached. No decoder can tell such a
  frame from an honest one; it is refused with our error, or gives tensors of the right shape that hold nothing but
  reconstruction levels.
Either way nothing else is raised, and the memory used stays below a bound that follows from the decoder's limits; the
child process in which it runs has a limit on its address space besides. Frame i of a seed is always the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import vectors

from splitwire.codec.codec import DecodedFrame, FeatureCodec
from splitwire.codec.errors import BitstreamError, FingerprintMismatch
from splitwire.codec.frame import Limits
from splitwire.codec.profile import CodecProfile

LIMITS = Limits(frame_bytes=1 << 16, elements=1 << 16)
MOST_BYTES = 4 * LIMITS.frame_bytes + 24 * LIMITS.elements
"""What decoding may use: words, symbols (blocks reach over the plane), padded planes, features; with headroom."""
ADDRESS_SPACE = 256 << 20
"""Bytes that the process may map beyond what it has when the sweep begins."""

EXTREMES = (0, 1, 2, 7, 8, 9, 127, 128, 255, 256, 32767, 65535, 1 << 16, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
FIELDS = ((4, 1), (5, 1), (6, 1), (7, 1), (16, 4), (20, 2), (22, 2))
CHUNK_FIELDS = ((0, 1), (1, 1), (2, 1), (3, 1), (4, 4), (8, 4), (12, 4))

Rng = np.random.Generator
Mutation = Callable[[Rng, bytearray, bytes], bytearray]


def chunks_of(frame: bytes | bytearray) -> int:
    """How many chunks its header says, and its length has room for; 0 if it has none for any."""
    count = int.from_bytes(frame[22:24], "little") if len(frame) >= 44 else 0
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
    return frame[: 28 + 16 * chunks_of(frame)] + other[28 + 16 * chunks_of(other) :]


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
        start = 24 + 16 * int(rng.integers(max(1, chunks_of(frame)))) if rng.random() < 0.7 else 0
        offset, size = (CHUNK_FIELDS if start else FIELDS)[int(rng.integers(7))]
        now = int.from_bytes(frame[start + offset : start + offset + size], "little")
        value = EXTREMES[int(rng.integers(len(EXTREMES)))] if rng.random() < 0.5 else now + int(rng.integers(-3, 4))
        frame[start + offset : start + offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    return frame


def inflate(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    """A consistent header that promises many times the features that are there, up to and over the limit."""
    times = int(2 ** rng.uniform(1, 16))
    struct.pack_into("<H", frame, 20, min(65535, times * int.from_bytes(frame[20:22], "little")))
    for k in range(chunks_of(frame)):
        (planes,) = struct.unpack_from("<I", frame, 28 + 16 * k)
        struct.pack_into("<I", frame, 28 + 16 * k, min((1 << 32) - 1, times * planes))
    return frame


def random_payload(rng: Rng, frame: bytearray, other: bytes) -> bytearray:
    """A valid header and nothing but noise behind it."""
    start = 28 + 16 * chunks_of(frame)
    return frame[:start] + rng.bytes(len(frame) - start)


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, overwrite, truncate, random_tail, shift, splice, foreign_payloads, swap_chunks, lie, inflate,
    random_payload,
)  # fmt: skip


def make_checksums_right(rng: Rng, frame: bytearray) -> bytearray:
    """Every checksum as a sender would have written it; half the time the last length too."""
    count = chunks_of(frame)
    if not count:
        return frame
    position = 28 + 16 * count
    adjust = rng.random() < 0.5
    for k in range(count):
        entry = 24 + 16 * k
        (length,) = struct.unpack_from("<I", frame, entry + 8)
        if k == count - 1 and adjust:
            length = max(0, len(frame) - position)
            struct.pack_into("<I", frame, entry + 8, length)
        struct.pack_into("<I", frame, entry + 12, zlib.crc32(frame[position : position + length]))
        position += length
    struct.pack_into("<I", frame, 24 + 16 * count, zlib.crc32(frame[: 24 + 16 * count]))
    return frame


@dataclass(frozen=True, kw_only=True)
class Source:
    """A pair, and frames of it with what each decodes to."""

    codec: FeatureCodec
    frames: list[bytes]
    sent: dict[bytes, DecodedFrame]


def sources() -> list[Source]:
    """Every golden vector's profile; its own frame, and five more of other features and the other operating point."""
    found = []
    for name in vectors.names():
        v = vectors.load(name)
        codec = FeatureCodec(CodecProfile.from_json(v.profile), LIMITS)
        frames = [v.frame]
        for i, op in enumerate(("used", "used", "spare", "used", "spare")):
            xs = [np.roll(x, 7 * i + 1, -1) * np.float32(0.2 * (-1) ** i) for x in v.features]
            frames.append(codec.encode([x[: 1 + i % len(x)] for x in xs], op=op, frame_id=i))
        found.append(Source(codec=codec, frames=frames, sent={f: codec.decode(f) for f in frames}))
    return found


def mutate(source: Source, rng: Rng) -> tuple[bytes, str, bool, set[bytes]]:
    """The frame, the names of what was done to it, whether the checksums were made right, what it was made of."""
    frame, other = (source.frames[i] for i in rng.integers(len(source.frames), size=2))
    chosen = [MUTATIONS[i] for i in rng.integers(len(MUTATIONS), size=rng.integers(1, 3))]
    changed = bytearray(frame)
    for change in chosen:
        if len(changed) >= 44:
            changed = change(rng, changed, other)
    forged = bool(rng.random() < 0.5)
    if forged:
        changed = make_checksums_right(rng, changed)
    return bytes(changed), "+".join(f.__name__ for f in chosen), forged, {frame, other}


def same(a: DecodedFrame, b: DecodedFrame) -> bool:
    parts = [(d.op, d.frame_id, d.batch, [(x.shape, x.tobytes()) for x in d.tensors]) for d in (a, b)]
    return parts[0] == parts[1]


def well_formed(codec: FeatureCodec, frame: bytes, decoded: DecodedFrame) -> bool:
    """Shapes as the header says, values that the quantizer has."""
    point = codec.profile.operating_points[frame[7]]
    batch = int.from_bytes(frame[20:22], "little")
    return (decoded.op, decoded.batch) == (point.name, batch) and all(
        x.dtype == np.float32 and x.shape == (batch, *spec.shape) and bool(np.isin(x, t.quantizer.levels).all())
        for x, spec, t in zip(decoded.tensors, codec.profile.tensors, point.tensors, strict=True)
    )


def verdict(source: Source, frame: bytes, forged: bool, made_of: set[bytes]) -> str:
    """What became of the frame; what begins with FAILED must not be."""
    try:
        decoded = source.codec.decode(frame)
    except (BitstreamError, FingerprintMismatch) as e:
        return type(e).__name__
    except BaseException as e:  # whatever it is, it is what this looks for
        return f"FAILED: {type(e).__name__}: {e}"
    if any(same(decoded, source.sent[f]) for f in made_of):
        return "decoded to what was sent"
    if forged and well_formed(source.codec, frame, decoded):
        return "decoded to other features"
    return "FAILED: decoded to what was never sent" if not forged else "FAILED: decoded to something malformed"


def sweep(frames: range, seed: int) -> dict[str, object]:
    """Counts per class and outcome, the most memory and time one frame took, and up to ten failures."""
    pairs = sources()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE,) * 2)
    counts: dict[str, Counter[str]] = {"damaged": Counter(), "forged": Counter()}
    failures, most, slowest = [], 0, 0.0
    tracemalloc.start()
    began = time.perf_counter()
    for i in frames:
        rng = np.random.default_rng((seed, i))
        source = pairs[int(rng.integers(len(pairs)))]
        frame, how, forged, made_of = mutate(source, rng)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        start = time.perf_counter()
        outcome = verdict(source, frame, forged, made_of)
        slowest = max(slowest, time.perf_counter() - start)
        used = tracemalloc.get_traced_memory()[1] - before
        most = max(most, used)
        if used > MOST_BYTES:
            outcome = f"FAILED: {used} bytes used"
        counts["forged" if forged else "damaged"][outcome.partition(": ")[0]] += 1
        if outcome.startswith("FAILED") and len(failures) < 10:
            failures.append({"frame": i, "how": how, "outcome": outcome, "bytes": frame.hex()[:400]})
    return {
        "frames": len(frames), "seed": seed, **{name: dict(c.most_common()) for name, c in counts.items()},
        "most_bytes": most, "limit_bytes": MOST_BYTES, "slowest_ms": round(1e3 * slowest, 2),
        "seconds": round(time.perf_counter() - began, 1), "failures": failures,
    }  # fmt: skip


def test_hostile_frames_are_refused_or_harmless() -> None:
    """The first 3,000 of the sweep, in a process of its own with bounded memory."""
    command = [sys.executable, "-W", "error", __file__, "--frames", "3000"]
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert child.returncode == 0, child.stdout + child.stderr
    report = json.loads(child.stdout)
    assert report["failures"] == [] and sum(map(sum, (report[c].values() for c in ("damaged", "forged")))) == 3000
    # It did reach what it is for.
    assert set(report["damaged"]) >= {"Truncated", "Corrupt", "LimitExceeded", "UnsupportedVersion"}
    assert report["forged"]["decoded to other features"] > 3 and report["most_bytes"] > 4 * LIMITS.elements


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="to look at one frame: --first I --frames 1")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = sweep(range(arguments.first, arguments.first + arguments.frames), arguments.seed)
    print(json.dumps(result, indent=1))
    sys.exit(1 if result["failures"] else 0)
