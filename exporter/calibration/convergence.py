"""Find the number of calibration images after which the clipping ranges and rates no longer changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.design import FeatureStatistics
from splitwire.codec.design.clipping import choose_range, known_slope, uniform_cells

FIRST_LOOK = 8
"""Number of images at the first check; each later check has twice as many."""

RANGE_TOLERANCE = 0.02
"""Largest change of an end of the clipping range until the last check, as a share of the range."""

RATE_TOLERANCE = 0.01
"""Largest relative change of the mean code length (order 0) until the last check."""


class Settling:
    """Checks ranges and rates at 8, 16, 32, … images, and at the end.

    levels: numbers of quantizer levels to check. slopes: per tensor, as for the design of quantizers.
    """

    def __init__(self, levels: Sequence[int], slopes: Sequence[float | None]) -> None:
        self._levels = list(levels)
        self._slopes = list(slopes)
        self._next = FIRST_LOOK
        self._counts: list[int] = []
        self._figures: list[NDArray[np.float64]] = []

    def look(self, statistics: Sequence[FeatureStatistics]) -> None:
        """Compute ranges and rates if a check is due."""
        if statistics[0].count >= self._next:
            self._take(statistics)
            while self._next <= statistics[0].count:
                self._next *= 2

    def finish(self, statistics: Sequence[FeatureStatistics]) -> None:
        """Compute the final ranges and rates, unless the last check has them."""
        if statistics[0].count and (not self._counts or self._counts[-1] != statistics[0].count):
            self._take(statistics)

    @property
    def settled(self) -> int | None:
        """The number of images at the first check from which all ranges and code lengths stayed within the tolerances
        of the final ones; None if only the last check is within them."""
        if len(self._counts) < 2:
            return None
        last = self._figures[-1]
        width = last[..., 1] - last[..., 0]
        settled = None
        for count, figures in reversed(list(zip(self._counts, self._figures, strict=True))[:-1]):
            moved = np.abs(figures - last)
            if (moved[..., :2].max(axis=-1) > RANGE_TOLERANCE * width).any():
                break
            if (moved[..., 2] > RATE_TOLERANCE * last[..., 2]).any():
                break
            settled = count
        return settled

    def _take(self, statistics: Sequence[FeatureStatistics]) -> None:
        pairs = zip(statistics, self._slopes, strict=True)
        self._figures.append(np.array([[_figures(n, s, slope) for n in self._levels] for s, slope in pairs]))
        self._counts.append(statistics[0].count)


def _figures(levels: int, statistics: FeatureStatistics, slope: float | None) -> tuple[float, float, float]:
    """(c_min, c_max, bits per element of order 0) for N = `levels` on the images so far."""
    histogram = statistics.histogram
    if histogram.minimum == histogram.maximum:  # no range yet; the design refuses it if that does not change
        return histogram.minimum, histogram.maximum, 0.0
    (c_min, c_max), _ = choose_range(levels, statistics, known_slope(histogram, slope))
    _, thresholds = uniform_cells(c_min, c_max, levels)
    return c_min, c_max, histogram.entropy(cast(Sequence[float], thresholds))
