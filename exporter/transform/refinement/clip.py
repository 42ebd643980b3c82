"""What follows the synthesis of features that an activation clips at zero: nothing, a clip, or a threshold and a clip.

Quantization leaves small errors where the features are exactly zero, and clipping makes positive ones of them, all
over the map: the network notices that more than larger errors on what is there. Without a clip the errors have both
signs, and layers that sum many features average them away. A threshold of a share of the errors' deviation removes most
of them instead. What is above twice the threshold stays as it is: subtracting the threshold everywhere
would cost more at fine steps than it saves (docs/transform.md).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from splitwire.codec.transform import step_size
from splitwire.exporter.transform.bands.coding import Coding
from splitwire.exporter.transform.bands.statistics import features_of

from .material import HeldOut, Material

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Thresholds that are tried, in deviations of the error where the features are zero, until one has more damage than
the one before."""
LOOKED_AT = 32
"""Inputs that the error is measured on."""


def with_clips(codings: Sequence[Coding], training: Material, held: HeldOut, steps: Sequence[int]) -> list[Coding]:
    """The codings without a clip, with one, or with one and thresholds: what has the least damage on the held-out
    inputs at the steps, the mean of its logarithm. Their coefficients, and so their bits, are the same. No clip is
    added where there was none."""
    if not any(c.bounds[0] == 0 for c in codings):
        return list(codings)
    middle = float(step_size(steps[len(steps) // 2]))
    deviations = [_deviation(c, y[:LOOKED_AT], middle) for c, y in zip(codings, training.spectra, strict=True)]
    free = [_unclipped(c) for c in codings]
    best, least = free, _log_damage(free, held, steps)
    before = np.inf
    for share in SHARES:
        tried = [_thresholded(c, share * d) for c, d in zip(codings, deviations, strict=True)]
        damage = _log_damage(tried, held, steps)
        if damage < least:
            best, least = tried, damage
        if damage >= before:
            break
        before = damage
    return best


def _unclipped(coding: Coding) -> Coding:
    made = copy.deepcopy(coding)
    made.bounds = (None, None)
    return made


@torch.no_grad()
def _deviation(coding: Coding, spectra: Tensor, step: float) -> Tensor:
    """(C,) root mean square of the error before the clip, where the features are zero; 0 where they are not clipped."""
    if coding.bounds[0] != 0:
        return torch.zeros_like(coding.threshold)
    free = _unclipped(coding)
    exact = features_of(coding.layout, spectra)
    error = free.synthesise(free.decoded(free.analyse(spectra), step)) - exact
    zero = exact <= NEARLY_ZERO * float(exact.max())
    tiles = [coding.layout.to_tiles(x) for x in (torch.where(zero, error.square(), 0.0), zero.float())]
    squares, counts = (x.sum((0, 1, 3)) for x in tiles)
    deviation: Tensor = (squares / counts.clamp_min(1)).sqrt()
    return deviation


NEARLY_ZERO = 1e-5
"""Features were made of their spectra, and are off by rounding."""


def _thresholded(coding: Coding, threshold: Tensor) -> Coding:
    made = copy.deepcopy(coding)
    made.threshold.copy_(threshold)
    return made


def _log_damage(codings: Sequence[Coding], held: HeldOut, steps: Sequence[int]) -> float:
    return float(np.mean([np.log(max(held.damage(codings, float(step_size(j))).total, 1e-12)) for j in steps]))
