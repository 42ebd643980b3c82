"""What a frame codes of features, and what it is decoded to, by docs/bitstream.md: level indices or coefficients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from coefficients import Chunks, coded_images, decoded_images, integers
from numpy.typing import NDArray

from splitwire.codec.profile import CodecProfile, Quantizer, TensorPoint
from splitwire.codec.tables import PredictionTables
from splitwire.codec.transform import SYMBOLS, Transform

Float32Array = NDArray[np.float32]


def coded_planes(
    features: Sequence[Float32Array], profile: CodecProfile, op: int, chunks: Chunks
) -> list[NDArray[np.int64]]:
    """Per tensor the planes of level indices or of the integers of coefficients, as the frame with these chunks codes
    them."""
    point = profile.operating_points[op]
    if not isinstance(point.steps, tuple):
        return [np.array(level_planes(x, p.quantizer)) for x, p in zip(features, point.tensors, strict=True)]
    return [
        np.stack(coded_images(x, spec.transform, step, [c for c in chunks if c[0] == i]))
        for i, (x, spec, step) in enumerate(zip(features, profile.tensors, point.steps, strict=True))
        if isinstance(spec.transform, Transform)
    ]


def decoded_tensors(
    features: Sequence[Float32Array], profile: CodecProfile, op: int, chunks: Chunks
) -> list[Float32Array]:
    """What the frame with these chunks is decoded to."""
    point = profile.operating_points[op]
    if not isinstance(point.steps, tuple):
        return [
            np.array(p.quantizer.levels, np.float32)[np.searchsorted(p.quantizer.thresholds, x, side="right")]
            for p, x in zip(point.tensors, features, strict=True)
        ]
    return [
        decoded_images(x, spec.transform, step, [c for c in chunks if c[0] == i])
        for i, (x, spec, step) in enumerate(zip(features, profile.tensors, point.steps, strict=True))
        if isinstance(spec.transform, Transform)
    ]


def count_escapes(features: Sequence[Float32Array], profile: CodecProfile) -> int:
    """The number of symbols in no table, at the operating point that is used: at least this number is escaped."""
    point = profile.operating_points[1]
    if not isinstance(point.steps, tuple):
        return sum(count_point_escapes(x, p) for x, p in zip(features, point.tensors, strict=True))
    number = 0
    for x, spec, step in zip(features, profile.tensors, point.steps, strict=True):
        assert isinstance(spec.transform, Transform)
        q = integers(x, spec.transform, step)
        symbols = np.minimum(2 * abs(q) - (q > 0), SYMBOLS - 1)
        rows = spec.transform.frequency_rows()
        number += int(((rows[:, symbols] == 0).all(axis=0) | (symbols == SYMBOLS - 1)).sum())
    return number


def level_planes(x: Float32Array, quantizer: Quantizer) -> list[list[list[int]]]:
    """Planes of rows of level indices, by the definition: how many thresholds are not above the feature."""
    thresholds = quantizer.thresholds
    height, width = (1, *x.shape[1:])[-2:]
    planes = x.reshape(-1, height, width).tolist()
    return [[[sum(t <= y for t in thresholds) for y in row] for row in plane] for plane in planes]


def block_symbols(x: Float32Array, quantizer: Quantizer, block: tuple[int, int], padding: int) -> NDArray[np.int64]:
    """All symbols, flat (docs/bitstream.md §4)."""
    q = np.array(level_planes(x, quantizer))
    (bh, bw), (n, h, w) = block, q.shape
    q = np.pad(q, ((0, 0), (0, -h % bh), (0, -w % bw)), constant_values=padding)
    q = q.reshape(n, -(-h // bh), bh, -(-w // bw), bw).transpose(0, 1, 3, 2, 4).reshape(-1, bh * bw)
    return q @ len(quantizer.levels) ** np.arange(bh * bw)


def count_point_escapes(x: Float32Array, point: TensorPoint) -> int:
    """The number of symbols that are in no table: at least this number is escaped."""
    tables = point.tables
    if isinstance(point.prediction, PredictionTables):
        rows = point.prediction.frequency_rows(len(point.quantizer.levels))
        return int((rows[:, np.array(level_planes(x, point.quantizer)).reshape(-1)] == 0).all(axis=0).sum())
    if tables is None:
        return 0
    symbols = block_symbols(x, point.quantizer, tables.block, tables.padding)
    k = len(point.quantizer.levels) ** (tables.block[0] * tables.block[1])
    return int((tables.frequency_rows(k)[:, symbols] == 0).all(axis=0).sum())
