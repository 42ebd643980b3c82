"""Operating points for a bit budget: the number of levels and the clipping range with the least output distortion.

The range with the least squared error seldom has the least output distortion. At one rate there are many uniform
quantizers: few levels over a narrow range, or more levels over a wider one. Those of about the budget's rate are tried
in the back half, and the one with the least damage to the outputs (damage.py) is taken. docs/codec.md shows the savings
on three networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from splitwire.codec.design import Widening
from splitwire.codec.design.rate import RateOf
from splitwire.codec.errors import ExportError
from splitwire.codec.profile import TensorPoint, TensorSpec
from splitwire.codec.progress import ProgressFn

from .measure import DamageOf, alone
from .sharing import Cost, share_budget
from .tensors import CalibratedTensor, specs_of

LEVELS_TRIED = (2, 3, 4, 5, 6, 8, 12, 16, 32)
"""Numbers of levels tried."""

PILOT = 5
"""Number of levels of the pilot, which relates the coder's rate to the entropy; odd, so that zero is a level."""

INPUTS, INPUTS_SHARED = 64, 16
"""Number of inputs that the damage is measured on, with one tensor and with several. Several tensors mostly mean a
detector, which is slow and finds several objects in an image."""

INPUTS_FIRST = 4
PROMISING = 4
"""With several tensors the back half is slow: INPUTS_FIRST inputs select the PROMISING candidates of a budget that are
tried on all inputs. Candidates differ by factors: the best one is among the first four on four inputs."""

WORTHWHILE = 0.9
"""Preserving the means, which encodes more slowly, must reduce the damage to at most this share."""

GRID = 6
REACH = 4.0
"""Number of rates per tensor among which a budget is shared, from 1/REACH of the smallest budget to REACH times the
largest."""

DesignedPoint = tuple[TensorPoint, float]
"""One tensor's operating point, and its expected bits per element."""

Pilot = tuple[Widening, RateOf]


def design_for_budget(
    tensors: Sequence[CalibratedTensor],
    budgets: Sequence[float],
    damage_of: DamageOf,
    report: ProgressFn,
) -> list[list[DesignedPoint]]:
    """Design operating points for bit budgets: a list of budgets, and within it the designed point of each tensor.

    budgets: in bits per element over all tensors. All tensors of a point have the same number of levels, if they can
    have it at their rate, and each has a separate range. Every number of levels is tried at the same rates. Only the
    best one gets tables, which take most of the time.
    Raises ExportError for a tensor that never changes.
    """
    specs = specs_of(tensors)
    several = len(specs) > 1
    reach = REACH if several else 1.0
    between = (min(budgets) / reach, max(budgets) * reach)
    ways = [False, True] if any(_has_planes(spec) for spec in specs) else [False]
    made = [[_widenings(tensor, means) for tensor in tensors] for means in ways]
    report("Look at rates", 0, len(ways) * len(specs))
    pilots: list[list[Pilot]] = []
    for i, every in enumerate(made):
        pilots.append([])
        for own in every:
            pilot = own[LEVELS_TRIED.index(PILOT)]
            pilots[i].append((pilot, RateOf(pilot, between)))
            report("Look at rates", i * len(specs) + len(pilots[i]), len(ways) * len(specs))
    rates = _shared(specs, pilots[0], budgets, damage_of) if several else [[budget] for budget in budgets]
    candidates = [
        _Candidates(b, every, [rate_of.entropy(rate) for (_, rate_of), rate in zip(own, row, strict=True)])
        for b, row in enumerate(rates)
        for every, own in zip(made, pilots, strict=True)
    ]
    tried = [_Tried(each, row) for each in candidates for row in each.rows()]
    if several:
        tried = _promising(_ranked(tried, damage_of, "Look at ranges", INPUTS_FIRST))
    ranked = _ranked(tried, damage_of, "Try ranges", INPUTS_SHARED if several else INPUTS)
    designed: list[list[DesignedPoint]] = []
    for b, row in enumerate(rates):
        wanted, chosen = next((each.entropies, best) for each, best in ranked if each.budget == b)
        designed.append([])
        for i, (w, h, rate) in enumerate(zip(chosen, wanted, row, strict=True)):
            report("Design for a budget", b * len(specs) + i, len(rates) * len(specs))
            designed[b].append(w.design(rate, entropy=h))
    report("Design for a budget", len(rates) * len(specs), len(rates) * len(specs))
    return designed


def _has_planes(spec: TensorSpec) -> bool:
    """Whether there are planes that have a mean to preserve, which tokens' and vectors' have not."""
    return len(spec.shape) == 3 and spec.planes[1] * spec.planes[2] > 1


def _widenings(tensor: CalibratedTensor, means: bool) -> list[Widening]:
    try:
        statistics, slope, taps = tensor.statistics, tensor.slope, tensor.taps
        preserves = means and _has_planes(tensor.spec)
        return [Widening(n, statistics, slope, taps=taps, preserves_mean=preserves) for n in LEVELS_TRIED]
    except ExportError as e:
        raise ExportError(f"tensor {tensor.spec.name!r}: {e}") from e


def _shared(
    specs: Sequence[TensorSpec],
    pilots: Sequence[Pilot],
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


class _Candidates(NamedTuple):
    """What may be chosen for a budget: per tensor, the widenings of all numbers of levels, and the entropy at which
    they have its rate."""

    budget: int
    made: Sequence[Sequence[Widening]]
    entropies: Sequence[float]

    def rows(self) -> list[list[Widening]]:
        """One widening per tensor, for each number of levels that some tensor can have at its entropy.

        If no number of levels reaches the entropy, because the features have fewer bits, the finest one is used,
        without preserving means.
        """
        pairs = list(zip(self.made, self.entropies, strict=True))
        able = [k for k in range(len(LEVELS_TRIED)) if any(own[k].has(h) for own, h in pairs)]
        if not able and not any(own[0].preserves_mean for own in self.made):
            able = [len(LEVELS_TRIED) - 1]
        return [[_nearest(own, k, h) for own, h in pairs] for k in able]


class _Tried(NamedTuple):
    """One widening per tensor, for the entropies of these candidates."""

    candidates: _Candidates
    row: list[Widening]


def _ranked(tried: Sequence[_Tried], damage_of: DamageOf, stage: str, inputs: int) -> list[_Tried]:
    """Those that do the least damage first."""
    choices = [[w.for_entropy(h) for w, h in zip(row, each.entropies, strict=True)] for each, row in tried]
    damages = damage_of(choices, stage, inputs)
    means = [any(w.preserves_mean for w in row) for _, row in tried]
    costs = [d / WORTHWHILE if preserved else d for d, preserved in zip(damages, means, strict=True)]
    return [tried[i] for i in sorted(range(len(tried)), key=costs.__getitem__)]


def _promising(ranked: Sequence[_Tried]) -> list[_Tried]:
    """Of each budget the first PROMISING; in the order in which budgets come first."""
    own: dict[int, list[_Tried]] = {}
    for each in ranked:
        own.setdefault(each.candidates.budget, []).append(each)
    return [each for some in own.values() for each in some[:PROMISING]]


def _nearest(own: Sequence[Widening], k: int, entropy: float) -> Widening:
    """The k-th, or the one nearest to it that has this entropy; the finest if none has."""
    able = [i for i, w in enumerate(own) if w.has(entropy)]
    return own[min(able, key=lambda i: abs(i - k))] if able else own[-1]
