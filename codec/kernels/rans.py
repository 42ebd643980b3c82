"""The context rANS coder over block symbols. Read docs/bitstream.md §4 and ans.py first.

A group of `lanes` planes is coded side by side, plane l of the group by state l, so that the neighbours of a block are
always known to its lane. All lanes share one stream of words; the encoder runs backwards from its end.

Full groups of eight lanes, nearly all of a large tensor, have separate kernels with the lanes written out. Their states
stay in registers, and a step does one stage for all lanes before the next stage. Symbol by symbol, each instruction
waits for the one before it, and the processor's instruction queue limits the speed instead of its width. In stages the
kernels are 1.4 (encode) and 1.7 times (decode) as fast.

The lanes of a step look alike and stay written out. Tried for the decoder, measured in CPU time on 4-level features:
a helper for one lane's symbol decodes 130 instead of 850 million elements per second, because numba then counts
references to its arrays at every symbol; the helper inlined by numba (`inline="always"`) reaches 190.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .ans import (
    BYTE,
    EIGHT,
    FIVE,
    FOUR,
    LOW,
    OK,
    ONE,
    OVERRUN,
    SEVEN,
    SIX,
    SLOT,
    SYMBOL_BITS,
    THREE,
    TWO,
    WORD_MASK,
    ZERO,
    ended,
    look,
    put,
    put_escaped,
    read_states,
    refill,
    take,
    take_escaped,
    write_states,
)
from .compilation.policy import kernel

EDGE = np.uint64(256)  # second half of `top` and `left`: the neighbour lies outside the plane
EIGHT_ONES = np.uint64(0x0101010101010101)


class Contexts(NamedTuple):
    """Selects the table of a block: table_of[plane[i] + top[symbol above] + left[symbol before]].

    plane: (P,) uint64, where the plane's channel starts in table_of. top, left: (512,) uint8, what a neighbour's symbol
    adds to the context index; from 256 on for one outside. table_of: uint8, the table of each context.
    """

    plane: np.ndarray
    top: np.ndarray
    left: np.ndarray
    table_of: np.ndarray


@kernel
def encode(symbols, rows, cols, lanes, contexts, code, escape, words):
    """Code `symbols` into the end of `words`; returns the index of the first word written.

    symbols: (P·rows·cols,) uint8. contexts: Contexts. code, escape: ans.py. words: (≥ 2·symbols + 2·lanes,) uint16.
    """
    plane_context, top, left, context_map = contexts
    size = np.uint64(rows * cols)
    planes = symbols.size // (rows * cols)
    state = np.full(max(lanes, 8), LOW, np.uint64)
    p = np.uint64(words.size)
    group = (planes + lanes - 1) // lanes
    while group > 0:
        if lanes == 8 and group * 8 <= planes:
            p = _encode_eights(symbols, rows, cols, group, contexts, code, escape, words, p, state)
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
                        state[lane], p = put(x, code[k], code[k | ONE], p)
                    else:
                        state[lane], p = put_escaped(x, k, p, escape, words)
    return write_states(state, lanes, words, p)


@kernel
def _key(symbol, above, before, plane_context, context_map):
    """The index into `code` of this symbol in the table of this context."""
    t = np.uint64(context_map[plane_context + np.uint64(above) + np.uint64(before)])
    return ((t << SYMBOL_BITS) | np.uint64(symbol)) << ONE


@kernel
def _encode_eights(symbols, rows, cols, groups, contexts, code, escape, words, p, state):
    """Code the first `groups` groups of eight planes, last group first; returns p. state: (8,), in and out."""
    plane_context, top, left, context_map = contexts
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
                    x7, p = put(x7, code[k7], code[k7 | ONE], p)
                else:
                    x7, p = put_escaped(x7, k7, p, escape, words)
                if code[k6 | ONE]:
                    words[p - ONE] = np.uint16(x6 & WORD_MASK)
                    x6, p = put(x6, code[k6], code[k6 | ONE], p)
                else:
                    x6, p = put_escaped(x6, k6, p, escape, words)
                if code[k5 | ONE]:
                    words[p - ONE] = np.uint16(x5 & WORD_MASK)
                    x5, p = put(x5, code[k5], code[k5 | ONE], p)
                else:
                    x5, p = put_escaped(x5, k5, p, escape, words)
                if code[k4 | ONE]:
                    words[p - ONE] = np.uint16(x4 & WORD_MASK)
                    x4, p = put(x4, code[k4], code[k4 | ONE], p)
                else:
                    x4, p = put_escaped(x4, k4, p, escape, words)
                if code[k3 | ONE]:
                    words[p - ONE] = np.uint16(x3 & WORD_MASK)
                    x3, p = put(x3, code[k3], code[k3 | ONE], p)
                else:
                    x3, p = put_escaped(x3, k3, p, escape, words)
                if code[k2 | ONE]:
                    words[p - ONE] = np.uint16(x2 & WORD_MASK)
                    x2, p = put(x2, code[k2], code[k2 | ONE], p)
                else:
                    x2, p = put_escaped(x2, k2, p, escape, words)
                if code[k1 | ONE]:
                    words[p - ONE] = np.uint16(x1 & WORD_MASK)
                    x1, p = put(x1, code[k1], code[k1 | ONE], p)
                else:
                    x1, p = put_escaped(x1, k1, p, escape, words)
                if code[k0 | ONE]:
                    words[p - ONE] = np.uint16(x0 & WORD_MASK)
                    x0, p = put(x0, code[k0], code[k0 | ONE], p)
                else:
                    x0, p = put_escaped(x0, k0, p, escape, words)
    state[ZERO], state[ONE], state[TWO], state[THREE] = x0, x1, x2, x3
    state[FOUR], state[FIVE], state[SIX], state[SEVEN] = x4, x5, x6, x7
    return p


@kernel
def _find(symbols, i, up, back, t_edge, l_edge, plane_context, top, left, context_map):
    """`_key` of block i. Its neighbours lie `up` and `back` blocks before it; for outside, 0 with the edge set."""
    above = top[t_edge | np.uint64(symbols[i - up])]
    before = left[l_edge | np.uint64(symbols[i - back])]
    return _key(symbols[i], above, before, plane_context, context_map)


@kernel
def decode(words, count, rows, cols, lanes, contexts, slots, escape, symbols):
    """Decode into `symbols`; returns OK, or a status that says why the stream is invalid.

    An escaped symbol may be any byte: the caller checks that it is in the alphabet.

    words: (count + 2·lanes + 2,) uint16, the stream followed by zeros. slots, escape: ans.py. The rest as in `encode`.
    """
    plane_context, top, left, context_map = contexts
    size = np.uint64(rows * cols)
    planes = symbols.size // (rows * cols)
    end = np.uint64(count)
    state = np.empty(max(lanes, 8), np.uint64)
    status = read_states(words, count, lanes, state)
    if status != OK:
        return status
    p = np.uint64(2 * lanes)
    group = 0
    if lanes == 8 and planes >= 8:
        group = planes // 8
        shared = words, end, p, rows, cols, group, contexts, slots, escape, symbols, state
        p = _decode_eights(*shared, None) if rows == 1 else _decode_eights(*shared, np.empty(cols, np.uint64))
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
                    e = look(state[lane], t, slots)
                    s, f = e & BYTE, (e >> SYMBOL_BITS) & SLOT
                    if f:
                        x = take(state[lane], f, e)
                    else:
                        s, x, p = take_escaped(state[lane], t, p, escape, words)
                    state[lane], p = refill(x, words[p], p)
                    symbols[i] = np.uint8(s)
                    i += size
        group += 1
    return ended(state, lanes, p, end)


@kernel
def _decode_eights(words, end, p, rows, cols, groups, contexts, slots, escape, symbols, state, columns):
    """Decode the first `groups` groups of eight planes; returns p, above `end` if the stream is too short.

    state: (8,), in and out. columns: scratch, (cols,) uint64. It is None for planes of one row, which have nothing
    above; that signature is compiled separately.
    """
    plane_context, top, left, context_map = contexts
    size = np.uint64(rows * cols)
    width = np.uint64(cols * 8)
    x0, x1, x2, x3 = state[ZERO], state[ONE], state[TWO], state[THREE]
    x4, x5, x6, x7 = state[FOUR], state[FIVE], state[SIX], state[SEVEN]
    edge = np.uint64(top[EDGE])
    above = None if columns is None else columns.view(np.uint8)  # what the block above adds, per column and lane
    for g in range(groups):
        first = np.uint64(g * 8)
        if columns is not None:
            for c in range(cols):  # eight at once: a call of memset costs small planes 4 % of their time
                columns[c] = edge * EIGHT_ONES
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
                t0 = np.uint64(context_map[c0 + _above(above, a, edge) + b0])
                t1 = np.uint64(context_map[c1 + _above(above, a + ONE, edge) + b1])
                t2 = np.uint64(context_map[c2 + _above(above, a + TWO, edge) + b2])
                t3 = np.uint64(context_map[c3 + _above(above, a + THREE, edge) + b3])
                t4 = np.uint64(context_map[c4 + _above(above, a + FOUR, edge) + b4])
                t5 = np.uint64(context_map[c5 + _above(above, a + FIVE, edge) + b5])
                t6 = np.uint64(context_map[c6 + _above(above, a + SIX, edge) + b6])
                t7 = np.uint64(context_map[c7 + _above(above, a + SEVEN, edge) + b7])
                e0, e1, e2, e3 = look(x0, t0, slots), look(x1, t1, slots), look(x2, t2, slots), look(x3, t3, slots)
                e4, e5, e6, e7 = look(x4, t4, slots), look(x5, t5, slots), look(x6, t6, slots), look(x7, t7, slots)
                i = block
                s, f = e0 & BYTE, (e0 >> SYMBOL_BITS) & SLOT
                if f:
                    x0 = take(x0, f, e0)
                else:
                    s, x0, p = take_escaped(x0, t0, p, escape, words)
                x0, p = refill(x0, words[p], p)
                b0 = _keep(s, symbols, i, above, a, top, left)
                i += size
                s, f = e1 & BYTE, (e1 >> SYMBOL_BITS) & SLOT
                if f:
                    x1 = take(x1, f, e1)
                else:
                    s, x1, p = take_escaped(x1, t1, p, escape, words)
                x1, p = refill(x1, words[p], p)
                b1 = _keep(s, symbols, i, above, a + ONE, top, left)
                i += size
                s, f = e2 & BYTE, (e2 >> SYMBOL_BITS) & SLOT
                if f:
                    x2 = take(x2, f, e2)
                else:
                    s, x2, p = take_escaped(x2, t2, p, escape, words)
                x2, p = refill(x2, words[p], p)
                b2 = _keep(s, symbols, i, above, a + TWO, top, left)
                i += size
                s, f = e3 & BYTE, (e3 >> SYMBOL_BITS) & SLOT
                if f:
                    x3 = take(x3, f, e3)
                else:
                    s, x3, p = take_escaped(x3, t3, p, escape, words)
                x3, p = refill(x3, words[p], p)
                b3 = _keep(s, symbols, i, above, a + THREE, top, left)
                i += size
                s, f = e4 & BYTE, (e4 >> SYMBOL_BITS) & SLOT
                if f:
                    x4 = take(x4, f, e4)
                else:
                    s, x4, p = take_escaped(x4, t4, p, escape, words)
                x4, p = refill(x4, words[p], p)
                b4 = _keep(s, symbols, i, above, a + FOUR, top, left)
                i += size
                s, f = e5 & BYTE, (e5 >> SYMBOL_BITS) & SLOT
                if f:
                    x5 = take(x5, f, e5)
                else:
                    s, x5, p = take_escaped(x5, t5, p, escape, words)
                x5, p = refill(x5, words[p], p)
                b5 = _keep(s, symbols, i, above, a + FIVE, top, left)
                i += size
                s, f = e6 & BYTE, (e6 >> SYMBOL_BITS) & SLOT
                if f:
                    x6 = take(x6, f, e6)
                else:
                    s, x6, p = take_escaped(x6, t6, p, escape, words)
                x6, p = refill(x6, words[p], p)
                b6 = _keep(s, symbols, i, above, a + SIX, top, left)
                i += size
                s, f = e7 & BYTE, (e7 >> SYMBOL_BITS) & SLOT
                if f:
                    x7 = take(x7, f, e7)
                else:
                    s, x7, p = take_escaped(x7, t7, p, escape, words)
                x7, p = refill(x7, words[p], p)
                b7 = _keep(s, symbols, i, above, a + SEVEN, top, left)
                a += EIGHT
                block += ONE
    state[ZERO], state[ONE], state[TWO], state[THREE] = x0, x1, x2, x3
    state[FOUR], state[FIVE], state[SIX], state[SEVEN] = x4, x5, x6, x7
    return p


@kernel
def _keep(s, symbols, i, above, a, top, left):
    """Store symbol s, and what it adds for the block below; returns what it adds for the block to the right."""
    symbols[i] = np.uint8(s)
    if above is not None:
        above[a] = top[s]
    return np.uint64(left[s])


@kernel
def _above(above, a, edge):
    """What the block above adds to the context index of this one."""
    return edge if above is None else np.uint64(above[a])
