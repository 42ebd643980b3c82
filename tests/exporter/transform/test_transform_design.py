"""The design of a transform end to end, on a small network: ladder, refinement, what happens without gradients."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import pytest
import torch
from exporter_helpers import SHAPE
from torch import nn

from splitwire.codec.errors import ExportError
from splitwire.codec.profile import TensorSpec
from splitwire.codec.shared.progress import ProgressFn
from splitwire.codec.transform import step_size
from splitwire.exporter.cutting.cuts import find_cut
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.cutting.split import split
from splitwire.exporter.network.differentiable.graph import open_in_torch
from splitwire.exporter.network.differentiable.operators import NotInTorch
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.source import from_module
from splitwire.exporter.transform import design as designing
from splitwire.exporter.transform.bands.layout import Layout
from splitwire.exporter.transform.bands.noise import band_weights
from splitwire.exporter.transform.bands.statistics import BandStatistics
from splitwire.exporter.transform.design import DesignedTransforms, RefineOptions, design_transform
from splitwire.exporter.transform.fold import fold_back, fold_front
from splitwire.exporter.transform.rate import quantized
from splitwire.exporter.transform.refinement.material import held_out
from splitwire.exporter.transform.refinement.objective import (
    Classes,
    Objective,
    Values,
    draw_gradients,
    energies,
    objective_of,
)
from splitwire.exporter.transform.refinement.refine import Rates


class Small(nn.Module):
    """conv, ReLU → conv, ReLU → pool → fc. The answers are sure, and depend on coarse structure mostly."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.first = nn.Sequential(self.conv, nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.second(self.first(x)).mean((2, 3)))
        return y


class Cut(NamedTuple):
    front_model: ir.Model
    back_model: ir.Model
    front: Graph
    back: Graph
    specs: list[TensorSpec]
    inputs: list[np.ndarray]


