"""The choice of halves at reduced precision: each is measured against float32 before it is accepted.

All candidates run on the same inputs, those kept from the calibration, and are compared with the float32 network
without the codec. An int8 front has different features, so the codec is calibrated again on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from splitwire.codec.errors import UnsupportedModel, UsageError
from splitwire.codec.profile import OperatingPoint, TensorSpec
from splitwire.codec.progress import ProgressFn
from splitwire.exporter.calibration.calibrate import Calibrated, calibrate, padded
from splitwire.exporter.calibration.checkpoint import Checkpoint
from splitwire.exporter.calibration.convergence import Settling
from splitwire.exporter.calibration.inputs import CalibrationInputs, open_inputs
from splitwire.exporter.network.inference import (
    MAX_MODEL_BYTES,
    Array,
    Float32Array,
    Graph,
    InputType,
    serialise,
    weight_bytes,
)
from splitwire.exporter.points.damage import Task
from splitwire.exporter.points.design import Kind, QuantizedTensor, design_points
from splitwire.exporter.points.measure import PointMeasure, Reference, choose_default, is_large, measure_points
from splitwire.exporter.points.tensors import CalibratedTensor, with_taps

from . import bake
from .precision import float16_back, float16_by_hand, int8_front

FrontPrecision = Literal["float32", "int8"]
BackPrecision = Literal["float32", "float16"]
Coder = Literal["predictive", "context"]

REPEATS = 40
"""Runs of each half that is timed, the two in turn; the median counts."""

TYPICAL_LEVELS = 4
"""Whose range is watched while calibrating, where only budgets are asked for."""

TIME_LIMIT_S = 4.0
"""No further repeat begins after this; three are made in any case."""


@dataclass(frozen=True, kw_only=True)
class Half:
    """One half, opened. digest: as the profile holds it (bake.digest)."""

    model: ir.Model
    graph: Graph
    precision: str
    digest: str

    @classmethod
    def of(cls, model: ir.Model, what: str, precision: str = "float32") -> Half:
        """what: its name in messages. Raises UnsupportedModel if ONNX Runtime does not take it."""
        return cls(model=model, graph=Graph.of(model, what=what), precision=precision, digest=bake.digest(model))

    @property
    def megabytes(self) -> float:
        """Of the graph, without the profile."""
        size = weight_bytes(self.model)
        return (size if size > MAX_MODEL_BYTES else len(serialise(self.model))) / 1e6


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A pair with the codec that was made for it.

    calibrated, tensors: on this front's features. points, options, measures: as in export.ExportResult. default: name
    of the default operating point.
    """

    front: Half
    back: Half
    calibrated: Calibrated
    tensors: list[CalibratedTensor]
    points: list[OperatingPoint]
    options: list[list[QuantizedTensor]]
    measures: list[PointMeasure]
    default: str


@dataclass(frozen=True, kw_only=True)
class CodecMaker:
    """Calibrates, designs and measures the codec of a pair; the same for each pair of one cut.

    specs: of the tensors. slopes: per tensor, as for the design. kinds: one operating point each. default_op:
    the caller's, None chooses by measurement. coder: the caller's, too.
    """

    specs: Sequence[TensorSpec]
    slopes: Sequence[float | None]
    kinds: Sequence[Kind]
    default_op: str | None
    coder: Coder
    progress: ProgressFn

    def make(
        self,
        front: Half,
        back: Half,
        inputs: CalibrationInputs,
        *,
        checkpoint: Checkpoint | None = None,
        reference: Reference | None = None,
    ) -> Candidate:
        """One pass over the inputs, and the codec that follows. checkpoint: calibrate.py. reference: measure.py."""
        calibrated = calibrate(
            front.graph,
            inputs,
            self.specs,
            settling=Settling(self._levels_watched(), self.slopes),
            progress=self.progress,
            checkpoint=checkpoint,
        )
        tensors = [
            CalibratedTensor(spec=spec, statistics=statistics, slope=slope)
            for spec, statistics, slope in zip(self.specs, calibrated.statistics, self.slopes, strict=True)
        ]
        if self.coder == "predictive":
            tensors = with_taps(tensors, self.progress)
        kept, graphs = calibrated.kept, (front.graph, back.graph)
        points, options = design_points(*graphs, tensors, kept, self.kinds, self.progress)
        large = is_large(self.specs)
        measures = measure_points(*graphs, points, kept, self.progress, reference, large=large)
        return Candidate(
            front=front,
            back=back,
            calibrated=calibrated,
            tensors=tensors,
            points=points,
            options=options,
            measures=measures,
            default=self.default_op or choose_default(points, measures),
        )

    def _levels_watched(self) -> list[int]:
        """Numbers of levels whose ranges show whether the calibration has settled."""
        return sorted({int(kind.value) for kind in self.kinds if kind.family != "r"}) or [TYPICAL_LEVELS]

    def with_back(self, pair: Candidate, back: Half, graph: Graph, reference: Reference) -> Candidate:
        """The same front and codec with another back, measured again. graph: what is measured in its place."""
        kept, large = pair.calibrated.kept, is_large(self.specs)
        measures = measure_points(pair.front.graph, graph, pair.points, kept, self.progress, reference, large=large)
        return replace(
            pair, back=back, measures=measures, default=self.default_op or choose_default(pair.points, measures)
        )


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One half in one arithmetic, in a pair whose other half stays the same.

    op: the pair's default operating point; bits_per_element and one of agreement and relative_error are at it, against
    the float32 network (measure.PointMeasure). milliseconds: of the half alone, median, on this machine's CPU.
    megabytes: of the graph, without the profile.
    """

    precision: str
    op: str
    agreement: float | None
    relative_error: float | None
    bits_per_element: float
    milliseconds: float
    megabytes: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An int8 front or a float16 back beside float32: what it gains and costs.

    inputs: how many were measured; they are of the calibration, not held out: what is fitted to them is two numbers
    per activation. batch: of the timed runs; 1 unless the graph fixes another. kept: whether the option was accepted.
    """

    half: Literal["front", "back"]
    task: Task
    inputs: int
    batch: int
    float32: Figures
    option: Figures
    kept: bool = False


