"""The tasks: how good a network's answers are, and how far they are from the whole network's."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.tasks import are_class_scores, divergence, is_detector, log_probabilities
from splitwire.codec.wire.reply import Outputs
from splitwire.evaluation.answer import results
from splitwire.evaluation.data.dataset import Dataset, Item

from .detection import DetectionTask
from .outcomes import ClassOutcome, Int64Array, Outcome, Scored, ValueOutcome, only
from .segmentation import segmentation_task

__all__ = ["Outcome", "Scored", "Task", "make_task"]

Float64Array = NDArray[np.float64]
Metric = Callable[[Outputs, Any], Any]


class Task(Protocol):
    """kind: as in results.json. main: name of the main figure, of which losses are; higher is better."""

    @property
    def kind(self) -> results.Task: ...

    @property
    def main(self) -> str: ...

    def outcomes(self, outputs: Outputs, reference: Outputs, items: Sequence[Item]) -> list[Outcome]:
        """One outcome per image of the batch. reference: the whole network's outputs of the same batch (for the whole
        network itself the same dict). Raises UsageError: a metric that raises, outputs that are not finite."""

    def scored(self, outcomes: Sequence[Outcome]) -> Scored:
        """The figures over all images. outcomes: in the same order for every contender."""

    def disagreement(self, whole: Outcome, other: Outcome) -> float:
        """How far apart the two answers for one image are, to sort by; 0 if they are the same."""

    def answer(self, outcome: Outcome) -> str:
        """The answer in words."""

    def target(self, item: Item) -> str | None:
        """The target in words; None without a label."""


def make_task(
    outputs: Outputs,
    data: Dataset,
    *,
    batch: int,
    labels: Sequence[str] | None = None,
    metric: str | None = None,
    segments: bool = False,
) -> Task:
    """The task that the whole network's outputs for a first batch show, or that of a user's metric.

    batch: number of images in it. labels: of the profile. metric: "module:function", called as
    function(outputs_of_one_image, target) → number, higher is better; its mean over the images is the figure.
    segments: the network is a segmentation.
    Raises UsageError: outputs that need a metric, and none is given; classes that the data has and the network has not;
    a metric that cannot be imported. Raises ModuleNotFoundError if a segmentation cannot be judged without a package.
    """
    if metric is not None:
        return MetricTask(_imported(metric), metric)
    if is_detector(outputs):
        return DetectionTask(labels)
    if segments:
        return segmentation_task(outputs, data, labels=labels)
    name, first = next(iter(outputs.items()))
    if not are_class_scores(first) or len(first) != batch:
        raise UsageError(
            f"the output {name!r} is {first.shape} {first.dtype}, neither classes nor detections;"
            " export a segmentation with --task segmentation, or say with --metric module:function how good an answer"
            " is"
        )
    classes = first.shape[1]
    if data.labelled:
        if labels is not None and len(labels) != classes:
            raise UsageError(f"the profile has {len(labels)} labels, the network tells {classes} classes apart")
        highest = max(data.targets or (0,))
        if highest >= classes:
            raise UsageError(f"{data.source} has a class {highest}, the network has classes 0 to {classes - 1}")
    return ClassTask(classes, labelled=data.labelled, labels=labels)


class ClassTask:
    """Top-1 and Top-5 accuracy with labels; agreement with the whole network and divergence from it always.

    The first output is (B, K): logits, or probabilities that sum to 1.
    """

    kind: results.Task = "classes"

    def __init__(self, classes: int, *, labelled: bool, labels: Sequence[str] | None = None) -> None:
        self.main = "top1" if labelled else "agreement"
        self._labels = labels if labels is not None and len(labels) == classes else None

    def outcomes(self, outputs: Outputs, reference: Outputs, items: Sequence[Item]) -> list[Outcome]:
        """As Task."""
        logits, expected = (_logits(y, len(items)) for y in (outputs, reference))
        if logits.shape != expected.shape:
            raise UsageError(f"the network gives {logits.shape} and {expected.shape} for the same images")
        answers, whole_answers = logits.argmax(axis=1), expected.argmax(axis=1)
        probabilities = np.exp(logits.max(axis=1) - np.logaddexp.reduce(logits, axis=1))
        kl = np.maximum(divergence(expected, logits), 0.0)  # rounding can make it negative
        outcomes: list[Outcome] = []
        for i, item in enumerate(items):
            rank = None if item.target is None else _rank(logits[i], item.target)
            outcomes.append(
                ClassOutcome(
                    answer=int(answers[i]),
                    probability=float(probabilities[i]),
                    agreement=float(answers[i] == whole_answers[i]),
                    kl=float(kl[i]),
                    top1=None if rank is None else float(rank < 1),
                    top5=None if rank is None or logits.shape[1] <= 5 else float(rank < 5),
                )
            )
        return outcomes

    def scored(self, outcomes: Sequence[Outcome]) -> Means:
        """As Task."""
        rows = only(ClassOutcome, outcomes)
        figures = {name: [getattr(o, name) for o in rows] for name in ("top1", "top5", "agreement", "kl")}
        known = {name: np.array(values) for name, values in figures.items() if None not in values}
        return Means(known, shares=("top1", "top5", "agreement"))

    def disagreement(self, whole: Outcome, other: Outcome) -> float:
        """The divergence where the answers differ."""
        a, b = only(ClassOutcome, [whole, other])
        return 0.0 if a.answer == b.answer else max(b.kl, np.finfo(float).tiny)

    def answer(self, outcome: Outcome) -> str:
        """The class and its probability."""
        (one,) = only(ClassOutcome, [outcome])
        return f"{self._name(one.answer)} ({one.probability:.0%})"

    def target(self, item: Item) -> str | None:
        """The class."""
        return None if item.target is None else self._name(item.target)

    def _name(self, number: int) -> str:
        return f"class {number}" if self._labels is None else self._labels[number]


class MetricTask:
    """A user's metric of each image; its mean is the figure, by the function's name."""

    kind: results.Task = "custom"

    def __init__(self, metric: Metric, name: str) -> None:
        self._metric, self._name = metric, name
        self.main = name.rpartition(":")[2]

    def outcomes(self, outputs: Outputs, reference: Outputs, items: Sequence[Item]) -> list[Outcome]:
        """As Task."""
        return [ValueOutcome(value=self._value(_one(outputs, i, len(items)), item)) for i, item in enumerate(items)]

    def _value(self, outputs: Outputs, item: Item) -> float:
        try:
            value = self._metric(outputs, item.target)
        except Exception as e:  # a metric can raise anything
            raise UsageError(_line(f"the metric {self._name} raises on {item.name}: {type(e).__name__}: {e}")) from e
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            shown = f"{type(value).__name__} {value!r}"
            raise UsageError(
                _line(f"the metric {self._name} gives {shown:.80} on {item.name}; expected a finite number")
            )
        return number

    def scored(self, outcomes: Sequence[Outcome]) -> Means:
        """As Task."""
        return Means({self.main: np.array([o.value for o in only(ValueOutcome, outcomes)])})

    def disagreement(self, whole: Outcome, other: Outcome) -> float:
        """By how much the metric is lower."""
        a, b = only(ValueOutcome, [whole, other])
        return max(0.0, a.value - b.value)

    def answer(self, outcome: Outcome) -> str:
        """The metric's name and value."""
        (one,) = only(ValueOutcome, [outcome])
        return f"{self.main} {one.value:.3g}"

    def target(self, item: Item) -> str | None:
        """None: only the metric knows what a target means."""
        return None


