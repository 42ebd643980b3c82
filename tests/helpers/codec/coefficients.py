"""Transform coefficients by docs/bitstream.md §7, in numpy: what is coded and decoded, and transforms for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.profile import CodecProfile, OperatingPoint, TensorSpec
from splitwire.codec.tables import TABLE_SIZE
from splitwire.codec.transform import SYMBOLS, Transform

Float32Array = NDArray[np.float32]
Chunks = Sequence[tuple[int, int, int, int | None, int | None]]


def step_of(index: int) -> np.float32:
    return np.float32(np.float32(2.0 ** (index % 4 / 4)) * 2.0 ** (index // 4 - 16))


def integers(x: Float32Array, transform: Transform, index: int) -> NDArray[np.int64]:
    """Q of each coefficient, by the rule of the encoder, 0 of those that are not sent. x: (…, N)."""
    reciprocal = np.float32(np.float32(2.0 ** -(index % 4 / 4)) * 2.0 ** (16 - index // 4))
    v = np.minimum(abs(x), np.float32(32767) * step_of(index)) * reciprocal
    k = np.floor(v)
    k += v >= k + np.float32(1 - transform.dead_zone)
    return np.where(sent(transform), np.sign(x) * k, 0).astype(np.int64)


def sent(transform: Transform) -> NDArray[np.bool_]:
    """(N,) which coefficients are."""
    found: NDArray[np.bool_] = np.frombuffer(transform.classes, np.uint8) != 255
    return found


def values(q: NDArray[np.int64], transform: Transform, index: int) -> Float32Array:
    """What q is decoded to."""
    first, others = (np.float32(a) for a in transform.outward)
    magnitude = abs(q).astype(np.float32)
    y = (magnitude + np.where(magnitude == 1, first, others)) * step_of(index)
    return np.where(q < 0, -y, np.where(q > 0, y, np.float32(0)))


def coded_images(x: Float32Array, transform: Transform, default: int, chunks: Chunks) -> list[NDArray[np.int64]]:
    """Integers of each image, (tiles, N). x: (images, tiles, N). default: step index where a chunk does not say.
    chunks: of this tensor alone (vectors.chunk_table)."""
    out: list[NDArray[np.int64]] = []
    for *_, planes, step in chunks:
        part = x[len(out) :][:planes]
        out += list(integers(part, transform, default if step is None else step))
    return out


def decoded_images(x: Float32Array, transform: Transform, default: int, chunks: Chunks) -> Float32Array:
    """What x is decoded to; arguments as above."""
    out: list[Float32Array] = []
    for *_, planes, step in chunks:
        index = default if step is None else step
        out += list(values(integers(x[len(out) :][:planes], transform, index), transform, index))
    return np.stack(out)


def are_decoded(y: Float32Array, transform: Transform, steps: set[int]) -> bool:
    """Whether every element is what some q is decoded to, at one of the step indices, and +0 where none is sent. y: any
    number of tiles of N."""
    y = y.reshape(-1, len(transform.classes))
    if y[:, ~sent(transform)].view(np.int32).any():
        return False
    valid = np.zeros(y.shape, bool)
    for index in steps:
        near = np.rint(abs(y) / step_of(index)).astype(np.int64)
        for q in (near - 1, near, near + 1):
            valid |= (values(np.clip(q, 0, 32767), transform, index) == abs(y)) & (q <= 32767)
    return bool(valid.all())


def make_transform(
    rng: np.random.Generator,
    shape: tuple[int, int],
    tables: int,
    *,
    classes: tuple[int, int] = (78, 50),
    first: int = -16,
    missing: bool = False,
    unsent: float | None = None,
    **others: Any,
) -> Transform:
    """For coefficients of (tiles, N). classes: highest and lowest, falling evenly. Tables from steep to flat, at
    random. missing: about half of a table's symbols are not in it. unsent: the share of coefficients that are not sent,
    but one always is; the classes of the others are in any order. None: all are sent, in order."""
    slope = np.exp2(np.linspace(-4, 3, tables))[:, None] * rng.uniform(0.7, 1.4, (tables, 1))
    weights = np.exp(-((np.arange(SYMBOLS - 1) + 1) // 2) / slope) * rng.uniform(0.5, 1, (tables, SYMBOLS - 1))
    if missing:
        weights *= rng.random((tables, SYMBOLS - 1)) < 0.5
    rows = np.zeros((tables, SYMBOLS), np.int64)
    rows[:, :-1] = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9) * (TABLE_SIZE - 200)
    rows[:, -1] = 1 + rng.integers(100, size=tables)
    rows[np.arange(tables), rows.argmax(axis=1)] += TABLE_SIZE - rows.sum(axis=1)
    rows[:, 5] += rows.max(axis=1) == TABLE_SIZE  # no entry is all there is
    rows[np.arange(tables), rows.argmax(axis=1)] -= rows.sum(axis=1) - TABLE_SIZE
    zero = np.clip((1 - np.minimum(0.3 * slope[:, 0], 0.9)) ** 4 * TABLE_SIZE, 1, TABLE_SIZE - 1)
    falling = np.linspace(*classes, shape[1]).round().astype(np.uint8)
    if unsent is not None:
        falling = rng.permutation(falling)
        falling[rng.permutation(falling.size)[: min(round(unsent * falling.size), falling.size - 1)]] = 255
    return Transform(
        features="features", feature_shape=(3, 2, 2), classes=falling.tobytes(), first=first,
        frequencies=rows.astype("<u2").tobytes(), zero_groups=zero.astype("<u2").tobytes(), **others,
    )  # fmt: skip


def make_coefficients(
    rng: np.random.Generator, images: int, shape: tuple[int, int], transform: Transform, step: int
) -> Float32Array:
    """(images, tiles, N): Laplace noise of the magnitude of each class, in 64ths of the step so that it compresses;
    some tiles of zeros; with the values that decide something. What is not sent is huge."""
    classes = np.frombuffer(transform.classes, np.uint8).astype(np.float64)
    x = rng.laplace(size=(images, *shape)) * np.exp2((classes - 64) / 4)
    x *= rng.random((images, shape[0], 1)) < 0.8
    size = float(step_of(step))
    out = (np.round(x / size * 64) * size / 64).astype(np.float32)
    edges = np.array([k + 1 - transform.dead_zone for k in (0, 1, 14, 15)], np.float32) * step_of(step)
    low, high = (np.nextafter(edges, np.float32(sign * np.inf)) for sign in (-1, 1))
    tiny = np.float32(1e-45)
    special = np.concatenate([edges, low, high, -edges, -low, -high, [0.0, -0.0, tiny, -tiny, 3e38, -3e38]])
    count = min(out.size // 8, special.size)
    out.reshape(-1)[rng.choice(out.size, count, replace=False)] = rng.permutation(special)[:count]
    out[..., ~sent(transform)] = 1e30
    return out


def transform_profile(
    shapes: Sequence[tuple[int, int]], transforms: Sequence[Transform], steps: dict[str, tuple[int, ...]]
) -> CodecProfile:
    """A transform pair. steps: name of each operating point → its step indices; the last point is the default."""
    return CodecProfile(
        model="test", cut="cut", front_sha256="0" * 64, back_sha256="1" * 64, default_op=list(steps)[-1],
        tensors=tuple(
            TensorSpec(name=f"t{i}", shape=shape, transform=transform, mean=0.0)
            for i, (shape, transform) in enumerate(zip(shapes, transforms, strict=True))
        ),
        operating_points=tuple(
            OperatingPoint(name=name, tensors=(), bits_per_element=1.0, steps=each) for name, each in steps.items()
        ),
    )  # fmt: skip
