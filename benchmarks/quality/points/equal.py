"""Bytes of schemes at equal damage, their ratios, and the geometric mean over cuts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .records import Record, Row

MAX_LOSS = 0.01
"""Of the score, absolute; without labels of the agreement."""
LEAST_DAMAGE = 1e-9
"""Damages below count as this one: logarithms are interpolated."""


def bytes_at(rows: Iterable[Row], damage: float) -> float | None:
    """Bytes that a scheme needs for `damage`, between its points interpolated in logarithms.

    Only points without another one of fewer bytes and less damage count. Where even the smallest one has less damage
    than asked for, its bytes; None where no point has as little.
    """
    best: list[Row] = []
    for row in sorted(rows, key=lambda r: (r.bytes, r.damage)):
        if not best or row.damage < best[-1].damage:
            best.append(row)
    x = np.log([max(r.damage, LEAST_DAMAGE) for r in reversed(best)])
    if not best or np.log(damage) < x[0]:
        return None
    return float(np.exp(np.interp(np.log(damage), x, np.log([r.bytes for r in reversed(best)]))))


def bytes_within(record: Record, loss: float = MAX_LOSS) -> float | None:
    """Bytes of the smallest measured point that loses at most `loss` of the score, or without labels of the agreement.
    None where none does."""
    floor = (1.0 if record.whole is None else record.whole) - loss - 1e-12
    enough = [r.bytes for r in record.rows if (r.agreement if r.score is None else r.score) >= floor]
    return min(enough, default=None)


def geometric_mean(ratios: Iterable[float | None]) -> float | None:
    """Of the ratios that are there; None without any."""
    there = [r for r in ratios if r is not None]
    return float(np.exp(np.mean(np.log(there)))) if there else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Schemes at one cut. bytes: scheme → bytes at each of `damages`. within: scheme → bytes at MAX_LOSS."""

    cut: str
    damages: tuple[float, ...]
    bytes: Mapping[str, tuple[float | None, ...]]
    within: Mapping[str, float | None]

    @classmethod
    def of(cls, records: Sequence[Record], damages: tuple[float, ...]) -> Comparison:
        """records: of one cut, at least one."""
        return cls(
            cut=records[0].cut,
            damages=damages,
            bytes={r.scheme: tuple(bytes_at(r.rows, d) for d in damages) for r in records},
            within={r.scheme: bytes_within(r) for r in records},
        )

    def ratios(self, scheme: str, other: str) -> tuple[float | None, ...]:
        """Bytes of `scheme` over those of `other` at each damage; None where one of them is missing."""
        none = (None,) * len(self.damages)
        pairs = zip(self.bytes.get(scheme, none), self.bytes.get(other, none), strict=True)
        return tuple(None if a is None or b is None else a / b for a, b in pairs)

    def ratio(self, scheme: str, other: str) -> float | None:
        """Geometric mean of `ratios`."""
        return geometric_mean(self.ratios(scheme, other))

    def ratio_within(self, scheme: str, other: str) -> float | None:
        """The same at MAX_LOSS."""
        a, b = self.within.get(scheme), self.within.get(other)
        return None if a is None or b is None else a / b
