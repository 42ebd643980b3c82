"""Mean average precision of detections, through pycocotools, and its bootstrap.

pycocotools matches detections to ground truth, once for each image, and computes the figures. For a bootstrap draw the
matches stay as they are and only count as often as their image was drawn: the precision and recall of the draw are
weighted sums of them, which equals running pycocotools on the images so repeated (the tests compare).
Source: the COCO detection evaluation, T.-Y. Lin et al. 2014; area "all", at most 100 detections per image and class.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.tasks import MIN_OVERLAP, overlaps
from splitwire.codec.wire.reply import Outputs
from splitwire.evaluation.answer import results
from splitwire.evaluation.data.coco import Truth
from splitwire.evaluation.data.dataset import Item

from .outcomes import DetectionOutcome, Outcome, only

Float64Array = NDArray[np.float64]
Detections = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]

CONFIDENT = 0.5
"""Score from which a detection of the whole network stands for the truth where there are no labels, and is shown."""

MAX_DETECTIONS = 100
_EVERY_AREA = (0.0, 1e10)
_RECALLS = np.linspace(0.0, 1.0, 101)


class DetectionTask:
    """map50 (intersection over union 0.5) and map (mean over 0.5 to 0.95), against the labels or, without labels,
    against the whole network's own confident detections."""

    kind: results.Task = "detections"
    main = "map50"

    def __init__(self, labels: Sequence[str] | None = None) -> None:
        self._labels = labels

    def outcomes(self, outputs: Outputs, reference: Outputs, items: Sequence[Item]) -> list[Outcome]:
        """As tasks.Task."""
        outcomes: list[Outcome] = []
        for i, item in enumerate(items):
            boxes, scores, labels = detections_of(outputs, i, len(items))
            truth = item.target if isinstance(item.target, Truth) else _confident(reference, i, len(items))
            outcomes.append(
                DetectionOutcome(
                    boxes=boxes.astype("<f4").tobytes(),
                    scores=scores.astype("<f4").tobytes(),
                    labels=labels.astype("<i4").tobytes(),
                    true_boxes=truth.boxes.astype("<f4").tobytes(),
                    true_labels=truth.labels.astype("<i4").tobytes(),
                    ignored=truth.ignored.tobytes(),
                )
            )
        return outcomes

    def scored(self, outcomes: Sequence[Outcome]) -> Precision:
        """As tasks.Task. Raises UsageError if there is nothing to find in any image."""
        return Precision(only(DetectionOutcome, outcomes))

    def disagreement(self, whole: Outcome, other: Outcome) -> float:
        """How many confident detections of either have no match in the other.

        A match is a confident detection of the same class that overlaps by MIN_OVERLAP.
        """
        a, b = (_shown(o) for o in (whole, other))
        return float(sum((overlaps(x, y) < MIN_OVERLAP).sum() for x, y in ((a, b), (b, a))))

    def answer(self, outcome: Outcome) -> str:
        """The confident detections, counted."""
        return self._counted(_shown(outcome)["labels"])

    def target(self, item: Item) -> str | None:
        """The true boxes, counted."""
        return self._counted(item.target.labels[~item.target.ignored]) if isinstance(item.target, Truth) else None

    def _counted(self, numbers: NDArray[Any]) -> str:
        names = self._labels or ()
        counts = Counter(names[n] if 0 <= n < len(names) else f"class {n}" for n in numbers.tolist())
        return ", ".join(name if n == 1 else f"{n} × {name}" for name, n in sorted(counts.items())) or "nothing"


def detections_of(outputs: Outputs, i: int, batch: int) -> Detections:
    """The detections in the i-th image: (n, 4) boxes, (n,) scores > 0, (n,) labels, best score first.

    outputs: of a batch. Two layouts: torchvision's, of a batch of one, boxes (K, 4), scores and labels (K,); or
    batched, (B, K, 4) and (B, K), where rows of score 0 are unused. Raises UsageError for anything else, and for NaN.
    """
    boxes, scores, labels = (outputs[name] for name in ("boxes", "scores", "labels"))
    if boxes.ndim == 2 and batch == 1:
        boxes, scores, labels = boxes[None], scores[None], labels[None]
    if boxes.ndim != 3 or boxes.shape[::2] != (batch, 4) or not boxes.shape[:2] == scores.shape == labels.shape:
        raise UsageError(
            f"the detector gives boxes {boxes.shape}, scores {scores.shape} and labels {labels.shape} for {batch}"
            " images; expected (B, K, 4), (B, K) and (B, K), or (K, 4), (K,) and (K,) of one image"
        )
    if not (np.isfinite(boxes[i]).all() and np.isfinite(scores[i]).all()):
        raise UsageError("the detector gives NaN or infinity")
    used = np.flatnonzero(scores[i] > 0)
    order = used[np.argsort(-scores[i][used], kind="stable")]
    return boxes[i][order].astype(np.float32), scores[i][order].astype(np.float32), labels[i][order].astype(np.int64)


def _confident(outputs: Outputs, i: int, batch: int) -> Truth:
    boxes, scores, labels = detections_of(outputs, i, batch)
    kept = (scores >= CONFIDENT) & ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)
    return Truth(boxes=boxes[kept], labels=labels[kept], ignored=np.zeros(int(kept.sum()), np.bool_))


def _shown(outcome: Outcome) -> dict[str, NDArray[Any]]:
    (one,) = only(DetectionOutcome, [outcome])
    boxes, scores, labels = one.detections
    return {"boxes": boxes[scores >= CONFIDENT], "labels": labels[scores >= CONFIDENT]}


