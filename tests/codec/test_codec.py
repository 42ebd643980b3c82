"""FeatureCodec: round trips, the independent decoder, shapes, errors."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from codec_helpers import expected, make_profile, relu_features
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import is_short, long_form, seal
from spec_reader import read_frame

from splitwire.codec.codec import FeatureCodec, TensorCoder
from splitwire.codec.errors import (
    BitstreamError,
    Corrupt,
    FingerprintMismatch,
    LimitExceeded,
    NonFiniteFeatures,
    ProfileError,
    ShapeMismatch,
    Truncated,
    UnsupportedVersion,
)
from splitwire.codec.profile import CodecProfile, Quantizer, SizeSpec
from splitwire.codec.wire.frame import DecoderLimits, parse_frame, side_information

SHAPES = [(16, 14, 14), (5, 7, 3), (1, 1, 1), (3, 1, 9), (9, 2, 2), (64,), (6, 10), (1, 33, 17)]


@pytest.fixture(scope="module")
def codec() -> FeatureCodec:
    return FeatureCodec(make_profile(((12, 7, 9),), (2, 3, 4, 6, 8, 16)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("levels", [2, 3, 4, 5, 8, 16])
def test_decodes_to_the_quantized_features(shape: tuple[int, ...], levels: int) -> None:
    codec = FeatureCodec(make_profile((shape,), (levels,)))
    for batch in (1, 3):
        x = relu_features((batch, *shape), seed=7)
        frame = codec.encode([x], frame_id=batch)
        decoded = codec.decode(frame)
        assert (decoded.op, decoded.frame_id, decoded.batch) == (f"n{levels}", batch, batch)
        np.testing.assert_array_equal(decoded.tensors[0], expected(codec, f"n{levels}", 0, x))


@pytest.mark.parametrize("levels", [32, 256])
def test_many_levels_are_coded_without_blocks(levels: int) -> None:
    codec = FeatureCodec(make_profile(((4, 6, 6),), (levels,)))
    tables = codec.profile.operating_points[0].tensors[0].tables
    assert tables is not None and tables.block == (1, 1)
    x = relu_features((2, 4, 6, 6), seed=3)
    np.testing.assert_array_equal(codec.decode(codec.encode([x])).tensors[0], expected(codec, f"n{levels}", 0, x))


def test_several_tensors_and_signed_features_share_a_frame() -> None:
    codec = FeatureCodec(make_profile(((8, 6, 6), (4, 3, 3)), (3, 4), signed=True))
    xs = [relu_features((2, 8, 6, 6), 1) - np.float32(0.8), relu_features((2, 4, 3, 3), 2) - np.float32(0.8)]
    decoded = codec.decode(codec.encode(xs, op="n3"))
    assert decoded.op == "n3"
    for i, x in enumerate(xs):
        np.testing.assert_array_equal(decoded.tensors[i], expected(codec, "n3", i, x))


@pytest.mark.parametrize(("shape", "batch", "lanes"), [((5, 5, 3), 2, 1), ((32, 24, 24), 3, 8), ((3, 64, 64), 1, 2)])
def test_independent_decoder_written_from_the_spec_agrees(shape: tuple[int, ...], batch: int, lanes: int) -> None:
    codec = FeatureCodec(make_profile((shape,), (3, 4)))
    x = relu_features((batch, *shape), seed=5)
    # values far outside the calibration make rare symbols, so that escapes are exercised too
    x[:, :, ::3] *= np.float32(9)
    for op in ("n3", "n4"):
        frame = codec.encode([x], op=op, frame_id=99)
        assert frame[23] == lanes
        index, frame_id, b, planes = read_frame(frame, codec.profile.to_json())
        assert (codec.profile.operating_points[index].name, frame_id, b) == (op, 99, batch)
        levels = codec.profile.operating_points[index].tensors[0].quantizer.levels
        values = np.array(levels, np.float32)[np.array(planes[0])].reshape(x.shape)
        np.testing.assert_array_equal(values, codec.decode(frame).tensors[0])
        np.testing.assert_array_equal(values, expected(codec, op, 0, x))


def test_coded_size_is_near_the_ideal_of_its_tables() -> None:
    shape = (64, 28, 28)
    codec = FeatureCodec(make_profile((shape,), (4,)))
    x = relu_features((8, *shape), seed=0)  # the calibration features themselves
    size = len(codec.encode([x]))
    ideal = codec.profile.operating_points[0].bits_per_element * x.size / 8
    assert ideal * 0.999 < size < ideal * 1.01 + side_information(1)


def test_side_information_is_at_most_48_bytes(codec: FeatureCodec) -> None:
    assert side_information(1) == 28 and side_information(3) == 76
    frame = codec.encode([relu_features((1, 12, 7, 9))])
    (chunk,) = parse_frame(frame).chunks
    assert len(frame) == len(chunk.payload) + 28


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_features_are_refused(codec: FeatureCodec, bad: float) -> None:
    x = relu_features((1, 12, 7, 9))
    x[0, 3, 2, 1] = bad
    with pytest.raises(NonFiniteFeatures, match=r"1 of 756 are NaN or infinite, the first at index \(0, 3, 2, 1\)"):
        codec.encode([x])


def test_wrong_shape_dtype_count_and_operating_point(codec: FeatureCodec) -> None:
    with pytest.raises(ShapeMismatch, match=r"\(batch, 12, 7, 9\), got float32 of shape \(1, 12, 9, 7\)"):
        codec.encode([relu_features((1, 12, 9, 7))])
    with pytest.raises(ShapeMismatch, match="got float64"):
        codec.encode([np.zeros((1, 12, 7, 9))])  # type: ignore[list-item]  # float64 on purpose
    with pytest.raises(ShapeMismatch, match="expected 1 tensors"):
        codec.encode([])
    with pytest.raises(ShapeMismatch, match="batch must be"):
        codec.encode([relu_features((0, 12, 7, 9))])
    with pytest.raises(ProfileError, match="'n7' is not in this profile; it has n2, n3"):
        codec.encode([relu_features((1, 12, 7, 9))], op="n7")


def test_non_contiguous_features_are_accepted(codec: FeatureCodec) -> None:
    x = relu_features((2, 9, 7, 12)).transpose(0, 3, 2, 1)
    np.testing.assert_array_equal(codec.decode(codec.encode([x])).tensors[0], expected(codec, "n16", 0, x))


# ---- hostile frames -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["short", "long"])
def frame(codec: FeatureCodec, request: pytest.FixtureRequest) -> bytes:
    """In both forms; the long one is what version 1.0 wrote."""
    frame = codec.encode([relu_features((2, 12, 7, 9), 21)], op="n4", frame_id=5)
    return frame if request.param == "short" else long_form(frame, planes=24)


def test_both_forms_decode_to_the_same(codec: FeatureCodec, frame: bytes) -> None:
    decoded = codec.decode(frame)
    assert (decoded.op, decoded.frame_id, decoded.batch) == ("n4", 5, 2)
    np.testing.assert_array_equal(decoded.tensors[0], expected(codec, "n4", 0, relu_features((2, 12, 7, 9), 21)))


def test_every_truncation_is_refused(codec: FeatureCodec, frame: bytes) -> None:
    for n in range(len(frame)):
        with pytest.raises(BitstreamError):
            codec.decode(frame[:n])
    with pytest.raises(Truncated, match="a frame is at least 28 bytes; got 27"):
        codec.decode(frame[:27])
    # A short frame does not say how long it is: its checksum tells.
    with pytest.raises(Corrupt if is_short(frame) else Truncated, match=r"not of its full length|announces"):
        codec.decode(frame[:-1])


def test_trailing_bytes_are_refused(codec: FeatureCodec, frame: bytes) -> None:
    with pytest.raises(Corrupt, match=r"not of its full length|1 too many"):
        codec.decode(frame + b"\0")


def test_a_flag_of_a_newer_version_says_so(codec: FeatureCodec, frame: bytes) -> None:
    with pytest.raises(UnsupportedVersion, match="has flags 2, this build knows 0 and 1; update splitwire"):
        codec.decode(frame[:6] + b"\2" + frame[7:])


def test_a_short_frame_of_another_tensor_count_is_refused() -> None:
    """It holds all planes of one tensor: for a pair that sends two, or sizes beside it, it is never right."""
    two = FeatureCodec(make_profile(((4, 5, 5), (3, 4)), (4,)))
    one = FeatureCodec(make_profile(((4, 5, 5),), (4,)))
    frame = bytearray(one.encode([relu_features((2, 4, 5, 5))]))
    frame[8:16] = two.fingerprint
    with pytest.raises(Corrupt, match=r"chunks hold \[8, 0\] planes per tensor, a batch of 2 needs \[8, 2\]"):
        two.decode(bytes(seal(frame)))
    sizes = (SizeSpec(name="sizes", length=2),)
    sized = FeatureCodec(msgspec.structs.replace(one.profile, sizes=sizes))
    frame[8:16] = sized.fingerprint
    with pytest.raises(Corrupt, match="the last chunks are not the 1 vectors of sizes"):
        sized.decode(bytes(seal(frame)))


def test_every_bit_flip_is_refused_or_harmless(codec: FeatureCodec, frame: bytes) -> None:
    """The minor version is the one byte that a decoder ignores, and even that is under the checksum."""
    for i in range(len(frame) * 8):
        damaged = bytearray(frame)
        damaged[i // 8] ^= 1 << i % 8
        with pytest.raises((BitstreamError, FingerprintMismatch)):
            codec.decode(bytes(damaged))


def test_newer_major_version_says_so(codec: FeatureCodec, frame: bytes) -> None:
    with pytest.raises(UnsupportedVersion, match=r"version 2\.[01], this build reads 1\.x"):
        codec.decode(frame[:4] + b"\2" + frame[5:])


def test_another_pair_names_both_fingerprints(frame: bytes) -> None:
    other = FeatureCodec(make_profile(((12, 7, 9),), (2, 4), seed=5))
    with pytest.raises(FingerprintMismatch) as caught:
        other.decode(frame)
    assert frame[8:16].hex() in str(caught.value) and other.fingerprint.hex() in str(caught.value)


def test_a_length_of_two_gigabytes_is_a_limit_not_an_allocation(codec: FeatureCodec) -> None:
    frame = long_form(codec.encode([relu_features((2, 12, 7, 9))]), planes=24)
    lying = frame[:32] + (2 << 30).to_bytes(4, "little") + frame[36:]
    with pytest.raises(LimitExceeded, match="announces 21474836"):
        codec.decode(lying)


def test_limits_are_checked_before_decoding(codec: FeatureCodec, frame: bytes) -> None:
    with pytest.raises(LimitExceeded, match="frame of"):
        FeatureCodec(codec.profile, DecoderLimits(frame_bytes=100)).decode(frame)
    with pytest.raises(LimitExceeded, match="decodes to 1512 elements, over the limit of 1000"):
        FeatureCodec(codec.profile, DecoderLimits(elements=1000)).decode(frame)


@given(data=st.binary(max_size=4096))
def test_parser_is_total(codec: FeatureCodec, data: bytes) -> None:
    for candidate in (data, b"SPLW\1\0\0\0" + data, b"SPLW\1\1\1\0" + data):
        with pytest.raises((BitstreamError, FingerprintMismatch)):
            codec.decode(candidate)


@settings(max_examples=300)
@given(data=st.data())
def test_payload_decoder_is_total(codec: FeatureCodec, frame: bytes, data: st.DataObject) -> None:
    """Damage behind valid checksums: the coder itself refuses it or returns symbols in range, and never crashes."""
    coder = codec._coders(codec.profile.point_index("n4"))[0]
    assert isinstance(coder, TensorCoder)
    payload = bytearray(parse_frame(frame).chunks[0].payload)
    lanes = data.draw(st.integers(1, 8))
    for _ in range(data.draw(st.integers(1, 6))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(payload[: data.draw(st.integers(0, len(payload)))])
    try:
        symbols = coder.entropy.decode(damaged, 24, coder.packer.rows, coder.packer.cols, lanes)
    except BitstreamError:
        return
    assert symbols.max() < 256


# ---- chunks -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chunked() -> tuple[FeatureCodec, bytes, np.ndarray]:
    """Three chunks of 256, 256 and 88 planes: 600 planes of 64×64 are a little over two chunks' worth of elements."""
    profile = make_profile(((6, 64, 64),), (4,))
    mean = msgspec.structs.replace(profile.tensors[0], mean=0.25)
    codec = FeatureCodec(msgspec.structs.replace(profile, tensors=(mean,)))
    x = np.resize(relu_features((20, 6, 64, 64), 4), (100, 6, 64, 64))
    return codec, codec.encode([x]), x


