"""The entropy coders: conformance, bytes equal to the slow oracle's, and how profile and frame choose between them."""

from __future__ import annotations

import itertools
from typing import Literal

import msgspec
import numpy as np
import pytest
from codec_helpers import expected, frames_of_several, make_profile, random_pair, relu_features
from conformance import check_codec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from mutations import seal
from reference import ENCODERS, write_binary, write_frame
from spec_reader import DECODERS, read_frame

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.design.tables import estimate_tables
from splitwire.codec.entropy import CODERS, MOST_LANES, SymbolCoder
from splitwire.codec.entropy.cabac import AdaptiveBinary
from splitwire.codec.entropy.predictive import PredictiveRans
from splitwire.codec.entropy.rans import ContextRans
from splitwire.codec.errors import BitstreamError, Corrupt, FingerprintMismatch, Truncated, UnsupportedVersion
from splitwire.codec.kernels import cabac as kernels
from splitwire.codec.profile import Clipping, CodecProfile, Quantizer, TensorPoint, TensorSpec
from splitwire.codec.tables import ContextTables, PredictionTables, Taps

SHAPES = [(1, 1, 1), (3, 1, 9), (5, 7, 3), (9, 2, 2), (8, 19, 23)]
LEVELS = [2, 3, 4, 5, 16, 63, 64, 255, 256]
MOST_LEVELS = {4: 64}
"""By coder id, where it does not take all."""

each_coder = pytest.mark.parametrize("kind", CODERS, ids=lambda k: k.__name__)


def test_coder_ids_are_literals_that_stay() -> None:
    assert [(k.__name__, k.coder_id) for k in CODERS] == [
        ("PredictiveRans", 4),
        ("ContextRans", 1),
        ("AdaptiveBinary", 2),
    ]


def test_every_coder_is_in_both_oracles() -> None:
    assert set(MOST_LANES) == set(ENCODERS) == set(DECODERS)


@pytest.mark.parametrize(
    ("kind", "levels"), [(k, n) for k in CODERS for n in LEVELS if n <= MOST_LEVELS.get(k.coder_id, 256)],
    ids=lambda x: getattr(x, "__name__", x),
)  # fmt: skip
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conformance(kind: type[SymbolCoder], shape: tuple[int, int, int], levels: int) -> None:
    rng = np.random.default_rng(levels)
    spec, point = random_pair(rng, kind.coder_id, levels, shape)
    for q in (
        np.zeros(shape, np.uint8),
        np.full(shape, levels - 1, np.uint8),
        rng.integers(0, levels, shape, np.uint8),
        np.minimum(rng.geometric(0.7, shape) - 1, levels - 1).astype(np.uint8),
    ):
        check_codec(kind, spec, point, q)


