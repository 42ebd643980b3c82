"""What a network found in one picture: classes, boxes or segments, from its outputs; nothing here prints or draws.

The task says how outputs are read: the caller's, else the one in the profile, else what names of outputs and the number
of labels leave no doubt about. Outputs without a task are described by shape and range: a vector of features is never
turned into probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import CodecProfile, Preprocessing
from splitwire.codec.reply import Outputs
from splitwire.codec.tasks import (
    DETECTION,
    TASKS,
    Task,
    are_class_scores,
    are_probabilities,
    in_unit_interval,
    is_detector,
    log_probabilities,
)

MIN_SCORE = 0.5
"""Detections of smaller scores are counted, not shown."""

BACKGROUND = ("background", "__background__", "_background_", "bg")

Size = tuple[int, int]
"""(width, height) of a picture, pixels."""


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class of a classification.

    probability: in [0, 1]; of a network with a sigmoid per class, of this class alone.
    """

    label: str
    index: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What a classification found: the likeliest classes first."""

    top: tuple[ClassScore, ...]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One box of a detection.

    box: (left, top, right, bottom) in pixels of the picture, within it. score: in [0, 1].
    """

    label: str
    index: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What a detection found: the boxes, the best score first.

    below: how many more there are, of scores under min_score.
    """

    boxes: tuple[Detection, ...]
    below: int
    min_score: float


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One class of a segmentation.

    share: of the part of the picture that the network sees, in [0, 1].
    """

    label: str
    index: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Segments:
    """What a segmentation found: the classes, the largest first.

    mask: (H, W) numbers of classes, of the part of the picture `box` (left, top, right, bottom),
    in pixels of the picture.
    """

    classes: tuple[Segment, ...]
    mask: NDArray[np.int64]
    box: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Value:
    """One output of a network whose task is not known.

    low, high: of its finite elements; None where it has none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Values:
    """Shapes and ranges of the outputs, where the task is not known."""

    outputs: tuple[Value, ...]


Findings = Classes | Detections | Segments | Values
"""What `EdgeSession.find` returns, by the task of the network."""


def find(
    outputs: Outputs,
    profile: CodecProfile,
    *,
    size: Size | None = None,
    task: str | None = None,
    top: int = 3,
    min_score: float = MIN_SCORE,
) -> Findings:
    """What the outputs say of the first image of a batch.

    size: of the picture, as its EXIF orientation leaves it if the profile asks for that; boxes are in its pixels. None:
    boxes are in pixels of the network's input. task: "classification", "detection" or "segmentation"; None: the
    profile's. top: classes to name. min_score: detections below it are only counted.
    Raises UsageError for a task that is none, or that these outputs cannot be of.
    """
    known = task or profile.task or _evident(outputs, profile.labels)
    found: Findings | None = None
    if known is not None and known not in TASKS:
        raise UsageError(f"a task is {', '.join(TASKS)}; got {known!r}")
    if known == "classification" and not is_detector(outputs):
        found = classes(outputs, profile.labels, top)
    elif known == "detection":
        found = _detections(outputs, profile, size, min_score)
    elif known == "segmentation":
        found = _segments(outputs, profile, size)
    if found is None and task is not None:
        shown = ", ".join(f"{name} {a.shape} {a.dtype}" for name, a in outputs.items())
        raise UsageError(f"the outputs {shown} are not those of a {task}; expected {EXPECTED[task]}")
    return found or Values(outputs=tuple(_value(name, a) for name, a in outputs.items()))


EXPECTED: dict[str, str] = {
    "classification": "finite scores (batch, classes)",
    "detection": f"{', '.join(DETECTION)}",
    "segmentation": "scores (batch, classes, height, width), or a map of class numbers (batch, height, width)",
}


def is_background(label: str) -> bool:
    """Whether a class of a segmentation is what is left when nothing is there."""
    return label.lower() in BACKGROUND


def _evident(outputs: Outputs, labels: Sequence[str] | None) -> Task | None:
    """For pairs of older exports, which say no task."""
    if is_detector(outputs):
        return "detection"
    if labels is None or len(labels) < 2:
        return None
    scores = [a for a in outputs.values() if a.dtype.kind == "f"]
    if any(are_class_scores(a) and a.shape[1] == len(labels) for a in scores):
        return "classification"
    return "segmentation" if any(a.ndim == 4 and a.shape[1] == len(labels) for a in scores) else None


def _label(labels: Sequence[str] | None, index: int) -> str:
    return labels[index] if labels is not None and 0 <= index < len(labels) else f"class {index}"


def classes(outputs: Outputs, labels: Sequence[str] | None, top: int) -> Classes | None:
    """The likeliest classes by the output of as many scores as there are labels, else the first of several scores.
    None without one, or where a score is NaN or infinite."""
    fitting = [a for a in outputs.values() if are_class_scores(a) and len(a)]
    scores = next((a for a in fitting if labels is not None and a.shape[1] == len(labels)), None)
    scores = fitting[0] if scores is None and fitting else scores
    if scores is None or not np.isfinite(scores[0]).all():
        return None
    row = scores[0].astype(np.float64)
    # Scores in [0, 1] that do not add up to 1 are of a sigmoid per class: each stands for itself.
    alone = in_unit_interval(row) and not are_probabilities(row)
    p = row if alone else np.exp(log_probabilities(row))
    named = labels if labels is not None and len(labels) == p.size else None
    best = np.argsort(-p, kind="stable")[:top].tolist()
    return Classes(top=tuple(ClassScore(label=_label(named, i), index=i, probability=float(p[i])) for i in best))


def _detections(outputs: Outputs, profile: CodecProfile, size: Size | None, min_score: float) -> Detections | None:
    if not is_detector(outputs):
        return None
    boxes, scores, labels = (outputs[name] for name in DETECTION)
    if boxes.ndim == 3:  # (B, N, 4): a detector of batches, which fills up with rows of score 0
        if not len(boxes):
            return None
        boxes, scores, labels = boxes[0], scores[0], labels[0]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1] or labels.shape != scores.shape:
        return None
    wide = boxes.astype(np.float64)
    real = (scores > 0) & np.isfinite(wide).all(axis=1)
    wide = _in_picture(wide, profile.preprocessing, size)
    real &= (wide[:, 2] > wide[:, 0]) & (wide[:, 3] > wide[:, 1])  # not wholly in what was filled up around the picture
    order = [int(i) for i in np.argsort(-scores.astype(np.float64), kind="stable") if real[i]]
    shown = [i for i in order if scores[i] >= min_score]
    found = (
        Detection(
            label=_label(profile.labels, int(labels[i])),
            index=int(labels[i]),
            score=float(scores[i]),
            box=(float(wide[i, 0]), float(wide[i, 1]), float(wide[i, 2]), float(wide[i, 3])),
        )
        for i in shown
    )
    return Detections(boxes=tuple(found), below=len(order) - len(shown), min_score=min_score)


def _in_picture(boxes: NDArray[np.float64], p: Preprocessing | None, size: Size | None) -> NDArray[np.float64]:
    """(N, 4) boxes in the network's view → in the picture, clipped to it."""
    if p is None or size is None:
        return boxes
    from splitwire.codec.preprocessing import placement

    scale_x, scale_y, shift_x, shift_y = placement(size, p)
    x = np.clip((boxes[:, 0::2] - shift_x) / scale_x, 0, size[0])
    y = np.clip((boxes[:, 1::2] - shift_y) / scale_y, 0, size[1])
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