def test_large_tensors_are_chunks_that_decode_independently(chunked: tuple[FeatureCodec, bytes, np.ndarray]) -> None:
    codec, frame, x = chunked
    parsed = parse_frame(frame)
    assert [c.planes for c in parsed.chunks] == [256, 256, 88]
    whole = codec.decode(frame).tensors[0]
    np.testing.assert_array_equal(whole, expected(codec, "n4", 0, x))
    coder = codec._coders(0)[0]
    out = np.empty(256 * 64 * 64, np.float32)
    coder.decode(parsed.chunks[1], 256, 256, out)  # a plane that does not begin an image: 256 is no multiple of 6
    np.testing.assert_array_equal(out, whole.reshape(-1)[256 * 64 * 64 : 512 * 64 * 64])


def test_threads_make_no_difference_to_the_bytes(chunked: tuple[FeatureCodec, bytes, np.ndarray]) -> None:
    codec, frame, x = chunked
    threaded = FeatureCodec(codec.profile, threads=3)
    assert threaded.encode([x]) == frame
    np.testing.assert_array_equal(threaded.decode(frame).tensors[0], codec.decode(frame).tensors[0])
    x = x.copy()
    x[70, 2, 5, 6] = np.nan
    with pytest.raises(NonFiniteFeatures, match=r"first at index \(70, 2, 5, 6\)"):
        threaded.encode([x])


