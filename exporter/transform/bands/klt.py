"""The task-weighted Karhunen–Loève transform over channels, in each frequency band.

In a band with covariance C of the features and sensitivity G of the task, the damage of an error δ is ½ δᵀ G δ. Of the
transforms after which equal quantization steps are optimal, G^½ followed by the KLT of G^½ C G^½ needs the fewest bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .layout import Float64Array, Layout

SHRINK, MOST_SENSITIVITY_SHRINK = 0.1, 0.5
"""Of G towards its mean eigenvalue: channels over channels and gradients together, at least the first and at most the
second. Fewer gradients than channels leave directions without any sensitivity, and other inputs have some there."""
COVARIANCE_SHRINK, MOST_SHRINK = 0.03, 0.1
"""Of C towards its diagonal: the first times channels per sample, at most the second. A covariance of fewer samples
than channels has directions without any variance, and other inputs have some there."""
SMALLEST = 1e-9
"""Eigenvalues of G are at least this share of the largest."""
NEGLIGIBLE = 0.12
"""Components with a deviation below this share of the finest step are dropped: about one of their coefficients in a
thousand would be coded, and their loss is a sixth of what quantization costs any other."""


@dataclass(frozen=True, kw_only=True)
class BandTransform:
    """One band. analysis: (k, C), coefficients from a spectrum about its mean. synthesis: (C, k). variances: (k,) of
    the coefficients, falling."""

    analysis: Float64Array
    synthesis: Float64Array
    variances: Float64Array


def unit_step(elements: int, damage: float) -> float:
    """The step at which `elements` coefficients of the weighted basis, each off by step²/12, cost `damage`."""
    return float(np.sqrt(24 * damage / elements))


def task_klt(
    covariance: Float64Array, sensitivity: Float64Array, *, unit: float, finest: float, shrink: float = SHRINK
) -> BandTransform:
    """The transform of one band, in units of the step `unit`; without components that are negligible at the step
    `finest`, in the same units. At least one component stays."""
    c = len(covariance)
    mean = np.trace(sensitivity) / c
    if not mean > 0:
        raise ValueError("the task does not depend on this band")
    w, v = np.linalg.eigh((1 - shrink) * sensitivity + shrink * mean * np.eye(c))
    w = np.sqrt(np.maximum(w, w[-1] * SMALLEST))
    root, inverse = (v * w) @ v.T, (v / w) @ v.T
    variances, u = np.linalg.eigh(root @ covariance @ root)
    variances, u = variances[::-1] / unit**2, u[:, ::-1]
    u = u * np.where(u.sum(axis=0) < 0, -1.0, 1.0)  # a sign that does not depend on the library
    kept = max(1, int(np.count_nonzero(variances > (NEGLIGIBLE * finest) ** 2)))
    return BandTransform(
        analysis=u[:, :kept].T @ root / unit,
        synthesis=inverse @ u[:, :kept] * unit,
        variances=np.maximum(variances[:kept], 0.0),
    )


def design_bands(
    layout: Layout,
    covariances: Sequence[Float64Array],
    sensitivities: Sequence[Float64Array],
    samples: Sequence[int],
    *,
    unit: float,
    finest: float,
    gradients: Sequence[int] | None = None,
) -> list[BandTransform]:
    """The transform of each band. A band that the task does not look at gets a little of the mean sensitivity.

    samples, gradients: of each band, the vectors that its covariance and its sensitivity were measured on; gradients
    None for sensitivities that are of no gradients.
    """
    mean = float(np.mean([np.trace(g) for g in sensitivities])) / layout.channels
    floor = max(mean, np.finfo(np.float64).tiny) * 1e-6 * np.eye(layout.channels)
    shrinks = [SHRINK] * len(samples) if gradients is None else [_shrink(layout.channels, n) for n in gradients]
    return [
        task_klt(_shrunk(c, n), g + floor, unit=unit, finest=finest, shrink=shrink)
        for c, g, n, shrink in zip(covariances, sensitivities, samples, shrinks, strict=True)
    ]


def _shrink(channels: int, gradients: int) -> float:
    return min(max(channels / (channels + gradients), SHRINK), MOST_SENSITIVITY_SHRINK)


def _shrunk(covariance: Float64Array, samples: int) -> Float64Array:
    share = min(COVARIANCE_SHRINK * len(covariance) / samples, MOST_SHRINK)
    out: Float64Array = (1 - share) * covariance + share * np.diag(np.diag(covariance))
    return out
