"""Turns the outputs of a network into classes, boxes or segments of one picture. Nothing here prints or draws.

The task says how the outputs are read. It is the caller's task, else the one in the profile, else the one that follows
from the names of the outputs and the number of labels. Outputs without a task are described by shape and range. So a
vector of features never becomes probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import CodecProfile, Preprocessing
from splitwire.codec.shared.tasks import (
    DETECTION,
    TASKS,
    Task,
    are_class_scores,
    are_probabilities,
    in_unit_interval,
    is_detector,
    log_probabilities,
)
from splitwire.codec.wire.reply import Outputs

MIN_SCORE = 0.5
"""Detections with a smaller score are counted but not shown."""

BACKGROUND = ("background", "__background__", "_background_", "bg")

Size = tuple[int, int]
"""(width, height) of a picture, pixels."""


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class of a classification.

    probability: in [0, 1]. The probabilities of all classes add up to 1, unless the network has a sigmoid per class.
    """

    label: str
    index: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The result of a classification: the most probable classes, the first with the largest probability."""

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
    """The result of a detection: the boxes, the best score first.

    below: number of further boxes, with a score less than min_score.
    """

    boxes: tuple[Detection, ...]
    below: int
    min_score: float


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One class of a segmentation.

    share: the share of its pixels in the part of the picture that the network sees, in [0, 1].
    """

    label: str
    index: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Segments:
    """The result of a segmentation: the classes, the largest first.

    mask: (H, W) int64, the class number of each cell. box: (left, top, right, bottom) in pixels of the picture, the
    part that the mask covers.
    """

    classes: tuple[Segment, ...]
    mask: NDArray[np.int64]
    box: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Value:
    """One output of a network whose task is not known.

    low, high: the least and the largest finite element; None if no element is finite.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Values:
    """Shapes and ranges of the outputs of a network whose task is not known."""

    outputs: tuple[Value, ...]


Findings = Classes | Detections | Segments | Values
"""What `EdgeSession.find` returns: one of these classes, by the task of the network."""


def document(findings: Findings) -> dict[str, Any]:
    """The findings for JSON: {"task": …, and "classes", "detections", "segments" or "outputs"}."""
    match findings:
        case Classes():
            return {"task": "classification", "classes": [asdict(c) for c in findings.top]}
        case Detections():
            boxes = [{**asdict(d), "box": [round(v, 2) for v in d.box]} for d in findings.boxes]
            return {"task": "detection", "detections": boxes, "min_score": findings.min_score, "below": findings.below}
        case Segments():
            return {"task": "segmentation", "segments": [asdict(s) for s in findings.classes]}
    return {"task": None, "outputs": [asdict(v) for v in findings.outputs]}


def find(
    outputs: Outputs,
    profile: CodecProfile,
    *,
    size: Size | None = None,
    task: str | None = None,
    top: int = 3,
    min_score: float = MIN_SCORE,
) -> Findings:
    """Return the findings for the first image of a batch.

    size: size of the picture, after its EXIF orientation if the profile applies it. Boxes are in pixels of the picture;
    without a size they are in pixels of the network's input. task: "classification", "detection" or "segmentation";
    None for the profile's. top: number of classes to return. min_score: detections with a smaller score are only
    counted.
    Raises UsageError for an unknown task, and for a task that does not fit the outputs.
    """
    known = task or profile.task or _evident(outputs, profile.labels)
    findings: Findings | None = None
    if known is not None and known not in TASKS:
        raise UsageError(f"a task is {', '.join(TASKS)}; got {known!r}")
    if known == "classification" and not is_detector(outputs):
        findings = classes(outputs, profile.labels, top)
    elif known == "detection":
        findings = _detections(outputs, profile, size, min_score)
    elif known == "segmentation":
        findings = _segments(outputs, profile, size)
    if findings is None and task is not None:
        shown = ", ".join(f"{name} {a.shape} {a.dtype}" for name, a in outputs.items())
        raise UsageError(f"the outputs {shown} are not those of a {task}; expected {EXPECTED[task]}")
    return findings or Values(outputs=tuple(_value(name, a) for name, a in outputs.items()))


EXPECTED: dict[str, str] = {
    "classification": "finite scores (batch, classes)",
    "detection": f"{', '.join(DETECTION)}",
    "segmentation": "scores (batch, classes, height, width), or a map of class numbers (batch, height, width)",
}


def is_background(label: str) -> bool:
    """Whether the label of a class means the background of a segmentation."""
    return label.lower() in BACKGROUND


def _evident(outputs: Outputs, labels: Sequence[str] | None) -> Task | None:
    """The task by the outputs and labels alone. Pairs of older exports do not name their task."""
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
    """The `top` most probable classes of the first image.

    The scores are the output with one score per label, else the first output of class scores. None if there is no such
    output, or if a score is NaN or infinite.
    """
    fitting = [a for a in outputs.values() if are_class_scores(a) and len(a)]
    scores = next((a for a in fitting if labels is not None and a.shape[1] == len(labels)), None)
    scores = fitting[0] if scores is None and fitting else scores
    if scores is None or not np.isfinite(scores[0]).all():
        return None
    row = scores[0].astype(np.float64)
    # Scores in [0, 1] that do not add up to 1 come from one sigmoid per class: each is a probability already.
    independent = in_unit_interval(row) and not are_probabilities(row)
    p = row if independent else np.exp(log_probabilities(row))
    named = labels if labels is not None and len(labels) == p.size else None
    best = np.argsort(-p, kind="stable")[:top].tolist()
    return Classes(top=tuple(ClassScore(label=_label(named, i), index=i, probability=float(p[i])) for i in best))


def _detections(outputs: Outputs, profile: CodecProfile, size: Size | None, min_score: float) -> Detections | None:
    if not is_detector(outputs):
        return None
    boxes, scores, labels = (outputs[name] for name in DETECTION)
    if boxes.ndim == 3:  # (B, N, 4): a detector that takes batches pads with rows of score 0
        if not len(boxes):
            return None
        boxes, scores, labels = boxes[0], scores[0], labels[0]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1] or labels.shape != scores.shape:
        return None
    wide = boxes.astype(np.float64)
    real = (scores > 0) & np.isfinite(wide).all(axis=1)
    wide = _in_picture(wide, profile.preprocessing, size)
    real &= (wide[:, 2] > wide[:, 0]) & (wide[:, 3] > wide[:, 1])  # not entirely in the padding
    order = [int(i) for i in np.argsort(-scores.astype(np.float64), kind="stable") if real[i]]
    shown = [i for i in order if scores[i] >= min_score]
    detections = (
        Detection(
            label=_label(profile.labels, int(labels[i])),
            index=int(labels[i]),
            score=float(scores[i]),
            box=(float(wide[i, 0]), float(wide[i, 1]), float(wide[i, 2]), float(wide[i, 3])),
        )
        for i in shown
    )
    return Detections(boxes=tuple(detections), below=len(order) - len(shown), min_score=min_score)


def _in_picture(boxes: NDArray[np.float64], p: Preprocessing | None, size: Size | None) -> NDArray[np.float64]:
    """(N, 4) boxes in pixels of the network's input → in pixels of the picture, clipped to it."""
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
    mask, box = _visible_part(mask, profile.preprocessing, size)
    numbers, counts = np.unique(mask, return_counts=True)
    labels = profile.labels
    segments = [
        Segment(label=_label(labels, int(n)), index=int(n), share=float(c) / mask.size)
        for n, c in zip(numbers, counts, strict=True)
    ]
    return Segments(classes=tuple(sorted(segments, key=lambda s: -s.share)), mask=mask, box=box)


