"""Designs the transforms of the tensors at a cut: statistics, KLT, refinement, ladder, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx_ir as ir
import torch

from splitwire.codec.errors import ExportError
from splitwire.codec.profile import TensorSpec
from splitwire.codec.shared.pictures import spread
from splitwire.codec.shared.progress import ProgressFn
from splitwire.codec.transform import NOT_SENT, STEPS, step_size
from splitwire.exporter.network.differentiable.graph import TorchGraph, open_in_torch
from splitwire.exporter.network.differentiable.operators import NotInTorch
from splitwire.exporter.network.inference import Float32Array, Graph
from splitwire.exporter.points.damage import Task
from splitwire.exporter.transform.bands.coding import Coding
from splitwire.exporter.transform.bands.klt import design_bands, unit_step
from splitwire.exporter.transform.bands.layout import Layout
from splitwire.exporter.transform.bands.noise import band_weights
from splitwire.exporter.transform.bands.statistics import BandStatistics
from splitwire.exporter.transform.refinement.clip import with_clips
from splitwire.exporter.transform.refinement.material import HeldOut, Material, gather, held_out
from splitwire.exporter.transform.refinement.objective import BY_OUTPUTS, Goal, Objective, draw_gradients, objective_of
from splitwire.exporter.transform.refinement.refine import BATCH, SEED, Examples, Refined, Trainer, usual_steps
from splitwire.exporter.transform.refinement.work import Work

from .ladder import FINEST, LadderPoint, choose_steps, ends, find_range, names
from .rate import count_tables, image_bits
from .tensor import TransformDesign

REFERENCE_DAMAGE = 0.0625
"""Damage that step 1 would cost if the quadratic model held and no coefficient were rounded to zero."""
SPECTRUM_BYTES = 512 << 20
"""The calibration inputs whose spectra are kept take at most this much memory."""
MOST_GRADIENTS = 256
"""Inputs that gradients are drawn for."""
SPARE = 8
"""Step indices: what is zero in all calibration inputs even at a step two octaves below the finest is not sent. Other
inputs have some of what is zero at the finest itself, where the inputs are fewer than the channels."""
USUAL_SECONDS = 45.0
"""Detectors are slow to train through, whatever their operations: their heads take one image at a time."""
COUNTED_NUMBERS = 32_000_000
"""Coefficients that the tables of a pair are counted on."""


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """steps: of training at most; 0 leaves the transforms as the statistics make them; None: as many as the back half's
    size allows (refine.usual_steps), half a minute on two cores, and USUAL_SECONDS at most. seconds: training ends
    after them; its result then depends on the machine's speed."""

    steps: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class DesignedTransforms:
    """designs: of each tensor. points: the ladder, finest first; its steps hold for all tensors. task: whose damage it
    is. inputs: held-out inputs it was measured on. refined: what refinement did; None where it was not tried.
    gradients: whether the weights come from gradients, else from noise. notes: what the user should know, one sentence
    each.
    """

    designs: list[TransformDesign]
    points: list[LadderPoint]
    task: Task
    inputs: int
    refined: Refined | None
    gradients: bool
    notes: list[str]


