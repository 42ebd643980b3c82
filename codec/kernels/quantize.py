"""Quantize and pack features to block symbols, and back. Decisions are float32 comparisons: no rounding, no casts."""

from __future__ import annotations

import numpy as np

from .compilation.policy import kernel

INF = np.float32(np.inf)
HALF = np.uint64(32)
LOW_HALF = np.uint64(0xFFFFFFFF)


@kernel
def quantize(x, thresholds, out):
    """out[i] = number of thresholds ≤ x[i]; returns how many elements are NaN or ±Inf.

    x: (n,) float32. thresholds: (N − 1,) float32, non-decreasing. out: (n,) uint8.
    """
    # One pass per threshold over a stretch that stays in the first-level cache. Each pass is a plain compare-and-add,
    # which every compiler turns into SIMD.
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
            for k in range(1, thresholds.size - 1, 2):
                t0, t1 = thresholds[k], thresholds[k + 1]
                for i in range(xs.size):
                    v = xs[i]
                    qs[i] += np.uint8(v >= t0) + np.uint8(v >= t1)
            if thresholds.size % 2 == 0:
                t = thresholds[thresholds.size - 1]
                for i in range(xs.size):
                    qs[i] += np.uint8(xs[i] >= t)
        for i in range(xs.size):
            bad += not (abs(xs[i]) < INF)
    return bad


@kernel
def apportion(x, size, low, least, most, scale, levels, steps, remainders, out):
    """Mean-preserving quantization: in every plane of `size` elements, the level indices sum to the sum of the features
    in steps, rounded.

    Every element first gets the level below it. Then the elements with the largest remainders, to 1/64 of a step, get
    the level above, as many as the sum needs; of equal ones, the first. Elements count as clipped to [least, most].
    x: (P·size,) float32. low: the lowest of the levels. least, most: a step below it, and one above the highest. scale:
    2^16 / step. These four are float32. steps: scratch, (whole planes,) int32. remainders: scratch, as many uint8.
    The float operations are a difference, then a product; no sum follows that the product could be fused with.
    """
    bad = 0
    top = np.int32((levels - 1) << 16)
    last = np.int32(levels - 2)
    for start in range(0, x.size, steps.size):
        xs = x[start : start + steps.size]
        qs = out[start : start + steps.size]
        for i in range(xs.size):
            v = xs[i]
            finite = abs(v) < INF
            bad += not finite
            steps[i] = np.int32((min(max(v if finite else low, least), most) - low) * scale)
        for i in range(xs.size):
            # Each value is cast: otherwise numba makes them 64 bits wide, and half as many fit into a SIMD register.
            inside = min(max(steps[i], np.int32(0)), top)
            k = min(np.int32(inside >> np.int32(16)), last)
            below = np.int32(k << np.int32(16))
            steps[i] = np.int32(steps[i] - below)
            remainders[i] = np.uint8(min(np.int32(np.int32(inside - below) >> np.int32(10)), np.int32(63)))
            qs[i] = np.uint8(k)
        for a in range(0, xs.size, size):
            own = steps[a : a + size]
            rest = 0
            for i in range(size):
                rest += np.int64(own[i])
            up = min((rest + 32768) >> 16, size)
            if up > 0:
                raise_largest(remainders[a : a + size], up, qs[a : a + size])
    return bad