def _mask(output: NDArray[Any], profile: CodecProfile) -> NDArray[np.int64] | None:
    """(H, W) class numbers; None if the output is not a segmentation."""
    if output.ndim not in (3, 4) or not output.size:
        return None
    first = output[0]
    if first.ndim == 3 and 1 in (
        first.shape[0],
        first.shape[2],
    ):  # one plane: class numbers, or scores of the foreground
        first = first[0] if first.shape[0] == 1 else first[..., 0]
    if first.ndim == 2:
        if first.dtype.kind != "f":
            return np.asarray(first, dtype=np.int64)
        if output.ndim == 3:
            return None
        middle = 0.5 if in_unit_interval(first) else 0.0  # for probabilities, else for logits
        return np.asarray(first > middle, dtype=np.int64)
    if first.dtype.kind != "f":
        return None
    p, labels = profile.preprocessing, profile.labels
    last = p is not None and p.layout == "nhwc"
    if labels is not None and first.shape[0] != first.shape[2] and len(labels) in (first.shape[0], first.shape[2]):
        last = first.shape[2] == len(labels)
    return np.asarray(first.argmax(axis=-1 if last else 0), dtype=np.int64)


def _visible_part(
    mask: NDArray[np.int64], p: Preprocessing | None, size: Size | None
) -> tuple[NDArray[np.int64], tuple[float, float, float, float]]:
    """The part of a mask that shows the picture and no padding, and its (left, top, right, bottom) in the picture."""
    height, width = mask.shape
    if p is None or size is None:
        return mask, (0.0, 0.0, float(width), float(height))
    from splitwire.codec.preprocessing import placement

    scales, shifts = placement(size, p)[:2], placement(size, p)[2:]
    spans, box = [], []
    for length, cells, view, scale, shift in zip(
        size, (width, height), (p.crop[1], p.crop[0]), scales, shifts, strict=True
    ):
        start, end = max(shift, 0.0), min(shift + scale * length, float(view))  # in pixels of the network's input
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
