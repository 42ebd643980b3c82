"""BD-rate: how many more bytes one curve needs than another, on average over the quality that both reach.

Source: G. Bjøntegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001, through the
`bjontegaard` library, with monotone cubic pieces (pchip) instead of one cubic, which swings between uneven points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from .results import Point

MIN_POINTS = 3
"""Least number of points in the envelope of each curve. The library accepts two, but a line through two points is no
curve. Video coding mostly uses four; its quality does not saturate."""

MIN_OVERLAP = 0.25
"""Least share of the reference's range of quality that both curves cover. An average over less says little about the
rest."""


class BdRate(Struct, frozen=True, kw_only=True):
    """rate: mean difference in bytes at equal quality, 0.5 is 50 % more than the reference; None if there is
    no rate, and `reason` says why.

    points: of the curve's envelope. overlap: share of the reference's range of quality that was compared.
    """

    rate: float | None
    reason: str | None = None
    points: int = 0
    overlap: float = 0.0


def envelope(points: Sequence[Point], figure: str) -> list[tuple[float, float]]:
    """(bytes, quality) of the points that no cheaper one equals or beats, both strictly increasing.

    Quality is the figure itself; of a divergence ("kl") it is −log10 of it, and points with a divergence of 0 are left
    out.
    """
    curve: list[tuple[float, float]] = []
    for p in sorted(points, key=lambda p: p.bytes):
        estimate = p.figures.get(figure)
        value = math.nan if estimate is None else _quality(figure, estimate.value)
        if not math.isfinite(value) or (curve and value <= curve[-1][1]):
            continue
        if curve and p.bytes == curve[-1][0]:
            curve.pop()
        curve.append((p.bytes, value))
    return curve


def _quality(figure: str, value: float) -> float:
    if figure != "kl":
        return value
    return -math.log10(value) if value > 0 else math.nan


def bd_rate(reference: Sequence[Point], points: Sequence[Point], figure: str) -> BdRate:
    """BD-rate of `points` against `reference` at equal `figure`."""
    import numpy as np
    from bjontegaard import bd_rate as library

    anchor, test = envelope(reference, figure), envelope(points, figure)
    if len(points) < MIN_POINTS:
        return BdRate(rate=None, reason=f"{_settings(len(points))}: no curve", points=len(test))
    if len(anchor) < MIN_POINTS:
        return BdRate(rate=None, reason=f"the reference improves at {_settings(len(anchor))} only", points=len(test))
    if len(test) < MIN_POINTS:
        return BdRate(rate=None, reason=f"improves at {_settings(len(test))} only", points=len(test))
    low, high = max(anchor[0][1], test[0][1]), min(anchor[-1][1], test[-1][1])
    overlap = max(high - low, 0.0) / (anchor[-1][1] - anchor[0][1])
    if overlap < MIN_OVERLAP:
        reason = "the curves reach no common quality"
        if overlap > 0:
            reason = f"the curves share {100 * overlap:.0f} % of the range only"
        return BdRate(rate=None, reason=reason, points=len(test), overlap=overlap)
    (anchor_bytes, anchor_quality), (test_bytes, test_quality) = np.array(anchor).T, np.array(test).T
    percent = library(
        anchor_bytes, anchor_quality, test_bytes, test_quality,
        method="pchip", require_matching_points=False, min_overlap=0,
    )  # fmt: skip
    return BdRate(rate=float(percent) / 100, points=len(test), overlap=overlap)


def _settings(n: int) -> str:
    return f"{n} setting{'s' * (n != 1)}"