def build(bias: float = 0.0) -> Cut:
    """bias: added before the ReLU, so that more or fewer features are zero."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((120, 3, 4, 4)).astype(np.float32)
    fine = rng.standard_normal((120, *SHAPE)).astype(np.float32)
    pictures = coarse.repeat(4, axis=2).repeat(4, axis=3) + 0.2 * fine
    torch.manual_seed(0)
    module = Small().eval()
    with torch.no_grad():
        assert module.conv.bias is not None
        module.conv.bias.add_(bias)
        module.head.weight *= 100
        mean = module(torch.from_numpy(pictures)).mean(0)
        module.head.bias.sub_(mean)  # so that answers differ from picture to picture
    source = from_module(module, (1, *SHAPE))
    found, _ = find_cut(Names.of(source), "first")
    halves = split(source.model, found.tensors)
    specs = [TensorSpec(name=found.tensors[0], shape=(12, 8, 8))]
    front, back = Graph.of(halves.front, what="front"), Graph.of(halves.back, what="back")
    return Cut(halves.front, halves.back, front, back, specs, list(pictures))


@pytest.fixture(scope="module")
def cut() -> Cut:
    return build()


def silent(_stage: str, _done: int, _total: int | None) -> None:
    pass


def run(
    cut: Cut, steps: int, progress: ProgressFn = silent, inputs: list[np.ndarray] | None = None
) -> DesignedTransforms:
    return design_transform(
        cut.front, cut.back, cut.back_model, cut.specs, cut.inputs if inputs is None else inputs,
        RefineOptions(steps=steps), progress,
    )  # fmt: skip


@pytest.fixture(scope="module")
def refined(cut: Cut) -> DesignedTransforms:
    return run(cut, 60)


def test_the_ladder_goes_from_next_to_no_damage_to_a_lot(refined):
    points = refined.points
    assert [p.name for p in points] == [f"q{i}" for i in range(1, 9)]
    assert all(a.step < b.step and a.bits > b.bits for a, b in itertools.pairwise(points))
    assert refined.task == "classes"
    assert points[0].damage < 0.01
    assert 0.1 < points[-1].damage < 0.6
    assert points[-1].bits < points[0].bits / 3


def test_refinement_lowers_the_damage_at_equal_bytes(refined):
    assert refined.refined is not None
    assert refined.gradients
    assert refined.refined.gain < -0.05
    before, after = refined.refined.before, refined.refined.after
    assert before.gain(before) == pytest.approx(0, abs=1e-9)
    assert before.gain(after) == pytest.approx(refined.refined.gain)


def test_real_coefficients_do_to_the_answers_what_the_ladder_says(cut, refined):
    (design,) = refined.designs
    front = Graph.of(fold_front(cut.front_model, refined.designs), what="front")
    back = Graph.of(fold_back(cut.back_model, refined.designs), what="back")
    x = np.stack([cut.inputs[i] for i in held_out(len(cut.inputs))])
    coefficients = front.run(x)[0].astype(np.float32)
    log_p = torch.from_numpy(cut.back.run(*cut.front.run(x))[0]).log_softmax(1)
    for point in refined.points:
        q = quantized(coefficients, point.step)
        beyond = np.where(np.abs(q) == 1, *design.transform.outward) * np.sign(q)
        decoded = ((q + beyond) * step_size(point.step)).astype(np.float32)
        answers = back.run(decoded)[0]
        log_q = torch.from_numpy(answers).log_softmax(1)
        assert float((log_p.exp() * (log_p - log_q)).sum(1).mean()) == pytest.approx(point.damage, rel=0.05, abs=1e-4)
    assert coefficients.shape[1:] == design.shape


@pytest.mark.slow
def test_the_same_again(cut, refined):
    again = run(cut, 60)
    for a, b in zip(refined.designs[0].analysis, again.designs[0].analysis, strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.designs[0].transform == refined.designs[0].transform
    assert again.points == refined.points


def test_without_refinement_it_is_the_klt(cut):
    plain = run(cut, 0)
    assert plain.refined is None
    assert plain.gradients
    for a, s in zip(plain.designs[0].analysis, plain.designs[0].synthesis, strict=True):
        np.testing.assert_allclose(a @ s, np.eye(len(a)), atol=1e-3)


def test_a_refinement_that_makes_it_worse_is_not_kept(cut, monkeypatch):
    plain = run(cut, 0)
    monkeypatch.setattr(Rates, "__init__", lambda self: self.__dict__.update(  # a frozen class
        analysis=3.0, synthesis=3.0, channels=1.0, betas=(0.9, 0.99)))  # fmt: skip
    worse = run(cut, 8)
    assert worse.refined is not None
    assert worse.refined.gain == 0
    assert worse.points == plain.points
    assert "was not kept" in worse.notes[0]
    for a, b in zip(worse.designs[0].synthesis, plain.designs[0].synthesis, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_without_gradients_noise_measures_the_bands(cut, monkeypatch):
    def fails(*_: object) -> None:
        raise NotInTorch("an operator")

    with_gradients = run(cut, 0)
    monkeypatch.setattr(designing, "open_in_torch", fails)
    made = run(cut, 60)
    assert not made.gradients
    assert made.refined is None
    assert made.notes == [
        "no gradients through the back half (an operator): its sensitivity was measured by noise, not refined"
    ]

    def bits_at(designed: DesignedTransforms, damage: float) -> float:
        points = designed.points
        return float(
            np.exp(np.interp(np.log(damage), [np.log(p.damage) for p in points], [np.log(p.bits) for p in points]))
        )

    assert bits_at(made, 0.05) < 1.5 * bits_at(with_gradients, 0.05)


@pytest.mark.slow
def test_progress_names_the_stages_in_order(cut):
    seen: list[tuple[str, int, int | None]] = []
    run(cut, 2, lambda *call: seen.append(call))
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == [
        "Gather statistics", "Draw gradients", "Refine", "Measure the ladder",
    ]  # fmt: skip
    for stage in {s for s, _, _ in seen}:
        _, done, total = [call for call in seen if call[0] == stage][-1]
        assert done == total


def test_too_few_inputs_are_refused(cut):
    with pytest.raises(ExportError, match="8 or more calibration inputs; there are 3"):
        run(cut, 0, inputs=cut.inputs[:3])


def test_a_tensor_that_never_changes_is_refused(cut):
    with pytest.raises(ExportError, match="never changes"):
        run(cut._replace(front=Silent(cut.front)), 0)


class Silent:
    """A front whose features are all the same."""

    def __init__(self, front: Graph) -> None:
        self._front, self.batch = front, front.batch

    def run(self, *arrays: np.ndarray) -> list[np.ndarray]:
        return [np.ones_like(y) for y in self._front.run(*arrays)]


class SmallError(NamedTuple):
    """What a small error of the features does to the outputs."""

    objective: Objective
    measured: float
    predicted: float
    """Mean of 20 draws of gradients."""
    relative: float
    """Squared error of the outputs, divided by their squares."""


def of_small_error(cut: Cut, classes: bool) -> SmallError:
    """With the objective of class scores, which the outputs are, or with that of other outputs."""
    features = [torch.from_numpy(cut.front.run(np.stack(cut.inputs[:40]))[0])]
    back = open_in_torch(cut.back_model, [features[0][:2].numpy()])
    reference = back(*features)
    objective = objective_of(back, reference)
    if not classes:
        objective = Values(energies([y.numpy() for y in reference]))
    chance = torch.Generator().manual_seed(0)
    error = 0.03 * torch.randn(features[0].shape, generator=chance)
    outputs = back(features[0] + error)
    measured = float(objective.damage(reference, outputs).mean())
    predicted = []
    for _ in range(20):
        for (g,) in draw_gradients(back, objective, features, chance):
            predicted.append(0.5 * float((g * error).sum((1, 2, 3)).square().mean()))
    difference = sum(float((a - b).square().sum()) for a, b in zip(reference, outputs, strict=True))
    return SmallError(objective, measured, float(np.mean(predicted)), difference / float(reference[0].square().sum()))


def test_gradients_predict_the_damage_of_small_errors(cut):
    small = of_small_error(cut, classes=True)
    assert small.objective == Classes(probabilities=False)
    assert small.predicted == pytest.approx(small.measured, rel=0.2)


def test_gradients_predict_the_relative_error_of_other_outputs(cut):
    small = of_small_error(cut, classes=False)
    assert small.predicted == pytest.approx(small.measured, rel=0.2)
    assert small.measured == pytest.approx(small.relative, rel=1e-4)


def test_noise_weighs_each_band_by_what_it_does():
    """Outputs that are a scaled copy of the spectrum: the damage of an error δ in band b is ½ w_b ‖δ‖² exactly."""
    layout = Layout.of((4, 5, 5))
    weights = np.array([3.0, 0.5, 0.0, 2.0])
    per_frequency = np.concatenate([np.full(b.stop - b.start, w) for b, w in zip(layout.bands, weights, strict=True)])
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((16, 4, 5, 5)).astype(np.float32)

    def damage_of(features):
        error = layout.to_tiles(features[0].astype(np.float64) - exact) @ layout.basis.T
        return float(0.5 * (per_frequency * error**2).sum((1, 2, 3)).mean())

    statistics = BandStatistics(layout)
    statistics.add(torch.from_numpy(exact))
    found = band_weights(layout, [exact], 0, statistics.covariances(), damage_of)
    np.testing.assert_allclose(found, weights, rtol=0.15, atol=1e-6)


class Branches(nn.Module):
    """Two tensors at the cut, one of which hardly matters; two outputs that are no class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.right = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.join = nn.Conv2d(6, 5, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.join(self.left(x)) + 0.01 * self.right(x)[:, :1]
        return y.relu(), y.mean((2, 3))


@pytest.mark.slow
def test_two_tensors_share_one_ladder_by_what_each_does_to_the_outputs(cut):
    torch.manual_seed(1)
    source = from_module(Branches().eval(), (1, *SHAPE))
    found, _ = find_cut(Names.of(source), "left,right")
    halves = split(source.model, found.tensors)
    front, back = Graph.of(halves.front, what="front"), Graph.of(halves.back, what="back")
    specs = [
        TensorSpec(name=n, shape=y.shape[1:])
        for n, y in zip(found.tensors, front.run(cut.inputs[0][None]), strict=True)
    ]
    made = design_transform(front, back, halves.back, specs, cut.inputs[:60], RefineOptions(steps=10), silent)
    assert made.task == "values"
    assert made.gradients
    assert [p.damage for p in made.points] == sorted(p.damage for p in made.points)
    assert 0.01 < made.points[-1].damage < 0.1
    important, other = made.designs if specs[0].shape == (6, 8, 8) else made.designs[::-1]
    assert other.sent / 64 < 0.7 * important.sent / 384  # the shares of their elements
    assert important.sent > 200
    folded = fold_front(halves.front, made.designs), fold_back(halves.back, made.designs)
    x = np.stack(cut.inputs[:5])
    answers = Graph.of(folded[1], what="back").run(*Graph.of(folded[0], what="front").run(x))
    for ours, whole in zip(answers, back.run(*front.run(x)), strict=True):
        assert ours.shape == whole.shape
        difference = ours.astype(np.float32) - whole.astype(np.float32)
        assert np.square(difference).mean() < 1e-2 * np.square(whole.astype(np.float32)).mean()


@pytest.mark.slow
def test_what_follows_the_synthesis_of_clipped_features(monkeypatch):
    """Nothing, a clip, or a threshold and a clip: each export takes what has the least damage at equal bits."""
    cut = build(-0.6)
    chosen = run(cut, 0)
    monkeypatch.setattr(designing, "with_clips", lambda codings, *_: codings)
    clipped = run(cut, 0)
    free, plain = chosen.designs[0], clipped.designs[0]
    assert (plain.low, plain.high) == (0.0, None)
    assert (free.low, free.high) == (None, None)
    values = free.synthesise(np.zeros((1, *free.shape), np.float32))
    assert values.min() < 0
    logs = [np.log([(p.bits, p.damage) for p in d.points])[::-1] for d in (chosen, clipped)]
    at = np.linspace(max(x[0, 0] for x in logs), min(x[-1, 0] for x in logs), 5)
    assert np.mean(np.interp(at, *logs[0].T) - np.interp(at, *logs[1].T)) < -0.05
