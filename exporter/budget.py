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
from .inference import Float32Array, Graph
from .measure import Quantizers, measure_damage
from .sharing import Cost, share_budget

LEVELS = (2, 3, 4, 5, 6, 8, 12, 16, 32)
"""Numbers of levels tried."""

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
    Raises ExportError for a tensor that never changes.
    """
    made = [_widenings(*each) for each in zip(specs, statistics, slopes, strict=True)]
    pilots = [own[LEVELS.index(PILOT)] for own in made]
    reach = REACH if len(specs) > 1 else 1.0
    spends = []
    for t, pilot in enumerate(pilots):
        spends.append(RateOf(pilot, (min(budgets) / reach, max(budgets) * reach)))
        report("Look at rates", t + 1, len(pilots))
    some = kept[: INPUTS if len(specs) == 1 else INPUTS_SHARED]
    rates = [[budget] for budget in budgets]
    if len(specs) > 1:
        rates = _shared(front, back, specs, pilots, spends, some, budgets, report)
    entropies = [[s.entropy(rate) for s, rate in zip(spends, row, strict=True)] for row in rates]
    bought: list[list[Bought]] = []
    for best, row, wanted in zip(_best(front, back, made, entropies, some, report), rates, entropies, strict=True):
        bought.append([w.design(r, entropy=h) for w, r, h in zip(best, row, wanted, strict=True)])
        report("Design for a budget", len(bought), len(rates))
    return bought


def _widenings(spec: TensorSpec, statistics: FeatureStatistics, slope: float | None) -> list[Widening]:
    try:
        return [Widening(n, statistics, slope) for n in LEVELS]
    except ExportError as e:
        raise ExportError(f"tensor {spec.name!r}: {e}") from e


def _shared(
    front: Graph,
    back: Graph,
    specs: Sequence[TensorSpec],
    pilots: Sequence[Widening],
    spends: Sequence[RateOf],
    some: Sequence[Float32Array],
    budgets: Sequence[float],
    report: Progress,
) -> list[list[float]]:
    """Per budget, per tensor: bits per element, by what the pilots' rates do to the answers."""
    grid = np.geomspace(min(budgets) / REACH, max(budgets) * REACH, GRID).tolist()
    choices: list[Quantizers] = [
        [pilot.for_entropy(spend.entropy(rate)) if i == t else None for i in range(len(specs))]
        for t, (pilot, spend) in enumerate(zip(pilots, spends, strict=True))
        for rate in grid
    ]
    damages = measure_damage(front, back, choices, some, lambda done: report("Share the bits", done, len(some)))
    totals = iter(d.total for d in damages)
    costs = [[Cost(rate * spec.elements, next(totals)) for rate in grid] for spec in specs]
    rates = []
    for budget in budgets:
        bits = budget * sum(spec.elements for spec in specs)
        chosen = [own[k] for own, k in zip(costs, share_budget(costs, bits), strict=True)]
        scale = bits / sum(c.bits for c in chosen)  # the rest that no step could use; or less than the smallest rates
        rates.append([scale * c.bits / spec.elements for c, spec in zip(chosen, specs, strict=True)])
    return rates


def _best(
    front: Graph,
    back: Graph,
    made: Sequence[Sequence[Widening]],
    entropies: Sequence[Sequence[float]],
    some: Sequence[Float32Array],
    report: Progress,
) -> list[list[Widening]]:
    """Per budget, per tensor: the widening of the number of levels that does the least damage at these entropies."""
    tried: list[tuple[int, list[Widening]]] = []
    for b, row in enumerate(entropies):
        able = [k for k in range(len(LEVELS)) if any(own[k].has(h) for own, h in zip(made, row, strict=True))]
        able = able or [len(LEVELS) - 1]
        tried += [(b, [_nearest(own, k, h) for own, h in zip(made, row, strict=True)]) for k in able]
    choices = [[w.for_entropy(h) for w, h in zip(row, entropies[b], strict=True)] for b, row in tried]
    damages = measure_damage(front, back, choices, some, lambda done: report("Try ranges", done, len(some)))
    order = sorted(range(len(tried)), key=lambda i: damages[i].total)
    return [next(tried[i][1] for i in order if tried[i][0] == b) for b in range(len(entropies))]


def _nearest(own: Sequence[Widening], k: int, entropy: float) -> Widening:
    """The k-th, or the one nearest to it that has this entropy; the finest if none has."""
    able = [i for i, w in enumerate(own) if w.has(entropy)]
    return own[min(able, key=lambda i: abs(i - k))] if able else own[-1]
