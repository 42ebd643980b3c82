"""Parse the operating points that a caller requests: "4", "a4", "e4", "r0.4"."""

from __future__ import annotations

import re
from collections.abc import Sequence

from splitwire.codec.errors import UsageError
from splitwire.codec.tables import MAX_LEVELS

from .design import Kind

LEVELS = (2, 3, 4, 6, 8, "r0.1", "r0.2", "r0.3", "r0.4", "r0.6", "r0.8")
"""The default operating points: those in the tables of Cohen et al. 2021, and six budgets."""

FINE = (16, 32, 64, 128)
"""Additional default operating points if the outputs are neither classes nor detections: without a task, no coarse
point can be chosen."""

Levels = Sequence[int | str]
"""What `levels` takes: N for a uniform quantizer with N levels; "a<N>" for N levels over the range with the least
output distortion; "e<N>" for an entropy-constrained quantizer at the rate of N; "r<bits>" for the uniform quantizer
with the least output distortion at that many bits per element."""

MAX_RATE = 4
"""Largest number of bits per element in "r<bits>"."""


def check_levels(levels: Levels, default_op: str | None) -> list[Kind]:
    """The operating points to make, in order. Raises UsageError."""
    kinds = sorted(filter(None, map(_kind, levels)), key=_order)
    if not kinds or len(set(kinds)) != len(levels):
        raise UsageError(
            f"levels must be different numbers from 2 to {MAX_LEVELS}, a2 to a{MAX_LEVELS} for ranges chosen by the"
            f" answers, e2 to e{MAX_LEVELS} for entropy-constrained quantizers, or r0.001 to r{MAX_RATE} for bits per"
            f" element; are {list(levels)}"
        )
    names = [kind.name for kind in kinds]
    if default_op is not None and default_op not in names:
        raise UsageError(f"default operating point {default_op!r} is not among {', '.join(names)}")
    return kinds


def _order(kind: Kind) -> tuple[bool, float, int]:
    """Sort key: n2, a2, e2, n3, …, then the budgets."""
    return kind.family == "r", kind.value, "naer".index(kind.family)


def _kind(level: int | str) -> Kind | None:
    """4, "a4", "e4" or "r0.4"; None for anything else."""
    if not isinstance(level, str):
        return Kind(value=int(level)) if 2 <= level <= MAX_LEVELS else None
    if re.fullmatch("[ae][0-9]{1,3}", level) and 2 <= int(level[1:]) <= MAX_LEVELS:
        return Kind(value=int(level[1:]), family="a" if level[0] == "a" else "e")
    if re.fullmatch(r"r[0-9]{1,2}(\.[0-9]{1,3})?", level) and 0 < float(level[1:]) <= MAX_RATE:
        return Kind(value=float(level[1:]), family="r")
    return None
