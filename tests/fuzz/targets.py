"""The fuzz targets; one process runs one: `targets.py NAME [libFuzzer's arguments]`. `run.py` starts them all.

Each takes any bytes, and may raise what its function promises and nothing else; a result has to be what it should.
With NUMBA_DISABLE_JIT=1 the kernels are instrumented like the rest, and an index out of range is an exception. Compiled
ones are opaque to the fuzzer, and about ten times as fast.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import pkgutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np

COMPILED = os.environ.get("NUMBA_DISABLE_JIT") != "1"
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers" / "codec"))
if COMPILED:  # Numba cannot compile instrumented bytecode: these are imported before the rest is instrumented
    from splitwire.codec import kernels

    for module in pkgutil.iter_modules(kernels.__path__, kernels.__name__ + "."):
        importlib.import_module(module.name)

with atheris.instrument_imports(include=["splitwire.codec"]):
    from splitwire.codec.codec import FeatureCodec
    from splitwire.codec.errors import BadResponse, BitstreamError, FingerprintMismatch, ProfileError
    from splitwire.codec.profile import CodecProfile
    from splitwire.codec.transform import STEPS, Transform
    from splitwire.codec.wire.batch import build_frames, build_replies, parse_frames, parse_replies
    from splitwire.codec.wire.frame import DecoderLimits, parse_frame, peek_batch, peek_fingerprint
    from splitwire.codec.wire.reply import decode_reply, encode_reply
    from splitwire.codec.wire.stream import (
        FRAME,
        Kind,
        RecordParser,
        frame_record,
        parse_hello,
        parse_keyed,
        parse_number,
        parse_refusal,
        parse_reply,
        parse_welcome,
    )

import mutations  # noqa: E402 - lies beside this folder
import vectors  # noqa: E402 - lies beside this folder
from coefficients import are_decoded  # noqa: E402 - as well

LIMITS = DecoderLimits(frame_bytes=1 << 16, elements=1 << 13)
MOST_ELEMENTS = 4096
REFUSED = (BitstreamError, FingerprintMismatch)
STREAM_BODIES: tuple[Callable[[bytes], object], ...] = (
    parse_hello, parse_welcome, parse_refusal, parse_keyed, parse_reply, parse_number
)  # fmt: skip
CODECS = [FeatureCodec(CodecProfile.from_json(vectors.load(n).profile), LIMITS) for n in vectors.names()]


def frame(data: bytes) -> None:
    """parse_frame, and the fingerprint that a server routes by."""
    try:
        parsed = parse_frame(data, LIMITS)
    except BitstreamError:
        return
    assert peek_fingerprint(data) == parsed.fingerprint
    assert peek_batch(data) == parsed.batch
    table = 0 if parsed.chunks[0].planes is None else 16 * len(parsed.chunks)
    head = mutations.smallest(data)
    assert head + table + sum(len(c.payload) for c in parsed.chunks) == len(data)


def decode(data: bytes) -> None:
    """FeatureCodec.decode as it stands; the first byte says of which vector's pair."""
    if data:
        check_decoded(CODECS[data[0] % len(CODECS)], data[1:])


