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
from splitwire.codec.errors import ExportError
from splitwire.codec.profile import TensorPoint, TensorSpec

from .calibrate import Progress
from .measure import DamageOf, alone
from .sharing import Cost, share_budget

LEVELS = (2, 3, 4, 5, 6, 8, 12, 16, 32)
"""Numbers of levels tried."""

PILOT = 5
"""The number of them that shows what the coder spends at an entropy; odd, so that features around zero can rest."""

INPUTS, INPUTS_SHARED = 64, 16
"""Inputs that the damage is measured on, with one tensor and with several: those are mostly of detectors, which take
long for an image and find several things in it."""

GRID = 6
REACH = 4.0
"""Rates per tensor that a division is found with, from 1/REACH of the smallest budget to REACH times the largest."""

Bought = tuple[TensorPoint, float]
"""What one tensor gets, and the bits per element that are expected of it."""


def buy(
    specs: Sequence[TensorSpec],
    statistics: Sequence[FeatureStatistics],
    slopes: Sequence[float | None],
    budgets: Sequence[float],
    damage_of: DamageOf,
    report: Progress,
) -> list[list[Bought]]:
    """Per budget, in bits per element over all tensors, per tensor: the quantizer of its share.

    All tensors of a point have the same number of levels, where they can have it at their rate, and ranges of their
    own. Every number is tried at the same entropies, and only the best one gets tables: those take the time.
    Raises ExportError for a tensor that never changes.
    """
    several = len(specs) > 1
    made = [_widenings(*each) for each in zip(specs, statistics, slopes, strict=True)]
    reach = REACH if several else 1.0
    pilots: list[tuple[Widening, RateOf]] = []
    for own in made:
        pilot = own[LEVELS.index(PILOT)]
        pilots.append((pilot, RateOf(pilot, (min(budgets) / reach, max(budgets) * reach))))
        report("Look at rates", len(pilots), len(made))
    rates = _shared(specs, pilots, budgets, damage_of) if several else [[budget] for budget in budgets]
    entropies = [[rate_of.entropy(rate) for (_, rate_of), rate in zip(pilots, row, strict=True)] for row in rates]
    best = _best(made, entropies, damage_of, INPUTS_SHARED if several else INPUTS)
    bought: list[list[Bought]] = []
    for chosen, row, wanted in zip(best, rates, entropies, strict=True):
        bought.append([w.design(r, entropy=h) for w, r, h in zip(chosen, row, wanted, strict=True)])
        report("Design for a budget", len(bought), len(rates))
    return bought


def _widenings(spec: TensorSpec, statistics: FeatureStatistics, slope: float | None) -> list[Widening]:
    try:
        return [Widening(n, statistics, slope) for n in LEVELS]
    except ExportError as e:
        raise ExportError(f"tensor {spec.name!r}: {e}") from e


def _shared(
    specs: Sequence[TensorSpec],
    pilots: Sequence[tuple[Widening, RateOf]],
    budgets: Sequence[float],
    damage_of: DamageOf,
) -> list[list[float]]:
    """Per budget, per tensor: bits per element, by what the pilots' rates do to the answers."""
    grid = np.geomspace(min(budgets) / REACH, max(budgets) * REACH, GRID).tolist()
    choices = alone([[pilot.for_entropy(rate_of.entropy(rate)) for rate in grid] for pilot, rate_of in pilots])
    damages = iter(damage_of(choices, "Share the bits", INPUTS_SHARED))
    costs = [[Cost(rate * spec.elements, next(damages)) for rate in grid] for spec in specs]
    rates = []
    for budget in budgets:
        bits = budget * sum(spec.elements for spec in specs)
        chosen = [own[k] for own, k in zip(costs, share_budget(costs, bits), strict=True)]
        scale = bits / sum(c.bits for c in chosen)  # the rest that no step could use; or less than the smallest rates
        rates.append([scale * c.bits / spec.elements for c, spec in zip(chosen, specs, strict=True)])
    return rates


def _best(
    made: Sequence[Sequence[Widening]], entropies: Sequence[Sequence[float]], damage_of: DamageOf, inputs: int
) -> list[list[Widening]]:
    """Per budget, per tensor: the widening of the number of levels that does the least damage at these entropies."""
    tried: list[tuple[int, list[Widening]]] = []
    for b, row in enumerate(entropies):
        able = [k for k in range(len(LEVELS)) if any(own[k].has(h) for own, h in zip(made, row, strict=True))]
        able = able or [len(LEVELS) - 1]
        tried += [(b, [_nearest(own, k, h) for own, h in zip(made, row, strict=True)]) for k in able]
    choices = [[w.for_entropy(h) for w, h in zip(row, entropies[b], strict=True)] for b, row in tried]
    damages = damage_of(choices, "Try ranges", inputs)
    order = sorted(range(len(tried)), key=damages.__getitem__)
    return [next(tried[i][1] for i in order if tried[i][0] == b) for b in range(len(entropies))]


def _nearest(own: Sequence[Widening], k: int, entropy: float) -> Widening:
    """The k-th, or the one nearest to it that has this entropy; the finest if none has."""
    able = [i for i, w in enumerate(own) if w.has(entropy)]
    return own[min(able, key=lambda i: abs(i - k))] if able else own[-1]
