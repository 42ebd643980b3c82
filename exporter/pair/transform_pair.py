"""A pair that sends transform coefficients: the halves with the transforms in them, and their operating points.

Requires a float32 pair and the inputs kept from its calibration. Ensures that damage is measured on the halves as they
are written, through the coder itself (coder id 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from splitwire.codec.entropy.transform import TransformRans
from splitwire.codec.errors import ExportError, UsageError
from splitwire.codec.profile import OperatingPoint, TensorSpec
from splitwire.codec.shared.progress import ProgressFn
from splitwire.codec.transform import Transform
from splitwire.exporter.calibration.calibrate import Calibrated
from splitwire.exporter.network.inference import Array, Float32Array, weight_bytes
from splitwire.exporter.points.damage import Damage
from splitwire.exporter.points.measure import Quantizers, measure_damage, measured_inputs
from splitwire.exporter.transform.design import RefineOptions, design_transform
from splitwire.exporter.transform.fold import coefficients_name, fold_back, fold_front
from splitwire.exporter.transform.refinement.objective import BY_OUTPUTS, Goal
from splitwire.exporter.transform.renew import coded
from splitwire.exporter.transform.threads import threads_for

from .precision_choice import Candidate, Half


def transform_pair(
    front: Half,
    back: Half,
    calibrated: Calibrated,
    specs: Sequence[TensorSpec],
    refine: RefineOptions,
    default_op: str | None,
    progress: ProgressFn,
    goal: Goal = BY_OUTPUTS,
) -> tuple[Candidate, list[str]]:
    """A draft: halves with transforms in them, a ladder of operating points q1 … q8 without measures; and notes for
    the user.

    front, back: float32, without transforms. specs: of the features at the cut. default_op: the caller's choice.
    goal: what the outputs are for.
    Raises UsageError if the ladder has no point of that name; ExportError if no transform can be designed.
    """
    kept = measured_inputs(front.graph, specs, calibrated.kept)
    elements = sum(spec.elements for spec in specs)
    try:
        with threads_for(elements, weight_bytes(back.model)):
            designed = design_transform(front.graph, back.graph, back.model, specs, kept, refine, progress, goal=goal)
    except (np.linalg.LinAlgError, RuntimeError) as e:  # torch's word for all that fails, and for too little memory
        raise ExportError(f"no transform can be computed for these features: {e}") from e
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
    return candidate, designed.notes


def damages_of(
    candidate: Candidate, front: Half, back: Half, kept: Sequence[Float32Array], progress: ProgressFn, stage: str
) -> list[Damage]:
    """The damage of each point of a candidate to the outputs of the halves `front` and `back` without a codec."""
    coders = [TransformRans(s.transform, s.shape) for s in candidate.specs if isinstance(s.transform, Transform)]
    choices: list[Quantizers] = []
    for p in candidate.points:
        if isinstance(p.steps, tuple):
            choices.append([partial(coded, coder, step) for coder, step in zip(coders, p.steps, strict=True)])
        else:
            choices.append([t.quantizer for t in p.tensors])

    def reference(x: Float32Array) -> list[Array]:
        return back.graph.run(*front.graph.run(x)[: len(back.graph.inputs)])

    total = len(kept) * len(choices)
    graphs = candidate.front.graph, candidate.back.graph
    return measure_damage(*graphs, choices, kept, lambda done: progress(stage, done, total), reference)
