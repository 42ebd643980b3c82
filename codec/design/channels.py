"""What a clipping range for each channel would gain over the tensor's one range. A report: frames stay per tensor.

Each channel gets the range that its own features ask for, by the same rules as the tensor's (point.py): the density of
its mean and variance where that fits, else its histogram. A range of its own is a scale per channel, which can be
folded into the two graphs as ordinary operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .clipping import uniform_cells
from .point import choose_range, known_slope
from .statistics import Distribution, FeatureStatistics

Method = Literal["leaky_relu_model", "relu_model", "histogram", "constant"]


@dataclass(frozen=True, kw_only=True)
class ChannelRange:
    """One channel. c_min, c_max: its own range; both are its value where it never changes (method "constant").

    method, ks_distance, reason: how the range was found, as in Clipping. mean, variance: of the channel.
    error, shared_error: mean squared error with its own range and with the tensor's, at the same N. bits, shared_bits:
    entropy of order 0 of its level indices, bits per element, in the two cases.
    """

    c_min: float
    c_max: float
    method: Method
    ks_distance: float | None
    reason: str | None
    mean: float
    variance: float
    error: float
    shared_error: float
    bits: float
    shared_bits: float


@dataclass(frozen=True, kw_only=True)
class ChannelReport:
    """levels: N. shared: the tensor's (c_min, c_max). channels: in order. error, shared_error, bits, shared_bits: means
    over the channels.
    """

    levels: int
    shared: tuple[float, float]
    channels: Sequence[ChannelRange]
    error: float
    shared_error: float
    bits: float
    shared_bits: float

    @property
    def saving(self) -> float:
        """Share of the mean squared error that ranges per channel save at the same N, in [0, 1] but for a model's
        slack; 0 where there is no error to save."""
        return 1 - self.error / self.shared_error if self.shared_error > 0 else 0.0


def design_channel_ranges(*, levels: int, statistics: FeatureStatistics, slope: float | None = None) -> ChannelReport:
    """A clipping range for each channel, for N = `levels`, and what it does to error and rate.

    slope: of the (leaky) ReLU whose output the tensor is; None reads it off the whole tensor (point.py).
    Everything is measured on the feature maps that `statistics` keeps. The entropies are those of a coder that knows
    each channel's own distribution. A smaller error at the same N is not yet one at the same rate: compare the bits.
    """
    histogram = statistics.histogram
    slope = known_slope(histogram, slope)
    if histogram.minimum == histogram.maximum:
        shared = (histogram.minimum, histogram.maximum)
    else:
        shared = choose_range(levels, statistics, slope)[0]
    channels = [_design(levels, values, slope, shared) for values in statistics.by_channel()]

    def mean(field: str) -> float:
        return float(sum(getattr(c, field) for c in channels) / len(channels))

    return ChannelReport(
        levels=levels, shared=shared, channels=channels,
        error=mean("error"), shared_error=mean("shared_error"), bits=mean("bits"), shared_bits=mean("shared_bits"),
    )  # fmt: skip


def _design(levels: int, values: Distribution, slope: float | None, shared: tuple[float, float]) -> ChannelRange:
    histogram = values.histogram
    all_levels, all_thresholds = uniform_cells(*shared, levels)
    if histogram.minimum == histogram.maximum:
        value = histogram.minimum
        nearest = min(all_levels, key=lambda y: abs(y - value))
        return ChannelRange(
            c_min=value, c_max=value, method="constant", ks_distance=None, reason="every value is the same",
            mean=value, variance=0.0, error=0.0, shared_error=(value - nearest) ** 2, bits=0.0, shared_bits=0.0,
        )  # fmt: skip
    (c_min, c_max), clipping = choose_range(levels, values, slope)
    own_levels, own_thresholds = uniform_cells(c_min, c_max, levels)
    return ChannelRange(
        c_min=c_min,
        c_max=c_max,
        method=clipping.method,
        ks_distance=clipping.ks_distance,
        reason=clipping.reason,
        mean=values.mean,
        variance=values.variance,
        error=histogram.quantization_error(own_levels, own_thresholds),
        shared_error=histogram.quantization_error(all_levels, all_thresholds),
        bits=histogram.entropy(own_thresholds),
        shared_bits=histogram.entropy(all_thresholds),
    )
