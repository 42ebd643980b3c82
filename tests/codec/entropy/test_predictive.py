"""The predictive coder (id 4): what the conformance check of every coder leaves out, damage, and its frames."""

from __future__ import annotations

import base64
import itertools

import msgspec
import numpy as np
import pytest
from codec_helpers import (
    UInt8Array,
    expected,
    frames_of_several,
    make_profile,
    predicted_point,
    predicted_profile,
    random_pair,
    random_prediction,
    random_rows,
    relu_features,
    spec_of,
)
from conformance import check_codec
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import long_form, seal
from reference import write_frame, write_predictive
from spec_reader import Prediction, read_frame

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.entropy.predictive import PredictiveRans
from splitwire.codec.errors import BitstreamError, Corrupt, FingerprintMismatch, Truncated
from splitwire.codec.kernels import predictive_interleaved as interleaved
from splitwire.codec.profile import Clipping, CodecProfile, Quantizer, TensorPoint
from splitwire.codec.tables import PLACES, PredictionTables, Taps
from splitwire.codec.wire.frame import parse_frame

PROFILE = ("shift", "active_bits", "most_active", "rest", "levels", "symbol_bits")


def levels_of(rng: np.random.Generator, point: TensorPoint, shape: tuple[int, ...]) -> UInt8Array:
    """(P, H, W) level indices, mostly at rest: of each plane another share is not, from none to all."""
    assert isinstance(point.prediction, PredictionTables)
    share = rng.choice([0.0, 0.004, 0.02, 0.1, 0.4, 1.0], (shape[0], 1, 1))
    other = rng.integers(0, len(point.quantizer.levels), shape, np.uint8)
    return np.where(rng.random(shape) < share, other, np.uint8(point.prediction.rest))


@pytest.mark.parametrize("first", range(0, 19, 3))
def test_chunks_begin_and_end_anywhere_in_an_image(first: int) -> None:
    rng = np.random.default_rng(first)
    for planes, levels in itertools.product((1, 7, 19, 50), (3, 20)):
        spec, point = random_pair(rng, 4, levels, (19, 4, 5))
        check_codec(PredictiveRans, spec, point, levels_of(rng, point, (planes, 4, 5)), first=first)


@pytest.mark.parametrize("lanes", range(1, 9))
def test_any_number_of_lanes(lanes: int) -> None:
    rng = np.random.default_rng(lanes)
    for planes, first in ((42, 0), (30, 5)):
        spec, point = random_pair(rng, 4, 5, (21, 3, 4))
        q = levels_of(rng, point, (planes, 3, 4))
        texts = msgspec.to_builtins(point), msgspec.to_builtins(spec)
        payload, _ = write_predictive(q.tolist(), *texts, first, lanes)
        coder = PredictiveRans.of(point, spec)
        assert coder is not None
        np.testing.assert_array_equal(coder.decode(payload, planes, 3, 4, lanes, first), q.reshape(-1))
        assert lanes == 1 or payload != write_predictive(q.tolist(), *texts, first, lanes - 1)[0]


