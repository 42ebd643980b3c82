"""The finished transform of one tensor, as numbers: what the graphs and the profile are made of, without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.transform import Transform
from splitwire.exporter.transform.bands.layout import Layout

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TransformDesign:
    """Analysis and synthesis of one tensor. Coefficients are (B, tiles, K) float32, in units of the step of index 64.

    layout: tiles and bands. analysis: of each band (k, C); synthesis: (C, k). mean: (C, P) of the spectrum, frequencies
    in the layout's order. offset: (C, P) by position in the tile: what the synthesis adds to the features, their mean
    less a threshold. permutation: (K,) which of the N coefficients are sent, highest class first; the N lie band by
    band, in each component by component, the band's frequencies. low, high: bounds of the features; None: none.
    transform: tables and classes, for TensorSpec.transform.
    """

    layout: Layout
    analysis: tuple[Float32Array, ...]
    synthesis: tuple[Float32Array, ...]
    mean: Float32Array
    offset: Float32Array
    permutation: NDArray[np.int64]
    low: float | None
    high: float | None
    transform: Transform

    @property
    def shape(self) -> tuple[int, int]:
        """(tiles, K) of one image's coefficients: TensorSpec.shape."""
        return self.layout.tiles, len(self.permutation)

    @property
    def size(self) -> int:
        """N, before the permutation."""
        return sum(a.shape[0] * (b.stop - b.start) for a, b in zip(self.analysis, self.layout.bands, strict=True))

    @property
    def bias(self) -> Float32Array:
        """(K,) the coefficients of the mean spectrum, which the analysis subtracts."""
        parts = [
            (a.astype(np.float64) @ self.mean[:, band]).reshape(-1)
            for a, band in zip(self.analysis, self.layout.bands, strict=True)
        ]
        return np.concatenate(parts)[self.permutation].astype(np.float32)

    def analyse(self, features: Float32Array) -> Float32Array:
        """(B, *feature_shape) → (B, tiles, K)."""
        y = self.layout.to_tiles(features) @ self.layout.basis.T.astype(np.float32)
        parts = [
            (a @ y[..., band]).reshape(*y.shape[:2], -1)
            for a, band in zip(self.analysis, self.layout.bands, strict=True)
        ]
        out: Float32Array = np.concatenate(parts, 2)[..., self.permutation] - self.bias
        return out

    def synthesise(self, coefficients: Float32Array) -> Float32Array:
        """(B, tiles, K) → (B, *feature_shape)."""
        whole = np.zeros((*coefficients.shape[:2], self.size), np.float32)
        whole[..., self.permutation] = coefficients
        y, start = [], 0
        for s, band in zip(self.synthesis, self.layout.bands, strict=True):
            width = band.stop - band.start
            stop = start + s.shape[1] * width
            y.append(s @ whole[..., start:stop].reshape(*whole.shape[:2], s.shape[1], width))
            start = stop
        x = np.concatenate(y, 3) @ self.layout.basis.astype(np.float32) + self.offset
        out: Float32Array = self.layout.from_tiles(x)
        return out if self.low is None and self.high is None else np.clip(out, self.low, self.high)
