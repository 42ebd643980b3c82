"""What a network is for, and what the numbers mean that it gives: names of outputs, logits or probabilities.

The exporter, the evaluation and the edge ask here, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Task = Literal["classification", "detection", "segmentation"]

TASKS: tuple[Task, ...] = ("classification", "detection", "segmentation")

DETECTION = ("boxes", "scores", "labels")
"""Names of a detector's outputs, as torchvision has them."""

PROBABLE = 1e-3
"""How far the sum of probabilities may be from 1."""

Float64Array = NDArray[np.float64]


def is_detector(names: Collection[str]) -> bool:
    """Whether outputs of these names are detections: boxes, scores and labels."""
    return set(DETECTION) <= set(names)


def are_probabilities(scores: NDArray[Any]) -> bool:
    """Whether scores (…, K) of K classes are probabilities: none is negative, and each row sums to 1."""
    return bool(scores.size) and bool((scores >= 0).all()) and bool((np.abs(_sums(scores) - 1) < PROBABLE).all())


def log_probabilities(scores: NDArray[Any]) -> Float64Array:
    """Scores (…, K) → logarithms of probabilities: of logits by softmax, of probabilities as they are."""
    wide = scores.astype(np.float64)
    if are_probabilities(wide):
        return np.asarray(np.log(np.maximum(wide, np.finfo(np.float32).tiny)))
    return np.asarray(wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True))


def _sums(scores: NDArray[Any]) -> Float64Array:
    return np.asarray(scores.sum(axis=-1, dtype=np.float64))
