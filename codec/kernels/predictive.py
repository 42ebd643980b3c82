"""Eight planes coded side by side, each element with the table of its context. Read docs/bitstream.md §6 first.

Levels lie in memory plane by plane (predictive_planes.py) or with all channels side by side
(predictive_interleaved.py); a Grid says where, so that both share what is here. An encoder finds all contexts
beforehand. Of the planes themselves a decoder has only what it has decoded: what the row above adds is added row by
row, and what the element to the left adds, element by element.

Those two choose between eight lanes and some by themselves: a function around that choice counts references to its
dozen arrays for every group. Groups of eight lanes have kernels of their own, written out as those of rans.py
are, and for the same reason (what was tried stands there): with the branch for escapes in a helper, numba counts
references to the arrays at every symbol, which costs 20 to 30 ns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .ans import (
    BYTE,
    EIGHT,
    FIVE,
    FOUR,
    ONE,
    SEVEN,
    SIX,
    SLOT,
    SYMBOL_BITS,
    THREE,
    TWO,
    WORD_MASK,
    ZERO,
    look,
    put,
    put_escaped,
    refill,
    take,
    take_escaped,
)
from .compilation.policy import kernel

GROUP = 8
ROW_STRETCH = 16
"""Elements of a row of a plane are looked at in multiples of this: a remainder costs more than what it leaves out."""
BLOCK = 64
"""Channels that lie side by side are worked on in multiples of this, for the same reason."""
ENTRIES = 6
LEFT, ABOVE, BEFORE, AFTER, BIAS, KNOWN = (np.uint64(i) for i in range(ENTRIES))
"""What `own` holds of a channel: weights of the element to the left, above, above left and above right; the bias, with
the offset; and the bias less LEFT times the level at rest, for a decoder, that has symbols."""
WIDE = np.uint64(BLOCK)


class Grid(NamedTuple):
    """Where elements lie, and numbers of the profile, all int.

    column, row: in `field` and in `sums`, from an element to the next and to the one below. field_lane, sums_lane: from
    a plane to the next. known_lane, known_column: the same in what a decoder knows of a row. block: channels that are
    side by side in `own`: BLOCK where all are in memory, or 1. most_active: where the activity classes end, a number of
    active_bits bits. symbol_bits: of the symbols in `code`.
    """

    height: int
    width: int
    column: int
    row: int
    field_lane: int
    sums_lane: int
    known_lane: int
    known_column: int
    block: int
    shift: int
    active_bits: int
    most_active: int
    rest: int
    levels: int
    symbol_bits: int


class Encoding(NamedTuple):
    """The arrays of one encoding. symbols: (P·H·W,) uint8. sums: int16, what `table` is read by. rows, table: of the
    profile. code, escape: ans.py. words: uint16, filled from its end. state: (GROUP,) uint64, in and out."""

    symbols: np.ndarray
    sums: np.ndarray
    rows: np.ndarray
    table: np.ndarray
    code: np.ndarray
    escape: np.ndarray
    words: np.ndarray
    state: np.ndarray


class Decoding(NamedTuple):
    """The arrays of one decoding. symbols: (P·H·W,) uint8, out. field: int8 and sums: int16, by a Grid. known: int32,
    scratch for a row. own, rows, table, magnitudes: of the profile. slots, escape: ans.py. words: uint16. state:
    (GROUP,) uint64, in and out."""

    symbols: np.ndarray
    field: np.ndarray
    sums: np.ndarray
    known: np.ndarray
    own: np.ndarray
    rows: np.ndarray
    table: np.ndarray
    magnitudes: np.ndarray
    slots: np.ndarray
    escape: np.ndarray
    words: np.ndarray
    state: np.ndarray


@kernel
def _find(symbols, n, sums, j, row, bits, table):
    """Where `code` holds symbol n in the table of its context."""
    return (np.uint64(table[row + np.uint64(sums[j])]) << bits | np.uint64(symbols[n])) << ONE


@kernel
def _put_escaped(x, k, bits, p, escape, words):
    t = k >> bits + ONE
    return put_escaped(x, ((t << SYMBOL_BITS) | ((k >> ONE) - (t << bits))) << ONE, p, escape, words)


@kernel
def encode_some(arrays, grid, n, channel, some, lanes, j, p):
    """Planes n to n + some − 1, `lanes` or what is left at a time; returns p. arrays: an Encoding."""
    symbols, sums, rows, table, code, escape, words, state = arrays
    bits = np.uint64(grid.symbol_bits)
    size = grid.height * grid.width
    for first in range((some - 1) // lanes * lanes, -1, -lanes):
        for r in range(grid.height - 1, -1, -1):
            for c in range(grid.width - 1, -1, -1):
                for lane in range(min(lanes, some - first) - 1, -1, -1):
                    plane = first + lane
                    at = j + np.uint64(plane * grid.sums_lane + r * grid.row + c * grid.column)
                    i = np.uint64(n + plane * size + r * grid.width + c)
                    k = _find(symbols, i, sums, at, rows[channel + plane], bits, table)
                    x = state[lane]
                    if code[k | ONE]:
                        words[p - ONE] = np.uint16(x & WORD_MASK)
                        state[lane], p = put(x, code[k], code[k | ONE], p)
                    else:
                        state[lane], p = _put_escaped(x, k, bits, p, escape, words)
    return p


@kernel
def encode_eight(arrays, grid, start, channel, first, p):
    """Eight planes; returns p. arrays: an Encoding."""
    symbols, sums, rows, table, code, escape, words, state = arrays
    bits = np.uint64(grid.symbol_bits)
    size = np.uint64(grid.height * grid.width)
    span = np.uint64(grid.sums_lane)
    x0, x1, x2, x3 = state[ZERO], state[ONE], state[TWO], state[THREE]
    x4, x5, x6, x7 = state[FOUR], state[FIVE], state[SIX], state[SEVEN]
    r0, r1, r2, r3 = rows[channel], rows[channel + 1], rows[channel + 2], rows[channel + 3]
    r4, r5, r6, r7 = rows[channel + 4], rows[channel + 5], rows[channel + 6], rows[channel + 7]
    for r in range(grid.height - 1, -1, -1):
        for c in range(grid.width - 1, -1, -1):
            j = first + np.uint64(r * grid.row + c * grid.column)
            n = np.uint64(start + r * grid.width + c)
            k0 = _find(symbols, n, sums, j, r0, bits, table)
            k1 = _find(symbols, n + size, sums, j + span, r1, bits, table)
            k2 = _find(symbols, n + TWO * size, sums, j + TWO * span, r2, bits, table)
            k3 = _find(symbols, n + THREE * size, sums, j + THREE * span, r3, bits, table)
            k4 = _find(symbols, n + FOUR * size, sums, j + FOUR * span, r4, bits, table)
            k5 = _find(symbols, n + FIVE * size, sums, j + FIVE * span, r5, bits, table)
            k6 = _find(symbols, n + SIX * size, sums, j + SIX * span, r6, bits, table)
            k7 = _find(symbols, n + SEVEN * size, sums, j + SEVEN * span, r7, bits, table)
            if code[k7 | ONE]:
                words[p - ONE] = np.uint16(x7 & WORD_MASK)
                x7, p = put(x7, code[k7], code[k7 | ONE], p)
            else:
                x7, p = _put_escaped(x7, k7, bits, p, escape, words)
            if code[k6 | ONE]:
                words[p - ONE] = np.uint16(x6 & WORD_MASK)
                x6, p = put(x6, code[k6], code[k6 | ONE], p)
            else:
                x6, p = _put_escaped(x6, k6, bits, p, escape, words)
            if code[k5 | ONE]:
                words[p - ONE] = np.uint16(x5 & WORD_MASK)
                x5, p = put(x5, code[k5], code[k5 | ONE], p)
            else:
                x5, p = _put_escaped(x5, k5, bits, p, escape, words)
            if code[k4 | ONE]:
                words[p - ONE] = np.uint16(x4 & WORD_MASK)
                x4, p = put(x4, code[k4], code[k4 | ONE], p)
            else:
                x4, p = _put_escaped(x4, k4, bits, p, escape, words)
            if code[k3 | ONE]:
                words[p - ONE] = np.uint16(x3 & WORD_MASK)
                x3, p = put(x3, code[k3], code[k3 | ONE], p)
            else:
                x3, p = _put_escaped(x3, k3, bits, p, escape, words)
            if code[k2 | ONE]:
                words[p - ONE] = np.uint16(x2 & WORD_MASK)
                x2, p = put(x2, code[k2], code[k2 | ONE], p)
            else:
                x2, p = _put_escaped(x2, k2, bits, p, escape, words)
            if code[k1 | ONE]:
                words[p - ONE] = np.uint16(x1 & WORD_MASK)
                x1, p = put(x1, code[k1], code[k1 | ONE], p)
            else:
                x1, p = _put_escaped(x1, k1, bits, p, escape, words)
            if code[k0 | ONE]:
                words[p - ONE] = np.uint16(x0 & WORD_MASK)
                x0, p = put(x0, code[k0], code[k0 | ONE], p)
            else:
                x0, p = _put_escaped(x0, k0, bits, p, escape, words)
    state[ZERO], state[ONE], state[TWO], state[THREE] = x0, x1, x2, x3
    state[FOUR], state[FIVE], state[SIX], state[SEVEN] = x4, x5, x6, x7
    return p


@kernel
def own_start(channel, block):
    """Where `own` has the first entry of a channel; the next one is `block` further."""
    return np.uint64(channel // block * block * ENTRIES + channel % block)


@kernel
def _add_above(field, x, channel, some, j, grid, own, sums, known):
    """What is known of a row before it, of `some` planes of a group from `channel` on: per element, the prediction but
    for the symbol to the left << 8, and the magnitude of the element above. In one array: with two it took 11 ns a row
    and not 5, for tests of overlap. Of planes side by side, the whole group. x, j: where the row's first element lies.
    """
    planes, columns = (some, 0) if grid.block == 1 else (0, grid.width)
    x -= np.uint64(grid.row)
    k = own_start(channel, grid.block)
    o = ZERO
    for _ in range(planes):
        w1, w2, w3, constant = own[k + ABOVE], own[k + BEFORE], own[k + AFTER], own[k + KNOWN]
        before, after = x - ONE, x + ONE
        for i in range(np.uint64(grid.known_lane)):
            above = np.int16(field[x + i])
            a = np.int16(np.int16(w1 * above) + np.int16(sums[j + i] + constant))
            b = np.int16(np.int16(w2 * field[before + i]) + np.int16(w3 * field[after + i]))
            known[o + i] = np.int32(np.int32(np.int16(a + b)) << 8) | np.int32(abs(above))
        x += np.uint64(grid.field_lane)
        j += np.uint64(grid.sums_lane)
        o += np.uint64(grid.known_lane)
        k += np.uint64(ENTRIES)
    skew = np.uint64(channel & GROUP - 1)
    column = np.uint64(grid.column)
    k, x, j = k - skew, x - skew, j - skew
    for _ in range(columns):
        before, after = x - column, x + column
        for i in range(k, k + EIGHT):
            c = i - k
            above = np.int16(field[x + c])
            a = np.int16(own[i + ABOVE * WIDE] * above)
            b = np.int16(own[i + BEFORE * WIDE] * field[before + c])
            d = np.int16(own[i + AFTER * WIDE] * field[after + c])
            total = np.int16(np.int16(sums[j + c] + own[i + KNOWN * WIDE]) + np.int16(np.int16(a + b) + d))
            known[o + c] = np.int32(np.int32(total) << 8) | np.int32(abs(above))
        x += column
        j += column
        o += EIGHT


@kernel
def _choose(known, o, left, weight, magnitudes, row, shift, bits, most, table):
    """The table of an element. left: a symbol. weight, shift: 256 times the left weight, 8 more than the model's."""
    k = np.int64(known[o])
    cell = min(max((k + weight * np.int64(left)) >> shift, 0), 255)
    return np.uint64(table[row + np.uint64(cell << bits | min((k & 255) + np.int64(magnitudes[left]), most))])


