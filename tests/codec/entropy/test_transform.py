"""Coders 5 and 6, transform coefficients: bytes equal to the oracle's, steps, clipping, concealment, damage."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import reference
import spec_reader
from codec_helpers import make_profile, relu_features
from coefficients import (
    are_decoded,
    integers,
    make_coefficients,
    make_transform,
    sent,
    step_of,
    transform_profile,
    values,
)
from conformance import damages
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType
from mutations import long_form, seal
from numpy.typing import NDArray

from splitwire.codec import codec as codec_module
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.entropy.transform import TransformRans
from splitwire.codec.errors import (
    BitstreamError,
    Corrupt,
    LimitExceeded,
    NonFiniteFeatures,
    ShapeMismatch,
    Truncated,
    UsageError,
)
from splitwire.codec.profile import TensorSpec
from splitwire.codec.transform import STATIC, STEPS, TERSE, Transform, coding_order, step_reciprocal, step_size
from splitwire.codec.wire.frame import DecoderLimits, parse_frame

Float32Array = NDArray[np.float32]
Coder = UnsetType | int
CODERS = pytest.mark.parametrize("coder", [UNSET, TERSE], ids=["coder 5", "coder 6"])


def check_coder(transform: Transform, x: Float32Array, step: int, seed: int = 0) -> bytes:
    """The promises of docs/bitstream.md §7 for (images, tiles, N) coefficients; returns the payload.

    The bytes are the oracle's; they decode to what the page says, by the oracle too, with any number of lanes; bytes
    too many are refused, and other damage is refused or decodes to what some integers are decoded to.
    """
    rng = np.random.default_rng(seed)
    coder = TransformRans(transform, x.shape[1:])
    write, read = reference.ENCODERS[coder.coder_id], spec_reader.DECODERS[coder.coder_id]
    spec = msgspec.to_builtins(TensorSpec(name="x", shape=x.shape[1:], transform=transform))
    usual = step if seed % 2 else int(rng.integers(STEPS))
    point = {"step": step, "usual": usual}
    q = integers(x, transform, step)
    expected = values(q, transform, step)
    payload, lanes = coder.encode(x, step, usual)
    assert (payload, lanes) == write(q.tolist(), point, spec)
    out = np.full(x.size, np.nan, np.float32)
    for data in (payload, memoryview(payload)):
        assert coder.decode(data, lanes, out, usual) == step
        assert out.tobytes() == expected.tobytes()
    found = read(payload, {"step": usual}, spec, lanes, len(x), 0)
    assert np.array(found, np.float32).tobytes() == expected.tobytes()
    wanted = int(rng.integers(1, 9))
    other, _ = write(q.tolist(), point, spec, 0, wanted)
    assert coder.decode(other, wanted, out, usual) == step and out.tobytes() == expected.tobytes()
    # a single lane of coder 6 has nothing to check: other bytes are other coefficients
    for behind in (b"\0", b"\0\0") if coder.coder_id == STATIC or lanes > 1 else ():
        with pytest.raises(Corrupt):
            coder.decode(payload + behind, lanes, out, usual)
    for damaged in damages(payload, rng):
        try:
            named = coder.decode(damaged, int(rng.integers(1, 9)), out, usual)
        except BitstreamError:
            continue
        assert are_decoded(out, transform, {named})
    return payload


@pytest.mark.slow
@given(data=st.data())
def test_bytes_equal_the_oracle(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 50)))
    step = data.draw(st.integers(0, 127))
    high = min(127, max(0, step + data.draw(st.integers(-20, 30))))
    transform = make_transform(
        rng, shape, data.draw(st.integers(1, 64)), classes=(high, data.draw(st.integers(0, high))),
        first=data.draw(st.integers(-128, 127)), missing=data.draw(st.booleans()),
        unsent=data.draw(st.sampled_from([None, 0.0, 0.3, 0.9])),
        dead_zone=data.draw(st.sampled_from([0.0, 0.1, 0.42, 0.5])),
        outward=data.draw(st.sampled_from([(0.0, 0.0), (0.5, -0.5), (-0.5, 0.25), (0.203125, float(np.float32(0.1)))])),
        coder=data.draw(st.sampled_from([UNSET, TERSE])),
    )  # fmt: skip
    x = make_coefficients(rng, data.draw(st.integers(1, 4)), shape, transform, step)
    check_coder(transform, x, step, int(rng.integers(2**32)))


def test_the_order_is_by_falling_class_then_by_index() -> None:
    classes = bytes([3, 255, 9, 3, 127, 0, 255, 9])
    assert coding_order(classes).tolist() == [4, 2, 7, 0, 3, 5]
    assert coding_order(bytes([5] * 200)).tolist() == list(range(200))
    transform = make_transform(np.random.default_rng(2), (1, 8), 64, classes=(0, 0), first=-30)
    transform = msgspec.structs.replace(transform, classes=classes)
    assert transform.tables_at(20).tolist() == [63, 19, 19, 13, 13, 10]


def test_classes_in_another_order_code_the_same_coefficients() -> None:
    """The same payload, whether they lie in the order of coding, or in another with others between them."""
    rng = np.random.default_rng(4)
    shape = (3, 100)
    transform = make_transform(rng, shape, 30)
    x = make_coefficients(rng, 2, shape, transform, 64)
    places = np.sort(rng.permutation(160)[:100])  # of each class by rising index, as before
    classes = np.full(160, 255, np.uint8)
    wide = np.full((2, 3, 160), np.nan, np.float32)
    falling = np.frombuffer(transform.classes, np.uint8)
    by_class = np.concatenate([rng.permutation(np.unique(falling))[:, None] == falling]).nonzero()[1]
    classes[places], wide[:, :, places] = falling[by_class], x[:, :, by_class]
    moved = msgspec.structs.replace(transform, classes=classes.tobytes())
    payload, lanes = TransformRans(transform, shape).encode(x, 64, 64)
    coder = TransformRans(moved, (3, 160))
    assert coder.encode(wide, 64, 64) == (payload, lanes)
    out, expected = np.full(wide.size, np.nan, np.float32), np.empty(x.size, np.float32)
    coder.decode(payload, lanes, out, 64)
    TransformRans(transform, shape).decode(payload, lanes, expected, 64)
    out = out.reshape(wide.shape)
    assert out[:, :, places].tobytes() == expected.reshape(x.shape)[:, :, by_class].tobytes()
    assert not out[:, :, classes == 255].view(np.int32).any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_sent_may_be_anything(value: float) -> None:
    transform = make_transform(np.random.default_rng(1), (2, 40), 9, unsent=0.5)
    x = make_coefficients(np.random.default_rng(2), 1, (2, 40), transform, 64)
    coder, there = TransformRans(transform, (2, 40)), sent(transform)
    payload = coder.encode(x, 64, 64)
    x[..., ~there] = value
    assert coder.encode(x, 64, 64) == payload
    x[0, 1, there.argmax()] = value
    with pytest.raises(NonFiniteFeatures):
        coder.encode(x, 64, 64)


@CODERS
@pytest.mark.parametrize(("images", "lanes"), [(1, 1), (2, 2), (3, 2), (4, 4), (6, 4), (8, 8)])
def test_lanes_follow_the_length_of_the_sequence(images: int, lanes: int, coder: Coder) -> None:
    """Nothing is zero, so the sequence is 16/15 of the coefficients, and some escapes."""
    shape = (2, 2100)
    transform = make_transform(np.random.default_rng(images), shape, 5, coder=coder)
    x = np.random.default_rng(1).choice(np.array([-1, 1, 3], np.float32), (images, *shape))
    check_coder(transform, x, 64)
    assert TransformRans(transform, shape).encode(x, 64, 64)[1] == lanes


@pytest.mark.parametrize(("coder", "size"), [(UNSET, 5), (TERSE, 0)])
def test_all_zero_costs_next_to_nothing(coder: Coder, size: int) -> None:
    shape = (64, 160)
    transform = make_transform(np.random.default_rng(0), shape, 3, coder=coder)
    transform = msgspec.structs.replace(transform, zero_groups=np.full(3, 4095, "<u2").tobytes())
    payload = check_coder(transform, np.zeros((1, *shape), np.float32), 64, seed=1)
    assert len(payload) == size


def test_zeros_at_the_end_of_the_last_group_cost_nothing_in_coder_6() -> None:
    transform = make_transform(np.random.default_rng(0), (1, 1), 3, classes=(60, 60), coder=TERSE)
    one = check_coder(transform, np.ones((1, 1, 1), np.float32), 64, seed=1)
    longer = msgspec.structs.replace(transform, classes=transform.classes * 16)
    x = np.zeros((1, 1, 16), np.float32)
    x[..., 0] = 1
    assert check_coder(longer, x, 64, seed=1) == one and 1 <= len(one) <= 3


def test_another_step_than_the_point_s_costs_at_most_two_bytes_in_coder_6() -> None:
    transform = make_transform(np.random.default_rng(0), (1, 200), 20, coder=TERSE)
    coder = TransformRans(transform, (1, 200))
    x = make_coefficients(np.random.default_rng(1), 1, (1, 200), transform, 64)
    sizes = {usual: len(coder.encode(x, 64, usual)[0]) for usual in (0, 63, 64, 127)}
    assert sizes[0] == sizes[63] == sizes[127] and 1 <= sizes[0] - sizes[64] <= 2


@pytest.mark.parametrize("payload", [b"\0", b"\0\1\2", b"\0\0", b"\1\0", b"\1\0\xff\xff"])
def test_a_payload_of_coder_6_does_not_begin_with_zeros(payload: bytes) -> None:
    """The high byte of the first word is its second one."""
    transform = make_transform(np.random.default_rng(0), (1, 9), 3, coder=TERSE)
    coder, out = TransformRans(transform, (1, 9)), np.empty(9, np.float32)
    with pytest.raises(Corrupt, match="rANS payload must not begin with zeros"):
        coder.decode(payload, 1, out, 64)
    with pytest.raises(AssertionError):
        spec_reader.read_terse_step(payload, 1)


@CODERS
def test_every_symbol_and_large_values(coder: Coder) -> None:
    """Magnitudes 0 to 15 and the least escapes; then 32767, and everything above it."""
    shape = (1, 80)
    transform = make_transform(np.random.default_rng(0), shape, 7, outward=(0.25, -0.125), coder=coder)
    q = np.arange(-40, 40, dtype=np.float32).reshape(1, *shape)
    check_coder(transform, q, 64)
    largest = np.array([32766, 32767, 32768, 1e9, 3.4e38] * 16, np.float32).reshape(1, *shape)
    for step in (0, 63, 64, 127):
        x = np.minimum(largest.astype(np.float64) * float(step_of(step)), 3.4e38).astype(np.float32)
        check_coder(transform, -x, step)
        found = integers(x, transform, step)
        assert found.max() == 32767 and found.min() == 32766


def test_steps_are_what_the_page_says() -> None:
    for j in range(STEPS):
        assert step_size(j) == step_of(j) and float(step_size(j)) == pytest.approx(2 ** ((j - 64) / 4), rel=1e-7)
        assert float(step_size(j)) * float(step_reciprocal(j)) == pytest.approx(1, rel=1e-7)
    roots = [int(float(step_size(64 + k)) * 2**23) for k in range(4)]
    assert roots == [2**23, 9975792, 11863283, 14107901]


# ---- frames -------------------------------------------------------------------------------------------------------

SHAPES = ((4, 33), (1, 90))


@pytest.fixture(scope="module")
def codec() -> FeatureCodec:
    rng = np.random.default_rng(5)
    transforms = [make_transform(rng, shape, 20, outward=(0.25, 0.125)) for shape in SHAPES]
    return FeatureCodec(transform_profile(SHAPES, transforms, {"q1": (60, 70), "q2": (66, 74)}))


def features(codec: FeatureCodec, batch: int, seed: int = 0) -> list[Float32Array]:
    rng = np.random.default_rng(seed)
    return [make_coefficients(rng, batch, shape, transform_of(codec, i), 64) for i, shape in enumerate(SHAPES)]


def transform_of(codec: FeatureCodec, tensor: int) -> Transform:
    found = codec.profile.tensors[tensor].transform
    assert isinstance(found, Transform)
    return found


def expected(codec: FeatureCodec, xs: list[Float32Array], steps: tuple[int, ...]) -> list[bytes]:
    kinds = [transform_of(codec, i) for i in range(len(xs))]
    return [values(integers(x, t, j), t, j).tobytes() for x, t, j in zip(xs, kinds, steps, strict=True)]


@pytest.mark.parametrize(
    ("op", "offset", "steps"),
    [(None, 0, (66, 74)), ("q1", 0, (60, 70)), ("q1", 5, (65, 75)), ("q2", -66, (0, 8)), ("q2", -70, (0, 4)),
     ("q1", 60, (120, 127)), ("q1", 10**9, (127, 127)), ("q1", -(10**9), (0, 0))],
)  # fmt: skip
def test_a_frame_may_have_any_steps(codec: FeatureCodec, op: str | None, offset: int, steps: tuple[int, int]) -> None:
    xs = features(codec, 3)
    frame = codec.encode(xs, op=op, frame_id=9, step_offset=offset)
    decoded = codec.decode(frame)
    assert (decoded.op, decoded.frame_id, decoded.batch, decoded.steps) == (op or "q2", 9, 3, steps)
    assert [x.tobytes() for x in decoded.tensors] == expected(codec, xs, steps)
    assert frame[5] == 3, "the minor version that introduced the coder"
    q = [integers(x, transform_of(codec, i), j).tolist() for i, (x, j) in enumerate(zip(xs, steps, strict=True))]
    chunks = [(i, 5, None, None, j) for i, j in enumerate(steps)]
    index = codec.profile.point_index(op)
    assert reference.write_frame(codec.profile.to_json(), index, 9, 3, q, chunks) == frame
    op_index, frame_id, batch, read = spec_reader.read_frame(frame, codec.profile.to_json())
    assert (op_index, frame_id, batch) == (index, 9, 3)
    assert [np.array(p, np.float32).tobytes() for p in read] == expected(codec, xs, steps)


def test_coarser_steps_need_fewer_bytes(codec: FeatureCodec) -> None:
    xs = features(codec, 8)
    sizes = [len(codec.encode(xs, step_offset=offset)) for offset in range(-12, 24, 4)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)


def test_a_single_tensor_makes_a_short_frame_in_chunks_of_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_module, "CHUNK_ELEMENTS", 3 * 4 * 33)
    transform = make_transform(np.random.default_rng(0), SHAPES[0], 9)
    codec = FeatureCodec(transform_profile(SHAPES[:1], [transform], {"q": (62,)}), threads=2)
    for batch, planes in ((1, [None]), (3, [None]), (7, [3, 3, 1])):
        x = make_coefficients(np.random.default_rng(batch), batch, SHAPES[0], transform, 62)
        frame = codec.encode([x])
        assert [c.planes for c in parse_frame(frame).chunks] == planes
        assert [y.tobytes() for y in codec.decode(frame).tensors] == expected(codec, [x], (62,))
    monkeypatch.setattr(codec_module, "CHUNK_ELEMENTS", 100)  # less than one image
    codec = FeatureCodec(codec.profile)
    frame = codec.encode([x])
    assert [c.planes for c in parse_frame(frame).chunks] == [1] * 7
    assert [y.tobytes() for y in codec.decode(frame).tensors] == expected(codec, [x], (62,))


def test_read_only_and_strided_features_are_coded_alike(codec: FeatureCodec) -> None:
    xs = features(codec, 2)
    frame = codec.encode(xs)
    fixed = [x.copy() for x in xs]
    for x in fixed:
        x.flags.writeable = False
    assert codec.encode(fixed) == frame
    assert codec.encode([np.asfortranarray(x) for x in xs]) == frame


def test_a_damaged_chunk_is_concealed_with_zeros(codec: FeatureCodec) -> None:
    xs = features(codec, 2)
    frame = bytearray(codec.encode(xs))
    frame[60 + 8] ^= 1  # in the payload of chunk 0
    with pytest.raises(Corrupt, match="chunk 0 is damaged"):
        codec.decode(bytes(frame))
    decoded = codec.decode(bytes(frame), conceal=True)
    assert decoded.concealed == (0,) and decoded.steps == (66, 74)
    assert not decoded.tensors[0].any()
    assert decoded.tensors[1].tobytes() == expected(codec, xs, (66, 74))[1]


def test_steps_of_a_result_are_those_of_the_first_chunk_that_is_whole(codec: FeatureCodec) -> None:
    xs = features(codec, 4)
    chunks = [(0, 5, 1, 1, 50), (0, 5, 2, 1, 51), (0, 5, 1, 2, 52), (1, 5, 1, 4, 80)]
    steps = (50, 51, 52, 52)
    q = [
        [integers(xs[0][i], transform_of(codec, 0), j).tolist() for i, j in enumerate(steps)],
        integers(xs[1], transform_of(codec, 1), 80).tolist(),
    ]
    frame = bytearray(reference.write_frame(codec.profile.to_json(), 1, 0, 4, q, chunks))
    assert codec.decode(bytes(frame)).steps == (50, 80)
    frame[28 + 16 * 4 + 5] ^= 1
    assert codec.decode(bytes(frame), conceal=True).steps == (51, 80)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(codec: FeatureCodec, value: float) -> None:
    xs = features(codec, 2)
    xs[1][1, 0, 37] = value
    with pytest.raises(NonFiniteFeatures, match=r"1 of 180 are NaN or infinite, the first at index \(1, 0, 37\)"):
        codec.encode(xs)


def test_shapes_and_offsets_that_do_not_fit_are_refused(codec: FeatureCodec) -> None:
    with pytest.raises(ShapeMismatch, match=r"'t0' must be float32 of shape \(batch, 4, 33\)"):
        codec.encode([np.zeros((1, 4, 32), np.float32), np.zeros((1, 1, 90), np.float32)])
    scalar = FeatureCodec(make_profile(((4, 5, 5),), (2,)))
    x = relu_features((1, 4, 5, 5))
    assert scalar.decode(scalar.encode([x], step_offset=0)).steps == ()
    with pytest.raises(UsageError, match="step_offset is for transform pairs; this pair is scalar"):
        scalar.encode([x], step_offset=1)


def test_the_limit_counts_features_where_they_are_more(codec: FeatureCodec) -> None:
    """12 features beside 132 and 90 coefficients; then a million."""
    frame = codec.encode(features(codec, 1))
    assert FeatureCodec(codec.profile, DecoderLimits(elements=222)).decode(frame).batch == 1
    with pytest.raises(LimitExceeded, match="frame decodes to 222 elements, over the limit of 221"):
        FeatureCodec(codec.profile, DecoderLimits(elements=221)).decode(frame)
    specs = list(codec.profile.tensors)
    specs[0] = msgspec.structs.replace(
        specs[0], transform=msgspec.structs.replace(transform_of(codec, 0), feature_shape=(100, 100, 100))
    )
    large = FeatureCodec(msgspec.structs.replace(codec.profile, tensors=tuple(specs)), DecoderLimits(elements=10**6))
    with pytest.raises(LimitExceeded, match="frame decodes to 1000090 elements"):
        large.decode(large.encode(features(codec, 1)))


# ---- damage that has a right checksum -----------------------------------------------------------------------------


@pytest.fixture
def single() -> tuple[FeatureCodec, bytes]:
    transform = make_transform(np.random.default_rng(0), SHAPES[0], 9)
    codec = FeatureCodec(transform_profile(SHAPES[:1], [transform], {"q": (62,)}))
    x = make_coefficients(np.random.default_rng(1), 3, SHAPES[0], transform, 62)
    return codec, codec.encode([x])


def forge(frame: bytes, at: int, value: int) -> bytes:
    changed = bytearray(frame)
    changed[at] = value
    return bytes(seal(changed))


def test_forged_fields_are_refused(single: tuple[FeatureCodec, bytes]) -> None:
    codec, frame = single
    assert codec.decode(forge(frame, 28, frame[28])).steps == (62,)
    for step in (128, 255):
        with pytest.raises(Corrupt, match=f"step index must be below 128, is {step}"):
            codec.decode(forge(frame, 28, step))
    for coder in (1, 2, 4):
        with pytest.raises(Corrupt, match=f"chunk 0 uses coder {coder}, operating point 'q' is of coder 5"):
            codec.decode(forge(forge(frame, 23, 1), 22, coder))
    with pytest.raises(Corrupt, match="lanes must be at least 1"):
        codec.decode(forge(frame, 23, 0))
    with pytest.raises(Corrupt, match="9 lanes"):
        codec.decode(forge(frame, 23, 9))
    with pytest.raises(Truncated, match="must begin with a step index; it is empty"):
        codec.decode(bytes(seal(bytearray(frame[:28]))))
    with pytest.raises(Corrupt, match="whole 16-bit words"):
        codec.decode(bytes(seal(bytearray(frame + b"\0"))))
    with pytest.raises(Truncated, match="ends before all 396 coefficients are decoded"):
        codec.decode(bytes(seal(bytearray(frame[:31]))))
    for planes in (1, 2, 4):
        with pytest.raises(Corrupt, match=rf"chunks hold \[{planes}\] planes per tensor, a batch of 3 needs \[3\]"):
            codec.decode(long_form(frame, planes))
    assert codec.decode(long_form(frame, 3)).batch == 3


def test_a_frame_of_scalar_coders_is_refused_and_the_other_way_round(single: tuple[FeatureCodec, bytes]) -> None:
    scalar = FeatureCodec(make_profile(((4, 5, 5),), (2,)))
    frame = forge(scalar.encode([relu_features((1, 4, 5, 5))]), 22, 5)
    with pytest.raises(Corrupt, match="chunk 0 uses coder 5, operating point 'n2' is of coder 1"):
        scalar.decode(frame)


def test_another_step_than_was_sent_is_refused_or_harmless(single: tuple[FeatureCodec, bytes]) -> None:
    """It selects other tables; only the checksums tell."""
    codec, frame = single
    outcomes = set()
    for step in range(STEPS):
        try:
            decoded = codec.decode(forge(frame, 28, step))
        except BitstreamError as e:
            outcomes.add(type(e))
        else:
            assert decoded.steps == (step,)
            assert are_decoded(decoded.tensors[0], transform_of(codec, 0), {step})
    assert Corrupt in outcomes and outcomes <= {Truncated, Corrupt}


def test_an_escape_beyond_the_largest_magnitude_is_refused() -> None:
    """Zigzag values 65533 and 65534 are ±32767; 65535 would be −32768."""
    shape = (1, 1)
    transform = make_transform(np.random.default_rng(0), shape, 1)
    spec = msgspec.to_builtins(TensorSpec(name="x", shape=shape, transform=transform))
    coder, out = TransformRans(transform, shape), np.empty(1, np.float32)
    for q in (32767, -32767):
        payload, lanes = reference.ENCODERS[5]([[[q]]], {"step": 64}, spec)
        coder.decode(payload, lanes, out, 64)
        assert out[0] == q
    for q in (32768, -32768):  # 65535 and, in two bytes, 0 of 65536
        z = 2 * q - 1 if q > 0 else -2 * q
        if z < 1 << 16:
            payload, lanes = reference.ENCODERS[5]([[[q]]], {"step": 64}, spec)
            with pytest.raises(Corrupt, match="whose magnitude is over 32767"):
                coder.decode(payload, lanes, out, 64)
