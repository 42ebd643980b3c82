"""The clipping range with the least squared error for N levels, under the fitted density or the measured histogram."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from splitwire.codec.profile import Quantizer

from .density import FeatureDensity
from .statistics import Histogram

Error = Callable[[Sequence[float], Sequence[float]], float]
"""error(levels, thresholds) → mean squared error."""


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
