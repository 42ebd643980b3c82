"""The transform of one tensor in torch: features to coefficients and back, with what refinement may change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from splitwire.codec.transform import DEAD_ZONE

from .klt import BandTransform
from .layout import Float64Array, Layout
from .statistics import features_of

OUTWARD = (0.2, 0.1)
"""What is added to a magnitude of 1, and to larger ones, in steps: the task wants decoded signals no smaller than they
were, though smaller ones have less squared error (docs/transform.md)."""


class Coding(torch.nn.Module):
    """analysis, synthesis: of each band, (k, C) and (C, k). gain, threshold: (C,), after the synthesis; of
    features that are clipped at zero, what is below the threshold becomes zero, what is above twice as much stays as it
    is, and between them it is linear; of others, the threshold is subtracted. outward: (2,),
    Transform.outward.

    mean: (C, P) of the spectrum; coefficients are of what is left. bounds: the features are clipped to them in the end.
    """

    mean: Tensor

    def __init__(
        self,
        layout: Layout,
        mean: Float64Array,
        bands: Sequence[BandTransform],
        bounds: tuple[float | None, float | None],
    ) -> None:
        super().__init__()
        self.layout, self.bounds = layout, bounds
        self.register_buffer("mean", torch.from_numpy(mean.astype(np.float32)))
        self.analysis = torch.nn.ParameterList(_fixed(b.analysis) for b in bands)
        self.synthesis = torch.nn.ParameterList(_fixed(b.synthesis) for b in bands)
        self.outward = _fixed(np.array(OUTWARD))
        self.gain = _fixed(np.ones(layout.channels))
        self.threshold = _fixed(np.zeros(layout.channels))

    @property
    def size(self) -> int:
        """Coefficients of a tile."""
        return sum(a.shape[0] * (b.stop - b.start) for a, b in zip(self.analysis, self.layout.bands, strict=True))

    def analyse(self, spectra: Tensor) -> Tensor:
        """(B, tiles, C, P) spectra (statistics.spectrum) → (B, tiles, N) coefficients: band by band, in each frequency
        by frequency, the band's components."""
        y = (spectra - self.mean).transpose(2, 3)
        parts = [(y[:, :, band] @ a.T).flatten(2) for a, band in zip(self.analysis, self.layout.bands, strict=True)]
        return torch.cat(parts, 2)

    def by_band(self, coefficients: Tensor) -> list[Tensor]:
        """(B, tiles, N) → (B, tiles, k, n) of each band: its components and frequencies."""
        shapes = [(b.stop - b.start, a.shape[0]) for a, b in zip(self.analysis, self.layout.bands, strict=True)]
        parts = torch.split(coefficients, [n * k for n, k in shapes], 2)
        return [
            part.reshape(*part.shape[:2], *shape).transpose(2, 3) for part, shape in zip(parts, shapes, strict=True)
        ]

    def decoded(self, coefficients: Tensor, step: float) -> Tensor:
        """Coefficients as they arrive when quantized with a step. Gradients pass as if they were not quantized, and
        reach `outward`."""
        scaled = coefficients / step
        q = quantize(scaled)
        beyond = torch.where(q.abs() == 1, self.outward[0], self.outward[1])
        return (scaled + (q - scaled).detach() + q.sign() * beyond) * step

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """(B, tiles, N) → (B, *feature_shape)."""
        parts = zip(self.synthesis, self.by_band(coefficients), self.layout.bands, strict=True)
        y = torch.cat([s @ part + self.mean[:, band] for s, part, band in parts], 3)
        x = features_of(self.layout, self.gain[:, None] * y)
        threshold: Tensor = self.layout.by_channel(self.threshold)
        if self.bounds[0] != 0:
            return (x - threshold).clamp(*self.bounds) if self.bounds != (None, None) else x - threshold
        return torch.minimum(x, 2 * (x - threshold)).clamp(*self.bounds)


def _fixed(matrix: Float64Array) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.from_numpy(matrix.astype(np.float32)), requires_grad=False)


def quantize(scaled: Tensor) -> Tensor:
    """Coefficients over their step → integers, as the encoder rounds them."""
    return scaled.sign() * (scaled.abs() + DEAD_ZONE).floor()
