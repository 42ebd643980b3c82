"""`splitwire evaluate`: a pair and images → accuracy against bytes, for splitwire and what it competes with.

Everything is measured on the same images in one run. The whole network is back(front(x)) with no codec between, which
the exporter has verified to be the network that it was given.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from splitwire.codec.errors import SplitwireError, UsageError
from splitwire.codec.files import write_atomically
from splitwire.codec.overspent import is_overspent, overspent_note
from splitwire.codec.progress import ProgressFn
from splitwire.codec.tasks import is_detector
from splitwire.codec.text import printable_json
from splitwire.evaluation.answer.choose import choose
from splitwire.evaluation.answer.results import FILE, FOLDER, Data, Disagreement, Estimate, Evaluation, Point, Sends
from splitwire.evaluation.answer.standings import SLACK, USUAL_LOSS, check_budget
from splitwire.evaluation.answer.wording import named
from splitwire.evaluation.contenders import SPLITWIRE
from splitwire.evaluation.contenders.ladders import LADDERS, following
from splitwire.evaluation.contenders.protocol import FeatureContender, ImageContender
from splitwire.evaluation.data.dataset import Dataset, open_data
from splitwire.evaluation.measuring.features import describe, designs
from splitwire.evaluation.measuring.measure import (
    WHOLE,
    Measurement,
    Reader,
    Sample,
    first_answer,
    received,
    take_sample,
    thumbnail,
)
from splitwire.evaluation.measuring.pair import Pair
from splitwire.evaluation.measuring.stages import machine, time_stages, versions
from splitwire.evaluation.measuring.store import Batch, Store
from splitwire.evaluation.report.page import write_report
from splitwire.evaluation.tasks.bootstrap import intervals
from splitwire.evaluation.tasks.tasks import Outcome, Scored, make_task
from splitwire.exporter.pair.bake import write_default

from .contenders import FAMILIES, KEYS, feature_contenders, image_contenders, on_ladders, select

SHOWN_DISAGREEMENTS = 24
NEEDED = ("bjontegaard", "jinja2", "matplotlib")
"""By the report."""

FORMAT = 1
"""Of what the store keeps: another number when it, or what a figure means, changes."""


StrPath = str | os.PathLike[str]
DataLike = StrPath | Sequence[StrPath] | Mapping[str, ArrayLike] | Dataset


def evaluate(
    folder: StrPath,
    data: DataLike,
    *,
    annotations: StrPath | None = None,
    out: StrPath | None = None,
    max_loss: float | None = None,
    limit: int | None = None,
    metric: str | None = None,
    contenders: Sequence[str] | None = None,
    progress: ProgressFn | None = None,
) -> Evaluation:
    """Measure accuracy against bytes for the pair in `folder`, and for what a user would send instead.

    data: an ImageFolder, pictures without labels, a COCO JSON, an .npz, a dict of arrays as in
        an .npz ("images" (n, H, W[, 3]) uint8 or "inputs" (n, C, H, W) float32, and "labels" (n,) or, of a
        segmentation, "masks" (n, H, W)); or a Dataset.
    annotations: the COCO JSON, or the folder of masks, where `data` is the folder of their pictures.
    out: folder of results.json, results.csv, report.html and plots/; FOLDER/evaluation if None.
    max_loss: of the main figure, in its own unit (0.01: one per cent point of Top-1). The cheapest operating point
        whose upper 95 % bound of the loss is within it becomes the default of both graphs; their fingerprint stays. If
        there is none, nothing is changed, and the result's `chosen` is None.
    limit: most images to use, evenly spread. metric: "module:function" (docs/evaluate.md).
    contenders: short names (docs/evaluate.md); None for all. splitwire's own points are always measured.
    progress: called as progress(stage, done, total).

    What has been measured is kept in `out` until the results are there: after an interruption, a kill too, the same
    call goes on, and ends with the same figures. Writes the results and the report.
    Raises UsageError, ProfileError, FingerprintMismatch, NonFiniteFeatures, ShapeMismatch, DeviceError.
    """
    _check_installed()
    tell: ProgressFn = progress or (lambda stage, done, total: None)
    families = select(KEYS if contenders is None else contenders)
    pair = Pair(Path(folder))
    target = Path(folder) / FOLDER if out is None else Path(out)
    detections = is_detector(pair.outputs)
    dataset = _opened(data, pair, annotations=annotations, limit=limit, detections=detections, metric=metric)
    first = first_answer(pair, dataset)
    task = make_task(first, dataset, batch=1, labels=pair.profile.labels, metric=metric, segments=pair.segments)
    if max_loss is not None:
        check_budget(max_loss, task.main)
    what = Measurement(
        pair=pair,
        data=dataset,
        task=task,
        features=feature_contenders(pair.profile, families=families, detections=detections),
        images=image_contenders(families=families) if dataset.pictures else [],
    )
    stores = [Store(target, *_key(what, metric))]
    try:
        sample = take_sample(pair, dataset, lambda done, total: tell("Sample the features", done, total))
        batches = _measured(what, sample, stores[0], tell, "Images × contenders")
        budget = USUAL_LOSS if max_loss is None else max_loss
        while more := _next_rungs(what, batches, budget):
            stores.append(Store(target, *_key(more, metric)))
            further = _measured(more, sample, stores[-1], tell, "Further settings of picture codecs")
            what, batches = _joined(what, more), [b.with_more(f) for b, f in zip(batches, further, strict=True)]
    except BaseException as e:
        # an error of ours comes again, unless what the figures depend on changes; an interrupted run goes on
        for store in stores[::-1]:
            if isinstance(e, SplitwireError) or store.empty:
                store.abandon()
        raise
    whole, points = _points(what, batches, tell)
    over_budget = tuple(p.name for p in pair.profile.operating_points if is_overspent(p))
    choice = None if max_loss is None else choose(points, max_loss, over_budget)
    chosen = choice.chosen.setting if choice is not None and choice.chosen is not None else None
    if chosen is not None:
        write_default(pair.folder, chosen)
    default = chosen or pair.profile.default_op
    tell("Time the stages", 0, 1)
    stages = time_stages(pair.folder, dataset, default)
    tell("Time the stages", 1, 1)
    skipped = tuple(s for b in batches for s in b.skipped)
    evaluation = Evaluation(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=_command(
            folder,
            data if isinstance(data, (str, os.PathLike)) else dataset.source,
            {
                "annotations": annotations,
                "out": out,
                "max-loss": max_loss,
                "limit": limit,
                "metric": metric,
                "contenders": contenders,
            },
        ),
        machine=machine(),
        model=pair.profile.model,
        cut=pair.profile.cut,
        fingerprint=pair.fingerprint.hex(),
        elements=pair.elements,
        task=task.kind,
        figure=task.main,
        data=Data(
            source=dataset.source,
            images=sum(len(b.images) for b in batches),
            labelled=dataset.labelled,
            digest=dataset.digest,
            skipped=skipped,
        ),
        whole=whole,
        points=points,
        default_op=default,
        max_loss=max_loss,
        chosen=chosen,
        stages=stages,
        tensors=describe(sample.features, pair.profile),
        designs=tuple(designs(pair.profile)),
        disagreements=tuple(_disagreements(what, batches, default)),
        over_budget=over_budget,
        notes=tuple(_notes(what, len(sample.features), len(skipped))),
    )
    tell("Write the report", 0, 1)
    _write(evaluation, target)
    tell("Write the report", 1, 1)
    for store in stores:
        store.remove()
    return evaluation


def _check_installed() -> None:
    """Raise ModuleNotFoundError for what the report needs: now, not when hours of measuring are done."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _opened(
    data: DataLike, pair: Pair, *, annotations: StrPath | None, limit: int | None, detections: bool, metric: str | None
) -> Dataset:
    """The dataset: given, or found at the paths."""
    if isinstance(data, Dataset):
        return data
    paths = (
        data
        if isinstance(data, Mapping)
        else Path(data)
        if isinstance(data, (str, os.PathLike))
        else [Path(p) for p in data]
    )
    return open_data(
        paths,
        pair.profile,
        pair.input_shape,
        dtype=pair.input_dtype,
        annotations=None if annotations is None else Path(annotations),
        limit=limit,
        detections=detections,
        segments=pair.segments,
        custom=metric is not None,
        classes=None if detections else pair.classes,
    )


