"""Histograms that cost a fraction of a microsecond per value, and quantiles out of them.

`prometheus_client`'s own histograms take a lock per value and several microseconds (benchmarks/speed/metrics.py). These
have no lock: only the thread of the event loop uses them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

_STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
SECONDS = tuple(round(step * 10.0**exponent, 9) for exponent in range(-5, 2) for step in _STEPS)
"""Upper bounds of the cells for times: ten for each factor of ten, from 10 µs to 80 s."""
SHOWN_SECONDS = tuple(round(step * 10.0**exponent, 9) for exponent in range(-4, 2) for step in (1.0, 2.5, 5.0))
"""The bounds of SECONDS that Prometheus gets: 100 µs to 50 s."""
BITS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
"""Upper bounds for bits per element."""
IMAGES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Upper bounds for the number of images in a batch."""


class Histogram:
    """Counts of values between bounds, and their sum.

    bounds: upper bounds of the cells, ascending; a value that is equal to a bound belongs below it. cells: counts, one
    more than bounds, because the last cell has no bound.
    """

    __slots__ = ("bounds", "cells", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.cells = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.cells[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.cells)

    def cumulative(self, shown: Sequence[float]) -> list[tuple[float, int]]:
        """(bound, how many values are at most this), for some of the bounds."""
        rows: list[tuple[float, int]] = []
        below, at = 0, 0
        for bound in shown:
            while at < len(self.bounds) and self.bounds[at] <= bound:
                below += self.cells[at]
                at += 1
            rows.append((bound, below))
        return rows


def quantile(bounds: Sequence[float], cells: Sequence[int], share: float) -> float | None:
    """The value below which a share of all values lies, 0 to 1; None without values.

    Values count as spread evenly in their cell; those above the last bound as equal to it.
    """
    total = sum(cells)
    if not total:
        return None
    wanted = share * total
    below = 0.0
    for i, count in enumerate(cells):
        if count and below + count >= wanted:
            if i == len(bounds):
                break
            low = bounds[i - 1] if i else 0.0
            return low + (bounds[i] - low) * (wanted - below) / count
        below += count
    return bounds[-1]
