"""Features and profiles for the codec tests: small, seeded, and made by the real design code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.design import FeatureStatistics, design_operating_point
from splitwire.codec.profile import CodecProfile, OperatingPoint, TensorSpec

Float32Array = NDArray[np.float32]


def relu_features(shape: tuple[int, ...], seed: int = 0, location: float = -0.6) -> Float32Array:
    """Spatially correlated Laplace noise behind a ReLU, each channel with its own offset: what a cut looks like."""
    rng = np.random.default_rng(seed)
    x = rng.laplace(size=shape)
    if len(shape) == 4:
        x = x + 0.7 * (np.roll(x, 1, 2) + np.roll(x, 1, 3)) + rng.normal(size=(1, shape[1], 1, 1))
    return np.maximum(x + location, 0).astype(np.float32)


def make_profile(
    shapes: tuple[tuple[int, ...], ...], levels: tuple[int, ...] = (2, 4), *, seed: int = 0, signed: bool = False
) -> CodecProfile:
    """A profile designed on features like `relu_features`. shapes: per tensor, without the batch."""
    points: dict[int, list[object]] = {n: [] for n in levels}
    bits = 0.0
    for i, shape in enumerate(shapes):
        c, h, w = (1, 1, 1, *shape)[-3:]
        x = relu_features((8, c, h, w), seed + i)
        if signed:
            x = x - np.float32(0.8)
        statistics = FeatureStatistics(channels=c)
        statistics.add(x)
        for n in levels:
            point, bits = design_operating_point(levels=n, statistics=statistics)
            points[n].append(point)
    return CodecProfile(
        model="test", cut="cut", front_sha256="0" * 64, back_sha256="1" * 64, default_op=f"n{levels[-1]}",
        tensors=tuple(TensorSpec(name=f"t{i}", shape=s) for i, s in enumerate(shapes)),
        operating_points=tuple(
            OperatingPoint(name=f"n{n}", tensors=tuple(points[n]), bits_per_element=bits) for n in levels
        ),
    )  # fmt: skip


def expected(codec: FeatureCodec, op: str, tensor: int, x: Float32Array) -> Float32Array:
    """What decoding must give: quantized by the definition, with numpy."""
    point = codec.profile.operating_points[codec.profile.point_index(op)].tensors[tensor]
    q = np.searchsorted(np.array(point.quantizer.thresholds, np.float32), x, side="right")
    return np.array(point.quantizer.levels, np.float32)[q]
