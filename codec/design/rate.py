"""Quantizers for a target rate, in bits per element of the real coder.

There are two kinds. The entropy-constrained quantizer has the least squared error at the rate. The widened quantizer is
uniform, over a multiple of the clipping range with the least squared error. A wider range has larger steps, so fewer
bits, and reaches larger values. Which number of levels gives the least output distortion at a rate has to be measured
(exporter/points/budget.py).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from splitwire.codec.profile import Quantizer, TensorPoint
from splitwire.codec.tables import Taps

from .clipping import choose_range, float32_quantizer, known_slope
from .ecsq import ecsq_at_rate
from .point import Coder, make_point, varying
from .statistics import FeatureStatistics

MAX_ECSQ_LEVELS = 16
"""Most levels of the entropy-constrained quantizer: two elements still fit into a block."""

FINE_STARTS = (32,)
"""Numbers of levels of the uniform quantizers to start from, beside `max_levels`. More starting levels find a better
minimum: 1 to 18 % less error from 32 than from 16 (benchmarks/quality/ecsq.py), if no more than `max_levels` remain."""

STEPS = 6
MARGIN = 0.98
FIRST_GUESS = 1.2
"""The search for a rate tries STEPS points and ends at one between MARGIN times the rate and the rate. The first guess
is that the entropy is 1.2 times the coder's rate."""

PILOTS = 3
"""Number of quantizers that sample the coder's rate as a function of the entropy."""

NARROWEST, WIDEST = 0.8, 16.0
"""Multiples of the range with the least squared error that are considered."""

LEAST = 1e-9
"""Entropies below this, in bits per element, count as 0."""

BISECTIONS = 24
"""Steps of the bisection of the multiple, on a logarithmic scale: to a relative 2e-7, about float32's precision."""


def design_entropy_constrained(
    *,
    bits: float,
    statistics: FeatureStatistics,
    slope: float | None = None,
    coder: Coder = "rans",
    max_levels: int = MAX_ECSQ_LEVELS,
    taps: Taps | None = None,
) -> tuple[TensorPoint, float]:
    """Design the entropy-constrained quantizer with the least squared error at `bits` per element of the real coder.

    Whether the outputs are better as well has to be measured (docs/codec.md). The design takes some seconds.
    bits: a rate as `design_operating_point` reports it. With a uniform quantizer's rate, the result has the same rate
    and less error. slope, coder, taps: as there. max_levels: the most levels; λ_R decides how many
    remain, at least 2.
    Returns the point and its rate on the sample. The rate is at most `bits` if such a point exists, and seldom more
    than a few per cent below, unless `max_levels` levels cannot have that rate.
    Raises ExportError if the features are constant, or ValueError unless bits > 0 and max_levels ≥ 2.
    """
    if not bits > 0 or max_levels < 2:
        raise ValueError(f"need bits > 0 and at least 2 levels; got {bits} and {max_levels}")
    histogram = varying(statistics)
    slope = known_slope(histogram, slope)
    starts = []
    for n in sorted({max_levels, *FINE_STARTS}):
        if n >= max_levels:
            (c_min, c_max), clipping = choose_range(n, statistics, slope)
            starts.append((float32_quantizer(c_min, c_max, n), clipping))

    def point(entropy: float) -> tuple[TensorPoint, float]:
        results = [(ecsq_at_rate(histogram, start, entropy, tolerance=1e-3)[1], clipping) for start, clipping in starts]
        # Starting from `max_levels` levels always keeps within them.
        within = [(r, clipping) for r, clipping in results if len(r.quantizer.levels) <= max_levels]
        found, clipping = min(within, key=lambda r: r[0].distortion)
        return make_point(found.quantizer, clipping, statistics, coder, taps)

    return _meet(bits, point, most=float(np.log2(max_levels)))