def forged(data: bytes) -> None:
    """The same with magic, version, fingerprint and all checksums made right: what is left to look at is the coder."""
    if len(data) < 29:
        return
    codec = CODECS[data[0] % len(CODECS)]
    made = bytearray(data[1:])
    if made[0] % 2:
        points = len(codec.profile.operating_points)
        made[0] = 0x80 | (made[0] & 0x20) | (0x40 if made[0] & 2 else made[0] // 4 % points)
        made[1:5], made[5] = codec.fingerprint[:4], made[5] % points
        check_decoded(codec, bytes(mutations.seal(made)))
        return
    made[:6], made[6], made[8:16] = b"SPLW\1\0", made[6] % 2, codec.fingerprint
    made[7] %= len(codec.profile.operating_points)
    if not mutations.is_short(made):
        count = 1 + int.from_bytes(made[22:24], "little") % 4
        left = len(made) - 28 - 16 * count
        if left < 0:
            return
        struct.pack_into("<H", made, 22, count)
        for entry in range(24, 24 + 16 * count, 16):
            made[entry + 3] = 0
            last = entry == 8 + 16 * count
            length = left if last else min(int.from_bytes(made[entry + 8 : entry + 12], "little"), left)
            struct.pack_into("<I", made, entry + 8, length)
            left -= length
    check_decoded(codec, bytes(mutations.seal(made)))


def check_decoded(codec: FeatureCodec, data: bytes) -> None:
    """Refused, or of the right shape and with the values of the quantizer, or of the steps that the frame names."""
    try:
        decoded = codec.decode(data, conceal=len(data) % 2 == 0)
    except REFUSED:
        return
    point = codec.profile.operating_points[codec.profile.point_index(decoded.op)]
    if isinstance(point.steps, tuple):
        for i, (x, spec, usual) in enumerate(zip(decoded.tensors, codec.profile.tensors, point.steps, strict=True)):
            steps = {step for step in vectors.steps_of(data, i, usual, vectors.coder_of(codec.profile)) if step < STEPS}
            assert x.shape == (decoded.batch, *spec.shape) and isinstance(spec.transform, Transform)
            assert are_decoded(x, spec.transform, steps)
        return
    for x, spec, tensor in zip(decoded.tensors, codec.profile.tensors, point.tensors, strict=True):
        values = [*tensor.quantizer.levels, *([spec.mean] if decoded.concealed else [])]
        assert x.shape == (decoded.batch, *spec.shape) and np.isin(x, np.array(values, np.float32)).all()


def profile(data: bytes) -> None:
    """CodecProfile.from_json; a profile that is accepted has to work."""
    try:
        found = CodecProfile.from_json(data)
    except ProfileError:
        return
    again = CodecProfile.from_json(found.to_json())
    assert again == found and again.fingerprint == found.fingerprint
    codec = FeatureCodec(found)
    if sum(math.prod(t.shape) for t in found.tensors) <= MOST_ELEMENTS:
        xs = [np.zeros((1, *t.shape), np.float32) for t in found.tensors]
        sizes = [np.zeros(s.length, np.int64) for s in found.size_specs]
        assert codec.decode(codec.encode(xs, sizes=sizes)).batch == 1


def reply(data: bytes) -> None:
    """decode_reply; what it accepts it also writes."""
    try:
        decoded = decode_reply(data)
    except BadResponse:
        return
    assert sum(x.nbytes for x in decoded.outputs.values()) <= len(data)
    encode_reply(decoded.outputs, frame_id=decoded.frame_id, decode_ms=decoded.decode_ms, back_ms=decoded.back_ms)


def batch(data: bytes) -> None:
    """parse_frames and parse_replies; what they accept they also write, byte for byte."""
    with contextlib.suppress(BitstreamError):
        assert build_frames(parse_frames(data)) == data
    with contextlib.suppress(BitstreamError):
        assert build_replies(parse_replies(data)) == data


def stream(data: bytes) -> None:
    """RecordParser, in parts of the length that the first byte says; and each parser of a body, without a checksum."""
    for parse in STREAM_BODIES:
        try:
            parse(data)
        except BitstreamError:
            continue
    parser = RecordParser({*Kind, FRAME}, 1 << 12)
    step = 1 + (data[0] if data else 0)
    written = b""
    try:
        for i in range(1, len(data), step):
            parser.feed(data[i : i + step])
            while (record := parser.next_record()) is not None:
                written += frame_record(record.head, record.body) if record.is_frame else b""
    except BitstreamError:
        return
    assert parser.buffered + len(written) <= len(data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    f.__name__: f for f in (frame, decode, forged, profile, reply, batch, stream)
}


def main() -> None:
    target = TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
