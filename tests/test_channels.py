"""Clipping ranges per channel against direct computation on features whose channels are known."""

from __future__ import annotations

import numpy as np
import pytest
from codec_helpers import Float32Array

from splitwire.codec.design import FeatureStatistics, design_channel_ranges
from splitwire.codec.design.clipping import best_c_max, density_error
from splitwire.codec.design.density import FeatureDensity, fit_density
from splitwire.codec.design.point import choose_range
from splitwire.codec.profile import Quantizer
from splitwire.codec.quantizer import dequantize, quantize

SLOPE = 0.1
RATES = (0.3, 1.0, 4.0)
"""λ of the three channels that follow the paper's density."""


def leaky_features(images: int = 256, side: int = 14, seed: int = 0) -> Float32Array:
    """(n, 5, side, side): RATES channels of leaky ReLU behind an asymmetric Laplace variable (κ = 0.5, λμ = −1), then
    a dead one and one that is 2.5 everywhere."""
    rng = np.random.default_rng(seed)
    shape = (images, side, side)
    out = np.zeros((images, 5, side, side), np.float32)
    for c, rate in enumerate(RATES):
        x = -1 / rate + rng.exponential(2 / rate, shape) - rng.exponential(0.5 / rate, shape)
        out[:, c] = np.where(x >= 0, x, SLOPE * x)
    out[:, 4] = 2.5
    return out


def statistics_of(x: Float32Array) -> FeatureStatistics:
    statistics = FeatureStatistics(channels=x.shape[1])
    for batch in np.array_split(x, 7):
        statistics.add(batch)
    return statistics


def uniform_error(x: Float32Array, c_min: float, c_max: float, n: int) -> float:
    """By the codec's own quantizer, element by element."""
    quantizer = Quantizer.uniform(c_min, c_max, n)
    return float(np.square(x - dequantize(quantize(x, quantizer), quantizer), dtype=np.float64).mean())


def order_0(x: Float32Array, c_min: float, c_max: float, n: int) -> float:
    p = np.bincount(quantize(x, Quantizer.uniform(c_min, c_max, n)).reshape(-1)) / x.size
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())


@pytest.mark.parametrize("n", [2, 4, 8])
def test_each_channel_gets_the_range_of_its_own_density(n: int) -> None:
    x = leaky_features()
    report = design_channel_ranges(levels=n, statistics=statistics_of(x), slope=SLOPE)
    for channel, rate, values in zip(report.channels, RATES, x.transpose(1, 0, 2, 3), strict=False):
        assert channel.method == "leaky_relu_model" and channel.reason is None
        assert channel.ks_distance is not None and channel.ks_distance < 0.01
        # what the moments of the channel ask for …
        direct = fit_density(float(values.mean(dtype=np.float64)), float(values.var(dtype=np.float64)), SLOPE)
        assert direct is not None
        assert channel.c_min == 0
        assert channel.c_max == pytest.approx(best_c_max(density_error(direct), n, 40 / rate), rel=1e-5)
        # … and what the density that it was drawn from asks for
        truth = FeatureDensity(rate=rate, location=-1 / rate, slope=SLOPE)
        assert channel.c_max == pytest.approx(best_c_max(density_error(truth), n, 40 / rate), rel=0.05)
        assert channel.error == pytest.approx(uniform_error(values, 0.0, channel.c_max, n), rel=2e-3)
        assert channel.shared_error == pytest.approx(uniform_error(values, *report.shared, n), rel=2e-3)
        assert channel.bits == pytest.approx(order_0(values, 0.0, channel.c_max, n), abs=2e-3)
        assert channel.shared_bits == pytest.approx(order_0(values, *report.shared, n), abs=2e-3)


