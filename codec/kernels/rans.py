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
SPILL_SHIFT = np.uint64(19)
RECIPROCAL_BITS = np.uint64(43)
RAW_FREQUENCY = np.uint64(16)  # after an escape the symbol is uniform over 256: 4096/256
RAW_BITS = np.uint64(4)
RAW_MASK = np.uint64(15)
BYTE = np.uint64(255)
EDGE = np.uint64(256)  # second half of `top` and `left`: the neighbour lies outside the plane
ZERO = np.uint64(0)
ONE = np.uint64(1)
TWO = np.uint64(2)
FOUR = np.uint64(4)

OK = 0
OVERRUN = 1
BAD_SYMBOL = 2
BAD_END = 3


@kernel
def encode(symbols, rows, cols, lanes, plane_context, top, left, context_map, code, escape, words):
    """Code `symbols` into the end of `words`; returns the index of the first word written.

    symbols: (P·rows·cols,) uint8. plane_context: (P,) uint64, where the plane's channel starts in context_map.
    top, left: (512,) uint64, what a neighbour's symbol adds to the context index; from 256 on for one outside.
    context_map: table index per context, uint8. code: (T·256, 2) uint64: reciprocal; frequency << 16 | cumulative.
    escape: (T,) uint64, frequency of the escape. words: (≥ 2·symbols + 2·lanes,) uint16.
    """
    size = np.uint64(rows * cols)
    planes = symbols.size // (rows * cols)
    state = np.full(lanes, LOW, np.uint64)
    p = np.uint64(words.size)
    for g in range((planes + lanes - 1) // lanes - 1, -1, -1):
        first = np.uint64(g * lanes)
        active = np.uint64(min(lanes, planes - g * lanes))
        for r in range(rows - 1, -1, -1):
            t_edge = EDGE if r == 0 else ZERO
            t_back = ZERO if r == 0 else np.uint64(cols)
            for c in range(cols - 1, -1, -1):
                l_edge = EDGE if c == 0 else ZERO
                l_back = ZERO if c == 0 else ONE
                i = (first + active) * size + np.uint64(r * cols + c)
                lane = active
                while lane > ZERO:
                    lane -= ONE
                    i -= size
                    s = np.uint64(symbols[i])
                    above = top[t_edge | np.uint64(symbols[i - t_back])]
                    before = left[l_edge | np.uint64(symbols[i - l_back])]
                    t = np.uint64(context_map[plane_context[first + lane] + above + before])
                    k = (t << SYMBOL_BITS) | s
                    fc = code[k, ONE]
                    f = fc >> WORD
                    x = state[lane]
                    if f == ZERO:  # what is decoded last is coded first: the raw byte, then the escape
                        if x >= RAW_FREQUENCY << SPILL_SHIFT:
                            p -= ONE
                            words[p] = np.uint16(x & WORD_MASK)
                            x >>= WORD
                        x = ((x >> RAW_BITS) << TABLE_BITS) + (s << RAW_BITS) + (x & RAW_MASK)
                        f = escape[t]
                        if x >= f << SPILL_SHIFT:
                            p -= ONE
                            words[p] = np.uint16(x & WORD_MASK)
                            x >>= WORD
                        state[lane] = ((x // f) << TABLE_BITS) + (FULL - f) + x % f
                    else:
                        words[p - ONE] = np.uint16(x & WORD_MASK)
                        spill = np.uint64(x >= f << SPILL_SHIFT)
                        p -= spill
                        x >>= spill << FOUR
                        q = (x * code[k, ZERO]) >> RECIPROCAL_BITS
                        state[lane] = x + q * (FULL - f) + (fc & WORD_MASK)
    for lane in range(lanes - 1, -1, -1):
        p -= TWO
        words[p] = np.uint16(state[lane] >> WORD)
        words[p + ONE] = np.uint16(state[lane] & WORD_MASK)
    return np.int64(p)


@kernel
def decode(words, count, rows, cols, lanes, plane_context, top, left, context_map, slots, escape, n_symbols, symbols):
    """Decode into `symbols`; returns OK, or why the stream cannot be one of ours.

    words: (count + 2·lanes + 2,) uint16, the stream followed by zeros. slots: (T·4096,) uint32:
    symbol | frequency << 8 | (slot − cumulative) << 20; frequency 0 marks the escape. The rest as in `encode`.
    """
    size = np.uint64(rows * cols)
    planes = symbols.size // (rows * cols)
    if count < 2 * lanes:
        return OVERRUN
    end = np.uint64(count)
    limit = np.uint64(n_symbols)
    width = np.uint64(lanes)
    state = np.empty(lanes, np.uint64)
    above = np.empty(cols * lanes, np.uint64)  # context contribution of channel and block above, per column and lane
    before = np.empty(lanes, np.uint64)
    p = ZERO
    for lane in range(lanes):
        state[lane] = (np.uint64(words[p]) << WORD) | np.uint64(words[p + ONE])
        if state[lane] < LOW or state[lane] >> WORD >= LOW:
            return BAD_END
        p += TWO
    for g in range((planes + lanes - 1) // lanes):
        first = np.uint64(g * lanes)
        active = np.uint64(min(lanes, planes - g * lanes))
        for c in range(cols):
            for lane in range(active):
                above[np.uint64(c) * width + lane] = top[EDGE] + plane_context[first + lane]
        for r in range(rows):
            before[:] = left[EDGE]
            column = ZERO
            for c in range(cols):
                # A step reads at most two words per lane: checked once here, the zeros behind the stream take the rest.
                if p > end:
                    return OVERRUN
                i = first * size + np.uint64(r * cols + c)
                for lane in range(active):
                    x = state[lane]
                    t = np.uint64(context_map[above[column + lane] + before[lane]])
                    e = np.uint64(slots[(t << TABLE_BITS) | (x & SLOT)])
                    s = e & BYTE
                    f = (e >> SYMBOL_BITS) & SLOT
                    if f == ZERO:
                        f = escape[t]
                        x = f * (x >> TABLE_BITS) + (x & SLOT) - (FULL - f)
                        if x < LOW:
                            x = (x << WORD) | np.uint64(words[p])
                            p += ONE
                        s = (x & SLOT) >> RAW_BITS
                        if s >= limit:
                            return BAD_SYMBOL
                        x = ((x >> TABLE_BITS) << RAW_BITS) + (x & RAW_MASK)
                    else:
                        x = f * (x >> TABLE_BITS) + (e >> BIAS_SHIFT)
                    refill = np.uint64(x < LOW)
                    state[lane] = (x << (refill << FOUR)) | (np.uint64(words[p]) * refill)
                    p += refill
                    above[column + lane] = top[s] + plane_context[first + lane]
                    before[lane] = left[s]
                    symbols[i] = np.uint8(s)
                    i += size
                column += width
    if p != end:
        return BAD_END
    for lane in range(lanes):
        if state[lane] != LOW:
            return BAD_END
    return OK
