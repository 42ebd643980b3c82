"""The checks that `make arm` runs on both machines, in one process: `arm_suite.py TESTS PAIR URL`.

It encodes and decodes every golden vector, compares it with the stored bytes, and prints one line with a digest. Then
it does the same for seeded streams, which are larger and of more kinds than the stored vectors. Then an edge session
runs a tiny front in ONNX Runtime, with the back in this process, over HTTP and over the stream; its frames must be the
same bytes. It needs only what the edge install has. Any difference is an exception.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, sys.argv[1])
sys.path.insert(0, f"{sys.argv[1]}/helpers/codec")

import make_vectors
import msgspec
import numpy as np
import vectors

import splitwire
from splitwire import CloudSession, EdgeSession, HttpTransport, LoopbackTransport, StreamTransport, Transport
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.profile import CodecProfile, Quantizer
from splitwire.codec.quantizer import quantize

BLOCKS = {2: (2, 4), 3: (1, 5), 4: (2, 2), 5: (1, 3), 6: (3, 1), 8: (1, 2), 16: (2, 1), 100: (1, 1), 256: (1, 1)}
SHAPES = ((9, 13, 11), (1, 5, 7), (7, 50), (61,))
PREDICTED = ((2, 3, 4, 5, 6, 8, 16, 64), (*SHAPES, (26, 16, 15), (90, 3, 4)))
"""Levels and shapes of coder 4."""
COEFFICIENTS = ((1, 61), (9, 32), (40, 3), (3, 1500))
STEPS = ((0, 64), (31, 1), (64, 40), (77, 33), (127, 12))
"""Step indices and numbers of tables of coders 5 and 6."""


def digest(*parts: bytes) -> str:
    """A digest of all the bytes."""
    return hashlib.sha256(b"".join(parts)).hexdigest()


def golden(name: str) -> str:
    """The line of a vector, whose bytes and features must equal the stored ones."""
    v = vectors.load(name)
    codec = FeatureCodec(CodecProfile.from_json(v.profile))
    frame = codec.encode(v.features, op=v.op, frame_id=v.frame_id, sizes=v.sizes)
    if v.encoded and not vectors.is_made_as(v.frame, frame):
        raise SystemExit(f"{name}: the encoder gives other bytes")
    if [vectors.digest(x) for x in codec.decode(v.frame).tensors] != v.decoded:
        raise SystemExit(f"{name}: the decoder gives other features")
    return f"vector {name} {digest(frame)}"


def seeded(shape: tuple[int, ...], levels: int, coder: int) -> str:
    """The line of a seeded stream: a digest of profile, frame and decoded features."""
    block = {
        1: BLOCKS.get(levels),
        4: make_vectors.Predicted(
            taps=levels, activities=1 + levels % 4, classes=1 + levels % 7, shift=levels % 3, missing=levels // 5
        ),
    }.get(coder)
    recipe = make_vectors.Recipe(
        about="", tensors=[(shape, levels, block)], batch=3, activities=1 + levels % 8, tables=1 + levels % 11,
        signed=levels % 2 == 0, uniform=levels % 3 == 0, short=True,
    )  # fmt: skip
    make_vectors.RECIPES["seeded"] = recipe
    files, _ = make_vectors.make("seeded")  # compares the encoder with the oracle in plain integers
    decoded = FeatureCodec(CodecProfile.from_json(files["profile"])).decode(files["frame"])
    features = decoded.tensors[0].astype("<f4").tobytes()
    return f"seeded {coder} {levels} {shape} {len(files['frame'])} {digest(files['profile'], files['frame'], features)}"


def coefficients(coder: Literal[5, 6], shape: tuple[int, int], step: int, tables: int) -> str:
    """Its line: digest of profile, frame and what is decoded, at a step; compared with the oracle."""
    kind = make_vectors.Transformed(
        step=step,
        classes=(min(127, step + 12), max(0, step - 20)),
        missing=tables % 2 == 0,
        outward=(0.25 - tables / 256, 0.125),
        unsent=None if tables == 1 else 0.25,
        coder=coder,
    )
    make_vectors.RECIPES["seeded"] = make_vectors.Recipe(
        about="", tensors=[(shape, 0, kind)], batch=3, tables=tables, short=True
    )
    files, entry = make_vectors.make("seeded")
    coded = digest(files["profile"], files["frame"])
    return f"seeded {coder} {step} {shape} {len(files['frame'])} {coded} {entry['decoded']}"


def preserving(shape: tuple[int, ...], levels: int) -> str:
    """The line of a mean-preserving quantizer, which subtracts and multiplies: a digest of its level indices."""
    x = np.random.default_rng((levels, *shape)).normal(0.3, 1, (3, *shape)).astype(np.float32)
    quantizer = msgspec.structs.replace(Quantizer.uniform(-0.7, 2.1, levels), mean_preserving=True)
    return f"means {levels} {shape} {digest(quantize(x, quantizer).tobytes())}"


def session(front: Path, name: str, transport: Transport) -> str:
    """The line of an edge session: a digest of its frames, and of the classes that come back.

    The front's weights and inputs are eighths: every order of its sums gives the same bits.
    """
    frames, classes = [], []
    with EdgeSession(front, transport=transport, threads=1) as edge:
        for i in range(20):
            x = np.random.default_rng(i).integers(-16, 17, (2, 3, 8, 8)).astype(np.float32) / 8
            frames.append(edge.encode(edge.run_front(x).features, op=("n2", "n4")[i % 2], frame_id=i))
            classes.append(edge.send(frames[-1], frame_id=i).outputs["best"].astype("<i8").tobytes())
            again = edge.infer(x, op=("n2", "n4")[i % 2])
            if again.outputs["best"].astype("<i8").tobytes() != classes[-1] or again.frame_bytes != len(frames[-1]):
                raise SystemExit(f"session over {name}: infer() gives other classes than its stages")
    return f"session {name} {sum(map(len, frames))} {digest(*frames)} {digest(*classes)}"


def sessions(pair: Path, url: str) -> list[str]:
    """The lines of an edge session over each transport. Their frames and classes must be the same."""
    transports: dict[str, Transport] = {
        "loopback": LoopbackTransport(CloudSession(pair / "back.onnx").handle),
        "http": HttpTransport(url),
        "stream": StreamTransport(url.replace("http://", "stream://")),
    }
    lines = [session(pair / "front.onnx", name, transport) for name, transport in transports.items()]
    if any(line.split()[2:] != lines[0].split()[2:] for line in lines):
        raise SystemExit(f"the transports differ: {lines}")
    return lines


def main() -> None:
    """Print all lines. The last line is a digest of the others, which is the same on every machine."""
    if Path(splitwire.__file__).is_relative_to(Path(__file__).parent.parent / "splitwire"):
        raise SystemExit("this is to test the built wheel, not the sources")
    lines = [golden(name) for name in vectors.names()]
    lines += [seeded(shape, levels, coder) for coder in (1, 2) for levels in BLOCKS for shape in SHAPES]
    lines += [seeded(shape, levels, 4) for levels in PREDICTED[0] for shape in PREDICTED[1]]
    lines += [coefficients(c, shape, step, n) for c in (5, 6) for shape in COEFFICIENTS for step, n in STEPS]
    lines += [preserving(shape, levels) for levels in (2, 3, 16) for shape in SHAPES]
    lines += sessions(Path(sys.argv[2]), sys.argv[3])
    print(*lines, f"{len(lines)} streams {digest(*(line.encode() for line in lines))}", sep="\n")


if __name__ == "__main__":
    main()
