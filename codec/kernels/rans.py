"""The context rANS coder over block symbols. Read docs/bitstream.md §4 first.

State x, one per lane, integers only:   2^15 ≤ x < 2^31 before and after each symbol; renormalised by 16-bit words.
Tables have 12 bits: Σ f = 4096, so coding a symbol of frequency f and cumulative c is
    encode  x ← ⌊x/f⌋·4096 + c + x mod f      after emitting a word if x ≥ f·2^19
    decode  x ← f·(x >> 12) + (x & 4095) − c   then reading a word if x < 2^15
f ≥ 1 and x < 2^31 make one word enough in both directions; an escape takes two symbols, so at most two words.
The division is exact as (x·m) >> 43 with m = ⌈2^43/f⌉: the error e = m·f − 2^43 < f < 2^12 and x < f·2^19 give
x·e < 2^43 (Granlund & Montgomery 1994), and x·m < 2^63.

A group of `lanes` planes is coded side by side, plane l of the group by state l, so that the neighbours of a block are
always known to its own lane. All lanes share one stream of words; the encoder runs backwards from its end.
Everything is uint64, the indices too: numba turns uint64 ∘ int64 into float64, and signed indices cost a wrap-around
test each. Emitting and reading a word has no branch, because it would be mispredicted about every fifth symbol.

Full groups of eight lanes, which is nearly all of a large tensor, have kernels of their own with the lanes written out:
the states stay in registers, and a step does one stage for all lanes before the next. Symbol by symbol, each
instruction waits for the one before it and the processor's queue of waiting instructions, not its width, sets the
speed; in stages it runs 1.4 (encode) to 1.7 times (decode) as fast.
"""

from __future__ import annotations

import numpy as np

from .policy import kernel

LOW = np.uint64(1 << 15)
SLOT = np.uint64(4095)
FULL = np.uint64(4096)
TABLE_BITS = np.uint64(12)
SYMBOL_BITS = np.uint64(8)
BIAS_SHIFT = np.uint64(20)
WORD = np.uint64(16)
WORD_MASK = np.uint64(0xFFFF)
FREQUENCY_SHIFT = np.uint64(32)
KEY_TABLE_SHIFT = np.uint64(9)
SPILL_SHIFT = np.uint64(19)
RECIPROCAL_BITS = np.uint64(43)
RAW_FREQUENCY = np.uint64(16)  # after an escape the symbol is uniform over 256: 4096/256
RAW_BITS = np.uint64(4)
RAW_MASK = np.uint64(15)
BYTE = np.uint64(255)
EDGE = np.uint64(256)  # second half of `top` and `left`: the neighbour lies outside the plane
EIGHT_ONES = np.uint64(0x0101010101010101)
ZERO = np.uint64(0)
ONE, TWO, THREE, FOUR = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
FIVE, SIX, SEVEN, EIGHT = np.uint64(5), np.uint64(6), np.uint64(7), np.uint64(8)

OK = 0
OVERRUN = 1
BAD_END = 2


@kernel
def encode(symbols, rows, cols, lanes, plane_context, top, left, context_map, code, escape, words):
    """Code `symbols` into the end of `words`; returns the index of the first word written.

    symbols: (P·rows·cols,) uint8. plane_context: (P,) uint64, where the plane's channel starts in context_map.
    top, left: (512,) uint8, what a neighbour's symbol adds to the context index; from 256 on for one outside.
    context_map: table index per context, uint8. code: (T·256·2,) uint64, per table and symbol: reciprocal; then
    frequency << 32 | 4096 − frequency << 16 | cumulative, all 0 for a symbol that is escaped.
    escape: (T,) uint64, frequency of the escape. words: (≥ 2·symbols + 2·lanes,) uint16.
    """
    size = np.uint64(rows * cols)
    planes = symbols.size // (rows * cols)
    state = np.full(max(lanes, 8), LOW, np.uint64)
    p = np.uint64(words.size)
    group = (planes + lanes - 1) // lanes
    while group > 0:
        if lanes == 8 and group * 8 <= planes:
            p = _encode_eights(
                symbols, rows, cols, group, plane_context, top, left, context_map, code, escape, words, p, state
            )
            break
        group -= 1
        first = np.uint64(group * lanes)
        active = np.uint64(min(lanes, planes - group * lanes))
        for r in range(rows - 1, -1, -1):
            for c in range(cols - 1, -1, -1):
                lane = active
                i = (first + active) * size + np.uint64(r * cols + c)
                while lane > ZERO:
                    lane -= ONE
                    i -= size
                    above = top[EDGE] if r == 0 else top[symbols[i - np.uint64(cols)]]
                    before = left[EDGE] if c == 0 else left[symbols[i - ONE]]
                    k = _key(symbols[i], above, before, plane_context[first + lane], context_map)
                    x = state[lane]
                    if code[k | ONE]:
                        words[p - ONE] = np.uint16(x & WORD_MASK)
                        state[lane], p = _put(x, code[k], code[k | ONE], p)
                    else:
                        state[lane], p = _put_escaped(x, k, p, escape, words)
    for lane in range(lanes - 1, -1, -1):
        p -= TWO
        words[p] = np.uint16(state[lane] >> WORD)
        words[p + ONE] = np.uint16(state[lane] & WORD_MASK)
    return np.int64(p)


