"""The cheapest setting of every contender within a loss: figures only, verdict.py has the sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from splitwire.codec.errors import UsageError
from splitwire.evaluation.contenders import SPLITWIRE
from splitwire.evaluation.contenders.ladders import untried_below

from .results import Estimate, Evaluation, Point, Sends
from .wording import SHARES, count

USUAL_LOSS = 0.01
"""The budget where none is given: one per cent point of the main figure."""

SLACK = 1e-9
"""Rounding of binary fractions: 0.93 − 0.92 is a loss of 0.01, and a little more as a float."""


class Standing(Struct, frozen=True, kw_only=True):
    """The cheapest setting of a family within the budget.

    bytes, bits_per_element, encode_ms, loss: as in MeasuredPoint. ratio: its bytes over splitwire's, None where no
    setting of splitwire's qualifies. certain: the upper bound of the loss is within the budget too. untried: the
    setting, where it is the lowest of its ladder that was measured and lower ones exist: the family may do with fewer
    bytes; None where the next lower one is known to lose too much, or there is none.
    """

    family: str
    setting: str
    sends: Sends
    bytes: float
    bits_per_element: float
    encode_ms: float
    loss: Estimate
    certain: bool
    ratio: float | None
    untried: str | None = None

    @property
    def most(self) -> str:
        """Bytes as text; "≤ 654" where a lower setting was not tried."""
        return f"{'≤ ' if self.untried else ''}{count(self.bytes)}"

    @property
    def needs(self) -> str:
        """Bytes as text for a sentence: "at most 654" where a lower setting was not tried."""
        return f"{'at most ' if self.untried else ''}{count(self.bytes)}"


class Missed(Struct, frozen=True, kw_only=True):
    """A family without a setting within the budget. setting: the one that loses least."""

    family: str
    setting: str
    sends: Sends
    bytes: float
    loss: Estimate


class Ranking(Struct, frozen=True, kw_only=True):
    """Every contender at one budget.

    max_loss: the budget, of the main figure in its own unit. upper: losses count by their upper bound. standings: the
    families with a setting within the budget, fewest bytes first. missed: the others, least loss first.
    """

    max_loss: float
    upper: bool
    standings: tuple[Standing, ...]
    missed: tuple[Missed, ...]

    @property
    def ours(self) -> Standing | None:
        """Splitwire's standing; None if no operating point is within the budget."""
        return next((s for s in self.standings if s.family == SPLITWIRE), None)

    @property
    def picture(self) -> Standing | None:
        """The smallest picture within the budget; None if there is none."""
        return next((s for s in self.standings if s.sends == "image"), None)

    @property
    def other_features(self) -> Standing | None:
        """The smallest features within the budget that are not splitwire's; None if there are none."""
        return next((s for s in self.standings if s.sends == "features" and s.family != SPLITWIRE), None)

    def counted(self, loss: Estimate) -> float:
        """What of a loss is held to the budget: the measured value, or the upper bound."""
        return counted(loss, self.upper)


def rank(evaluation: Evaluation, max_loss: float, *, upper: bool = False) -> Ranking:
    """Find, for each family, the setting with the fewest bytes whose loss is at most `max_loss`.

    max_loss: of the main figure, in its own unit. upper: the upper bound of the loss counts.
    """
    standings, missed = [], []
    grouped = families(evaluation)
    cheapest = {family: _cheapest(points, max_loss, upper) for family, points in grouped.items()}
    ours = cheapest.get(SPLITWIRE)
    for family, points in grouped.items():
        p = cheapest[family]
        if p is None:
            p = min(points, key=lambda p: (counted(p.loss, upper), p.bytes))
            missed.append(Missed(family=family, setting=p.setting, sends=p.sends, bytes=p.bytes, loss=p.loss))
            continue
        lowest = untried_below(family, [p.setting for p in points])
        standings.append(
            Standing(
                family=family,
                setting=p.setting,
                sends=p.sends,
                bytes=p.bytes,
                bits_per_element=p.bits_per_element,
                encode_ms=p.encode_ms,
                loss=p.loss,
                certain=p.loss.high <= max_loss + SLACK,
                ratio=None if ours is None else p.bytes / ours.bytes,
                untried=p.setting if p.setting == lowest else None,
            )
        )
    standings.sort(key=lambda s: s.bytes)  # stable: splitwire is first among equals
    missed.sort(key=lambda m: counted(m.loss, upper))
    return Ranking(max_loss=max_loss, upper=upper, standings=tuple(standings), missed=tuple(missed))


def _cheapest(points: Sequence[Point], max_loss: float, upper: bool) -> Point | None:
    """Of one family's settings within the budget the one with the fewest bytes; None if there is none."""
    within = [p for p in points if counted(p.loss, upper) <= max_loss + SLACK]
    return min(within, key=lambda p: (p.bytes, counted(p.loss, upper)), default=None)


def counted(loss: Estimate, upper: bool) -> float:
    """The measured loss, or its upper bound."""
    return loss.high if upper else loss.value


def families(evaluation: Evaluation) -> dict[str, list[Point]]:
    """Points by family, splitwire first, the others in the order of the results; bytes increase within each."""
    grouped: dict[str, list[Point]] = {SPLITWIRE: []}
    for p in evaluation.points:
        grouped.setdefault(p.family, []).append(p)
    return {family: sorted(points, key=lambda p: p.bytes) for family, points in grouped.items() if points}


def is_level(evaluation: Evaluation) -> bool:
    """Whether the main figure is the same at every setting, so that it does not tell the settings apart."""
    return all(abs(p.loss.value) <= SLACK for p in evaluation.points)


def check_budget(max_loss: float, figure: str) -> None:
    """Raise UsageError for what cannot be a loss of this figure: below 0, or, of a share, 1 and more."""
    if not 0 <= max_loss < (1 if figure in SHARES else math.inf):
        raise UsageError(f"a loss of {max_loss:g} is out of range for {figure}; write it as 1% or 0.01")
