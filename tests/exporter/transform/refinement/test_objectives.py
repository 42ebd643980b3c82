"""Objectives: what counts for detections, for pixels and steps, and that gradients predict the damage."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from splitwire.exporter.transform.refinement.detection import Detections
from splitwire.exporter.transform.refinement.heads import Heads
from splitwire.exporter.transform.refinement.objective import Classes, Goal, Objective, Values, objective_of

B, PLACES, OBJECT = 4, 40, 11


class Back:
    """What objective_of looks at of a back half."""

    def __init__(self, whole: bool, ranked: Sequence[bool] = ()) -> None:
        self.whole, self.ranked = whole, tuple(ranked)


def kind(outputs: Sequence[torch.Tensor], goal: Goal | None = None, ranked: Sequence[bool] | None = None) -> Objective:
    back = Back(whole=ranked is None, ranked=ranked or ())
    return objective_of(back, outputs, goal or Goal())  # type: ignore[arg-type]  # a stand-in


def heads() -> list[torch.Tensor]:
    """Scores, boxes and classes with one object of each image, at the place OBJECT."""
    scores = torch.full((B, PLACES), 0.01)
    scores[:, OBJECT] = 0.9
    low = torch.rand(B, PLACES, 2, generator=torch.Generator().manual_seed(0)) * 50
    classes = torch.randn(B, PLACES, 5, generator=torch.Generator().manual_seed(1)).softmax(2)
    return [scores, torch.cat([low, low + 20], 2), classes]


def detections(outputs: Sequence[torch.Tensor]) -> Detections:
    return Detections.of(Heads.of(outputs, [True, False, False]), outputs)


def test_heads_of_a_detector_are_no_plain_values() -> None:
    assert isinstance(kind(heads(), ranked=[True, False, False]), Detections)
    assert isinstance(kind([torch.randn(B, 8, 5, 5)], ranked=[False]), Values)


@pytest.mark.parametrize("head", [1, 2], ids=["box", "class"])
def test_errors_count_where_there_is_an_object(head: int) -> None:
    reference = heads()
    objective = detections(reference)
    assert objective.damage(reference, reference).tolist() == [0.0] * B

    def moved(place: int) -> float:
        outputs = [y.clone() for y in reference]
        outputs[head][:, place] = outputs[head][:, place].roll(1, -1) if head == 2 else outputs[head][:, place] + 3
        return float(objective.damage(reference, outputs).mean())

    assert moved(OBJECT) > 100 * moved(OBJECT + 1) > 0


def test_a_lost_box_costs_its_share_of_the_scores() -> None:
    reference = heads()
    outputs = [y.clone() for y in reference]
    outputs[1][:, OBJECT] += 1000
    weight = 0.9**1.5 * reference[2][:, OBJECT].amax(1) ** 1.5
    lost = detections(reference).damage(reference, outputs)
    torch.testing.assert_close(lost, weight / detections(reference).weight, rtol=1e-3, atol=0)


def test_a_score_that_falls_costs_by_its_divergence() -> None:
    reference = heads()
    outputs = [y.clone() for y in reference]
    outputs[0][:, OBJECT] = 0.5
    small = [y.clone() for y in reference]
    small[0][:, OBJECT] = 0.85
    objective = detections(reference)
    assert (objective.damage(reference, outputs) > 20 * objective.damage(reference, small)).all()


def predicted(objective: Objective, outputs: Sequence[torch.Tensor], error: Sequence[torch.Tensor]) -> float:
    """E[½ (gᵀδ)²] over 400 draws, mean over images."""
    chance = torch.Generator().manual_seed(2)
    leaves = [y.clone().requires_grad_(True) for y in outputs]
    figures = []
    for _ in range(400):
        gradients = torch.autograd.grad(objective.draw(leaves, chance), leaves, materialize_grads=True)
        along = torch.stack([(g * d).flatten(1).sum(1) for g, d in zip(gradients, error, strict=True)])
        figures.append(0.5 * float(along.sum(0).square().mean()))
    return sum(figures) / len(figures)


def test_gradients_predict_what_scores_and_classes_lose() -> None:
    reference = heads()
    objective = detections(reference)
    chance = torch.Generator().manual_seed(3)
    error = [
        0.02 * reference[0] * torch.randn(B, PLACES, generator=chance), torch.zeros_like(reference[1]),
        torch.zeros_like(reference[2]),
    ]  # fmt: skip
    tilted = (reference[2].log() + 0.05 * torch.randn(reference[2].shape, generator=chance)).softmax(2)
    for change in (error, [torch.zeros_like(reference[0]), error[1], tilted - reference[2]]):
        outputs = [y + d for y, d in zip(reference, change, strict=True)]
        measured = float(objective.damage(reference, outputs).mean())
        assert predicted(objective, reference, change) == pytest.approx(measured, rel=0.25)


def test_a_text_loses_the_divergence_of_its_steps() -> None:
    """Squared errors would hardly see a step whose second likeliest character becomes the first."""
    chances = torch.randn(B, 9, 30, generator=torch.Generator().manual_seed(6)).softmax(2)
    objective = kind([chances])
    assert objective == Classes(probabilities=True, axis=2)
    other = (chances.log() + 0.05 * torch.randn(chances.shape, generator=torch.Generator().manual_seed(7))).softmax(2)
    measured = objective.damage([chances], [other])
    torch.testing.assert_close(measured, (chances * (chances / other).log()).sum(2).mean(1), rtol=1e-4, atol=1e-7)
    assert predicted(objective, [chances], [other - chances]) == pytest.approx(float(measured.mean()), rel=0.25)
    assert isinstance(kind([chances, chances]), Values)


def test_a_segmentation_loses_the_divergence_of_its_pixels() -> None:
    logits = torch.randn(B, 6, 5, 7, generator=torch.Generator().manual_seed(4))
    assert isinstance(kind([logits]), Values)
    objective = kind([logits], Goal(task="segmentation"))
    assert objective == Classes(probabilities=False, axis=1)
    error = 0.05 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    old, new = logits.log_softmax(1), (logits + error).log_softmax(1)
    measured = objective.damage([logits], [logits + error])
    torch.testing.assert_close(measured, (old.exp() * (old - new)).sum(1).mean((1, 2)), rtol=1e-4, atol=1e-7)
    assert predicted(objective, [logits], [error]) == pytest.approx(float(measured.mean()), rel=0.25)
