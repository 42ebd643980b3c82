"""The golden vectors: encoder, decoder, the two oracles and the interpreted kernels all agree with what lies there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import vectors
from codec_helpers import frames_of_several
from planes import coded_planes
from reference import write_frame
from spec_reader import read_frame, read_sizes
from vectors import Vector

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.entropy import MOST_LANES
from splitwire.codec.profile import CodecProfile
from splitwire.codec.transform import NOT_SENT, Transform
from splitwire.codec.wire.sizes import CODER_ID as SIZES

TESTS = Path(__file__).parents[1]
PYTHONPATH = os.pathsep.join([str(TESTS), str(TESTS / "helpers" / "codec")])
# Read when the tests are collected: a manifest that is missing ends the run, it does not empty it.
NAMES = vectors.names()
CODER_NAMES: tuple[Literal["rans", "cabac", "predictive"], ...] = ("rans", "cabac", "predictive")


@pytest.fixture(params=NAMES)
def vector(request: pytest.FixtureRequest) -> Vector:
    return vectors.load(request.param)


@pytest.fixture
def codec(vector: Vector) -> FeatureCodec:
    return FeatureCodec(CodecProfile.from_json(vector.profile))


def test_every_vector_lies_there_and_nothing_else() -> None:
    there = {p.name for p in vectors.FOLDER.iterdir() if p.is_file()}  # folders: of other formats
    assert there == {n + s for n in NAMES for s in vectors.SUFFIXES.values()} | {"manifest.json", "__init__.py"}
    assert sum(p.stat().st_size for p in vectors.FOLDER.glob("*.*")) < 420_000


def test_the_vectors_show_all_levels_lanes_and_escapes() -> None:
    levels, coders, lanes, escapes, predicted, steps, classes = set(), set(), set(), 0, set(), set(), set()
    for name in NAMES:
        v = vectors.load(name)
        profile = CodecProfile.from_json(v.profile)
        chunks = vectors.chunk_table(v.frame, vectors.coder_of(profile))
        points = profile.operating_points[profile.point_index(v.op)].tensors
        levels |= {len(p.quantizer.levels) for p in points}
        coders |= {chunk[1] for chunk in chunks}
        lanes |= {chunk[2] for chunk in chunks}
        predicted |= {chunk[2] for chunk in chunks if chunk[1] == 4}
        steps |= {chunk[4] for chunk in chunks} - {None}
        escapes += v.escapes
        for t in (s.transform for s in profile.tensors if isinstance(s.transform, Transform)):
            classes |= {"in order" if t.classes == bytes(sorted(t.classes, reverse=True)) else "in any order"}
            classes |= {"not sent"} & ({"not sent"} if NOT_SENT in t.classes else set())
    assert {vectors.is_long(vectors.load(name).frame) for name in NAMES} == {True, False}
    assert levels >= {2, 3, 4, 6, 8, 16, 256} and lanes == set(range(1, 9)) and escapes > 100
    assert predicted >= {1, 3, 5, 7, 8} and vectors.load("predicted-n64").escapes > 40
    assert steps >= {0, 127} and len(steps) > 8 and vectors.load("transform-escapes").escapes > 100
    assert classes == {"in order", "in any order", "not sent"}
    assert coders == {*MOST_LANES, SIZES}, "a coder without a golden vector"


def test_decoder_gives_exactly_these_features(vector: Vector, codec: FeatureCodec) -> None:
    decoded = codec.decode(vector.frame)
    assert (decoded.op, decoded.frame_id) == (vector.op, vector.frame_id)
    assert [vectors.digest(x) for x in decoded.tensors] == vector.decoded
    assert [x.shape for x in decoded.tensors] == [x.shape for x in vector.features]
    assert [s.tolist() for s in decoded.sizes] == [s.tolist() for s in vector.sizes]


def test_encoder_gives_exactly_these_bytes(vector: Vector, codec: FeatureCodec) -> None:
    frame = codec.encode(vector.features, op=vector.op, frame_id=vector.frame_id, sizes=vector.sizes)
    if vector.encoded:
        assert vectors.is_made_as(vector.frame, frame)
    elif not codec.profile.is_transform:  # chunks that another encoder may make: the features are the same
        assert [vectors.digest(x) for x in codec.decode(frame).tensors] == vector.decoded


def test_reader_written_from_the_page_agrees(vector: Vector) -> None:
    profile = CodecProfile.from_json(vector.profile)
    index, frame_id, batch, planes = read_frame(vector.frame, vector.profile)
    assert (profile.operating_points[index].name, frame_id) == (vector.op, vector.frame_id)
    for i, spec in enumerate(profile.tensors):
        found = np.array(planes[i])
        if not profile.is_transform:
            found = np.array(profile.operating_points[index].tensors[i].quantizer.levels)[found]
        assert vectors.digest(found.astype(np.float32).reshape(batch, *spec.shape)) == vector.decoded[i]
    assert [list(s) for s in read_sizes(vector.frame, vector.profile)] == [s.tolist() for s in vector.sizes]


def test_writer_written_from_the_page_agrees(vector: Vector) -> None:
    profile = CodecProfile.from_json(vector.profile)
    index = profile.point_index(vector.op)
    batch, chunks = len(vector.features[0]), vectors.chunk_table(vector.frame, vectors.coder_of(profile))
    planes = [p.tolist() for p in coded_planes(vector.features, profile, index, chunks)]
    sizes, long = [s.tolist() for s in vector.sizes], vectors.is_long(vector.frame)
    assert write_frame(vector.profile, index, vector.frame_id, batch, planes, chunks, sizes, long) == vector.frame


def test_profile_is_written_back_as_it_was_read(vector: Vector) -> None:
    """The fingerprint is over these bytes: a field that gets a default must not appear in old profiles."""
    assert CodecProfile.from_json(vector.profile).to_json() == vector.profile


INTERPRETED = """
import sys
import numba, vectors
from codec_helpers import SEVERAL, frames_of_several
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.profile import CodecProfile
from splitwire.codec.wire.sizes import CODER_ID as SIZES
assert numba.config.DISABLE_JIT
for name in sys.argv[1:]:
    v = vectors.load(name)
    codec = FeatureCodec(CodecProfile.from_json(v.profile))
    if v.encoded:
        frame = codec.encode(v.features, op=v.op, frame_id=v.frame_id, sizes=v.sizes)
        assert vectors.is_made_as(v.frame, frame), name
    assert [vectors.digest(x) for x in codec.decode(v.frame).tensors] == v.decoded, name
    print(name)
