"""The clipping theory against the golden values of the paper's model, and the table design."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from codec_helpers import relu_features

from splitwire.codec.design import FeatureStatistics, design_operating_point
from splitwire.codec.design.clipping import (
    Error,
    best_c_max,
    best_range,
    density_error,
    kolmogorov_smirnov,
    uniform_cells,
)
from splitwire.codec.design.density import FeatureDensity, fit_density
from splitwire.codec.errors import ExportError, NonFiniteFeatures
from splitwire.codec.tables import TABLE_SIZE

# The golden values the project started from, recomputed by dense integration. One digit differs: the joint c_max for
# N = 6 is 11.0544 (the gradient of the error, integrated with 30 digits, is 2e-9 there, 1e-5 at 11.055).
# N: best c_max at c_min = 0, best (c_min, c_max), MSE at c_min = 0, order-0 entropy, P(q = 0)
GOLDEN = {
    2: (5.184, 0.361, 5.544, 1.645, 0.656, 0.831),
    3: (7.511, 0.147, 7.658, 0.834, 0.941, 0.777),
    4: (9.036, 0.053, 9.089, 0.526, 1.125, 0.743),
    5: (10.175, 0.001, 10.176, 0.371, 1.265, 0.718),
    6: (11.084, -0.030, 11.054, 0.280, 1.377, 0.700),
    7: (11.842, -0.051, 11.792, 0.222, 1.473, 0.686),
    8: (12.492, -0.065, 12.427, 0.181, 1.555, 0.674),
}


@pytest.fixture(scope="module")
def golden() -> FeatureDensity:
    density = fit_density(1.1235656, 4.9280124, slope=0.1)
    assert density is not None
    return density


def test_golden_parameters(golden: FeatureDensity) -> None:
    assert golden.rate == pytest.approx(0.7716595, abs=5e-7)
    assert golden.location == pytest.approx(-1.4350621, abs=5e-7)


@pytest.mark.parametrize("n", GOLDEN)
@pytest.mark.parametrize("by", ["closed form", "integration"])
def test_golden_ranges(golden: FeatureDensity, n: int, by: str) -> None:
    c_max, low, high, mse, entropy, p_zero = GOLDEN[n]
    error = density_error(golden) if by == "closed form" else integrated_error(golden)
    found = best_c_max(error, n, 50.0)
    assert found == pytest.approx(c_max, abs=6e-4)
    assert best_range(error, n, -2.0, 50.0) == pytest.approx((low, high), abs=6e-4)
    levels, thresholds = uniform_cells(0.0, found, n)
    assert error(levels, thresholds) == pytest.approx(mse, abs=6e-4)
    if by == "closed form":
        below = golden.cdf(np.array(thresholds)).tolist()
    else:
        below = [integrated(golden, lambda y, t=t: (y <= t).astype(float), (t,)) for t in thresholds]  # type: ignore[misc]  # mypy infers no lambda with a default
    p = np.diff([0.0, *below, 1.0])
    assert p[0] == pytest.approx(p_zero, abs=6e-4)
    assert -(p * np.log2(p)).sum() == pytest.approx(entropy, abs=6e-4)


NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)


def integrated(d: FeatureDensity, g: Callable[[np.ndarray], np.ndarray], corners: Sequence[float]) -> float:
    """E[g(Y)] by quadrature over X, the asymmetric Laplace variable before the activation: no piece, no closed form.

    corners: where g is not smooth, as values of Y. Between corners the integrand is smooth, and Gauss–Legendre on steps
    of at most one decay length is exact to rounding; beyond 80 decay lengths there is less than e^-80.
    """
    right, left = d.rate * d.kappa, d.rate / d.kappa
    low, high = d.location - 80 / left, d.location + 80 / right
    breaks = {low, high, d.location, 0.0, *(y if y >= 0 else y / d.slope for y in corners if y >= 0 or d.slope > 0)}
    total = 0.0
    for a, b in pairwise(sorted(x for x in breaks if low <= x <= high)):
        decay = right if a >= d.location else left
        edges = np.linspace(a, b, max(2, 1 + int(np.ceil((b - a) * decay))))
        half = np.diff(edges)[:, None] / 2
        x = edges[:-1, None] + half * (NODES + 1)
        density = d.rate / (d.kappa + 1 / d.kappa) * np.exp(-decay * np.abs(x - d.location))
        total += float((half * WEIGHTS * density * g(np.where(x >= 0, x, d.slope * x))).sum())
    return total


def integrated_error(d: FeatureDensity) -> Error:
    """e_tot of the paper, by quadrature."""

    def error(levels: Sequence[float], thresholds: Sequence[float]) -> float:
        value = np.array(levels)
        cells = np.array(thresholds)
        return integrated(d, lambda y: (y - value[np.searchsorted(cells, y, side="right")]) ** 2, thresholds)

    return error


def test_closed_form_agrees_with_integration() -> None:
    rng = np.random.default_rng(1)
    for _ in range(1000):
        d = FeatureDensity(
            rate=float(10 ** rng.uniform(-2, 2)), location=0.0,
            slope=float(rng.choice([0.0, 0.01, 0.1, 0.5, 0.99, rng.uniform()])), kappa=float(rng.uniform(0.2, 3)),
        )  # fmt: skip
        # everything on the scale of the density, with μ of either sign and ranges from tiny to far too wide
        scale = 1 / d.rate
        d = replace(d, location=float(rng.uniform(-4, 4)) * scale)
        n = int(rng.integers(2, 17))
        c_min = float(rng.choice([0.0, rng.uniform(-3, 3)])) * scale
        levels, thresholds = uniform_cells(c_min, c_min + float(10 ** rng.uniform(-1, 1.5)) * scale, n)
        assert d.quantization_error(levels, thresholds) == pytest.approx(
            integrated_error(d)(levels, thresholds), rel=1e-8, abs=0
        )
        mean = integrated(d, lambda y: y, ())
        variance = integrated(d, lambda y, m=mean: (y - m) ** 2, ())  # type: ignore[misc]  # mypy infers no lambda with a default
        assert d.moments() == pytest.approx((mean, variance), rel=1e-8, abs=1e-10 * scale)
        t = thresholds[n // 2 - 1]
        below = integrated(d, lambda y, t=t: (y <= t).astype(float), (t,))  # type: ignore[misc]  # mypy infers no lambda with a default
        assert d.cdf(np.array([t, np.inf])) == pytest.approx((below, 1.0), rel=1e-8)


@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("location", [-2.0, -0.3, 0.0, 1.5])
def test_fit_recovers_the_parameters(slope: float, location: float) -> None:
    truth = FeatureDensity(rate=1.7, location=location, slope=slope)
    mean, variance = truth.moments()
    found = fit_density(mean, variance, slope)
    assert found is not None
    assert (found.rate, found.location) == pytest.approx((1.7, location), rel=1e-6, abs=1e-6)


def test_fit_recovers_random_parameters() -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        rate = float(10 ** rng.uniform(-2, 2))
        slope, kappa = float(rng.choice([0.0, rng.uniform()])), float(rng.uniform(0.2, 3))
        truth = FeatureDensity(rate=rate, location=float(rng.uniform(-4, 4)) / rate, slope=slope, kappa=kappa)
        found = fit_density(*truth.moments(), slope, kappa)
        assert found is not None
        assert found.rate == pytest.approx(rate, rel=1e-6)
        assert found.location == pytest.approx(truth.location, rel=1e-6, abs=1e-6 / rate)


def test_fit_says_when_there_is_none() -> None:
    assert fit_density(10.0, 1e-6, 0.0) is None
    assert fit_density(0.5, 0.0, 0.0) is None
    assert fit_density(-3.0, 1.0, 0.0) is None


def test_statistics_stream_to_the_same_result_as_one_batch() -> None:
    x = relu_features((24, 6, 9, 9)) * np.linspace(0.1, 30, 24, dtype=np.float32)[:, None, None, None]
    whole, parts = FeatureStatistics(channels=6), FeatureStatistics(channels=6)
    whole.add(x)
    for i in range(0, 24, 5):
        parts.add(x[i : i + 5])
    assert parts.count == 24
    assert parts.mean == pytest.approx(float(x.mean(dtype=np.float64)), rel=1e-12)
    assert parts.variance == pytest.approx(float(x.var(dtype=np.float64)), rel=1e-9)
    a, b = whole.histogram, parts.histogram
    assert a.zero_mass == b.zero_mass == pytest.approx(float((x == 0).mean()))
    np.testing.assert_array_equal(a.centres, b.centres)
    np.testing.assert_array_equal(a.weights, b.weights)
    np.testing.assert_array_equal(parts.sample, x)


def test_sample_is_bounded() -> None:
    statistics = FeatureStatistics(channels=2, sample_bytes=10 * 2 * 4 * 4 * 4)
    for i in range(100):
        statistics.add(np.full((1, 2, 4, 4), i, np.float32))
    kept = statistics.sample[:, 0, 0, 0]
    assert kept.size == 10 and len(set(kept.tolist())) == 10 and kept.max() > 20


def test_non_finite_statistics_are_refused() -> None:
    x = relu_features((1, 2, 4, 4))
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteFeatures):
        FeatureStatistics(channels=2).add(x)


def test_point_says_which_method_made_it() -> None:
    truth = FeatureDensity(rate=1.0, location=-0.8, slope=0.0)
    rng = np.random.default_rng(0)
    right = rng.exponential(2.0, (64, 8, 8, 8))
    relu = np.where(rng.random(right.shape) < 1 - truth.zero_mass, right, 0).astype(np.float32)
    statistics = FeatureStatistics(channels=8)
    statistics.add(relu)
    point, _ = design_operating_point(levels=4, statistics=statistics)
    assert point.clipping.method == "relu_model" and point.clipping.ks_distance is not None
    assert point.clipping.ks_distance < 0.01
    density = fit_density(statistics.mean, statistics.variance, 0.0)
    assert density is not None and kolmogorov_smirnov(density, statistics.histogram) == point.clipping.ks_distance

    signed = FeatureStatistics(channels=8)
    signed.add(rng.normal(size=(16, 8, 8, 8)).astype(np.float32))
    point, _ = design_operating_point(levels=4, statistics=signed)
    assert point.clipping.method == "histogram" and point.clipping.reason
    low, high = point.quantizer.clipping_range
    assert low == pytest.approx(-high, rel=0.1) and high == pytest.approx(1.5, abs=0.25)


def test_constant_features_are_an_export_error() -> None:
    statistics = FeatureStatistics(channels=2)
    statistics.add(np.zeros((4, 2, 4, 4), np.float32))
    with pytest.raises(ExportError, match=r"every feature at this cut is 0\.0"):
        design_operating_point(levels=4, statistics=statistics)


def test_tables_sum_exactly_and_every_symbol_can_be_coded() -> None:
    statistics = FeatureStatistics(channels=5)
    statistics.add(relu_features((8, 5, 9, 7)))
    for n in (2, 3, 4, 6, 8, 16):
        point, bits = design_operating_point(levels=n, statistics=statistics)
        assert point.tables is not None
        symbols = n ** (point.tables.block[0] * point.tables.block[1])
        rows = point.tables.frequency_rows(symbols).astype(int)
        assert (rows.sum(axis=1) == TABLE_SIZE).all() and (rows[:, -1] >= 1).all()
        assert 0 < bits < np.log2(n) + 0.1
