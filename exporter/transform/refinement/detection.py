"""The objective of detectors: what boxes and scores of the raw heads lose, where there are objects.

A detection is lost as far as its box no longer overlaps the one before. So what counts is the lost overlap, weighted by
the score of the place, and beside it the divergence of the scores: whether an object is found at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .heads import BoxHead, Heads, ScoreHead, box_sizes, like_scores, lost_overlap

SCORES = 0.1
"""What a nat of the scores counts beside a box that is lost. From 0.02 to 0.5 it makes no difference to the detections
of our detector; at 0 the fine points do not get fine."""
FOCUS = 1.5
"""Exponent of the scores as weights: places with an object have more of the weight than the many without one."""
VALUES = 0.1
"""What the relative squared error of heads that are neither counts, as features that are pooled within boxes."""
SMALLEST = 1e-6
"""Probabilities are at least this far from 0 and 1."""


@dataclass(frozen=True)
class Detections:
    """heads: of the back half. weight: of all places of an image, the mean. energies: mean square of the heads that are
    values, in their order."""

    heads: Heads
    weight: float
    energies: tuple[float, ...]

    @classmethod
    def of(cls, heads: Heads, outputs: Sequence[Tensor]) -> Detections:
        """outputs: (B, …) of each head, for some inputs."""
        weight = sum(float(_weights(box, outputs).sum(1).mean()) for box in heads.boxes)
        energies = [float(outputs[i].square().mean()) for i in heads.values]
        return cls(heads, max(weight, SMALLEST), tuple(max(e, float(np.finfo(np.float32).tiny)) for e in energies))

    def damage(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """(B,) the share of the overlap that is lost, and the divergence of the scores in the same unit."""
        total = torch.zeros(len(outputs[0]), device=outputs[0].device)
        for box in self.heads.boxes:
            old, new = (box.boxes(y[box.index]) for y in (reference, outputs))
            total = total + (_weights(box, reference) * lost_overlap(old, new, box.form)).sum(1)
        for score in self.heads.scores:
            p, q = (_inside(score.probabilities(y[score.index])) for y in (reference, outputs))
            divergence = p * (p / q).log()
            if score.axis is None:
                divergence = divergence + (1 - p) * ((1 - p) / (1 - q)).log()
            total = total + SCORES * (self._importance(score, reference) * divergence).flatten(1).sum(1)
        total /= self.weight
        for i, energy in zip(self.heads.values, self.energies, strict=True):
            total = total + VALUES * (outputs[i] - reference[i]).square().flatten(1).mean(1) / energy
        return total

    def draw(self, outputs: Sequence[Tensor], chance: torch.Generator) -> Tensor:
        """A random figure of the outputs (Objective.draw): of boxes, the square of an error in sizes of the box counts
        as the overlap that it loses."""
        known = [y.detach() for y in outputs]
        total: Tensor = torch.zeros((), device=outputs[0].device)
        for box in self.heads.boxes:
            y = box.boxes(outputs[box.index])
            scale = (2 * _weights(box, known)).sqrt()[..., None] / box_sizes(y.detach(), box.form)
            total = total + (random_signs(y, chance) * scale * y).sum()
        for score in self.heads.scores:
            p, now = (_inside(score.probabilities(y[score.index])) for y in (outputs, known))
            scale = (SCORES * self._importance(score, known)).sqrt()
            if score.axis is None:
                found = (torch.rand(p.shape, generator=chance).to(p.device) < now).to(p.dtype)
                total = total + (scale * (found * p.log() + (1 - found) * (1 - p).log())).sum()
            else:
                total = total + (random_signs(p, chance) * scale * p / now.sqrt()).sum()
        total = total / float(self.weight**0.5)
        for i, energy in zip(self.heads.values, self.energies, strict=True):
            scale_of_values = (2 * VALUES / (energy * outputs[i][0].numel())) ** 0.5
            total = total + (random_signs(outputs[i], chance) * outputs[i]).sum() * scale_of_values
        return total

    def _importance(self, score: ScoreHead, reference: Sequence[Tensor]) -> Tensor:
        """Of each score. The classes of a place count as far as it has an object; whether it has one counts always."""
        y = reference[score.index]
        box = next((b for b in self.heads.boxes if score in b.scores), None)
        if score.axis is None or box is None:
            return torch.ones_like(y)
        return like_scores(_weights(box, reference), y)


def random_signs(y: Tensor, chance: torch.Generator) -> Tensor:
    """1 or −1 for each element of y."""
    return (torch.randint(0, 2, y.shape, generator=chance) * 2.0 - 1.0).to(y.device)


def _weights(box: BoxHead, reference: Sequence[Tensor]) -> Tensor:
    return box.weights(reference) ** FOCUS


def _inside(p: Tensor) -> Tensor:
    return p.clamp(SMALLEST, 1 - SMALLEST)
