"""Quantizers for a wanted number of bits per element, as the real coder spends them.

Two kinds. Entropy-constrained: the least squared error at that rate. Widened: uniform, with a clipping range that is a
multiple of the one with the least squared error. A wider range has larger steps, so fewer bits, and reaches larger
values; which number of levels serves the task best at a rate is for the caller to measure (exporter/points/budget.py).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from splitwire.codec.profile import Quantizer, TensorPoint

from .clipping import float32_quantizer
from .ecsq import ecsq_at_rate
from .point import Coder, choose_range, known_slope, make_point, varying
from .statistics import FeatureStatistics

MAX_LEVELS = 16
"""Of the entropy-constrained quantizer: two elements still fit into a block."""

FINE_STARTS = (32,)
"""Uniform quantizers that it is improved from, beside the one with its most levels. Many starting levels find a better
minimum, 1 to 18 % less error from 32 than from 16 (benchmarks/ecsq.py), if as few remain as wanted."""

STEPS = 6
MARGIN = 0.98
FIRST_GUESS = 1.2
"""A rate is met from below, to this share of it if it can be in so many attempts. The first assumes that the coder
needs 1/1.2 of the entropy."""

PILOTS = 3
"""Quantizers that show how the coder's rate goes with the entropy."""

NARROWEST, WIDEST = 0.8, 16.0
"""Multiples of the range with the least squared error that are considered."""

LEAST = 1e-9
"""Bits per element that count as none."""

BISECTIONS = 24
"""Of the multiple, on a logarithmic scale: to 2e-7 of it, about what float32 tells apart."""


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
    histogram = varying(statistics)
    slope = known_slope(histogram, slope)
    starts = []
    for n in sorted({max_levels, *FINE_STARTS}):
        if n >= max_levels:
            (c_min, c_max), clipping = choose_range(n, statistics, slope)
            starts.append((float32_quantizer(c_min, c_max, n), clipping))

    def point(entropy: float) -> tuple[TensorPoint, float]:
        results = [(ecsq_at_rate(histogram, start, entropy, tolerance=1e-3)[1], clipping) for start, clipping in starts]
        # the start with `max_levels` is always within them
        within = [(r, clipping) for r, clipping in results if len(r.quantizer.levels) <= max_levels]
        found, clipping = min(within, key=lambda r: r[0].distortion)
        return make_point(found.quantizer, clipping, statistics, coder)

    return _meet(bits, point, most=float(np.log2(max_levels)))


class Widening:
    """Uniform quantizers with N = `levels` over multiples of the range with the least squared error.

    The range grows away from zero, or from its end that is nearest to it: what is at rest stays exact.
    slope: as `design_operating_point` takes it. preserves_mean: whether the quantizers do; at the same width they then
    have a higher rate.
    Raises ExportError if the features are constant.
    """

    def __init__(
        self, levels: int, statistics: FeatureStatistics, slope: float | None = None, *, preserves_mean: bool = False
    ) -> None:
        self.levels, self.preserves_mean = levels, preserves_mean
        self._statistics = statistics
        self._histogram = varying(statistics)
        slope = known_slope(self._histogram, slope)
        self._range, self._clipping = choose_range(levels, statistics, slope)

    def quantizer(self, scale: float) -> Quantizer:
        """The range is `scale` times as wide."""
        low, high = self._range
        fixed = min(max(0.0, low), high)
        found = float32_quantizer(fixed + scale * (low - fixed), fixed + scale * (high - fixed), self.levels)
        return msgspec.structs.replace(found, mean_preserving=True) if self.preserves_mean else found

    def has(self, entropy: float) -> bool:
        """Whether some width has this entropy of order 0, bits per element, and uses the outermost level: without that
        it is the quantizer of fewer levels."""
        if not self._entropy(WIDEST) <= entropy <= self._entropy(NARROWEST):
            return False
        found = self.quantizer(self.scale_for(entropy))
        return (found.levels[-2] if self.preserves_mean else found.thresholds[-1]) <= self._histogram.maximum

    def scale_for(self, entropy: float) -> float:
        """The least width that has no more than this entropy, as near as there is one."""
        low, high = NARROWEST, WIDEST
        for _ in range(BISECTIONS):
            middle = float(np.sqrt(low * high))
            low, high = (low, middle) if self._entropy(middle) <= entropy else (middle, high)
        return high

    def for_entropy(self, entropy: float) -> Quantizer:
        """The quantizer of this entropy, as nearly as there is one from below."""
        return self.quantizer(self.scale_for(entropy))

    def point(self, scale: float) -> tuple[TensorPoint, float]:
        """The operating point whose range is `scale` times as wide, and what the coder spends on the sample."""
        clipping = msgspec.structs.replace(self._clipping, scale=scale)
        return make_point(self.quantizer(scale), clipping, self._statistics)

    def at(self, entropy: float) -> tuple[TensorPoint, float]:
        """The operating point of this entropy, as nearly as there is one, and what the coder spends on the sample."""
        return self.point(self.scale_for(entropy))

    def design(self, bits: float, *, entropy: float | None = None) -> tuple[TensorPoint, float]:
        """The operating point that spends at most `bits` per element on the sample, as nearly as there is one, and what
        it spends. entropy: a first guess. Raises ValueError unless bits > 0."""
        if not bits > 0:
            raise ValueError(f"need bits > 0; got {bits}")
        return _meet(bits, self.at, most=float(np.log2(self.levels)), first=entropy)

    def entropy(self, quantizer: Quantizer) -> float:
        """Bits per element of the level indices on the measured distribution, of order 0."""
        if self.preserves_mean:
            return self._histogram.mean_preserving_entropy(quantizer.levels)
        return self._histogram.entropy(quantizer.thresholds)

    def _entropy(self, scale: float) -> float:
        return self.entropy(self.quantizer(scale))


class RateOf:
    """What entropy of order 0 the coder codes at a rate, as a pilot's features show.

    A coder that knows the neighbours spends less than the entropy, by a share that depends on the features and changes
    slowly with the rate: it is taken from the pilot at some rates, and in between. between: the rates of interest.
    """

    def __init__(self, pilot: Widening, between: tuple[float, float]) -> None:
        low, high = between
        tried = np.geomspace(FIRST_GUESS * low, FIRST_GUESS**2 * high, PILOTS)
        points = [pilot.at(float(entropy)) for entropy in tried]
        self._spent = np.log([max(bits, LEAST) for _, bits in points])
        self._shares = np.log([max(pilot.entropy(p.quantizer), LEAST) for p, _ in points]) - self._spent

    def entropy(self, bits: float) -> float:
        """Bits per element: about what is spent, or a little more → the entropy."""
        aim = (1 + MARGIN) / 2 * bits
        return float(aim * np.exp(np.interp(np.log(aim), self._spent, self._shares)))


def _meet(
    bits: float,
    point: Callable[[float], tuple[TensorPoint, float]],
    *,
    most: float,
    first: float | None = None,
) -> tuple[TensorPoint, float]:
    """The best of some tried points, and its rate: the most bits that are affordable, or else the fewest.

    point: makes one of an entropy of order 0, and says what the coder spends on it. most: entropy that no point has
    more of. first: the entropy to begin with.
    """
    aim = (1 + MARGIN) / 2 * bits
    low, high = (0.0, LEAST), (np.inf, np.inf)  # entropies known to be affordable and not to be, and what they spend
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
