"""Classes and tables of transform coefficients, counted on quantized calibration coefficients (coder ids 5, 6).

A coefficient's class is its mean magnitude in quarters of an octave. Class minus step index is then its mean magnitude
in steps, which decides its distribution: all coefficients and steps with the same difference share a table. So a few
dozen tables serve every coefficient at every step, also at those that were not counted.

A table's counts are smoothed by those of its neighbours, and these by a Laplace density, so that every value has a
length and steps beyond the ladder are coded well enough. Distributions are symmetric: q and −q have equal frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.kernels.transform import GROUP
from splitwire.codec.tables import TABLE_BITS, TABLE_SIZE
from splitwire.codec.transform import (
    CLASSES,
    DEAD_ZONE,
    NOT_SENT,
    QUARTERS,
    STEPS,
    SYMBOLS,
    TERSE,
    UNIT_STEP,
    Transform,
    coding_order,
)

Quantized = NDArray[np.integer[Any]]

BEYOND = 8
"""Tables for steps up to two octaves beyond the ladder."""
LOWEST, HIGHEST = -40, 23
"""Class minus step index of the tables that there may be: mean magnitudes from 2^-10 to 2^6 steps. Below, nearly all is
zero, and above, nearly all escapes."""
FROM_NEIGHBOURS = 24.0
"""Weight of the neighbouring tables' distribution, in symbols."""
FROM_DENSITY = 8.0
"""Weight of the Laplace density, in symbols."""
REACH = 1.5
"""How far neighbouring tables count: standard deviation, in tables."""
ESCAPE_BELOW = 0.4 / TABLE_SIZE
"""A value rarer than this is cheaper as an escape than as a frequency of 1."""
ESCAPE_BITS = 16.0
LARGEST = (SYMBOLS - 2) // 2
"""Largest magnitude that has a symbol."""


def design_transform_tables(
    magnitudes: NDArray[np.floating[Any]],
    quantized: Mapping[int, Quantized],
    *,
    features: str,
    feature_shape: tuple[int, ...],
    dead_zone: float = DEAD_ZONE,
    outward: tuple[float, float] = (0.0, 0.0),
) -> Transform:
    """Choose the classes and the tables of N coefficients.

    magnitudes: (N,) float, the mean |y| of each coefficient over images and tiles, in units of step 1.
    quantized: step index (0 to 127, of the ladder) → (images, tiles, N) integers, q of the calibration coefficients at
    that step, in the order of `magnitudes`. The images may be the same at every step.
    The other arguments are copied to the Transform; `outward` is rounded to float32.
    Coefficients that are zero in all of `quantized` are not sent, but one is always.
    Raises ValueError if shapes, step indices or magnitudes are invalid.
    """
    means = np.asarray(magnitudes, np.float64)
    _check(means, quantized)
    shifts = (float(np.float32(outward[0])), float(np.float32(outward[1])))
    alive = np.any([(q != 0).any(axis=(0, 1)) for q in quantized.values()], axis=0)
    if not alive.any():
        alive[means.argmax()] = True
    with np.errstate(divide="ignore"):
        classes = np.clip(np.round(QUARTERS * np.log2(means)) + UNIT_STEP, 0, CLASSES - 1).astype(np.int64)
    classes[~alive] = NOT_SENT
    whole = classes.astype(np.uint8).tobytes()
    order = coding_order(whole)
    classes = classes[order]
    differences = [classes[0] - min(quantized), classes[-1] - max(quantized)]
    low = int(np.clip(min(differences) - BEYOND, LOWEST, HIGHEST))
    high = int(np.clip(max(differences) + BEYOND, low, HIGHEST))
    tables = high - low + 1
    symbols, groups = np.zeros((tables, SYMBOLS)), np.zeros((tables, 2))
    for step, q in quantized.items():
        of = np.clip(classes - step - low, 0, tables - 1)
        _count(q[:, :, order], of, symbols, groups)
    ratios = np.exp2(np.arange(low, high + 1) / QUARTERS)
    frequencies = np.array([_frequencies(p) for p in _smooth(_symmetric(symbols), _density(ratios, dead_zone))])
    zero = _smooth(groups, _zero_groups(ratios, dead_zone))[:, 0]
    zero_groups = np.clip(np.round(zero * TABLE_SIZE), 1, TABLE_SIZE - 1)
    return Transform(
        features=features, feature_shape=feature_shape, classes=whole,
        frequencies=frequencies.astype("<u2").tobytes(), zero_groups=zero_groups.astype("<u2").tobytes(),
        first=low, dead_zone=dead_zone, outward=shifts, coder=TERSE,
    )  # fmt: skip