def test_the_saving_is_that_of_the_elements() -> None:
    x, n = leaky_features(seed=1), 4
    statistics = statistics_of(x)
    report = design_channel_ranges(levels=n, statistics=statistics, slope=SLOPE)
    assert report.levels == n and len(report.channels) == 5
    assert report.shared == choose_range(n, statistics, SLOPE)[0]
    own = [
        0.0 if c.method == "constant" else uniform_error(values, c.c_min, c.c_max, n)
        for c, values in zip(report.channels, x.transpose(1, 0, 2, 3), strict=True)
    ]
    shared = uniform_error(x, *report.shared, n)
    assert report.saving == pytest.approx(1 - np.mean(own) / shared, abs=2e-3)
    assert 0.1 < report.saving < 1  # λ of 0.3 and 4: one range cannot suit both
    assert report.bits > report.shared_bits  # what it costs: the quiet channels now use all levels


def test_dead_and_constant_channels_have_no_error_of_their_own() -> None:
    report = design_channel_ranges(levels=4, statistics=statistics_of(leaky_features()), slope=SLOPE)
    dead, constant = report.channels[3:]
    for channel, value in ((dead, 0.0), (constant, 2.5)):
        assert channel.method == "constant" and channel.reason and channel.ks_distance is None
        assert (channel.c_min, channel.c_max, channel.mean, channel.variance) == (value, value, value, 0.0)
        assert channel.error == channel.bits == channel.shared_bits == 0
    low, high = report.shared
    levels = np.linspace(low, high, 4)
    assert dead.shared_error == pytest.approx(np.square(levels).min(), abs=1e-12)
    assert constant.shared_error == pytest.approx(np.square(levels - 2.5).min())


def test_a_tensor_that_never_changes_has_nothing_to_save() -> None:
    report = design_channel_ranges(levels=4, statistics=statistics_of(np.full((8, 3, 4, 4), 1.5, np.float32)))
    assert report.shared == (1.5, 1.5) and report.saving == report.error == report.shared_error == 0
    assert {c.method for c in report.channels} == {"constant"}


def test_channels_that_no_density_fits_go_by_their_histogram() -> None:
    """Signed features, and without a slope nothing is assumed; each range is then the best of its own channel."""
    scales = np.array([0.2, 1.0, 3.0], np.float32)
    x = np.random.default_rng(3).normal(size=(64, 3, 12, 12)).astype(np.float32) * scales[:, None, None]
    report = design_channel_ranges(levels=8, statistics=statistics_of(x))
    for channel, scale, values in zip(report.channels, scales.tolist(), x.transpose(1, 0, 2, 3), strict=True):
        assert channel.method == "histogram" and channel.reason
        # Max 1960: the best 8-level uniform quantizer of a normal variable has levels from −2.051σ to 2.051σ
        assert (channel.c_min, channel.c_max) == pytest.approx((-2.05 * scale, 2.05 * scale), rel=0.08)
        near = [uniform_error(values, channel.c_min * f, channel.c_max * f, 8) for f in (0.93, 1.0, 1.07)]
        assert min(near) == near[1]
    relu = design_channel_ranges(levels=8, statistics=statistics_of(np.maximum(x, 0)))
    assert {c.method for c in relu.channels} <= {"relu_model", "histogram"}  # slope 0 was read off the tensor
    assert all(c.ks_distance is not None and c.ks_distance > 0.005 for c in relu.channels)
    assert all(c.c_min == 0 for c in relu.channels)


def test_a_bounded_sample_is_enough() -> None:
    """The channels come from the feature maps kept, so memory stays bounded and the ranges nearly the same."""
    x = leaky_features()
    few = FeatureStatistics(channels=5, sample_bytes=x[:64].nbytes)
    few.add(x)
    assert len(few.sample) == 64
    sampled = design_channel_ranges(levels=4, statistics=few, slope=SLOPE)
    whole = design_channel_ranges(levels=4, statistics=statistics_of(x), slope=SLOPE)
    assert [c.c_max for c in sampled.channels] == pytest.approx([c.c_max for c in whole.channels], rel=0.05)
    assert sampled.saving == pytest.approx(whole.saving, abs=0.02)
