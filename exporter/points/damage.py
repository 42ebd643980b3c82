"""Measure how far the outputs of a network are from their references, in the terms of its task.

The outputs determine the task: classes (the first output is (B, K) logits or probabilities), detections (boxes, scores
and labels, of one image or, with a batch axis, of each image), or values (all other outputs: their numerical error).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.shared.tasks import (
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
    """Adds up, over batches, how far outputs are from their references.

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
        """Add one batch. Only its first `count` inputs count."""
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
            for expected, detected in zip(_images(before, count), _images(after, count), strict=True):
                overlap = overlaps(expected, detected)
                scores = expected["scores"].astype(np.float64)
                self._kept += float(scores[overlap >= MIN_OVERLAP].sum())
                self._all += float(scores.sum())
                self._moved += float((scores * (1 - overlap)).sum())
        else:
            for i, (a, b) in enumerate(zip(reference, outputs, strict=True)):
                if np.issubdtype(a.dtype, np.floating):
                    x, y = (np.atleast_1d(z)[:count].astype(np.float64) for z in _to_one_shape(a, b))
                    self._errors[i] = _added(self._errors[i], by_channel(np.square(x - y)))
                    self._energy[i] = _added(self._energy[i], by_channel(np.square(x)))

    def joined(self, other: Damage) -> Damage:
        """The damage over the inputs of both."""
        joined = Damage(self._names)
        joined.task = self.task or other.task
        joined._inputs = self._inputs + other._inputs
        joined._kept, joined._all = self._kept + other._kept, self._all + other._all
        joined._moved = self._moved + other._moved
        joined._errors = [_added(a, b) for a, b in zip(self._errors, other._errors, strict=True)]
        joined._energy = [_added(a, b) for a, b in zip(self._energy, other._energy, strict=True)]
        return joined

    @property
    def agreement(self) -> float | None:
        """Share of the answers that do not change, in [0, 1]; None for task "values".

        For classes: the share of equal Top-1 classes. For detections: the share, weighted by score, that has a match: a
        box of the same class that overlaps by MIN_OVERLAP.
        """
        if self.task == "values":
            return None
        return self._kept / self._all if self._all else 1.0

    @property
    def relative_error(self) -> float | None:
        """‖ŷ − y‖ / ‖y‖ per channel over all inputs, root mean square over channels and outputs; None for classes and
        detections.

        It is per channel because the raw output of a detector has boxes in pixels and scores below 1: the norm of the
        whole output is that of the boxes.
        """
        return float(np.sqrt(self._relative().mean())) if self.task == "values" else None

    @property
    def total(self) -> float:
        """A smooth figure to minimise. The figures of small independent changes nearly add up.

        For classes: the mean Kullback–Leibler divergence from the reference, in nats. For detections: the lost share of
        the overlap, weighted by score. For values: the square of the relative error.
        """
        if self.task == "classes":
            return self._moved / max(self._inputs, 1)
        if self.task == "detections":
            return self._moved / self._all if self._all else 0.0
        return float(self._relative().mean())

    def _relative(self) -> Float64Array:
        """The squared error of each output; outputs of only zeros are left out."""
        pairs = [(e[s > 0], s[s > 0]) for e, s in zip(self._errors, self._energy, strict=True)]
        return np.array([(e / s).mean() for e, s in pairs if s.size] or [0.0])


def judged_as(names: Sequence[str], outputs: Sequence[Array]) -> Task:
    """The task of outputs with these names, for the measurement of the damage."""
    if is_detector(names):
        return "detections"
    return "classes" if are_class_scores(outputs[0]) else "values"


def _images(outputs: dict[str, Array], count: int) -> list[dict[str, Array]]:
    """Boxes (N, 4), scores (N,) and labels (N,) of each of the first `count` images.

    Rows of score 0 are left out: detectors with a batch axis fill up their outputs with them.
    """
    images = [outputs] if outputs["boxes"].ndim == 2 else [{n: outputs[n][i] for n in DETECTION} for i in range(count)]
    return [{n: image[n][np.asarray(image["scores"], np.float32) > 0] for n in DETECTION} for image in images]


def by_channel(values: Float64Array) -> Float64Array:
    """(channels,) sums of values (B, …).

    The axis of the channels: the last of (B, K), the shorter one of (B, A, N), the last of (B, H, W, C) if it is the
    shortest, otherwise the first of (B, C, H, W), and the last of more axes.
    """
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
    """The sum, with zeros for missing channels: the size of an output may depend on the data."""
    total: Float64Array = np.pad(a, (0, max(0, b.size - a.size))) + np.pad(b, (0, max(0, a.size - b.size)))
    return total


def _to_one_shape(a: Array, b: Array) -> tuple[Array, Array]:
    """Both arrays, filled up with zeros to the larger shape: the size of an output may depend on the data."""
    if a.shape == b.shape or a.ndim != b.ndim:
        return a, b
    shape = np.maximum(a.shape, b.shape)
    return tuple(np.pad(z, [(0, n - m) for n, m in zip(shape, z.shape, strict=True)]) for z in (a, b))  # type: ignore[return-value]  # two in, two out
