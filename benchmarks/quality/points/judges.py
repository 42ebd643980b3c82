"""What the outputs of a network answer, how far two answers agree, and how right they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.networks.field import text_of
from splitwire.evaluation.data.coco import Truth
from splitwire.evaluation.tasks.detection import DetectionTask, detections_of
from splitwire.evaluation.tasks.outcomes import DetectionOutcome
from splitwire.exporter.network.inference import Array


class Judge(Protocol):
    """Reads and compares the answers of one network."""

    @property
    def score_name(self) -> str | None:
        """What a score is: accuracy or mAP. None without labels."""

    def answers(self, outputs: Mapping[str, Array]) -> list[Any]:
        """The answer to each input of a batch, in little memory. outputs: by name, in order."""

    def agreement(self, whole: Sequence[Any], other: Sequence[Any]) -> float | None:
        """Share of equal answers, in [0, 1]; None where the damage (exporter/points/damage.py) says it."""

    def score(self, answers: Sequence[Any]) -> float | None:
        """Of the answers to all test inputs, in order; None without labels."""


class Classes:
    """Top-1. labels: (n,) of the test inputs, or None."""

    def __init__(self, labels: NDArray[np.uint8] | None = None) -> None:
        self.score_name = None if labels is None else "accuracy"
        self._labels = labels

    def answers(self, outputs: Mapping[str, Array]) -> list[int]:
        """The class of each input."""
        found: list[int] = next(iter(outputs.values())).argmax(axis=1).tolist()
        return found

    def agreement(self, whole: Sequence[int], other: Sequence[int]) -> None:
        """The damage has it."""

    def score(self, answers: Sequence[int]) -> float | None:
        """Share of right classes."""
        return None if self._labels is None else float(np.mean(np.asarray(answers) == self._labels))


class Text:
    """The text of a line by CTC."""

    score_name = None

    def answers(self, outputs: Mapping[str, Array]) -> list[str]:
        """The text of each line (field.text_of)."""
        return [text_of(np.asarray(scores, np.float32)) for scores in next(iter(outputs.values()))]

    def agreement(self, whole: Sequence[str], other: Sequence[str]) -> float:
        """Share of lines with the same text."""
        return float(np.mean([a == b for a, b in zip(whole, other, strict=True)]))

    def score(self, answers: Sequence[str]) -> None:
        """No line has a label: the recogniser's character set is its own."""


class Boxes:
    """Detections. truths: of the test inputs, in order."""

    score_name = "mAP"

    def __init__(self, truths: Sequence[Truth]) -> None:
        self._truths = truths

    def answers(self, outputs: Mapping[str, Array]) -> list[tuple[NDArray[Any], ...]]:
        """Boxes, scores and labels of each image."""
        count = len(outputs["boxes"])
        return [detections_of(dict(outputs), i, count) for i in range(count)]

    def agreement(self, whole: Sequence[Any], other: Sequence[Any]) -> None:
        """The damage has it."""

    def score(self, answers: Sequence[tuple[NDArray[Any], ...]]) -> float:
        """COCO's mean average precision, IoU 0.5 to 0.95."""
        outcomes = [
            DetectionOutcome(
                boxes=boxes.astype("<f4").tobytes(),
                scores=scores.astype("<f4").tobytes(),
                labels=labels.astype("<i4").tobytes(),
                true_boxes=truth.boxes.astype("<f4").tobytes(),
                true_labels=truth.labels.astype("<i4").tobytes(),
                ignored=truth.ignored.tobytes(),
            )
            for (boxes, scores, labels), truth in zip(answers, self._truths, strict=True)
        ]
        return DetectionTask().scored(outcomes).figures()["map"]
