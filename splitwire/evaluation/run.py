"""`splitwire evaluate`: a pair and images → accuracy against bytes, for splitwire and what it competes with.

Everything is measured on the same images in one run. The whole network is back(front(x)) with no codec between, which
the exporter has verified to be the network that it was given.
"""

from __future__ import annotations

import datetime
import importlib.util
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from numpy.typing import ArrayLike

from splitwire.codec.errors import UsageError
from splitwire.codec.overspent import is_overspent, overspent_note
from splitwire.codec.shared.files import write_atomically
from splitwire.codec.shared.progress import ProgressFn
from splitwire.codec.shared.tasks import is_detector
from splitwire.codec.shared.text import printable_json
from splitwire.evaluation.answer.choose import choose
from splitwire.evaluation.answer.results import FILE, FOLDER, Data, Estimate, Evaluation, Point
from splitwire.evaluation.answer.standings import USUAL_LOSS, check_budget
from splitwire.evaluation.contenders import INT8, KEYS, PAPER, ZSTD, feature_contenders, image_contenders, select
from splitwire.evaluation.contenders.ladders import HEVC, HEVC_SCREEN
from splitwire.evaluation.data.dataset import Dataset
from splitwire.evaluation.data.opening import open_data
from splitwire.evaluation.measuring import figures
from splitwire.evaluation.measuring.feature_profile import feature_profile
from splitwire.evaluation.measuring.features import describe, designs
from splitwire.evaluation.measuring.measure import Measurement, first_answer, take_sample
from splitwire.evaluation.measuring.pair import Pair
from splitwire.evaluation.measuring.rounds import Measured, measure_all
from splitwire.evaluation.measuring.stages import machine, time_stages
from splitwire.evaluation.report.page import write_report
from splitwire.evaluation.tasks.tasks import make_task
from splitwire.exporter.pair.bake import write_default

REPORT_PACKAGES = ("bjontegaard", "jinja2", "matplotlib")
"""What the report needs."""

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
    target = Path(folder) / FOLDER if out is None else Path(out)
    setup = _prepare(
        folder, data, annotations=annotations, limit=limit, metric=metric, contenders=contenders, progress=tell
    )
    if max_loss is not None:
        check_budget(max_loss, setup.task.main)
    budget = USUAL_LOSS if max_loss is None else max_loss
    measured = measure_all(setup, target, budget=budget, metric=metric, progress=tell)
    whole, points = figures.points(measured.setup, measured.batches, tell)
    chosen = None if max_loss is None else _make_default(setup.pair, points, max_loss)
    default = chosen or setup.pair.profile.default_op
    tell("Time the stages", 0, 1)
    stages = time_stages(setup.pair.folder, setup.data, default)
    tell("Time the stages", 1, 1)
    evaluation = _results(
        measured,
        whole=whole,
        points=points,
        stages=stages,
        max_loss=max_loss,
        chosen=chosen,
        command=_command(
            folder,
            data if isinstance(data, (str, os.PathLike)) else setup.data.source,
            annotations=annotations,
            out=out,
            max_loss=max_loss,
            limit=limit,
            metric=metric,
            contenders=contenders,
        ),
    )
    tell("Write the report", 0, 1)
    _write(evaluation, target)
    tell("Write the report", 1, 1)
    measured.forget()
    return evaluation


def _prepare(
    folder: StrPath,
    data: DataLike,
    *,
    annotations: StrPath | None,
    limit: int | None,
    metric: str | None,
    contenders: Sequence[str] | None,
    progress: ProgressFn,
) -> Measurement:
    """Open the pair and the data, find out the task, sample the features, and list what is measured."""
    families = select(KEYS if contenders is None else contenders)
    pair = Pair(Path(folder))
    detections = is_detector(pair.outputs)
    dataset = _opened(data, pair, annotations=annotations, limit=limit, detections=detections, metric=metric)
    first = first_answer(pair, dataset)
    task = make_task(first, dataset, batch=1, labels=pair.profile.labels, metric=metric, segments=pair.segments)
    sample = take_sample(pair, dataset, lambda done, total: progress("Sample the features", done, total))
    profile = pair.profile
    if profile.is_transform:
        profile = feature_profile(profile, sample.features, fine=task.kind not in {"classes", "detections"})
    return Measurement(
        pair=pair,
        profile=profile,
        data=dataset,
        sample=sample,
        task=task,
        features=feature_contenders(pair.profile, features=profile, families=families, detections=detections),
        images=image_contenders(families=families) if dataset.pictures else [],
    )


