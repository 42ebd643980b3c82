"""Which contender is cheapest at a given loss: the one-screen answer of `splitwire compare` and of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from splitwire.codec.errors import UsageError
from splitwire.evaluation.contenders.ladders import untried_below

from .results import FILE, Estimate, Evaluation, Point, Sends

FOLDER = "evaluation"
"""Where `splitwire evaluate DIR` writes, below DIR."""

OURS = "splitwire"
"""The family that the others are compared with."""

USUAL_LOSS = 0.01
"""Where no budget was given: one per cent point of the main figure."""

SLACK = 1e-9
"""Ten images of a thousand are a loss of 0.01, whatever binary fractions make of 0.93 − 0.92."""

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


class Standing(Struct, frozen=True, kw_only=True):
    """The cheapest setting of a family within the budget.

    bytes, bits_per_element, encode_ms, loss: as in MeasuredPoint. ratio: its bytes over splitwire's, None where no
    setting of splitwire's qualifies. certain: the upper bound of the loss is within the budget too. untried: the
    setting, where it is the lowest of its ladder that was measured and lower ones exist: the family may do with fewer
    bytes; None where the next lower one is known to lose too much, or there is none.
    """

    family: str
    setting: str
    sends: Sends
    bytes: float
    bits_per_element: float
    encode_ms: float
    loss: Estimate
    certain: bool
    ratio: float | None
    untried: str | None = None

    @property
    def most(self) -> str:
        """Bytes as text; "≤ 654" where a lower setting was not tried."""
        return f"{'≤ ' if self.untried else ''}{count(self.bytes)}"

    @property
    def needs(self) -> str:
        """The same in a sentence: "at most 654"."""
        return f"{'at most ' if self.untried else ''}{count(self.bytes)}"


class Missed(Struct, frozen=True, kw_only=True):
    """A family without a setting within the budget. setting: the one that loses least."""

    family: str
    setting: str
    sends: Sends
    bytes: float
    loss: Estimate


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
    best = _cheapest(evaluation, max_loss, upper=upper)
    grouped = families(evaluation)
    lowest = {family: untried_below(family, [p.setting for p in points]) for family, points in grouped.items()}
    missed = []
    for family, points in grouped.items():
        if family not in best:
            p = min(points, key=lambda p: (counted(p.loss, upper), p.bytes))
            missed.append(Missed(family=family, setting=p.setting, sends=p.sends, bytes=p.bytes, loss=p.loss))
    ours = best.get(OURS)
    standings = [
        Standing(
            family=family,
            setting=p.setting,
            sends=p.sends,
            bytes=p.bytes,
            bits_per_element=p.bits_per_element,
            encode_ms=p.encode_ms,
            loss=p.loss,
            certain=p.loss.high <= max_loss + SLACK,
            ratio=None if ours is None else p.bytes / ours.bytes,
            untried=p.setting if p.setting == lowest[family] else None,
        )
        for family, p in best.items()
    ]
    standings.sort(key=lambda s: s.bytes)  # of equals ours is first: the sort is stable
    missed.sort(key=lambda m: counted(m.loss, upper))
    return Comparison(
        model=evaluation.model,
        cut=evaluation.cut,
        images=evaluation.data.images,
        figure=evaluation.figure,
        whole=evaluation.whole[evaluation.figure],
        max_loss=max_loss,
        upper=upper,
        default_op=evaluation.default_op,
        standings=tuple(standings),
        missed=tuple(missed),
        verdict=_verdict(evaluation, standings, missed, max_loss, upper),
    )


def _cheapest(evaluation: Evaluation, max_loss: float, *, upper: bool) -> dict[str, Point]:
    """Per family that has one, the setting with the fewest bytes among those within the budget."""
    return {
        family: min(within, key=lambda p: (p.bytes, counted(p.loss, upper)))
        for family, points in families(evaluation).items()
        if (within := [p for p in points if counted(p.loss, upper) <= max_loss + SLACK])
    }


def counted(loss: Estimate, upper: bool) -> float:
    """The measured loss, or its upper bound."""
    return loss.high if upper else loss.value


def families(evaluation: Evaluation) -> dict[str, list[Point]]:
    """Points by family, splitwire first, the others in the order of the results; bytes increase within each."""
    grouped: dict[str, list[Point]] = {OURS: []}
    for p in evaluation.points:
        grouped.setdefault(p.family, []).append(p)
    return {family: sorted(points, key=lambda p: p.bytes) for family, points in grouped.items() if points}


def is_level(evaluation: Evaluation) -> bool:
    """Whether the main figure is the same for every setting, so that it tells nothing apart."""
    return all(abs(p.loss.value) <= SLACK for p in evaluation.points)


def _verdict(
    evaluation: Evaluation, standings: list[Standing], missed: list[Missed], max_loss: float, upper: bool
) -> tuple[str, ...]:
    """What a user should take from it, in sentences."""
    figure = evaluation.figure
    budget = budget_words(figure, max_loss)
    ours = next((s for s in standings if s.family == OURS), None)
    picture = next((s for s in standings if s.sends == "image"), None)
    features = next((s for s in standings if s.sends == "features" and s.family != OURS), None)
    said: list[str] = []
    if is_level(evaluation):
        value = figure_words(figure, evaluation.whole[figure].value)
        kl = "; the KL divergence does" if any("kl" in p.figures for p in evaluation.points) else ""
        said.append(
            f"Every setting of every contender has {value} {title(figure)} on these {evaluation.data.images:,} images,"
            f" as the whole network has: they do not tell the settings apart{kl}. More images would."
        )
    if ours is None:
        least = next((m for m in missed if m.family == OURS), None)
        if least is not None:
            said.append(
                f"No operating point of splitwire stays within a loss of {budget}: the best, {least.setting}, "
                f"loses {loss_words(figure, counted(least.loss, upper))}. Export more levels, or cut elsewhere."
            )
        if picture is not None and (features is None or picture.bytes < features.bytes):
            said.append(
                f"Sending the picture is the better choice here: {named(picture)} needs {picture.needs} bytes "
                f"within the budget{_front_saved(evaluation)}."
            )
        elif features is not None:
            said.append(f"{named(features)} needs the fewest bytes within the budget, {count(features.bytes)}.")
        return (*said, *_not_tried(standings))
    if picture is not None and picture.bytes < ours.bytes:
        said.append(
            f"Sending the picture is the better choice here: {named(picture)} needs {picture.needs} bytes where "
            f"{named(ours)} needs {count(ours.bytes)}, within the same loss{_front_saved(evaluation)}."
        )
    elif picture is not None:
        measured = " measured" if any(s.untried for s in standings if s.sends == "image") else ""
        said.append(
            f"{named(ours)} needs {count(ours.bytes)} bytes; the smallest picture{measured} within "
            f"the same loss is {times(picture.bytes / ours.bytes)} as large ({named(picture)}, {count(picture.bytes)} "
            "bytes)."
        )
    elif any(m.sends == "image" for m in missed):
        closest = min((m for m in missed if m.sends == "image"), key=lambda m: counted(m.loss, upper))
        said.append(
            f"No picture codec stays within a loss of {budget}; the closest, {named(closest)}, loses "
            f"{loss_words(figure, counted(closest.loss, upper))}. {named(ours)} needs {count(ours.bytes)} bytes."
        )
    if features is not None and features.bytes < ours.bytes:
        said.append(
            f"Among features, {named(features)} needs fewer bytes than splitwire: {features.needs} against "
            f"{count(ours.bytes)}, and takes {milliseconds(features.encode_ms)} ms to encode, against "
            f"{milliseconds(ours.encode_ms)} ms."
        )
    elif features is not None:
        said.append(
            f"The next way to send features ({named(features)}) needs {times(features.bytes / ours.bytes)} the bytes "
            f"({count(features.bytes)}) and takes {milliseconds(features.encode_ms)} ms to encode, against "
            f"{milliseconds(ours.encode_ms)} ms."
        )
    if not ours.certain:
        said.append(
            f"On {evaluation.data.images:,} images the loss of {named(ours)} may be as high as "
            f"{loss_words(figure, ours.loss.high)} (95 % interval)."
        )
        certain = sorted(_cheapest(evaluation, max_loss, upper=True).values(), key=lambda p: p.bytes)
        if any(p.family == OURS for p in certain):
            first = "; ".join(f"{named(p)} with {count(p.bytes)} bytes" for p in certain[:3])
            said.append(f"By that bound, which --max-loss goes by, the cheapest are {first}.")
    return (*said, *_not_tried(standings))


def _not_tried(standings: Sequence[Standing]) -> list[str]:
    """What may need fewer bytes than was measured, in a sentence; [] if every ladder was followed to its end."""
    found = [f"{s.family} below {s.untried}" for s in standings if s.untried]
    if not found:
        return []
    return [
        f"Not tried: {', '.join(found)}. These are still within the budget at their lowest measured setting, so that"
        " fewer bytes than these may do; evaluate again with --max-loss at this budget."
    ]


def _front_saved(evaluation: Evaluation) -> str:
    """The device's work that sending the picture saves, where it was measured."""
    front = evaluation.stages.get("front")
    return "" if front is None else f", and the device is spared the front ({milliseconds(front)} ms)"


