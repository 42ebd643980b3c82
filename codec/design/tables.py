"""Static tables of the context rANS coder, estimated from a sample of calibration features.

A context is (channel, activity of the block above, activity of the block to the left). There are too many contexts for
one table each, so similar contexts share one of T tables. The clustering is a Lloyd iteration on the ideal code length,
which is k-means under the Kullback–Leibler divergence. The average of its activity pair over all channels is the prior
of a context, so that a rare context gets a plausible table as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.entropy.rans import neighbour_context
from splitwire.codec.kernels import statistics as kernels
from splitwire.codec.profile import Quantizer
from splitwire.codec.quantizer import BlockPacker, quantize
from splitwire.codec.tables import TABLE_SIZE, ContextTables

TABLES = 16
"""Tables per tensor and operating point: 16 × 4096 decoding slots stay in a 256 KB cache; 32 save 0.4 % of the rate
and cost 15 % of the decoding speed (measured on two expanded ReLU6 tensors of MobileNetV2, N = 4)."""
ACTIVITIES = 6
PRIOR = 24.0
"""Weight, in symbols, of the activity pair's average when a context is put into a cluster."""
ESCAPE_BELOW = 0.4 / TABLE_SIZE
"""A symbol rarer than this is cheaper as an escape than as a frequency of 1."""
ITERATIONS = 12
LEARNED_GAIN = 0.003
"""The least share of the bits that learned classes must save on the sample; less may be a loss on other features."""
BLOCK_TOLERANCE = 0.01
"""A shape with fewer blocks codes faster; its rate may be this share above that of the best shape."""

Counts = NDArray[np.float32]


