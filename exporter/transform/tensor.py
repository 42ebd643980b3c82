"""The finished transform of one tensor, as numbers: what the graphs and the profile are made of, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.transform import Transform
from splitwire.exporter.transform.bands.layout import Layout

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TransformDesign:
    """Analysis and synthesis of one tensor. Coefficients are (B, tiles, K) float32, in units of the step of index 64.

    layout: tiles and bands. analysis: of each band (k, C); synthesis: (C, k). mean: (C, P) of the spectrum, frequencies
    in the layout's order. offset: (C, P) by position in the tile: what the synthesis adds to the features, their mean.
    threshold: (C,) where low is 0: what is below it becomes 0, what is above twice as much stays, linear between; else
    zeros. low, high: bounds of the features; None: none. transform: tables and classes, for
    TensorSpec.transform. The N coefficients of a tile lie band by band, in each frequency by frequency, the band's
    components; the classes say which are sent.
    """

    layout: Layout
    analysis: tuple[Float32Array, ...]
    synthesis: tuple[Float32Array, ...]
    mean: Float32Array
    offset: Float32Array
    threshold: Float32Array
    low: float | None
    high: float | None
    transform: Transform

    @property
    def shape(self) -> tuple[int, int]:
        """(tiles, N) of one image's coefficients: TensorSpec.shape."""
        return self.layout.tiles, sum(n * k for n, k in self.bands)

    @property
    def sent(self) -> int:
        """How many of one image's coefficients are sent."""
        return self.layout.tiles * self.transform.order().size

    @property
    def bands(self) -> list[tuple[int, int]]:
        """(frequencies, components) of each band."""
        return [(b.stop - b.start, a.shape[0]) for a, b in zip(self.analysis, self.layout.bands, strict=True)]

    @property
    def bias(self) -> Float32Array:
        """(N,) the coefficients of the mean spectrum, which the analysis subtracts."""
        return self._coefficients(self.mean.astype(np.float64)).astype(np.float32)

    def analyse(self, features: Float32Array) -> Float32Array:
        """(B, *feature_shape) → (B, tiles, N)."""
        spectra: Float32Array = self.layout.to_tiles(features) @ self.layout.basis.T.astype(np.float32)
        out: Float32Array = self._coefficients(spectra) - self.bias
        return out

    def synthesise(self, coefficients: Float32Array) -> Float32Array:
        """(B, tiles, N) → (B, *feature_shape)."""
        y, start = [], 0
        for s, (n, k) in zip(self.synthesis, self.bands, strict=True):
            part = coefficients[..., start : start + n * k].reshape(*coefficients.shape[:2], n, k)
            y.append(s @ part.swapaxes(2, 3))
            start += n * k
        x = np.concatenate(y, 3) @ self.layout.basis.astype(np.float32) + self.offset
        if self.threshold.any():
            x = np.minimum(x, 2 * (x - self.threshold[:, None]))
        out: Float32Array = self.layout.from_tiles(x)
        return out if self.low is None and self.high is None else np.clip(out, self.low, self.high)

    def _coefficients(self, spectra: NDArray[Any]) -> NDArray[Any]:
        """(…, C, P) → (…, N), with no mean subtracted."""
        y = spectra.swapaxes(-1, -2)
        parts = [y[..., band, :] @ a.T for a, band in zip(self.analysis, self.layout.bands, strict=True)]
        return np.concatenate([part.reshape(*part.shape[:-2], -1) for part in parts], -1)
