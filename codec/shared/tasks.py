"""The task of a network and the meaning of its outputs: names of a detector's outputs, logits or probabilities.

The exporter, the evaluation and the edge use these functions, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Task = Literal["classification", "detection", "segmentation"]

TASKS: tuple[Task, ...] = ("classification", "detection", "segmentation")

DETECTION = ("boxes", "scores", "labels")
"""Names of a detector's outputs, as in torchvision."""

PROBABLE = 1e-3
"""Largest difference of a sum of probabilities from 1."""

MIN_OVERLAP = 0.5
"""Intersection over union from which a box counts as found again, as in AP50."""

Float64Array = NDArray[np.float64]


def is_detector(names: Collection[str]) -> bool:
    """Whether outputs with these names are detections: boxes, scores and labels."""
    return set(DETECTION) <= set(names)


def are_class_scores(output: NDArray[Any]) -> bool:
    """Whether an output can be that of a classifier: (B, K) floating-point scores of two or more classes."""
    return output.ndim == 2 and output.shape[1] > 1 and bool(np.issubdtype(output.dtype, np.floating))


def are_probabilities(scores: NDArray[Any]) -> bool:
    """Whether scores (…, K) of K classes are probabilities: none is negative, and each row sums to 1."""
    return bool(scores.size) and bool((scores >= 0).all()) and bool((np.abs(_sums(scores) - 1) < PROBABLE).all())


def in_unit_interval(scores: NDArray[Any]) -> bool:
    """Whether each score can be a probability by itself, as a sigmoid makes them: all in [0, 1]."""
    return bool(scores.min() >= 0 and scores.max() <= 1)


def log_probabilities(scores: NDArray[Any]) -> Float64Array:
    """Logarithms of the probabilities of scores (…, K): logits go through softmax first, probabilities do not."""
    wide = scores.astype(np.float64)
    if are_probabilities(wide):
        return np.asarray(np.log(np.maximum(wide, np.finfo(np.float32).tiny)))
    with np.errstate(invalid="ignore"):  # NaN and infinite scores: their row becomes NaN
        return np.asarray(wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True))


def divergence(a: Float64Array, b: Float64Array) -> Float64Array:
    """(B,) KL(softmax a ‖ softmax b), nats. A class with a score of -inf in a adds nothing; infinite where only b has
    NaN or such a score; 0 where a has NaN: there is no answer to keep."""
    with np.errstate(invalid="ignore"):
        log_p, log_q = (z - np.logaddexp.reduce(z, axis=1, keepdims=True) for z in (a, b))
        p = np.exp(log_p)
        terms = np.where(p == 0, 0.0, p * (log_p - log_q))
    divergence: Float64Array = terms.sum(axis=1)
    return np.where(np.isnan(log_p).any(axis=1), 0.0, np.where(np.isnan(divergence), np.inf, divergence))


def box_iou(a: NDArray[Any], b: NDArray[Any]) -> Float64Array:
    """(N, M): intersection over union of boxes a (N, 4) with boxes b (M, 4); left, top, right, bottom. 0 where neither
    has an area. What torch has to trace or differentiate, and COCO's own evaluation, have theirs."""
    a, b = a.astype(np.float64).reshape(-1, 4), b.astype(np.float64).reshape(-1, 4)
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    area_a, area_b = ((z[:, 2:] - z[:, :2]).prod(axis=1) for z in (a, b))
    union = area_a[:, None] + area_b[None] - common
    return np.where(union > 0, common / np.where(union > 0, union, 1.0), 0.0)


def overlaps(old: Mapping[str, NDArray[Any]], new: Mapping[str, NDArray[Any]]) -> Float64Array:
    """Per box of `old`, the largest intersection over union with a box of the same label in `new`; 0 without one."""
    overlap = box_iou(old["boxes"], new["boxes"])
    if not overlap.size:
        return np.zeros(len(overlap))
    overlap[old["labels"][:, None] != new["labels"][None]] = 0.0
    best: Float64Array = overlap.max(axis=1)
    return best


def _sums(scores: NDArray[Any]) -> Float64Array:
    return np.asarray(scores.sum(axis=-1, dtype=np.float64))