@each_coder
@given(data=st.data())
def test_bytes_equal_the_oracle(kind: type[SymbolCoder], data: st.DataObject) -> None:
    """Any shape, any number of planes and levels, any tables."""
    levels = data.draw(st.integers(2, 20) | st.sampled_from([64, MOST_LEVELS.get(kind.coder_id, 256)]))
    channels = data.draw(st.integers(1, 6) | st.sampled_from([8, 11, 27]))
    shape = (data.draw(st.integers(1, 12) | st.just(40)), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    pair = random_pair(rng, kind.coder_id, levels, (channels, *shape[1:]))
    steep = data.draw(st.floats(0.0, 8.0))
    share = np.exp(-steep * np.arange(levels) / levels)
    q = rng.choice(levels, shape, p=share / share.sum())
    if data.draw(st.booleans()):  # mostly of the level that the coder takes for nothing, some planes wholly
        spec, point = pair
        coder = kind.of(point, spec)
        assert coder is not None
        q = (q * (rng.random(shape) < rng.random((shape[0], 1, 1)) ** 4) + coder.padding) % levels
    check_codec(kind, *pair, q.astype(np.uint8), seed=int(rng.integers(2**32)))


@each_coder
def test_many_lanes_and_rare_symbols_equal_the_oracle(kind: type[SymbolCoder]) -> None:
    """Planes of one column and of one row among them: 64 levels are in blocks of one."""
    rng = np.random.default_rng(3)
    for shape, levels in (((9, 32, 32), 4), ((8, 31, 33), 16), ((1100, 9, 1), 64), ((1101, 1, 9), 64)):
        q = np.minimum(rng.geometric(0.6, shape) - 1, levels - 1).astype(np.uint8)
        check_codec(kind, *random_pair(rng, kind.coder_id, levels, shape), q)


@pytest.mark.parametrize("coder", ["rans", "cabac"])
def test_frames_of_several_tensors_equal_the_oracle(coder: Literal["rans", "cabac"]) -> None:
    """Interpreted they are the same too: test_vectors.py."""
    codec, xs, frames = frames_of_several(coder)
    oracle = []
    for op, point in enumerate(codec.profile.operating_points):
        planes = [
            np.searchsorted(np.array(p.quantizer.thresholds, np.float32), x, side="right").reshape(-1, h, w)
            for p, x, (h, w) in zip(point.tensors, xs, ((7, 5), (4, 6)), strict=True)
        ]
        oracle.append(write_frame(codec.profile.to_json(), op, 7, 2, [p.tolist() for p in planes]).hex())
    assert frames == oracle


def test_contexts_learn_the_sign_that_a_magnitude_cannot_tell() -> None:
    """Half the elements at rest, the others of their row's sign: the block to the left tells it, its magnitude not."""
    rng = np.random.default_rng(0)
    sign = rng.choice([-1.0, 1.0], (40, 4, 12, 1))
    x = (sign * (rng.random((40, 4, 12, 12)) < 0.5)).astype(np.float32)
    _, bits = estimate_tables(x, Quantizer.uniform(-1.0, 1.0, 3))
    assert bits < 1.12  # 1.08 is ideal, the sign of each row and what is at rest; 1.20 by magnitudes


# ---- the adaptive binary coder ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("levels", "number"), [(2, 7), (3, 5), (4, 3)])
def test_each_sequence_has_one_payload_and_each_payload_one_sequence(levels: int, number: int) -> None:
    coder = AdaptiveBinary(levels)
    payloads = {}
    for q in itertools.product(range(levels), repeat=number):
        payloads[coder.encode(np.array(q, np.uint8), 1, number)[0]] = q
    assert len(payloads) == levels**number
    for length in (0, 1, 2):
        for value in range(256**length):
            payload = value.to_bytes(length, "big")
            try:
                decoded = coder.decode(payload, 1, 1, number, 1)
            except BitstreamError:
                assert payload not in payloads
            else:
                assert payloads[payload] == tuple(decoded)


@given(data=st.binary(min_size=1, max_size=40), levels=st.integers(2, 9), number=st.integers(1, 60))
def test_a_payload_that_passes_is_the_one_the_encoder_makes(data: bytes, levels: int, number: int) -> None:
    coder = AdaptiveBinary(levels)
    try:
        q = coder.decode(data, 1, 1, number, 1)
    except BitstreamError:
        return
    assert coder.encode(q, 1, number) == (data, 1)


@pytest.mark.parametrize("seed", range(8))
def test_carries_through_long_runs_of_ff(seed: int) -> None:
    """Levels whose code is a few bytes and then zeros: until the last bit is known, the encoder has FF FF FF… there."""
    rng = np.random.default_rng(seed)
    code = int.from_bytes(rng.bytes(3) + b"\1" + bytes(28), "big")
    low, r, digits = 0, 1 << 256, 0  # the decoder of the page, with the whole code at once
    a, b, q = 2**15, 2**15, []
    while digits < 24:
        scale = 1 << (224 - 8 * digits)
        bound = (r // scale) * ((a + b) // 2) // 2**16 * scale
        one = code - low < bound
        q.append(int(one))
        low, r = (low, bound) if one else (low + bound, r - bound)
        a, b = (a + (2**16 - a) // 8, b + (2**16 - b) // 64) if one else (a - a // 8, b - b // 64)
        while r // scale < 2**24:
            digits, scale = digits + 1, scale >> 8
    point = {"quantizer": {"levels": [0, 1]}}
    levels = np.array(q, np.uint8)
    payload, _ = AdaptiveBinary(2).encode(levels, 1, len(q))
    assert payload == write_binary([[q]], point, {"shape": [len(q)]})[0]
    assert bytes(16) in payload or b"\xff" * 16 in payload
    np.testing.assert_array_equal(AdaptiveBinary(2).decode(payload, 1, 1, len(q), 1), levels)


def test_the_rarest_symbols_fit_after_the_buffer_has_grown() -> None:
    """Long runs of the last level, broken by zeros that nobody expects: more than a byte per element."""
    q = np.full(3000, 255, np.uint8)
    q[::2] = np.arange(1500) % 256
    payload, _ = AdaptiveBinary(256).encode(q, 1, q.size)
    assert len(payload) > q.size + 16
    np.testing.assert_array_equal(AdaptiveBinary(256).decode(payload, 1, 1, q.size, 1), q)


def test_encoder_never_writes_past_its_buffer() -> None:
    q = np.random.default_rng(0).integers(0, 4, 500, np.uint8)
    whole, _ = AdaptiveBinary(4).encode(q, 1, 500)
    for room in range(1, len(whole) + 1):
        out = np.full(room + 8, 0xAA, np.uint8)
        size = kernels.encode(q, 3, out[:room])
        assert size == (len(whole) if room == len(whole) else kernels.FULL)
        assert (out[room:] == 0xAA).all()


def test_truncation_says_so() -> None:
    q = np.random.default_rng(0).integers(0, 4, 500, np.uint8)
    payload, _ = AdaptiveBinary(4).encode(q, 1, 500)
    with pytest.raises(Truncated, match="ends before all 500 elements"):
        AdaptiveBinary(4).decode(payload[:40], 1, 1, 500, 1)
    with pytest.raises(Corrupt, match="does not end where its elements do"):
        AdaptiveBinary(4).decode(payload, 1, 1, 300, 1)


def test_adapts_to_each_channel() -> None:
    """Channels of different statistics cost less than the entropy of the whole, as the paper's coder has it."""
    rng = np.random.default_rng(0)
    p = np.repeat(rng.choice([0.03, 0.5, 0.9], 64), 400)
    q = (rng.random(p.size) < p).astype(np.uint8)
    mean = float(q.mean())
    order0 = -(mean * np.log2(mean) + (1 - mean) * np.log2(1 - mean))
    assert 8 * len(AdaptiveBinary(2).encode(q, 1, q.size)[0]) / q.size < 0.75 * order0


# ---- the coders over rANS -----------------------------------------------------------------------------------------

ROW = [1, 200, 3894, 1]
"""Frequencies of three levels and of the escape."""


@pytest.mark.parametrize("kind", [ContextRans, PredictiveRans], ids=lambda k: k.__name__)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        # Levels 1 and 0 with the state 2^15 behind them, coded without emitting a word where the encoder has to: the
        # state is 2^31 or more at the start.
        (divmod((2**27 // 200 << 12) + 1 + 2**27 % 200, 1 << 16), "does not end in the initial state"),
        # Level 1 twice: below 2^15 at the start, and all that is left of it is a word.
        ((0, 1, 1, 0x8000), "does not end in the initial state"),
        # Levels 0 and 2, and more than 2^15 at the end.
        ((0x7FFF, 0x1000), "does not end in the initial state"),
        ((0x7FFF,), "ends before all 2 symbols"),
        ((), "ends before all 2 symbols"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_states_that_no_encoder_makes(kind: type[SymbolCoder], words: tuple[int, ...], message: str) -> None:
    frequencies = np.array(ROW, "<u2").tobytes()
    tables = ContextTables(
        block=(1, 1), padding=0, activities=1, left_activity=bytes(3), top_activity=bytes(3), context_map=bytes(4),
        frequencies=frequencies,
    )  # fmt: skip
    prediction = PredictionTables(
        rest=0, weights=bytes(4), bias=bytes(2), offset=0, shift=0, activities=1, activity=bytes(16), classes=1,
        channel_class=bytes(1), context_map=bytes(256), frequencies=frequencies,
    )  # fmt: skip
    predicts = kind is PredictiveRans
    point = TensorPoint(
        quantizer=Quantizer.uniform(0.0, 1.0, 3), clipping=Clipping(method="histogram"),
        tables=None if predicts else tables, prediction=prediction if predicts else UNSET,
    )  # fmt: skip
    spec = TensorSpec(name="x", shape=(2,), taps=Taps(counts=bytes(1), sources=b""))
    coder = kind.of(point, spec)
    assert coder is not None
    sound, _ = coder.encode(np.array([1, 0], np.uint8), 1, 2)
    assert coder.decode(sound, 1, 1, 2, 1).tolist() == [1, 0] and len(sound) == 6
    payload = np.array(words, "<u2").tobytes()
    with pytest.raises((Corrupt, Truncated), match=message):
        coder.decode(payload, 1, 1, 2, 1)
    with pytest.raises((AssertionError, StopIteration)):
        DECODERS[kind.coder_id](payload, msgspec.to_builtins(point), msgspec.to_builtins(spec), 1, 1, 0)


# ---- in a frame ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_tables() -> FeatureCodec:
    return FeatureCodec(make_profile(((6, 8, 8),), (4,)))


@pytest.fixture(scope="module")
def without_tables() -> FeatureCodec:
    return FeatureCodec(make_profile(((6, 8, 8),), (2, 3, 4, 8), coder="cabac"))


def forge(frame: bytes, coder: int | None = None, lanes: int | None = None) -> bytes:
    """Change coder and lanes of a short frame, and make the checksum right again."""
    changed = bytearray(frame)
    changed[22:24] = [frame[22] if coder is None else coder, frame[23] if lanes is None else lanes]
    return bytes(seal(changed))


def test_profile_without_tables_is_coded_by_the_adaptive_coder(without_tables: FeatureCodec) -> None:
    profile = without_tables.profile
    assert CodecProfile.from_json(profile.to_json()) == profile
    x = relu_features((3, 6, 8, 8), seed=4)
    for op, point in enumerate(profile.operating_points):
        frame = without_tables.encode([x], op=point.name)
        assert tuple(frame[22:24]) == (2, 1)
        np.testing.assert_array_equal(
            without_tables.decode(frame).tensors[0], expected(without_tables, point.name, 0, x)
        )
        index, _, batch, planes = read_frame(frame, profile.to_json())
        q = np.searchsorted(np.array(point.tensors[0].quantizer.thresholds, np.float32), x, side="right")
        assert (index, batch) == (op, 3)
        np.testing.assert_array_equal(np.array(planes[0]).reshape(x.shape), q)
        # the expected rate is of single images, where the contexts start anew
        single = sum(len(without_tables.encode([x[i : i + 1]], op=point.name)) - 28 for i in range(3))
        assert 8 * single / x.size == pytest.approx(point.bits_per_element, rel=0.1)


def test_a_frame_cannot_choose_another_coder_than_its_pair(with_tables: FeatureCodec) -> None:
    """Coder 2 needs nothing and would decode anywhere, but far slower: a sound chunk of it is refused all the same."""
    x = relu_features((2, 6, 8, 8), seed=4)
    frame = with_tables.encode([x])
    assert frame[22] == 1
    q = np.searchsorted(
        np.array(with_tables.profile.operating_points[0].tensors[0].quantizer.thresholds, np.float32), x, side="right"
    ).astype(np.uint8)
    payload, _ = AdaptiveBinary(4).encode(q.reshape(-1), 8, 8)
    other = forge(frame[:28] + payload, coder=2, lanes=1)
    with pytest.raises(Corrupt, match=r"chunk 0 uses coder 2, operating point '\w+' is of coder 1"):
        with_tables.decode(other)


def test_coders_and_lanes_that_do_not_fit_are_refused(with_tables: FeatureCodec, without_tables: FeatureCodec) -> None:
    x = relu_features((1, 6, 8, 8))
    frame = with_tables.encode([x])
    assert with_tables.decode(forge(frame)).batch == 1
    with pytest.raises(
        UnsupportedVersion, match="chunk 0 uses coder 77, this build has 1, 2, 4, 5, 6; update splitwire"
    ):
        with_tables.decode(forge(frame, coder=77))
    with pytest.raises(Corrupt, match="9 lanes"):
        with_tables.decode(forge(frame, lanes=9))
    with pytest.raises(Corrupt, match="lanes must be at least 1"):
        with_tables.decode(forge(frame, lanes=0))
    frame = without_tables.encode([x], op="n4")
    with pytest.raises(Corrupt, match="2 lanes"):
        without_tables.decode(forge(frame, lanes=2))
    with pytest.raises(Corrupt, match="chunk 0 uses coder 1, operating point 'n4' is of coder 2"):
        without_tables.decode(forge(frame, coder=1))


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_frames_of_the_adaptive_coder_are_refused(without_tables: FeatureCodec, data: st.DataObject) -> None:
    frame = bytearray(without_tables.encode([relu_features((1, 6, 8, 8), 9)], op="n3"))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((BitstreamError, FingerprintMismatch)):
        without_tables.decode(bytes(frame))
