"""One tensor at one operating point: clipping range, quantizer and tables from the statistics of the features."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.entropy.cabac import AdaptiveBinary
from splitwire.codec.errors import ExportError
from splitwire.codec.profile import Clipping, ContextTables, Quantizer, TensorPoint
from splitwire.codec.quantizer import quantize

from .clipping import best_c_max, best_range, density_error, float32_quantizer, histogram_error, uniform_cells
from .density import FeatureDensity, fit_density
from .ecsq import design_ecsq, ecsq_at_rate
from .statistics import Distribution, FeatureStatistics, Histogram
from .tables import estimate_tables

MAX_EXCESS = 0.10
"""The fitted density is used if its range costs at most this much more error than the histogram's own optimum."""

MAX_LEVELS = 16
"""Of the entropy-constrained quantizer: two elements still fit into a block."""

FINE_STARTS = (32,)
"""Uniform quantizers that it is improved from, beside the one with its most levels. Many starting levels find a better
minimum, 1 to 18 % less error from 32 than from 16 (benchmarks/ecsq.py), if as few remain as wanted."""

RATE_STEPS = 6
RATE_MARGIN = 0.98
FIRST_GUESS = 1.2
"""A target rate is met from below, to this share of it if it can be in so many attempts. The first assumes that the
coder needs 1/1.2 of the entropy."""

Coder = Literal["rans", "cabac"]


def design_operating_point(
    *,
    levels: int,
    statistics: FeatureStatistics,
    slope: float | None = None,
    rate_weight: float | None = None,
    coder: Coder = "rans",
) -> tuple[TensorPoint, float]:
    """Quantizer, tables and expected rate for N = `levels`.

    slope: of the (leaky) ReLU whose output the tensor is; None reads it off the features (no negative value and exact
    zeros: 0; anything else: unknown, the histogram decides).
    rate_weight: λ_R of the entropy-constrained quantizer (ecsq.py), squared feature units per bit, at which levels may
        go; None leaves the quantizer uniform.
    coder: the context rANS, with tables made here, or the paper's adaptive binary coder, which needs none.
    Returns the point and its rate on the sample, bits per element.
    Raises ExportError if the features are constant.
    """
    histogram = _varying(statistics)
    (c_min, c_max), clipping = choose_range(levels, statistics, known_slope(histogram, slope))
    quantizer = float32_quantizer(c_min, c_max, levels)
    if rate_weight is not None:
        quantizer = design_ecsq(histogram, quantizer, rate_weight=rate_weight).quantizer
    tables, bits = _coded(statistics.sample, quantizer, coder)
    return TensorPoint(quantizer=quantizer, clipping=clipping, tables=tables), bits


def design_entropy_constrained(
    *,
    bits: float,
    statistics: FeatureStatistics,
    slope: float | None = None,
    coder: Coder = "rans",
    max_levels: int = MAX_LEVELS,
) -> tuple[TensorPoint, float]:
    """The entropy-constrained quantizer for a target rate: the least error at `bits` per element of the real coder.

    Least squared error; whether the task gains has to be measured (docs/codec.md). It takes some seconds.
    bits: as `design_operating_point` reports them; a uniform quantizer's, to get a point of the same rate with less
    error. slope, coder: as there. max_levels: N is what λ_R leaves, 2 to this.
    Returns the point and its rate on the sample: at most `bits` where that can be had, and seldom more than a few per
    cent below, unless `max_levels` levels cannot use so many.
    Raises ExportError if the features are constant, or ValueError unless bits > 0 and max_levels ≥ 2.
    """
    if not bits > 0 or max_levels < 2:
        raise ValueError(f"need bits > 0 and at least 2 levels; got {bits} and {max_levels}")
    histogram = _varying(statistics)
    slope = known_slope(histogram, slope)
    starts = []
    for n in sorted({max_levels, *FINE_STARTS}):
        if n >= max_levels:
            (c_min, c_max), clipping = choose_range(n, statistics, slope)
            starts.append((float32_quantizer(c_min, c_max, n), clipping))
    sample = statistics.sample
    # A coder that knows the neighbours spends less than the entropy of order 0, by a share that changes slowly with the
    # rate. low, high: entropies known to be affordable and not to be.
    low, high, rate = 0.0, np.inf, FIRST_GUESS * bits
    tried = []
    for _ in range(RATE_STEPS):
        results = [(ecsq_at_rate(histogram, start, rate, tolerance=1e-3)[1], clipping) for start, clipping in starts]
        # the start with `max_levels` is always within them
        within = [(r, clipping) for r, clipping in results if len(r.quantizer.levels) <= max_levels]
        found, clipping = min(within, key=lambda r: r[0].distortion)
        tables, coded = _coded(sample, found.quantizer, coder)
        tried.append((TensorPoint(quantizer=found.quantizer, clipping=clipping, tables=tables), coded))
        if RATE_MARGIN * bits <= coded <= bits:
            break
        low, high = (rate, high) if coded <= bits else (low, rate)
        rate *= (1 + RATE_MARGIN) / 2 * bits / max(coded, 1e-9)
        if not low < rate < high:
            rate = (low + high) / 2 if high < np.inf else 2 * low
        if high - low < (1 - RATE_MARGIN) * rate or rate > np.log2(max_levels):
            break
    affordable = [t for t in tried if t[1] <= bits]
    return max(affordable, key=lambda t: t[1]) if affordable else min(tried, key=lambda t: t[1])