def _key(what: Measurement, metric: str | None) -> list[str | bytes]:
    """Everything that the figures depend on."""
    contenders = [f"{named(c)} -> {received(c)}" for c in what.contenders]
    settings = [FORMAT, what.pair.batch, what.task.kind, what.task.main, contenders, metric, versions()]
    source = b"" if metric is None else _source_of(metric)
    return [what.pair.fingerprint, what.data.digest, msgspec.json.encode(settings), source]


def _source_of(metric: str) -> bytes:
    """The file that a metric is in, so that an edited one is not mixed with figures of before; b"" if it has none."""
    file = getattr(sys.modules.get(metric.partition(":")[0]), "__file__", None)
    return Path(file).read_bytes() if file is not None else b""


def _next_rungs(what: Measurement, batches: Sequence[Batch], budget: float) -> Measurement | None:
    """The next setting of every ladder that is not done (ladders.py); None if all are."""
    settings: dict[str, dict[str, float]] = {}
    whole = _scored(what, batches, WHOLE).figures()[what.task.main]
    for c in what.contenders:
        if c.family in LADDERS:
            loss = whole - _scored(what, batches, received(c)).figures()[what.task.main]
            settings.setdefault(c.family, {})[c.setting] = loss
    values = {
        family: v for family, known in settings.items() if (v := following(family, known, budget + SLACK)) is not None
    }
    if not values:
        return None
    features, images = on_ladders(what.pair.profile, values)
    return dataclasses.replace(what, features=features, images=images)


