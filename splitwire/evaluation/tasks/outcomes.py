"""Outcomes: the few numbers that are kept of the answer for one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]


class ClassOutcome(Struct, frozen=True, kw_only=True, tag="class"):
    """Of a classifier. answer: the likeliest class. probability: that the network gives it, in [0, 1].

    top1, top5: 1.0 where the label is the likeliest, or among the five likeliest classes, else 0.0; None without label,
    or where there are no more than five classes. agreement: 1.0 where the whole network's answer is the same.
    kl: Kullback–Leibler divergence of the answer from the whole network's, nats.
    """

    answer: int
    probability: float
    agreement: float
    kl: float
    top1: float | None = None
    top5: float | None = None


class DetectionOutcome(Struct, frozen=True, kw_only=True, tag="detection"):
    """Of a detector: arrays as little-endian bytes, best score first (a Python list would take ten times the memory).

    boxes: (n, 4) float32, left, top, right, bottom, pixels of the input. scores: (n,) float32. labels: (n,) int32.
    true_boxes, true_labels: the truth, in the same form. ignored: (m,) bool, as in coco.Truth.
    """

    boxes: bytes
    scores: bytes
    labels: bytes
    true_boxes: bytes
    true_labels: bytes
    ignored: bytes

    @property
    def detections(self) -> tuple[Float32Array, Float32Array, Int64Array]:
        """(n, 4) boxes, (n,) scores, (n,) labels."""
        return _corners(self.boxes), np.frombuffer(self.scores, "<f4"), _numbers(self.labels)

    @property
    def truth(self) -> tuple[Float32Array, Int64Array, NDArray[np.bool_]]:
        """(m, 4) boxes, (m,) labels, (m,) ignored."""
        return _corners(self.true_boxes), _numbers(self.true_labels), np.frombuffer(self.ignored, np.bool_)


class SegmentOutcome(Struct, frozen=True, kw_only=True, tag="segments"):
    """Of a segmentation: the pixels that count, by true class and class of the answer, without the zeros.

    classes: K. cells: (m,) int32, little-endian: true class · K + class of the answer. pixels: (m,) int32 of each.
    agreement: share of all pixels that have the whole network's class.
    """

    classes: int
    cells: bytes
    pixels: bytes
    agreement: float

    @property
    def counts(self) -> Int64Array:
        """(K, K) pixels: rows are true classes, columns classes of the answer."""
        counts = np.zeros(self.classes**2, np.int64)
        counts[np.frombuffer(self.cells, "<i4")] = np.frombuffer(self.pixels, "<i4")
        return counts.reshape(self.classes, self.classes)


class ValueOutcome(Struct, frozen=True, kw_only=True, tag="value"):
    """Of a user's metric: its value."""

    value: float


Outcome = ClassOutcome | DetectionOutcome | SegmentOutcome | ValueOutcome
"""msgspec encodes it; decode with `type=list[Outcome]`."""

T = TypeVar("T", bound=Struct)


class Scored(Protocol):
    """One contender's outcomes over all images. It does not change, and is hashed by identity.

    replicates: number of bootstrap draws; fewer where one takes long.
    """

    def __hash__(self) -> int: ...

    @property
    def replicates(self) -> int: ...

    def __len__(self) -> int:
        """The number of images."""

    def figures(self, counts: Int64Array | None = None) -> dict[str, float]:
        """The figures by name, NaN where a draw has none.

        counts: (n,) how often each image is drawn; None: once each.
        """

    def draws(self, counts: Int64Array) -> dict[str, NDArray[np.float64]]:
        """`figures` of many draws at once: (R, n) counts → (R,) of each figure."""

    def right(self, figure: str) -> NDArray[np.float64] | None:
        """(n,) of a figure that is a share of the images: 1.0 for each that counts, else 0.0. None of any other."""


def only(kind: type[T], outcomes: Sequence[Outcome]) -> list[T]:
    """`outcomes`, with their type. Raises TypeError if one is of another kind."""
    of_kind: list[T] = [o for o in outcomes if isinstance(o, kind)]
    if len(of_kind) != len(outcomes):
        raise TypeError(f"outcomes of another task than {kind.__name__}")
    return of_kind


def _corners(data: bytes) -> Float32Array:
    return np.frombuffer(data, "<f4").reshape(-1, 4)


def _numbers(data: bytes) -> Int64Array:
    return np.frombuffer(data, "<i4").astype(np.int64)