def _varying(statistics: FeatureStatistics) -> Histogram:
    """The histogram. Raises ExportError if there is but one value."""
    histogram = statistics.histogram
    if histogram.minimum == histogram.maximum:
        raise ExportError(
            f"every feature at this cut is {histogram.minimum}: there is nothing to send; "
            "cut elsewhere or check the data"
        )
    return histogram


def _coded(sample: NDArray[np.float32], quantizer: Quantizer, coder: Coder) -> tuple[ContextTables | None, float]:
    """Tables, and bits per element on the sample."""
    if coder == "cabac":
        return None, adaptive_rate(sample, quantizer)
    return estimate_tables(sample, quantizer)


def adaptive_rate(sample: NDArray[np.float32], quantizer: Quantizer) -> float:
    """Bits per element of the adaptive binary coder on (n, C, H, W) features, each image coded on its own."""
    q = quantize(sample, quantizer)
    entropy = AdaptiveBinary(len(quantizer.levels))
    return sum(8 * len(entropy.encode(image.reshape(-1), *image.shape[1:])[0]) for image in q) / q.size


def known_slope(histogram: Histogram, slope: float | None) -> float | None:
    """The slope as given; else 0 for what looks like a ReLU: no negative value, and exact zeros."""
    if slope is None and histogram.minimum >= 0 and histogram.zero_mass > 0:
        return 0.0
    return slope


def choose_range(levels: int, values: Distribution, slope: float | None) -> tuple[tuple[float, float], Clipping]:
    """(c_min, c_max) and how it was found: by the density where it fits, else on the histogram."""
    histogram = values.histogram
    measured = histogram_error(histogram)
    upper = max(abs(histogram.minimum), abs(histogram.maximum))
    if histogram.minimum >= 0:
        by_histogram = (0.0, best_c_max(measured, levels, upper))
    else:
        by_histogram = best_range(measured, levels, histogram.minimum, upper)
    if slope is None:
        return by_histogram, Clipping(method="histogram", reason="the features are not of a ReLU or leaky ReLU")
    density = fit_density(values.mean, values.variance, slope)
    if density is None:
        return by_histogram, Clipping(method="histogram", reason="no density has this mean and variance")
    distance = kolmogorov_smirnov(density, histogram)
    by_density = (0.0, best_c_max(density_error(density), levels, 2 * upper))
    excess = measured(*uniform_cells(*by_density, levels)) / measured(*uniform_cells(*by_histogram, levels)) - 1
    if excess > MAX_EXCESS:
        reason = f"the fitted density's range [0, {by_density[1]:.4g}] has {excess:.0%} more error on the features"
        return by_histogram, Clipping(method="histogram", ks_distance=distance, reason=reason)
    return by_density, Clipping(
        method="relu_model" if slope == 0 else "leaky_relu_model",
        ks_distance=distance,
        rate=density.rate,
        location=density.location,
    )


def kolmogorov_smirnov(density: FeatureDensity, histogram: Histogram) -> float:
    """Largest distance between the fitted and the measured distribution function, at the bin edges."""
    order = np.argsort(histogram.centres, kind="stable")
    edges = histogram.centres[order] + histogram.width / 2
    measured = np.cumsum(histogram.weights[order])
    # the zero bin is a point: its edge is zero itself
    edges[histogram.centres[order] == 0] = 0.0
    return float(np.abs(density.cdf(edges) - measured).max())
