"""Mean intersection over union of a segmentation (mIoU), through scikit-learn, and its bootstrap.

scikit-learn counts the pixels of each image (confusion_matrix) and computes mIoU from their sum (jaccard_score). A
bootstrap draw sums the counts of each image as often as it was drawn; its mIoU is the same ratio of the sums (the tests
compare it with scikit-learn's).
Source: the PASCAL VOC segmentation challenge, M. Everingham et al. 2010: intersection and union are summed over all
images before the ratio is taken. The mean is over the classes that the truth holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import UsageError
from splitwire.codec.wire.reply import Outputs
from splitwire.evaluation.answer import results
from splitwire.evaluation.data.dataset import Dataset, Item
from splitwire.evaluation.data.masks import IGNORED

from .outcomes import Int64Array, Outcome, SegmentOutcome, only

Float64Array = NDArray[np.float64]

SHOWN_CLASSES = 3
"""Most classes that the answer for an image is put into words with."""


class SegmentationTask:
    """mIoU against the masks or, without masks, against the whole network's classes.

    The first output is (B, classes, H, W) scores. Figures: "miou"; "pixels": share of the pixels with the right class,
    with masks only; "agreement": share of the pixels with the whole network's class.
    Raises ModuleNotFoundError without scikit-learn.
    """

    kind: results.Task = "segments"
    main = "miou"

    def __init__(self, classes: int, *, labelled: bool, labels: Sequence[str] | None = None) -> None:
        import sklearn.metrics  # noqa: F401 - fails now, not after an hour

        self._classes, self._labelled = classes, labelled
        self._labels = labels if labels is not None and len(labels) == classes else None

    def outcomes(self, outputs: Outputs, reference: Outputs, items: Sequence[Item]) -> list[Outcome]:
        """As tasks.Task."""
        answers, expected = (self._maps(y, len(items)) for y in (outputs, reference))
        if answers.shape != expected.shape:
            raise UsageError(f"the network gives maps {answers.shape} and {expected.shape} for the same images")
        outcomes: list[Outcome] = []
        for answer, whole, item in zip(answers, expected, items, strict=True):
            truth = whole if item.target is None else np.asarray(item.target)
            counts = self._counts(truth, resized(answer, truth.shape))
            cells = np.flatnonzero(counts)
            outcomes.append(
                SegmentOutcome(
                    classes=self._classes,
                    cells=cells.astype("<i4").tobytes(),
                    pixels=counts.ravel()[cells].astype("<i4").tobytes(),
                    agreement=float((answer == whole).mean()),
                )
            )
        return outcomes

    def scored(self, outcomes: Sequence[Outcome]) -> Overlap:
        """As tasks.Task. Raises UsageError if the masks ignore every pixel."""
        return Overlap(only(SegmentOutcome, outcomes), labelled=self._labelled)

    def disagreement(self, whole: Outcome, other: Outcome) -> float:
        """Share of the pixels that have another class."""
        a, b = only(SegmentOutcome, [whole, other])
        return a.agreement - b.agreement

    def answer(self, outcome: Outcome) -> str:
        """The classes with the most pixels, of those that count."""
        (one,) = only(SegmentOutcome, [outcome])
        return self._shares(one.counts.sum(axis=0))

    def target(self, item: Item) -> str | None:
        """The classes of the mask with the most pixels."""
        if item.target is None:
            return None
        pixels = np.asarray(item.target)
        return self._shares(np.bincount(pixels[pixels != IGNORED], minlength=self._classes))

    def _shares(self, pixels: Int64Array) -> str:
        order = [int(k) for k in np.argsort(-pixels, kind="stable")[:SHOWN_CLASSES] if pixels[k]]
        return ", ".join(f"{self._name(k)} {pixels[k] / pixels.sum():.0%}" for k in order) or "nothing"

    def _name(self, number: int) -> str:
        return f"class {number}" if self._labels is None else self._labels[number]

    def _maps(self, outputs: Outputs, batch: int) -> Int64Array:
        """(B, H, W): the likeliest class of every pixel."""
        scores = next(iter(outputs.values()))
        if scores.ndim != 4 or scores.shape[:2] != (batch, self._classes):
            raise UsageError(
                f"the network gives {scores.shape} for {batch} images; expected ({batch}, {self._classes}, H, W)"
            )
        if not np.isfinite(scores).all():
            raise UsageError("the network gives NaN or infinity")
        return np.asarray(scores.argmax(axis=1), np.int64)

    def _counts(self, truth: NDArray[np.integer], answer: Int64Array) -> Int64Array:
        """(K, K) pixels of each true class (row) and class of the answer (column), without the ignored ones."""
        from sklearn.metrics import confusion_matrix

        counted = truth != IGNORED
        if not counted.any():
            return np.zeros((self._classes, self._classes), np.int64)
        classes = np.arange(self._classes)
        return np.asarray(confusion_matrix(truth[counted], answer[counted], labels=classes), np.int64)


def segmentation_task(outputs: Outputs, data: Dataset, *, labels: Sequence[str] | None) -> SegmentationTask:
    """The task of a network whose first output is a segmentation. Raises UsageError: an output of another shape, more
    classes than a mask can hold, masks with a class that the network does not have."""
    name, first = next(iter(outputs.items()))
    if first.ndim != 4 or first.shape[1] < 2 or not np.issubdtype(first.dtype, np.floating):
        raise UsageError(
            f"the output {name!r} is {first.shape} {first.dtype}; a segmentation is judged by scores"
            " (B, classes, H, W); say with --metric module:function how good another answer is"
        )
    classes = first.shape[1]
    if data.targets is not None:
        if classes > IGNORED:
            raise UsageError(f"masks hold classes 0 to {IGNORED - 1}, the network has {classes}; give pictures alone")
        worst = max(data.targets, key=lambda mask: mask.highest)
        if worst.highest < 1:
            raise UsageError(
                f"the masks hold no class but 0; {IGNORED} means ignored, so write the classes as 0 to {classes - 1},"
                " or give pictures alone"
            )
        if worst.highest >= classes:
            raise UsageError(
                f"the mask {worst.name} has a class {worst.highest}, the network has classes 0 to {classes - 1}"
                f" ({IGNORED}: ignored)"
            )
    return SegmentationTask(classes, labelled=data.labelled, labels=labels)


def resized(answer: Int64Array, shape: tuple[int, ...]) -> Int64Array:
    """A map of classes at the size of the truth: each pixel takes the nearest one's class."""
    if answer.shape == shape:
        return answer
    rows, columns = (
        ((np.arange(n) + 0.5) * size / n).astype(np.int64) for n, size in zip(shape, answer.shape, strict=True)
    )
    return np.asarray(answer[rows[:, None], columns[None]])


