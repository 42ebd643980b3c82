"""Transform coefficients ↔ rANS words (docs/bitstream.md §7, coder ids 5 and 6). Read ans.py first.

A tile of `width` coefficients is read and written in the order in which its K sent ones are coded. The others are left
out, and decoded to zero. The symbols of a chunk are one sequence, and symbol n is of lane n mod `lanes`: a flag for
each group of GROUP coefficients, then the coefficients of the groups that are not all zero, then two bytes for each
escape. Most groups are all zero, so most of the time goes into finding out that they are, which is a maximum of
integers: the magnitude of a finite float32 orders like its bits without the sign.

Coder 6 differs in where the states begin and in what lies before the sequence (Beginning), and in which slots of a
table belong to which symbol (Coding.place). A single lane of it begins at 0. The less a state holds, the more its next
value depends on the slot: so the slots of a symbol are spread over the table, and the first of them is near 1/p.

Quantization has a product, but no sum that it could be fused with: q is decided by comparing the product.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .ans import (
    BAD_END,
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
    SPILL_SHIFT,
    SYMBOL_BITS,
    TABLE_BITS,
    WORD,
    WORD_MASK,
    ZERO,
    look,
    put,
    read_states,
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
NEVER = np.uint64(1 << 63)
MOST_RAW = np.uint64(65534)
RAW_RECIPROCAL = np.uint64(1 << 39)
RAW_ENTRY = np.uint64(16 << 32 | (4096 - 16) << 16)

BAD_VALUE = 3


class Coding(NamedTuple):
    """How the coefficients of a tile are coded at one step.

    order: (K,) uint32, where each lies in its tile. Unsigned, so that no index is looked at for being negative.
    table: (K,) uint8, the table of each. zero: (T,) uint64, the frequency of a group that is all zero.
    code, zero_code: (T·32·2,) and (T·2·2,) uint64, the entries of ans.py for coefficients and flags, for encoding.
    place: (T·4096,) uint16, of each table the slots of its symbols, symbol by symbol; in coder 5 they rise. Encoding.
    slots: (T·4096,) uint32 of ans.py, the escape being symbol 31, for decoding.
    """

    order: np.ndarray
    table: np.ndarray
    zero: np.ndarray
    code: np.ndarray
    zero_code: np.ndarray
    place: np.ndarray
    slots: np.ndarray


class Beginning(NamedTuple):
    """What lies before the sequence, for lane 0, and where the encoder's states begin. All uint64.

    state: LOW, or 0 for a single lane of coder 6. Then the decoder reads no word where none is left.
    frequency, cumulative: of the symbol that stands for the step. 4096 and 0 in coder 5, which has none: coding such a
    symbol changes nothing.
    """

    state: np.uint64
    frequency: np.uint64
    cumulative: np.uint64


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
def encode(groups, symbols, tables, escapes, lanes, beginning, coding, words):
    """Code the sequence into the end of `words`, last symbol first; returns the index of the first word written.

    groups: (tiles · ⌈K/GROUP⌉,) uint8. symbols, tables: (coefficients,) uint8. escapes: (E,) uint16. words:
    (≥ symbols of the sequence + 1 + 2·lanes,) uint16.
    """
    table, code, zero_code, place = coding.table, coding.code, coding.zero_code, coding.place
    state = np.full(lanes, beginning.state, np.uint64)
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
        t = np.uint64(tables[i])
        k = (t << CODE_BITS | np.uint64(symbols[i])) << ONE
        x = state[lane]
        words[p - ONE] = np.uint16(x & WORD_MASK)
        x, p = put(x, code[k], code[k | ONE], p)
        state[lane] = x & ~SLOT | np.uint64(place[t << TABLE_BITS | x & SLOT])
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
    x, f = state[ZERO], beginning.frequency
    if x >> SPILL_SHIFT >= f:
        p -= ONE
        words[p] = np.uint16(x & WORD_MASK)
        x >>= WORD
    state[ZERO] = (x // f << TABLE_BITS) + beginning.cumulative + x % f
    return write_states(state, lanes, words, p)


@kernel
def decode(words, count, lanes, beginning, width, coding, values, outward, step, groups, out):
    """Decode to coefficients; returns OK, or a status that says why the stream is invalid.

    words: (count + 2·lanes + 2,) uint16 or more, the stream followed by zeros. values: (32,) float32, what each symbol
    is decoded to, ESCAPED for the escape. outward: (2,) float32, added to an escaped magnitude of 1, and to larger
    ones. step: float32. groups: scratch, (tiles · ⌈K/GROUP⌉,) uint8. out: (tiles·width,) float32.
    """
    order, table, zero, slots = coding.order, coding.table, coding.zero, coding.slots
    end = np.uint64(count)
    state = np.zeros(lanes, np.uint64)
    p = ZERO
    first = beginning.state
    if first == ZERO:
        while state[ZERO] < LOW and p < end:
            state[ZERO], p = _refill(state[ZERO], words[p], p, LOW)
    else:
        status = read_states(words, count, lanes, state)
        if status != OK:
            return status
        p = np.uint64(2 * lanes)
    x = state[ZERO]
    x = beginning.frequency * (x >> TABLE_BITS) + (x & SLOT) - beginning.cumulative
    state[ZERO], p = _refill(x, words[p], p, _least(p, end, first))
    # A state below `least` takes a word. Once p reaches `stop` there are none: that is an error, or changes `least`.
    least, stop = LOW, end + ONE if first != ZERO else end
    last = np.uint64(lanes - 1)
    lane = ZERO
    g = ZERO
    out[:] = 0
    for _ in range(0, out.size, width):
        for a in range(0, order.size, GROUP):
            if p >= stop:
                if first != ZERO:
                    return OVERRUN
                least, stop = ZERO, NEVER
            x = state[lane]
            f = zero[table[a]]
            slot = x & SLOT
            hit = slot >= f
            x >>= TABLE_BITS
            x = (FULL - f) * x + slot - f if hit else f * x + slot
            state[lane], p = _refill(x, words[p], p, least)
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
                    if p >= stop:
                        if first != ZERO:
                            return OVERRUN
                        least, stop = ZERO, NEVER
                    x = state[lane]
                    e = look(x, np.uint64(table[k]), slots)
                    s = e & BYTE
                    x = take(x, (e >> SYMBOL_BITS) & SLOT, e)
                    state[lane], p = _refill(x, words[p], p, least)
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
                            low, state[lane], p = _take_byte(state[lane], words[p], p, _least(p, end, first))
                            lane = ZERO if lane == last else lane + ONE
                            high, state[lane], p = _take_byte(state[lane], words[p], p, _least(p, end, first))
                            lane = ZERO if lane == last else lane + ONE
                            value = low | high << SYMBOL_BITS
                            if value > MOST_RAW:
                                return BAD_VALUE
                            tile[order[k]] = _reconstruct(value, outward, step)
                g += ONE
    if p != end:
        return BAD_END
    for i in range(lanes):
        if state[i] != first:
            return BAD_END
    return OK


@kernel
def _refill(x, word, p, least):
    """The state with `word` appended if it is below `least`, and the index of the next word."""
    room = x < least
    return ((x << WORD) | np.uint64(word)) if room else x, p + np.uint64(room)


@kernel
def _least(p, end, first):
    """Below what a state takes a word: nothing where a single lane of coder 6 has read them all."""
    return LOW if p < end or first != ZERO else ZERO


@kernel
def _take_byte(x, word, p, least):
    """Decode one of 256 equally likely values: it, the state, and the index of the next word."""
    slot = x & SLOT
    x, p = _refill(RAW_FREQUENCY * (x >> TABLE_BITS) + (slot & RAW_MASK), word, p, least)
    return slot >> RAW_BITS, x, p


@kernel
def _reconstruct(value, outward, step):
    """The coefficient of a zigzag value: a sum, then a product, both rounded to float32."""
    magnitude = (value + ONE) >> ONE
    if magnitude == ZERO:
        return np.float32(0.0)
    y = (np.float32(magnitude) + (outward[ZERO] if magnitude == ONE else outward[ONE])) * step
    return y if value & ONE else -y
