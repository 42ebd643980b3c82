"""Scalar points or transform points: what the caller's options leave open, and the choice by measurement.

Requires candidates that are designed but not measured. Ensures that both are measured on the same held-out inputs, and
only the one that is kept on the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.progress import ProgressFn
from splitwire.exporter.points.damage import Damage
from splitwire.exporter.points.measure import PointMeasure, choose_default, measured_inputs
from splitwire.exporter.transform.refinement.material import held_out

from .precision_choice import Candidate, Half
from .transform_pair import damages_of

CodecKind = Literal["scalar", "transform", "auto"]
CODECS: tuple[CodecKind, ...] = ("scalar", "transform", "auto")
"""scalar: quantizers on the features. transform: on transform coefficients. auto: the one that needs fewer bits."""

LEAST_DAMAGE = 1e-9
"""A smaller damage counts as this, since logarithms are compared."""


@dataclass(frozen=True)
class Decision:
    """What an export makes. may_fall_back: whether scalar points are kept where no transform can be designed; else that
    is an error."""

    kind: CodecKind
    may_fall_back: bool = False


def decide(codec: str | None, *, front: str, back: str, coder: str, default_op: str | None, levels: bool) -> Decision:
    """What an export with these options makes.

    codec: the caller's choice; None leaves it to the measurement, unless another option belongs to scalar points, or
    `default_op` names a point of one kind. levels: whether the caller gives some.
    Raises UsageError for an unknown codec, or for options that do not go with the caller's choice.
    """
    if codec is None:
        if levels or coder != "predictive" or (front, back) != ("float32", "float32"):
            return Decision("scalar")
        if default_op is None:
            return Decision("auto", may_fall_back=True)
        return Decision("transform" if re.fullmatch("q[1-8]", default_op) else "scalar")
    if codec not in CODECS:
        raise UsageError(f"the codec can be {', '.join(CODECS[:-1])} or {CODECS[-1]}, not {codec!r}")
    if codec != "scalar" and (front, back) != ("float32", "float32"):
        raise UsageError(f"codec {codec!r} needs both halves in float32; int8 and float16 go with codec 'scalar'")
    if codec == "transform" and levels:
        raise UsageError("levels are for codec 'scalar' or 'auto'; a transform has the operating points q1 to q8")
    if codec == "auto" and default_op is not None:
        raise UsageError(f"codec 'auto' chooses its default by measurement; {default_op!r} goes with another codec")
    return Decision(codec)


def measured(pair: Candidate, front: Half, back: Half, default_op: str | None, progress: ProgressFn) -> Candidate:
    """A drafted pair with the measures of its points and a default.

    front, back: the halves without a codec. default_op: the caller's choice; None chooses by measurement.
    """
    inputs = measured_inputs(front.graph, pair.specs, pair.calibrated.kept)
    damages = damages_of(pair, front, back, inputs, progress, "Measure operating points")
    return _with_measures(pair, damages, len(inputs), default_op)


def choose_codec(scalar: Candidate, transform: Candidate, progress: ProgressFn) -> tuple[Candidate, str]:
    """The drafted pair that needs fewer bits at equal damage on the held-out inputs, with its measures and a default;
    and a note that says by how much. Scalar points also where only they have one that is good enough for a default."""
    front, back = scalar.front, scalar.back
    inputs = measured_inputs(front.graph, scalar.specs, scalar.calibrated.kept)
    apart = held_out(len(inputs))
    ours, others = [inputs[i] for i in apart], [x for i, x in enumerate(inputs) if i not in set(apart)]

    def finished(pair: Candidate, of_held: Sequence[Damage]) -> Candidate:
        """With its measures on all inputs."""
        of_others = damages_of(pair, front, back, others, progress, "Measure operating points")
        damages = [a.joined(b) for a, b in zip(of_others, of_held, strict=True)]
        return _with_measures(pair, damages, len(inputs), None)

    held = [damages_of(p, front, back, ours, progress, "Choose the codec") for p in (scalar, transform)]
    curves = [
        [(d.total, p.bits_per_element) for d, p in zip(damages, pair.points, strict=True)]
        for damages, pair in zip(held, (scalar, transform), strict=True)
    ]
    ratio = bits_at_equal_damage(*curves)
    if ratio is None:
        note = "transform points reach none of their output distortions"
    elif ratio >= 1:
        note = f"transform points need {ratio:.2f} times the bits at equal output distortion"
    else:
        chosen = finished(transform, held[1])
        note = f"transform points need {ratio:.2f} of the bits of scalar points at equal output distortion"
        if any(m.good for m in chosen.measures):
            return chosen, note
        scalar = finished(scalar, held[0])
        if not any(m.good for m in scalar.measures):
            return chosen, note
        return scalar, "scalar points were kept: no transform point keeps the answers as the best of them does"
    return finished(scalar, held[0]), f"scalar points were kept: {note}"


def bits_at_equal_damage(
    scalar: Sequence[tuple[float, float]], transform: Sequence[tuple[float, float]]
) -> float | None:
    """Bits of transform points over those of scalar points, the geometric mean over equal damages.

    scalar, transform: (damage, bits) of each point. Scalar points that another one beats in both are left out; between
    the others, logarithms are interpolated. Where all transform points have less damage than the finest scalar point,
    the coarsest of them is compared with it. None if neither is possible.
    """
    best: list[tuple[float, float]] = []
    for damage, bits in sorted(scalar, key=lambda point: (point[1], point[0])):
        if not best or damage < best[-1][0]:
            best.append((max(damage, LEAST_DAMAGE), bits))
    best.reverse()
    damages, needed = (np.log(np.array(column)) for column in zip(*best, strict=True))
    points = [(float(np.log(max(d, LEAST_DAMAGE))), float(np.log(b))) for d, b in transform]
    compared = [p for p in points if damages[0] <= p[0] <= damages[-1]]
    if not compared and all(damage < damages[0] for damage, _ in points):
        compared = [max(points)]
    if not compared:
        return None  # also where a damage is no number
    return float(np.exp(np.mean([bits - np.interp(damage, damages, needed) for damage, bits in compared])))


def _with_measures(pair: Candidate, damages: Sequence[Damage], inputs: int, default_op: str | None) -> Candidate:
    measures = [PointMeasure.of(p.name, inputs, d) for p, d in zip(pair.points, damages, strict=True)]
    return replace(pair, measures=measures, default=default_op or choose_default(pair.points, measures))
