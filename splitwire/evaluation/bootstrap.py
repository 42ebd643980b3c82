"""Paired bootstrap over images."""

from __future__ import annotations

from splitwire.evaluation.results import Estimate
from splitwire.evaluation.tasks import Scored


def intervals(
    whole: Scored, other: Scored, main: str, *, replicates: int | None = None, seed: int = 0
) -> tuple[dict[str, Estimate], Estimate]:
    """The figures of `other`, and its loss of `main` against `whole`, each with its 95 % interval.

    whole, other: of the same images in the same order. replicates: None takes what the task is worth (2,000; 200 for
    COCO). The same draws for both, and for every call with the same seed. Percentiles 2.5 and 97.5.
    """
    raise NotImplementedError
