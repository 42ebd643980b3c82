"""Operating points for a bit budget: the number of levels and the clipping range with the least output distortion.

The range with the least squared error seldom has the least output distortion. Many uniform quantizers have the same
rate: few levels over a narrow range, or more levels over a wider one. The back half runs with those that have about the
rate of the budget, and the one with the least damage to the outputs (damage.py) is chosen. docs/codec.md shows the
savings on three networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from splitwire.codec.design import Widening
from splitwire.codec.design.rate import RateOf
from splitwire.codec.errors import ExportError
from splitwire.codec.profile import TensorPoint, TensorSpec
from splitwire.codec.shared.progress import ProgressFn

from .measure import DamageOf, one_at_a_time
from .sharing import Cost, share_budget
from .tensors import CalibratedTensor, specs_of

LEVELS_TRIED = (2, 3, 4, 5, 6, 8, 12, 16, 32)
"""Numbers of levels tried."""

PILOT = 5
"""Number of levels of the pilot, which relates the coder's rate to the entropy; odd, so that zero is a level."""

INPUTS, INPUTS_SHARED = 64, 16
"""Number of inputs for the measurement of the damage, with one tensor and with several. Several tensors mostly mean a
detector, which is slow and finds several objects in an image."""

INPUTS_FIRST = 4
PROMISING = 4
"""With several tensors the back half is slow. So INPUTS_FIRST inputs select PROMISING candidates of each budget, and
only these run on all inputs. The damage of candidates differs by factors: the best one is among the first four."""

WORTHWHILE = 0.9
"""Preserved means make the encoder slower. They must reduce the damage to at most this share."""

GRID = 6
REACH = 4.0
"""To share a budget, each tensor gets one of GRID rates, from 1/REACH of the smallest budget to REACH times the
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
    widenings = [[_widenings(tensor, means) for tensor in tensors] for means in ways]
    report("Look at rates", 0, len(ways) * len(specs))
    pilots: list[list[Pilot]] = []
    for i, per_tensor in enumerate(widenings):
        pilots.append([])
        for per_level in per_tensor:
            pilot = per_level[LEVELS_TRIED.index(PILOT)]
            pilots[i].append((pilot, RateOf(pilot, between)))
            report("Look at rates", i * len(specs) + len(pilots[i]), len(ways) * len(specs))
    rates = _shared(specs, pilots[0], budgets, damage_of) if several else [[budget] for budget in budgets]
    candidates = [
        _Candidates(b, per_tensor, [rate_of.entropy(rate) for (_, rate_of), rate in zip(pilot_row, row, strict=True)])
        for b, row in enumerate(rates)
        for per_tensor, pilot_row in zip(widenings, pilots, strict=True)
    ]
    tried = [_Tried(candidate, row) for candidate in candidates for row in candidate.rows()]
    if several:
        tried = _promising(_ranked(tried, damage_of, "Look at ranges", INPUTS_FIRST))
    ranked = _ranked(tried, damage_of, "Try ranges", INPUTS_SHARED if several else INPUTS)
    designed: list[list[DesignedPoint]] = []
    for b, row in enumerate(rates):
        entropies, best = next((c.entropies, widening_row) for c, widening_row in ranked if c.budget == b)
        designed.append([])
        for i, (widening, entropy, rate) in enumerate(zip(best, entropies, row, strict=True)):
            report("Design for a budget", b * len(specs) + i, len(rates) * len(specs))
            designed[b].append(widening.design(rate, entropy=entropy))
    report("Design for a budget", len(rates) * len(specs), len(rates) * len(specs))
    return designed


def _has_planes(spec: TensorSpec) -> bool:
    """Whether the tensor has planes of more than one element, so that a mean can be preserved. Tokens have none."""
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
    """Per budget and tensor: bits per element, from the damage of the pilots at several rates."""
    grid = np.geomspace(min(budgets) / REACH, max(budgets) * REACH, GRID).tolist()
    choices = one_at_a_time([[pilot.for_entropy(rate_of.entropy(rate)) for rate in grid] for pilot, rate_of in pilots])
    damages = iter(damage_of(choices, "Share the bits", INPUTS_SHARED))
    costs = [[Cost(rate * spec.elements, next(damages)) for rate in grid] for spec in specs]
    rates = []
    for budget in budgets:
        bits = budget * sum(spec.elements for spec in specs)
        chosen = [of_tensor[k] for of_tensor, k in zip(costs, share_budget(costs, bits), strict=True)]
        scale = bits / sum(c.bits for c in chosen)  # bits that no step could use; or a budget below the smallest rates
        rates.append([scale * c.bits / spec.elements for c, spec in zip(chosen, specs, strict=True)])
    return rates


class _Candidates(NamedTuple):
    """The candidates for a budget: per tensor, the widenings for all numbers of levels, and the entropy that gives the
    rate of the tensor."""

    budget: int
    widenings: Sequence[Sequence[Widening]]
    entropies: Sequence[float]

    def rows(self) -> list[list[Widening]]:
        """One widening per tensor, for each number of levels that at least one tensor can have at its entropy.

        If no number of levels reaches the entropy, because the features have fewer bits, the finest one is used,
        without preserving means.
        """
        pairs = list(zip(self.widenings, self.entropies, strict=True))
        able = [k for k in range(len(LEVELS_TRIED)) if any(per_level[k].has(h) for per_level, h in pairs)]
        if not able and not any(per_level[0].preserves_mean for per_level in self.widenings):
            able = [len(LEVELS_TRIED) - 1]
        return [[_nearest(per_level, k, h) for per_level, h in pairs] for k in able]


class _Tried(NamedTuple):
    """One row of these candidates: a widening per tensor."""

    candidates: _Candidates
    row: list[Widening]


def _ranked(tried: Sequence[_Tried], damage_of: DamageOf, stage: str, inputs: int) -> list[_Tried]:
    """The rows in the order of their damage, the least first."""
    choices = [[w.for_entropy(h) for w, h in zip(row, candidates.entropies, strict=True)] for candidates, row in tried]
    damages = damage_of(choices, stage, inputs)
    means = [any(w.preserves_mean for w in row) for _, row in tried]
    costs = [d / WORTHWHILE if preserved else d for d, preserved in zip(damages, means, strict=True)]
    return [tried[i] for i in sorted(range(len(tried)), key=costs.__getitem__)]


def _promising(ranked: Sequence[_Tried]) -> list[_Tried]:
    """The first PROMISING of each budget; budgets in the order of their best one."""
    by_budget: dict[int, list[_Tried]] = {}
    for tried in ranked:
        by_budget.setdefault(tried.candidates.budget, []).append(tried)
    return [tried for members in by_budget.values() for tried in members[:PROMISING]]


def _nearest(widenings: Sequence[Widening], k: int, entropy: float) -> Widening:
    """The widening that can have this entropy and is nearest to the k-th; the finest one if none can."""
    able = [i for i, w in enumerate(widenings) if w.has(entropy)]
    return widenings[min(able, key=lambda i: abs(i - k))] if able else widenings[-1]