def ideal_bits(transform: Transform, quantized: Quantized, step: int) -> NDArray[np.float64]:
    """(images,) ideal code length in bits: real payloads have about 2 bits more, large ones up to 16 bytes (lanes).

    quantized: (images, tiles, N) integers at this step index.
    """
    quantized = quantized[:, :, transform.order()]
    of = transform.tables_at(step)
    frequencies, zero = transform.frequency_rows(), transform.zero_frequencies().astype(np.float64)
    lengths = TABLE_BITS - np.log2(np.maximum(frequencies, 1))
    lengths[frequencies == 0] = np.inf
    escape = lengths[:, -1:] + ESCAPE_BITS
    lengths = np.concatenate([np.minimum(lengths[:, :-1], escape), escape], axis=1)
    hit = _groups(quantized)
    flags = TABLE_BITS - np.log2(np.stack([zero, TABLE_SIZE - zero], axis=1))
    bits = flags[of[::GROUP], hit.astype(np.intp)]
    coded = np.repeat(hit, GROUP, axis=2)[:, :, : quantized.shape[2]]
    symbols = np.where(coded, lengths[of, _zigzag(quantized)], 0.0)
    total: NDArray[np.float64] = bits.sum(axis=(1, 2)) + symbols.sum(axis=(1, 2))
    return total


def _check(means: NDArray[np.float64], quantized: Mapping[int, Quantized]) -> None:
    """Raise ValueError unless the arguments of `design_transform_tables` go together."""
    if means.ndim != 1 or not means.size or not (np.isfinite(means) & (means >= 0)).all():
        raise ValueError("magnitudes must be (K,), finite and not negative")
    if not quantized or not all(0 <= step < STEPS for step in quantized):
        raise ValueError(f"quantized needs step indices of 0..{STEPS - 1}, has {sorted(quantized)}")
    for step, q in quantized.items():
        if q.ndim != 3 or not q.size or q.shape[2] != means.size or not np.issubdtype(q.dtype, np.integer):
            raise ValueError(f"coefficients at step {step} must be integers (images, tiles, {means.size}): {q.shape}")


def _zigzag(q: Quantized) -> NDArray[np.intp]:
    """The symbol of each value, the escape's for those that have none."""
    wide = q.astype(np.intp)
    symbols: NDArray[np.intp] = np.minimum(2 * np.abs(wide) - (wide > 0), SYMBOLS - 1)
    return symbols


def _groups(q: Quantized) -> NDArray[np.bool_]:
    """(images, tiles, ⌈K/16⌉): whether a group has a value other than zero."""
    padded = np.pad(q != 0, ((0, 0), (0, 0), (0, -q.shape[2] % GROUP)))
    found: NDArray[np.bool_] = np.logical_or.reduce(padded.reshape(*q.shape[:2], -1, GROUP), axis=3)
    return found


def _count(q: Quantized, of: NDArray[np.int64], symbols: NDArray[np.float64], groups: NDArray[np.float64]) -> None:
    """Add the symbols of the groups that are not all zero to (T, 32), and the groups, zero or not, to (T, 2).

    of: (K,) the table of each coefficient.
    """
    hit = _groups(q)
    per_group = hit.reshape(-1, hit.shape[2]).sum(axis=0)
    np.add.at(groups, of[::GROUP], np.stack([hit.shape[0] * hit.shape[1] - per_group, per_group], axis=1))
    image, tile, coefficient = np.nonzero(q)
    zigzag = _zigzag(q[image, tile, coefficient])
    np.add.at(symbols, (of[coefficient], zigzag), 1.0)
    # zeros: the coefficients of the groups that are not all zero, less the others
    members = np.repeat(per_group, GROUP)[: q.shape[2]] - np.bincount(coefficient, minlength=q.shape[2])
    np.add.at(symbols[:, 0], of, members)


