"""The choice of a clipping range: the one with the least squared error for N levels, under the fitted density where
that fits the features, else under their histogram."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from splitwire.codec.profile import Clipping, Quantizer

from .density import FeatureDensity, fit_density
from .statistics import Distribution, Histogram

Error = Callable[[Sequence[float], Sequence[float]], float]
"""error(levels, thresholds) → mean squared error."""

MAX_EXCESS = 0.10
"""The fitted density is used if its range costs at most this much more error than the histogram's own optimum."""


def known_slope(histogram: Histogram, slope: float | None) -> float | None:
    """The slope as given. If None: 0 for features that look like a ReLU's, with exact zeros and no negative value."""
    if slope is None and histogram.minimum >= 0 and histogram.zero_mass > 0:
        return 0.0
    return slope


def choose_range(levels: int, values: Distribution, slope: float | None) -> tuple[tuple[float, float], Clipping]:
    """(c_min, c_max) and how it was chosen: with the fitted density where that fits, else with the histogram."""
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
    found, least = (measured(*uniform_cells(*r, levels)) for r in (by_density, by_histogram))
    if found > (1 + MAX_EXCESS) * least:
        more = f"{found / least - 1:.0%} more error" if least > 0 else "an error where there need be none"
        reason = f"the fitted density's range [0, {by_density[1]:.4g}] has {more} on the features"
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
    # The bin of exact zeros has no width: its edge is zero itself.
    edges[histogram.centres[order] == 0] = 0.0
    return float(np.abs(density.cdf(edges) - measured).max())


def uniform_cells(c_min: float, c_max: float, n: int) -> tuple[list[float], list[float]]:
    """Levels and thresholds of the uniform quantizer with pinned ends, in float64."""
    step = (c_max - c_min) / (n - 1)
    levels = [c_min + q * step for q in range(n)]
    return levels, [(a + b) / 2 for a, b in pairwise(levels)]


def best_c_max(error: Error, n: int, upper: float, c_min: float = 0.0) -> float:
    """The c_max with the least total error for a fixed c_min. upper: the largest c_max that is considered."""

    def cost(c_max: float) -> float:
        return error(*uniform_cells(c_min, c_max, n))

    # The error of a mixture can have several minima: take the best of a grid, then refine between its neighbours.
    grid = c_min + (upper - c_min) * np.geomspace(1e-3, 1.0, 80)
    i = int(np.argmin([cost(float(c)) for c in grid]))
    low, high = float(grid[max(i - 1, 0)]), float(grid[min(i + 1, grid.size - 1)])
    found = minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-9 * upper})
    return float(found.x)


def best_range(error: Error, n: int, lower: float, upper: float) -> tuple[float, float]:
    """The (c_min, c_max) with the least total error. The search starts at c_min = 0 or a little below, whichever is
    better."""

    def cost(c: np.ndarray) -> float:
        return error(*uniform_cells(float(c[0]), float(c[1]), n)) if c[0] < c[1] else np.inf

    starts = [(c, best_c_max(error, n, upper, c)) for c in (0.0, lower / 4) if c < upper]
    start = min(starts, key=lambda s: cost(np.array(s)))
    found = minimize(
        cost, np.array(start), method="Nelder-Mead",
        options={"xatol": 1e-9 * upper, "fatol": 0.0, "maxiter": 600},
    )  # fmt: skip
    return float(found.x[0]), float(found.x[1])


def density_error(density: FeatureDensity) -> Error:
    """Total error under the fitted density, in closed form."""
    return density.quantization_error


def histogram_error(histogram: Histogram) -> Error:
    """Total error on the measured distribution."""
    return histogram.quantization_error


def float32_quantizer(c_min: float, c_max: float, n: int) -> Quantizer:
    """The profile's quantizer for a range found in float64; a range too narrow for float32 is widened to be valid."""
    low = float(np.float32(c_min))
    high = float(np.float32(c_max))
    if not high - low > 1e-6 * max(abs(low), abs(high), 1e-30):
        high = low + max(abs(low), 1.0) * 1e-3
    return Quantizer.uniform(low, high, n)