class Means:
    """Scored figures that are means over the images. values: (n,) of each figure. shares: those that are 0 or 1."""

    replicates = 2000

    def __init__(self, values: dict[str, Float64Array], shares: Collection[str] = ()) -> None:
        self._names = tuple(values)
        self._shares = shares
        self._values = np.stack([v.astype(np.float64) for v in values.values()], axis=1)

    def __len__(self) -> int:
        return len(self._values)

    def figures(self, counts: Int64Array | None = None) -> dict[str, float]:
        """As outcomes.Scored."""
        if counts is None:
            counts = np.ones(len(self), np.int64)
        return {name: float(values[0]) for name, values in self.draws(counts[None]).items()}

    def draws(self, counts: Int64Array) -> dict[str, Float64Array]:
        """As outcomes.Scored."""
        sums = counts.astype(np.float64) @ self._values / counts.sum(axis=1, keepdims=True)
        return dict(zip(self._names, sums.T, strict=True))

    def right(self, figure: str) -> Float64Array | None:
        """As outcomes.Scored."""
        return self._values[:, self._names.index(figure)] if figure in self._shares else None


def _logits(outputs: Outputs, batch: int) -> Float64Array:
    """(B, K): logarithms of the probabilities that the first output gives."""
    y = next(iter(outputs.values()))
    if y.ndim != 2 or len(y) != batch:
        raise UsageError(f"the network gives {y.shape} for {batch} images; expected ({batch}, classes)")
    if not np.isfinite(y).all():
        raise UsageError("the network gives NaN or infinity")
    return log_probabilities(y)


def _rank(logits: Float64Array, target: int) -> int:
    """How many classes are before `target`, best score first; of equal scores the lower number is first."""
    score = logits[target]
    return int((logits > score).sum() + (logits[:target] == score).sum())


def _one(outputs: Outputs, i: int, batch: int) -> Outputs:
    """Outputs of the i-th image, without the batch axis; a torchvision detector's have none."""
    if batch == 1 and is_detector(outputs) and outputs["boxes"].ndim == 2:
        return outputs
    return {name: y[i] if y.ndim and len(y) == batch else y for name, y in outputs.items()}


def _imported(metric: str) -> Metric:
    """The function of "module:function", in the installed packages or the current folder."""
    module, _, name = metric.partition(":")
    if not module or not name:
        raise UsageError(f"--metric takes module:function, as in mymetrics:accuracy; got {metric!r}")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except Exception as e:  # a module can raise anything
        raise UsageError(_line(f"the metric {metric} cannot be imported: {type(e).__name__}: {e}")) from e
    finally:
        if here in sys.path:
            sys.path.remove(here)
    if not callable(function):
        raise UsageError(f"the metric {metric} is {type(function).__name__}, not a function")
    metric_function: Metric = function
    return metric_function


def _line(message: str) -> str:
    return " ".join(message.split())