def _symmetric(symbols: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each magnitude's counts, shared equally by its two signs."""
    out = symbols.copy()
    out[:, 1:-1:2] = out[:, 2:-1:2] = (symbols[:, 1:-1:2] + symbols[:, 2:-1:2]) / 2
    return out


def _smooth(counts: NDArray[np.float64], density: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T, n) distributions: a table's counts, and with small weights its neighbours' and a density."""
    distance = np.arange(len(counts))
    weights = np.exp(-0.5 * ((distance[:, None] - distance) / REACH) ** 2)
    near = weights @ counts
    # The neighbours' share grows with what they have seen, so that unseen tables far from all others keep the density.
    near = near * np.minimum(1.0, FROM_NEIGHBOURS / np.maximum(near.sum(axis=1, keepdims=True), 1e-9))
    total = counts + near + FROM_DENSITY * density
    smoothed: NDArray[np.float64] = total / total.sum(axis=1, keepdims=True)
    return smoothed


def _tails(ratios: NDArray[np.float64], dead_zone: float) -> NDArray[np.float64]:
    """(T, LARGEST + 1): P(|q| ≥ m), m from 1, of a Laplace density with this mean magnitude in steps."""
    return np.exp(-(np.arange(1, LARGEST + 2) - dead_zone) / ratios[:, None])


def _density(ratios: NDArray[np.float64], dead_zone: float) -> NDArray[np.float64]:
    """(T, 32) distribution of a Laplace density's symbols in groups that are not all zero."""
    tails = _tails(ratios, dead_zone)
    out = np.zeros((ratios.size, SYMBOLS))
    out[:, 1:-1:2] = out[:, 2:-1:2] = -np.diff(tails, axis=1) / 2
    out[:, -1] = tails[:, -1]
    found = -np.expm1(GROUP * np.log1p(-np.minimum(tails[:, :1], 1 - 1e-9)))  # that a group is not all zero
    out /= np.maximum(found, 1e-300)
    out[:, 0] = np.maximum(1 - out[:, 1:].sum(axis=1), 1e-9)
    return out


def _zero_groups(ratios: NDArray[np.float64], dead_zone: float) -> NDArray[np.float64]:
    """(T, 2) share of groups that are all zero, and that are not, if all coefficients of a group are alike."""
    zero = (1 - np.minimum(_tails(ratios, dead_zone)[:, 0], 1 - 1e-9)) ** GROUP
    return np.stack([zero, 1 - zero], axis=1)


def _frequencies(p: NDArray[np.float64]) -> NDArray[np.int64]:
    """(32,) frequencies that sum to 4096, equal for both signs, 0 for what is rare. p: a distribution, symmetric."""
    kept = np.append(p[:-1] >= ESCAPE_BELOW, False)
    out = np.where(kept, np.maximum(1, np.round(p * TABLE_SIZE)), 0).astype(np.int64)
    out[-1] = max(1, round(float(p[~kept].sum()) * TABLE_SIZE))
    # The rounding error goes to the largest entry, where it costs the fewest bits.
    excess = int(out.sum()) - TABLE_SIZE
    largest = int(out.argmax())
    if largest in (0, SYMBOLS - 1):
        out[largest] -= excess
    else:
        half = -(-excess // 2)
        out[[largest, largest + 1]] -= half  # of two equal ones, argmax is the first
        out[0] += 2 * half - excess
    if out[-1] == TABLE_SIZE:  # no entry may be all there is
        out[[0, -1]] = 1, TABLE_SIZE - 1
    return out