for coder in SEVERAL:
    print(*frames_of_several(coder)[2], sep="\\n")
"""


def test_interpreted_kernels_agree() -> None:
    """NUMBA_DISABLE_JIT=1 in one child process for all; then frames of several tensors, of each coder, which
    test_coders.py and test_predictive.py compare with the oracle."""
    child = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:overflow:RuntimeWarning", "-c", INTERPRETED, *NAMES],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": PYTHONPATH},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == [*NAMES, *(f for coder in CODER_NAMES for f in frames_of_several(coder)[2])]


def test_vectors_are_not_made_anew_by_accident(tmp_path: Path) -> None:
    """`make_vectors.py --write` on a vector that would change refuses, and leaves it."""
    copy = tmp_path / "tests"
    copy.mkdir()
    for source in ("make_vectors.py", "coefficients.py", "planes.py", "reference.py", "spec_reader.py"):
        (copy / source).write_bytes((TESTS / "helpers" / "codec" / source).read_bytes())
    (copy / "vectors").mkdir()
    for path in vectors.FOLDER.glob("*.*"):
        (copy / "vectors" / path.name).write_bytes(path.read_bytes())
    damaged = copy / "vectors" / "one-n2.frame"
    damaged.write_bytes(b"changed")
    child = subprocess.run(
        [sys.executable, str(copy / "make_vectors.py"), "--write", "one-n2"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert child.returncode == 1 and "one-n2 exists and would change" in child.stderr
    assert damaged.read_bytes() == b"changed"
