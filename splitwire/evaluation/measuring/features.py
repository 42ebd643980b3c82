"""The features at the cut over a sample of the images: histogram and channel statistics; and their quantizers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.profile import CodecProfile, TensorSpec
from splitwire.evaluation.answer.results import Design, Tensor
from splitwire.evaluation.contenders.protocol import Features, Float32Array

BINS = 256
TAIL = 0.001
"""Share of the elements that may lie outside the bins on each side, unless a clipping range reaches further."""

SAMPLE = 64
SAMPLE_BYTES = 256 << 20
"""Most images in the sample, and most bytes of float32: detectors have up to 60 MB an image."""


def sample_size(elements: int) -> int:
    """How many images the sample holds, at least 4. elements: at the cut, of one image."""
    return min(SAMPLE, max(4, SAMPLE_BYTES // (4 * elements)))


def describe(sample: Sequence[Features], profile: CodecProfile) -> tuple[Tensor, ...]:
    """One Tensor for each of the profile's, over the features of the sampled images. profile: Measurement.profile."""
    tensors = zip(profile.tensors, zip(*sample, strict=True), strict=True)
    return tuple(_tensor(spec, np.concatenate(parts), _reach(profile, i)) for i, (spec, parts) in enumerate(tensors))


def designs(profile: CodecProfile) -> Iterator[Design]:
    """The quantizers, by operating point and tensor, as the profile has them."""
    for point in profile.operating_points:
        for spec, tensor in zip(profile.tensors, point.tensors, strict=True):
            yield Design(op=point.name, tensor=spec.name, quantizer=tensor.quantizer, clipping=tensor.clipping)


def _reach(profile: CodecProfile, tensor: int) -> tuple[float, float]:
    """From the lowest to the highest level of any operating point: the histogram shows them all."""
    ranges = [p.tensors[tensor].quantizer.clipping_range for p in profile.operating_points]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _tensor(spec: TensorSpec, x: Float32Array, reach: tuple[float, float]) -> Tensor:
    """The statistics of one tensor. x: (n, *shape) float32. reach: an interval that the histogram covers."""
    edges = _edges(x, reach)
    counts, _ = np.histogram(np.clip(x, edges[0], edges[-1]), bins=edges)
    # channels are the first axis of (C, H, W), the last of (T, D) and (D,)
    axis = 1 if len(spec.shape) == 3 else x.ndim - 1
    others = tuple(i for i in range(x.ndim) if i != axis)
    return Tensor(
        name=spec.name,
        shape=spec.shape,
        mean=float(x.mean(dtype=np.float64)),
        deviation=float(x.std(dtype=np.float64)),
        minimum=float(x.min()),
        maximum=float(x.max()),
        zeros=float(np.count_nonzero(x == 0) / x.size),
        edges=tuple(edges.tolist()),
        densities=tuple((counts / x.size).tolist()),
        channel_means=tuple(x.mean(axis=others, dtype=np.float64).tolist()),
        channel_deviations=tuple(x.std(axis=others, dtype=np.float64).tolist()),
    )


def _edges(x: Float32Array, reach: tuple[float, float]) -> NDArray[np.float64]:
    """(BINS + 1,) bin edges, evenly spaced. A quantizer's levels increase, so the first edge is below the last."""
    low, high = np.quantile(x, [TAIL, 1 - TAIL])
    return np.linspace(min(float(low), reach[0]), max(float(high), reach[1]), BINS + 1)
