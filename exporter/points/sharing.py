"""Share a bit budget among tensors for the least output distortion.

The damages of small independent changes nearly add up. So a division is optimal if the next bit reduces the damage
equally in every tensor. The algorithm takes steps along the lower convex hulls of (bits, damage), steepest first.
Source: Shoham and Gersho 1988, bit allocation for an arbitrary set of quantizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Cost(NamedTuple):
    """The cost of one quantizer for one tensor. bits: per image. damage: to the outputs, if only this tensor is
    quantized (damage.py)."""

    bits: float
    damage: float


def share_bits(costs: Sequence[Sequence[Cost]], start: Sequence[int]) -> list[int]:
    """Per tensor: the index of its choice. The sum of damages is small, and the bits are no more than those of `start`.

    costs: per tensor, those of its choices. Returns `start` if `share_budget` finds nothing better.
    """
    budget = _total(costs, start).bits
    chosen = share_budget(costs, budget)
    shared = _total(costs, chosen)
    return chosen if shared.bits <= budget and shared.damage < _total(costs, start).damage else list(start)


def share_budget(costs: Sequence[Sequence[Cost]], budget: float) -> list[int]:
    """Per tensor: the index of its choice, for a small sum of damages and at most `budget` bits.

    If the budget is too small, each tensor has the fewest bits. The search is greedy along the convex hulls, so it is
    at most one step from the optimum.
    """
    hulls = [_hull(of_tensor) for of_tensor in costs]
    chosen = [hull[0] for hull in hulls]
    spent = _total(costs, chosen).bits
    steps = [(_slope(costs[i][a], costs[i][b]), i, b) for i, hull in enumerate(hulls) for a, b in pairwise(hull)]
    blocked: set[int] = set()
    for _, i, b in sorted(steps, key=lambda step: -step[0]):
        extra = costs[i][b].bits - costs[i][chosen[i]].bits
        if i in blocked or spent + extra > budget:
            blocked.add(i)  # its later steps need this one
            continue
        chosen[i], spent = b, spent + extra
    return chosen


def _hull(costs: Sequence[Cost]) -> list[int]:
    """Indices of the costs on the lower convex hull of (bits, damage), from the fewest bits to the least damage."""
    hull: list[int] = []
    for k in sorted(range(len(costs)), key=lambda k: costs[k]):
        if hull and costs[k].damage >= costs[hull[-1]].damage:
            continue
        while len(hull) > 1 and _slope(costs[hull[-1]], costs[k]) >= _slope(costs[hull[-2]], costs[hull[-1]]):
            hull.pop()
        hull.append(k)
    return hull


def _slope(a: Cost, b: Cost) -> float:
    """Reduction of the damage per additional bit from a to b."""
    return (a.damage - b.damage) / max(b.bits - a.bits, 1e-9)


def _total(costs: Sequence[Sequence[Cost]], chosen: Sequence[int]) -> Cost:
    costs_taken = [of_tensor[k] for of_tensor, k in zip(costs, chosen, strict=True)]
    return Cost(sum(c.bits for c in costs_taken), sum(c.damage for c in costs_taken))
