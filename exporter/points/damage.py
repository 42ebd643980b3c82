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
        self._errors: list[Float64Array] = [np.zeros(0)] * len(self._names)
        self._energy: list[Float64Array] = [np.zeros(0)] * len(self._names)

    def add(self, reference: Sequence[Array], outputs: Sequence[Array], count: int) -> None:
        """Take in one batch, of which the first `count` inputs are looked at."""
        if self.task is None:
            self.task = judged_as(self._names, reference)
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
                    self._errors[i] = _added(self._errors[i], by_channel(np.square(x - y)))
                    self._energy[i] = _added(self._energy[i], by_channel(np.square(x)))

    @property
    def agreement(self) -> float | None:
        """Share of the answers that stay, in [0, 1]: of Top-1 classes; of detections, weighted by score, those for
        which there is one of the same class that overlaps by MIN_OVERLAP. None for other tasks."""
        if self.task == "values":
            return None
        return self._kept / self._all if self._all else 1.0

    @property
    def relative_error(self) -> float | None:
        """‖ŷ − y‖ / ‖y‖ of each channel over all inputs, root mean square over channels and outputs; None for classes
        and detections.

        By channel, since the raw output of a detector holds boxes in pixels beside scores below 1: its norm is that of
        the boxes alone.
        """
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
        """Squared, one for each output that holds anything but zeros."""
        pairs = [(e[s > 0], s[s > 0]) for e, s in zip(self._errors, self._energy, strict=True)]
        return np.array([(e / s).mean() for e, s in pairs if s.size] or [0.0])


def judged_as(names: Sequence[str], outputs: Sequence[Array]) -> Task:
    """What outputs of these names are taken for."""
    if is_detector(names):
        return "detections"
    return "classes" if are_class_scores(outputs[0]) else "values"


def _images(found: dict[str, Array], count: int) -> list[dict[str, Array]]:
    """Boxes (N, 4), scores and labels (N,) of each of the first `count` images, without the rows of score 0 with which
    a detector of batches fills up."""
    images = [found] if found["boxes"].ndim == 2 else [{n: found[n][i] for n in DETECTION} for i in range(count)]
    return [{n: image[n][np.asarray(image["scores"], np.float32) > 0] for n in DETECTION} for image in images]


def by_channel(values: Float64Array) -> Float64Array:
    """(channels,) sums of (B, …). The channels are the last axis of (B, K); the shorter of the two of (B, A, N); of
    (B, C, H, W) the first, and of (B, H, W, C) the last where that is the shortest; of more axes the last."""
    sides = values.shape[1:]
    if not sides:
        return np.atleast_1d(values.sum())
    if len(sides) == 2:
        axis = 0 if sides[0] < sides[1] else 1
    else:
        axis = 0 if len(sides) == 3 and sides[2] >= min(sides[:2]) else len(sides) - 1
    summed: Float64Array = values.sum(axis=tuple(i for i in range(values.ndim) if i != axis + 1))
    return summed


def _added(a: Float64Array, b: Float64Array) -> Float64Array:
    """Filled up with zeros to the longer: an output whose size depends on the data may have more channels later."""
    total: Float64Array = np.pad(a, (0, max(0, b.size - a.size))) + np.pad(b, (0, max(0, a.size - b.size)))
    return total


def _to_one_shape(a: Array, b: Array) -> tuple[Array, Array]:
    """Both filled up with zeros to the larger shape: an output whose size depends on the data may have changed it."""
    if a.shape == b.shape or a.ndim != b.ndim:
        return a, b
    shape = np.maximum(a.shape, b.shape)
    return tuple(np.pad(z, [(0, n - m) for n, m in zip(shape, z.shape, strict=True)]) for z in (a, b))  # type: ignore[return-value]  # two in, two out
