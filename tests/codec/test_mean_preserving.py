"""Mean-preserving quantizers: what they decide, what they keep, and that the decoder need not know."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from codec_helpers import make_profile, relu_features

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import NonFiniteFeatures
from splitwire.codec.kernels import quantize as kernels
from splitwire.codec.profile import CodecProfile, Quantizer
from splitwire.codec.quantizer import dequantize, quantize


def preserving(quantizer: Quantizer) -> Quantizer:
    return msgspec.structs.replace(quantizer, mean_preserving=True)


def oracle(plane: np.ndarray, quantizer: Quantizer) -> np.ndarray:
    """Of one (H, W) plane: steps of 2^-16 by numpy's float32, everything else in Python's integers."""
    low, high = quantizer.clipping_range
    n = len(quantizer.levels)
    step = (high - low) / (n - 1)
    clipped = np.clip(plane.reshape(-1), np.float32(low - step), np.float32(high + step))
    steps = [int(v) for v in (clipped - np.float32(low)) * np.float32(2**16 / step)]
    inside = [min(max(s, 0), (n - 1) << 16) for s in steps]
    below = [min(s >> 16, n - 2) for s in inside]
    remainders = [min((s - (k << 16)) >> 10, 63) for s, k in zip(inside, below, strict=True)]
    rest = sum(s - (k << 16) for s, k in zip(steps, below, strict=True))
    up = min(max((rest + (1 << 15)) >> 16, 0), len(steps))
    for i in sorted(range(len(steps)), key=lambda i: (-remainders[i], i))[:up]:
        below[i] += 1
    return np.array(below, np.uint8).reshape(plane.shape)


@pytest.mark.parametrize("shape", [(3, 5, 1, 1), (2, 3, 1, 9), (2, 3, 9, 1), (2, 4, 5, 6), (1, 2, 80, 63)], ids=str)
@pytest.mark.parametrize(("low", "high", "levels"), [(0, 2, 2), (-1, 2, 7), (-3, -1, 256)])
@pytest.mark.parametrize("how", ["compiled", "interpreted"])
def test_the_largest_remainders_are_raised(
    shape: tuple[int, ...], low: float, high: float, levels: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer = Quantizer.uniform(low, high, levels)
    if how == "interpreted":
        compiled: tuple[Any, ...] = (kernels.apportion, kernels.raise_largest)
        for kernel in compiled:
            monkeypatch.setattr(kernels, kernel.__name__, kernel.py_func)
    x = np.random.default_rng(shape).normal(0.5, 1, shape).astype(np.float32)
    q = quantize(x, preserving(quantizer))
    planes = zip(x.reshape(-1, *shape[2:]), q.reshape(-1, *shape[2:]), strict=True)
    for plane, found in planes:
        np.testing.assert_array_equal(found, oracle(plane, quantizer))


def test_equal_values_are_raised_from_the_first_on() -> None:
    x = np.full((1, 1, 2, 5), 0.25, np.float32)
    np.testing.assert_array_equal(quantize(x, preserving(Quantizer.uniform(0, 1, 2))), [[[[1, 1, 1, 0, 0], [0] * 5]]])


def test_the_mean_of_a_plane_stays() -> None:
    """Within half a step over the number of elements, where nothing is clipped; without it, it does not."""
    x = np.random.default_rng(0).uniform(0, 2, (50, 1, 14, 14)).astype(np.float32) ** 2
    quantizer = Quantizer.uniform(0, 4, 3)
    with_it, without = (
        np.abs((dequantize(quantize(x, q), q) - x).mean((2, 3))).max() for q in (preserving(quantizer), quantizer)
    )
    assert with_it <= 1 / 14**2 + 1e-4
    assert without > 5 / 14**2


def test_no_element_is_further_than_a_step_from_its_level() -> None:
    x = np.random.default_rng(1).uniform(-1, 3, (20, 3, 7, 7)).astype(np.float32)
    quantizer = preserving(Quantizer.uniform(-1, 3, 4))
    assert np.abs(dequantize(quantize(x, quantizer), quantizer) - x).max() < 4 / 3 + 1e-4


def test_one_large_value_is_not_smeared_over_the_plane() -> None:
    x = np.zeros((1, 1, 4, 4), np.float32)
    x[0, 0, 1, 1] = 1e38
    assert (quantize(x, preserving(Quantizer.uniform(0, 1, 3))) > 0).sum() == 2
    assert not quantize(-x, preserving(Quantizer.uniform(0, 1, 3))).any()


def pair() -> tuple[CodecProfile, CodecProfile]:
    """A profile, and the same with its quantizers mean-preserving."""
    plain = make_profile(((4, 6, 7),), levels=(2, 4))
    points = tuple(
        msgspec.structs.replace(
            p, tensors=tuple(msgspec.structs.replace(t, quantizer=preserving(t.quantizer)) for t in p.tensors)
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
    quantizer = preserving(Quantizer.uniform(0, 2, 3))
    whole = quantize(x, quantizer)
    for b in range(2):
        for c in range(5):
            np.testing.assert_array_equal(quantize(x[b, c], quantizer), whole[b, c])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    x = np.zeros((1, 2, 3, 3), np.float32)
    x[0, 1, 2, 0] = value
    with pytest.raises(NonFiniteFeatures, match=r"1 of 18 .* index \(0, 1, 2, 0\)"):
        quantize(x, preserving(Quantizer.uniform(0, 1, 3)))


def test_levels_must_be_evenly_spaced() -> None:
    uneven = Quantizer(levels=(-1.0, 0.0, 0.25, 3.0), thresholds=(-0.75, 0.125, 1.0))
    with pytest.raises(ValueError, match="a mean-preserving quantizer needs evenly spaced levels"):
        preserving(uneven)
    written = msgspec.json.encode(uneven).replace(b'"thresholds"', b'"mean_preserving":true,"thresholds"')
    with pytest.raises(msgspec.ValidationError, match="evenly spaced"):
        msgspec.json.decode(written, type=Quantizer)


def test_the_field_is_left_out_where_it_is_not_used() -> None:
    plain, profile = pair()
    assert "mean_preserving" not in plain.to_json()
    assert "mean_preserving" in profile.to_json()
