"""One streaming pass of the calibration inputs through the front half, in constant memory.

The front runs in the threads of ONNX Runtime, on all cores. Meanwhile the features of the previous batch go into the
statistics, with one thread per tensor. The threads do not change which features the statistics get, or in which order.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from splitwire.codec.design import FeatureStatistics
from splitwire.codec.design.statistics import SAMPLE_BYTES
from splitwire.codec.errors import NonFiniteFeatures
from splitwire.codec.profile import TensorSpec
from splitwire.codec.shared.progress import ProgressFn
from splitwire.exporter.network.inference import Array, Float32Array, Graph

from .checkpoint import Checkpoint
from .convergence import Settling
from .inputs import CalibrationInputs
from .items import Named

BATCH = 8
"""Inputs per run of the front: enough to use all cores, but few enough to save memory."""

KEPT_INPUTS = 256
KEPT_BYTES = 256 << 20
"""Largest number and size of the inputs that are kept to measure the operating points (measure.py)."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """statistics: of the features, per tensor. kept: a uniform sample of the inputs, each (C, H, W) float32, within
    KEPT_INPUTS and KEPT_BYTES. settled: the number of inputs after which the ranges and rates no longer changed; None
    if they still change. resumed: how many inputs an interrupted run had processed before.
    """

    statistics: tuple[FeatureStatistics, ...]
    kept: list[Float32Array]
    settled: int | None
    resumed: int = 0


def calibrate(
    front: Graph,
    inputs: CalibrationInputs,
    specs: Sequence[TensorSpec],
    *,
    settling: Settling,
    progress: ProgressFn,
    checkpoint: Checkpoint | None = None,
) -> Calibrated:
    """Run the inputs through the front, and collect the statistics of its first outputs, the tensors `specs`.

    checkpoint: stores an interrupted pass, to resume it later; the result is the same to the bit.
    Raises NonFiniteFeatures, with the name of the input, if its features contain NaN or infinity.
    """
    room = SAMPLE_BYTES // len(specs)
    statistics = tuple(FeatureStatistics(channels=s.planes[0], sample_bytes=room) for s in specs)
    sample = Sample()
    state = (*statistics, sample, settling)
    resumed = checkpoint.resume(state, inputs) if checkpoint is not None else 0
    done = resumed
    workers = 1 + (len(specs) if len(specs) > 1 else 0)  # a single tensor needs no thread
    with warnings.catch_warnings(), ThreadPoolExecutor(workers, "splitwire-calibrate") as pool:
        # Pillow warns about odd files; a file that cannot be read is reported as skipped
        warnings.filterwarnings("ignore", module="PIL")
        for chunk, position, outputs in _run_ahead(front, inputs, pool):
            features = [np.asarray(y[: len(chunk)], np.float32) for y in outputs[: len(specs)]]
            try:
                _count(statistics, specs, features, pool)
            except NonFiniteFeatures as e:
                raise _located(features, chunk) or e from None
            for _, x in chunk:
                sample.add(x)
            done += len(chunk)
            settling.look(statistics)
            if checkpoint is not None:
                checkpoint.save_when_due(state, inputs, position, done)
            progress("Calibrate", done, inputs.total)
    settling.finish(statistics)
    progress("Calibrate", done, done)  # fewer than `total` if images were skipped
    return Calibrated(statistics=statistics, kept=sample.kept, settled=settling.settled, resumed=resumed)


def _run_ahead(
    front: Graph, inputs: CalibrationInputs, pool: ThreadPoolExecutor
) -> Iterator[tuple[list[Named], int, list[Array]]]:
    """(inputs, position in the source after them, outputs of the front) per batch. The front runs one batch ahead."""
    stream = iter(inputs)
    running: tuple[list[Named], int, Future[list[Array]]] | None = None
    while True:
        chunk = list(itertools.islice(stream, front.batch or BATCH))
        started = None
        if chunk:
            started = (chunk, inputs.position, pool.submit(front.run, padded(front, [x for _, x in chunk])))
        if running is not None:
            yield running[0], running[1], running[2].result()
        if started is None:
            return
        running = started


def _count(
    statistics: Sequence[FeatureStatistics],
    specs: Sequence[TensorSpec],
    features: Sequence[Float32Array],
    pool: ThreadPoolExecutor,
) -> None:
    """Add each tensor to its statistics, several at the same time."""
    shaped = [y.reshape(-1, *spec.planes) for y, spec in zip(features, specs, strict=True)]
    if len(shaped) == 1:
        statistics[0].add(shaped[0])
        return
    for future in [pool.submit(s.add, y) for s, y in zip(statistics, shaped, strict=True)]:
        future.result()


def _located(features: Sequence[Float32Array], chunk: Sequence[Named]) -> NonFiniteFeatures | None:
    """The error for features that are not finite, with the name of the first input that has such features."""
    for i, (name, _) in enumerate(chunk):
        bad = sum(y[i].size - int(np.count_nonzero(np.isfinite(y[i]))) for y in features)
        if bad:
            size = sum(y[i].size for y in features)
            return NonFiniteFeatures(
                f"{name}: {bad} of {size} features at the cut are NaN or infinite; check the weights and this input"
            )
    return None


def padded(graph: Graph, inputs: Sequence[Float32Array]) -> Float32Array:
    """(B, C, H, W): the inputs as one batch; repeated inputs fill it up if the batch of the graph is fixed."""
    batch = np.stack(inputs)
    if graph.batch is not None and len(batch) != graph.batch:
        batch = np.resize(batch, (graph.batch, *batch.shape[1:]))
    return batch


class Sample:
    """A uniform sample of a stream of unknown length, within KEPT_INPUTS and KEPT_BYTES.

    Source: Vitter 1985, algorithm R.
    """

    def __init__(self) -> None:
        self.kept: list[Float32Array] = []
        self._seen = 0
        self._rng = np.random.default_rng(0)

    def add(self, x: Float32Array) -> None:
        room = max(1, min(KEPT_INPUTS, KEPT_BYTES // x.nbytes))
        self._seen += 1
        if len(self.kept) < room:
            self.kept.append(x)
        else:
            place = int(self._rng.integers(self._seen))
            if place < room:
                self.kept[place] = x
