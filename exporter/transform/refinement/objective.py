"""What the task is as a differentiable figure: how far outputs have moved, and gradients whose covariance measures it.

For classes, also of pixels and of steps of a text, the divergence of the probabilities, for detectors what boxes and
scores lose (detection.py), for anything else the relative squared error of the outputs: the figures of
points/damage.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from splitwire.codec.shared.tasks import Task, are_class_scores, are_probabilities
from splitwire.exporter.network.differentiable.graph import TorchGraph
from splitwire.exporter.network.inference import Array

from .detection import Detections, random_signs
from .heads import Heads
from .task_loss import LossFunction, TaskLoss

PASSES = 2
"""Gradients drawn per image; a further one would say nothing new (docs/transform.md)."""

TINY = float(np.finfo(np.float32).tiny)


class Objective(Protocol):
    """Of a back half in torch."""

    def damage(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """(B,) how far each image's outputs are from their reference."""

    def draw(self, outputs: Sequence[Tensor], chance: torch.Generator) -> Tensor:
        """A random figure of the outputs, summed over the batch. Of its gradient g at the features, E[½ (gᵀδ)²] is the
        damage of a small error δ."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the outputs are for, as far as the caller says. task: of the network; the scores of a segmentation need not
    show that they are some. loss: of the user's; None: by the outputs."""

    task: Task | None = None
    loss: LossFunction | None = None


BY_OUTPUTS = Goal()


def objective_of(back: TorchGraph, outputs: Sequence[Tensor], goal: Goal = BY_OUTPUTS) -> Objective:
    """The objective for a back half. outputs: what it gives for some calibration features, in its order. Raises
    UsageError for a loss of the user's that fails."""
    if goal.loss is not None:
        return TaskLoss.of(goal.loss, outputs)
    arrays = [y.cpu().numpy() for y in outputs]
    first = arrays[0]
    if back.whole and are_class_scores(first):
        return Classes(are_probabilities(first))
    if back.whole and goal.task == "segmentation" and first.ndim == 4 and first.shape[1] > 1:
        return Classes(are_probabilities(np.moveaxis(first, 1, -1)), axis=1)
    if back.whole and len(arrays) == 1 and first.ndim > 2 and first.shape[-1] > 1 and are_probabilities(first):
        return Classes(probabilities=True, axis=first.ndim - 1)
    if not back.whole:
        heads = Heads.of(outputs, back.ranked)
        if heads.boxes:
            return Detections.of(heads, outputs)
    return Values(energies(arrays))


def energies(outputs: Sequence[Array]) -> tuple[float, ...]:
    """The mean square of an element of each output."""
    return tuple(max(float(np.square(y, dtype=np.float64).mean()), TINY) for y in outputs)


@dataclass(frozen=True)
class Classes:
    """The Kullback–Leibler divergence of the first output, class scores, in nats: the mean over places, as pixels or
    steps of a text. axis: of the classes. probabilities: whether they have been through a softmax."""

    probabilities: bool
    axis: int = 1

    def damage(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """See Objective."""
        old, new = self._logs(reference[0]), self._logs(outputs[0])
        return (old.exp() * (old - new)).sum(2).mean(1)

    def draw(self, outputs: Sequence[Tensor], chance: torch.Generator) -> Tensor:
        """See Objective: of each place, the logarithm of the probability of a class that is drawn by it."""
        logs = self._logs(outputs[0]).flatten(0, 1)
        label = torch.multinomial(logs.detach().exp().cpu(), 1, generator=chance).to(logs.device)
        places = len(logs) // len(outputs[0])
        figure: Tensor = logs.gather(1, label).sum() / places**0.5
        return figure

    def _logs(self, scores: Tensor) -> Tensor:
        """(B, places, K) logarithms of the class probabilities."""
        rows = scores.movedim(self.axis, -1).reshape(len(scores), -1, scores.shape[self.axis])
        return rows.clamp_min(TINY).log() if self.probabilities else rows.log_softmax(2)


@dataclass(frozen=True)
class Values:
    """The relative squared error, mean over outputs. energies: of each output."""

    energies: tuple[float, ...]

    def damage(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """See Objective."""
        errors = [
            (y - x).square().flatten(1).mean(1) / e for x, y, e in zip(reference, outputs, self.energies, strict=True)
        ]
        return torch.stack(errors).mean(0)

    def draw(self, outputs: Sequence[Tensor], chance: torch.Generator) -> Tensor:
        """See Objective."""
        total = torch.zeros((), device=outputs[0].device)
        for y, energy in zip(outputs, self.energies, strict=True):
            total = total + (random_signs(y, chance) * y).sum() * (2.0 / (energy * y[0].numel() * len(outputs))) ** 0.5
        return total


def draw_gradients(
    back: TorchGraph, objective: Objective, features: Sequence[Tensor], chance: torch.Generator
) -> list[list[Tensor]]:
    """[draw][tensor] (B, …) gradients at a batch of features of PASSES random figures."""
    inputs = [f.detach().clone().requires_grad_(True) for f in features]
    outputs = back(*inputs)
    return [
        list(
            torch.autograd.grad(
                objective.draw(outputs, chance), inputs, retain_graph=i + 1 < PASSES, materialize_grads=True
            )
        )
        for i in range(PASSES)
    ]