class Overlap:
    """Scored segmentations: miou, pixels and agreement, in [0, 1]."""

    replicates = 2000

    def __init__(self, outcomes: Sequence[SegmentOutcome], *, labelled: bool) -> None:
        self._labelled = labelled
        self._total = sum((o.counts for o in outcomes), np.zeros((outcomes[0].classes,) * 2, np.int64))
        if not self._total.any():
            raise UsageError("the masks ignore every pixel; give masks with classes, or pictures alone")
        # per image: (n, K) pixels right, true and answered of each class
        self._right, self._true, self._answered = (
            np.array(rows, np.float64)
            for rows in zip(
                *((c.diagonal(), c.sum(axis=1), c.sum(axis=0)) for c in (o.counts for o in outcomes)), strict=True
            )
        )
        self._agreement = np.array([o.agreement for o in outcomes])

    def __len__(self) -> int:
        return len(self._agreement)

    def figures(self, counts: Int64Array | None = None) -> dict[str, float]:
        """As outcomes.Scored."""
        if counts is not None:
            return {name: float(values[0]) for name, values in self.draws(counts[None]).items()}
        return self.figures(np.ones(len(self), np.int64)) | {"miou": mean_iou(self._total)}

    def draws(self, counts: Int64Array) -> dict[str, Float64Array]:
        """As outcomes.Scored."""
        times = counts.astype(np.float64)
        right, true, answered = times @ self._right, times @ self._true, times @ self._answered
        present = true > 0
        iou = np.where(present, right / np.maximum(true + answered - right, 1.0), 0.0)
        with np.errstate(invalid="ignore"):  # a draw whose pixels are all ignored has no answer
            figures = {"miou": iou.sum(axis=1) / present.sum(axis=1)}
            if self._labelled:
                figures["pixels"] = right.sum(axis=1) / true.sum(axis=1)
        return figures | {"agreement": times @ self._agreement / times.sum(axis=1)}

    def right(self, figure: str) -> None:
        """As outcomes.Scored: no figure is a share of the images."""


def mean_iou(counts: Int64Array) -> float:
    """Mean intersection over union, over the classes that the truth holds.

    counts: (K, K) pixels by true class (row) and class of the answer (column)."""
    from sklearn.metrics import jaccard_score

    true, answer = np.nonzero(counts)
    weights = counts[true, answer]
    return float(jaccard_score(true, answer, labels=np.unique(true), average="macro", sample_weight=weights))
