"""Sharing a bit budget among tensors for the least output distortion.

Damages of small independent changes nearly add up. So a division is optimal if the next bit reduces the damage equally
in every tensor: take steps along the lower convex hulls of (bits, damage), steepest first.
Source: Shoham and Gersho 1988, bit allocation for an arbitrary set of quantizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Cost(NamedTuple):
    """What quantizing one tensor in one way costs. bits: per image. damage: of the answers, if only this tensor is
    quantized (damage.py)."""

    bits: float
    damage: float


def share_bits(costs: Sequence[Sequence[Cost]], start: Sequence[int]) -> list[int]:
    """Per tensor the index of what it gets: the least damage in sum that costs no more bits than `start` does.

    costs: per tensor those of its choices. Where what `share_budget` finds is worse than `start`, it is `start`.
    """
    budget = _total(costs, start).bits
    chosen = share_budget(costs, budget)
    found = _total(costs, chosen)
    return chosen if found.bits <= budget and found.damage < _total(costs, start).damage else list(start)


def share_budget(costs: Sequence[Sequence[Cost]], budget: float) -> list[int]:
    """Per tensor the index of what it gets: the least damage in sum for at most `budget` bits, or else the fewest bits.

    Greedy along the convex hulls, so at most one step short of the best.
    """
    hulls = [_hull(own) for own in costs]
    chosen = [hull[0] for hull in hulls]
    spent = _total(costs, chosen).bits
    steps = [(_slope(costs[i][a], costs[i][b]), i, b) for i, hull in enumerate(hulls) for a, b in pairwise(hull)]
    blocked: set[int] = set()
    for _, i, b in sorted(steps, key=lambda step: -step[0]):
        extra = costs[i][b].bits - costs[i][chosen[i]].bits
        if i in blocked or spent + extra > budget:
            blocked.add(i)  # its later steps build on this one
            continue
        chosen[i], spent = b, spent + extra
    return chosen


def _hull(own: Sequence[Cost]) -> list[int]:
    """Indices of those on the lower convex hull of (bits, damage), from the cheapest to the least damage."""
    hull: list[int] = []
    for k in sorted(range(len(own)), key=lambda k: own[k]):
        if hull and own[k].damage >= own[hull[-1]].damage:
            continue
        while len(hull) > 1 and _slope(own[hull[-1]], own[k]) >= _slope(own[hull[-2]], own[hull[-1]]):
            hull.pop()
        hull.append(k)
    return hull


def _slope(a: Cost, b: Cost) -> float:
    """Damage that is saved per bit on the way from a to b."""
    return (a.damage - b.damage) / max(b.bits - a.bits, 1e-9)


def _total(costs: Sequence[Sequence[Cost]], chosen: Sequence[int]) -> Cost:
    taken = [own[k] for own, k in zip(costs, chosen, strict=True)]
    return Cost(sum(c.bits for c in taken), sum(c.damage for c in taken))