class Widening:
    """Uniform quantizers with N = `levels` over multiples of the range with the least squared error.

    The range grows away from zero, or from its end nearest to zero, so that zero stays exact.
    slope, taps: as `design_operating_point` takes them. preserves_mean: whether the quantizers preserve the mean; at
    the same width their rate is then higher.
    Raises ExportError if the features are constant.
    """

    def __init__(
        self,
        levels: int,
        statistics: FeatureStatistics,
        slope: float | None = None,
        *,
        taps: Taps | None = None,
        preserves_mean: bool = False,
    ) -> None:
        self.levels, self.preserves_mean = levels, preserves_mean
        self._statistics = statistics
        self._taps = taps
        self._histogram = varying(statistics)
        slope = known_slope(self._histogram, slope)
        self._range, self._clipping = choose_range(levels, statistics, slope)

    def quantizer(self, scale: float) -> Quantizer:
        """The quantizer whose range is `scale` times as wide."""
        low, high = self._range
        fixed = min(max(0.0, low), high)
        found = float32_quantizer(fixed + scale * (low - fixed), fixed + scale * (high - fixed), self.levels)
        return msgspec.structs.replace(found, mean_preserving=True) if self.preserves_mean else found

    def has(self, entropy: float) -> bool:
        """Whether some width has this zeroth-order entropy, bits per element, and uses the outermost level.

        A quantizer that never uses its outermost level is one of fewer levels.
        """
        if not self._entropy(WIDEST) <= entropy <= self._entropy(NARROWEST):
            return False
        found = self.quantizer(self.scale_for(entropy))
        return (found.levels[-2] if self.preserves_mean else found.thresholds[-1]) <= self._histogram.maximum

    def scale_for(self, entropy: float) -> float:
        """The least multiple of the range whose entropy is at most this, or the nearest to it."""
        low, high = NARROWEST, WIDEST
        for _ in range(BISECTIONS):
            middle = float(np.sqrt(low * high))
            low, high = (low, middle) if self._entropy(middle) <= entropy else (middle, high)
        return high

    def for_entropy(self, entropy: float) -> Quantizer:
        """The quantizer with the largest entropy that is at most this one."""
        return self.quantizer(self.scale_for(entropy))

    def point(self, scale: float) -> tuple[TensorPoint, float]:
        """The operating point whose range is `scale` times as wide, and its rate on the sample, bits per element."""
        clipping = msgspec.structs.replace(self._clipping, scale=scale)
        return make_point(self.quantizer(scale), clipping, self._statistics, taps=self._taps)

    def at(self, entropy: float) -> tuple[TensorPoint, float]:
        """The operating point nearest to this entropy, and its rate on the sample, bits per element."""
        return self.point(self.scale_for(entropy))

    def design(self, bits: float, *, entropy: float | None = None) -> tuple[TensorPoint, float]:
        """The operating point with the highest rate of at most `bits` per element on the sample, and that rate.

        entropy: a first guess. Raises ValueError unless bits > 0.
        """
        if not bits > 0:
            raise ValueError(f"need bits > 0; got {bits}")
        return _meet(bits, self.at, most=float(np.log2(self.levels)), first=entropy)

    def entropy(self, quantizer: Quantizer) -> float:
        """Zeroth-order entropy of the level indices on the measured distribution, bits per element."""
        if self.preserves_mean:
            return self._histogram.mean_preserving_entropy(quantizer.levels)
        return self._histogram.entropy(quantizer.thresholds)

    def _entropy(self, scale: float) -> float:
        return self.entropy(self.quantizer(scale))


class RateOf:
    """Estimates which zeroth-order entropy the coder codes at a given rate, from pilot quantizers.

    A coder that knows the neighbours needs fewer bits than the entropy. The share it saves depends on the features and
    changes slowly with the rate: it is measured at some rates and interpolated. between: the range of rates.
    """

    def __init__(self, pilot: Widening, between: tuple[float, float]) -> None:
        low, high = between
        tried = np.geomspace(FIRST_GUESS * low, FIRST_GUESS**2 * high, PILOTS)
        points = [pilot.at(float(entropy)) for entropy in tried]
        self._spent = np.log([max(bits, LEAST) for _, bits in points])
        self._shares = np.log([max(pilot.entropy(p.quantizer), LEAST) for p, _ in points]) - self._spent

    def entropy(self, bits: float) -> float:
        """The zeroth-order entropy at a rate of `bits` per element; the estimate is right or a little high."""
        aim = (1 + MARGIN) / 2 * bits
        return float(aim * np.exp(np.interp(np.log(aim), self._spent, self._shares)))


def _meet(
    bits: float,
    point: Callable[[float], tuple[TensorPoint, float]],
    *,
    most: float,
    first: float | None = None,
) -> tuple[TensorPoint, float]:
    """Search for the point with the highest rate of at most `bits`; returns it with its rate.

    If every point that was tried has a higher rate, the one with the lowest rate is returned.
    point: makes the point of a zeroth-order entropy, and returns its rate as well. most: the largest entropy of any
    point. first: the entropy to begin with.
    """
    aim = (1 + MARGIN) / 2 * bits
    low, high = (0.0, LEAST), (np.inf, np.inf)  # (entropy, rate) known to be within `bits`, and known to be above
    entropy = FIRST_GUESS * bits if first is None else first
    tried = []
    for _ in range(STEPS):
        made, spent = point(entropy)
        tried.append((made, spent))
        if MARGIN * bits <= spent <= bits:
            break
        found = (entropy, max(spent, LEAST))
        low, high = (found, high) if spent <= bits else (low, found)
        if low[0] > 0 and high[0] < np.inf:
            entropy = float(np.exp(np.interp(np.log(aim), np.log([low[1], high[1]]), np.log([low[0], high[0]]))))
        else:
            entropy *= aim / found[1]
        if not low[0] < entropy < high[0]:
            entropy = (low[0] + high[0]) / 2 if high[0] < np.inf else 2 * low[0]
        if high[0] - low[0] < (1 - MARGIN) * entropy or entropy > most:
            break
    affordable = [t for t in tried if t[1] <= bits]
    return max(affordable, key=lambda t: t[1]) if affordable else min(tried, key=lambda t: t[1])
