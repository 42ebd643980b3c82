"""What a ranking means for the user, in sentences."""

from __future__ import annotations

from splitwire.evaluation.contenders import SPLITWIRE

from .results import Evaluation
from .standings import Ranking, Standing, is_level, rank
from .wording import budget_words, count, figure_words, loss_words, milliseconds, named, times, title


def verdict(evaluation: Evaluation, ranking: Ranking) -> tuple[str, ...]:
    """The sentences, the most important first. ranking: of the same evaluation."""
    ours = ranking.ours
    sentences = _all_the_same(evaluation)
    if ours is None:
        sentences += _without_ours(evaluation, ranking)
    else:
        sentences += _against_pictures(evaluation, ranking, ours)
        sentences += _against_features(ranking, ours)
        sentences += _uncertain(evaluation, ranking, ours)
    return (*sentences, *_not_tried(ranking))


def _all_the_same(evaluation: Evaluation) -> list[str]:
    """Where no setting loses anything, the figure does not tell the settings apart."""
    if not is_level(evaluation):
        return []
    value = figure_words(evaluation.figure, evaluation.whole[evaluation.figure].value)
    kl = "; the KL divergence does" if any("kl" in p.figures for p in evaluation.points) else ""
    return [
        f"Every setting of every contender has {value} {title(evaluation.figure)} on these"
        f" {evaluation.data.images:,} images, as the whole network has: they do not tell the settings apart{kl}. More"
        " images would."
    ]


def _without_ours(evaluation: Evaluation, ranking: Ranking) -> list[str]:
    """Where no operating point of splitwire is within the budget: how far the best is from it, and what is within."""
    picture, features = ranking.picture, ranking.other_features
    sentences = []
    best = next((m for m in ranking.missed if m.family == SPLITWIRE), None)
    if best is not None:
        budget = budget_words(evaluation.figure, ranking.max_loss)
        sentences.append(
            f"No operating point of splitwire stays within a loss of {budget}: the best, {best.setting}, "
            f"loses {loss_words(evaluation.figure, ranking.counted(best.loss))}. Export more levels, or cut elsewhere."
        )
    if picture is not None and (features is None or picture.bytes < features.bytes):
        sentences.append(
            f"Sending the picture is the better choice here: {named(picture)} needs {picture.needs} bytes "
            f"within the budget{_front_saved(evaluation)}."
        )
    elif features is not None:
        sentences.append(f"{named(features)} needs the fewest bytes within the budget, {count(features.bytes)}.")
    return sentences


def _against_pictures(evaluation: Evaluation, ranking: Ranking, ours: Standing) -> list[str]:
    """Whether the picture is the better choice; [] where no picture codec was measured."""
    picture = ranking.picture
    if picture is not None and picture.bytes < ours.bytes:
        return [
            f"Sending the picture is the better choice here: {named(picture)} needs {picture.needs} bytes where "
            f"{named(ours)} needs {count(ours.bytes)}, within the same loss{_front_saved(evaluation)}."
        ]
    if picture is not None:
        measured = " measured" if any(s.untried for s in ranking.standings if s.sends == "image") else ""
        return [
            f"{named(ours)} needs {count(ours.bytes)} bytes; the smallest picture{measured} within "
            f"the same loss is {times(picture.bytes / ours.bytes)} as large ({named(picture)}, {count(picture.bytes)} "
            "bytes)."
        ]
    closest = next((m for m in ranking.missed if m.sends == "image"), None)
    if closest is None:
        return []
    return [
        f"No picture codec stays within a loss of {budget_words(evaluation.figure, ranking.max_loss)}; the closest,"
        f" {named(closest)}, loses {loss_words(evaluation.figure, ranking.counted(closest.loss))}. {named(ours)} needs"
        f" {count(ours.bytes)} bytes."
    ]


def _against_features(ranking: Ranking, ours: Standing) -> list[str]:
    """The best other way to send features; [] where none is within the budget."""
    features = ranking.other_features
    if features is None:
        return []
    encoding = f"{milliseconds(features.encode_ms)} ms to encode, against {milliseconds(ours.encode_ms)} ms"
    if features.bytes < ours.bytes:
        return [
            f"Among features, {named(features)} needs fewer bytes than splitwire: {features.needs} against "
            f"{count(ours.bytes)}, and takes {encoding}."
        ]
    return [
        f"The next way to send features ({named(features)}) needs {times(features.bytes / ours.bytes)} the bytes "
        f"({count(features.bytes)}) and takes {encoding}."
    ]


def _uncertain(evaluation: Evaluation, ranking: Ranking, ours: Standing) -> list[str]:
    """Where only the measured loss is within the budget: the bound, and the ranking by it."""
    if ours.certain:
        return []
    sentences = [
        f"On {evaluation.data.images:,} images the loss of {named(ours)} may be as high as "
        f"{loss_words(evaluation.figure, ours.loss.high)} (95 % interval)."
    ]
    by_bound = rank(evaluation, ranking.max_loss, upper=True)
    if by_bound.ours is not None:
        first = "; ".join(f"{named(s)} with {count(s.bytes)} bytes" for s in by_bound.standings[:3])
        sentences.append(f"By that bound, which --max-loss goes by, the cheapest are {first}.")
    return sentences


def _not_tried(ranking: Ranking) -> list[str]:
    """What may need fewer bytes than was measured; [] if every ladder was followed to its end."""
    below = [f"{s.family} below {s.untried}" for s in ranking.standings if s.untried]
    if not below:
        return []
    return [
        f"Not tried: {', '.join(below)}. These are still within the budget at their lowest measured setting, so that"
        " fewer bytes than these may do; evaluate again with --max-loss at this budget."
    ]


def _front_saved(evaluation: Evaluation) -> str:
    """The device's work that sending the picture saves, where it was measured."""
    front = evaluation.stages.get("front")
    return "" if front is None else f", and the device is spared the front ({milliseconds(front)} ms)"