def _segments(outputs: Outputs, profile: CodecProfile, size: Size | None) -> Segments | None:
    mask = next((m for a in outputs.values() if (m := _mask(a, profile)) is not None), None)
    if mask is None:
        return None
    mask, box = _seen(mask, profile.preprocessing, size)
    numbers, counts = np.unique(mask, return_counts=True)
    labels = profile.labels
    found = [
        Segment(label=_label(labels, int(n)), index=int(n), share=float(c) / mask.size)
        for n, c in zip(numbers, counts, strict=True)
    ]
    return Segments(classes=tuple(sorted(found, key=lambda s: -s.share)), mask=mask, box=box)


def _mask(output: NDArray[Any], profile: CodecProfile) -> NDArray[np.int64] | None:
    """(H, W) numbers of classes; None if the output is no segmentation."""
    if output.ndim not in (3, 4) or not output.size:
        return None
    first = output[0]
    if first.ndim == 3 and 1 in (first.shape[0], first.shape[2]):  # one plane, of numbers or of the foreground
        first = first[0] if first.shape[0] == 1 else first[..., 0]
    if first.ndim == 2:
        if first.dtype.kind != "f":
            return np.asarray(first, dtype=np.int64)
        if output.ndim == 3:
            return None
        middle = 0.5 if in_unit_interval(first) else 0.0  # of probabilities, or of logits
        return np.asarray(first > middle, dtype=np.int64)
    if first.dtype.kind != "f":
        return None
    p, labels = profile.preprocessing, profile.labels
    last = p is not None and p.layout == "nhwc"
    if labels is not None and first.shape[0] != first.shape[2] and len(labels) in (first.shape[0], first.shape[2]):
        last = first.shape[2] == len(labels)
    return np.asarray(first.argmax(axis=-1 if last else 0), dtype=np.int64)


def _seen(
    mask: NDArray[np.int64], p: Preprocessing | None, size: Size | None
) -> tuple[NDArray[np.int64], tuple[float, float, float, float]]:
    """The part of a mask where there is picture, and where in the picture that is: (left, top, right, bottom)."""
    height, width = mask.shape
    if p is None or size is None:
        return mask, (0.0, 0.0, float(width), float(height))
    from splitwire.codec.preprocessing import placement

    scales, shifts = placement(size, p)[:2], placement(size, p)[2:]
    spans, box = [], []
    for length, cells, view, scale, shift in zip(
        size, (width, height), (p.crop[1], p.crop[0]), scales, shifts, strict=True
    ):
        start, end = max(shift, 0.0), min(shift + scale * length, float(view))  # in the view
        first = min(int(start * cells / view), cells - 1)
        last = max(first + 1, min(cells, round(end * cells / view)))
        spans.append(slice(first, last))
        box.append(((start - shift) / scale, (end - shift) / scale))
    (left, right), (top, bottom) = box
    return mask[spans[1], spans[0]], (left, top, right, bottom)


def _value(name: str, output: NDArray[Any]) -> Value:
    finite = output[np.isfinite(output)] if output.dtype.kind == "f" else output
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    return Value(name=name, shape=tuple(output.shape), dtype=output.dtype.name, low=low, high=high)
