"""Search the clipping range with the least output distortion, for a number of levels.

The quantizer is that of Cohen et al. 2021, uniform with pinned ends; only its range differs from the one with the least
squared error. budget.py also searches the number of levels, and whether to preserve means, at a given rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splitwire.codec.design import Widening

from .budget import INPUTS, INPUTS_SHARED, DesignedPoint
from .measure import DamageOf
from .tensors import CalibratedTensor

SCALES = tuple(np.geomspace(0.75, 2.0, 12).tolist())
"""Candidates: multiples of the range with the least squared error, in steps of 9 %."""


def search_ranges(
    rows: Sequence[Sequence[int]],
    tensors: Sequence[CalibratedTensor],
    damage_of: DamageOf,
) -> list[list[DesignedPoint]]:
    """Per point and tensor: the quantizer over the multiple of its range with the least output distortion.

    rows: per point, the number of levels of each tensor. All tensors of a point have the same multiple.
    """
    widenings = [
        [Widening(n, t.statistics, t.slope, taps=t.taps) for n, t in zip(row, tensors, strict=True)] for row in rows
    ]
    choices = [[widening.quantizer(scale) for widening in row] for row in widenings for scale in SCALES]
    damages = damage_of(choices, "Search ranges", INPUTS if len(tensors) == 1 else INPUTS_SHARED)
    best = np.reshape(damages, (len(rows), len(SCALES))).argmin(axis=1)
    return [[widening.point(SCALES[k]) for widening in row] for row, k in zip(widenings, best.tolist(), strict=True)]
