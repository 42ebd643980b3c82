"""Weights and tables of the predictive coder, estimated from a sample of calibration features.

Each level is predicted by a linear combination of its neighbours in its own plane and of its taps, elements of other
channels at the same place or next to it. Weights are those of ridge regression at some thousand positions of the
sample. The tables rest on cross-fitting: every position is predicted by weights that were fitted without its part of
the sample, so that a hundred weights fitted to few images do not seem better than they are. The code length is that of
the last part, which had no say in the choice of taps either, with weights and tables made of the others. (The classes
of channels and the groups of cells are few numbers, and are chosen on all.)
Source: ridge regression, Hoerl and Kennard 1970; stacking of cross-validated predictions, Wolpert 1992.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from splitwire.codec.profile import Quantizer
from splitwire.codec.quantizer import quantize
from splitwire.codec.tables import (
    ACTIVITY_SUMS,
    CELLS,
    MAX_PREDICTED_LEVELS,
    OWN,
    PLACES,
    PredictionTables,
    Taps,
)

from .tables import ITERATIONS, cluster, code_lengths

T = TypeVar("T")
S = TypeVar("S")
Float32Array = NDArray[np.float32]

POSITIONS = (8192, 32768)
"""Of the sample, that weights are fitted at and tables counted: at least, and at most where there are few channels."""
ELEMENTS = 1 << 22
"""Channels times positions, in between."""
PARTS = 4
"""Of the sample, for cross-fitting: every fourth image, or what there is of images in stretches."""
RIDGE = 0.03
"""Penalty over the mean variance of the neighbours. The rate hardly depends on it: choosing the better of two by
cross-fitting, for each quantizer, gained nothing."""
TABLES = 32
ACTIVITIES = 4
CLASSES = 8
"""Channels that are predicted with like errors share a class."""
SEEN = 64
"""Elements of the sample per context, at least: with fewer, contexts are put together."""
COARSE = 16
"""Cells, of equal shares, that channels are told apart by."""
BATCH_BYTES = 16 << 20
"""Of what one thread works on at a time: about what its caches hold."""


class Sampled(NamedTuple):
    """Levels less the one at rest, at sampled positions. own: (4, C, n) int8, the neighbours in the plane. places:
    (5, C, n) int8, the element itself and those next to it. part: (n,) which part of the sample it is in, in order."""

    rest: int
    levels: int
    own: NDArray[np.int8]
    places: NDArray[np.int8]
    part: NDArray[np.intp]

    @classmethod
    def of(cls, sample: Float32Array, quantizer: Quantizer) -> Sampled:
        """sample: (images, C, H, W) float32."""
        q = quantize(sample, quantizer)
        images, channels, height, width = q.shape
        levels = len(quantizer.levels)
        rest = int(np.bincount(q.reshape(-1), minlength=levels).argmax())
        field = np.pad((q.astype(np.int16) - rest).astype(np.int8), ((0, 0), (0, 0), (1, 1), (1, 1)))
        every = images * height * width
        some = int(np.clip(ELEMENTS // channels, *POSITIONS))
        rng = np.random.default_rng(0)
        at = np.sort(rng.choice(every, some, replace=False)) if every > some else np.arange(every)
        part = np.arange(at.size) * PARTS // at.size
        if images >= 2 * PARTS:
            part = at // (height * width) % PARTS
            order = np.argsort(part, kind="stable")
            at, part = at[order], part[order]
        image, row, col = at // (height * width), at // width % height, at % width

        def shifted(place: tuple[int, int]) -> NDArray[np.int8]:
            return np.ascontiguousarray(field[image, :, row + 1 + place[0], col + 1 + place[1]].T)

        return cls(
            rest=rest, levels=levels, own=np.stack([shifted(p) for p in OWN]),
            places=np.stack([shifted(p) for p in PLACES]), part=part,
        )  # fmt: skip

    @property
    def values(self) -> NDArray[np.int8]:
        """(C, n): what is predicted."""
        values: NDArray[np.int8] = self.places[0]
        return values


def on_all_cores(call: Callable[[S], T], jobs: Iterable[S]) -> list[T]:
    """call(job) of each job in order, on all cores, each with a BLAS of one thread: its own threads wait for each other
    on matrices as small as these, and for long where another program wants a core."""
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(call, jobs))


def estimate_prediction(
    sample: Float32Array, quantizer: Quantizer, taps: Taps
) -> tuple[PredictionTables, float] | None:
    """Weights and tables for features like `sample`, (images, C, H, W), and the ideal code length on the last
    part of them, as said above, bits per element. None for a quantizer of more levels than the coder takes."""
    if len(quantizer.levels) > MAX_PREDICTED_LEVELS:
        return None
    return estimate(Sampled.of(sample, quantizer), taps)


def estimate(data: Sampled, taps: Taps) -> tuple[PredictionTables, float]:
    """Weights and tables for sampled levels, and the ideal code length on the last part, bits per element."""
    fitted = _fit(data, taps)
    largest = max(data.rest, data.levels - 1 - data.rest)
    scale, weights, bias = _integers(fitted, taps, largest)
    cells, offset, shift = _cells(fitted.predicted * scale)
    sums = np.minimum(np.abs(data.own[0].astype(np.int16)) + np.abs(data.own[1].astype(np.int16)), ACTIVITY_SUMS - 1)
    activity = _activity(sums)
    levels = data.values.astype(np.intp) + data.rest
    klass = _classes(cells, activity[sums], levels, data.levels)
    groups = _groups(cells, levels, data.levels)
    pairs = (groups[-1] + 1) * ACTIVITIES
    context = (klass[:, None] * pairs + groups[cells] * ACTIVITIES + activity[sums]) * data.levels + levels
    size = CLASSES * pairs * data.levels
    by_part = [np.bincount(context[:, data.part == k].reshape(-1), minlength=size) for k in range(PARTS)]
    counts = np.reshape(by_part, (PARTS, -1, data.levels)).astype(np.float32)
    total = counts.sum(axis=0)
    label, frequencies = cluster(total - counts[-1], pairs, TABLES, ITERATIONS)
    bits = float((counts[-1] * code_lengths(frequencies)[label]).sum() / counts[-1].sum())
    label, frequencies = cluster(total, pairs, TABLES, ITERATIONS)
    context_map = label.reshape(CLASSES, -1, ACTIVITIES)[:, groups].astype(np.uint8)
    return PredictionTables(
        rest=data.rest, weights=weights.tobytes(), bias=bias.astype("<i2").tobytes(), offset=offset, shift=shift,
        activities=ACTIVITIES, activity=activity.tobytes(), classes=CLASSES,
        channel_class=klass.astype(np.uint8).tobytes(), context_map=context_map.tobytes(),
        frequencies=frequencies.astype("<u2").tobytes(),
    ), bits  # fmt: skip


class Fitted(NamedTuple):
    """weights: per channel (4 + taps) float32, then a bias. predicted: (C, n) float32, cross-fitted."""

    weights: list[Float32Array]
    predicted: Float32Array


def _fit(data: Sampled, taps: Taps) -> Fitted:
    """Ridge regression of each channel on its own neighbours and its taps."""
    counts, channel, place = taps.arrays()
    starts = np.concatenate([[0], np.cumsum(counts)])
    channels, n = data.values.shape
    parts = [slice(a, b) for a, b in pairwise(np.searchsorted(data.part, np.arange(PARTS + 1)).tolist())]
    predicted = np.empty((channels, n), np.float32)

    def fit(batch: NDArray[np.intp]) -> Float32Array:
        """(B, m) weights; puts what those of the other parts predict in its place."""
        at = starts[batch][:, None] + np.arange(counts[batch[0]])
        rows = np.ones((batch.size, len(OWN) + at.shape[1] + 1, n), np.float32)
        rows[:, : len(OWN)] = data.own[:, batch].transpose(1, 0, 2)
        rows[:, len(OWN) : -1] = data.places[place[at], channel[at]]
        y = data.values[batch].astype(np.float32)[:, :, None]
        grams = np.stack([rows[:, :, p] @ rows[:, :, p].transpose(0, 2, 1) for p in parts])
        moments = np.stack([(rows[:, :, p] @ y[:, p])[:, :, 0] for p in parts])
        for j, p in enumerate(parts):
            others = [i for i in range(PARTS) if i != j]
            solved = _solve(grams[others].sum(0), moments[others].sum(0), n - (p.stop - p.start))
            predicted[batch, p] = (solved[:, None] @ rows[:, :, p])[:, 0]
        return _solve(grams.sum(0), moments.sum(0), n)

    batches = list(_batches(counts, n))
    weights = [np.empty(0, np.float32)] * channels
    for batch, own in zip(batches, on_all_cores(fit, batches), strict=True):
        for c, w in zip(batch, own, strict=True):
            weights[c] = w
    return Fitted(weights, predicted)


def _batches(counts: NDArray[np.intp], positions: int) -> Iterator[NDArray[np.intp]]:
    """Channels with equally many taps, a bounded number at a time."""
    for number in np.unique(counts):
        alike = np.flatnonzero(counts == number)
        some = max(1, BATCH_BYTES // (4 * positions * (int(number) + len(OWN) + 1)))
        yield from (alike[i : i + some] for i in range(0, alike.size, some))


def _solve(gram: Float32Array, moment: Float32Array, n: int) -> Float32Array:
    """(B, m) ridge weights of (B, m, m) Gram matrices over n positions; the last is the constant's, which is not
    penalised."""
    m = gram.shape[1]
    mean = gram[:, -1, :-1] / n
    variance = (np.diagonal(gram, axis1=1, axis2=2)[:, :-1] / n - mean**2).mean(axis=1)
    full = gram.astype(np.float64)
    full[:, np.arange(m - 1), np.arange(m - 1)] += (n * RIDGE * variance)[:, None]
    full[:, np.arange(m), np.arange(m)] += 1e-2
    weights: Float32Array = np.linalg.solve(full, moment[:, :, None].astype(np.float64))[:, :, 0].astype(np.float32)
    return weights


def _integers(fitted: Fitted, taps: Taps, largest: int) -> tuple[float, NDArray[np.int8], NDArray[np.int16]]:
    """(scale, weights, biases): the largest power of two by which nearly all weights fit 8 bits and all sums 15."""
    counts = taps.arrays()[0] + len(OWN)
    flat = np.concatenate([w[:-1] for w in fitted.weights]).astype(np.float64)
    bias = np.array([w[-1] for w in fitted.weights], np.float64)
    starts = np.cumsum(counts) - counts
    for bits in range(8, -1, -1):
        scale = float(2**bits)
        weights = np.clip(np.round(flat * scale), -127, 127)
        lost = np.abs(flat * scale - weights).sum() - 0.5 * flat.size
        reach = np.add.reduceat(np.abs(weights), starts) * largest + np.abs(np.round(bias * scale))
        if (lost < 0.001 * np.abs(flat).sum() * scale and reach.max() < 1 << 14) or bits == 0:
            break
    return scale, weights.astype(np.int8), np.clip(np.round(bias * scale), -(1 << 13), 1 << 13).astype(np.int16)


def _cells(totals: Float32Array) -> tuple[NDArray[np.uint8], int, int]:
    """(cell of each prediction, offset, shift): nearly all predictions within the cells, as fine as that allows."""
    low, high = np.quantile(totals[:, :: max(1, totals.shape[1] // 512)], [0.001, 0.999])
    offset = int(np.clip(-np.floor(low), -(1 << 13), 1 << 13))
    shift = 0
    while (int(np.ceil(high)) + offset) >> shift >= CELLS:
        shift += 1
    cells = np.clip((np.round(totals).astype(np.int64) + offset) >> shift, 0, CELLS - 1).astype(np.uint8)
    return cells, offset, shift


def _activity(sums: NDArray[np.int16]) -> NDArray[np.uint8]:
    """(16,) class of each sum: none, and equal shares of the others."""
    share = np.bincount(sums.reshape(-1), minlength=ACTIVITY_SUMS).astype(np.float64)
    share[0] = 0
    middle = (np.cumsum(share) - share / 2) / max(share.sum(), 1.0)
    klass = 1 + np.minimum((middle * (ACTIVITIES - 1)).astype(np.intp), ACTIVITIES - 2)
    klass[0] = 0
    found: NDArray[np.uint8] = klass.astype(np.uint8)
    return found


def _groups(cells: NDArray[np.uint8], levels: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """(256,) group of each cell, never decreasing: neighbouring cells with equal shares of the bits, as many as the
    sample has elements to tell their contexts apart by."""
    index = cells.reshape(-1).astype(np.intp) * n + levels.reshape(-1)
    counts = np.bincount(index, minlength=CELLS * n).reshape(CELLS, n) + 0.1 / n
    mass = counts.sum(axis=1, keepdims=True)
    share = -(counts * np.log2(counts / mass)).sum(axis=1)
    number = int(np.clip(levels.size // (CLASSES * ACTIVITIES * SEEN), 1, CELLS))
    if number == CELLS:
        return np.arange(CELLS)
    group = ((np.cumsum(share) - share / 2) / share.sum() * number).astype(np.intp)
    return np.unique(group, return_inverse=True)[1]


def _classes(
    cells: NDArray[np.uint8], activity: NDArray[np.intp], levels: NDArray[np.intp], n: int
) -> NDArray[np.intp]:
    """(C,) class of each channel, by what its levels are, given the prediction: Lloyd iteration on the code length."""
    channels = len(cells)
    edges = np.quantile(cells[:, :: max(1, cells.shape[1] // 512)], np.linspace(0, 1, COARSE + 1)[1:-1])
    coarse = np.searchsorted(edges, np.arange(CELLS), side="left")[cells]
    contexts = COARSE * ACTIVITIES
    index = (np.arange(channels)[:, None] * contexts + coarse * ACTIVITIES + activity) * n + levels
    counts = np.bincount(index.reshape(-1), minlength=channels * contexts * n).reshape(channels, -1).astype(np.float64)
    average = counts.sum(0).reshape(-1, n) + 0.1
    prior = 16 * average / average.sum(axis=1, keepdims=True)

    def costs(groups: NDArray[np.float64]) -> NDArray[np.float64]:
        """(groups, contexts·n) bits of each level in each context."""
        smooth = groups.reshape(len(groups), -1, n) + prior
        lengths: NDArray[np.float64] = -np.log2(smooth / smooth.sum(axis=2, keepdims=True)).reshape(len(groups), -1)
        return lengths

    own = counts @ costs(np.zeros((1, counts.shape[1])))[0]  # bits under the average: quiet channels first
    label = np.argsort(np.argsort(own, kind="stable")) * CLASSES // channels
    for _ in range(ITERATIONS):
        groups = np.stack([counts[label == k].sum(axis=0) for k in range(CLASSES)])
        new = (counts @ costs(groups).T).argmin(axis=1)
        if (new == label).all():
            break
        label = new
    return label
