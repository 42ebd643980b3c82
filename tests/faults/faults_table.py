"""A row of the table of faults, and the table as text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a fault did.

    trials: how often it was caused. promised: frames that were acknowledged to the caller. lost, twice, wrong: of
    those, which must all be 0. note: what else was counted. allowed: frames whose loss is the fault itself, as a
    record with a flipped byte; they are not in `lost`.
    """

    fault: str
    trials: int
    promised: int
    lost: int
    twice: int
    wrong: int
    note: str = ""
    allowed: int = 0

    @property
    def good(self) -> bool:
        """Whether nothing was lost, delivered twice or wrong."""
        return not (self.lost or self.twice or self.wrong)


HEADINGS = ("fault", "trials", "promised", "lost", "twice", "wrong", "hit by the fault itself", "")


def cells(row: Row) -> tuple[str, ...]:
    """The row as text."""
    numbers = (row.trials, row.promised, row.lost, row.twice, row.wrong, row.allowed)
    return (row.fault, *(f"{n:,}" for n in numbers), row.note)


def markdown(rows: Sequence[Row]) -> str:
    """The table of a page."""
    lines = [HEADINGS, ("---", *["--:"] * 6, "---"), *(cells(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
