"""The settings of the picture codecs: where a ladder begins, and how far it goes on.

A contender's smallest size within a budget is known only if the next lower setting was measured and fails, or if there
is none. So every ladder is measured at its usual settings first, then goes on downwards while its lowest setting is
within the budget, and upwards while none is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

JPEG, WEBP, AVIF, HEVC_IMAGE = "JPEG", "WebP", "AVIF", "HEVC image"
HEVC, HEVC_SCREEN = "HEVC of features", "HEVC of features, screen"


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """One family's settings. unit: "q" (quality) or "qp" (quantization parameter).

    usual: measured always, in the order of tables. lower: the settings after them, fewer bytes each; the last is the
    end of the scale. higher: settings with more bytes than the usual ones, more bytes each.
    """

    unit: str
    usual: tuple[int, ...]
    lower: tuple[int, ...]
    higher: tuple[int, ...]

    @property
    def by_size(self) -> tuple[int, ...]:
        """All settings, fewest bytes first."""
        usual = self.usual if self.unit == "q" else self.usual[::-1]
        return (*self.lower[::-1], *usual, *self.higher)

    def setting(self, value: int) -> str:
        """Such as "q 30"."""
        return f"{self.unit} {value}"

    def value(self, setting: str) -> int | None:
        """The number in a setting; None if it is not of this ladder."""
        match = re.fullmatch(rf"{self.unit} (\d+)", setting, re.IGNORECASE)
        return None if match is None else int(match[1])

    def lowest(self, settings: Iterable[str]) -> int | None:
        """Of these settings the one with the fewest bytes; None if none is of this ladder."""
        values = [v for s in settings if (v := self.value(s)) is not None]
        return (min if self.unit == "q" else max)(values, default=None)

    def ends_at(self, value: int) -> bool:
        """Whether this is the end of the scale: no setting gives fewer bytes."""
        return value <= self.lower[-1] if self.unit == "q" else value >= self.lower[-1]


LADDERS: Mapping[str, Ladder] = {
    JPEG: Ladder(unit="q", usual=(30, 50, 70, 85, 95), lower=(20, 10, 5, 1), higher=(100,)),
    WEBP: Ladder(unit="q", usual=(20, 40, 60, 80, 95), lower=(10, 5, 0), higher=(100,)),
    AVIF: Ladder(unit="q", usual=(30, 45, 60, 75, 90), lower=(20, 10, 5, 0), higher=(100,)),
    HEVC_IMAGE: Ladder(unit="qp", usual=(20, 25, 30, 35, 40), lower=(43, 46, 49, 51), higher=(15, 10, 5, 0)),
    HEVC: Ladder(unit="qp", usual=(20, 25, 30, 34, 38, 42), lower=(46, 49, 51), higher=(15, 10, 5, 0)),
    HEVC_SCREEN: Ladder(unit="qp", usual=(20, 25, 30, 34, 38, 42), lower=(46, 49, 51), higher=(15, 10, 5, 0)),
}
"""By family. Pillow accepts JPEG quality 0 too; the file is that of quality 1."""


def following(family: str, losses: Mapping[str, float], budget: float) -> int | None:
    """The value to measure next; None if the ladder is done.

    losses: of every setting that was measured. Downwards while the setting with the fewest bytes is within the budget;
    upwards while none is.
    """
    ladder = LADDERS[family]
    measured = {v: loss for s, loss in losses.items() if (v := ladder.value(s)) is not None}
    if not measured:
        return None
    order = ladder.by_size
    rungs = [v for v in order if v in measured]
    if not any(loss <= budget for loss in measured.values()):
        return next(iter(order[order.index(rungs[-1]) + 1 :]), None)
    lower = order[: order.index(rungs[0])]
    return lower[-1] if lower and measured[rungs[0]] <= budget else None


def untried_below(family: str, settings: Iterable[str]) -> str | None:
    """The lowest of these settings, where its scale goes on below it; None otherwise, and for families with no
    ladder."""
    ladder = LADDERS.get(family)
    lowest = None if ladder is None else ladder.lowest(settings)
    return None if ladder is None or lowest is None or ladder.ends_at(lowest) else ladder.setting(lowest)