def test_damaged_chunk_is_concealed_only_when_asked(chunked: tuple[FeatureCodec, bytes, np.ndarray]) -> None:
    codec, frame, _ = chunked
    whole = codec.decode(frame)
    assert whole.concealed == ()
    parsed = parse_frame(frame)
    damaged = bytearray(frame)
    damaged[side_information(3) + len(parsed.chunks[0].payload) + 100] ^= 4
    with pytest.raises(Corrupt, match="chunk 1 is damaged"):
        codec.decode(bytes(damaged))
    shown = codec.decode(bytes(damaged), conceal=True)
    assert shown.concealed == (1,)
    planes, truth = (d.tensors[0].reshape(600, -1) for d in (shown, whole))
    assert (planes[256:512] == np.float32(0.25)).all()
    np.testing.assert_array_equal(planes[:256], truth[:256])
    np.testing.assert_array_equal(planes[512:], truth[512:])
    header = bytearray(frame)
    header[30] ^= 1
    with pytest.raises(Corrupt, match="header is damaged"):
        codec.decode(bytes(header), conceal=True)


def test_what_cannot_be_concealed_is_refused(codec: FeatureCodec) -> None:
    x = relu_features((2, 12, 7, 9), 21)
    short = damaged(codec.encode([x], op="n4"))
    with pytest.raises(Corrupt, match="no mean to conceal tensor 't0' with"):
        codec.decode(damaged(long_form(codec.encode([x], op="n4"), planes=24)), conceal=True)
    with pytest.raises(Corrupt, match="frame is damaged"):  # one checksum for all: perhaps the header is damaged
        codec.decode(short, conceal=True)


