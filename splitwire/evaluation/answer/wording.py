"""Figures, losses and sizes as text, in sentences, tables and on axes; and the text of a loss as a number."""

from __future__ import annotations

import math
from typing import Protocol

from splitwire.codec.errors import UsageError

SHARES = frozenset({"top1", "top5", "agreement", "map50", "map", "miou", "pixels"})
"""Figures in [0, 1], which are written as per cent."""

TITLES = {
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "agreement": "agreement with the whole network",
    "kl": "KL divergence from the whole network",
    "map50": "mAP@0.5",
    "map": "mAP@[.5:.95]",
    "miou": "mIoU",
    "pixels": "pixel accuracy",
}
HEADINGS = {**TITLES, "top1": "Top-1", "top5": "Top-5", "agreement": "agreement", "kl": "KL, nats"}


class Setting(Protocol):
    """A contender at one setting: a point that was measured, a standing, or the contender itself."""

    @property
    def family(self) -> str:
        """The curve that it belongs to."""

    @property
    def setting(self) -> str:
        """Where on the curve; "" if the family has one setting only."""


def named(contender: Setting) -> str:
    """Family and setting, such as "JPEG q 75"; no two contenders share it."""
    return f"{contender.family} {contender.setting}".strip()


def title(figure: str) -> str:
    """The name of a figure on axes and in sentences; a user's metric keeps its own."""
    return TITLES.get(figure, figure)


def heading(figure: str) -> str:
    """The name of a figure over the column of a table."""
    return HEADINGS.get(figure, figure)


def figure_words(figure: str, value: float) -> str:
    """A figure as text: shares in per cent, KL in nats, a user's metric as it is."""
    if not math.isfinite(value):
        return "–"
    if figure in SHARES:
        return f"{100 * value:.2f} %"
    return f"{value:.4f}" if figure == "kl" else f"{value:.4g}"


def loss_words(figure: str, value: float) -> str:
    """A loss as text: per cent points, or in the figure's own unit."""
    if figure not in SHARES:
        return f"{value:.4g}"
    return f"{round(100 * value, 2) + 0.0:.2f} %"  # no negative zero


def budget_words(figure: str, value: float) -> str:
    """A largest loss as text, with no more decimals than it has: 1 %, 0.5 %."""
    return f"{100 * value:.4g} %" if figure in SHARES else f"{value:.4g}"


def count(value: float) -> str:
    """A number of bytes as text; below 100 with one decimal."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def milliseconds(value: float) -> str:
    """Milliseconds as text, two or three significant digits."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.3g}"


def times(ratio: float) -> str:
    """A ratio as text: 2.40×."""
    return f"{ratio:,.0f}×" if ratio >= 99.5 else f"{ratio:.1f}×" if ratio >= 9.95 else f"{ratio:.2f}×"


def parse_loss(text: str) -> float:
    """A loss as the user writes it, "1%" or "0.01", as a number. Raises UsageError for anything else."""
    stripped = text.strip()
    try:
        value = float(stripped.removesuffix("%")) / (100 if stripped.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UsageError(f"a loss is such as 1% or 0.01, not {text!r}")
    return value
