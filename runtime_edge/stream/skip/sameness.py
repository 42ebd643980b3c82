"""Sameness: whether two answers say the same, by the task of the network."""

from __future__ import annotations

import numpy as np

from splitwire.codec.profile import CodecProfile
from splitwire.codec.wire.reply import Outputs
from splitwire.runtime_edge.findings import MIN_SCORE, Classes, Detection, Detections, Segments, find
from splitwire.runtime_edge.results import SplitResult

OVERLAP = 0.5
"""Least intersection over union of two boxes of one object."""
SCORE_MARGIN = 0.1
"""A detection counts as kept while its score is at most this much below the least score."""
PIXELS = 0.01
"""Largest share of the pixels of a segmentation that may change."""
VALUES = 0.05
"""Largest difference of an output of unknown meaning, as a share of its range."""


class Sameness:
    """Compares the answers of two frames, of the first image of each.

    classification: the most probable class is the same. detection: each box with a score of at least `min_score` has
    one of the same class in the other answer, with an overlap of at least 0.5 and a score of at least min_score − 0.1,
    and the other way round. segmentation: the class of at most 1 % of the pixels changes. Otherwise no output changes
    by more than 5 % of its range.
    """

    def __init__(self, profile: CodecProfile, *, task: str | None = None, min_score: float = MIN_SCORE) -> None:
        self._profile = profile
        self._task = task
        self._min_score = min_score

    def __call__(self, a: SplitResult, b: SplitResult) -> bool:
        """Whether the answers are the same. Raises UsageError for a task that does not fit the outputs."""
        low = max(0.0, self._min_score - SCORE_MARGIN)
        first, second = (find(r.outputs, self._profile, task=self._task, top=1, min_score=low) for r in (a, b))
        if isinstance(first, Classes) and isinstance(second, Classes):
            return [c.index for c in first.top] == [c.index for c in second.top]
        if isinstance(first, Detections) and isinstance(second, Detections):
            return self._in(first.boxes, second.boxes) and self._in(second.boxes, first.boxes)
        if isinstance(first, Segments) and isinstance(second, Segments):
            same_shape = first.mask.shape == second.mask.shape
            return same_shape and float((first.mask != second.mask).mean()) <= PIXELS
        return _close(a.outputs, b.outputs)

    def _in(self, boxes: tuple[Detection, ...], others: tuple[Detection, ...]) -> bool:
        """Whether each box that counts has a partner of its own among the others."""
        left = list(others)
        for box in boxes:
            if box.score < self._min_score:
                continue
            fitting = [o for o in left if o.index == box.index and overlap(o.box, box.box) >= OVERLAP]
            if not fitting:
                return False
            left.remove(max(fitting, key=lambda o: overlap(o.box, box.box)))
        return True


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def _close(a: Outputs, b: Outputs) -> bool:
    if a.keys() != b.keys():
        return False
    for name, x in a.items():
        y = b[name]
        if x.shape != y.shape:
            return False
        if x.size and not np.array_equal(x, y):
            wide = x.astype(np.float64), y.astype(np.float64)
            largest = np.abs(wide[0] - wide[1]).max()
            if not largest <= VALUES * max(np.ptp(wide[0]), np.ptp(wide[1])):
                return False
    return True
