"""Calibration inputs as the design looks at them: spectra of their features, and what the back half answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from splitwire.codec.shared.progress import ProgressFn
from splitwire.exporter.calibration.calibrate import BATCH, padded
from splitwire.exporter.network.inference import Array, Float32Array, Graph
from splitwire.exporter.points.damage import Damage
from splitwire.exporter.transform.bands.coding import Coding
from splitwire.exporter.transform.bands.layout import Layout
from splitwire.exporter.transform.bands.statistics import BandStatistics, features_of, spectrum

HELD_SHARE = 5
"""One in this many inputs is held out."""
RUNS = 5
"""The inputs that are held out are this number of runs of neighbours, evenly over the calibration: crops of one
picture, which are neighbours, hardly part, and inputs that come sorted by kind are all represented."""
FEWEST_HELD, MOST_HELD = 4, 64
ANSWER_BYTES = 128 << 20
"""Answers to held-out inputs are kept up to this size, and else made again for each measurement."""


def held_out(count: int) -> list[int]:
    """The indices of `count` inputs that are held out, rising."""
    held = min(max(count // HELD_SHARE, min(FEWEST_HELD, count // 2)), MOST_HELD)
    runs = np.array_split(np.arange(held), min(RUNS, held) or 1)
    ends = [round(count * (i + 1) / len(runs)) for i in range(len(runs))]
    return [end - len(run) + i for end, run in zip(ends, runs, strict=True) for i in range(len(run))]


@dataclass(frozen=True, kw_only=True)
class Material:
    """Some calibration inputs. spectra: of each tensor, (n, tiles, C, P) float32 on the CPU. beside: what crosses the
    cut behind the tensors, the same for every batch of the size `batch`."""

    layouts: Sequence[Layout]
    spectra: list[Tensor]
    beside: list[Array]
    batch: int

    def __len__(self) -> int:
        return len(self.spectra[0])

    def part(self, chosen: Sequence[int]) -> Material:
        """Some of the inputs."""
        return replace(self, spectra=[y[chosen] for y in self.spectra])

    def features(self, chosen: slice | Tensor) -> list[Tensor]:
        """(n, *feature_shape) of each tensor, as they were but for rounding."""
        return [features_of(layout, y[chosen]) for layout, y in zip(self.layouts, self.spectra, strict=True)]


def gather(
    front: Graph,
    back: Graph,
    inputs: Sequence[Float32Array],
    statistics: Sequence[BandStatistics],
    progress: ProgressFn,
    *,
    held: Sequence[int] = (),
) -> Material:
    """Run the front on the inputs, keep the spectra of its features, and add them to the statistics.

    held: indices of the inputs that the statistics do not see. A transform fits the inputs that it was made of better
    than any others, so it can be judged by these alone.
    """
    seen = np.ones(len(inputs), np.bool_)
    seen[list(held)] = False
    layouts = [s.layout for s in statistics]
    size = front.batch or BATCH
    beside: list[Array] = []
    spectra = [torch.empty(len(inputs), y.tiles, y.channels, y.positions) for y in layouts]
    for start in range(0, len(inputs), size):
        chunk = inputs[start : start + size]
        outputs = front.run(padded(front, chunk))
        beside = beside or outputs[len(layouts) : len(back.inputs)]
        for s, y, into in zip(statistics, outputs, spectra, strict=False):
            features = torch.from_numpy(np.asarray(y[: len(chunk)], np.float32))
            ours = features[torch.from_numpy(seen[start : start + len(chunk)])]
            if len(ours):
                s.add(ours)
            into[start : start + len(chunk)] = spectrum(s.layout, features)
        progress("Gather statistics", start + len(chunk), len(inputs))
    return Material(layouts=layouts, spectra=spectra, beside=beside, batch=size)


class HeldOut:
    """Measures codings on held-out inputs, by ONNX Runtime and in the product's terms (points/damage.py)."""

    def __init__(self, back: Graph, material: Material) -> None:
        self._back, self.material = back, material
        self._answers: list[list[Array]] | None = []
        size = 0
        for part in self._parts():
            expected = self._run(material.features(part))
            size += sum(y.nbytes for y in expected)
            if size > ANSWER_BYTES or self._answers is None:
                self._answers = None
                break
            self._answers.append(expected)

    def damage(self, codings: Sequence[Coding], step: float) -> Damage:
        """Of coefficients quantized at a step."""
        total = Damage(self._back.outputs)
        with torch.no_grad():
            for i, part in enumerate(self._parts()):
                decoded = []
                for coding, y in zip(codings, self.material.spectra, strict=True):
                    c = coding.analyse(y[part].to(coding.mean.device))
                    decoded.append(coding.synthesise(coding.decoded(c, step)).cpu())
                total.add(self._expected(i, part), self._run(decoded), part.stop - part.start)
        return total

    def damage_of(self, features: Sequence[Array]) -> float:
        """Damage.total of other features in the place of all held-out ones."""
        total = Damage(self._back.outputs)
        for i, part in enumerate(self._parts()):
            replaced = [torch.from_numpy(np.asarray(f[part])) for f in features]
            total.add(self._expected(i, part), self._run(replaced), part.stop - part.start)
        return total.total

    def _run(self, features: Sequence[Tensor]) -> list[Array]:
        """The answers, of a batch that is filled up by repetition where its size must not change."""
        arrays = [np.ascontiguousarray(f.numpy()) for f in features]
        if self._back.batch is not None or self.material.beside:
            arrays = [np.resize(f, (self.material.batch, *f.shape[1:])) for f in arrays]
        return self._back.run(*arrays, *self.material.beside)

    def _expected(self, index: int, part: slice) -> list[Array]:
        if self._answers is not None:
            return self._answers[index]
        return self._run(self.material.features(part))

    def _parts(self) -> Iterator[slice]:
        size = self.material.batch
        for start in range(0, len(self.material), size):
            yield slice(start, min(start + size, len(self.material)))
