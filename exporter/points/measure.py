"""What each operating point costs the task: the back half on quantized features against the whole network.

The inputs are a sample of the calibration's: a quantizer has a handful of numbers, estimated from millions of
elements, so that there is nothing to overfit; the entropy coder is lossless and need not run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from splitwire.codec.overspent import is_overspent
from splitwire.codec.pictures import spread
from splitwire.codec.profile import OperatingPoint, Quantizer, TensorSpec
from splitwire.codec.progress import ProgressFn
from splitwire.codec.quantizer import dequantize, quantize
from splitwire.exporter.calibration.calibrate import BATCH, padded
from splitwire.exporter.network.inference import Array, Float32Array, Graph

from .damage import Damage, Task

MIN_AGREEMENT = 0.985
"""The default operating point is the cheapest that keeps this share of the answers (damage.py): Top-1 classes, or
detections. Where a class changes the whole network is often wrong itself, so that 1.5 % of changed answers cost well
under 1 point of accuracy, the loss that Cohen et al. 2021 allow themselves."""

MAX_ERROR = 0.05
"""The same for outputs that are neither: the relative error of a channel (damage.py). Of three detectors whose outputs
are raw (docs/results/field.md) it keeps 98.5 % and more of what they find; 0.1 of the whole output kept 77 to 95 %."""

ONE_BY_ONE = 64
"""Inputs measured where the batch is fixed: these networks run one by one and are mostly detectors, whose images hold
several answers each and take a second."""

AT_ONCE = 2
"""Choices in work at a time: each holds activations of the back, and ONNX Runtime uses further cores by itself."""

LARGE = 1 << 20
INPUTS_LARGE = 24
"""Elements of several tensors at the cut, from which the back half takes about a second for an input (a feature pyramid
of ResNet-50), and how many inputs the operating points are then measured on."""

Quantizers = Sequence[Quantizer | None]
"""One per tensor at the cut; None leaves the tensor as it is."""

DamageOf = Callable[[Sequence[Quantizers], str, int], list[float]]
"""damage_of(choices, stage, inputs): the damage of each choice (Damage.total) on at most `inputs` inputs. stage: the
name for progress reports."""

Reference = Callable[[Float32Array], list[Array]]
"""What the network should answer to a batch of inputs: the outputs of the back half."""


@dataclass(frozen=True, kw_only=True)
class PointMeasure:
    """How well one operating point keeps the answers of the calibration inputs. Exactly one of the two figures is set.

    agreement: share of the answers that stay, in [0, 1], for task "classes" and "detections".
    relative_error: ‖ŷ − y‖ / ‖y‖ by channel over all inputs (damage.py), otherwise.
    """

    op: str
    inputs: int
    task: Task = "classes"
    agreement: float | None = None
    relative_error: float | None = None

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
    """Measure every point on the kept inputs. large: whether the back takes long (is_large). reference: None means the
    back half on the features as they are.

    (That this equals the whole network was verified before; verify.py. Halves at reduced precision have another one.)
    """
    if front.batch is not None:
        kept = some(kept, (INPUTS_LARGE if large else ONE_BY_ONE) * front.batch)
    choices = [[t.quantizer for t in p.tensors] for p in points]
    answers = len(kept) * len(points)
    damages = measure_damage(
        front, back, choices, kept, lambda done: progress("Measure operating points", done, answers), reference
    )
    return [
        PointMeasure(
            op=p.name, inputs=len(kept), task=d.task or "values", agreement=d.agreement, relative_error=d.relative_error
        )
        for p, d in zip(points, damages, strict=True)
    ]


def measure_damage(
    front: Graph,
    back: Graph,
    choices: Sequence[Quantizers],
    kept: Sequence[Float32Array],
    progress: Callable[[int], None],
    reference: Reference | None = None,
) -> list[Damage]:
    """What each choice of quantizers does to the outputs, one Damage per choice. progress: called with the number of
    answers done, one for each input and choice.

    Backs that take one input at a time, mostly detectors, select boxes on one core: two choices run at a time there.
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
    n = len(quantizers)  # sizes may come behind the tensors
    quantized = [_through(y, q) for y, q in zip(received[:n], quantizers, strict=True)]
    return back.run(*quantized, *received[n:])


def _in_order(
    pool: ThreadPoolExecutor, answer: Callable[[Quantizers], list[Array]], choices: Sequence[Quantizers]
) -> Iterator[list[Array]]:
    """answer(choice) for each choice, AT_ONCE of them in memory at most: the outputs may be large."""
    running: deque[Future[list[Array]]] = deque()
    for choice in choices:
        running.append(pool.submit(answer, choice))
        if len(running) == AT_ONCE:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def is_large(specs: Sequence[TensorSpec]) -> bool:
    """Whether so much crosses in several tensors that their back half takes long."""
    return len(specs) > 1 and sum(spec.elements for spec in specs) >= LARGE


def some(kept: Sequence[Float32Array], limit: int) -> list[Float32Array]:
    """At most `limit` of the kept inputs, evenly spread: they may come class by class, or picture by picture."""
    return [kept[i] for i in spread(len(kept), limit)]


def alone(quantizers: Sequence[Sequence[Quantizer]]) -> list[Quantizers]:
    """[tensor][k] → the choices that quantize one tensor and leave the others as they are, in this order."""
    tensors = range(len(quantizers))
    return [[q if i == t else None for i in tensors] for t, own in enumerate(quantizers) for q in own]


def _batches(front: Graph, kept: Sequence[Float32Array]) -> Iterator[tuple[int, Float32Array]]:
    """(inputs that count, the batch): a graph of a fixed batch gets the last one filled up."""
    for start in range(0, len(kept), front.batch or BATCH):
        chunk = kept[start : start + (front.batch or BATCH)]
        yield len(chunk), padded(front, chunk)


def _through(y: Array, quantizer: Quantizer | None) -> Array:
    if quantizer is None:
        return y
    return dequantize(quantize(np.asarray(y, np.float32), quantizer), quantizer)


def choose_default(points: Sequence[OperatingPoint], measures: Sequence[PointMeasure]) -> str:
    """Name of the cheapest point that is good enough; if none is, of the best. One that is over its budget
    (overspent.py) is taken only where all are."""
    both = list(zip(points, measures, strict=True))
    both = [(p, m) for p, m in both if not is_overspent(p)] or both
    good = [(p, m) for p, m in both if m.good]
    if good:
        return min(good, key=lambda pm: pm[0].bits_per_element)[0].name
    return min(both, key=lambda pm: (pm[1].loss, pm[0].bits_per_element))[0].name