def _joined(what: Measurement, more: Measurement) -> Measurement:
    """Both, each family's settings together and in the ladder's order."""

    def place(c: FeatureContender | ImageContender) -> tuple[int, int]:
        ladder = LADDERS.get(c.family)
        return FAMILIES.index(c.family), (ladder.value(c.setting) or 0) if ladder is not None else 0

    features, images = (
        sorted([*what.features, *more.features], key=place),
        sorted([*what.images, *more.images], key=place),
    )
    return dataclasses.replace(what, features=features, images=images)


def _measured(what: Measurement, sample: Sample, store: Store, tell: ProgressFn, stage: str) -> list[Batch]:
    """All batches: those that an earlier run has left, and the others now. stage: what progress is told."""
    found = [store.load(i) for i in range(len(what.batches))]
    if None in found:
        what.fit(sample, lambda done, total: tell("Prepare the contenders", done, total))
    total = len(what.data) * what.passes
    batches = []
    done = 0

    def tick(images: int) -> None:
        nonlocal done
        done += images
        tell(stage, done, total)

    for i, (positions, kept) in enumerate(zip(what.batches, found, strict=True)):
        batches.append(kept if kept is not None else what.batch(positions, tick))
        if kept is None:
            store.save(i, batches[i])
        done = positions.stop * what.passes
    tick(0)
    return batches


def _scored(what: Measurement, batches: Sequence[Batch], key: str) -> Scored:
    return what.task.scored([o for b in batches for o in _outcomes(b, key)])


def _outcomes(batch: Batch, key: str) -> list[Outcome]:
    return msgspec.msgpack.decode(batch.outcomes[key], type=list[Outcome]) if batch.images else []


