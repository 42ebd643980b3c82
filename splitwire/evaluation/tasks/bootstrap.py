"""Paired bootstrap over images: how far figures, and losses, would move on other images of the same kind.

Source: B. Efron, R. J. Tibshirani, "An Introduction to the Bootstrap", 1993, percentile intervals. Paired: a draw takes
the same images for both networks, so that the difficulty of the images cancels out of their difference. Where no image
is lost, no draw loses one either; the rule of three says what that leaves open (J. A. Hanley, A. Lippman-Hand, "If
Nothing Goes Wrong, Is Everything All Right?", JAMA 1983).
"""

from __future__ import annotations

from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from splitwire.evaluation.answer.results import Estimate

from .outcomes import Scored

Float64Array = NDArray[np.float64]

SHARES = (2.5, 97.5)
"""Percentiles: a 95 % interval."""

NONE_OF = 3.0
"""Where none of n images is lost, up to this number of n others may be, by the rule of three."""

_AT_ONCE = 1 << 22
"""Numbers drawn at a time."""


def intervals(
    whole: Scored, other: Scored, main: str, *, replicates: int | None = None, seed: int = 0
) -> tuple[dict[str, Estimate], Estimate]:
    """The figures of `other`, and its loss of `main` against `whole`, each with its 95 % interval.

    whole, other: of the same images in the same order. replicates: number of draws; None takes the task's (2,000; 200
    for COCO). Both networks, and all calls with the same seed, have the same draws. A draw without an answer (nothing
    to detect in any of its images) is left out. An interval always holds its value. Where `main` is a share of the
    images and none of them is lost, NONE_OF in as many are added to the upper end of the loss, which is at most 1.
    """
    if len(whole) != len(other):
        raise ValueError(f"{len(whole)} and {len(other)} images cannot be paired")
    times = other.replicates if replicates is None else replicates
    figures, reference = other.figures(), whole.figures()
    theirs, ours = (_draws(scored, times, seed) for scored in (other, whole))
    estimates = {name: _estimate(value, theirs[name]) for name, value in figures.items()}
    loss = _estimate(reference[main] - figures[main], ours[main] - theirs[main])
    before, after = whole.right(main), other.right(main)
    if before is not None and after is not None and bool((after >= before).all()):
        loss = msgspec.structs.replace(loss, high=min(loss.high + NONE_OF / len(whole), 1.0))
    return estimates, loss


@lru_cache(maxsize=2)
def _draws(scored: Scored, replicates: int, seed: int) -> dict[str, Float64Array]:
    """(replicates,) values of each figure. Cached, since the whole network is compared with every contender."""
    n = len(scored)
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // n)
    parts = []
    for start in range(0, replicates, step):
        rows = min(step, replicates - start)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        parts.append(scored.draws(np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _estimate(value: float, draws: Float64Array) -> Estimate:
    known = draws[np.isfinite(draws)]
    low, high = np.percentile(known, SHARES).tolist() if len(known) else (value, value)
    return Estimate(value=value, low=min(low, value), high=max(high, value))
