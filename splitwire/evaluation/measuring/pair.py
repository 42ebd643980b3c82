"""The pair that is evaluated: both halves, opened, and run on as many images at once as they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import UnsetType

from splitwire.codec.errors import FingerprintMismatch, UsageError
from splitwire.codec.profile import BACK, FRONT
from splitwire.codec.wire.reply import Outputs
from splitwire.codec.wire.sizes import Int64Array
from splitwire.evaluation.contenders.protocol import Features, Float32Array
from splitwire.runtime_cloud.graph import BackGraph, open_back
from splitwire.runtime_edge.graph import open_front

from .without_transform import FeatureBack, open_without_transform, transforms

BATCH = 16
"""Images at once where both halves take any number. The figures do not depend on it beyond the rounding of sums."""


@dataclass(frozen=True, kw_only=True)
class Fronted:
    """One image after the front half: the tensors and sizes that cross, and the outputs that the front has computed.

    crossing: what the pair sends: the features, or their coefficients. features: the features; () where a transform
    pair was opened without them.
    """

    crossing: Features
    features: Features
    sizes: tuple[Int64Array, ...]
    early: Outputs


class Pair:
    """front.onnx and back.onnx of `folder`, or of the one folder below it that has them.

    threads: of one inference; None lets ONNX Runtime choose. smallest: images in the smallest batch that it takes: 1,
    unless the graphs are made for another number. batch: images at once, for speed; 1 where sizes of one batch cross.
    features: whether a transform pair also gives and takes its features (without_transform.py). False opens the two
    files as they are. Its properties have the names of EdgeSession's.
    Raises UsageError (no such folder, no pair in it, or several), FingerprintMismatch, ProfileError, DeviceError.
    """

    def __init__(self, folder: Path, *, threads: int | None = None, features: bool = True) -> None:
        self.folder = find(folder)
        self._front = open_front(self.folder / FRONT, threads=threads)
        self._back = open_back(self.folder / BACK, threads=threads)
        self.profile = self._front.profile
        self.fingerprint = self.profile.fingerprint
        if self._back.profile.fingerprint != self.fingerprint:
            raise FingerprintMismatch(
                f"{FRONT} and {BACK} in {self.folder} are of two pairs ({self.fingerprint.hex()} and "
                f"{self._back.profile.fingerprint.hex()}); export the model again"
            )
        self._early = self._front.early
        self._features: tuple[str, ...] | None = None
        self._behind: BackGraph | FeatureBack = self._back
        if self.profile.is_transform:
            self._features = ()
            if features:
                self._front, self._behind = open_without_transform(self.folder, threads=threads)
                self._features = tuple(t.features for t in transforms(self.profile))
        sizes = {self._front.input_shape[0], self._back.batch} - {None}
        self.smallest: int = max((n for n in sizes if n is not None), default=1)
        self.batch: int = self.smallest if sizes or self.profile.size_specs else BATCH

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """(B, C, H, W) of the network's input, None where any size is taken."""
        return self._front.input_shape

    @property
    def input_dtype(self) -> str:
        """What the network's input holds: float32, or uint8."""
        return self._front.input_dtype

    @property
    def classes(self) -> int | None:
        """K of the network's one output of (B, K) floats, as its graph says; None if it does not, or has none."""
        graph_outputs = [*self._back.opened.get_outputs(), *self._front.engine.session.get_outputs()]
        by_name = {o.name: o for o in graph_outputs if o.name in self.outputs}
        widths = {o.shape[1] for o in by_name.values() if "float" in o.type and len(o.shape) == 2}
        (k,) = widths if len(widths) == 1 else (None,)
        return k if isinstance(k, int) else None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the whole network's outputs, in its order."""
        names = dict.fromkeys((*self._early, *self._back.outputs))
        order = self.profile.outputs if isinstance(self.profile.outputs, tuple) else ()
        return (*(n for n in order if n in names), *(n for n in names if n not in order))

    @property
    def segments(self) -> bool:
        """Whether the network is a segmentation: as the profile says; of an older export that says no task, whether
        the first output is (B, classes, H, W) with as many classes as labels."""
        if not isinstance(self.profile.task, UnsetType):
            return self.profile.task == "segmentation"
        graph_outputs = [*self._front.engine.session.get_outputs(), *self._back.opened.get_outputs()]
        shapes = {o.name: o.shape for o in graph_outputs}
        first = shapes.get(self.outputs[0], ())
        return len(first) == 4 and self.profile.labels is not None and first[1] == len(self.profile.labels)

    @property
    def elements(self) -> int:
        """Number of elements at the cut, of one image."""
        return sum(t.feature_elements for t in self.profile.tensors)

    def front(self, inputs: Sequence[Float32Array]) -> list[Fronted]:
        """Run the front half on at most `batch` inputs, each (C, H, W) float32 mostly.

        Raises ShapeMismatch for inputs of another shape.
        """
        computed = self._front.run(self._filled(np.stack(inputs)))
        named = {name: computed.early[name] for name in self._early}
        early = [named] if self.batch == 1 else [_row(named, i) for i in range(len(inputs))]
        crossing = [_rows(computed.features, i) for i in range(len(inputs))]
        if self._features is None:
            features = crossing
        else:
            features = [_rows([computed.early[name] for name in self._features], i) for i in range(len(inputs))]
        return [
            Fronted(crossing=crossing[i], features=features[i], sizes=tuple(computed.sizes), early=early[i])
            for i in range(len(inputs))
        ]

    def back(self, features: Sequence[Features], images: Sequence[Fronted]) -> Outputs:
        """Run the back half on features: the network's outputs, one row per image.

        images: the same images after the front half. Detectors answer one image, without an axis for the batch.
        """
        return self._answers(self._behind, features, images)

    def receive(self, crossing: Sequence[Features], images: Sequence[Fronted]) -> Outputs:
        """Run the back half, as `back` does, on what the pair sends, as it arrives in the cloud."""
        return self._answers(self._back, crossing, images)

    def _answers(self, half: BackGraph | FeatureBack, rows: Sequence[Features], images: Sequence[Fronted]) -> Outputs:
        tensors = [self._filled(np.concatenate(parts)) for parts in zip(*rows, strict=True)]
        outputs = half.run(tensors, images[0].sizes)
        if self.batch == 1:
            outputs |= images[0].early
        else:
            outputs = {name: value[: len(images)] for name, value in outputs.items()}
            outputs |= {name: np.concatenate([i.early[name] for i in images]) for name in images[0].early}
        return {name: outputs[name] for name in self.outputs}

    def _filled(self, rows: Float32Array) -> Float32Array:
        """`rows`, filled up to the smallest batch by repeating the last."""
        missing = self.smallest - len(rows)
        return np.concatenate([rows, *[rows[-1:]] * missing]) if missing > 0 else rows


def find(folder: Path) -> Path:
    """The folder of the pair: `folder`, or the only one below it. Raises UsageError."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the one that `splitwire export --out` wrote")
    if (folder / FRONT).is_file() or (folder / BACK).is_file():
        return folder
    below = sorted(p.parent for p in folder.glob(f"*/{FRONT}"))
    if not below:
        raise UsageError(f"{folder} holds no {FRONT}, nor does a folder in it; make one with `splitwire export`")
    if len(below) > 1:
        raise UsageError(f"{folder} holds {len(below)} pairs; name one of them: {', '.join(map(str, below))}")
    return below[0]


def _rows(tensors: Sequence[Float32Array], i: int) -> Features:
    return tuple(np.ascontiguousarray(t[i : i + 1]) for t in tensors)


def _row(outputs: Outputs, i: int) -> Outputs:
    return {name: value[i : i + 1] for name, value in outputs.items()}