def _points(
    what: Measurement, batches: Sequence[Batch], tell: ProgressFn
) -> tuple[dict[str, Estimate], tuple[Point, ...]]:
    """Figures of the whole network, and every contender's point."""
    reference = _scored(what, batches, WHOLE)
    whole, _ = intervals(reference, reference, what.task.main)
    keys = dict.fromkeys(received(c) for c in what.contenders)
    estimates: dict[str, tuple[dict[str, Estimate], Estimate]] = {}
    for key in keys:
        tell("Confidence intervals", len(estimates), len(keys))
        estimates[key] = intervals(reference, _scored(what, batches, key), what.task.main)
    tell("Confidence intervals", len(keys), len(keys))

    def point(contender: FeatureContender | ImageContender, sends: Sends) -> Point:
        sendings = [b.sendings[named(contender)] for b in batches if b.images]
        size = float(np.mean([n for s in sendings for n in s.sent]))
        figures, loss = estimates[received(contender)]
        return Point(
            family=contender.family,
            setting=contender.setting,
            sends=sends,
            bytes=size,
            bits_per_element=8 * size / what.pair.elements,
            encode_ms=float(np.median([ns for s in sendings for ns in s.ns]) / 1e6),
            figures=figures,
            loss=loss,
        )

    return whole, (*(point(c, "features") for c in what.features), *(point(c, "image") for c in what.images))


def _disagreements(what: Measurement, batches: Sequence[Batch], op: str) -> Iterator[Disagreement]:
    """The images that whole and split answer most differently, the worst first."""
    key = next(received(c) for c in what.features if (c.family, c.setting) == (SPLITWIRE, op))
    task = what.task
    pairs = [
        (i, whole, split)
        for batch in batches
        for i, whole, split in zip(batch.images, _outcomes(batch, WHOLE), _outcomes(batch, key), strict=True)
        if task.disagreement(whole, split) > 0
    ]
    pairs.sort(key=lambda found: -task.disagreement(found[1], found[2]))  # stable: of equals the first in the data
    answers = {i: (task.answer(whole), task.answer(split)) for i, whole, split in pairs[:SHOWN_DISAGREEMENTS]}
    for i, item in Reader(what.data, list(answers)):
        yield Disagreement(
            name=item.name,
            whole=answers[i][0],
            split=answers[i][1],
            target=task.target(item),
            picture=None if item.picture is None else thumbnail(item.picture),
        )


def _notes(what: Measurement, sampled: int, skipped: int) -> Iterator[str]:
    """What a reader of the figures should know."""
    profile = what.pair.profile
    if not what.data.labelled:
        yield "no labels: what is measured is agreement with the whole network, not whether it is right"
    if skipped:
        yield f"{skipped} image{'s' * (skipped > 1)} could not be read, left out"
    if not what.data.pictures:
        yield "the data are arrays of inputs: there is no picture to send, so picture codecs are left out"
    halves = {"front": profile.front_precision, "back": profile.back_precision}
    for half, precision in halves.items():
        if isinstance(precision, str) and precision != "float32":
            yield f"the {half} half computes in {precision}; the whole network here is the two halves as they are"
    said = overspent_note(profile.operating_points)
    if said is not None:
        yield said
    yield (
        f"ranges of int8 and of HEVC of features, and the histograms, are of {sampled} of these images; splitwire and"
        " the paper's codec know the calibration images only"
    )


def _write(evaluation: Evaluation, out: Path) -> None:
    """The report, then the results: where there is a results.json, all is there."""
    document = msgspec.json.format(printable_json(evaluation), indent=1)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_report(evaluation, out)
        write_atomically(out / FILE, document)
    except OSError as e:
        raise UsageError(
            f"cannot write the report to {out}: {e.strerror or e}; fix it and rerun: the same command goes on from here"
        ) from e


def _command(folder: object, data: object, options: dict[str, object]) -> str:
    """What repeats the evaluation, from the same working folder."""
    words = ["splitwire", "evaluate", str(folder), "--data", str(data)]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", ",".join(value) if isinstance(value, (list, tuple)) else str(value)]
    return shlex.join(words)
