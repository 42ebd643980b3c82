"""Weights of the frequency bands without gradients: noise in one band at a time, and what it does to the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from splitwire.exporter.network.inference import Array

from .layout import Float64Array, Layout
from .statistics import features_of

AMOUNT = 0.1
"""Deviation of the noise at first, in deviations of the features in the band."""
TARGET = 0.01
"""Damage at which a band is measured: small enough to grow with the square of the noise, and well above rounding."""
TRIES = 3
SEED = 20210513

DamageOf = Callable[[Sequence[Array]], float]
"""damage_of(one array per tensor at the cut): what these features in place of the exact ones do to the outputs."""


def band_weights(
    layout: Layout, features: Sequence[Array], tensor: int, covariances: Sequence[Float64Array], damage_of: DamageOf
) -> list[float]:
    """W of each band, so that the damage of an error δ in it is about ½ w ‖δ‖². 0 where the outputs do not move.

    features: all tensors at the cut, (n, *shape) float32 each; `tensor` is the one of this layout.
    """
    rng = np.random.default_rng(SEED)
    exact = torch.from_numpy(np.asarray(features[tensor], np.float32))
    weights = []
    for band, covariance in zip(layout.bands, covariances, strict=True):
        width = band.stop - band.start
        deviation = AMOUNT * float(np.sqrt(max(np.trace(covariance) / layout.channels, 1e-20)))
        noise = np.zeros((len(exact), layout.tiles, layout.channels, layout.positions), np.float32)
        noise[..., band] = rng.standard_normal((*noise.shape[:-1], width), dtype=np.float32)
        spread = features_of(layout, torch.from_numpy(noise))
        damage = 0.0
        for _ in range(TRIES):
            damage = damage_of(_replaced(features, tensor, exact + deviation * spread))
            if TARGET / 10 <= damage <= TARGET * 10 or damage <= 0:
                break
            deviation *= float(np.clip(np.sqrt(TARGET / damage), 0.05, 20.0))
        count = layout.tiles * layout.channels * width
        weights.append(2 * damage / (count * deviation**2))
    return weights


def _replaced(features: Sequence[Array], tensor: int, by: Tensor) -> list[Array]:
    return [by.numpy() if i == tensor else f for i, f in enumerate(features)]
