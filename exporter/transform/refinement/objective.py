"""What the task is as a differentiable figure: how far outputs have moved, and gradients whose covariance measures it.

For classes the divergence of the probabilities, for anything else the relative squared error of the outputs, or of the
raw heads before what selects boxes: the figures of points/damage.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from splitwire.codec.shared.tasks import are_class_scores, are_probabilities
from splitwire.exporter.network.differentiable.graph import TorchGraph
from splitwire.exporter.network.inference import Array

PASSES = 2
"""Gradients drawn per image; a further one would say nothing new (docs/transform.md)."""

TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Objective:
    """Of a back half in torch. classes: whether its first output is class scores. probabilities: whether these have
    been through a softmax. energies: mean square of an element of each output, else."""

    classes: bool
    probabilities: bool
    energies: tuple[float, ...]

    @classmethod
    def of(cls, back: TorchGraph, outputs: Sequence[Array]) -> Objective:
        """outputs: what the back gives for some calibration features, in its order."""
        classes = back.whole and are_class_scores(outputs[0])
        energies = tuple(max(float(np.square(y, dtype=np.float64).mean()), TINY) for y in outputs)
        return cls(classes, classes and are_probabilities(outputs[0]), energies)

    def log_probabilities(self, scores: Tensor) -> Tensor:
        """(B, K) logarithms of the class probabilities."""
        return scores.clamp_min(TINY).log() if self.probabilities else scores.log_softmax(1)

    def damage(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """(B,) how far each image's outputs are from their reference: nats, or relative squared error."""
        if self.classes:
            old, new = self.log_probabilities(reference[0]), self.log_probabilities(outputs[0])
            return (old.exp() * (old - new)).sum(1)
        errors = [
            (y - x).square().flatten(1).mean(1) / e for x, y, e in zip(reference, outputs, self.energies, strict=True)
        ]
        return torch.stack(errors).mean(0)

    def draw(self, outputs: Sequence[Tensor], chance: torch.Generator) -> Tensor:
        """A random figure of the outputs, summed over the batch. Of its gradient g at the features, E[½ (gᵀδ)²] is the
        damage of a small error δ."""
        if self.classes:
            log_p = self.log_probabilities(outputs[0])
            label = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=chance).to(log_p.device)
            return log_p.gather(1, label).sum()
        total = torch.zeros((), device=outputs[0].device)
        for y, energy in zip(outputs, self.energies, strict=True):
            signs = (torch.randint(0, 2, y.shape, generator=chance) * 2.0 - 1.0).to(y.device)
            total = total + (signs * y).sum() * (2.0 / (energy * y[0].numel() * len(outputs))) ** 0.5
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