def _make_default(pair: Pair, points: Sequence[Point], max_loss: float) -> str | None:
    """Make the operating point that the budget chooses the default of both graphs; its name. None if none is within."""
    chosen = choose(points, max_loss, _over_budget(pair)).chosen
    if chosen is None:
        return None
    write_default(pair.folder, chosen.setting)
    return chosen.setting


def _over_budget(pair: Pair) -> tuple[str, ...]:
    """Names of the operating points that spend more than the bits that they are named after."""
    return tuple(p.name for p in pair.profile.operating_points if is_overspent(p))


def _results(
    measured: Measured,
    *,
    whole: dict[str, Estimate],
    points: tuple[Point, ...],
    stages: dict[str, float],
    max_loss: float | None,
    chosen: str | None,
    command: str,
) -> Evaluation:
    """Everything that results.json and the report hold."""
    pair, data, task = measured.setup.pair, measured.setup.data, measured.setup.task
    default = chosen or pair.profile.default_op
    skipped = tuple(one for batch in measured.batches for one in batch.skipped)
    return Evaluation(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
        machine=machine(),
        model=pair.profile.model,
        cut=pair.profile.cut,
        fingerprint=pair.fingerprint.hex(),
        elements=pair.elements,
        task=task.kind,
        figure=task.main,
        data=Data(
            source=data.source,
            images=sum(len(batch.images) for batch in measured.batches),
            labelled=data.labelled,
            digest=data.digest,
            skipped=skipped,
        ),
        whole=whole,
        points=points,
        default_op=default,
        max_loss=max_loss,
        chosen=chosen,
        stages=stages,
        tensors=describe(measured.setup.sample.features, measured.setup.profile),
        designs=tuple(designs(measured.setup.profile)),
        disagreements=tuple(figures.disagreements(measured.setup, measured.batches, default)),
        over_budget=_over_budget(pair),
        notes=tuple(_notes(measured.setup, len(skipped))),
    )


def _check_installed() -> None:
    """Raise ModuleNotFoundError for what the report needs: now, not when hours of measuring are done."""
    for name in REPORT_PACKAGES:
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


def _notes(setup: Measurement, skipped: int) -> Iterator[str]:
    """What a reader of the figures should know."""
    profile = setup.pair.profile
    if not setup.data.labelled:
        yield "no labels: what is measured is agreement with the whole network, not whether it is right"
    if skipped:
        yield f"{skipped} image{'s' * (skipped > 1)} could not be read, left out"
    if not setup.data.pictures:
        yield "the data are arrays of inputs: there is no picture to send, so picture codecs are left out"
    halves = {"front": profile.front_precision, "back": profile.back_precision}
    for half, precision in halves.items():
        if isinstance(precision, str) and precision != "float32":
            yield f"the {half} half computes in {precision}; the whole network here is the two halves as they are"
    said = overspent_note(profile.operating_points)
    if said is not None:
        yield said
    yield _note_on_sample(setup)


def _note_on_sample(setup: Measurement) -> str:
    """What the sample of the evaluated images was used for."""
    learning, ranges, knowing = {INT8, HEVC, HEVC_SCREEN}, "int8", "splitwire and the paper's codec know"
    if setup.pair.profile.is_transform:
        learning |= {*PAPER, *ZSTD.values()}
        ranges, knowing = "the paper's codec, of the symbols for zstd, of int8", "splitwire knows"
    sampled = len(setup.sample.features)
    if not learning & {c.family for c in setup.features}:
        return f"the histograms are of {sampled} of these images"
    return (
        f"ranges of {ranges} and of HEVC of features, and the histograms, are of {sampled} of these images; {knowing}"
        " the calibration images only"
    )


def _write(evaluation: Evaluation, out: Path) -> None:
    """Write the report, then results.json: where that exists, everything is complete."""
    document = msgspec.json.format(printable_json(evaluation), indent=1)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_report(evaluation, out)
        write_atomically(out / FILE, document)
    except OSError as e:
        raise UsageError(
            f"cannot write the report to {out}: {e.strerror or e}; fix it and rerun: the same command goes on from here"
        ) from e


def _command(folder: object, data: object, **options: object) -> str:
    """The command line that repeats the evaluation, from the same working folder."""
    words = ["splitwire", "evaluate", str(folder), "--data", str(data)]
    for name, value in options.items():
        if value is not None:
            text = ",".join(value) if isinstance(value, (list, tuple)) else str(value)
            words += [f"--{name.replace('_', '-')}", text]
    return shlex.join(words)
