"""How far a network's outputs have moved from what they were, in the terms of its task.

Three tasks are told apart by the outputs: classes ((B, K) logits or probabilities first), detections (boxes, scores and
labels, of one image or, with an axis in front, of each image of a batch), and anything else, where there is only the
error of the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.tasks import (
    DETECTION,
    MIN_OVERLAP,
    are_class_scores,
    divergence,
    is_detector,
    log_probabilities,
    overlaps,
)
from splitwire.exporter.network.inference import Array

Task = Literal["classes", "detections", "values"]

Float64Array = NDArray[np.float64]


class Damage:
    """Sums up, over batches, how far outputs are from their references.

    names: of the outputs, in order. task: known after the first batch.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.task: Task | None = None
        self._names = tuple(names)
        self._inputs = 0
        self._kept = 0.0
        self._all = 0.0
        self._moved = 0.0
        self._errors = np.zeros(len(self._names))
        self._energy = np.zeros(len(self._names))

    def add(self, reference: Sequence[Array], outputs: Sequence[Array], count: int) -> None:
        """Take in one batch, of which the first `count` inputs are looked at."""
        if self.task is None:
            self.task = _task(self._names, reference)
        self._inputs += count
        if self.task == "classes":
            old, new = (log_probabilities(y[0][:count]) for y in (reference, outputs))
            self._kept += float((old.argmax(axis=1) == new.argmax(axis=1)).sum())
            self._all += count
            self._moved += float(divergence(old, new).sum())
        elif self.task == "detections":
            before, after = (dict(zip(self._names, y, strict=True)) for y in (reference, outputs))
            for wanted, found in zip(_images(before, count), _images(after, count), strict=True):
                overlap = overlaps(wanted, found)
                scores = wanted["scores"].astype(np.float64)
                self._kept += float(scores[overlap >= MIN_OVERLAP].sum())
                self._all += float(scores.sum())
                self._moved += float((scores * (1 - overlap)).sum())
        else:
            for i, (a, b) in enumerate(zip(reference, outputs, strict=True)):
                if np.issubdtype(a.dtype, np.floating):
                    x, y = (np.atleast_1d(z)[:count].astype(np.float64) for z in _to_one_shape(a, b))
                    self._errors[i] += np.square(x - y).sum()
                    self._energy[i] += np.square(x).sum()

    @property
    def agreement(self) -> float | None:
        """Share of the answers that stay, in [0, 1]: of Top-1 classes; of detections, weighted by score, those for
        which there is one of the same class that overlaps by MIN_OVERLAP. None for other tasks."""
        if self.task == "values":
            return None
        return self._kept / self._all if self._all else 1.0

    @property
    def relative_error(self) -> float | None:
        """‖ŷ − y‖ / ‖y‖ over all inputs, the root mean square over the outputs; None for classes and detections."""
        return float(np.sqrt(self._relative().mean())) if self.task == "values" else None

    @property
    def total(self) -> float:
        """A smooth figure to minimise, which adds up, nearly, over small independent changes: for classes the mean
        Kullback–Leibler divergence from the reference, nats; for detections the share of overlap lost, weighted by
        score; else the square of the relative error."""
        if self.task == "classes":
            return self._moved / max(self._inputs, 1)
        if self.task == "detections":
            return self._moved / self._all if self._all else 0.0
        return float(self._relative().mean())

    def _relative(self) -> Float64Array:
        used = self._energy > 0
        return self._errors[used] / self._energy[used] if used.any() else np.zeros(1)


def _task(names: Sequence[str], outputs: Sequence[Array]) -> Task:
    if is_detector(names):
        return "detections"
    return "classes" if are_class_scores(outputs[0]) else "values"


def _images(found: dict[str, Array], count: int) -> list[dict[str, Array]]:
    """Boxes (N, 4), scores and labels (N,) of each of the first `count` images, without the rows of score 0 with which
    a detector of batches fills up."""
    images = [found] if found["boxes"].ndim == 2 else [{n: found[n][i] for n in DETECTION} for i in range(count)]
    return [{n: image[n][np.asarray(image["scores"], np.float32) > 0] for n in DETECTION} for image in images]


def _to_one_shape(a: Array, b: Array) -> tuple[Array, Array]:
    """Both filled up with zeros to the larger shape: an output whose size depends on the data may have changed it."""
    if a.shape == b.shape or a.ndim != b.ndim:
        return a, b
    shape = np.maximum(a.shape, b.shape)
    return tuple(np.pad(z, [(0, n - m) for n, m in zip(shape, z.shape, strict=True)]) for z in (a, b))  # type: ignore[return-value]  # two in, two out
