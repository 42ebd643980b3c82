"""Taps, weights and tables of the predictive coder, estimated from a sample of calibration features.

Each level is foretold by a linear combination of its neighbours in its own plane and of its taps, elements of other
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
    GROUP,
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
FEWEST_POSITIONS = 256
"""Below, a sample teaches nothing about predictions."""
ELEMENTS = 1 << 22
"""Channels times positions, in between."""
PARTS = 4
"""Of the sample, for cross-fitting: every so manieth image, or what there is of images in stretches."""
MOST_TAPS = 128
POINT_BYTES = 64 << 10
"""Of one tensor at one operating point, at most: weights, and what else there is."""
CANDIDATES = 3
"""Times the number of taps: elements whose correlation with what the own neighbours leave is largest."""
SELECTED_AT = 4096
"""Positions that taps are selected at."""
KEPT = 0.7
"""Share of the candidates that stays at each step of the selection."""
RIDGE = 0.03
"""Penalty over the mean variance of the neighbours. The rate hardly depends on it: choosing the better of two by
cross-fitting, for each quantizer, gained nothing."""
TABLES = 32
ACTIVITIES = 4
CLASSES = 8
"""Channels that are foretold with like errors share a class."""
SEEN = 64
"""Elements of the sample per context, at least: with fewer, contexts are put together."""
COARSE = 16
"""Cells, of equal shares, that channels are told apart by."""
MAX_CHANNELS = 1 << 13
"""What a profile can number."""
FEWEST_TAPS = 8
HALVING = 0.01
"""Share of the bits that half the taps may cost."""
CHANNELS_AT_ONCE = 64
SMALLEST = 1e-4
"""Variance, in levels, below which a channel is not worth a tap."""
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
        """(C, n): what is foretold."""
        values: NDArray[np.int8] = self.places[0]
        return values


def choose_taps(sample: Float32Array, quantizer: Quantizer) -> Taps | None:
    """The taps that foretell best what the own neighbours leave open, as many per channel as are worth their time.

    sample: (images, C, H, W) float32. quantizer: of middling rate; the taps serve others as well.
    None where there is nothing to predict from, features of a single group of channels, or too little to learn from.
    """
    images, channels, height, width = sample.shape
    most = min(MOST_TAPS, _room(channels))
    if not GROUP < channels <= MAX_CHANNELS or most < 1 or images * height * width < FEWEST_POSITIONS:
        return None
    data = Sampled.of(sample, quantizer)
    best = _select(data, most)
    bits = _estimate(data, best)[1]
    # Halved as long as that costs little: half the taps are half the time.
    while most > FEWEST_TAPS:
        most //= 2
        fewer = _select(data, most)
        found = _estimate(data, fewer)[1]
        if found > (1 + HALVING) * bits:
            break
        best, bits = fewer, min(bits, found)
    return best


def _room(channels: int) -> int:
    """How many taps per channel fit into POINT_BYTES, whatever the number of levels."""
    tables = CLASSES * CELLS * ACTIVITIES + 2 * TABLES * (MAX_PREDICTED_LEVELS + 1) + ACTIVITY_SUMS
    bias_and_class = 3
    return (POINT_BYTES - tables) // channels - bias_and_class - len(OWN)


def _select(data: Sampled, most: int) -> Taps:
    """The best `most` taps of each channel that has a choice. The last part of the positions has no say in it."""
    seen = np.flatnonzero(data.part < PARTS - 1)
    seen = seen[:: max(1, seen.size // SELECTED_AT)]
    data = data._replace(own=data.own[..., seen], places=data.places[..., seen], part=data.part[seen])
    found = _each(lambda job: _pruned(data, *job, most), _candidates(data, CANDIDATES * most))
    counts = np.array([chosen.size for chosen in found], np.uint8)
    return Taps(counts=counts.tobytes(), sources=np.concatenate(found).astype("<u2").tobytes())


def _each(call: Callable[[S], T], jobs: Iterable[S]) -> list[T]:
    """call(job) of each job in order, on all cores, each with a BLAS of one thread: its own threads wait for each other
    on matrices as small as these, and for long where another program wants a core."""
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(call, jobs))


def _candidates(data: Sampled, number: int) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Per channel: the sources (as the profile numbers them) that correlate most with what its own neighbours leave."""
    channels = data.values.shape[0]
    left = np.stack(_each(lambda c: _left_by_own(data, c), range(channels)))
    rows = [_standardised(place.astype(np.float32)) for place in data.places]
    for first in range(0, channels, CHANNELS_AT_ONCE):
        last = min(first + CHANNELS_AT_ONCE, channels)
        before = (last - 1) // GROUP * GROUP
        found = np.stack([np.abs(left[first:last] @ place[:before].T) for place in rows], axis=2)
        for c, strength in enumerate(found, start=first):
            flat = strength[: c // GROUP * GROUP].reshape(-1)
            top = np.argpartition(flat, -number)[-number:] if flat.size > number else np.arange(flat.size)
            top = top[flat[top] > 0]
            yield c, np.sort(top // len(PLACES) * 8 + top % len(PLACES))


def _left_by_own(data: Sampled, c: int) -> Float32Array:
    """(n,) what the own neighbours of channel c do not foretell, standardised; 0 for a channel that hardly changes."""
    y = data.values[c].astype(np.float32)
    if y.var() < SMALLEST:
        return np.zeros_like(y)
    own = data.own[:, c].astype(np.float32)
    own -= own.mean(axis=1, keepdims=True)
    y -= y.mean()
    weights = np.linalg.solve(own @ own.T + RIDGE * y.size * np.eye(len(own)), own @ y)
    rest: Float32Array = _standardised((y - weights @ own).astype(np.float32)[None])[0]
    return rest


def _standardised(rows: Float32Array) -> Float32Array:
    """Mean 0 and length 1; rows that hardly change are 0."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    return np.where(length > np.sqrt(SMALLEST * rows.shape[1]), rows / np.maximum(length, 1e-6), 0).astype(np.float32)


def _pruned(data: Sampled, c: int, candidates: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """The candidates that matter most beside each other: those of small weight leave, step by step."""
    if candidates.size <= most:
        return candidates
    y = data.values[c].astype(np.float32)
    y -= y.mean()
    rows = np.concatenate([data.own[:, c], data.places[candidates & 7, candidates >> 3]]).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    gram, moment, spread = rows @ rows.T, rows @ y, rows.std(axis=1)
    penalty = y.size * RIDGE * float((spread**2).mean()) + 1e-3
    kept = np.arange(len(rows))
    while kept.size > most + len(OWN):
        weights = np.linalg.solve(gram[np.ix_(kept, kept)] + penalty * np.eye(kept.size), moment[kept])
        strength = np.abs(weights) * spread[kept]
        strength[: len(OWN)] = np.inf
        stay = max(most + len(OWN), int(KEPT * kept.size))
        kept = np.sort(kept[np.argsort(-strength, kind="stable")[:stay]])
    return candidates[kept[len(OWN) :] - len(OWN)]


def estimate_prediction(
    sample: Float32Array, quantizer: Quantizer, taps: Taps
) -> tuple[PredictionTables, float] | None:
    """Weights and tables for features like `sample`, (images, C, H, W), and the ideal code length on the last
    part of them, as said above, bits per element. None for a quantizer of more levels than the coder takes."""
    if len(quantizer.levels) > MAX_PREDICTED_LEVELS:
        return None
    return _estimate(Sampled.of(sample, quantizer), taps)


def _estimate(data: Sampled, taps: Taps) -> tuple[PredictionTables, float]:
    fitted = _fit(data, taps)
    largest = max(data.rest, data.levels - 1 - data.rest)
    scale, weights, bias = _integers(fitted, taps, largest)
    cells, offset, shift = _cells(fitted.foretold * scale)
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
    """weights: one float32 row per channel, (4 + taps) of them, then a bias. foretold: (C, n) float32, cross-fitted."""

    weights: list[Float32Array]
    foretold: Float32Array


def _fit(data: Sampled, taps: Taps) -> Fitted:
    """Ridge regression of each channel on its own neighbours and its taps."""
    counts, channel, place = taps.arrays()
    starts = np.concatenate([[0], np.cumsum(counts)])
    channels, n = data.values.shape
    parts = [slice(a, b) for a, b in pairwise(np.searchsorted(data.part, np.arange(PARTS + 1)).tolist())]
    foretold = np.empty((channels, n), np.float32)

    def fit(batch: NDArray[np.intp]) -> Float32Array:
        """(B, m) weights; puts what those of the other parts foretell in its place."""
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
            foretold[batch, p] = (solved[:, None] @ rows[:, :, p])[:, 0]
        return _solve(grams.sum(0), moments.sum(0), n)

    batches = list(_batches(counts, n))
    weights = [np.empty(0, np.float32)] * channels
    for batch, own in zip(batches, _each(fit, batches), strict=True):
        for c, w in zip(batch, own, strict=True):
            weights[c] = w
    return Fitted(weights, foretold)


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