Accept = Callable[[Comparison], bool]


def check_precisions(front: str, back: str) -> None:
    """Raises UsageError for a precision that there is not: asked before the long work."""
    for half, given, known in (("front", front, ("float32", "int8")), ("back", back, ("float32", "float16"))):
        if given not in known:
            raise UsageError(f"the {half} can be {' or '.join(known)}, not {given!r}")


def check_coder(coder: str) -> None:
    """Raises UsageError for a coder that there is not."""
    if coder not in ("predictive", "context"):
        raise UsageError(f"the coder can be predictive or context, not {coder!r}")


def choose(
    base: Candidate,
    maker: CodecMaker,
    reopen: Callable[[], CalibrationInputs | None],
    *,
    front: FrontPrecision,
    back: BackPrecision,
    accept: Accept | None,
) -> tuple[Candidate, tuple[Comparison, ...]]:
    """The pair with the halves that were accepted, and what they were judged by: the front first, then the back.

    base: the float32 pair. reopen: another pass over the calibration; None where there is none, then the kept inputs
    make it. accept: asked once per half that is not float32, after its measurement; None accepts.
    Raises UnsupportedModel where ONNX Runtime's tools do not take a half, or float16 overflows.
    """
    kept, report = base.calibrated.kept, maker.progress
    chosen, comparisons = base, list[Comparison]()

    def reference(x: Float32Array) -> list[Array]:
        return base.back.graph.run(*base.front.graph.run(x)[: len(base.back.graph.inputs)])

    def judge(half: Literal["front", "back"], option: Candidate) -> Candidate:
        comparison = _compare(half, chosen, option)
        agreed = accept is None or accept(comparison)
        comparisons.append(replace(comparison, kept=agreed))
        return option if agreed else chosen

    if front == "int8":
        report("Quantize the front", 0, None)
        quantized = Half.of(int8_front(base.front.model, kept), "int8 front", front)
        report("Quantize the front", 1, 1)
        dtype: InputType = "uint8" if kept[0].dtype == np.uint8 else "float32"
        inputs = reopen() or open_inputs(kept, shape=kept[0].shape, dtype=dtype, preprocessing=None, limit=len(kept))
        chosen = judge("front", maker.make(quantized, base.back, inputs, reference=reference))
    if back == "float16":
        report("Convert the back", 0, None)
        halved = Half.of(float16_back(base.back.model), "float16 back", back)
        rounded = Graph.of(float16_by_hand(halved.model), what="float16 back")
        _check_finite(chosen, rounded)
        report("Convert the back", 1, 1)
        chosen = judge("back", maker.with_back(chosen, halved, rounded, reference))
    return chosen, tuple(comparisons)


def _compare(half: Literal["front", "back"], old: Candidate, new: Candidate) -> Comparison:
    x = padded(old.front.graph, old.calibrated.kept[:1])
    before, after = (old.front, new.front) if half == "front" else (old.back, new.back)
    arrays: list[Array] = [x] if half == "front" else _crossing(old, x)
    times = milliseconds([before.graph, after.graph], arrays)
    return Comparison(
        half=half,
        task=new.measures[0].task,
        inputs=new.measures[0].inputs,
        batch=len(x),
        float32=_figures(before, old, times[0]),
        option=_figures(after, new, times[1]),
    )


def _figures(half: Half, pair: Candidate, ms: float) -> Figures:
    at = [p.name for p in pair.points].index(pair.default)
    return Figures(
        precision=half.precision,
        op=pair.default,
        agreement=pair.measures[at].agreement,
        relative_error=pair.measures[at].relative_error,
        bits_per_element=pair.points[at].bits_per_element,
        milliseconds=ms,
        megabytes=half.megabytes,
    )


def _crossing(pair: Candidate, x: Float32Array) -> list[Array]:
    return pair.front.graph.run(x)[: len(pair.back.graph.inputs)]


def milliseconds(graphs: Sequence[Graph], arrays: Sequence[Array]) -> list[float]:
    """Median time of a run of each graph on the same arrays, ms. The graphs take turns: a busy machine slows all."""
    taken: list[list[float]] = [[] for _ in graphs]
    for graph in graphs:
        graph.run(*arrays)
    end = time.perf_counter() + TIME_LIMIT_S
    for i in range(REPEATS):
        if i > 2 and time.perf_counter() > end:
            break
        for graph, times in zip(graphs, taken, strict=True):
            start = time.perf_counter()
            graph.run(*arrays)
            times.append((time.perf_counter() - start) * 1e3)
    return [float(np.median(times)) for times in taken]


def _check_finite(pair: Candidate, back: Graph) -> None:
    """float16 ends at 65,504; what is beyond becomes infinite, and soon NaN, or an index that nothing has."""
    arrays = _crossing(pair, padded(pair.front.graph, pair.calibrated.kept[:1]))
    try:
        outputs = back.run(*arrays)
    except UnsupportedModel as e:
        raise UnsupportedModel(f"float16 is not enough for this back half, keep the float32 one: {e}") from e
    for name, old, new in zip(back.outputs, pair.back.graph.run(*arrays), outputs, strict=True):
        if np.isfinite(old).all() and not np.isfinite(new).all():
            raise UnsupportedModel(
                f"the float16 back overflows: output {name!r} is not finite on the first calibration input; keep the"
                " float32 back"
            )
