"""The one-screen answer of `splitwire compare` and of the report: figures of standings.py, sentences of verdict.py."""

from __future__ import annotations

from msgspec import Struct

from .results import Estimate, Evaluation
from .standings import USUAL_LOSS, Missed, Standing, check_budget, rank
from .verdict import verdict


class Comparison(Struct, frozen=True, kw_only=True):
    """The answer for one pair, at one budget: `standings` by bytes, cheapest first; `verdict`: sentences.

    upper: the upper bound of the loss is within the budget, not only the loss that was measured.
    """

    model: str
    cut: str
    images: int
    figure: str
    whole: Estimate
    max_loss: float
    upper: bool
    default_op: str
    standings: tuple[Standing, ...]
    missed: tuple[Missed, ...]
    verdict: tuple[str, ...]

    def __str__(self) -> str:
        """The verdict, a sentence a line."""
        return "\n".join(self.verdict)

    def of(self, family: str) -> Standing | None:
        """The standing of a family; None if it has none."""
        return next((s for s in self.standings if s.family == family), None)


def compare(evaluation: Evaluation, max_loss: float | None = None, *, upper: bool = False) -> Comparison:
    """Find, for each contender, the setting with the fewest bytes whose loss is at most `max_loss`.

    max_loss: of the main figure, in its own unit; None: the evaluation's budget, or 0.01. upper: the upper bound
    of the loss counts, as for the operating point that `evaluate` chooses.
    Raises UsageError for a negative one, or one of a share that is not below 1.
    """
    if max_loss is None:
        max_loss = USUAL_LOSS if evaluation.max_loss is None else evaluation.max_loss
    check_budget(max_loss, evaluation.figure)
    ranking = rank(evaluation, max_loss, upper=upper)
    return Comparison(
        model=evaluation.model,
        cut=evaluation.cut,
        images=evaluation.data.images,
        figure=evaluation.figure,
        whole=evaluation.whole[evaluation.figure],
        max_loss=max_loss,
        upper=upper,
        default_op=evaluation.default_op,
        standings=ranking.standings,
        missed=ranking.missed,
        verdict=verdict(evaluation, ranking),
    )
