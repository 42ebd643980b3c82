"""Error diffusion in the quantizer: what it decides, what it keeps, and that the decoder need not know."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from codec_helpers import make_profile, relu_features

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import NonFiniteFeatures
from splitwire.codec.profile import CodecProfile, Quantizer
from splitwire.codec.quantizer import dequantize, quantize

NON_UNIFORM = Quantizer(levels=(-1.0, 0.0, 0.25, 3.0), thresholds=(-0.75, 0.125, 1.0))


def diffusing(quantizer: Quantizer) -> Quantizer:
    return msgspec.structs.replace(quantizer, error_diffusion=True)


def oracle(plane: np.ndarray, quantizer: Quantizer) -> np.ndarray:
    """Of one (H, W) plane, element by element in numpy's float32."""
    levels, thresholds = (np.array(a, np.float32) for a in (quantizer.levels, quantizer.thresholds))
    limit = (levels[-1] - levels[0]) / np.float32(len(thresholds))
    out = np.zeros(plane.shape, np.uint8)
    error = np.float32(0)
    for r, row in enumerate(plane):
        for c in range(len(row))[:: -1 if r % 2 else 1]:
            wanted = np.float32(row[c] + error)
            out[r, c] = (thresholds <= wanted).sum()
            error = np.clip(np.float32(wanted - levels[out[r, c]]), -limit, limit)
    return out


@pytest.mark.parametrize("shape", [(3, 5, 1, 1), (2, 3, 1, 9), (2, 3, 9, 1), (2, 4, 5, 6), (1, 2, 40, 33)], ids=str)
@pytest.mark.parametrize("quantizer", [Quantizer.uniform(0, 2, 2), Quantizer.uniform(-1, 2, 7), NON_UNIFORM])
def test_each_element_takes_the_error_of_the_one_before(shape: tuple[int, ...], quantizer: Quantizer) -> None:
    x = np.random.default_rng(shape).normal(0.5, 1, shape).astype(np.float32)
    q = quantize(x, diffusing(quantizer))
    planes = zip(x.reshape(-1, *shape[2:]), q.reshape(-1, *shape[2:]), strict=True)
    for plane, found in planes:
        np.testing.assert_array_equal(found, oracle(plane, quantizer))


def test_the_mean_of_a_plane_stays() -> None:
    """Within half a step over the number of elements, where nothing is clipped; without it, it does not."""
    x = np.random.default_rng(0).uniform(0, 2, (50, 1, 14, 14)).astype(np.float32) ** 2
    quantizer = Quantizer.uniform(0, 4, 3)
    with_it, without = (
        np.abs((dequantize(quantize(x, q), q) - x).mean((2, 3))).max() for q in (diffusing(quantizer), quantizer)
    )
    assert with_it <= 1 / 14**2 + 1e-5
    assert without > 5 / 14**2


def test_one_large_value_is_not_smeared_over_the_plane() -> None:
    x = np.zeros((1, 1, 4, 4), np.float32)
    x[0, 0, 1, 1] = 1e6
    assert (quantize(x, diffusing(Quantizer.uniform(0, 1, 3))) > 0).sum() == 2


def pair() -> tuple[CodecProfile, CodecProfile]:
    """A profile, and the same with error diffusion."""
    plain = make_profile([(4, 6, 7)], levels=(2, 4))
    points = tuple(
        msgspec.structs.replace(
            p, tensors=tuple(msgspec.structs.replace(t, quantizer=diffusing(t.quantizer)) for t in p.tensors)
        )
        for p in plain.operating_points
    )
    return plain, msgspec.structs.replace(plain, operating_points=points)


def test_frames_hold_what_the_quantizer_says() -> None:
    plain, profile = pair()
    codec = FeatureCodec(CodecProfile.from_json(profile.to_json()))
    assert codec.fingerprint != plain.fingerprint
    x = relu_features((3, *profile.tensors[0].shape))
    for point in profile.operating_points:
        quantizer = point.tensors[0].quantizer
        frame = codec.encode([x], op=point.name)
        np.testing.assert_array_equal(codec.decode(frame).tensors[0], dequantize(quantize(x, quantizer), quantizer))
        assert not np.array_equal(quantize(x, quantizer), quantize(x, plain.operating_points[0].tensors[0].quantizer))


def test_planes_do_not_know_of_each_other() -> None:
    """Chunks, batches and slabs may begin at any plane."""
    x = relu_features((2, 5, 6, 7))
    quantizer = diffusing(Quantizer.uniform(0, 2, 3))
    whole = quantize(x, quantizer)
    for b in range(2):
        for c in range(5):
            np.testing.assert_array_equal(quantize(x[b, c], quantizer), whole[b, c])


def test_what_is_not_finite_is_refused() -> None:
    x = np.zeros((1, 2, 3, 3), np.float32)
    x[0, 1, 2, 0] = np.nan
    with pytest.raises(NonFiniteFeatures, match=r"1 of 18 .* index \(0, 1, 2, 0\)"):
        quantize(x, diffusing(Quantizer.uniform(0, 1, 3)))


def test_the_field_is_left_out_where_it_is_not_used() -> None:
    plain, profile = pair()
    assert "error_diffusion" not in plain.to_json()
    assert "error_diffusion" in profile.to_json()