def named(contender: Point | Standing | Missed) -> str:
    """Family and setting."""
    return f"{contender.family} {contender.setting}".strip()


def title(figure: str) -> str:
    """What a figure is called on axes and in sentences; a user's metric by its own name."""
    return TITLES.get(figure, figure)


def heading(figure: str) -> str:
    """The same, over the column of a table."""
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
    """Bytes as text: with decimals only where they say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def milliseconds(value: float) -> str:
    """Milliseconds as text, two or three significant digits."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.3g}"


def times(ratio: float) -> str:
    """A ratio as text: 2.4×."""
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


def check_budget(max_loss: float, figure: str) -> None:
    """Raise UsageError for what cannot be a loss of this figure: below 0, or, of a share, 1 and more."""
    if not 0 <= max_loss < (1 if figure in SHARES else math.inf):
        raise UsageError(f"a loss of {max_loss:g} is out of range for {figure}; write it as 1% or 0.01")


def evaluation_folder(path: Path) -> Path:
    """The folder with the results: `path`, or evaluation/ in it. Raises UsageError if there are none."""
    if not path.exists():
        raise UsageError(f"{path}: there is no such folder")
    if not path.is_dir():
        raise UsageError(f"{path} is a file; name the folder of a pair, or of an evaluation")
    for folder in (path, path / FOLDER):
        if (folder / FILE).is_file():
            return folder
    raise UsageError(f"{path} holds no {FILE}, nor does {path / FOLDER}; make one with splitwire evaluate {path}")
