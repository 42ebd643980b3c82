"""Moments of features and gradients in each frequency band, of a stream of batches, in constant memory."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .layout import Float64Array, Layout


class BandStatistics:
    """What the KLT of one tensor needs. The spectra are those of `spectrum`: band by band, in the layout's order.

    count: images of features added; drawn: images of gradients.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.count = self.drawn = 0
        self.low, self.high = np.inf, -np.inf
        self.at_low = self.at_high = 0
        c = layout.channels
        self._shift: Tensor | None = None  # near the mean, so that squares lose no digits
        self._sum = torch.zeros(c, layout.positions, dtype=torch.float64)
        self._squares = [torch.zeros(c, c, dtype=torch.float64) for _ in layout.bands]
        self._gradients = [torch.zeros(c, c, dtype=torch.float64) for _ in layout.bands]

    def add(self, features: Tensor) -> None:
        """Take in a batch of features, (B, *feature_shape) float32."""
        self._extremes(features)
        y = spectrum(self.layout, features)
        if self._shift is None:
            self._shift = y.mean((0, 1))
        y = y - self._shift
        self.count += len(features)
        self._sum += y.double().sum((0, 1)).cpu()
        for total, band in zip(self._squares, self.layout.bands, strict=True):
            total.add_(_square(y[..., band]))

    def add_gradients(self, gradients: Tensor) -> None:
        """Take in gradients at a batch of features, (B, *feature_shape)."""
        y = spectrum(self.layout, gradients)
        self.drawn += len(gradients)
        for total, band in zip(self._gradients, self.layout.bands, strict=True):
            total.add_(_square(y[..., band]))

    @property
    def mean(self) -> Float64Array:
        """(C, P) the mean spectrum of a tile. Raises ValueError before anything was added."""
        if self._shift is None:
            raise ValueError("no features were added")
        out: Float64Array = (self._shift.double().cpu() + self._sum / self._samples).numpy()
        return out

    def covariances(self) -> list[Float64Array]:
        """(C, C) of each band, about the mean of each frequency."""
        mean = self._sum / self._samples
        out = []
        for total, band in zip(self._squares, self.layout.bands, strict=True):
            m = mean[:, band]
            out.append((total / (self._samples * m.shape[1]) - m @ m.T / m.shape[1]).numpy())
        return out

    def samples(self) -> list[int]:
        """Of each band, how many vectors of channels its covariance is of."""
        return [self._samples * (band.stop - band.start) for band in self.layout.bands]

    def gradient_samples(self) -> list[int]:
        """Of each band, how many vectors of channels its sensitivity is of."""
        return [self.drawn * self.layout.tiles * (band.stop - band.start) for band in self.layout.bands]

    def sensitivities(self) -> list[Float64Array]:
        """(C, C) of each band: G = E[g gᵀ] of gradients g. Raises ValueError where none was added."""
        if not self.drawn:
            raise ValueError("no gradients were added")
        many = self.drawn * self.layout.tiles
        return [
            (total / (many * (band.stop - band.start))).numpy()
            for total, band in zip(self._gradients, self.layout.bands, strict=True)
        ]

    def bounds(self) -> tuple[float | None, float | None]:
        """What the activation behind the features clips at: the extremes that a share of all features sits at exactly.

        A ReLU: (0, None). ReLU6: (0, 6). None where there is no such bound.
        """
        most = self.count * self.layout.elements * CLIPPED
        low = self.low if self.low == 0 and self.at_low > most else None
        return low, self.high if self.at_high > max(most, 1) and low is not None else None

    @property
    def _samples(self) -> int:
        return self.count * self.layout.tiles

    def _extremes(self, features: Tensor) -> None:
        low, high = float(features.min()), float(features.max())
        if low < self.low:
            self.low, self.at_low = low, 0
        if high > self.high:
            self.high, self.at_high = high, 0
        self.at_low += int((features == self.low).sum())
        self.at_high += int((features == self.high).sum())


CLIPPED = 1e-5
"""Share of the features at exactly their extreme from which it is the activation's bound."""


def spectrum(layout: Layout, features: Tensor) -> Tensor:
    """(B, *feature_shape) → (B, tiles, C, P): the DCT of each tile, frequencies in the layout's order."""
    tiles: Tensor = layout.to_tiles(features)
    if layout.factors is None:
        return tiles @ _constant(layout.basis.T, tiles)
    down, across = (_constant(f, tiles) for f in layout.factors)
    a, b = layout.block
    y = down @ (tiles.reshape(*tiles.shape[:-1], a, b) @ across.T)
    return y.reshape(tiles.shape)[..., _index(layout.order, tiles)]


def features_of(layout: Layout, y: Tensor) -> Tensor:
    """The inverse of `spectrum`."""
    if layout.factors is None:
        whole: Tensor = layout.from_tiles(y @ _constant(layout.basis, y))
        return whole
    down, across = (_constant(f, y) for f in layout.factors)
    a, b = layout.block
    plane = y[..., _index(np.argsort(layout.order), y)].reshape(*y.shape[:-1], a, b)
    features: Tensor = layout.from_tiles((down.T @ (plane @ across)).reshape(y.shape))
    return features


def _square(y: Tensor) -> Tensor:
    """Σ y yᵀ over images, tiles and frequencies: (B, tiles, C, n) → (C, C) float64, on the CPU."""
    flat = y.permute(2, 0, 1, 3).reshape(y.shape[2], -1)
    return (flat @ flat.T).double().cpu()


def _constant(matrix: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrix, np.float32)).to(like.device)


def _index(order: NDArray[np.intp], like: Tensor) -> Tensor:
    return torch.from_numpy(order).to(like.device)