def damaged(frame: bytes) -> bytes:
    return frame[:-1] + bytes([frame[-1] ^ 1])


# ---- profile ------------------------------------------------------------------------------------------------------


def test_profile_round_trips_and_the_default_is_not_in_the_fingerprint(codec: FeatureCodec) -> None:
    again = CodecProfile.from_json(codec.profile.to_json())
    assert again == codec.profile and again.fingerprint == codec.fingerprint
    other = msgspec.structs.replace(codec.profile, default_op="n2")
    assert other.fingerprint == codec.fingerprint
    assert msgspec.structs.replace(codec.profile, cut="elsewhere").fingerprint != codec.fingerprint


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"format":1', '"format":2'),
        ('"default_op":"n16"', '"default_op":"n9"'),
        ('"model":"test"', '"model":"test","surprise":1'),
        ('"padding":0', '"padding":77'),
        ('"activities":6', '"activities":5'),
        ('"shape":[12,7,9]', '"shape":[12,7,0]'),
        ('"shape":[12,7,9]', '"shape":[13,7,9]'),
        ('"shape":[12,7,9]', '"shape":[12,70000,70000]'),
        ("{", "["),
    ],
)
def test_damaged_profile_is_one_clear_line(codec: FeatureCodec, old: str, new: str) -> None:
    text = codec.profile.to_json()
    assert old in text
    with pytest.raises(ProfileError, match=r"damaged: .*export the model again") as caught:
        CodecProfile.from_json(text.replace(old, new, 1))
    assert "\n" not in str(caught.value)


def test_metadata_without_a_profile() -> None:
    with pytest.raises(ProfileError, match=r"resnet\.onnx carries no splitwire profile"):
        CodecProfile.from_metadata({}, "resnet.onnx")


def test_uniform_quantizer_has_pinned_ends() -> None:
    q = Quantizer.uniform(0.0, 9.0, 4)
    assert q.levels == (0.0, 3.0, 6.0, 9.0) and q.thresholds == (1.5, 4.5, 7.5) and q.clipping_range == (0.0, 9.0)
