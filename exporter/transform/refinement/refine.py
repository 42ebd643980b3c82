"""Refinement by distillation: the transforms are trained through the frozen back half, on calibration features alone.

Each training step quantizes with another random step, so that one transform serves the whole ladder. The loss is the
logarithm of the damage plus the rate at the exchange of the two on the measured curve of rate and damage: it falls
where the curve does, and does not reward moving along it.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splitwire.codec.shared.progress import ProgressFn
from splitwire.codec.transform import UNIT_STEP, step_size
from splitwire.exporter.network.differentiable.graph import TorchGraph
from splitwire.exporter.transform.bands.coding import Coding
from splitwire.exporter.transform.bands.layout import Float64Array, Layout
from splitwire.exporter.transform.bands.statistics import features_of
from splitwire.exporter.transform.rate import count_tables, image_bits

from .material import ANSWER_BYTES, Material
from .objective import Objective
from .work import Work

PATIENCE = 4
"""Checks without progress after which training ends."""
CHECKS = 10
"""Looks at the held-out pictures in a training."""
LOOKED_AT = 5
"""Steps at which the curve is measured."""
COUNTED = 96
COUNTED_NUMBERS = 4_000_000
"""At most this number of calibration images, and of their coefficients, fill the tables of a measurement."""
BATCH = 16
LARGE_BATCH = 32
WORK = 4e11
"""Floating-point operations of the back half's forward runs in a training: half a minute on two cores with the
backward runs."""
FEWEST_STEPS, MOST_STEPS = 50, 300
WARM_UP = 5
"""Training steps over which the rates rise; after that they fall as a cosine does."""
AVERAGING = 0.15
"""How much of the way the average of the parameters goes to their last value in each training step."""
SEED = 20210513


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Of Adam: how far a number moves in a training step. analysis, synthesis: in mean magnitudes of the lowest band's
    matrix. channels: gains, shifts outwards, and thresholds in root mean squares of the features."""

    analysis: float = 3e-4
    synthesis: float = 2e-3
    channels: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Calibration inputs on the back's device. spectra: (n, tiles, C, P) of each tensor. answers: what the back gives
    for the exact features, (n, …) each; None where they are too large to keep, and are made again each time."""

    layouts: Sequence[Layout]
    spectra: list[Tensor]
    answers: list[Tensor] | None

    @classmethod
    @torch.no_grad()
    def of(cls, back: TorchGraph, material: Material) -> Examples:
        """With the answers of the back to all inputs of the material."""
        parts: list[list[Tensor]] = []
        size = 0
        for start in range(0, len(material), BATCH):
            features = [f.to(back.device) for f in material.features(slice(start, start + BATCH))]
            parts.append([y.float() for y in back(*features)])
            size += sum(y.numel() * y.element_size() for y in parts[-1])
            if size > ANSWER_BYTES:
                break
        answers = None if size > ANSWER_BYTES else [torch.cat(each) for each in zip(*parts, strict=True)]
        spectra = [y.to(back.device) for y in material.spectra]
        return cls(layouts=material.layouts, spectra=spectra, answers=answers)

    def __len__(self) -> int:
        return len(self.spectra[0])

    def reference(self, back: TorchGraph, chosen: Tensor) -> list[Tensor]:
        """The answers to some of the inputs."""
        if self.answers is not None:
            return [a[chosen.to(a.device)] for a in self.answers]
        with torch.no_grad():
            features = [features_of(i, y[chosen]) for i, y in zip(self.layouts, self.spectra, strict=True)]
            return back(*features)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Rate and damage on held-out images. steps: indices, rising. bits: per image. damage: of the task."""

    steps: list[int]
    bits: Float64Array
    damage: Float64Array

    def gain(self, other: Curve) -> float:
        """The mean logarithm of another curve's damage over this one's, at equal bits: negative where it is lower."""
        order = np.argsort(self.bits)
        here = np.interp(np.log(other.bits), np.log(self.bits[order]), np.log(np.maximum(self.damage[order], 1e-12)))
        varies = np.ptp(np.log(self.bits)) > 1e-6  # an untrained network may need no bits at any step
        slope = np.polyfit(np.log(self.bits), np.log(np.maximum(self.damage, 1e-12)), 1)[0] if varies else 0.0
        beyond = np.log(other.bits) - np.clip(np.log(other.bits), np.log(self.bits.min()), np.log(self.bits.max()))
        return float(np.mean(np.log(np.maximum(other.damage, 1e-12)) - here - slope * beyond))


