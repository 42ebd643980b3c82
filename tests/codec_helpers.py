"""Features and profiles for the codec tests: small, seeded, and made by the real design code."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.design import FeatureStatistics, design_operating_point
from splitwire.codec.profile import (
    TABLE_SIZE,
    Clipping,
    CodecProfile,
    ContextTables,
    OperatingPoint,
    Quantizer,
    TensorPoint,
    TensorSpec,
)

Float32Array = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]


def relu_features(shape: tuple[int, ...], seed: int = 0, location: float = -0.6) -> Float32Array:
    """Spatially correlated Laplace noise behind a ReLU, each channel with its own offset: what a cut looks like."""
    rng = np.random.default_rng(seed)
    x = rng.laplace(size=shape)
    if len(shape) == 4:
        x = x + 0.7 * (np.roll(x, 1, 2) + np.roll(x, 1, 3)) + rng.normal(size=(1, shape[1], 1, 1))
    return np.maximum(x + location, 0).astype(np.float32)


def make_profile(
    shapes: tuple[tuple[int, ...], ...],
    levels: tuple[int, ...] = (2, 4),
    *,
    seed: int = 0,
    signed: bool = False,
    coder: Literal["rans", "cabac"] = "rans",
) -> CodecProfile:
    """A profile designed on features like `relu_features`. shapes: per tensor, without the batch."""
    points: dict[int, list[object]] = {n: [] for n in levels}
    bits: dict[int, float] = {}
    for i, shape in enumerate(shapes):
        c, h, w = (1, 1, 1, *shape)[-3:]
        x = relu_features((8, c, h, w), seed + i)
        if signed:
            x = x - np.float32(0.8)
        statistics = FeatureStatistics(channels=c)
        statistics.add(x)
        for n in levels:
            point, bits[n] = design_operating_point(levels=n, statistics=statistics, coder=coder)
            points[n].append(point)
    return CodecProfile(
        model="test", cut="cut", front_sha256="0" * 64, back_sha256="1" * 64, default_op=f"n{levels[-1]}",
        tensors=tuple(TensorSpec(name=f"t{i}", shape=s) for i, s in enumerate(shapes)),
        operating_points=tuple(
            OperatingPoint(name=f"n{n}", tensors=tuple(points[n]), bits_per_element=bits[n]) for n in levels
        ),
    )  # fmt: skip


def expected(codec: FeatureCodec, op: str, tensor: int, x: Float32Array) -> Float32Array:
    """What decoding must give: quantized by the definition, with numpy."""
    point = codec.profile.operating_points[codec.profile.point_index(op)].tensors[tensor]
    q = np.searchsorted(np.array(point.quantizer.thresholds, np.float32), x, side="right")
    return np.array(point.quantizer.levels, np.float32)[q]


def random_point(rng: np.random.Generator, levels: int, channels: int) -> TensorPoint:
    """A valid point whose tables are random, so that every context, escapes and any block shape occur."""
    shapes = [(h, w) for h in range(1, 5) for w in range(1, 9) if levels ** (h * w) <= 256]
    block = shapes[rng.integers(len(shapes))]
    symbols = levels ** (block[0] * block[1])
    activities = int(rng.integers(1, 9))
    tables = int(rng.integers(1, 6))
    share = rng.dirichlet(np.full(symbols, rng.choice([0.05, 1.0])), tables) * rng.integers(0, 2, (tables, symbols))
    rows = np.zeros((tables, symbols + 1), np.int64)
    rows[:, :-1] = np.minimum(share * TABLE_SIZE, TABLE_SIZE - 1)
    rows[:, -1] = 1
    for row in rows:  # what is missing goes to a few entries, the escape among them
        for i in (0, symbols):
            row[i] += min(TABLE_SIZE - 1 - row[i], TABLE_SIZE - row.sum())
    return TensorPoint(
        quantizer=Quantizer.uniform(0.0, 1.0, levels),
        clipping=Clipping(method="histogram"),
        tables=ContextTables(
            block=block,
            padding=int(rng.integers(levels)),
            activities=activities,
            left_activity=rng.integers(0, activities, symbols, np.uint8).tobytes(),
            top_activity=rng.integers(0, activities, symbols, np.uint8).tobytes(),
            context_map=rng.integers(0, tables, channels * (activities + 1) ** 2, np.uint8).tobytes(),
            frequencies=rows.astype("<u2").tobytes(),
        ),
    )
