"""The operating point for a budget: the cheapest one whose loss is within it by its upper bound."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import Struct

from splitwire.evaluation.contenders import SPLITWIRE

from .results import Point
from .standings import SLACK


class Choice(Struct, frozen=True, kw_only=True):
    """chosen: the cheapest operating point whose upper bound of the loss is within the budget; None if there is none.

    nearest: the one with the lowest upper bound.
    """

    chosen: Point | None
    nearest: Point


def choose(points: Sequence[Point], max_loss: float, over_budget: Collection[str] = ()) -> Choice:
    """Choose among the points of splitwire, of which there must be at least one.

    max_loss: of the main figure, in its own unit. The upper end of the loss's 95 % interval counts: with fewer images
    it is higher, and the choice more careful. over_budget: operating points that are chosen only if there are no
    others.
    """
    ours = [p for p in points if p.family == SPLITWIRE]
    ours = [p for p in ours if p.setting not in over_budget] or ours
    within = [p for p in ours if p.loss.high <= max_loss + SLACK]
    return Choice(
        chosen=min(within, key=lambda p: (p.bytes, p.loss.high), default=None),
        nearest=min(ours, key=lambda p: (p.loss.high, p.bytes)),
    )
