"""How good an answer is: what each task makes of a network's outputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from splitwire.evaluation import results
from splitwire.evaluation.data import Dataset, Item

Outputs = dict[str, NDArray[Any]]
"""Outputs of the network for a batch of images, by name, in the network's order."""


class ClassOutcome(Struct, frozen=True, kw_only=True, tag="class"):
    """fields follow"""


class DetectionOutcome(Struct, frozen=True, kw_only=True, tag="detection"):
    """fields follow"""


class ValueOutcome(Struct, frozen=True, kw_only=True, tag="value"):
    """fields follow"""


Outcome = ClassOutcome | DetectionOutcome | ValueOutcome
"""What one contender's answer for one image is worth. msgspec encodes it; decode with `type=list[Outcome]`."""


class Scored(Protocol):
    """One contender's outcomes over all images. replicates: bootstrap draws that its figures are worth."""

    replicates: ClassVar[int]

    def __len__(self) -> int:
        """Images."""

    def figures(self, counts: NDArray[np.int64] | None = None) -> dict[str, float]:
        """By name. counts: (n,) how often each image is drawn; None: once each."""

    def draws(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """`figures` of many draws at once: (R, n) counts → (R,) of each figure."""


class Task(Protocol):
    """kind: as in results.json. main: name of the figure that losses are of; higher is better."""

    kind: results.Task
    main: str

    def outcomes(self, outputs: Outputs, reference: Outputs, items: Sequence[Item]) -> list[Outcome]:
        """One per image of the batch. reference: the whole network's outputs of the same batch (the same dict for the
        whole network itself). Raises UsageError: a metric that raises, a target that the network has no class for,
        outputs that are not finite."""

    def scored(self, outcomes: Sequence[Outcome]) -> Scored:
        """Of all images, in the same order for every contender."""

    def disagreement(self, whole: Outcome, other: Outcome) -> float:
        """How far apart the two answers for one image are; 0 if they say the same. To sort by, and to show the first."""

    def answer(self, outcome: Outcome) -> str:
        """In words, for a person."""

    def target(self, item: Item) -> str | None:
        """In words; None without a label."""


def is_detector(names: Collection[str]) -> bool:
    """Whether outputs of these names are detections: boxes, scores and labels."""
    raise NotImplementedError


def make_task(
    outputs: Outputs, data: Dataset, *, batch: int, labels: Sequence[str] | None = None, metric: str | None = None
) -> Task:
    """The task that the whole network's outputs of a first batch show, or that a user's metric makes.

    batch: images in it. labels: of the profile. metric: "module:function", called as
    function(outputs_of_one_image, target) → number, higher is better; its mean over the images is the figure.
    Raises UsageError: outputs that are no task without a metric; classes that the data has and the network has not; a
    metric that cannot be imported.
    """
    raise NotImplementedError