@dataclass(frozen=True, kw_only=True)
class Refined:
    """codings: the best that were seen. before, after: their curves on the held-out images; gain: the mean logarithm of
    the damage after over before, at equal bits, 0 where nothing was better. steps: that were trained."""

    codings: list[Coding]
    before: Curve
    after: Curve
    gain: float
    steps: int


@dataclass(kw_only=True)
class Trainer:
    """Trains the codings of the tensors at one cut together. finest, coarsest: step indices, the ends of the ladder.
    seconds: after which a training ends; None: with its steps."""

    back: TorchGraph
    objective: Objective
    training: Examples
    held: Examples
    finest: int
    coarsest: int
    rates: Rates = field(default_factory=Rates)
    batch: int = BATCH
    seconds: float | None = None

    def refine(self, codings: Sequence[Coding], steps: int, progress: ProgressFn) -> Refined:
        """Train copies of the codings for at most `steps` steps. Deterministic on one machine with as many threads."""
        before = self.curve(codings)
        best, best_gain, after, idle, done = list(codings), 0.0, before, 0, 0
        trained = [Trainable(c, y[:COUNTED]) for c, y in zip(codings, self.training.spectra, strict=True)]
        averages = [copy.deepcopy(t) for t in trained]
        chance = torch.Generator().manual_seed(SEED)
        optimiser = torch.optim.Adam([group for t in trained for group in t.groups(self.rates)], betas=self.rates.betas)
        began = time.monotonic()

        def share(done: int) -> float:
            """How much of the training is over."""
            spent = 0.0 if self.seconds is None else (time.monotonic() - began) / self.seconds
            return min(1.0, max(done / steps, spent))

        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda i: min(1.0, (i + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * share(i)))
        )
        exchange = _exchange(before)
        checks = 1
        for done in range(1, steps + 1):
            self._train(trained, optimiser, exchange, chance)
            schedule.step()
            for mean, now in zip(averages, trained, strict=True):
                mean.follow(now)
            progress("Refine", done, steps)
            over = share(done)
            if over < checks / CHECKS:
                continue
            checks = int(over * CHECKS) + 1
            averaged = [t.finished() for t in averages]
            curve = self.curve(averaged)
            gain = before.gain(curve)
            exchange = _exchange(curve)
            if gain < best_gain:
                best, best_gain, after, idle = averaged, gain, curve, 0
            else:
                idle += 1
            if idle == PATIENCE or over >= 1:
                break
        progress("Refine", done, done)
        return Refined(codings=best, before=before, after=after, gain=best_gain, steps=done)

    @torch.no_grad()
    def curve(self, codings: Sequence[Coding]) -> Curve:
        """Rate and damage on the held-out images, at LOOKED_AT steps of the range."""
        steps = sorted({round(j) for j in np.linspace(self.finest, self.coarsest, LOOKED_AT)})
        bits, damage = np.zeros(len(steps)), np.zeros(len(steps))
        coefficients = []
        for coding, counted, held in zip(codings, self.training.spectra, self.held.spectra, strict=True):
            shown = counted[: max(8, min(COUNTED, COUNTED_NUMBERS // coding.layout.elements))]
            tables = count_tables(coding.analyse(shown).cpu().numpy(), steps)
            coefficients.append(coding.analyse(held))
            ours = coefficients[-1].cpu().numpy()
            bits += [image_bits(tables, ours, j).mean() for j in steps]
        for i in range(0, len(self.held), self.batch):
            part = slice(i, i + self.batch)
            reference = self.held.reference(self.back, torch.arange(len(self.held))[part])
            for j, index in enumerate(steps):
                step = float(step_size(index))
                decoded = [c.synthesise(c.decoded(y[part], step)) for c, y in zip(codings, coefficients, strict=True)]
                damage[j] += float(self.objective.damage(reference, self.back(*decoded)).sum())
        return Curve(steps=steps, bits=bits, damage=damage / len(self.held))

    def _train(
        self,
        trained: Sequence[Trainable],
        optimiser: torch.optim.Optimizer,
        exchange: Callable[[float], tuple[float, float]],
        chance: torch.Generator,
    ) -> None:
        """One step of Adam."""
        chosen = torch.randint(len(self.training), (min(self.batch, len(self.training)),), generator=chance)
        place = self.finest + float(torch.rand((), generator=chance)) * (self.coarsest - self.finest)
        step = 2 ** ((place - UNIT_STEP) / 4)
        decoded, bits = [], torch.zeros((), device=self.back.device)
        for tensor, spectra in zip(trained, self.training.spectra, strict=True):
            y = tensor.coding.analyse(spectra[chosen])
            noise = (torch.rand(y.shape, generator=chance) - 0.5).to(y.device)
            bits = bits + laplace_bits(y / step + noise, tensor.magnitudes / step).sum() / len(y)
            decoded.append(tensor.coding.synthesise(tensor.coding.decoded(y, step)))
        damage = self.objective.damage(self.training.reference(self.back, chosen), self.back(*decoded)).mean()
        usual, worth = exchange(place)
        loss = damage / usual + worth * bits
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        optimiser.step()
        for tensor in trained:
            tensor.bound()


class Trainable(torch.nn.Module):
    """A coding in training: its matrices, gain and threshold as parameters. magnitudes: (N,) mean |y| before it."""

    magnitudes: Tensor

    def __init__(self, coding: Coding, spectra: Tensor) -> None:
        """spectra: (n, tiles, C, P) of training inputs."""
        super().__init__()
        with torch.no_grad():
            self.register_buffer("magnitudes", coding.analyse(spectra).abs().mean((0, 1)))
        self.scale = float(spectra.square().mean().sqrt())  # of the features, too: the DCT is orthonormal
        self.coding = copy.deepcopy(coding).requires_grad_(True)

    def groups(self, rates: Rates) -> list[dict[str, Any]]:
        """Parameters and their rates."""
        coding = self.coding
        sizes = [float(m[0].detach().abs().mean()) for m in (coding.analysis, coding.synthesis)]
        return [
            {"params": list(coding.analysis), "lr": rates.analysis * sizes[0]},
            {"params": list(coding.synthesis), "lr": rates.synthesis * sizes[1]},
            {"params": [coding.gain, coding.outward], "lr": rates.channels},
            {"params": [coding.threshold], "lr": rates.channels * self.scale},
        ]

    @torch.no_grad()
    def bound(self) -> None:
        """Keep within what a profile can say."""
        self.coding.outward.clamp_(-0.5, 0.5)

    @torch.no_grad()
    def follow(self, other: Trainable) -> None:
        """Move a part of the way to another state: the average of a training is better than its last state."""
        for ours, theirs in zip(self.parameters(), other.parameters(), strict=True):
            ours.lerp_(theirs, AVERAGING)

    def finished(self) -> Coding:
        """A copy of the coding as it is."""
        return copy.deepcopy(self.coding).requires_grad_(False)


def usual_steps(back: TorchGraph, examples: Examples) -> tuple[int, int]:
    """(steps, batch) of a training of the usual length, by the operations and the memory that the back half takes."""
    work = Work.of(back, [features_of(i, y[:1]) for i, y in zip(examples.layouts, examples.spectra, strict=True)])
    batch = LARGE_BATCH if WORK / (work.operations * LARGE_BATCH) >= MOST_STEPS else BATCH
    batch = work.images(batch)
    return int(min(max(WORK / (work.operations * batch), FEWEST_STEPS), MOST_STEPS)), batch


def laplace_bits(values: Tensor, scale: Tensor) -> Tensor:
    """Bits of values with uniform noise of width 1 under a Laplacian of the mean magnitude `scale`, element by element.

    Source: Ballé et al. 2017, the factorised entropy model, with a Laplacian in place of a learned density.
    """
    scale = scale.clamp_min(0.02)
    size = values.abs()
    outside = (size - 0.5) / scale * math.log2(math.e) - torch.log2(-torch.expm1(-1 / scale)) + 1
    near = size.clamp_max(0.5)
    inside = -torch.log2(1 - 0.5 * (torch.exp((near - 0.5) / scale) + torch.exp(-(near + 0.5) / scale)))
    return torch.where(size > 0.5, outside, inside)


def _exchange(curve: Curve) -> Callable[[float], tuple[float, float]]:
    """Step index → (damage at that step, relative damage that one bit is worth there)."""
    x = np.array(curve.steps, np.float64)
    y, r = np.log(np.maximum(curve.damage, 1e-12)), curve.bits
    rise, fall = np.gradient(y, x), np.gradient(r, x)
    worth = np.maximum(rise, 0.05) / np.maximum(-fall, 1e-3 * r + 1e-9)

    def at(place: float) -> tuple[float, float]:
        return float(np.exp(np.interp(place, x, y))), float(np.interp(place, x, worth))

    return at