@kernel
def _key(symbol, above, before, plane_context, context_map):
    """Where `code` holds this symbol in the table of this context."""
    t = np.uint64(context_map[plane_context + np.uint64(above) + np.uint64(before)])
    return ((t << SYMBOL_BITS) | np.uint64(symbol)) << ONE


@kernel
def _put(x, m, e, p):
    """Code one symbol of entry (m, e) of `code`: the new state and start of the words."""
    spill = x >> SPILL_SHIFT >= e >> FREQUENCY_SHIFT
    x = (x >> WORD) if spill else x
    return x + ((x * m) >> RECIPROCAL_BITS) * ((e >> WORD) & WORD_MASK) + (e & WORD_MASK), p - np.uint64(spill)


@kernel
def _put_escaped(x, k, p, escape, words):
    """The same for a symbol that the table has no room for."""
    # what is decoded last is coded first: the raw byte, then the escape
    if x >= RAW_FREQUENCY << SPILL_SHIFT:
        p -= ONE
        words[p] = np.uint16(x & WORD_MASK)
        x >>= WORD
    x = ((x >> RAW_BITS) << TABLE_BITS) + (((k >> ONE) & BYTE) << RAW_BITS) + (x & RAW_MASK)
    f = escape[k >> KEY_TABLE_SHIFT]
    if x >= f << SPILL_SHIFT:
        p -= ONE
        words[p] = np.uint16(x & WORD_MASK)
        x >>= WORD
    return ((x // f) << TABLE_BITS) + (FULL - f) + x % f, p


@kernel
def _encode_eights(
    symbols, rows, cols, groups, plane_context, top, left, context_map, code, escape, words, p, state
):  # fmt: skip
    """The first `groups` groups of eight planes, from the last to the first; returns p. state: (8,), in and out."""
    size = np.uint64(rows * cols)
    x0, x1, x2, x3 = state[ZERO], state[ONE], state[TWO], state[THREE]
    x4, x5, x6, x7 = state[FOUR], state[FIVE], state[SIX], state[SEVEN]
    for g in range(groups - 1, -1, -1):
        first = np.uint64(g * 8)
        c0, c1 = plane_context[first], plane_context[first + ONE]
        c2, c3 = plane_context[first + TWO], plane_context[first + THREE]
        c4, c5 = plane_context[first + FOUR], plane_context[first + FIVE]
        c6, c7 = plane_context[first + SIX], plane_context[first + SEVEN]
        for r in range(rows - 1, -1, -1):
            t_edge = EDGE if r == 0 else ZERO
            up = ZERO if r == 0 else np.uint64(cols)
            for c in range(cols - 1, -1, -1):
                l_edge = EDGE if c == 0 else ZERO
                back = ZERO if c == 0 else ONE
                i = (first + SEVEN) * size + np.uint64(r * cols + c)
                k7 = _find(symbols, i, up, back, t_edge, l_edge, c7, top, left, context_map)
                i -= size
                k6 = _find(symbols, i, up, back, t_edge, l_edge, c6, top, left, context_map)
                i -= size
                k5 = _find(symbols, i, up, back, t_edge, l_edge, c5, top, left, context_map)
                i -= size
                k4 = _find(symbols, i, up, back, t_edge, l_edge, c4, top, left, context_map)
                i -= size
                k3 = _find(symbols, i, up, back, t_edge, l_edge, c3, top, left, context_map)
                i -= size
                k2 = _find(symbols, i, up, back, t_edge, l_edge, c2, top, left, context_map)
                i -= size
                k1 = _find(symbols, i, up, back, t_edge, l_edge, c1, top, left, context_map)
                i -= size
                k0 = _find(symbols, i, up, back, t_edge, l_edge, c0, top, left, context_map)
                if code[k7 | ONE]:
                    words[p - ONE] = np.uint16(x7 & WORD_MASK)
                    x7, p = _put(x7, code[k7], code[k7 | ONE], p)
                else:
                    x7, p = _put_escaped(x7, k7, p, escape, words)
                if code[k6 | ONE]:
                    words[p - ONE] = np.uint16(x6 & WORD_MASK)
                    x6, p = _put(x6, code[k6], code[k6 | ONE], p)
                else:
                    x6, p = _put_escaped(x6, k6, p, escape, words)
                if code[k5 | ONE]:
                    words[p - ONE] = np.uint16(x5 & WORD_MASK)
                    x5, p = _put(x5, code[k5], code[k5 | ONE], p)
                else:
                    x5, p = _put_escaped(x5, k5, p, escape, words)
                if code[k4 | ONE]:
                    words[p - ONE] = np.uint16(x4 & WORD_MASK)
                    x4, p = _put(x4, code[k4], code[k4 | ONE], p)
                else:
                    x4, p = _put_escaped(x4, k4, p, escape, words)
                if code[k3 | ONE]:
                    words[p - ONE] = np.uint16(x3 & WORD_MASK)
                    x3, p = _put(x3, code[k3], code[k3 | ONE], p)
                else:
                    x3, p = _put_escaped(x3, k3, p, escape, words)
                if code[k2 | ONE]:
                    words[p - ONE] = np.uint16(x2 & WORD_MASK)
                    x2, p = _put(x2, code[k2], code[k2 | ONE], p)
                else:
                    x2, p = _put_escaped(x2, k2, p, escape, words)
                if code[k1 | ONE]:
                    words[p - ONE] = np.uint16(x1 & WORD_MASK)
                    x1, p = _put(x1, code[k1], code[k1 | ONE], p)
                else:
                    x1, p = _put_escaped(x1, k1, p, escape, words)
                if code[k0 | ONE]:
                    words[p - ONE] = np.uint16(x0 & WORD_MASK)
                    x0, p = _put(x0, code[k0], code[k0 | ONE], p)
                else:
                    x0, p = _put_escaped(x0, k0, p, escape, words)
    state[ZERO], state[ONE], state[TWO], state[THREE] = x0, x1, x2, x3
    state[FOUR], state[FIVE], state[SIX], state[SEVEN] = x4, x5, x6, x7
    return p


@kernel
def _find(symbols, i, up, back, t_edge, l_edge, plane_context, top, left, context_map):
    """`_key` of block i; the neighbours lie `up` and `back` blocks before it, 0 with the edge set where outside."""
    above = top[t_edge | np.uint64(symbols[i - up])]
    before = left[l_edge | np.uint64(symbols[i - back])]
    return _key(symbols[i], above, before, plane_context, context_map)


@kernel
def decode(words, count, rows, cols, lanes, plane_context, top, left, context_map, slots, escape, symbols):
    """Decode into `symbols`; returns OK, or why the stream cannot be one of ours.

    An escaped symbol may be any byte: whether it is one of the alphabet is for the caller to see.

    words: (count + 2·lanes + 2,) uint16, the stream followed by zeros. slots: (T·4096,) uint32:
    symbol | frequency << 8 | (slot − cumulative) << 20; frequency 0 marks the escape. The rest as in `encode`.
    """
    size = np.uint64(rows * cols)
    planes = symbols.size // (rows * cols)
    if count < 2 * lanes:
        return OVERRUN
    end = np.uint64(count)
    state = np.empty(max(lanes, 8), np.uint64)
    p = ZERO
    for lane in range(lanes):
        state[lane] = (np.uint64(words[p]) << WORD) | np.uint64(words[p + ONE])
        if state[lane] < LOW or state[lane] >> WORD >= LOW:
            return BAD_END
        p += TWO
    group = 0
    if lanes == 8 and planes >= 8:
        group = planes // 8
        p = _decode_eights(
            words, end, p, rows, cols, group, plane_context, top, left, context_map, slots, escape, symbols, state
        )
        if p > end:
            return OVERRUN
    while group * lanes < planes:
        first = np.uint64(group * lanes)
        active = np.uint64(min(lanes, planes - group * lanes))
        for r in range(rows):
            for c in range(cols):
                # A step reads at most two words per lane: checked once here, the zeros behind the stream take the rest.
                if p > end:
                    return OVERRUN
                i = first * size + np.uint64(r * cols + c)
                for lane in range(active):
                    above = top[EDGE] if r == 0 else top[symbols[i - np.uint64(cols)]]
                    before = left[EDGE] if c == 0 else left[symbols[i - ONE]]
                    t = np.uint64(context_map[plane_context[first + lane] + np.uint64(above) + np.uint64(before)])
                    e = _look(state[lane], t, slots)
                    s, f = e & BYTE, (e >> SYMBOL_BITS) & SLOT
                    if f:
                        x = _take(state[lane], f, e)
                    else:
                        s, x, p = _take_escaped(state[lane], t, p, escape, words)
                    state[lane], p = _refill(x, words[p], p)
                    symbols[i] = np.uint8(s)
                    i += size
        group += 1
    if p != end:
        return BAD_END
    for lane in range(lanes):
        if state[lane] != LOW:
            return BAD_END
    return OK


@kernel
def _look(x, t, slots):
    """The entry of state x in table t."""
    return np.uint64(slots[(t << TABLE_BITS) | (x & SLOT)])


@kernel
def _take(x, f, e):
    """The state behind a symbol of frequency f and entry e, before it is refilled."""
    return f * (x >> TABLE_BITS) + (e >> BIAS_SHIFT)


@kernel
def _refill(x, word, p):
    """The state with `word` if it has room for it, and the place of the next word."""
    room = x < LOW
    return ((x << WORD) | np.uint64(word)) if room else x, p + np.uint64(room)


@kernel
def _take_escaped(x, t, p, escape, words):
    """The symbol behind an escape of table t, the state behind both before it is refilled, the place in the words."""
    f = escape[t]
    x = f * (x >> TABLE_BITS) + (x & SLOT) - (FULL - f)
    if x < LOW:
        x = (x << WORD) | np.uint64(words[p])
        p += ONE
    return (x & SLOT) >> RAW_BITS, ((x >> TABLE_BITS) << RAW_BITS) + (x & RAW_MASK), p


@kernel
def _decode_eights(
    words, end, p, rows, cols, groups, plane_context, top, left, context_map, slots, escape, symbols, state
):
    """The first `groups` groups of eight planes; returns p, beyond `end` if it got there. state: (8,), in and out."""
    size = np.uint64(rows * cols)
    width = np.uint64(cols * 8)
    x0, x1, x2, x3 = state[ZERO], state[ONE], state[TWO], state[THREE]
    x4, x5, x6, x7 = state[FOUR], state[FIVE], state[SIX], state[SEVEN]
    columns = np.empty(cols, np.uint64)
    above = columns.view(np.uint8)  # context contribution of the block above, per column and lane
    edges = np.uint64(top[EDGE]) * EIGHT_ONES
    for g in range(groups):
        first = np.uint64(g * 8)
        for c in range(cols):  # eight at once: a call of memset costs small planes 4 % of their time
            columns[c] = edges
        c0, c1 = plane_context[first], plane_context[first + ONE]
        c2, c3 = plane_context[first + TWO], plane_context[first + THREE]
        c4, c5 = plane_context[first + FOUR], plane_context[first + FIVE]
        c6, c7 = plane_context[first + SIX], plane_context[first + SEVEN]
        block = first * size
        for _ in range(rows):
            b0 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = np.uint64(left[EDGE])
            a = ZERO
            while a < width:
                # A step reads at most two words per lane: checked once here, the zeros behind the stream take the rest.
                if p > end:
                    return p
                t0 = np.uint64(context_map[c0 + np.uint64(above[a]) + b0])
                t1 = np.uint64(context_map[c1 + np.uint64(above[a + ONE]) + b1])
                t2 = np.uint64(context_map[c2 + np.uint64(above[a + TWO]) + b2])
                t3 = np.uint64(context_map[c3 + np.uint64(above[a + THREE]) + b3])
                t4 = np.uint64(context_map[c4 + np.uint64(above[a + FOUR]) + b4])
                t5 = np.uint64(context_map[c5 + np.uint64(above[a + FIVE]) + b5])
                t6 = np.uint64(context_map[c6 + np.uint64(above[a + SIX]) + b6])
                t7 = np.uint64(context_map[c7 + np.uint64(above[a + SEVEN]) + b7])
                e0, e1, e2, e3 = _look(x0, t0, slots), _look(x1, t1, slots), _look(x2, t2, slots), _look(x3, t3, slots)
                e4, e5, e6, e7 = _look(x4, t4, slots), _look(x5, t5, slots), _look(x6, t6, slots), _look(x7, t7, slots)
                i = block
                s, f = e0 & BYTE, (e0 >> SYMBOL_BITS) & SLOT
                if f:
                    x0 = _take(x0, f, e0)
                else:
                    s, x0, p = _take_escaped(x0, t0, p, escape, words)
                x0, p = _refill(x0, words[p], p)
                b0 = _keep(s, symbols, i, above, a, top, left)
                i += size
                s, f = e1 & BYTE, (e1 >> SYMBOL_BITS) & SLOT
                if f:
                    x1 = _take(x1, f, e1)
                else:
                    s, x1, p = _take_escaped(x1, t1, p, escape, words)
                x1, p = _refill(x1, words[p], p)
                b1 = _keep(s, symbols, i, above, a + ONE, top, left)
                i += size
                s, f = e2 & BYTE, (e2 >> SYMBOL_BITS) & SLOT
                if f:
                    x2 = _take(x2, f, e2)
                else:
                    s, x2, p = _take_escaped(x2, t2, p, escape, words)
                x2, p = _refill(x2, words[p], p)
                b2 = _keep(s, symbols, i, above, a + TWO, top, left)
                i += size
                s, f = e3 & BYTE, (e3 >> SYMBOL_BITS) & SLOT
                if f:
                    x3 = _take(x3, f, e3)
                else:
                    s, x3, p = _take_escaped(x3, t3, p, escape, words)
                x3, p = _refill(x3, words[p], p)
                b3 = _keep(s, symbols, i, above, a + THREE, top, left)
                i += size
                s, f = e4 & BYTE, (e4 >> SYMBOL_BITS) & SLOT
                if f:
                    x4 = _take(x4, f, e4)
                else:
                    s, x4, p = _take_escaped(x4, t4, p, escape, words)
                x4, p = _refill(x4, words[p], p)
                b4 = _keep(s, symbols, i, above, a + FOUR, top, left)
                i += size
                s, f = e5 & BYTE, (e5 >> SYMBOL_BITS) & SLOT
                if f:
                    x5 = _take(x5, f, e5)
                else:
                    s, x5, p = _take_escaped(x5, t5, p, escape, words)
                x5, p = _refill(x5, words[p], p)
                b5 = _keep(s, symbols, i, above, a + FIVE, top, left)
                i += size
                s, f = e6 & BYTE, (e6 >> SYMBOL_BITS) & SLOT
                if f:
                    x6 = _take(x6, f, e6)
                else:
                    s, x6, p = _take_escaped(x6, t6, p, escape, words)
                x6, p = _refill(x6, words[p], p)
                b6 = _keep(s, symbols, i, above, a + SIX, top, left)
                i += size
                s, f = e7 & BYTE, (e7 >> SYMBOL_BITS) & SLOT
                if f:
                    x7 = _take(x7, f, e7)
                else:
                    s, x7, p = _take_escaped(x7, t7, p, escape, words)
                x7, p = _refill(x7, words[p], p)
                b7 = _keep(s, symbols, i, above, a + SEVEN, top, left)
                a += EIGHT
                block += ONE
    state[ZERO], state[ONE], state[TWO], state[THREE] = x0, x1, x2, x3
    state[FOUR], state[FIVE], state[SIX], state[SEVEN] = x4, x5, x6, x7
    return p


@kernel
def _keep(s, symbols, i, above, a, top, left):
    """Put symbol s where it belongs and where the block below looks; returns what the block to the right adds."""
    symbols[i] = np.uint8(s)
    above[a] = top[s]
    return np.uint64(left[s])
