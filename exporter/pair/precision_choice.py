"""Choose halves at reduced precision: each is compared with float32 before it is accepted.

All candidates run on the same inputs, kept from the calibration. The reference is the float32 network without the
codec. An int8 front has other features, so the codec is calibrated again on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np
import onnx_ir as ir
from msgspec import UNSET

from splitwire.codec.errors import UnsupportedModel, UsageError
from splitwire.codec.profile import OperatingPoint, TensorSpec
from splitwire.codec.shared.progress import ProgressFn
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
"""Timed runs of each of the two halves, in turn; the result is the median."""

TYPICAL_LEVELS = 4
"""Number of levels whose range the convergence check uses if all operating points are bit budgets."""

TIME_LIMIT_S = 4.0
"""No new run starts after this time, except for the first three."""


@dataclass(frozen=True, kw_only=True)
class Half:
    """One half, opened. digest: the hash in the profile (bake.digest)."""

    model: ir.Model
    graph: Graph
    precision: str
    digest: str

    @classmethod
    def of(cls, model: ir.Model, what: str, precision: str = "float32") -> Half:
        """what: the name of the half in messages. Raises UnsupportedModel if ONNX Runtime does not load it."""
        return cls(model=model, graph=Graph.of(model, what=what), precision=precision, digest=bake.digest(model))

    @property
    def megabytes(self) -> float:
        """Size of the graph without the profile."""
        size = weight_bytes(self.model)
        return (size if size > MAX_MODEL_BYTES else len(serialise(self.model))) / 1e6


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A pair with the codec that was designed for it.

    calibrated: from the features of this front. specs: of the tensors that cross, as the profile holds them. points:
    the operating points. options, measures: as in result.ExportResult. default: name of the default operating point.
    A draft has no measures and no default.
    """

    front: Half
    back: Half
    calibrated: Calibrated
    specs: tuple[TensorSpec, ...]
    points: list[OperatingPoint]
    options: list[list[QuantizedTensor]]
    measures: list[PointMeasure]
    default: str


@dataclass(frozen=True, kw_only=True)
class CodecMaker:
    """Calibrates, designs and measures the codec of a pair, in the same way for each pair of one cut.

    specs: of the tensors. slopes: per tensor, as for the design. kinds: one per operating point. default_op: the
    caller's choice; None chooses by measurement. coder: the caller's choice.
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
        """Run the inputs once, and design the codec from them. checkpoint: see calibrate.py. reference: see
        measure.py."""
        return self.design(front, back, self.calibrate(front, inputs, checkpoint), reference)

    def calibrate(self, front: Half, inputs: CalibrationInputs, checkpoint: Checkpoint | None) -> Calibrated:
        """Run the inputs once through the front, and gather the statistics of its features."""
        return calibrate(
            front.graph,
            inputs,
            self.specs,
            settling=Settling(self._levels_watched(), self.slopes),
            progress=self.progress,
            checkpoint=checkpoint,
        )

    def design(self, front: Half, back: Half, calibrated: Calibrated, reference: Reference | None = None) -> Candidate:
        """Design the operating points from the statistics, and measure them."""
        draft, large = self.draft(front, back, calibrated), is_large(self.specs)
        kept, graphs = calibrated.kept, (front.graph, back.graph)
        measures = measure_points(*graphs, draft.points, kept, self.progress, reference, large=large)
        return replace(draft, measures=measures, default=self.default_op or choose_default(draft.points, measures))

    def draft(self, front: Half, back: Half, calibrated: Calibrated) -> Candidate:
        """Design the operating points from the statistics, without measures and without a default."""
        tensors = [
            CalibratedTensor(spec=spec, statistics=statistics, slope=slope)
            for spec, statistics, slope in zip(self.specs, calibrated.statistics, self.slopes, strict=True)
        ]
        if self.coder == "predictive":
            tensors = with_taps(tensors, self.progress)
        kept, graphs = calibrated.kept, (front.graph, back.graph)
        points, options = design_points(*graphs, tensors, kept, self.kinds, self.progress)
        return Candidate(
            front=front,
            back=back,
            calibrated=calibrated,
            specs=tuple(msgspec.structs.replace(t.spec, mean=t.statistics.mean, taps=t.taps or UNSET) for t in tensors),
            points=points,
            options=options,
            measures=[],
            default="",
        )

    def _levels_watched(self) -> list[int]:
        """Numbers of levels for the convergence check."""
        return sorted({int(kind.value) for kind in self.kinds if kind.family != "r"}) or [TYPICAL_LEVELS]

    def with_back(self, pair: Candidate, back: Half, graph: Graph, reference: Reference) -> Candidate:
        """The same front and codec with another back, measured again. graph: the graph to measure in place of
        `back`."""
        kept, large = pair.calibrated.kept, is_large(self.specs)
        measures = measure_points(pair.front.graph, graph, pair.points, kept, self.progress, reference, large=large)
        return replace(
            pair, back=back, measures=measures, default=self.default_op or choose_default(pair.points, measures)
        )


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One half in one precision. The other half of the pair stays the same.

    op: the default operating point of the pair. bits_per_element, and either agreement or relative_error: at that
    point, compared with the float32 network (measure.PointMeasure). milliseconds: median time of the half on this
    machine's CPU. megabytes: of the graph, without the profile.
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
    """An int8 front or a float16 back compared with float32.

    inputs: the number of measured inputs. They come from the calibration and are not held out, but only two numbers per
    activation are fitted to them. batch: of the timed runs; 1 unless the graph has another fixed one. kept: whether the
    option was accepted.
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
    """Raise UsageError for an unknown precision. Call it before the long work."""
    for half, precision, known in (("front", front, ("float32", "int8")), ("back", back, ("float32", "float16"))):
        if precision not in known:
            raise UsageError(f"the {half} can be {' or '.join(known)}, not {precision!r}")


def check_coder(coder: str) -> None:
    """Raise UsageError for an unknown coder."""
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
    """The pair with the accepted halves, and the comparisons that decided: first for the front, then for the back.

    base: the float32 pair. reopen: gives a second pass over the calibration, or None; then the kept inputs are used.
    accept: called once per half that is not float32, after its measurement; None accepts.
    Raises UnsupportedModel if ONNX Runtime's tools refuse a half, or if float16 overflows.
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
    """Median time of a run of each graph on the same arrays, ms. The graphs run in turn: a busy machine slows all."""
    times_of: list[list[float]] = [[] for _ in graphs]
    for graph in graphs:
        graph.run(*arrays)
    end = time.perf_counter() + TIME_LIMIT_S
    for i in range(REPEATS):
        if i > 2 and time.perf_counter() > end:
            break
        for graph, times in zip(graphs, times_of, strict=True):
            start = time.perf_counter()
            graph.run(*arrays)
            times.append((time.perf_counter() - start) * 1e3)
    return [float(np.median(times)) for times in times_of]


def _check_finite(pair: Candidate, back: Graph) -> None:
    """Raise UnsupportedModel if the float16 back overflows: values above 65,504 become infinite, and then NaN."""
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
