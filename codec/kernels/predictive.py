"""The predictive rANS coder: a table for each level by what its neighbours foretell. Read docs/bitstream.md §6 first.

Eight planes at most are coded side by side, and predicted (prediction.py) from planes of earlier groups, which a
decoder has whole. What it does not have whole are the planes themselves: what the row above adds is added row by row,
and what the element to the left adds, element by element.

Groups of eight lanes have kernels of their own, written out as those of rans.py are, and here for one more reason: with
the branch for escapes in a helper, numba counts references to the arrays at every symbol, which costs 20 to 30 ns.
"""

from __future__ import annotations

import numpy as np

from .ans import (
    BAD_END,
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
    WORD,
    WORD_MASK,
    ZERO,
    look,
    put,
    put_escaped,
    refill,
    take,
    take_escaped,
)
from .policy import kernel
from .prediction import (
    DENSE,
    GROUP,
    GUARD,
    ROW_STRETCH,
    SCATTERED,
    add_row,
    field_size,
    find_contexts,
    gather,
    kind_of,
    list_dense,
    most_taps,
    put_plane,
    scatter,
    start_of,
    sums_size,
)


@kernel
def encode(symbols, first_channel, lanes, layout, model, code, escape, words):
    """Code `symbols` into the end of `words`; returns the index of the first word written.

    symbols: (P·H·W,) uint8, planes of channels first_channel, first_channel + 1, … and again from 0 for the next image.
    layout, model: above. code, escape: ans.py, but with 2^symbol_bits symbols. words: (≥ 2·symbols + 2·lanes,) uint16.
    """
    starts, sources, places, weights = model.starts, model.channels, model.places, model.weights
    out_starts, out_places, out_weights = model.out_starts, model.out_places, model.out_weights
    own, bias, table, rows = model.own, model.bias, model.table, model.rows
    size = layout.height * layout.width
    channels = bias.size
    planes = symbols.size // size
    state = np.full(GROUP, LOW, np.uint64)
    field = np.zeros(field_size(layout, channels), np.int8)
    eights = field.view(np.uint64)
    dense = np.zeros(channels, np.uint8)
    tally = np.zeros(3, np.int64)
    sums = np.zeros(sums_size(layout, channels), np.int16)
    live_places, live_weights = np.zeros(most_taps(starts), np.uint64), np.zeros(most_taps(starts), np.int16)
    p = np.uint64(words.size)
    end = planes
    while end > 0:
        # planes begin to end − 1 are of one image, of channels low to high − 1
        high = (first_channel + end - 1) % channels + 1
        begin = max(0, end - high)
        low = high - (end - begin)
        if end < planes:
            field[:] = 0
            dense[:] = 0
            sums[:] = 0
        tally[:] = 0
        for c in range(low, high):
            put_plane(symbols, (begin + c - low) * size, field, c, layout)
            kind = kind_of(eights, c, layout)
            if kind == SCATTERED:
                scatter(field, eights, c, layout, out_starts, out_places, out_weights, sums)
            dense[c] = kind == DENSE
            tally[kind] += 1
        top = high
        while top > low:
            group = max(low, (top - 1) // GROUP * GROUP)
            listed = list_dense(tally)
            for c in range(group, top if tally[DENSE] or not layout.few else group):
                gather(
                    field, c, dense, listed, layout, starts, sources, places, weights, live_places, live_weights, sums
                )  # fmt: skip
            for c in range(group, top):
                find_contexts(field, c, layout, own, bias, sums)
            start = (begin + group - low) * size
            if lanes == GROUP and top - group == GROUP:
                p = _encode_eight(symbols, start, group, layout, rows, table, sums, code, escape, words, p, state)
            else:
                p = _encode_some(
                    symbols, start, group, top, lanes, layout, rows, table, sums, code, escape, words, p, state
                )
            top = group
        end = begin
    for lane in range(lanes - 1, -1, -1):
        p -= TWO
        words[p] = np.uint16(state[lane] >> WORD)
        words[p + ONE] = np.uint16(state[lane] & WORD_MASK)
    return np.int64(p)


@kernel
def _find(symbols, n, sums, j, row, bits, table):
    """Where `code` holds symbol n in the table of its context."""
    return (np.uint64(table[row + np.uint64(sums[j])]) << bits | np.uint64(symbols[n])) << ONE


@kernel
def _put_escaped(x, k, bits, p, escape, words):
    t = k >> bits + ONE
    return put_escaped(x, ((t << SYMBOL_BITS) | ((k >> ONE) - (t << bits))) << ONE, p, escape, words)


@kernel
def _encode_some(symbols, start, group, top, lanes, layout, rows, table, sums, code, escape, words, p, state):
    """Planes group to top − 1, `lanes` or the rest at a time, from the last element to the first; returns p."""
    bits = np.uint64(layout.symbol_bits)
    size = layout.height * layout.width
    for first in range(group + (top - group - 1) // lanes * lanes, group - 1, -lanes):
        some = min(lanes, top - first)
        for r in range(layout.height - 1, -1, -1):
            for c in range(layout.width - 1, -1, -1):
                for lane in range(some - 1, -1, -1):
                    j = start_of(first + lane, layout) + np.uint64(r * layout.pitch + c)
                    n = np.uint64(start + (first - group + lane) * size + r * layout.width + c)
                    k = _find(symbols, n, sums, j, rows[first + lane], bits, table)
                    x = state[lane]
                    if code[k | ONE]:
                        words[p - ONE] = np.uint16(x & WORD_MASK)
                        state[lane], p = put(x, code[k], code[k | ONE], p)
                    else:
                        state[lane], p = _put_escaped(x, k, bits, p, escape, words)
    return p


@kernel
def _encode_eight(symbols, start, channel, layout, rows, table, sums, code, escape, words, p, state):
    """Eight planes from `channel` on, from the last element to the first; returns p."""
    bits = np.uint64(layout.symbol_bits)
    size = np.uint64(layout.height * layout.width)
    span = np.uint64(layout.span)
    x0, x1, x2, x3 = state[ZERO], state[ONE], state[TWO], state[THREE]
    x4, x5, x6, x7 = state[FOUR], state[FIVE], state[SIX], state[SEVEN]
    r0, r1, r2, r3 = rows[channel], rows[channel + 1], rows[channel + 2], rows[channel + 3]
    r4, r5, r6, r7 = rows[channel + 4], rows[channel + 5], rows[channel + 6], rows[channel + 7]
    first = start_of(channel, layout)
    for r in range(layout.height - 1, -1, -1):
        for c in range(layout.width - 1, -1, -1):
            j = first + np.uint64(r * layout.pitch + c)
            n = np.uint64(start + r * layout.width + c)
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
def decode(words, count, first_channel, lanes, layout, model, slots, escape, symbols):
    """Decode into `symbols`; returns OK, or why the stream cannot be one of ours.

    An escaped symbol may be any byte: whether it is one of the alphabet is for the caller to see.

    words: (count + 2·lanes + 2,) uint16, the stream followed by zeros. slots, escape: ans.py. The rest as in `encode`.
    """
    starts, sources, places, weights = model.starts, model.channels, model.places, model.weights
    out_starts, out_places, out_weights = model.out_starts, model.out_places, model.out_weights
    own, bias, table, rows = model.own, model.bias, model.table, model.rows
    magnitudes = model.magnitudes
    size = layout.height * layout.width
    channels = bias.size
    planes = symbols.size // size
    if count < 2 * lanes:
        return OVERRUN
    end = np.uint64(count)
    state = np.empty(GROUP, np.uint64)
    p = ZERO
    for lane in range(lanes):
        state[lane] = (np.uint64(words[p]) << WORD) | np.uint64(words[p + ONE])
        if state[lane] < LOW or state[lane] >> WORD >= LOW:
            return BAD_END
        p += TWO
    field = np.zeros(field_size(layout, channels), np.int8)
    eights = field.view(np.uint64)
    dense = np.zeros(channels, np.uint8)
    tally = np.zeros(3, np.int64)
    sums = np.zeros(sums_size(layout, channels), np.int16)
    room = -(-layout.width // ROW_STRETCH) * ROW_STRETCH
    known = np.empty(GROUP * room, np.int32)
    live_places, live_weights = np.zeros(most_taps(starts), np.uint64), np.zeros(most_taps(starts), np.int16)
    begin = 0
    while begin < planes:
        low = (first_channel + begin) % channels
        high = min(channels, low + planes - begin)
        if begin > 0:
            field[:] = 0
            dense[:] = 0
            sums[:] = 0
        tally[:] = 0
        group = low
        while group < high:
            top = min(group // GROUP * GROUP + GROUP, high)
            listed = list_dense(tally)
            for c in range(group, top if tally[DENSE] or not layout.few else group):
                gather(
                    field, c, dense, listed, layout, starts, sources, places, weights, live_places, live_weights, sums
                )  # fmt: skip
            start = (begin + group - low) * size
            if lanes == GROUP and top - group == GROUP:
                p = _decode_eight(
                    field, group, layout, own, bias, rows, table, magnitudes, sums, known, slots, escape, words, end,
                    p, state, symbols, start,
                )  # fmt: skip
            else:
                p = _decode_some(
                    field, group, top, lanes, layout, own, bias, rows, table, magnitudes, sums, known, slots, escape,
                    words, end, p, state, symbols, start,
                )  # fmt: skip
            if p > end:
                return OVERRUN
            for c in range(group, top):
                kind = kind_of(eights, c, layout)
                if kind == SCATTERED:
                    scatter(field, eights, c, layout, out_starts, out_places, out_weights, sums)
                dense[c] = kind == DENSE
                tally[kind] += 1
            group = top
        begin += high - low
    if p != end:
        return BAD_END
    for lane in range(lanes):
        if state[lane] != LOW:
            return BAD_END
    return OK


@kernel
def _choose(known, o, left, weight, magnitudes, row, shift, bits, most, table):
    """The table of an element. left: a symbol. weight, shift: 256 times the left weight, 8 more than the model's."""
    k = np.int64(known[o])
    cell = min(max((k + weight * np.int64(left)) >> shift, 0), 255)
    return np.uint64(table[row + np.uint64(cell << bits | min((k & 255) + np.int64(magnitudes[left]), most))])


@kernel
def _decode_some(
    field, group, top, lanes, layout, own, bias, rows, table, magnitudes, sums, known, slots, escape, words, end, p,
    state, symbols, start,
):  # fmt: skip
    """Planes group to top − 1, `lanes` or the rest at a time; returns p, beyond `end` if it got there."""
    size = layout.height * layout.width
    room = -(-layout.width // ROW_STRETCH) * ROW_STRETCH
    shift, bits, most = (layout.shift & 15) + 8, layout.active_bits & 7, layout.most_active
    for first in range(group, top, lanes):
        some = min(lanes, top - first)
        for r in range(layout.height):
            for lane in range(some):
                add_row(field, first + lane, r, layout, own, bias, sums, known, lane)
            for c in range(layout.width):
                # A step reads at most two words per lane: checked here, the zeros behind the stream take the rest.
                if p > end:
                    return p
                for lane in range(some):
                    channel = first + lane
                    x = np.uint64(GUARD + channel * layout.stride + (r + 1) * layout.pitch + c)
                    left = np.uint64(np.int64(field[x - ONE]) + layout.rest)
                    weight = np.int64(own[np.uint64(channel) << TWO]) << 8
                    o = np.uint64(lane * room + c)
                    t = _choose(known, o, left, weight, magnitudes, rows[channel], shift, bits, most, table)
                    e = look(state[lane], t, slots)
                    s, f = e & BYTE, (e >> SYMBOL_BITS) & SLOT
                    if f:
                        y = take(state[lane], f, e)
                    else:
                        s, y, p = take_escaped(state[lane], t, p, escape, words)
                    state[lane], p = refill(y, words[p], p)
                    v = min(np.int64(s), layout.levels - 1) - layout.rest  # an escape may be any byte
                    field[x] = np.int8(v)
                    symbols[np.uint64(start + (channel - group) * size + r * layout.width + c)] = np.uint8(s)
    return p


@kernel
def _decode_eight(
    field, channel, layout, own, bias, rows, table, magnitudes, sums, known, slots, escape, words, end, p, state,
    symbols, start,
):  # fmt: skip
    """Eight planes from `channel` on; returns p, beyond `end` if it got there."""
    size = np.uint64(layout.height * layout.width)
    room = np.uint64(-(-layout.width // ROW_STRETCH) * ROW_STRETCH)
    shift, bits, most = (layout.shift & 15) + 8, layout.active_bits & 7, layout.most_active
    stride = np.uint64(layout.stride)
    rest, highest = layout.rest, np.uint64(layout.levels - 1)
    x0, x1, x2, x3 = state[ZERO], state[ONE], state[TWO], state[THREE]
    x4, x5, x6, x7 = state[FOUR], state[FIVE], state[SIX], state[SEVEN]
    r0, r1, r2, r3 = rows[channel], rows[channel + 1], rows[channel + 2], rows[channel + 3]
    r4, r5, r6, r7 = rows[channel + 4], rows[channel + 5], rows[channel + 6], rows[channel + 7]
    o = np.uint64(channel) << TWO
    w0, w1 = np.int64(own[o]) << 8, np.int64(own[o + FOUR]) << 8
    o += EIGHT
    w2, w3 = np.int64(own[o]) << 8, np.int64(own[o + FOUR]) << 8
    o += EIGHT
    w4, w5 = np.int64(own[o]) << 8, np.int64(own[o + FOUR]) << 8
    o += EIGHT
    w6, w7 = np.int64(own[o]) << 8, np.int64(own[o + FOUR]) << 8
    for r in range(layout.height):
        for lane in range(GROUP):
            add_row(field, channel + lane, r, layout, own, bias, sums, known, lane)
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.uint64(rest)
        for c in range(layout.width):
            # A step reads at most two words per lane: checked once here, the zeros behind the stream take the rest.
            if p > end:
                return p
            o = np.uint64(c)
            i = np.uint64(start + r * layout.width + c)
            x = np.uint64(GUARD + channel * layout.stride + (r + 1) * layout.pitch + c)
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