@dataclass(frozen=True, kw_only=True)
class _Matches:
    """The matches of one class over all images.

    D detections, best score first; T thresholds of intersection over union. image: (D,) image of each detection.
    counted: (T, D) bool, False where a detection is neither right nor wrong. right: for each threshold the indices of
    the right ones. truths: (n,) number of boxes to find in each image.
    """

    image: NDArray[np.int64]
    counted: NDArray[np.bool_]
    right: tuple[NDArray[np.int64], ...]
    truths: NDArray[np.int64]

    def precision(self, counts: NDArray[np.int64]) -> Float64Array | None:
        """(T,) average precision if image i is drawn counts[i] times; None if no drawn image holds the class.

        As pycocotools' accumulate: the precision at a recall is the best at that recall or a higher one. Between right
        detections precision only falls, so it is enough to look at these.
        """
        present = int(self.truths @ counts)
        if not present:
            return None
        times = counts[self.image]
        shared = None if (self.counted != self.counted[0]).any() else np.cumsum(times * self.counted[0])
        averages = []
        for counted, right in zip(self.counted, self.right, strict=True):
            seen = np.cumsum(times * counted) if shared is None else shared
            hits = np.cumsum(times[right])
            precision = hits / (seen[right] + np.spacing(1))
            best = np.maximum.accumulate(precision[::-1])[::-1]
            at = np.searchsorted(hits / present, _RECALLS, side="left")
            averages.append(best[at[at < len(best)]].sum() / len(_RECALLS))  # beyond the last recall it is 0
        return np.array(averages)


class Precision:
    """Scored detections: map50 and map, in [0, 1]."""

    replicates = 200

    def __init__(self, outcomes: Sequence[DetectionOutcome]) -> None:
        self._n = len(outcomes)
        evaluation = _evaluated(outcomes)
        self._whole = _figures(list(evaluation.eval["precision"][:, :, :, 0, 0].mean(axis=1).T))
        self._classes = _matches(evaluation, self._n)

    def __len__(self) -> int:
        return self._n

    def figures(self, counts: NDArray[np.int64] | None = None) -> dict[str, float]:
        """As outcomes.Scored."""
        if counts is None:
            return dict(self._whole)
        return _figures([c.precision(counts) for c in self._classes])

    def draws(self, counts: NDArray[np.int64]) -> dict[str, Float64Array]:
        """As outcomes.Scored."""
        rows = [self.figures(row) for row in counts]
        return {name: np.array([row[name] for row in rows]) for name in self._whole}

    def right(self, figure: str) -> None:
        """As outcomes.Scored: a precision is no share of the images."""


def _figures(precisions: Sequence[Float64Array | None]) -> dict[str, float]:
    """map50 and map. precisions: (T,) of each class; None of a class that no image holds, which is left out."""
    known = np.array([p for p in precisions if p is not None])
    if not len(known):
        return {"map50": float("nan"), "map": float("nan")}
    return {"map50": float(known[:, 0].mean()), "map": float(known.mean())}


def _evaluated(outcomes: Sequence[DetectionOutcome]) -> Any:
    """A COCOeval that has matched and accumulated. Image ids are positions in `outcomes`."""
    from pycocotools.cocoeval import COCOeval

    truth: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for i, outcome in enumerate(outcomes):
        boxes, labels, ignored = outcome.truth
        truth += _annotations(i, boxes, labels, "iscrowd", ignored.astype(int))
        boxes, scores, labels = outcome.detections
        detections += _annotations(i, boxes, labels, "score", scores)
    # Only the classes that some image holds: pycocotools gives no precision of the others, and they take time.
    classes = sorted({a["category_id"] for a in truth if not a["iscrowd"]})
    if not classes:
        raise UsageError("there is nothing to find in any of these images; give images with objects, or annotations")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _index(len(outcomes), classes, truth), _index(len(outcomes), classes, detections), iouType="bbox"
        )
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [list(_EVERY_AREA)], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _annotations(
    image: int, boxes: NDArray[np.float32], labels: NDArray[np.int64], name: str, values: NDArray[Any]
) -> list[dict[str, Any]]:
    """COCO's own form: x, y, width, height."""
    corners = boxes.astype(np.float64)
    sizes = np.maximum(corners[:, 2:] - corners[:, :2], 0)
    rows = zip(corners[:, :2].tolist(), sizes.tolist(), labels.tolist(), values.tolist(), strict=True)
    return [
        {
            "image_id": image,
            "category_id": label,
            "bbox": [*corner, *size],
            "area": size[0] * size[1],
            "iscrowd": 0,
            name: value,
        }
        for corner, size, label, value in rows
    ]


def _index(images: int, classes: Sequence[int], annotations: Sequence[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO

    index = COCO()
    index.dataset = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": c} for c in classes],
        "annotations": [dict(a, id=i + 1) for i, a in enumerate(annotations)],  # id 0 means "no match"
    }
    index.createIndex()
    return index


def _matches(evaluation: Any, n: int) -> list[_Matches]:
    """The matches that accumulate() sums, by class, in its order."""
    classes = []
    for k in range(len(evaluation.params.catIds)):
        images = [e for e in evaluation.evalImgs[k * n : (k + 1) * n] if e is not None]
        scores = np.concatenate([e["dtScores"] for e in images])
        order = np.argsort(-scores, kind="mergesort")
        matched, ignored = (
            np.concatenate([e[name] for e in images], axis=1)[:, order] != 0 for name in ("dtMatches", "dtIgnore")
        )
        truths = np.zeros(n, np.int64)
        for e in images:
            truths[e["image_id"]] = np.count_nonzero(np.asarray(e["gtIgnore"]) == 0)
        image = np.concatenate([np.full(len(e["dtScores"]), e["image_id"], np.int64) for e in images])[order]
        classes.append(
            _Matches(
                image=image,
                counted=~ignored,
                right=tuple(np.flatnonzero(row) for row in matched & ~ignored),
                truths=truths,
            )
        )
    return classes
