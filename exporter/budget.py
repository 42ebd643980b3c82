"""Operating points for a budget of bits: the number of levels and the clipping range that the answers like best.

The range with the least squared error is seldom the best one for the task. At one rate there are many uniform
quantizers, few levels over a narrow range or more of them over a wider one; those of about the budget's rate are tried
in the back half, and the one that does the least damage to the answers (damage.py) is taken. docs/codec.md says what
that saved on three networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splitwire.codec.design import FeatureStatistics, Widening
from splitwire.codec.design.rate import RateOf
from splitwire.codec.profile import TensorPoint, TensorSpec

from .calibrate import Progress
from .inference import Float32Array, Graph
from .measure import Quantizers, measure_damage
from .sharing import Cost, share_budget

LEVELS = (2, 3, 4, 5, 6, 8, 12, 16)
"""Numbers of levels tried. Two elements fit into a block up to 16."""

PILOT = 5
"""The number of them that shows what the coder spends at an entropy; odd, so that features around zero can rest."""

INPUTS, INPUTS_SHARED = 64, 16
"""Inputs that the damage is measured on, of one tensor and of several: numbers of levels that are neighbours differ by
tens of per cents, tensors by factors, and what takes several tensors is mostly a detector, which is slow."""

GRID = 6
REACH = 4.0
"""Rates per tensor that a division is found with, from 1/REACH of the smallest budget to REACH times the largest."""

Bought = tuple[TensorPoint, float]
"""What one tensor gets, and the bits per element that are expected of it."""


def buy(
    front: Graph,
    back: Graph,
    specs: Sequence[TensorSpec],
    statistics: Sequence[FeatureStatistics],
    slopes: Sequence[float | None],
    kept: Sequence[Float32Array],
    budgets: Sequence[float],
    report: Progress,
) -> list[list[Bought]]:
    """Per budget, in bits per element over all tensors, per tensor: the quantizer of its share.

    All tensors of a point have the same number of levels, where they can have it at their rate, and ranges of their
    own. Every number is tried at the same entropies, and only the best one gets tables: those take the time.
    """
    made = [[Widening(n, values, slope) for n in LEVELS] for values, slope in zip(statistics, slopes, strict=True)]
    pilots = [own[LEVELS.index(PILOT)] for own in made]
    reach = REACH if len(specs) > 1 else 1.0
    spends = []
    for t, pilot in enumerate(pilots):
        spends.append(RateOf(pilot, (min(budgets) / reach, max(budgets) * reach)))
        report("Look at rates", t + 1, len(pilots))
    some = kept[: INPUTS if len(specs) == 1 else INPUTS_SHARED]
    rates = [[budget] for budget in budgets]
    if len(specs) > 1:
        grid = np.geomspace(min(budgets) / REACH, max(budgets) * REACH, GRID)
        choices: list[Quantizers] = [
            [pilot.for_entropy(spends[t].entropy(float(rate))) if i == t else None for i in range(len(specs))]
            for t, pilot in enumerate(pilots)
            for rate in grid
        ]
        damages = measure_damage(front, back, choices, some, lambda done: report("Share the bits", done, len(some)))
        totals = iter(d.total for d in damages)
        costs = [[Cost(float(rate) * spec.elements, next(totals)) for rate in grid] for spec in specs]
        rates = [_divided(costs, specs, budget) for budget in budgets]
    entropies = [[s.entropy(rate) for s, rate in zip(spends, row, strict=True)] for row in rates]
    tried = [
        (b, n, [_nearest(own, n, entropy) for own, entropy in zip(made, row, strict=True)])
        for b, row in enumerate(entropies)
        for n in LEVELS
        if any(own[LEVELS.index(n)].has(entropy) for own, entropy in zip(made, row, strict=True))
    ]
    choices = [[w.for_entropy(entropy) for w, entropy in zip(row, entropies[b], strict=True)] for b, _, row in tried]
    damages = measure_damage(front, back, choices, some, lambda done: report("Try ranges", done, len(some)))
    bought: list[list[Bought]] = []
    for b, row in enumerate(rates):
        least = min((d.total, n) for (own, n, _), d in zip(tried, damages, strict=True) if own == b)[1]
        best = next(widenings for own, n, widenings in tried if (own, n) == (b, least))
        bought.append([w.design(r, entropy=h) for w, r, h in zip(best, row, entropies[b], strict=True)])
        report("Design for a budget", b + 1, len(rates))
    return bought


def _nearest(own: Sequence[Widening], levels: int, entropy: float) -> Widening:
    """The one with `levels`, or with the number nearest to it, that has this entropy; the finest if none has."""
    able = [w for w in own if w.has(entropy)]
    return min(able, key=lambda w: abs(np.log(w.levels / levels))) if able else own[-1]


def _divided(costs: Sequence[Sequence[Cost]], specs: Sequence[TensorSpec], budget: float) -> list[float]:
    """Bits per element of each tensor, so that all together have `budget` in the mean."""
    chosen = [own[k] for own, k in zip(costs, share_budget(costs, budget * _elements(specs)), strict=True)]
    scale = budget * _elements(specs) / sum(c.bits for c in chosen)  # what no step could use; or less than any has
    return [scale * c.bits / spec.elements for c, spec in zip(chosen, specs, strict=True)]


def _elements(specs: Sequence[TensorSpec]) -> int:
    return sum(spec.elements for spec in specs)