@kernel
def raise_largest(remainders, up, q):
    """q[i] += 1 at the `up` largest of the remainders, 0 … 63; of equal ones at the first."""
    # Find the largest value that `up` of them reach, bit by bit. Counting is SIMD; a histogram would wait for memory.
    value, above, bit = 0, 0, 32
    while bit > 0:
        reach = 0
        candidate = np.uint8(value + bit)
        for i in range(remainders.size):
            reach += remainders[i] >= candidate
        if reach >= up:
            value += bit
        else:
            above = reach  # in the end, how many are larger than `value`
        bit >>= 1
    least = np.uint8(value)
    for i in range(remainders.size):
        q[i] += np.uint8(remainders[i] > least)
    i = 0
    while above < up:
        hit = remainders[i] == least
        q[i] += np.uint8(hit)
        above += hit
        i += 1


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
    """Pack planes of whole blocks to block symbols s = Σ q_k·N^k, with k in raster order inside the block.

    q: (rows·bh·cols·bw,) uint8, level indices. row: scratch, (q.size // bw,) uint8. out: (rows·cols,) uint8.
    Sums stay below 256, so uint8 arithmetic (modulo 256) is exact; weights are reduced before they are cast.
    """
    # First along the rows, then down the columns, in long passes. Each stride has its own loop because only constant
    # strides vectorise; 5 is the widest odd block that 256 symbols allow (3^5). Each product is cast: otherwise it has
    # 64 bits, and the loop takes three times as long.
    n = np.uint8(levels & 255)
    n2 = np.uint8((levels * levels) & 255)
    n3 = np.uint8((levels * levels * levels) & 255)
    if block_width == 1:
        row[:] = q
    elif block_width == 2:
        for i in range(row.size):
            row[i] = q[2 * i] + np.uint8(q[2 * i + 1] * n)
    elif block_width == 3:
        for i in range(row.size):
            row[i] = q[3 * i] + np.uint8(q[3 * i + 1] * n) + np.uint8(q[3 * i + 2] * n2)
    elif block_width == 4:
        for i in range(row.size):
            row[i] = q[4 * i] + np.uint8(q[4 * i + 1] * n) + np.uint8(q[4 * i + 2] * n2) + np.uint8(q[4 * i + 3] * n3)
    else:
        for i in range(row.size):
            s = np.uint8(0)
            for k in range(block_width - 1, -1, -1):
                s = np.uint8(s * n + q[i * block_width + k])
            row[i] = s
    if block_height == 1:
        for i in range(out.size):
            out[i] = row[i]
        return
    weight = 1
    for _ in range(block_width):
        weight = (weight * levels) & 255
    w8 = np.uint8(weight)
    if block_height == 2:  # a separate loop: the general one takes twice as long
        for r in range(out.size // cols):
            a = r * 2 * cols
            b = r * cols
            for c in range(cols):
                out[b + c] = row[a + c] + np.uint8(row[a + cols + c] * w8)
        return
    for r in range(out.size // cols):
        a = r * block_height * cols
        b = r * cols
        for c in range(cols):
            out[b + c] = row[a + c] + np.uint8(row[a + cols + c] * w8)
        w = (weight * weight) & 255
        for _ in range(2, block_height):
            wr = np.uint8(w)
            for c in range(cols):
                out[b + c] += np.uint8(row[a + 2 * cols + c] * wr)
            a += cols
            w = (w * weight) & 255


@kernel
def unpack(symbols, cols, block_height, units, values, out):
    """Block symbols → reconstruction values, for planes that are whole blocks.

    A block row is moved as `units` machine words: uint64 (two float32) where the block width is even, else uint32.
    symbols: (rows·cols,) uint8. values: (K·bh·units,) words. out: (rows·bh·cols·units,) words.
    """
    one, two = np.uint64(1), np.uint64(2)
    size = np.uint64(block_height * units)
    step = np.uint64(units)
    if block_height == 1:
        cols = symbols.size  # rows of one block each are contiguous: treat them as one long row
    width = np.uint64(cols)
    a = np.uint64(0)
    if block_height == 2 and units == 1:  # 2×2, the usual block of 4 levels: both rows in one pass
        i = np.uint64(0)
        for _ in range(symbols.size // cols):
            for _ in range(cols):
                v = np.uint64(symbols[i]) << one
                out[a] = values[v]
                out[a + width] = values[v | one]
                a += one
                i += one
            a += width
        return
    for r in range(symbols.size // cols):
        for dy in range(block_height):
            i = np.uint64(r) * width
            first = np.uint64(dy) * step
            if units == 1:
                for _ in range(cols):
                    out[a] = values[np.uint64(symbols[i]) * size + first]
                    a += one
                    i += one
            elif units == 2:
                for _ in range(cols):
                    v = np.uint64(symbols[i]) * size + first
                    out[a] = values[v]
                    out[a + one] = values[v + one]
                    a += two
                    i += one
            else:
                for _ in range(cols):
                    v = np.uint64(symbols[i]) * size + first
                    for u in range(units):
                        out[a + np.uint64(u)] = values[v + np.uint64(u)]
                    a += step
                    i += one


@kernel
def unpack_threes(symbols, values, out):
    """`unpack` for blocks of 1×3, the usual shape for 4 levels where planes are 3 elements wide.

    symbols: (n,) uint8. values: (K·2,) uint64, the three float32 of a block and one of padding. out: (n·3,) uint32.
    """
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    a = np.uint64(0)
    for i in range(symbols.size):
        v = np.uint64(symbols[i]) << one
        pair = values[v]
        out[a] = np.uint32(pair & LOW_HALF)
        out[a + one] = np.uint32(pair >> HALF)
        out[a + two] = np.uint32(values[v | one] & LOW_HALF)
        a += three
