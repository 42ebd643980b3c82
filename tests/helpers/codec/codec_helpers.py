"""Features and profiles for the codec tests: small, seeded, and made by the real design code."""

from __future__ import annotations

from typing import Literal

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.design import FeatureStatistics, design_operating_point
from splitwire.codec.entropy.predictive import CODER_ID as PREDICTIVE
from splitwire.codec.profile import Clipping, CodecProfile, OperatingPoint, Quantizer, TensorPoint, TensorSpec
from splitwire.codec.tables import (
    ACTIVITY_SUMS,
    CELLS,
    GROUP,
    MAX_CLASSES,
    MAX_PREDICTION_ACTIVITIES,
    MAX_TABLES,
    OWN,
    PLACES,
    TABLE_SIZE,
    ContextTables,
    PredictionTables,
    Taps,
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
    points: dict[int, list[TensorPoint]] = {n: [] for n in levels}
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
    """The expected result of decoding: the features, quantized by the definition with NumPy."""
    point = codec.profile.operating_points[codec.profile.point_index(op)].tensors[tensor]
    q = np.searchsorted(np.array(point.quantizer.thresholds, np.float32), x, side="right")
    return np.array(point.quantizer.levels, np.float32)[q]


def spec_of(planes: tuple[int, int, int], taps: Taps | UnsetType = UNSET) -> TensorSpec:
    """A tensor of (C, H, W), with as few axes as it can have."""
    shape = planes if planes[0] > 1 else planes[1:] if planes[1] > 1 else planes[2:]
    return TensorSpec(name="x", shape=shape, taps=taps)


def random_pair(
    rng: np.random.Generator, coder: int, levels: int, planes: tuple[int, int, int]
) -> tuple[TensorSpec, TensorPoint]:
    """A tensor of (C, H, W) and a valid point for the coder of this id, with random tables."""
    if coder != PREDICTIVE:
        return spec_of(planes), random_point(rng, levels, planes[0])
    taps = random_taps(rng, planes[0])
    return spec_of(planes, taps), predicted_point(rng, levels, taps)


def predicted_point(rng: np.random.Generator, levels: int, taps: Taps) -> TensorPoint:
    """Of `levels` levels from 0 to 1, with a random prediction."""
    return TensorPoint(
        quantizer=Quantizer.uniform(0.0, 1.0, levels),
        clipping=Clipping(method="histogram"),
        tables=None,
        prediction=random_prediction(rng, levels, taps),
    )


def random_rows(rng: np.random.Generator, tables: int, symbols: int) -> bytes:
    """Tables in which about half of the symbols have no frequency, so that escapes occur."""
    share = rng.dirichlet(np.full(symbols, rng.choice([0.05, 1.0])), tables) * rng.integers(0, 2, (tables, symbols))
    rows = np.zeros((tables, symbols + 1), np.int64)
    rows[:, :-1] = np.minimum(share * TABLE_SIZE, TABLE_SIZE - 1)
    rows[:, -1] = 1
    for row in rows:  # what is missing goes to a few entries, the escape among them
        for i in (0, symbols):
            row[i] += min(TABLE_SIZE - 1 - row[i], TABLE_SIZE - row.sum())
    return rows.astype("<u2").tobytes()


def random_point(rng: np.random.Generator, levels: int, channels: int) -> TensorPoint:
    """A valid point whose tables are random, so that every context, escapes and any block shape occur."""
    shapes = [(h, w) for h in range(1, 5) for w in range(1, 9) if levels ** (h * w) <= 256]
    block = shapes[rng.integers(len(shapes))]
    symbols = levels ** (block[0] * block[1])
    activities = int(rng.integers(1, 9))
    tables = int(rng.integers(1, 6))
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
            frequencies=random_rows(rng, tables, symbols),
        ),
    )