def design_transform(
    front: Graph,
    back: Graph,
    back_model: ir.Model,
    specs: Sequence[TensorSpec],
    inputs: Sequence[Float32Array],
    options: RefineOptions,
    progress: ProgressFn,
    *,
    layouts: Sequence[Layout] | None = None,
    goal: Goal = BY_OUTPUTS,
) -> DesignedTransforms:
    """The transforms of all tensors at a cut, with one ladder of steps.

    front, back: the float32 halves without transforms, open in ONNX Runtime; the front's first outputs are the tensors.
    back_model: the back half as a graph, for gradients. specs: name and shape of each tensor's features, 1 to 3 axes.
    inputs: calibration inputs of the network, each (C, H, W) or whatever it takes; 50 are enough for the statistics,
    200 and more for refinement. A fifth is held out, in runs of neighbours, as crops of one picture should be.
    layouts: of each tensor; None: by its shape (layout.py). goal: what the outputs are for.
    Raises ExportError where there are fewer than 8 inputs, or a tensor never changes, or nothing depends on it, or a
    loss of the user's has no gradients; UsageError where this loss fails; ValueError for features of more than 3 axes.
    """
    layouts = [Layout.of(s.shape) for s in specs] if layouts is None else list(layouts)
    room = SPECTRUM_BYTES // (4 * sum(layout.elements for layout in layouts))
    inputs = [inputs[i] for i in spread(len(inputs), max(8, room))]
    if len(inputs) < 8:
        raise ExportError(f"a transform is designed on 8 or more calibration inputs; there are {len(inputs)}")
    statistics = [BandStatistics(layout) for layout in layouts]
    chosen = held_out(len(inputs))
    material = gather(front, back, inputs, statistics, progress, held=chosen)
    for spec, s in zip(specs, statistics, strict=True):
        if s.low == s.high:
            raise ExportError(f"tensor {spec.name!r} never changes: there is nothing to code")
    training = material.part([i for i in range(len(inputs)) if i not in set(chosen)])
    held = HeldOut(back, material.part(chosen))
    del material
    notes: list[str] = []
    torch_back = _in_torch(back_model, training, notes)
    objective = None
    if torch_back is not None:
        objective = _draw(torch_back, training, statistics, goal, progress)
    elif goal.loss is not None:
        raise ExportError(f"the task loss needs gradients: {notes[-1]}")
    codings = _codings(statistics, held, gradients=objective is not None)
    measured, wanted, task = _range(held, codings)
    steps = choose_steps(measured, *wanted)
    clipped = with_clips(codings, training, held, steps[1::2])
    if clipped != codings:
        codings = clipped
        measured, wanted, task = _range(held, codings)
        steps = choose_steps(measured, *wanted)
    refined = None
    if torch_back is not None and objective is not None and options.steps != 0:
        examples = Examples.of(torch_back, training)
        count, batch = usual_steps(torch_back, examples)
        trainer = Trainer(
            back=torch_back,
            objective=objective,
            training=examples,
            held=Examples.of(torch_back, held.material),
            finest=steps[0],
            coarsest=steps[-1],
            batch=batch,
            seconds=USUAL_SECONDS if options.steps is None and options.seconds is None else options.seconds,
        )
        refined = trainer.refine(
            [c.to(torch_back.device) for c in codings], count if options.steps is None else options.steps, progress
        )
        codings = [c.cpu() for c in refined.codings]
        if refined.gain < 0:
            measured, wanted, task = _range(held, codings)
        else:
            notes.append("refinement did not lower the damage at equal bytes on held-out inputs, and was not kept")
    steps = choose_steps(measured, *wanted)
    designs = [
        finish(c, _coefficients(c, apart, y), steps, s.name)
        for c, apart, y, s in zip(codings, held.material.spectra, training.spectra, specs, strict=True)
    ]
    return DesignedTransforms(
        designs=designs,
        points=_points(codings, training, held, steps, progress),
        task=task,
        inputs=len(held.material),
        refined=refined,
        gradients=objective is not None,
        notes=notes,
    )


def _in_torch(model: ir.Model, material: Material, notes: list[str]) -> TorchGraph | None:
    """The back half in torch; None, and a note, where it cannot be run there."""
    try:
        if material.beside:
            raise NotInTorch("sizes cross the cut")
        features = material.features(slice(0, material.batch))
        back = open_in_torch(model, [np.ascontiguousarray(f.numpy()) for f in features])
        back.check_rows(features)
        return back
    except NotInTorch as e:
        notes.append(f"no gradients through the back half ({e}): its sensitivity was measured by noise, not refined")
        return None


def _draw(
    back: TorchGraph, training: Material, statistics: Sequence[BandStatistics], goal: Goal, progress: ProgressFn
) -> Objective | None:
    """Add gradients to the statistics; None where no output depends on the features."""
    chance = torch.Generator().manual_seed(SEED)
    count = min(len(training), MOST_GRADIENTS)
    batch = Work.of(back, [f.to(back.device) for f in training.features(slice(0, 1))]).images(BATCH)
    objective: Objective | None = None
    for start in range(0, count, batch):
        features = [f.to(back.device) for f in training.features(slice(start, min(start + batch, count)))]
        if objective is None:
            with torch.no_grad():
                objective = objective_of(back, back(*features), goal)
        for drawn in draw_gradients(back, objective, features, chance):
            for s, g in zip(statistics, drawn, strict=True):
                s.add_gradients(g)
        progress("Draw gradients", min(start + batch, count), count)
    return objective


def _codings(statistics: Sequence[BandStatistics], held: HeldOut, *, gradients: bool) -> list[Coding]:
    """The transforms that follow from the statistics."""
    unit = unit_step(sum(s.layout.elements for s in statistics), REFERENCE_DAMAGE)
    features = [f.numpy() for f in held.material.features(slice(0, None))] if not gradients else []
    codings = []
    for i, s in enumerate(statistics):
        covariances = s.covariances()
        if gradients:
            sensitivities = s.sensitivities()
        else:
            weights = band_weights(s.layout, features, i, covariances, held.damage_of)
            sensitivities = [w * np.eye(s.layout.channels) for w in weights]
        if not any(np.trace(g) > 0 for g in sensitivities):
            raise ExportError("no output depends on a tensor at the cut: there is nothing to send")
        bands = design_bands(
            s.layout, covariances, sensitivities, s.samples(), unit=unit, finest=float(step_size(FINEST)),
            gradients=s.gradient_samples() if gradients else None,
        )  # fmt: skip
        codings.append(Coding(s.layout, s.mean, bands, s.bounds()))
    return codings


