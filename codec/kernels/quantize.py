"""Clip + quantize, pack to block symbols, and back. Decisions are float32 comparisons: no rounding, no casts."""

from __future__ import annotations

import numpy as np

from .policy import kernel

INF = np.float32(np.inf)


@kernel
def quantize(x, thresholds, out):
    """out[i] = number of thresholds ≤ x[i]; returns how many elements are NaN or ±Inf.

    x: (n,) float32. thresholds: (N − 1,) float32, non-decreasing. out: (n,) uint8.
    """
    # Stretches that stay in the first-level cache while the thresholds pass over them one by one; each pass is a plain
    # compare-and-add, which every compiler turns into SIMD.
    stretch = 4096
    bad = 0
    for start in range(0, x.size, stretch):
        xs = x[start : start + stretch]
        qs = out[start : start + stretch]
        if thresholds.size == 3:
            t0, t1, t2 = thresholds[0], thresholds[1], thresholds[2]
            for i in range(xs.size):
                v = xs[i]
                qs[i] = np.uint8(v >= t0) + np.uint8(v >= t1) + np.uint8(v >= t2)
        else:
            t = thresholds[0]
            for i in range(xs.size):
                qs[i] = np.uint8(xs[i] >= t)
            for k in range(1, thresholds.size):
                t = thresholds[k]
                for i in range(xs.size):
                    qs[i] += np.uint8(xs[i] >= t)
        for i in range(xs.size):
            bad += not (abs(xs[i]) < INF)
    return bad


@kernel
def copy_planes(src, src_height, src_width, dst, dst_height, dst_width):
    """Copy the common top-left part of every (height, width) plane; used to pad planes to whole blocks and to crop."""
    height = min(src_height, dst_height)
    width = min(src_width, dst_width)
    for p in range(src.size // (src_height * src_width)):
        for y in range(height):
            a = (p * src_height + y) * src_width
            b = (p * dst_height + y) * dst_width
            for x in range(width):
                dst[b + x] = src[a + x]


@kernel
def pack(q, cols, levels, block_height, block_width, row, out):
    """Block symbols s = Σ q_k·N^k, k in raster order inside the block, of planes that are whole blocks.

    q: (rows·bh·cols·bw,) uint8, level indices. row: scratch, (q.size // bw,) uint8. out: (rows·cols,) uint8.
    Sums stay below 256, so the arithmetic modulo 256 of uint8 is exact; weights are reduced before they are cast.
    """
    # First along the rows, then down the columns, each in long passes. The strides are spelled out because only
    # constant ones vectorise; 5 is the widest odd block that 256 symbols allow (3^5).
    n = np.uint8(levels & 255)
    n2 = np.uint8((levels * levels) & 255)
    n3 = np.uint8((levels * levels * levels) & 255)
    if block_width == 1:
        row[:] = q
    elif block_width == 2:
        for i in range(row.size):
            row[i] = q[2 * i] + q[2 * i + 1] * n
    elif block_width == 3:
        for i in range(row.size):
            row[i] = q[3 * i] + q[3 * i + 1] * n + q[3 * i + 2] * n2
    elif block_width == 4:
        for i in range(row.size):
            row[i] = q[4 * i] + q[4 * i + 1] * n + q[4 * i + 2] * n2 + q[4 * i + 3] * n3
    else:
        for i in range(row.size):
            s = np.uint8(0)
            for k in range(block_width - 1, -1, -1):
                s = np.uint8(s * n + q[i * block_width + k])
            row[i] = s
    if block_height == 1:
        out[:] = row
        return
    weight = 1
    for _ in range(block_width):
        weight = (weight * levels) & 255
    for r in range(out.size // cols):
        a = r * block_height * cols
        b = r * cols
        for c in range(cols):
            out[b + c] = row[a + c] + row[a + cols + c] * np.uint8(weight)
        w = (weight * weight) & 255
        for _ in range(2, block_height):
            w8 = np.uint8(w)
            for c in range(cols):
                out[b + c] += row[a + 2 * cols + c] * w8
            a += cols
            w = (w * weight) & 255


@kernel
def unpack(symbols, cols, block_height, units, values, out):
    """Block symbols → reconstruction values, for planes that are whole blocks.

    A block row is moved as `units` machine words: uint64 (two float32) where the block width is even, else uint32.
    symbols: (rows·cols,) uint8. values: (K·bh·units,) words. out: (rows·bh·cols·units,) words.
    """
    size = np.uint64(block_height * units)
    if block_height == 1:
        cols = symbols.size  # rows of one block each follow each other without a gap: one long row
    one, two = np.uint64(1), np.uint64(2)
    if block_height == 2 and units == 1:  # 2×2, the usual block of 4 levels: both rows in one pass
        for r in range(symbols.size // cols):
            a = 2 * r * cols
            for c in range(cols):
                v = np.uint64(symbols[r * cols + c]) << one
                out[a + c] = values[v]
                out[a + cols + c] = values[v | one]
        return
    for r in range(symbols.size // cols):
        b = r * cols
        for dy in range(block_height):
            a = (r * block_height + dy) * cols * units
            first = np.uint64(dy * units)
            if units == 1:
                for c in range(cols):
                    out[a + c] = values[np.uint64(symbols[b + c]) * size + first]
            elif units == 2:
                for c in range(cols):
                    v = np.uint64(symbols[b + c]) * size + first
                    out[a + 2 * c] = values[v]
                    out[a + 2 * c + 1] = values[v + one]
            elif units == 3:
                for c in range(cols):
                    v = np.uint64(symbols[b + c]) * size + first
                    out[a + 3 * c] = values[v]
                    out[a + 3 * c + 1] = values[v + one]
                    out[a + 3 * c + 2] = values[v + two]
            else:
                for c in range(cols):
                    v = np.uint64(symbols[b + c]) * size + first
                    for u in range(units):
                        out[a + c * units + u] = values[v + np.uint64(u)]
