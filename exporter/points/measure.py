"""Measure the output distortion of each operating point: the back half on quantized features against the whole network.

The inputs are a sample of the calibration inputs. A quantizer has only a few numbers, estimated from millions of
elements, so it cannot overfit. The entropy coder is lossless, so it does not run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from splitwire.codec.overspent import is_overspent
from splitwire.codec.profile import OperatingPoint, Quantizer, TensorSpec
from splitwire.codec.quantizer import dequantize, quantize
from splitwire.codec.shared.pictures import spread
from splitwire.codec.shared.progress import ProgressFn
from splitwire.exporter.calibration.calibrate import BATCH, padded
from splitwire.exporter.network.inference import Array, Float32Array, Graph

from .damage import Damage, Task

MIN_AGREEMENT = 0.985
"""The default operating point is the cheapest that keeps this share of the answers (damage.py): Top-1 classes, or
detections. Where a class changes, the whole network is often wrong too. So 1.5 % of changed answers cost well under 1
point of accuracy, the loss that Cohen et al. 2021 accept."""

MAX_ERROR = 0.05
"""The limit for all other outputs: the relative error per channel (damage.py). Three detectors with raw outputs keep at
least 98.5 % of their detections at it (docs/results/field.md); at 0.1 of the whole output they kept 77 to 95 %."""

ONE_BY_ONE = 64
"""Number of measured inputs if the batch is fixed. Such networks are mostly detectors: an image takes a second, and has
several answers."""

AT_ONCE = 2
"""Choices that run at the same time. Each needs memory for the activations of the back; ONNX Runtime uses the other
cores."""

LARGE = 1 << 20
INPUTS_LARGE = 24
"""From LARGE elements in several tensors at the cut, the back half takes about a second per input (a feature pyramid of
ResNet-50). Then the operating points are measured on INPUTS_LARGE inputs."""

Through = Callable[[Float32Array], Float32Array]
"""From a tensor to its decoded form, of the same shape."""

Quantizers = Sequence[Quantizer | Through | None]
"""One per tensor at the cut: a quantizer, or what else a tensor goes through; None leaves it as it is."""

DamageOf = Callable[[Sequence[Quantizers], str, int], list[float]]
"""damage_of(choices, stage, inputs): the damage of each choice (Damage.total) on at most `inputs` inputs. stage: the
name for progress reports."""

Reference = Callable[[Float32Array], list[Array]]
"""The correct outputs of the back half for a batch of inputs."""


@dataclass(frozen=True, kw_only=True)
class PointMeasure:
    """How well one operating point keeps the answers to the calibration inputs. Exactly one of the two figures is set.

    agreement: share of the answers that do not change, in [0, 1], for task "classes" and "detections".
    relative_error: ‖ŷ − y‖ / ‖y‖ per channel over all inputs, for task "values".
    """

    op: str
    inputs: int
    task: Task = "classes"
    agreement: float | None = None
    relative_error: float | None = None

    @classmethod
    def of(cls, op: str, inputs: int, damage: Damage) -> PointMeasure:
        """The figures of the damage that the point `op` does to the answers to `inputs` inputs."""
        return cls(
            op=op,
            inputs=inputs,
            task=damage.task or "values",
            agreement=damage.agreement,
            relative_error=damage.relative_error,
        )

    @property
    def good(self) -> bool:
        """Whether the point is good enough for a default."""
        if self.agreement is not None:
            return self.agreement >= MIN_AGREEMENT
        return self.relative_error is not None and self.relative_error <= MAX_ERROR

    @property
    def loss(self) -> float:
        """For sorting: smaller is better."""
        return 1.0 - self.agreement if self.agreement is not None else float(self.relative_error or 0.0)


def measure_points(
    front: Graph,
    back: Graph,
    points: Sequence[OperatingPoint],
    kept: Sequence[Float32Array],
    progress: ProgressFn,
    reference: Reference | None = None,
    *,
    large: bool = False,
) -> list[PointMeasure]:
    """Measure every point on the kept inputs.

    large: whether the back is slow (is_large). reference: None means the back half on unquantized features, which
    verify.py has compared with the whole network. Halves at reduced precision need another reference.
    """
    kept = _measured(front, kept, large)
    choices = [[t.quantizer for t in p.tensors] for p in points]
    answers = len(kept) * len(points)
    damages = measure_damage(
        front, back, choices, kept, lambda done: progress("Measure operating points", done, answers), reference
    )
    return [PointMeasure.of(p.name, len(kept), d) for p, d in zip(points, damages, strict=True)]


def measure_damage(
    front: Graph,
    back: Graph,
    choices: Sequence[Quantizers],
    kept: Sequence[Float32Array],
    progress: Callable[[int], None],
    reference: Reference | None = None,
) -> list[Damage]:
    """Measure the damage of each choice of quantizers to the outputs.

    progress: called with the number of finished answers; each input has one for each choice.
    If the batch is fixed (mostly in detectors), AT_ONCE choices run at the same time: boxes are selected on one core.
    """
    damages = [Damage(back.outputs) for _ in choices]
    done = 0
    with ThreadPoolExecutor(AT_ONCE if front.batch is not None else 1, "splitwire-measure") as pool:
        for count, batch in _batches(front, kept):
            received = front.run(batch)[: len(back.inputs)]
            expected = back.run(*received) if reference is None else reference(batch)
            answers = _in_order(pool, partial(_answer, back, received), choices)
            for damage, outputs in zip(damages, answers, strict=True):
                damage.add(expected, outputs, count)
                done += count
                progress(done)
    return damages


def _answer(back: Graph, received: Sequence[Array], quantizers: Quantizers) -> list[Array]:
    n = len(quantizers)  # sizes may follow the tensors
    quantized = [_through(y, q) for y, q in zip(received[:n], quantizers, strict=True)]
    return back.run(*quantized, *received[n:])


def _in_order(
    pool: ThreadPoolExecutor, answer: Callable[[Quantizers], list[Array]], choices: Sequence[Quantizers]
) -> Iterator[list[Array]]:
    """answer(choice) for each choice, in order. At most AT_ONCE are in memory: the outputs may be large."""
    running: deque[Future[list[Array]]] = deque()
    for choice in choices:
        running.append(pool.submit(answer, choice))
        if len(running) == AT_ONCE:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def is_large(specs: Sequence[TensorSpec]) -> bool:
    """Whether several tensors cross that are large enough to make the back half slow."""
    return len(specs) > 1 and sum(spec.feature_elements for spec in specs) >= LARGE


def measured_inputs(front: Graph, specs: Sequence[TensorSpec], kept: Sequence[Float32Array]) -> Sequence[Float32Array]:
    """Those of the kept inputs that operating points are measured on. specs: of the features at the cut."""
    return _measured(front, kept, is_large(specs))


def _measured(front: Graph, kept: Sequence[Float32Array], large: bool) -> Sequence[Float32Array]:
    return kept if front.batch is None else subsample(kept, (INPUTS_LARGE if large else ONE_BY_ONE) * front.batch)


def subsample(kept: Sequence[Float32Array], limit: int) -> list[Float32Array]:
    """At most `limit` of the kept inputs, evenly spread, since neighbours may be of the same class or picture."""
    return [kept[i] for i in spread(len(kept), limit)]


def one_at_a_time(quantizers: Sequence[Sequence[Quantizer]]) -> list[Quantizers]:
    """[tensor][k] → choices, in this order, that quantize only this tensor with this quantizer."""
    tensors = range(len(quantizers))
    return [[q if i == t else None for i in tensors] for t, of_tensor in enumerate(quantizers) for q in of_tensor]


def _batches(front: Graph, kept: Sequence[Float32Array]) -> Iterator[tuple[int, Float32Array]]:
    """(number of inputs, batch). If the batch is fixed, repeated inputs fill up the last one; they do not count."""
    for start in range(0, len(kept), front.batch or BATCH):
        chunk = kept[start : start + (front.batch or BATCH)]
        yield len(chunk), padded(front, chunk)


def _through(y: Array, quantizer: Quantizer | Through | None) -> Array:
    if quantizer is None:
        return y
    if not isinstance(quantizer, Quantizer):
        return quantizer(np.asarray(y, np.float32))
    return dequantize(quantize(np.asarray(y, np.float32), quantizer), quantizer)


def choose_default(points: Sequence[OperatingPoint], measures: Sequence[PointMeasure]) -> str:
    """The name of the cheapest point that is good enough, or of the best point if none is.

    A point that exceeds its budget (overspent.py) is chosen only if all do.
    """
    both = list(zip(points, measures, strict=True))
    both = [(p, m) for p, m in both if not is_overspent(p)] or both
    good = [(p, m) for p, m in both if m.good]
    if good:
        return min(good, key=lambda pm: pm[0].bits_per_element)[0].name
    return min(both, key=lambda pm: (pm[1].loss, pm[0].bits_per_element))[0].name