def _range(held: HeldOut, codings: Sequence[Coding]) -> tuple[dict[int, float], tuple[float, float], Task]:
    """Damage by step index over the range of the ladder, the damage of its ends, and whose damage it is."""
    nothing = held.damage(codings, float(step_size(STEPS - 1)))
    task = nothing.task or "values"
    wanted = ends(task, nothing.total)
    return find_range(lambda j: held.damage(codings, float(step_size(j))).total, *wanted), wanted, task


def finish(coding: Coding, coefficients: Float32Array, steps: Sequence[int], features: str) -> TransformDesign:
    """The design of a coding, with tables counted on calibration coefficients at the ladder's step indices: those of
    held-out inputs among them, which show what is rare where the transform was made for the others.

    coefficients: (n, tiles, N) of `coding`. Coefficients that are zero at every step, and at one SPARE
    finer, are not sent, and components of which none is are dropped. features: the tensor's name.
    """
    layout = coding.layout
    first, larger = coding.outward.tolist()
    transform = count_tables(
        coefficients,
        [max(0, steps[0] - SPARE), *steps],
        features=features,
        feature_shape=layout.feature_shape,
        outward=(first, larger),
    )
    gain = coding.gain.detach().cpu().numpy().astype(np.float64)
    mean = coding.mean.cpu().numpy().astype(np.float64)
    classes = np.frombuffer(transform.classes, np.uint8)
    analysis, synthesis, kept, start = [], [], [], 0
    for a, s, band in zip(coding.analysis, coding.synthesis, layout.bands, strict=True):
        stop = start + a.shape[0] * (band.stop - band.start)
        part = classes[start:stop].reshape(-1, a.shape[0])
        used = (part != NOT_SENT).any(axis=0)
        used[0] = True  # so that no band is without a matrix
        analysis.append(a.detach().cpu().numpy()[used])
        synthesis.append((gain[:, None] * s.detach().cpu().numpy()[:, used]).astype(np.float32))
        kept.append(part[:, used].reshape(-1))
        start = stop
    offset, threshold = gain[:, None] * (mean @ layout.basis), coding.threshold.detach().cpu().numpy()
    if coding.bounds[0] != 0:
        offset, threshold = offset - threshold[:, None], np.zeros_like(threshold)
    return TransformDesign(
        layout=layout,
        analysis=tuple(analysis),
        synthesis=tuple(synthesis),
        mean=mean.astype(np.float32),
        offset=offset.astype(np.float32),
        threshold=threshold.clip(0),
        low=coding.bounds[0],
        high=coding.bounds[1],
        transform=msgspec.structs.replace(transform, classes=np.concatenate(kept).tobytes()),
    )


@torch.no_grad()
def _coefficients(coding: Coding, held: torch.Tensor, training: torch.Tensor) -> Float32Array:
    """(n, tiles, N) of as many inputs as tables are counted on. Those that were held out, repeated, weigh as much as
    the others: the transform does to them what it does to new inputs, and leaves larger numbers (`gather`)."""
    room = max(8, COUNTED_NUMBERS // coding.layout.elements)
    shown = training[spread(len(training), max(4, room // 2))]
    ours = held[spread(len(held), max(4, room // 2))]
    times = max(1, round(len(shown) / len(ours)))
    parts = [coding.analyse(y).numpy() for y in (ours, shown)]
    return np.concatenate([parts[0]] * times + parts[1:])


@torch.no_grad()
def _points(
    codings: Sequence[Coding], training: Material, held: HeldOut, steps: Sequence[int], progress: ProgressFn
) -> list[LadderPoint]:
    """The ladder, measured on the held-out inputs: the bits of each half of them by tables that have seen the other."""
    bits = np.zeros(len(steps))
    half = len(held.material) // 2
    for coding, others, ours in zip(codings, training.spectra, held.material.spectra, strict=True):
        for counted, measured in ((ours[:half], ours[half:]), (ours[half:], ours[:half])):
            tables = count_tables(_coefficients(coding, counted, others), steps)
            coefficients = coding.analyse(measured).numpy()
            bits += [image_bits(tables, coefficients, j).sum() / len(ours) for j in steps]
    points = []
    for name, j, length in zip(names(steps), steps, bits.tolist(), strict=True):
        points.append(
            LadderPoint(name=name, step=j, bits=length, damage=held.damage(codings, float(step_size(j))).total)
        )
        progress("Measure the ladder", len(points), len(steps))
    return points
