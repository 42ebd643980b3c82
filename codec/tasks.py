"""The task of a network and the meaning of its outputs: names of a detector's outputs, logits or probabilities.

The exporter, the evaluation and the edge use these functions, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Task = Literal["classification", "detection", "segmentation"]

TASKS: tuple[Task, ...] = ("classification", "detection", "segmentation")

DETECTION = ("boxes", "scores", "labels")
"""Names of a detector's outputs, as in torchvision."""

PROBABLE = 1e-3
"""Largest difference of a sum of probabilities from 1."""

Float64Array = NDArray[np.float64]


def is_detector(names: Collection[str]) -> bool:
    """Whether outputs with these names are detections: boxes, scores and labels."""
    return set(DETECTION) <= set(names)


def are_probabilities(scores: NDArray[Any]) -> bool:
    """Whether scores (…, K) of K classes are probabilities: none is negative, and each row sums to 1."""
    return bool(scores.size) and bool((scores >= 0).all()) and bool((np.abs(_sums(scores) - 1) < PROBABLE).all())


def log_probabilities(scores: NDArray[Any]) -> Float64Array:
    """Logarithms of the probabilities of scores (…, K): logits go through softmax first, probabilities do not."""
    wide = scores.astype(np.float64)
    if are_probabilities(wide):
        return np.asarray(np.log(np.maximum(wide, np.finfo(np.float32).tiny)))
    return np.asarray(wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True))


def _sums(scores: NDArray[Any]) -> Float64Array:
    return np.asarray(scores.sum(axis=-1, dtype=np.float64))