@kernel
def decode_some(arrays, grid, n, channel, some, lanes, x, j, end, p):
    """`lanes` planes, or what is left, at a time; returns p, beyond `end` if it got there. arrays: a Decoding."""
    symbols, field, sums, known, own, rows, table, magnitudes, slots, escape, words, state = arrays
    size = grid.height * grid.width
    shift, bits, most = (grid.shift & 15) + 8, grid.active_bits & 7, grid.most_active
    skew = 0 if grid.block == 1 else channel & GROUP - 1
    k, step = own_start(channel, grid.block), np.uint64(ENTRIES if grid.block == 1 else 1)
    for first in range(0, some, lanes):
        now = min(lanes, some - first)
        for r in range(grid.height):
            row = np.uint64(r * grid.row)
            _add_above(field, x + row, channel, some, j + row, grid, own, sums, known)
            for c in range(grid.width):
                # A step reads at most two words per lane: checked here, the zeros behind the stream take the rest.
                if p > end:
                    return p
                for lane in range(now):
                    plane = first + lane
                    at = x + np.uint64(plane * grid.field_lane + r * grid.row + c * grid.column)
                    left = np.uint64(np.int64(field[at - np.uint64(grid.column)]) + grid.rest)
                    weight = np.int64(own[k + np.uint64(plane) * step]) << 8
                    o = np.uint64((plane + skew) * grid.known_lane + c * grid.known_column)
                    t = _choose(known, o, left, weight, magnitudes, rows[channel + plane], shift, bits, most, table)
                    e = look(state[lane], t, slots)
                    s, f = e & BYTE, (e >> SYMBOL_BITS) & SLOT
                    if f:
                        y = take(state[lane], f, e)
                    else:
                        s, y, p = take_escaped(state[lane], t, p, escape, words)
                    state[lane], p = refill(y, words[p], p)
                    v = min(np.int64(s), grid.levels - 1) - grid.rest  # an escape may be any byte
                    field[at] = np.int8(v)
                    symbols[np.uint64(n + plane * size + r * grid.width + c)] = np.uint8(s)
    return p


