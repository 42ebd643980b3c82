"""From measured batches to figures: every contender's point with its intervals, and the images where answers differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from splitwire.codec.shared.progress import ProgressFn
from splitwire.evaluation.answer.results import Disagreement, Estimate, Point, Sends
from splitwire.evaluation.answer.wording import named
from splitwire.evaluation.contenders import SPLITWIRE
from splitwire.evaluation.contenders.protocol import FeatureContender, ImageContender
from splitwire.evaluation.tasks.bootstrap import intervals
from splitwire.evaluation.tasks.tasks import Outcome, Scored

from .measure import WHOLE, Measurement, Reader, received, thumbnail
from .store import Batch

SHOWN_DISAGREEMENTS = 24


def scored(setup: Measurement, batches: Sequence[Batch], key: str) -> Scored:
    """The outcomes of all images. key: WHOLE, or what was received (measure.received)."""
    return setup.task.scored([outcome for batch in batches for outcome in _outcomes(batch, key)])


def _outcomes(batch: Batch, key: str) -> list[Outcome]:
    return msgspec.msgpack.decode(batch.outcomes[key], type=list[Outcome]) if batch.images else []


def points(
    setup: Measurement, batches: Sequence[Batch], progress: ProgressFn
) -> tuple[dict[str, Estimate], tuple[Point, ...]]:
    """The figures of the whole network, by name, and the point of each contender: features first, then pictures."""
    reference = scored(setup, batches, WHOLE)
    whole, _ = intervals(reference, reference, setup.task.main)
    keys = dict.fromkeys(received(c) for c in setup.contenders)
    estimates: dict[str, tuple[dict[str, Estimate], Estimate]] = {}
    for key in keys:
        progress("Confidence intervals", len(estimates), len(keys))
        estimates[key] = intervals(reference, scored(setup, batches, key), setup.task.main)
    progress("Confidence intervals", len(keys), len(keys))

    def point(contender: FeatureContender | ImageContender, sends: Sends) -> Point:
        sendings = [batch.sendings[named(contender)] for batch in batches if batch.images]
        size = float(np.mean([n for sending in sendings for n in sending.sent]))
        figures, loss = estimates[received(contender)]
        return Point(
            family=contender.family,
            setting=contender.setting,
            sends=sends,
            bytes=size,
            bits_per_element=8 * size / setup.pair.elements,
            encode_ms=float(np.median([ns for sending in sendings for ns in sending.ns]) / 1e6),
            figures=figures,
            loss=loss,
        )

    return whole, (*(point(c, "features") for c in setup.features), *(point(c, "image") for c in setup.images))


def disagreements(setup: Measurement, batches: Sequence[Batch], op: str) -> Iterator[Disagreement]:
    """The images that the whole network and the split one at `op` answer most differently, the worst first."""
    key = next(received(c) for c in setup.features if (c.family, c.setting) == (SPLITWIRE, op))
    task = setup.task
    differing = [
        (task.disagreement(whole, split), i, whole, split)
        for batch in batches
        for i, whole, split in zip(batch.images, _outcomes(batch, WHOLE), _outcomes(batch, key), strict=True)
        if task.disagreement(whole, split) > 0
    ]
    differing.sort(key=lambda one: -one[0])  # stable: of equals the first in the data
    answers = {i: (task.answer(whole), task.answer(split)) for _, i, whole, split in differing[:SHOWN_DISAGREEMENTS]}
    for i, item in Reader(setup.data, list(answers)):
        yield Disagreement(
            name=item.name,
            whole=answers[i][0],
            split=answers[i][1],
            target=task.target(item),
            picture=None if item.picture is None else thumbnail(item.picture),
        )
