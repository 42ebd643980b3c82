"""New classes, tables and steps for the transform in a pair, from new inputs. The matrices in the graphs stay.

Requires the opened halves of a transform pair. Ensures a ladder of as many points as before, whose damage and rate are
measured on the new inputs: as in design.py, but without another transform, so that the graphs need not be written anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np

from splitwire.codec.entropy.transform import TransformRans
from splitwire.codec.errors import ExportError
from splitwire.codec.profile import OperatingPoint, TensorSpec
from splitwire.codec.shared.pictures import spread
from splitwire.codec.shared.progress import ProgressFn
from splitwire.codec.transform import STEPS, Transform
from splitwire.exporter.calibration.calibrate import BATCH, padded
from splitwire.exporter.network.inference import Float32Array, Graph
from splitwire.exporter.points.measure import (
    PointMeasure,
    Quantizers,
    Reference,
    choose_default,
    measure_damage,
)
from splitwire.exporter.transform.refinement.material import held_out

from .design import COUNTED_NUMBERS, SPARE
from .ladder import STRIDE, choose_steps, ends
from .rate import count_tables, image_bits

FEWEST = 8
"""Inputs. Fewer say too little of what is rare."""
FINER, COARSER = 8, 16
"""Step indices beyond the old ladder at which damage is measured."""


@dataclass(frozen=True, kw_only=True)
class Renewed:
    """specs: of the tensors, with the new transforms. points: finest first, with the names of before. measures: of
    them. default: name of the default point."""

    specs: tuple[TensorSpec, ...]
    points: tuple[OperatingPoint, ...]
    measures: list[PointMeasure]
    default: str


def renew_transform(
    front: Graph,
    back: Graph,
    specs: Sequence[TensorSpec],
    points: Sequence[OperatingPoint],
    inputs: Sequence[Float32Array],
    reference: Reference | None,
    progress: ProgressFn,
) -> Renewed:
    """The codec of a transform pair for new inputs.

    front, back: its halves; the first outputs of the front are the coefficients. specs, points: of the profile. inputs:
    of `front`. reference: the correct outputs for a batch of them; None: those of the back for exact coefficients.
    Raises ExportError for fewer than FEWEST inputs, or if no coefficient ever changes.
    """
    if len(inputs) < FEWEST:
        raise ExportError(f"a transform pair is recalibrated on {FEWEST} or more inputs; there are {len(inputs)}")
    coders = [TransformRans(s.transform, s.shape) for s in specs if isinstance(s.transform, Transform)]
    apart = held_out(len(inputs))
    held = [inputs[i] for i in apart]

    def choices_of(steps: Sequence[int]) -> list[Quantizers]:
        return [[partial(coded, coder, step) for coder in coders] for step in steps]

    old = [step for p in points if isinstance(p.steps, tuple) for step in p.steps]
    tried = list(range(max(0, min(old) - FINER), min(STEPS - 1, max(old) + COARSER), STRIDE))
    total = len(held) * (len(tried) + 1)
    damages = measure_damage(
        front,
        back,
        choices_of([*tried, STEPS - 1]),
        held,
        lambda done: progress("Choose steps", done, total),
        reference,
    )
    task, nothing = damages[-1].task or "values", damages[-1].total
    measured = {step: d.total for step, d in zip(tried, damages[:-1], strict=True)}
    steps = choose_steps(measured, *ends(task, nothing), points=len(points))
    coefficients = _coefficients(front, specs, inputs)
    new = tuple(_renewed(spec, y, steps) for spec, y in zip(specs, coefficients, strict=True))
    others = sorted(set(range(len(inputs))) - set(apart))
    bits = np.zeros(len(steps))
    for y in coefficients:
        rows = spread(len(inputs), len(y))  # of the inputs that are counted
        ours, rest = ([i for i, row in enumerate(rows) if row in chosen] for chosen in (set(apart), set(others)))
        tables = count_tables(y[rest], steps)
        bits += [image_bits(tables, y[ours], step).mean() for step in steps]
    elements = sum(spec.feature_elements for spec in specs)
    renewed = [
        OperatingPoint(name=p.name, tensors=(), bits_per_element=b / elements, steps=(step,) * len(specs))
        for p, b, step in zip(points, bits.tolist(), steps, strict=True)
    ]
    total_answers = len(inputs) * len(steps)
    damages = measure_damage(
        front, back, choices_of(steps), inputs,
        lambda done: progress("Measure operating points", done, total_answers), reference,
    )  # fmt: skip
    measures = [PointMeasure.of(p.name, len(inputs), d) for p, d in zip(renewed, damages, strict=True)]
    return Renewed(
        specs=new,
        points=tuple(msgspec.structs.replace(p, agreement=m.agreement) for p, m in zip(renewed, measures, strict=True)),
        measures=measures,
        default=choose_default(renewed, measures),
    )


def _renewed(spec: TensorSpec, coefficients: Float32Array, steps: Sequence[int]) -> TensorSpec:
    """The tensor with classes and tables counted on (n, tiles, N) coefficients."""
    transform = spec.transform
    if not isinstance(transform, Transform) or not coefficients.any():
        raise ExportError(f"tensor {spec.name!r} never changes: there is nothing to code")
    counted = count_tables(
        coefficients,
        [max(0, steps[0] - SPARE), *steps],
        features=transform.features,
        feature_shape=transform.feature_shape,
        outward=transform.outward,
    )
    # The coder of the old pair: whatever serves it can serve the new one.
    return msgspec.structs.replace(spec, transform=msgspec.structs.replace(counted, coder=transform.coder))


def _coefficients(front: Graph, specs: Sequence[TensorSpec], inputs: Sequence[Float32Array]) -> list[Float32Array]:
    """(n, tiles, N) of each tensor, of as many inputs, evenly spread, as tables are counted on."""
    room = max(FEWEST, COUNTED_NUMBERS // sum(spec.elements for spec in specs))
    chosen = [inputs[i] for i in spread(len(inputs), room)]
    parts: list[list[Float32Array]] = [[] for _ in specs]
    size = front.batch or BATCH
    for start in range(0, len(chosen), size):
        batch = chosen[start : start + size]
        for part, y in zip(parts, front.run(padded(front, batch)), strict=False):
            part.append(np.asarray(y[: len(batch)], np.float32))
    return [np.concatenate(part) for part in parts]


def coded(coder: TransformRans, step: int, coefficients: Float32Array) -> Float32Array:
    """Coefficients as the cloud decodes them at a step."""
    payload, lanes = coder.encode(coefficients, step, step)
    out = np.empty(coefficients.size, np.float32)
    coder.decode(payload, lanes, out, step)
    return out.reshape(coefficients.shape)