@kernel
def decode_eight(arrays, grid, n, channel, start, j, end, p):
    """Eight planes; returns p, beyond `end` if it got there. arrays: a Decoding."""
    symbols, field, sums, known, own, rows, table, magnitudes, slots, escape, words, state = arrays
    size = np.uint64(grid.height * grid.width)
    room = np.uint64(grid.known_lane)
    shift, bits, most = (grid.shift & 15) + 8, grid.active_bits & 7, grid.most_active
    stride = np.uint64(grid.field_lane)
    rest, highest = grid.rest, np.uint64(grid.levels - 1)
    x0, x1, x2, x3 = state[ZERO], state[ONE], state[TWO], state[THREE]
    x4, x5, x6, x7 = state[FOUR], state[FIVE], state[SIX], state[SEVEN]
    r0, r1, r2, r3 = rows[channel], rows[channel + 1], rows[channel + 2], rows[channel + 3]
    r4, r5, r6, r7 = rows[channel + 4], rows[channel + 5], rows[channel + 6], rows[channel + 7]
    o, step = own_start(channel, grid.block), np.uint64(ENTRIES if grid.block == 1 else 1)
    w0, w1 = np.int64(own[o]) << 8, np.int64(own[o + step]) << 8
    w2, w3 = np.int64(own[o + TWO * step]) << 8, np.int64(own[o + THREE * step]) << 8
    w4, w5 = np.int64(own[o + FOUR * step]) << 8, np.int64(own[o + FIVE * step]) << 8
    w6, w7 = np.int64(own[o + SIX * step]) << 8, np.int64(own[o + SEVEN * step]) << 8
    for r in range(grid.height):
        row = np.uint64(r * grid.row)
        _add_above(field, start + row, channel, GROUP, j + row, grid, own, sums, known)
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.uint64(rest)
        for c in range(grid.width):
            # A step reads at most two words per lane: checked once here, the zeros behind the stream take the rest.
            if p > end:
                return p
            o = np.uint64(c * grid.known_column)
            i = np.uint64(n + r * grid.width + c)
            x = start + row + np.uint64(c * grid.column)
            t0 = _choose(known, o, s0, w0, magnitudes, r0, shift, bits, most, table)
            t1 = _choose(known, o + room, s1, w1, magnitudes, r1, shift, bits, most, table)
            t2 = _choose(known, o + TWO * room, s2, w2, magnitudes, r2, shift, bits, most, table)
            t3 = _choose(known, o + THREE * room, s3, w3, magnitudes, r3, shift, bits, most, table)
            t4 = _choose(known, o + FOUR * room, s4, w4, magnitudes, r4, shift, bits, most, table)
            t5 = _choose(known, o + FIVE * room, s5, w5, magnitudes, r5, shift, bits, most, table)
            t6 = _choose(known, o + SIX * room, s6, w6, magnitudes, r6, shift, bits, most, table)
            t7 = _choose(known, o + SEVEN * room, s7, w7, magnitudes, r7, shift, bits, most, table)
            e0, e1, e2, e3 = look(x0, t0, slots), look(x1, t1, slots), look(x2, t2, slots), look(x3, t3, slots)
            e4, e5, e6, e7 = look(x4, t4, slots), look(x5, t5, slots), look(x6, t6, slots), look(x7, t7, slots)
            s0, f = e0 & BYTE, (e0 >> SYMBOL_BITS) & SLOT
            v = s0
            if f:
                x0 = take(x0, f, e0)
            else:
                s0, x0, p = take_escaped(x0, t0, p, escape, words)
                v = min(s0, highest)
            x0, p = refill(x0, words[p], p)
            symbols[i] = np.uint8(s0)
            field[x] = np.int8(np.int64(v) - rest)
            i += size
            x += stride
            s1, f = e1 & BYTE, (e1 >> SYMBOL_BITS) & SLOT
            v = s1
            if f:
                x1 = take(x1, f, e1)
            else:
                s1, x1, p = take_escaped(x1, t1, p, escape, words)
                v = min(s1, highest)
            x1, p = refill(x1, words[p], p)
            symbols[i] = np.uint8(s1)
            field[x] = np.int8(np.int64(v) - rest)
            i += size
            x += stride
            s2, f = e2 & BYTE, (e2 >> SYMBOL_BITS) & SLOT
            v = s2
            if f:
                x2 = take(x2, f, e2)
            else:
                s2, x2, p = take_escaped(x2, t2, p, escape, words)
                v = min(s2, highest)
            x2, p = refill(x2, words[p], p)
            symbols[i] = np.uint8(s2)
            field[x] = np.int8(np.int64(v) - rest)
            i += size
            x += stride
            s3, f = e3 & BYTE, (e3 >> SYMBOL_BITS) & SLOT
            v = s3
            if f:
                x3 = take(x3, f, e3)
            else:
                s3, x3, p = take_escaped(x3, t3, p, escape, words)
                v = min(s3, highest)
            x3, p = refill(x3, words[p], p)
            symbols[i] = np.uint8(s3)
            field[x] = np.int8(np.int64(v) - rest)
            i += size
            x += stride
            s4, f = e4 & BYTE, (e4 >> SYMBOL_BITS) & SLOT
            v = s4
            if f:
                x4 = take(x4, f, e4)
            else:
                s4, x4, p = take_escaped(x4, t4, p, escape, words)
                v = min(s4, highest)
            x4, p = refill(x4, words[p], p)
            symbols[i] = np.uint8(s4)
            field[x] = np.int8(np.int64(v) - rest)
            i += size
            x += stride
            s5, f = e5 & BYTE, (e5 >> SYMBOL_BITS) & SLOT
            v = s5
            if f:
                x5 = take(x5, f, e5)
            else:
                s5, x5, p = take_escaped(x5, t5, p, escape, words)
                v = min(s5, highest)
            x5, p = refill(x5, words[p], p)
            symbols[i] = np.uint8(s5)
            field[x] = np.int8(np.int64(v) - rest)
            i += size
            x += stride
            s6, f = e6 & BYTE, (e6 >> SYMBOL_BITS) & SLOT
            v = s6
            if f:
                x6 = take(x6, f, e6)
            else:
                s6, x6, p = take_escaped(x6, t6, p, escape, words)
                v = min(s6, highest)
            x6, p = refill(x6, words[p], p)
            symbols[i] = np.uint8(s6)
            field[x] = np.int8(np.int64(v) - rest)
            i += size
            x += stride
            s7, f = e7 & BYTE, (e7 >> SYMBOL_BITS) & SLOT
            v = s7
            if f:
                x7 = take(x7, f, e7)
            else:
                s7, x7, p = take_escaped(x7, t7, p, escape, words)
                v = min(s7, highest)
            x7, p = refill(x7, words[p], p)
            symbols[i] = np.uint8(s7)
            field[x] = np.int8(np.int64(v) - rest)
    state[ZERO], state[ONE], state[TWO], state[THREE] = x0, x1, x2, x3
    state[FOUR], state[FIVE], state[SIX], state[SEVEN] = x4, x5, x6, x7
    return p