def candidate_blocks(levels: int, height: int, width: int) -> Sequence[tuple[int, int]]:
    """Block shapes to try, of at most 256 symbols: fewest blocks per plane first, none with twice the fewest."""
    shapes = [
        (h, w)
        for h in range(1, min(height, 4) + 1)
        for w in (1, 2, 3, 4, 5, 8)
        if levels ** (h * w) <= 256 and w <= max(width, 1)
    ]
    blocks = {(h, w): -(-height // h) * -(-width // w) for h, w in shapes}
    fewest = min(blocks.values())
    shapes = [s for s in shapes if blocks[s] < 2 * fewest]
    # With equally many blocks, prefer the shape nearest to a square: its elements are more correlated.
    return sorted(shapes, key=lambda s: (blocks[s], s[0] * s[1], abs(s[0] - s[1])))


def estimate_tables(sample: NDArray[np.float32], quantizer: Quantizer) -> tuple[ContextTables, float]:
    """The tables for features like `sample`, (n, C, H, W) float32, and their ideal code length, bits per element.

    Each candidate block shape is tried on a part of the sample. The tables of the chosen shape are estimated on all.
    """
    q = quantize(sample, quantizer)
    levels = len(quantizer.levels)
    n, channels, height, width = q.shape
    part = q[: max(1, min(n, (1 << 21) // (channels * height * width)))]
    blocks = candidate_blocks(levels, height, width)
    costs = [_estimate(part, quantizer, block, tables=4, iterations=3)[1] for block in blocks]
    # Fewer blocks code faster: take the first shape whose rate is within the tolerance of the best.
    block = next(b for b, cost in zip(blocks, costs, strict=True) if cost <= (1 + BLOCK_TOLERANCE) * min(costs))
    plain, learned = (
        _estimate(q, quantizer, block, tables=TABLES, iterations=ITERATIONS, learned=how) for how in (False, True)
    )
    return learned if learned[1] < (1 - LEARNED_GAIN) * plain[1] else plain


def _estimate(
    q: NDArray[np.uint8],
    quantizer: Quantizer,
    block: tuple[int, int],
    tables: int,
    iterations: int,
    learned: bool = False,
) -> tuple[ContextTables, float]:
    levels = len(quantizer.levels)
    _, channels, height, width = q.shape
    padding = int(np.bincount(q.reshape(-1), minlength=levels).argmax())
    packer = BlockPacker(quantizer, block, padding, height, width)
    symbols = packer.pack(q)
    k = levels ** (block[0] * block[1])
    if learned:
        grid = symbols.reshape(-1, packer.rows, packer.cols)
        left = _learned_activities(grid[:, :, :-1], grid[:, :, 1:], k)
        top = _learned_activities(grid[:, :-1], grid[:, 1:], k)
    else:
        weights = np.bincount(symbols, minlength=k).astype(np.float64)
        left, top = (_activities(levels, block, padding, weights, axis) for axis in (1, 0))
    side = ACTIVITIES + 1
    counts = np.zeros((channels * side * side, k), np.int64)
    contexts = np.resize(np.arange(channels, dtype=np.uint64) * np.uint64(side * side), q.shape[0] * channels)
    kernels.count_contexts(
        symbols, packer.rows, packer.cols, contexts,
        neighbour_context(top, outside=ACTIVITIES, scale=side), neighbour_context(left, outside=ACTIVITIES, scale=1),
        counts,
    )  # fmt: skip
    label, frequencies = cluster(counts.astype(np.float32), side * side, tables, iterations)
    bits = float((counts * code_lengths(frequencies)[label]).sum() / q.size)
    return ContextTables(
        block=block, padding=padding, activities=ACTIVITIES, left_activity=left, top_activity=top,
        context_map=label.astype(np.uint8).tobytes(), frequencies=frequencies.astype("<u2").tobytes(),
    ), bits  # fmt: skip


def _activities(levels: int, block: tuple[int, int], padding: int, weights: NDArray[np.float64], axis: int) -> bytes:
    """Activity class of each symbol, as its right-hand (axis 1) or lower (axis 0) neighbour sees it.

    The magnitude of a block is the sum of its elements' distances from the padding level; the elements next to the
    neighbour count three times. Class 0 has magnitude 0. The other classes split the remaining blocks equally.
    """
    h, w = block
    k = levels ** (h * w)
    digits = np.arange(k)[:, None] // levels ** np.arange(h * w) % levels
    size = np.abs(digits - padding).reshape(k, h, w)
    near = size[:, :, -1] if axis == 1 else size[:, -1, :]
    magnitude = size.sum(axis=(1, 2)) + 2 * near.sum(axis=1)
    share = np.bincount(magnitude, weights=weights)
    share[0] = 0
    middle = (np.cumsum(share) - share / 2) / max(share.sum(), 1.0)
    klass = 1 + np.minimum((middle * (ACTIVITIES - 1)).astype(int), ACTIVITIES - 2)
    klass[0] = 0
    return bytes(klass[magnitude].astype(np.uint8))


def _learned_activities(neighbours: NDArray[np.uint8], blocks: NDArray[np.uint8], k: int) -> bytes:
    """Activity class of each symbol, learned: symbols with similar distributions of successors share a class.

    neighbours, blocks: equal shapes, the symbols of neighbours and of the blocks that see them. Learned classes save
    3 % where the sign or the direction of a block predicts more than its magnitude, and nothing on features that are
    mostly zero.
    """
    pairs = neighbours.astype(np.intp).reshape(-1) * k + blocks.reshape(-1)
    if not pairs.size:
        return bytes(k)
    counts = np.bincount(pairs, minlength=k * k).reshape(k, k).astype(np.float32)
    return cluster(counts, 1, ACTIVITIES, ITERATIONS)[0].astype(np.uint8).tobytes()


def cluster(counts: Counts, pairs: int, tables: int, iterations: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Cluster contexts: the table index of each, and the (T, K+1) frequencies. counts: (C·pairs, K) float32."""
    by_pair = counts.reshape(-1, pairs, counts.shape[1]).sum(axis=0, dtype=np.float64)
    by_pair += 1e-3 * by_pair.sum(axis=0) / by_pair.sum() + 1e-9
    prior = (by_pair / by_pair.sum(axis=1, keepdims=True)).astype(np.float32)
    seen = np.flatnonzero(counts.any(axis=1))
    used = counts[seen]
    weight = used.sum(axis=1)
    # Start from equal shares of the cost, ordered by bits per symbol.
    smooth = (used + PRIOR * prior[seen % pairs]) / (weight + PRIOR)[:, None]
    entropy = -(smooth * np.log2(np.maximum(smooth, 1e-12))).sum(axis=1)
    order = np.argsort(entropy, kind="stable")
    cost = np.cumsum((entropy * weight)[order], dtype=np.float64)
    label = np.empty(seen.size, np.intp)
    label[order] = np.minimum((cost / max(cost[-1], 1e-9) * tables).astype(np.intp), tables - 1)
    lean = np.zeros((pairs, tables), np.float32)
    for _ in range(iterations):
        lengths = code_lengths(_frequencies(_totals(used, label, tables))).astype(np.float32)
        lean = PRIOR * (prior @ lengths.T)
        new = (used @ lengths.T + lean[seen % pairs]).argmin(axis=1)
        if (new == label).all():
            break
        label = new
    # A context without counts has only the average of its activity pair.
    full = np.tile(lean.argmin(axis=1), counts.shape[0] // pairs)
    full[seen] = label
    kept, full = np.unique(full, return_inverse=True)
    totals = _totals(used, label, tables) + 1e-3 * _totals(prior, lean.argmin(axis=1), tables)
    return full, _frequencies(totals[kept])


def _totals(counts: Counts, label: NDArray[np.intp], tables: int) -> NDArray[np.float64]:
    """(T, K): the counts of each cluster."""
    out = np.zeros((tables, counts.shape[1]))
    order = np.argsort(label, kind="stable")
    present, starts = np.unique(label[order], return_index=True)
    out[present] = np.add.reduceat(counts[order], starts, axis=0, dtype=np.float64)
    return out


def _frequencies(totals: NDArray[np.float64]) -> NDArray[np.int64]:
    """(T, K+1) integer frequencies of (T, K) counts; each row sums to 4096 exactly, the escape last and ≥ 1."""
    k = totals.shape[1]
    out = np.zeros((totals.shape[0], k + 1), np.int64)
    for row, count in zip(out, totals, strict=True):
        p = (count + 1e-12) / (count + 1e-12).sum()
        kept = p >= ESCAPE_BELOW
        row[:k][kept] = np.maximum(1, np.round(p[kept] * TABLE_SIZE)).astype(np.int64)
        # half a count for the symbols that the sample does not hold
        escape = round((float(p[~kept].sum()) + 0.5 / max(float(count.sum()), 1.0)) * TABLE_SIZE)
        row[k] = min(max(1, escape), TABLE_SIZE // 2)
        # Subtract the rounding error from the largest entries, where it costs the fewest bits.
        excess = int(row.sum()) - TABLE_SIZE
        while excess:
            i = int(row[:k].argmax())
            step = min(excess, int(row[i]) // 2) if excess > 0 else excess
            row[i] -= step
            excess -= step
    return out


def code_lengths(frequencies: NDArray[np.int64]) -> NDArray[np.float64]:
    """(T, K) bits per symbol: −log2(f/4096); an escaped symbol costs its escape and 8 bits."""
    f = frequencies[:, :-1]
    escaped = 8 - np.log2(frequencies[:, -1:] / TABLE_SIZE)
    return np.where(f > 0, -np.log2(np.maximum(f, 1) / TABLE_SIZE), escaped)
