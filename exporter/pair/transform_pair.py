"""A pair that sends transform coefficients: the halves with the transforms in them, and their operating points.

Requires a float32 pair and the inputs kept from its calibration. Ensures that every figure is measured on the halves
as they are written, through the coder itself (coder id 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from splitwire.codec.entropy.transform import TransformRans
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import OperatingPoint, TensorSpec
from splitwire.codec.shared.progress import ProgressFn
from splitwire.codec.transform import Transform
from splitwire.exporter.calibration.calibrate import Calibrated
from splitwire.exporter.network.inference import Array, Float32Array
from splitwire.exporter.points.damage import Damage
from splitwire.exporter.points.measure import (
    INPUTS_LARGE,
    ONE_BY_ONE,
    PointMeasure,
    Quantizers,
    choose_default,
    is_large,
    measure_damage,
    subsample,
)
from splitwire.exporter.transform.design import RefineOptions, design_transform
from splitwire.exporter.transform.fold import coefficients_name, fold_back, fold_front
from splitwire.exporter.transform.refinement.material import held_out

from .precision_choice import Candidate, Half

CodecKind = Literal["scalar", "transform", "auto"]
CODECS: tuple[CodecKind, ...] = ("scalar", "transform", "auto")
"""scalar: quantizers on the features. transform: on transform coefficients. auto: the one that needs fewer bits."""

LEAST_DAMAGE = 1e-9
"""A smaller damage counts as this, since logarithms are compared."""


def check_codec(codec: str, *, front: str, back: str, default_op: str | None, levels: bool) -> None:
    """Raise UsageError for an unknown codec, or for options that it does not go with. levels: whether some are asked
    for."""
    if codec not in CODECS:
        raise UsageError(f"the codec can be {', '.join(CODECS[:-1])} or {CODECS[-1]}, not {codec!r}")
    if codec != "scalar" and (front, back) != ("float32", "float32"):
        raise UsageError(f"codec {codec!r} needs both halves in float32; int8 and float16 go with codec 'scalar'")
    if codec == "transform" and levels:
        raise UsageError("levels are for codec 'scalar' or 'auto'; a transform has the operating points q1 to q8")
    if codec == "auto" and default_op is not None:
        raise UsageError(f"codec 'auto' chooses its default by measurement; {default_op!r} goes with another codec")


def transform_pair(
    front: Half,
    back: Half,
    calibrated: Calibrated,
    specs: Sequence[TensorSpec],
    refine: RefineOptions,
    default_op: str | None,
    progress: ProgressFn,
) -> tuple[Candidate, list[str]]:
    """Halves with transforms in them, a ladder of operating points q1 … q8, and notes for the user.

    front, back: float32, without transforms. specs: of the features at the cut. default_op: the caller's choice; None
    chooses by measurement. Raises UsageError if the ladder has no point of that name; ExportError as design_transform.
    """
    kept = calibrated.kept
    if front.graph.batch is not None:
        kept = subsample(kept, (INPUTS_LARGE if is_large(specs) else ONE_BY_ONE) * front.graph.batch)
    designed = design_transform(front.graph, back.graph, back.model, specs, kept, refine, progress)
    elements = sum(spec.elements for spec in specs)
    points = [
        OperatingPoint(name=p.name, tensors=(), bits_per_element=p.bits / elements, steps=(p.step,) * len(specs))
        for p in designed.points
    ]
    names = [p.name for p in points]
    if default_op is not None and default_op not in names:
        raise UsageError(f"the default operating point {default_op!r} is not one of {', '.join(names)}")
    candidate = Candidate(
        front=Half.of(fold_front(front.model, designed.designs), "front half with the analysis"),
        back=Half.of(fold_back(back.model, designed.designs), "back half with the synthesis"),
        calibrated=calibrated,
        specs=tuple(
            TensorSpec(name=coefficients_name(spec.name), shape=design.shape, mean=0.0, transform=design.transform)
            for spec, design in zip(specs, designed.designs, strict=True)
        ),
        points=points,
        options=[],
        measures=[],
        default="",
    )
    damages = _damages(front, back, candidate, kept, progress, "Measure operating points")
    measures = [PointMeasure.of(p.name, len(kept), d) for p, d in zip(points, damages, strict=True)]
    default = default_op or choose_default(points, measures)
    return replace(candidate, measures=measures, default=default), designed.notes


def choose_codec(scalar: Candidate, transform: Candidate, progress: ProgressFn) -> tuple[Candidate, str]:
    """The candidate that needs fewer bits at equal damage on the held-out inputs, and a note that says by how much."""
    kept = scalar.calibrated.kept
    held = [kept[i] for i in held_out(len(kept))]
    curves = []
    for pair in (scalar, transform):
        damages = _damages(scalar.front, scalar.back, pair, held, progress, "Choose the codec")
        curves.append([(d.total, p.bits_per_element) for d, p in zip(damages, pair.points, strict=True)])
    ratio = bits_at_equal_damage(*curves)
    if ratio is None:
        return scalar, "scalar points were kept: transform points reach none of their output distortions"
    if ratio >= 1:
        return scalar, f"scalar points were kept: transform points need {ratio:.2f} times the bits at equal distortion"
    return transform, f"transform points need {ratio:.2f} of the bits of scalar points at equal output distortion"


def bits_at_equal_damage(
    scalar: Sequence[tuple[float, float]], transform: Sequence[tuple[float, float]]
) -> float | None:
    """Bits of transform points over those of scalar points, the geometric mean over equal damages.

    scalar, transform: (damage, bits) of each point. Scalar points that another one beats in both are left out; between
    the others, logarithms are interpolated. None if the two have no damage in common.
    """
    best: list[tuple[float, float]] = []
    for damage, bits in sorted(scalar, key=lambda point: (point[1], point[0])):
        if not best or damage < best[-1][0]:
            best.append((max(damage, LEAST_DAMAGE), bits))
    best.reverse()
    damages, needed = (np.log(np.array(column)) for column in zip(*best, strict=True))
    shared = [(np.log(d), np.log(b)) for d, b in transform if damages[0] <= np.log(max(d, LEAST_DAMAGE)) <= damages[-1]]
    if not shared:
        return None
    return float(np.exp(np.mean([bits - np.interp(damage, damages, needed) for damage, bits in shared])))


def _damages(
    front: Half, back: Half, candidate: Candidate, kept: Sequence[Float32Array], progress: ProgressFn, stage: str
) -> list[Damage]:
    """The damage of each point of a candidate to the outputs of the halves without a codec."""
    coders = [TransformRans(s.transform, s.shape) for s in candidate.specs if isinstance(s.transform, Transform)]
    choices: list[Quantizers] = []
    for p in candidate.points:
        if isinstance(p.steps, tuple):
            choices.append([partial(_coded, coder, step) for coder, step in zip(coders, p.steps, strict=True)])
        else:
            choices.append([t.quantizer for t in p.tensors])

    def reference(x: Float32Array) -> list[Array]:
        return back.graph.run(*front.graph.run(x)[: len(back.graph.inputs)])

    total = len(kept) * len(choices)
    graphs = candidate.front.graph, candidate.back.graph
    return measure_damage(*graphs, choices, kept, lambda done: progress(stage, done, total), reference)


def _coded(coder: TransformRans, step: int, coefficients: Float32Array) -> Float32Array:
    """Coefficients as the cloud decodes them."""
    payload, lanes = coder.encode(coefficients, step)
    out = np.empty(coefficients.size, np.float32)
    coder.decode(payload, lanes, out)
    return out.reshape(coefficients.shape)
