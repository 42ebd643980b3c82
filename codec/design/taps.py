"""Choice of taps: the elements of other channels from which the predictive coder predicts a channel.

The candidates are the elements with the largest correlation with the residual of the neighbours' prediction. A common
ridge regression drops those with small weights, step by step. The number of taps is halved while that costs few bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.profile import Quantizer
from splitwire.codec.tables import ACTIVITY_SUMS, CELLS, GROUP, MAX_PREDICTED_LEVELS, OWN, PLACES, Taps

from .prediction import ACTIVITIES, CLASSES, PARTS, RIDGE, TABLES, Float32Array, Sampled, estimate, on_all_cores

MOST_TAPS = 128
POINT_BYTES = 64 << 10
"""Most bytes of one tensor's tables and weights at one operating point."""
CANDIDATES = 3
"""Number of candidates per tap."""
SELECTED_AT = 4096
"""Number of positions of the sample that the selection uses."""
KEPT = 0.7
"""Share of the candidates that remains after each step of the selection."""
MAX_CHANNELS = 1 << 13
"""Most channels that the source numbers of a profile can address."""
FEWEST_TAPS = 8
HALVING = 0.01
"""Halving the taps may increase the bits by this share."""
CHANNELS_AT_ONCE = 64
SMALLEST = 1e-4
"""Variance, in levels, below which a channel is not worth a tap."""
FEWEST_POSITIONS = 256
"""A sample with fewer positions is too small to fit predictions."""


def choose_taps(sample: Float32Array, quantizer: Quantizer) -> Taps | None:
    """The taps that predict best what the own neighbours leave open, as many per channel as are worth their time.

    sample: (images, C, H, W) float32. quantizer: of middling rate; the taps serve others as well.
    None where there is nothing to predict from, features of a single group of channels, or too little to learn from.
    """
    images, channels, height, width = sample.shape
    most = min(MOST_TAPS, _room(channels))
    if not GROUP < channels <= MAX_CHANNELS or most < 1 or images * height * width < FEWEST_POSITIONS:
        return None
    data = Sampled.of(sample, quantizer)
    best = _select(data, most)
    bits = estimate(data, best)[1]
    # Halved as long as that costs little: half the taps are half the time.
    while most > FEWEST_TAPS:
        most //= 2
        fewer = _select(data, most)
        found = estimate(data, fewer)[1]
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
    found = on_all_cores(lambda job: _pruned(data, *job, most), _candidates(data, CANDIDATES * most))
    counts = np.array([chosen.size for chosen in found], np.uint8)
    return Taps(counts=counts.tobytes(), sources=np.concatenate(found).astype("<u2").tobytes())


def _candidates(data: Sampled, number: int) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Per channel: the sources (as the profile numbers them) that correlate most with what its own neighbours leave."""
    channels = data.values.shape[0]
    left = np.stack(on_all_cores(lambda c: _left_by_own(data, c), range(channels)))
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
    """(n,) what the own neighbours of channel c do not predict, standardised; 0 for a channel that hardly changes."""
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
