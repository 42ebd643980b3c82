"""One streaming pass of the calibration inputs through the front half, in constant memory."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from splitwire.codec.design import FeatureStatistics
from splitwire.codec.errors import NonFiniteFeatures
from splitwire.codec.profile import TensorSpec

from .inference import Float32Array, Graph
from .inputs import CalibrationInputs, Named

BATCH = 8
"""Inputs per run of the front: enough to use the cores, little enough to stay small in memory."""

KEPT_INPUTS = 256
KEPT_BYTES = 256 << 20
"""Bounds on the inputs that are kept for measuring the operating points (measure.py)."""

Progress = Callable[[str, int, int | None], None]
"""progress(stage, done, total), called by long work; total is None while unknown."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """statistics: of the features. kept: a uniform sample of the inputs, each (C, H, W) float32, within the bounds."""

    statistics: FeatureStatistics
    kept: list[Float32Array]


def calibrate(front: Graph, inputs: CalibrationInputs, spec: TensorSpec, progress: Progress) -> Calibrated:
    """Run the inputs through the front and gather the statistics of its first output, the tensor `spec`.

    Raises NonFiniteFeatures, naming the input, if the features of one hold NaN or infinity.
    """
    statistics = FeatureStatistics(channels=spec.planes[0])
    sample = _Sample()
    done = 0
    stream = iter(inputs)
    with warnings.catch_warnings():
        # Pillow's remarks about odd files; a file that cannot be read is reported as skipped
        warnings.filterwarnings("ignore", module="PIL")
        while chunk := list(itertools.islice(stream, front.batch or BATCH)):
            statistics.add(_features(front, chunk).reshape(-1, *spec.planes))
            for _, x in chunk:
                sample.add(x)
            done += len(chunk)
            progress("Calibrate", done, inputs.total)
    progress("Calibrate", done, done)  # fewer than foretold, if images were skipped
    return Calibrated(statistics=statistics, kept=sample.kept)


def _features(front: Graph, chunk: list[Named]) -> Float32Array:
    batch = np.stack([x for _, x in chunk])
    features = run_padded(front, batch)[0]
    for (name, _), one in zip(chunk, features, strict=True):
        bad = one.size - int(np.count_nonzero(np.isfinite(one)))
        if bad:
            raise NonFiniteFeatures(
                f"{name}: {bad} of {one.size} features at the cut are NaN or infinite; check the weights and this input"
            )
    return features


def run_padded(graph: Graph, batch: Float32Array) -> list[Float32Array]:
    """Run a batch of any size up to the graph's fixed one, if it has one: padded by repetition, the padding cut off."""
    n = len(batch)
    if graph.batch is not None and n != graph.batch:
        batch = np.resize(batch, (graph.batch, *batch.shape[1:]))
    return [np.asarray(y[:n], dtype=np.float32) for y in graph.run(batch)]


class _Sample:
    """A uniform sample of a stream of unknown length, bounded in number and bytes. Source: Vitter 1985, algorithm R."""

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
