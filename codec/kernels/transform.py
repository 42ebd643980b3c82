"""Transform coefficients ↔ rANS words (docs/bitstream.md §7, coder id 5). Read ans.py first.

A tile of `width` coefficients is read and written in the order in which its K sent ones are coded. The others are left
out, and decoded to zero. The symbols of a chunk are one sequence, and symbol n is of lane n mod `lanes`: a flag for
each group of GROUP coefficients, then the coefficients of the groups that are not all zero, then two bytes for each
escape. Most groups are all zero, so most of the time goes into finding out that they are, which is a maximum of
integers: the magnitude of a finite float32 orders like its bits without the sign.

Quantization has a product, but no sum that it could be fused with: q is decided by comparing the product.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .ans import (
    BYTE,
    FULL,
    LOW,
    OK,
    ONE,
    OVERRUN,
    RAW_BITS,
    RAW_FREQUENCY,
    RAW_MASK,
    SLOT,
    SYMBOL_BITS,
    TABLE_BITS,
    WORD_MASK,
    ZERO,
    ended,
    look,
    put,
    read_states,
    refill,
    take,
    write_states,
)
from .compilation.policy import kernel

GROUP = 16
MAGNITUDE = np.int32(0x7FFFFFFF)
CODES = 32
CODE_BITS = np.uint64(5)
ESCAPE = np.uint64(31)
ESCAPED = np.float32(np.inf)
"""Stands for an escaped coefficient until its bytes are decoded."""
MOST_RAW = np.uint64(65534)
RAW_RECIPROCAL = np.uint64(1 << 39)
RAW_ENTRY = np.uint64(16 << 32 | (4096 - 16) << 16)

BAD_VALUE = 3


class Coding(NamedTuple):
    """How the coefficients of a tile are coded at one step.

    order: (K,) uint32, where each lies in its tile. Unsigned, so that no index is looked at for being negative.
    table: (K,) uint8, the table of each. zero: (T,) uint64, the frequency of a group that is all zero.
    code, zero_code: (T·32·2,) and (T·2·2,) uint64, the entries of ans.py for coefficients and flags, for encoding.
    slots: (T·4096,) uint32 of ans.py, the escape being symbol 31, for decoding.
    """

    order: np.ndarray
    table: np.ndarray
    zero: np.ndarray
    code: np.ndarray
    zero_code: np.ndarray
    slots: np.ndarray


@kernel
def find_groups(bits, width, order, least, groups):
    """groups[g] = 1 where group g is not all zero after quantization; returns how many, and the largest magnitude.

    bits: (n,) int32, float32 coefficients as integers, tiles of `width`. order: of Coding. least: bits of the smallest
    magnitude that is not quantized to zero. groups: (tiles · ⌈K/GROUP⌉,) uint8. The magnitude is returned as bits, too;
    NaN and infinity have the largest ones.
    """
    largest = np.int32(0)
    found = 0
    g = 0
    whole = order.size - order.size % GROUP
    for start in range(0, bits.size, width):
        tile = bits[start : start + width]
        for a in range(0, whole, GROUP):
            top = np.int32(0)
            for i in range(GROUP):
                top = max(top, np.int32(tile[order[a + i]] & MAGNITUDE))
            hit = top >= least
            groups[g] = hit
            found += hit
            largest = max(largest, top)
            g += 1
        if whole < order.size:
            top = np.int32(0)
            for i in range(whole, order.size):
                top = max(top, np.int32(tile[order[i]] & MAGNITUDE))
            hit = top >= least
            groups[g] = hit
            found += hit
            largest = max(largest, top)
            g += 1
    return found, largest


@kernel
def quantize(x, width, groups, reciprocal, most, up, coding, symbols, tables, escapes):
    """Quantize the groups that are not all zero; returns how many coefficients they have, and how many escapes.

    x: (n,) float32, finite. reciprocal: of the step. most: the largest magnitude, larger ones are clipped to it.
    up: the fraction from which on a magnitude is rounded up. These three are float32. symbols, tables: (coefficients,)
    uint8, in the order of coding. escapes: uint16, the zigzag values that are not in their table.
    """
    order, table, code = coding.order, coding.table, coding.code
    n, e, g = ZERO, ZERO, ZERO
    for start in range(0, x.size, width):
        tile = x[start : start + width]
        for a in range(0, order.size, GROUP):
            if groups[g]:
                for k in range(a, min(a + GROUP, order.size)):
                    y = tile[order[k]]
                    v = min(abs(y), most) * reciprocal
                    q = np.int32(v)
                    q += np.int32(v >= np.float32(q) + up)
                    value = np.uint64(2 * q - np.int32((q > 0) & (y > 0)))
                    t = np.uint64(table[k])
                    symbol = min(value, ESCAPE)
                    if symbol == ESCAPE or code[((t << CODE_BITS | symbol) << ONE) | ONE] == ZERO:
                        symbol = ESCAPE
                        escapes[e] = np.uint16(value)
                        e += ONE
                    symbols[n] = np.uint8(symbol)
                    tables[n] = np.uint8(t)
                    n += ONE
            g += ONE
    return np.int64(n), np.int64(e)


@kernel
def encode(groups, symbols, tables, escapes, lanes, coding, words):
    """Code the sequence into the end of `words`, last symbol first; returns the index of the first word written.

    groups: (tiles · ⌈K/GROUP⌉,) uint8. symbols, tables: (coefficients,) uint8. escapes: (E,) uint16. words:
    (≥ symbols of the sequence + 2·lanes,) uint16.
    """
    table, code, zero_code = coding.table, coding.code, coding.zero_code
    state = np.full(lanes, LOW, np.uint64)
    p = np.uint64(words.size)
    last = np.uint64(lanes - 1)
    lane = np.uint64((groups.size + symbols.size + 2 * escapes.size) % lanes)
    for i in range(escapes.size - 1, -1, -1):
        value = np.uint64(escapes[i])
        lane = last if lane == ZERO else lane - ONE
        x = state[lane]
        words[p - ONE] = np.uint16(x & WORD_MASK)
        state[lane], p = put(x, RAW_RECIPROCAL, RAW_ENTRY | value >> SYMBOL_BITS << RAW_BITS, p)
        lane = last if lane == ZERO else lane - ONE
        x = state[lane]
        words[p - ONE] = np.uint16(x & WORD_MASK)
        state[lane], p = put(x, RAW_RECIPROCAL, RAW_ENTRY | (value & BYTE) << RAW_BITS, p)
    for i in range(symbols.size - 1, -1, -1):
        lane = last if lane == ZERO else lane - ONE
        k = (np.uint64(tables[i]) << CODE_BITS | np.uint64(symbols[i])) << ONE
        x = state[lane]
        words[p - ONE] = np.uint16(x & WORD_MASK)
        state[lane], p = put(x, code[k], code[k | ONE], p)
    g = np.uint64(groups.size)
    first = (table.size - 1) // GROUP * GROUP
    while g > ZERO:
        for a in range(first, -1, -GROUP):
            g -= ONE
            lane = last if lane == ZERO else lane - ONE
            k = (np.uint64(table[a]) << ONE | np.uint64(groups[g])) << ONE
            x = state[lane]
            words[p - ONE] = np.uint16(x & WORD_MASK)
            state[lane], p = put(x, zero_code[k], zero_code[k | ONE], p)
    return write_states(state, lanes, words, p)


@kernel
def decode(words, count, lanes, width, coding, values, outward, step, groups, out):
    """Decode to coefficients; returns OK, or a status that says why the stream is invalid.

    words: (count + 4,) uint16 or more, the stream followed by zeros. values: (32,) float32, the coefficient of each
    symbol, ESCAPED for the escape. outward: (2,) float32, what is added to an escaped magnitude of 1, and to larger
    ones. step: float32. groups: scratch, (tiles · ⌈K/GROUP⌉,) uint8. out: (tiles·width,) float32.
    """
    order, table, zero, slots = coding.order, coding.table, coding.zero, coding.slots
    end = np.uint64(count)
    state = np.empty(lanes, np.uint64)
    status = read_states(words, count, lanes, state)
    if status != OK:
        return status
    p = np.uint64(2 * lanes)
    last = np.uint64(lanes - 1)
    lane = ZERO
    g = ZERO
    out[:] = 0
    for _ in range(0, out.size, width):
        for a in range(0, order.size, GROUP):
            if p > end:
                return OVERRUN
            x = state[lane]
            f = zero[table[a]]
            slot = x & SLOT
            hit = slot >= f
            x >>= TABLE_BITS
            x = (FULL - f) * x + slot - f if hit else f * x + slot
            state[lane], p = refill(x, words[p], p)
            lane = ZERO if lane == last else lane + ONE
            groups[g] = hit
            g += ONE
    escapes = 0
    g = ZERO
    for start in range(0, out.size, width):
        tile = out[start : start + width]
        for a in range(0, order.size, GROUP):
            if groups[g]:
                for k in range(a, min(a + GROUP, order.size)):
                    if p > end:
                        return OVERRUN
                    x = state[lane]
                    e = look(x, np.uint64(table[k]), slots)
                    s = e & BYTE
                    x = take(x, (e >> SYMBOL_BITS) & SLOT, e)
                    state[lane], p = refill(x, words[p], p)
                    lane = ZERO if lane == last else lane + ONE
                    tile[order[k]] = values[s]
                    escapes += s == ESCAPE
            g += ONE
    if escapes > 0:
        g = ZERO
        for start in range(0, out.size, width):
            tile = out[start : start + width]
            for a in range(0, order.size, GROUP):
                if groups[g]:
                    for k in range(a, min(a + GROUP, order.size)):
                        if tile[order[k]] == ESCAPED:
                            if p > end:
                                return OVERRUN
                            low, state[lane], p = _take_byte(state[lane], words[p], p)
                            lane = ZERO if lane == last else lane + ONE
                            high, state[lane], p = _take_byte(state[lane], words[p], p)
                            lane = ZERO if lane == last else lane + ONE
                            value = low | high << SYMBOL_BITS
                            if value > MOST_RAW:
                                return BAD_VALUE
                            tile[order[k]] = _reconstruct(value, outward, step)
                g += ONE
    return ended(state, lanes, p, end)


@kernel
def _take_byte(x, word, p):
    """Decode one of 256 equally likely values: it, the state, and the index of the next word."""
    slot = x & SLOT
    x, p = refill(RAW_FREQUENCY * (x >> TABLE_BITS) + (slot & RAW_MASK), word, p)
    return slot >> RAW_BITS, x, p


@kernel
def _reconstruct(value, outward, step):
    """The coefficient of a zigzag value: a sum, then a product, both rounded to float32."""
    magnitude = (value + ONE) >> ONE
    if magnitude == ZERO:
        return np.float32(0.0)
    y = (np.float32(magnitude) + (outward[ZERO] if magnitude == ONE else outward[ONE])) * step
    return y if value & ONE else -y