@pytest.mark.parametrize("shape", [(40, 1, 1), (24, 1, 9), (24, 9, 1), (1, 1, 70), (1, 12, 31), (17, 33, 64)], ids=str)
def test_planes_of_any_sides(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(shape)
    for batch in (1, 3):
        spec, point = random_pair(rng, 4, 6, shape)
        check_codec(PredictiveRans, spec, point, levels_of(rng, point, (batch * shape[0], *shape[1:])), first=0)


@pytest.mark.parametrize("side", [3, 7, 14, 22, 23, 30])
@pytest.mark.parametrize("first", [0, 5])
def test_sparse_and_dense_planes(first: int, side: int) -> None:
    """Kernels may add up predictions from the elements at rest or from the others, by how many there are of each."""
    rng = np.random.default_rng(side)
    for planes in (19, 43):
        spec, point = random_pair(rng, 4, 4, (19, side, side))
        check_codec(PredictiveRans, spec, point, levels_of(rng, point, (planes, side, side)), first=first)


@pytest.mark.parametrize("first", [0, 70, 77])
@pytest.mark.parametrize("taps", [0, 3, 40])
def test_small_planes_by_a_matrix_or_a_list(taps: int, first: int) -> None:
    """Channels side by side: more than fit into a block, with many taps each (a matrix) or few (a list)."""
    rng = np.random.default_rng((taps, first))
    counts = np.repeat([0, taps], [8, 72]).astype(np.uint8)
    pool = [rng.permutation((c // 8 * 8) * len(PLACES))[: counts[c]] for c in range(80)]
    sources = np.concatenate([found // len(PLACES) * 8 + found % len(PLACES) for found in pool])
    chosen = Taps(
        counts=bytes(min(int(n), p.size) for n, p in zip(counts, pool, strict=True)),
        sources=sources.astype("<u2").tobytes(),
    )
    assert interleaved.lay_out(80, 4, 4, sources.size, **dict.fromkeys(PROFILE, 0)).dense == (taps == 40)
    point = predicted_point(rng, 5, chosen)
    for side, planes in ((1, 83), (4, 80), (4, 171), (3, 9)):
        spec = spec_of((80, side, side), chosen)
        check_codec(PredictiveRans, spec, point, levels_of(rng, point, (planes, side, side)), first=first)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("levels", [2, 64])
def test_predictions_that_reach_the_ends_of_16_bits(levels: int, sign: int) -> None:
    """255 taps at one place, all terms of one sign and all levels the last one; and all that 2^15 leaves, in the bias.

    The cells tell the last few predictions apart, so one that is off by one has another table.
    """
    rng = np.random.default_rng(levels)
    counts = bytes([0] * 8 + [255] * 3)
    taps = Taps(counts=counts, sources=np.full(765, 8 * 7, "<u2").tobytes())
    weight = sign * min(126, 32767 // (259 * (levels - 1)))
    bias = sign * (32767 - 259 * (levels - 1) * abs(weight))
    prediction = msgspec.structs.replace(
        random_prediction(rng, levels, taps),
        rest=0, weights=np.full(11 * 4 + 765, weight, np.int8).tobytes(), shift=0, offset=0, activities=1,
        bias=np.array([0] * 8 + [bias] * 3, "<i2").tobytes(), activity=bytes(16), classes=1, channel_class=bytes(11),
        context_map=(np.arange(256) % 6).astype(np.uint8).tobytes(), frequencies=random_rows(rng, 6, levels),
    )  # fmt: skip
    point = TensorPoint(
        quantizer=Quantizer.uniform(0.0, 1.0, levels), clipping=Clipping(method="histogram"), tables=None,
        prediction=prediction,
    )  # fmt: skip
    spec = spec_of((11, 3, 4), taps)
    prediction.check(levels, 11, taps)
    q = np.full((11, 3, 4), levels - 1, np.uint8)
    texts = msgspec.to_builtins(point), msgspec.to_builtins(spec)
    page = Prediction(*texts)
    image = dict(enumerate(q.tolist()))
    reached = [
        page.bias[10] + sum(w * page.value(image, c, 1 + down, 1 + right) for w, c, down, right in page.terms[10])
    ]
    assert reached == [sign * 32767]
    check_codec(PredictiveRans, spec, point, q)
    check_codec(PredictiveRans, spec, point, rng.integers(0, levels, (22, 3, 4), np.uint8))


def test_random_points_show_what_there_is() -> None:
    """The points of the conformance check have all places, negative offsets, escapes, and cells at both ends."""
    places, offsets, shifts, sizes, cells, escapes, tables = set(), set(), set(), set(), set(), 0, set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        spec, point = random_pair(rng, 4, 8, (19, 3, 3))
        q = rng.integers(0, 8, (19, 3, 3), np.uint8)
        page = Prediction(msgspec.to_builtins(point), msgspec.to_builtins(spec))
        image = dict(enumerate(q.tolist()))
        page.context_map = [k // page.activities % 256 for k in range(len(page.context_map))]
        cells |= {page.table(image, *at) for at in itertools.product(range(19), range(3), range(3))}
        escapes += sum(0 in row for row in page.rows)
        prediction = point.prediction
        assert isinstance(prediction, PredictionTables) and isinstance(spec.taps, Taps)
        places |= set(spec.taps.arrays()[2].tolist())
        sizes |= set(spec.taps.counts)
        offsets.add(int(np.sign(prediction.offset)))
        shifts.add(prediction.shift)
        tables.add(len(page.rows))
    assert places == set(range(5)) and offsets == {-1, 0, 1} and {0, 255} < sizes and len(sizes) > 20
    assert cells > {0, 255} and len(cells) > 120 and escapes > 40 and {0, 15} < shifts and 64 in tables


# ---- damage -------------------------------------------------------------------------------------------------------


def test_truncation_and_foreign_payloads_say_so() -> None:
    rng = np.random.default_rng(0)
    spec, point = random_pair(rng, 4, 4, (19, 6, 6))
    coder = PredictiveRans.of(point, spec)
    assert coder is not None
    q = rng.integers(0, 4, 19 * 36, np.uint8)
    payload, lanes = coder.encode(q, 6, 6)
    with pytest.raises(Truncated, match=r"ends before all 684 symbols are decoded"):
        coder.decode(payload[:40], 19, 6, 6, lanes)
    with pytest.raises(Truncated, match=r"ends before all 684 symbols are decoded"):
        coder.decode(payload[:30], 19, 6, 6, 8)
    with pytest.raises(Corrupt, match="does not end in the initial state"):
        coder.decode(payload, 11, 6, 6, lanes)
    with pytest.raises(Corrupt, match="whole 16-bit words, has 41 bytes"):
        coder.decode(payload[:41], 19, 6, 6, lanes)


@pytest.mark.parametrize("levels", [2, 5, 63])
def test_an_escaped_level_that_there_is_not_is_refused(levels: int) -> None:
    """Written by the oracle for one level more, which no table has room for: the same tables otherwise."""
    rng = np.random.default_rng(levels)
    spec, point = random_pair(rng, 4, levels, (9, 3, 3))
    coder = PredictiveRans.of(point, spec)
    assert coder is not None
    text = msgspec.to_builtins(point)
    rows = np.frombuffer(base64.b64decode(text["prediction"]["frequencies"]), "<u2").reshape(-1, levels + 1)
    text["prediction"]["frequencies"] = base64.b64encode(np.insert(rows, levels, 0, axis=1).tobytes())
    text["quantizer"]["levels"] = [*text["quantizer"]["levels"], 2.0]
    q = rng.integers(0, levels, (9, 3, 3))
    payload, lanes = write_predictive(q.tolist(), text, msgspec.to_builtins(spec))
    np.testing.assert_array_equal(coder.decode(payload, 9, 3, 3, lanes), q.reshape(-1))
    q[8, 2, 2] = levels  # the last of all: no other element depends on it
    payload, lanes = write_predictive(q.tolist(), text, msgspec.to_builtins(spec))
    with pytest.raises(Corrupt, match=f"an escaped symbol that is not below {levels}"):
        coder.decode(payload, 9, 3, 3, lanes)


# ---- in a frame ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec() -> FeatureCodec:
    return FeatureCodec(predicted_profile(((19, 5, 4),), (2, 3, 64)))


def level_indices(codec: FeatureCodec, op: int, tensor: int, x: np.ndarray) -> np.ndarray:
    quantizer = codec.profile.operating_points[op].tensors[tensor].quantizer
    return np.searchsorted(np.array(quantizer.thresholds, np.float32), x, side="right")


def test_frames_are_of_version_1_2_and_read_from_the_page(codec: FeatureCodec) -> None:
    text = codec.profile.to_json()
    assert CodecProfile.from_json(text) == codec.profile and '"prediction":{' in text and '"taps":{' in text
    x = relu_features((3, 19, 5, 4), 8)
    for op, name in enumerate(("n2", "n3", "n64")):
        frame = codec.encode([x], op=name, frame_id=9)
        assert frame[4:7] == b"\1\2\1" and tuple(frame[22:24]) == (4, 1)
        for form in (frame, long_form(frame, 57)):
            np.testing.assert_array_equal(codec.decode(form).tensors[0], expected(codec, name, 0, x))
            index, _, batch, planes = read_frame(form, text)
            assert (index, batch) == (op, 3)
            np.testing.assert_array_equal(np.reshape(planes[0], x.shape), level_indices(codec, op, 0, x))
        assert codec.decode(bytes(seal(bytearray(frame[:5] + b"\7" + frame[6:])))).batch == 3, "the minor version"


def test_profiles_without_it_are_written_as_they_were() -> None:
    text = make_profile(((3, 4, 4),), (2,)).to_json()
    assert "prediction" not in text and "taps" not in text
    frame = FeatureCodec(CodecProfile.from_json(text)).encode([relu_features((1, 3, 4, 4))])
    assert frame[4:7] == b"\1\1\1"


def test_a_point_without_prediction_is_of_the_coder_that_its_tables_say(codec: FeatureCodec) -> None:
    """Taps are for all points; each has its coder all the same, and no frame chooses another."""
    other = make_profile(((19, 5, 4),), (3,)).operating_points[0].tensors[0]
    points = codec.profile.operating_points
    plain, bare = (msgspec.structs.replace(points[0], name=n) for n in ("plain", "bare"))
    plain = msgspec.structs.replace(plain, tensors=(other,))
    bare = msgspec.structs.replace(bare, tensors=(msgspec.structs.replace(other, tables=None),))
    profile = msgspec.structs.replace(codec.profile, operating_points=(points[1], plain, bare), default_op="n3")
    mixed = FeatureCodec(CodecProfile.from_json(profile.to_json()))
    x = relu_features((2, 19, 5, 4), 3)
    for name, coder, minor in (("n3", 4, 2), ("plain", 1, 1), ("bare", 2, 1)):
        frame = mixed.encode([x], op=name)
        assert (frame[22], frame[5]) == (coder, minor)
        np.testing.assert_array_equal(mixed.decode(frame).tensors[0], expected(mixed, name, 0, x))
        for wrong in {1, 2, 4} - {coder}:
            changed = bytearray(frame)
            changed[22] = wrong
            with pytest.raises(Corrupt, match=f"uses coder {wrong}, operating point '{name}' is of coder {coder}"):
                mixed.decode(bytes(seal(changed)))


def test_lanes_that_there_are_not_are_refused(codec: FeatureCodec) -> None:
    frame = bytearray(codec.encode([relu_features((1, 19, 5, 4))]))
    frame[23] = 9
    with pytest.raises(Corrupt, match="9 lanes"):
        codec.decode(bytes(seal(frame)))


@pytest.mark.parametrize(
    ("shape", "batch", "chunks"),
    [
        ((20, 64, 64), 27, [240, 240, 60]),  # twelve images in a chunk
        ((12, 300, 300), 1, [8, 4]),  # an image is more than a chunk holds: eight planes, as for the other coders
        ((9, 341, 341), 2, [9, 9]),  # 1,046,529 elements: one image
    ],
    ids=str,
)
def test_chunks_hold_whole_images(shape: tuple[int, int, int], batch: int, chunks: list[int]) -> None:
    codec = FeatureCodec(predicted_profile((shape,), (3,)))
    x = np.resize(relu_features((1, 3, 61, 67), 4), (batch, *shape))
    frame = codec.encode([x])
    parsed = parse_frame(frame)
    assert frame[5:7] == b"\2\0" and [c.planes for c in parsed.chunks] == chunks
    assert {(c.coder, c.lanes) for c in parsed.chunks} <= {(4, 8), (4, 4)}
    whole = codec.decode(frame).tensors[0]
    np.testing.assert_array_equal(whole, expected(codec, "n3", 0, x))
    assert FeatureCodec(codec.profile, threads=2).encode([x]) == frame
    out = np.empty(chunks[1] * shape[1] * shape[2], np.float32)
    codec._coders(0)[0].decode(parsed.chunks[1], chunks[0], chunks[1], out)  # on its own
    np.testing.assert_array_equal(out, whole.reshape(-1)[chunks[0] * shape[1] * shape[2] :][: out.size])


def test_a_damaged_chunk_is_concealed_and_changes_no_other() -> None:
    codec = FeatureCodec(predicted_profile(((11, 4, 6),), (4,)))
    x = relu_features((3, 11, 4, 6), 2)
    q = level_indices(codec, 0, 0, x).reshape(33, 4, 6).tolist()
    chunks = [(0, 4, 3, 9, None), (0, 4, 1, 13, None), (0, 4, 8, 11, None)]  # cut within images, and within groups
    frame = write_frame(codec.profile.to_json(), 0, 0, 3, [q], chunks)
    whole = codec.decode(frame).tensors[0]
    np.testing.assert_array_equal(whole, expected(codec, "n4", 0, x))
    damaged = bytearray(frame)
    damaged[28 + 48 + len(parse_frame(frame).chunks[0].payload) + 5] ^= 1
    shown = codec.decode(bytes(damaged), conceal=True)
    assert shown.concealed == (1,)
    planes = shown.tensors[0].reshape(33, 24)
    assert (planes[9:22] == np.float32(0.25)).all()
    np.testing.assert_array_equal(np.delete(planes, range(9, 22), 0), np.delete(whole.reshape(33, 24), range(9, 22), 0))


def test_frames_of_several_tensors_equal_the_oracle() -> None:
    """As in test_coders.py; beside a tensor of two axes and one."""
    codec, xs, frames = frames_of_several("predictive")
    oracle = []
    for op in range(len(codec.profile.operating_points)):
        planes = [
            level_indices(codec, op, i, x).reshape(-1, *spec.planes[1:]).tolist()
            for i, (x, spec) in enumerate(zip(xs, codec.profile.tensors, strict=True))
        ]
        oracle.append(write_frame(codec.profile.to_json(), op, 7, 2, planes).hex())
    assert frames == oracle


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_frames_are_refused(codec: FeatureCodec, data: st.DataObject) -> None:
    frame = bytearray(codec.encode([relu_features((1, 19, 5, 4), 9)], op="n3"))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((BitstreamError, FingerprintMismatch)):
        codec.decode(bytes(frame))
