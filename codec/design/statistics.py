"""Feature statistics from one streaming pass over the calibration images: moments, a histogram, a bounded sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import NonFiniteFeatures
from splitwire.codec.kernels import statistics as kernels

BINS = 8192
SAMPLE_BYTES = 256 << 20
"""Most bytes of feature maps that are kept for the tables."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """The measured distribution. centres: (bins,) float64. weights: (bins,) float64, probabilities that sum to 1.

    Exact zeros have a separate bin, so that the point mass of a ReLU stays a point.
    """

    centres: NDArray[np.float64]
    weights: NDArray[np.float64]
    width: float
    zero_mass: float
    minimum: float
    maximum: float

    @cached_property
    def ordered(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(bins,) centres in increasing order, and their weights."""
        order = np.argsort(self.centres, kind="stable")
        return self.centres[order], self.weights[order]

    @cached_property
    def _sums(self) -> NDArray[np.float64]:
        """(3, bins + 1) cumulative sums of w, w·c and w·c², in increasing order of c."""
        c, w = self.ordered
        sums = np.zeros((3, c.size + 1))
        np.cumsum([w, w * c, w * c * c], axis=1, out=sums[:, 1:])
        return sums

    def edges(self, thresholds: Sequence[float] | NDArray[np.float64]) -> NDArray[np.intp]:
        """(N + 1,) index of the ordered bin where each cell begins; the last entry is the number of bins."""
        centres = self.ordered[0]
        inner = np.searchsorted(centres, np.asarray(thresholds), side="left")
        return np.concatenate([[0], inner, [centres.size]])

    def cells(self, thresholds: Sequence[float] | NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Per cell: (N,) probability, (N,) ∫y, (N,) ∫y². Each bin counts at its centre."""
        return tuple(np.diff(self._sums[:, self.edges(thresholds)], axis=1))

    def quantization_error(self, levels: Sequence[float], thresholds: Sequence[float]) -> float:
        """Mean squared error of the quantizer on the measured distribution. The time it takes depends on N only."""
        mass, first, second = self.cells(thresholds)
        y = np.asarray(levels)
        return max(float((second - 2 * y * first + y * y * mass).sum()), 0.0)

    def entropy(self, thresholds: Sequence[float]) -> float:
        """Zeroth-order entropy of the level indices, bits per element."""
        return _entropy(np.maximum(self.cells(thresholds)[0], 0.0))

    def mean_preserving_entropy(self, levels: Sequence[float]) -> float:
        """Zeroth-order entropy of the level indices of a mean-preserving quantizer, bits per element.

        The estimate rounds at random: a value takes one of the two levels around it, the nearer with higher
        probability.
        """
        centres, weights = self.ordered
        place = np.interp(centres, levels, np.arange(len(levels)))
        below = np.minimum(place.astype(np.intp), len(levels) - 2)
        mass = np.bincount(below, weights * (1 - place + below), len(levels))
        mass += np.bincount(below + 1, weights * (place - below), len(levels))
        return _entropy(mass / mass.sum())


def _entropy(mass: NDArray[np.float64]) -> float:
    """Entropy in bits. mass: probabilities, some of which may be 0."""
    used = mass[mass > 0]
    return max(float(-(used * np.log2(used)).sum()), 0.0)


class Distribution:
    """Moments and histogram of a stream of values, in constant memory."""

    def __init__(self) -> None:
        self._elements = 0
        self._sum = 0.0
        self._squares = 0.0
        self._zeros = 0
        self._radius = 0.0
        self._bins = np.zeros(BINS, np.int64)
        self._minimum, self._maximum = np.inf, -np.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Add float32 values of any shape. Raises NonFiniteFeatures, and leaves the statistics unchanged then."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise NonFiniteFeatures("calibration features must be finite; the front graph gave NaN or infinity")
        self._grow(max(abs(low), abs(high)))
        self._zeros += int(kernels.histogram(flat, self._radius, self._bins))
        self._minimum, self._maximum = min(self._minimum, low), max(self._maximum, high)
        self._sum += float(flat.sum(dtype=np.float64))
        self._squares += float(np.square(flat, dtype=np.float64).sum())
        self._elements += flat.size

    def _grow(self, reach: float) -> None:
        """Widen the histogram to ±`reach`, by doubling its radius and merging pairs of bins."""
        if self._radius == 0:
            self._radius = float(2.0 ** np.ceil(np.log2(max(reach, 1e-30))))
        while reach > self._radius:
            merged = self._bins.reshape(-1, 2).sum(axis=1)
            self._bins = np.zeros(BINS, np.int64)
            self._bins[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self._radius *= 2

    @property
    def mean(self) -> float:
        """Mean over all values."""
        return self._sum / self._elements

    @property
    def variance(self) -> float:
        """Variance over all values."""
        return max(self._squares / self._elements - self.mean**2, 0.0)

    @property
    def histogram(self) -> Histogram:
        """The measured distribution so far."""
        width = 2 * self._radius / BINS
        centres = (np.arange(BINS) + 0.5) * width - self._radius
        used = np.flatnonzero(self._bins)
        weights = np.append(self._bins[used], self._zeros) / self._elements
        return Histogram(
            centres=np.append(centres[used], 0.0), weights=weights, width=width,
            zero_mass=self._zeros / self._elements, minimum=self._minimum, maximum=self._maximum,
        )  # fmt: skip


class FeatureStatistics(Distribution):
    """Statistics of one tensor at the cut, in bounded memory: the distribution of all elements, and a sample of maps.

    channels: C. sample_bytes: how many bytes of feature maps are kept. They are a uniform sample of the images
    (reservoir algorithm R, Vitter 1985, seeded).
    """

    def __init__(self, channels: int, *, sample_bytes: int = SAMPLE_BYTES, seed: int = 0) -> None:
        super().__init__()
        self.channels = channels
        self.count = 0
        self._sample: list[NDArray[np.float32]] = []
        self._sample_bytes = sample_bytes
        self._rng = np.random.default_rng(seed)

    def add(self, batch: NDArray[np.float32]) -> None:
        """Add (B, C, H, W) float32 features. Raises NonFiniteFeatures, and leaves the statistics unchanged then."""
        super().add(batch)
        for image in np.ascontiguousarray(batch, np.float32):
            self._keep(image)
            self.count += 1

    def _keep(self, image: NDArray[np.float32]) -> None:
        room = max(1, self._sample_bytes // image.nbytes)
        if len(self._sample) < room:
            self._sample.append(image.copy())
        else:
            place = int(self._rng.integers(self.count + 1))
            if place < room:
                self._sample[place] = image.copy()

    @property
    def sample(self) -> NDArray[np.float32]:
        """(n, C, H, W) float32: the feature maps that were kept."""
        return np.stack(self._sample)

    def by_channel(self) -> Iterator[Distribution]:
        """Yield the distribution of each channel of the sample, one at a time, so that only one is in memory.

        The streaming pass does no work for them.
        """
        for c in range(self.channels):
            channel = Distribution()
            channel.add(np.stack([image[c] for image in self._sample]))
            yield channel
