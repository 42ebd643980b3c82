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
import base64
import json
import os
import resource
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, too
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers" / "codec"))

import numpy as np
import pytest
import vectors
from coefficients import are_decoded
from mutations import MUTATIONS, Rng, batch_of, chunks_of, is_compact, make_checksums_right, smallest

from splitwire.codec.codec import DecodedFrame, FeatureCodec
from splitwire.codec.errors import BitstreamError, FingerprintMismatch, ProfileError
from splitwire.codec.profile import CodecProfile
from splitwire.codec.transform import Transform
from splitwire.codec.wire.frame import DecoderLimits

LIMITS = DecoderLimits(frame_bytes=1 << 16, elements=1 << 16)
ADDRESS_SPACE = 256 << 20
"""Bytes that the process may map beyond what it has when the sweep begins."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A pair, and frames of it with what each decodes to."""

    codec: FeatureCodec
    frames: list[bytes]
    sent: dict[bytes, DecodedFrame]

    @property
    def most_bytes(self) -> int:
        """What decoding may use within the limits: words, symbols and contexts, features, and features padded to whole
        blocks, of which there can be eight for every one that is wanted.
        """
        padded = 1.0
        for point in self.codec.profile.operating_points:
            for spec, tensor in zip(self.codec.profile.tensors, point.tensors, strict=False):  # none of coefficients
                (_, h, w), (bh, bw) = spec.planes, tensor.tables.block if tensor.tables else (1, 1)
                padded = max(padded, -(-h // bh) * bh * -(-w // bw) * bw / (h * w))
        return 4 * LIMITS.frame_bytes + int((16 + 8 * padded) * LIMITS.elements)


def sources(only: str = "") -> list[Source]:
    """Every golden vector's profile; its own frame, and five more of other features and the other operating point.

    only: of those whose names begin with it.
    """
    found = []
    for name in (n for n in vectors.names() if n.startswith(only)):
        v = vectors.load(name)
        codec = FeatureCodec(CodecProfile.from_json(v.profile), LIMITS)
        frames = [v.frame]
        for i, op in enumerate(("used", "used", "spare", "used", "spare")):
            xs = [np.roll(x, 7 * i + 1, -1) * np.float32(0.2 * (-1) ** i) for x in v.features]
            frames.append(codec.encode([x[: 1 + i % len(x)] for x in xs], op=op, frame_id=i, sizes=v.sizes))
        found.append(Source(codec=codec, frames=frames, sent={f: codec.decode(f) for f in frames}))
    return found


def mutate(source: Source, rng: Rng) -> tuple[bytes, str, bool, set[bytes]]:
    """The frame, the names of what was done to it, whether the checksums were made right, what it was made of."""
    frame, other = (source.frames[i] for i in rng.integers(len(source.frames), size=2))
    chosen = [MUTATIONS[i] for i in rng.integers(len(MUTATIONS), size=rng.integers(1, 3))]
    changed = bytearray(frame)
    for change in chosen:
        if len(changed) >= smallest(changed):
            changed = change(rng, changed, other)
    forged = bool(rng.random() < 0.5)
    if forged:
        changed = make_checksums_right(rng, changed)
    return bytes(changed), "+".join(f.__name__ for f in chosen), forged, {frame, other}


def arrays(decoded: DecodedFrame) -> list[np.ndarray]:
    return [*decoded.tensors, *decoded.sizes]


def same(a: DecodedFrame, b: DecodedFrame) -> bool:
    parts = [(d.op, d.frame_id, d.batch, [(x.shape, x.tobytes()) for x in arrays(d)]) for d in (a, b)]
    return parts[0] == parts[1]


def same_but_for_concealed(codec: FeatureCodec, frame: bytes, decoded: DecodedFrame, sent: DecodedFrame) -> bool:
    """What the result names as concealed is the mean, everything else is what was sent."""
    if (decoded.op, decoded.frame_id, decoded.batch) != (sent.op, sent.frame_id, sent.batch):
        return False
    if [s.tolist() for s in decoded.sizes] != [s.tolist() for s in sent.sizes]:
        return False
    expected = [x.copy() for x in sent.tensors]
    done = [0] * len(expected)
    for k in range(chunks_of(frame) - len(sent.sizes)):
        entry = frame[24 + 16 * k : 40 + 16 * k]
        spec, first = codec.profile.tensors[entry[0]], done[entry[0]]
        done[entry[0]] += int.from_bytes(entry[4:8], "little")
        if k in decoded.concealed:
            expected[entry[0]].reshape(-1, *spec.planes[1:])[first : done[entry[0]]] = spec.mean
    return all(x.tobytes() == y.tobytes() for x, y in zip(expected, decoded.tensors, strict=True))


def well_formed(codec: FeatureCodec, frame: bytes, decoded: DecodedFrame) -> bool:
    """Shapes as the header says, values that the quantizer has, or coefficients at the steps that the frame names."""
    point = codec.profile.operating_points[
        (frame[5] if frame[0] & 64 else frame[0] % 32) if is_compact(frame) else frame[7]
    ]
    batch = batch_of(frame)
    sizes_right = [(s.dtype, s.size, bool(((s >= 0) & (s <= 1 << 26)).all())) for s in decoded.sizes] == [
        (np.dtype(np.int64), spec.length, True) for spec in codec.profile.size_specs
    ]
    header_right = (decoded.op, decoded.batch, decoded.concealed) == (point.name, batch, ())
    shapes_right = [(x.dtype, x.shape) for x in decoded.tensors] == [
        (np.dtype(np.float32), (batch, *spec.shape)) for spec in codec.profile.tensors
    ]
    if codec.profile.is_transform:
        steps = [
            vectors.steps_of(frame, i, step, vectors.coder_of(codec.profile))
            for i, step in enumerate(point.steps or ())
        ]
        values_right = all(
            isinstance(spec.transform, Transform) and are_decoded(x, spec.transform, each)
            for x, spec, each in zip(decoded.tensors, codec.profile.tensors, steps, strict=True)
        )
    else:
        values_right = all(
            bool(np.isin(x, t.quantizer.levels).all()) for x, t in zip(decoded.tensors, point.tensors, strict=True)
        )
    return sizes_right and header_right and shapes_right and values_right


def outcome_of(source: Source, frame: bytes, *, conceal: bool) -> DecodedFrame | str:
    """What the frame is decoded to, or the error."""
    try:
        return source.codec.decode(frame, conceal=conceal)
    except (BitstreamError, FingerprintMismatch) as e:
        return type(e).__name__
    except BaseException as e:  # whatever it is, it is what this looks for
        return f"FAILED: {type(e).__name__}: {e}"


def verdict(source: Source, frame: bytes, decoded: DecodedFrame, made_of: set[bytes], *, forged: bool) -> str:
    """What became of a frame that was decoded; what begins with FAILED must not be."""
    sent = [source.sent[f] for f in made_of]
    if decoded.concealed and any(same_but_for_concealed(source.codec, frame, decoded, s) for s in sent):
        return "concealed, and said so"
    if not decoded.concealed and any(same(decoded, s) for s in sent):
        return "decoded to what was sent"
    if forged and well_formed(source.codec, frame, decoded):
        return "decoded to other features"
    return "FAILED: decoded to what was never sent" if not forged else "FAILED: decoded to something malformed"


def sweep(frames: range, seed: int, only: str = "") -> dict[str, object]:
    """Counts per class and outcome, the most memory and time one frame took, and up to ten failures."""
    pairs = sources(only)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE,) * 2)
    counts: dict[str, Counter[str]] = {"damaged": Counter(), "forged": Counter()}
    bounds = [source.most_bytes for source in pairs]
    failures: list[dict[str, object]] = []
    most, share, slowest = 0, 0.0, 0.0
    tracemalloc.start()
    began = time.perf_counter()
    for i in frames:
        rng = np.random.default_rng((seed, i))
        chosen = int(rng.integers(len(pairs)))
        source = pairs[chosen]
        frame, how, forged, made_of = mutate(source, rng)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        start = time.perf_counter()
        found = outcome_of(source, frame, conceal=i % 4 == 0)
        slowest = max(slowest, time.perf_counter() - start)
        used = tracemalloc.get_traced_memory()[1] - before
        outcome = found if isinstance(found, str) else verdict(source, frame, found, made_of, forged=forged)
        most, share = max(most, used), max(share, used / bounds[chosen])
        if used > bounds[chosen]:
            outcome = f"FAILED: {used} bytes used"
        counts["forged" if forged else "damaged"][outcome.partition(": ")[0]] += 1
        if outcome.startswith("FAILED") and len(failures) < 10:
            failures.append({"frame": i, "how": how, "outcome": outcome, "bytes": frame.hex()[:400]})
    return {
        "frames": len(frames), "seed": seed, **{name: dict(c.most_common()) for name, c in counts.items()},
        "most_bytes": most, "most_of_bound": round(share, 2), "slowest_ms": round(1e3 * slowest, 2),
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


@pytest.mark.slow
@pytest.mark.parametrize("vectors_of", ["predicted", "transform", "terse"])
def test_hostile_frames_touch_nothing_outside(vectors_of: str) -> None:
    """With its kernels interpreted, an index out of range is an exception."""
    command = [sys.executable, "-W", "error", "-W", "ignore:overflow:RuntimeWarning", __file__]
    child = subprocess.run(
        [*command, "--frames", "200", "--only", vectors_of],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stdout + child.stderr
    forged = json.loads(child.stdout)["forged"]
    assert forged["Truncated"] > 2 and forged["Corrupt"] > 20 and forged["decoded to other features"] > 0


def test_a_profile_of_2_to_the_64_elements_is_refused() -> None:
    """Their number is 0 modulo 2^64."""
    profile = json.loads(vectors.load("one-n2").profile)
    profile["tensors"][0]["shape"] = [1 << 12, 1 << 26, 1 << 26]
    for point in profile["operating_points"]:
        tables = point["tensors"][0]["tables"]
        entries = (1 << 12) * (tables["activities"] + 1) ** 2
        tables["context_map"] = base64.b64encode(bytes(entries)).decode()
    with pytest.raises(ProfileError, match="has 18446744073709551616 elements"):
        CodecProfile.from_json(json.dumps(profile))


@pytest.mark.parametrize("name", ["transform-tile", "transform-unsent"])
def test_classes_that_are_no_class_are_refused(name: str) -> None:
    """A class from 128 to 254 in any place; and no coefficient that is sent."""
    profile = json.loads(vectors.load(name).profile)
    transform = profile["tensors"][0]["transform"]
    classes = base64.b64decode(transform["classes"])
    for value in range(128, 255):
        damaged = bytearray(classes)
        damaged[value % len(classes)] = value
        transform["classes"] = base64.b64encode(damaged).decode()
        with pytest.raises(
            ProfileError, match="classes of coefficients must be below 128, or 255 for what is not sent"
        ):
            CodecProfile.from_json(json.dumps(profile))
    transform["classes"] = base64.b64encode(b"\xff" * len(classes)).decode()
    with pytest.raises(ProfileError, match="at least one coefficient must be sent"):
        CodecProfile.from_json(json.dumps(profile))


def test_a_level_beyond_float32_is_an_error_and_no_warning() -> None:
    profile = json.loads(vectors.load("binary-n4").profile)
    profile["operating_points"][0]["tensors"][0]["quantizer"]["levels"][-1] = 1e300
    with pytest.raises(ProfileError, match="finite float32"):
        CodecProfile.from_json(json.dumps(profile))


def test_a_mean_beyond_float32_is_refused() -> None:
    text = vectors.load("chunks-n3").profile
    with pytest.raises(ProfileError, match="a mean of 1e\\+300, which is no float32"):
        CodecProfile.from_json(text.replace('"mean":0.375', '"mean":1e300'))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="to look at one frame: --first I --frames 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="the golden vectors whose names begin with this")
    arguments = parser.parse_args()
    result = sweep(range(arguments.first, arguments.first + arguments.frames), arguments.seed, arguments.only)
    print(json.dumps(result, indent=1))
    sys.exit(1 if result["failures"] else 0)
