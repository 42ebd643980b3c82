"""Operating points that spend more than the bits that they are named after: some features cannot be had for fewer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .profile import OperatingPoint

TOLERANCE = 0.05
"""Of the budget: what a point may spend more. The search aims just below; tables for whole images differ a little."""


def budget_of(name: str) -> float | None:
    """Bits per element that an operating point is named after: 0.4 of "r0.4"; None of any other kind."""
    found = re.fullmatch(r"r(\d+(?:\.\d+)?)", name)
    return None if found is None else float(found[1])


def is_overspent(point: OperatingPoint) -> bool:
    """Whether the point is expected to spend more than its budget."""
    budget = budget_of(point.name)
    return budget is not None and point.bits_per_element > (1 + TOLERANCE) * budget


def overspent_note(points: Sequence[OperatingPoint]) -> str | None:
    """The points that are, in a sentence; None if none is."""
    found = [p for p in points if is_overspent(p)]
    if not found:
        return None
    each = ", ".join(f"{p.name} takes {p.bits_per_element:.3f}" for p in found)
    return (
        f"over budget, and never the default beside others: {each} bits per element; these features cannot be had for"
        " so few"
    )
