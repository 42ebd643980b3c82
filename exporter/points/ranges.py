"""The clipping range that the answers like best at a number of levels: what one finds by trying ranges by hand.

The quantizer stays that of Cohen et al. 2021, uniform with pinned ends; only its range is not the one with the least
squared error. budget.py looks for more, at a rate: the number of levels and the preserved means too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splitwire.codec.design import Widening

from .budget import INPUTS, INPUTS_SHARED, DesignedPoint
from .measure import DamageOf
from .tensors import CalibratedTensor

SCALES = tuple(np.geomspace(0.75, 2.0, 12).tolist())
"""Multiples of the range with the least squared error that are tried, 9 % from one to the next."""


def search_ranges(
    rows: Sequence[Sequence[int]],
    tensors: Sequence[CalibratedTensor],
    damage_of: DamageOf,
) -> list[list[DesignedPoint]]:
    """Per point, per tensor: the quantizer over the multiple of its range that does the least damage to the answers.

    rows: per point, the number of levels of each tensor. All tensors of a point have the same multiple.
    """
    tried = [
        [Widening(n, t.statistics, t.slope, taps=t.taps) for n, t in zip(row, tensors, strict=True)] for row in rows
    ]
    choices = [[widening.quantizer(scale) for widening in row] for row in tried for scale in SCALES]
    damages = damage_of(choices, "Search ranges", INPUTS if len(tensors) == 1 else INPUTS_SHARED)
    best = np.reshape(damages, (len(rows), len(SCALES))).argmin(axis=1)
    return [[widening.point(SCALES[k]) for widening in row] for row, k in zip(tried, best.tolist(), strict=True)]