def random_taps(rng: np.random.Generator, channels: int) -> Taps:
    """At any place, of any channel that may be named, more than once too; some channels have none, some very many."""
    counts = rng.integers(0, rng.choice([2, 12, 40]), channels) * (rng.random(channels) < 0.7)
    counts[-1] = rng.choice([counts[-1], 255], p=[0.8, 0.2])
    counts[:GROUP] = 0  # the first group has nothing before it
    limits = np.repeat(np.arange(channels) // GROUP * GROUP, counts)
    sources = rng.integers(0, limits) * 8 + rng.integers(0, len(PLACES), limits.size)
    return Taps(counts=counts.astype(np.uint8).tobytes(), sources=sources.astype("<u2").tobytes())


def random_prediction(rng: np.random.Generator, levels: int, taps: Taps) -> PredictionTables:
    """For these taps. Predictions reach far, in half of the cases exactly as far as 16 bits allow."""
    rest = int(rng.choice([0, levels - 1, int(rng.integers(levels))]))
    most = max(rest, levels - 1 - rest)
    offset = int(rng.choice([0, int(rng.integers(-(1 << 14), 1 << 14)), int(rng.integers(-200, 200))]))
    room = (1 << 15) - 1 - abs(offset)
    one_sign = rng.random() < 0.3  # with every level the last one, or the first, all terms add up
    weights, bias = [], []
    for count in np.frombuffer(taps.counts, np.uint8):
        w = rng.integers(-128, 128, len(OWN) + int(count)) // rng.choice([1, 8, 64])
        w = np.minimum(abs(w), 127) if one_sign else w
        while abs(w).sum() * most > room:
            w = np.trunc(w / 2).astype(np.int64)
        left = room - int(abs(w).sum()) * most
        weights.append(w)
        bias.append(rng.choice([left, -left]) if rng.random() < 0.3 else rng.integers(-left, left + 1) // 16)
    reach = abs(offset) + max(abs(w).sum() for w in weights) * most
    fitted = max(0, int(reach).bit_length() - 7)  # cells cover what the weights reach
    activities, classes, tables = (int(rng.integers(1, n + 1)) for n in (MAX_PREDICTION_ACTIVITIES, MAX_CLASSES, 6))
    tables = MAX_TABLES if rng.random() < 0.2 else tables
    return PredictionTables(
        rest=rest,
        weights=np.concatenate(weights).astype(np.int8).tobytes(),
        bias=np.array(bias, "<i2").tobytes(),
        offset=offset,
        shift=int(rng.choice([0, fitted, fitted, 15, int(rng.integers(16))])),
        activities=activities,
        activity=rng.integers(0, activities, ACTIVITY_SUMS, np.uint8).tobytes(),
        classes=classes,
        channel_class=rng.integers(0, classes, len(bias), np.uint8).tobytes(),
        context_map=rng.integers(0, tables, classes * CELLS * activities, np.uint8).tobytes(),
        frequencies=random_rows(rng, tables, levels),
    )


def predicted_profile(shapes: tuple[tuple[int, ...], ...], levels: tuple[int, ...], seed: int = 0) -> CodecProfile:
    """A profile like `make_profile`'s for coder 4, random in all that it looks up. shapes: as there."""
    rng = np.random.default_rng(seed)
    specs, points = [], []
    for i, shape in enumerate(shapes):
        taps = random_taps(rng, (1, 1, *shape)[-3])
        specs.append(TensorSpec(name=f"t{i}", shape=shape, taps=taps, mean=0.25))
        points.append([predicted_point(rng, n, taps) for n in levels])
    return CodecProfile(
        model="test", cut="cut", front_sha256="0" * 64, back_sha256="1" * 64, default_op=f"n{levels[-1]}",
        tensors=tuple(specs),
        operating_points=tuple(
            OperatingPoint(name=f"n{n}", tensors=tensors, bits_per_element=1.0)
            for n, tensors in zip(levels, zip(*points, strict=True), strict=True)
        ),
    )  # fmt: skip


SEVERAL: dict[str, tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]] = {
    "rans": (((6, 7, 5), (4, 6)), (2, 3, 4, 8, 40)),
    "cabac": (((6, 7, 5), (4, 6)), (2, 3, 4, 8, 40)),
    "predictive": (((17, 7, 5), (4, 6), (11,)), (2, 3, 8, 64)),
}
"""Coder → shapes of tensors of three, two and one axes, and numbers of levels."""


def frames_of_several(
    coder: Literal["rans", "cabac", "predictive"],
) -> tuple[FeatureCodec, list[Float32Array], list[str]]:
    """The codec of the tensors in SEVERAL, two images of features, and in hexadecimal a frame per operating point. What
    each decodes to is encoded again, to the same frame."""
    shapes, levels = SEVERAL[coder]
    if coder == "predictive":
        codec = FeatureCodec(predicted_profile(shapes, levels, seed=6))
    else:
        codec = FeatureCodec(make_profile(shapes, levels, coder=coder))
    xs = [relu_features((2, *s), 11 + i) for i, s in enumerate(shapes)]
    frames = []
    for point in codec.profile.operating_points:
        frame = codec.encode(xs, op=point.name, frame_id=7)
        assert codec.encode(codec.decode(frame).tensors, op=point.name, frame_id=7) == frame
        frames.append(frame.hex())
    return codec, xs, frames


def profile_of(shape: tuple[int, ...], point: TensorPoint, taps: Taps | None) -> CodecProfile:
    """One tensor at one operating point."""
    return CodecProfile(
        model="test", cut="cut", front_sha256="0" * 64, back_sha256="1" * 64, default_op="p",
        tensors=(TensorSpec(name="x", shape=shape, taps=UNSET if taps is None else taps),),
        operating_points=(OperatingPoint(name="p", tensors=(point,), bits_per_element=1.0),),
    )  # fmt: skip
