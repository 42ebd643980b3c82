"""What the front's outputs usually look like: a small histogram per image, and limits beyond which they have drifted.

The exporter measures the calibration inputs and stores a DriftReference in the metadata of front.onnx, under a key of
its own: neither half decodes by it, so it is not part of the profile, of its fingerprint, or of back.onnx. The edge
measures live frames in the same way (runtime_edge/control/drift.py).

At most MEASURED elements of an image are looked at, in a few groups: of channels, or of coefficients by class. Each
group has CELLS cells between edges that follow from the clipping range, or from the mean magnitude of the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from .errors import ProfileError
from .profile import CodecProfile, OperatingPoint, TensorSpec
from .transform import QUARTERS, SYMBOLS, UNIT_STEP, Transform, step_size

DRIFT_KEY = "splitwire.drift"
"""Key of the reference in the metadata of front.onnx."""
FORMAT = 1
MEASURED = 1024
"""Most elements of an image that are looked at, all tensors together."""
GROUPS = 8
CELLS = 7
"""Cells of a group."""
COEFFICIENT_EDGES = (-2.5, -1.0, -0.3, 0.3, 1.0, 2.5)
"""In mean magnitudes of the coefficient's class."""
SIGNED_EDGES = tuple(i / CELLS for i in range(1, CELLS))
POSITIVE_EDGES = (1 / 64, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""In clipping ranges from c_min: for features around zero, and for those above it (ReLU), which are mostly near it."""
SIGNED = 0.05
"""Features are around zero if the clipping range begins this much of its length below it."""

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Limit = Annotated[float, Meta(ge=0)]


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of the three signals for the mean over 1, 2, 4, … independent images.

    outside: of the share of elements outside the clipping range, or beyond the tables. divergence: of the histogram
    from the reference. shorter, longer: of the logarithm of the frame's length over the mean at its operating point, in
    standard deviations: how far below and above 0.
    """

    outside: tuple[Limit, ...]
    divergence: tuple[Limit, ...]
    shorter: tuple[Limit, ...]
    longer: tuple[Limit, ...]


class FrameLength(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Length of the frame of one image at an operating point: mean and standard deviation of its natural logarithm."""

    op: str
    log_mean: float
    log_deviation: Annotated[float, Meta(gt=0)]


class DriftReference(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a pair's frames usually look like.

    op: the operating point whose clipping ranges or steps are used. images: measured at calibration. rate: the chance
    of a false alarm per frame that the limits are for. histogram: mean share of each cell, group by group. variance:
    of an image's histogram around it, summed over cells. outside: mean share of elements outside. limits: see Limits;
    the last entries are for the whole window of 2^(entries − 1) images. lengths: one per operating point.
    """

    format: Annotated[int, Meta(ge=FORMAT, le=FORMAT)] = FORMAT
    op: str
    images: Annotated[int, Meta(ge=1)]
    rate: float
    histogram: tuple[float, ...]
    variance: Annotated[float, Meta(gt=0)]
    outside: float
    limits: Limits
    lengths: tuple[FrameLength, ...]

    @property
    def window(self) -> int:
        """Images in the window."""
        return 1 << (len(self.limits.divergence) - 1)

    def to_json(self) -> str:
        """As it lies in the metadata."""
        return msgspec.json.encode(self).decode()


def reference_in(metadata: Mapping[str, str], source: str) -> DriftReference | None:
    """The reference in the metadata of front.onnx; None if there is none: the pair is older, or was calibrated on few
    images. Raises ProfileError for a damaged one. source: the name of the file in the message."""
    text = metadata.get(DRIFT_KEY)
    if text is None:
        return None
    try:
        reference = msgspec.json.decode(text, type=DriftReference)
    except (msgspec.DecodeError, ValueError) as e:
        raise ProfileError(f"{source}: the reference for drift is damaged: {e}; export the model again") from e
    sizes = {len(part) for part in msgspec.structs.astuple(reference.limits)}
    if len(sizes) != 1 or not 1 <= sizes.pop() <= 16:
        raise ProfileError(f"{source}: the reference for drift has limits of different sizes; export the model again")
    return reference


class Meter:
    """Measures the tensors of a pair, image by image. Immutable, so threads may share it.

    op: name of the operating point whose clipping ranges or steps are used. Raises ProfileError if there is none.
    """

    def __init__(self, profile: CodecProfile, op: str) -> None:
        self.op = op
        point = profile.operating_points[profile.point_index(op)]
        share = max(GROUPS, MEASURED // len(profile.tensors))
        self._parts = [_Part.of(spec, point, i, share) for i, spec in enumerate(profile.tensors)]
        self._elements = sum(part.index.size for part in self._parts)
        self.cells = sum(part.groups for part in self._parts) * CELLS

    def measure(self, tensors: Sequence[Float32Array]) -> tuple[Float64Array, Float64Array]:
        """(B, cells) share of the elements in each cell, and (B,) share of the elements outside, of each image."""
        batch = len(tensors[0])
        histograms = np.zeros((batch, self.cells))
        outside = np.zeros(batch)
        for b in range(batch):
            start = 0
            for part, tensor in zip(self._parts, tensors, strict=True):
                y = tensor[b].reshape(-1)[part.index] * part.scale
                cells = np.searchsorted(part.edges, y, side="right") + part.first
                stop = start + part.groups * CELLS
                histograms[b, start:stop] = np.bincount(cells, minlength=part.groups * CELLS)
                outside[b] += np.count_nonzero((y < part.low) | (y > part.high))
                start = stop
        return histograms / self._elements, outside / self._elements

    def divergence(self, histogram: Float64Array, reference: Float64Array) -> Float64Array:
        """(...,) how far histograms (..., cells) are from the reference: the sum of (h − r)·ln(h/r), the population
        stability index. Empty cells count as a small share."""
        least = 1 / (16 * self._elements)
        out: Float64Array = ((histogram - reference) * np.log((histogram + least) / (reference + least))).sum(axis=-1)
        return out


class _Part(Struct, frozen=True, kw_only=True):
    """The elements of one tensor that are looked at.

    index: (n,) where they lie in an image. scale: (n,) float32 factor before the edges. first: (n,) the first cell of
    their group. edges: (CELLS − 1,) float32. low, high: (n,) or scalar, after the factor; what is beyond is outside.
    """

    index: NDArray[np.intp]
    scale: Float32Array
    first: NDArray[np.intp]
    groups: int
    edges: Float32Array
    low: Float32Array
    high: Float32Array

    @classmethod
    def of(cls, spec: TensorSpec, point: OperatingPoint, tensor: int, most: int) -> _Part:
        if isinstance(spec.transform, Transform) and isinstance(point.steps, tuple):
            return cls._of_coefficients(spec, spec.transform, point.steps[tensor], most)
        low, high = point.tensors[tensor].quantizer.clipping_range
        channels = spec.planes[0]
        index = spread(spec.elements, most)
        channel = index // (spec.elements // channels)
        groups = min(GROUPS, channels)
        fractions = SIGNED_EDGES if low < -SIGNED * (high - low) else POSITIVE_EDGES
        return cls(
            index=index,
            scale=np.ones(index.size, np.float32),
            first=channel * groups // channels * CELLS,
            groups=groups,
            edges=np.array([low + f * (high - low) for f in fractions], np.float32),
            low=np.array([low], np.float32),
            high=np.array([high], np.float32),
        )

    @classmethod
    def _of_coefficients(cls, spec: TensorSpec, transform: Transform, step: int, most: int) -> _Part:
        order = transform.order()
        sent = order.size
        index = spread(spec.elements // spec.shape[1] * sent, most)
        tile, rank = np.divmod(index, sent)
        classes = np.frombuffer(transform.classes, np.uint8)[order[rank]].astype(np.float64)
        scale = np.exp2((UNIT_STEP - classes) / QUARTERS).astype(np.float32)
        # beyond the last symbol that is not the escape
        high = (np.float32((SYMBOLS - 1) / 2) * step_size(step) * scale).astype(np.float32)
        groups = min(GROUPS, sent)
        return cls(
            index=tile * spec.shape[1] + order[rank],
            scale=scale,
            first=rank * groups // sent * CELLS,
            groups=groups,
            edges=np.array(COEFFICIENT_EDGES, np.float32),
            low=-high,
            high=high,
        )


def spread(elements: int, most: int) -> NDArray[np.intp]:
    """At most `most` of the indices 0 … elements − 1, rising: all, or such that rows and columns occur evenly."""
    if elements <= most:
        return np.arange(elements)
    golden = np.arange(most, dtype=np.uint64) * np.uint64(2654435769) % np.uint64(1 << 32)
    return np.unique(golden * np.uint64(elements) >> np.uint64(32)).astype(np.intp)
