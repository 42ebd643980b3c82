"""The predictive rANS coder: a table for each level by what its neighbours foretell. Read docs/bitstream.md §6 first.

The levels of one image lie in `field`, int8, less the level at rest: each plane with a column of zeros behind its rows
and a row of zeros above and below, so that whatever lies outside is at rest and needs no test. Weighted sums over other
planes are then sums over shifted stretches of memory, all positions of a plane at once: plain multiply-and-add of
int16, which every compiler turns into SIMD, and which is exact (the profile is checked for overflow). A small plane
with few elements that are not at rest is not gathered but scattered: each of them is added to the sums it is part of.

Eight planes at most are coded side by side, and predicted from planes of earlier groups, which a decoder has whole.
What it does not have whole are the planes themselves: what the row above adds is added row by row, and what the element
to the left adds, element by element.

Groups of eight lanes have kernels of their own, written out as those of rans.py are. Helpers get arrays one by one, not
in tuples, and have no returns or calls in branches where they are called often: numba counts references with locked
instructions, and removes that only where the flow is plain. It cost 50 to 100 ns a call, most of the time of 3x3 planes.
"""

from __future__ import annotations

from typing import NamedTuple

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

GROUP = 8
STRETCH = 32
"""Positions are predicted in multiples of this: a remainder of a loop costs more than the elements it leaves out."""
ROW_STRETCH = 16
GUARD = 64
"""Elements before and behind all planes of `field` that sums may touch; a multiple of 8."""
AT_REST, SCATTERED, DENSE = 0, 1, 2
LOW_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
HIGH_BITS = np.uint64(0x8080808080808080)
EVEN_BYTES = np.uint64(0x00FF00FF00FF00FF)
BIT_OF_BYTE, BYTES_2, BYTES_4 = np.uint64(7), np.uint64(16), np.uint64(32)


class Layout(NamedTuple):
    """The numbers among what kernels need to know of planes and profile, all int.

    pitch: elements of a row in `field`. stride: of a plane there, a multiple of 8. length: how many are predicted, from
    the first element of the plane on. span: elements of a plane in `sums`. kept: the bits of a channel's number that
    tell its place there, all or those of its place in its group. few: planes with up to so many elements that are not
    at rest are scattered. most_active: where the activity classes end, a number of active_bits bits. symbol_bits: of
    the symbols in `code`.
    """

    height: int
    width: int
    pitch: int
    stride: int
    length: int
    span: int
    kept: int
    few: int
    shift: int
    active_bits: int
    most_active: int
    rest: int
    levels: int
    symbol_bits: int


def lay_out(channels: int, height: int, width: int, **others: int) -> Layout:
    """For `channels` (height, width) planes; others: from shift on."""
    pitch = width + 1
    length = -(-height * pitch // STRETCH) * STRETCH
    few = 6 if length <= 2 * STRETCH else 0
    stride = -(-(height + 2) * pitch // 8) * 8
    kept = -1 if few else GROUP - 1
    return Layout(height, width, pitch, stride, length, length + 2 * pitch, kept, few, **others)


class Model(NamedTuple):
    """The arrays of the same.

    Taps of each channel, filled up with weights of 0 to a multiple of four: starts: (C + 1,) uint64, where they start.
    channels: (taps,) uint64, source of each. places: (taps,) uint64, where in `field` it lies for the first element.
    weights: (taps,) int16.
    Taps by source: out_starts: (C + 1,) uint64. out_places: (taps,) uint64, where in `sums` the first element of the
    source adds to. out_weights: (taps,) int16.
    own: (4·C,) int16. bias: (C,) int16, with the offset. table: (classes·256 << active_bits,) uint8 by class, cell, and
    how active the neighbours are. rows: (C,) uint64, where the class of the channel starts there.
    """

    starts: np.ndarray
    channels: np.ndarray
    places: np.ndarray
    weights: np.ndarray
    out_starts: np.ndarray
    out_places: np.ndarray
    out_weights: np.ndarray
    own: np.ndarray
    bias: np.ndarray
    table: np.ndarray
    rows: np.ndarray


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
    field = np.zeros(_field_size(layout, channels), np.int8)
    eights = field.view(np.uint64)
    dense = np.zeros(channels, np.uint8)
    tally = np.zeros(3, np.int64)
    sums = np.zeros(_sums_size(layout, channels), np.int16)
    live_places, live_weights = np.zeros(_most(starts), np.uint64), np.zeros(_most(starts), np.int16)
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
            _lay_out(symbols, (begin + c - low) * size, field, c, layout)
            kind = _kind(eights, c, layout)
            if kind == SCATTERED:
                _scatter(field, eights, c, layout, out_starts, out_places, out_weights, sums)
            dense[c] = kind == DENSE
            tally[kind] += 1
        top = high
        while top > low:
            group = max(low, (top - 1) // GROUP * GROUP)
            some = (top - group - 1) % lanes + 1  # the last lanes of the group, which may be fewer
            c = top - some
            listed = _list_dense(tally)
            for lane in range(some if tally[DENSE] or not layout.few else 0):
                _predict(
                    field, c + lane, dense, listed, layout, starts, sources, places, weights, live_places,
                    live_weights, sums,
                )  # fmt: skip
            for lane in range(some):
                _find_contexts(field, c + lane, layout, own, bias, sums)
            start = (begin + c - low) * size
            if some == GROUP:
                p = _encode_eight(symbols, start, c, layout, rows, table, sums, code, escape, words, p, state)
            else:
                p = _encode_some(symbols, start, c, some, layout, rows, table, sums, code, escape, words, p, state)
            top = c
        end = begin
    for lane in range(lanes - 1, -1, -1):
        p -= TWO
        words[p] = np.uint16(state[lane] >> WORD)
        words[p + ONE] = np.uint16(state[lane] & WORD_MASK)
    return np.int64(p)


@kernel
def _field_size(layout, channels):
    return (2 * GUARD + 2 * layout.pitch + channels * layout.stride + layout.length) // 8 * 8 + 8


@kernel
def _sums_size(layout, channels):
    return (channels if layout.few else GROUP) * layout.span + ROW_STRETCH


@kernel
def _most(starts):
    """Room for the taps of one channel."""
    most = ZERO
    for c in range(starts.size - 1):
        most = max(most, starts[c + 1] - starts[c])
    return most + FOUR


@kernel
def _lay_out(symbols, start, field, channel, layout):
    """Put a plane into the field."""
    a = np.uint64(start)
    b = np.uint64(GUARD + channel * layout.stride + layout.pitch)
    width = np.uint64(layout.width)
    zero = np.int8(layout.rest)
    for _ in range(layout.height):
        for i in range(width):
            field[b + i] = np.int8(np.int8(symbols[a + i]) - zero)
        a += width
        b += np.uint64(layout.pitch)


@kernel
def _kind(eights, channel, layout):
    """How the plane goes into sums. eights: `field`, eight elements at once."""
    first = np.uint64((GUARD + channel * layout.stride) // 8)
    last = first + np.uint64(layout.stride // 8)
    count = ZERO
    if layout.few == 0:
        while first < last and count == ZERO:
            count = eights[first]
            first += ONE
        return AT_REST if count == ZERO else DENSE
    for w in range(first, last):  # per byte of the word: the stride is at most 8·255
        word = eights[w]
        count += (((word & LOW_BITS) + LOW_BITS | word) & HIGH_BITS) >> BIT_OF_BYTE
    count = (count & EVEN_BYTES) + (count >> SYMBOL_BITS & EVEN_BYTES)
    count += count >> BYTES_4
    count = (count + (count >> BYTES_2)) & WORD_MASK
    return AT_REST if count == ZERO else DENSE if count > np.uint64(layout.few) else SCATTERED


@kernel
def _scatter(field, eights, channel, layout, out_starts, out_places, out_weights, sums):
    """Add each element of the plane to the sums that it is part of."""
    first = np.uint64((GUARD + channel * layout.stride) // 8)
    last = first + np.uint64(layout.stride // 8)
    begin, end = out_starts[channel], out_starts[channel + 1]
    origin = np.uint64(GUARD + channel * layout.stride + layout.pitch)
    for w in range(first, last):
        if eights[w]:
            for x in range(w << THREE, (w << THREE) + EIGHT):
                v = np.int16(field[x])
                if v:
                    i = x - origin
                    for t in range(begin, end):
                        j = i + out_places[t]
                        sums[j] = np.int16(sums[j] + np.int16(out_weights[t] * v))


@kernel
def _start(channel, layout):
    """Where in `sums` the first element of a channel lies."""
    return np.uint64((channel & layout.kept) * layout.span + layout.pitch)


@kernel
def _list_dense(tally):
    """Whether to list the taps in dense planes. Where nearly all planes are, and the others at rest, a list costs more
    than it saves."""
    return tally[SCATTERED] > 0 or tally[DENSE] <= 2 * tally[AT_REST]


@kernel
def _predict(
    field, channel, dense, listed, layout, starts, sources, places, weights, live_places, live_weights, sums
):  # fmt: skip
    """Add to the sums of a channel its taps in dense planes. live_places, live_weights: scratch."""
    begin, end = starts[channel], starts[channel + 1]
    j = _start(channel, layout)
    length = np.uint64(layout.length)
    for i in range(ZERO if layout.few else length):
        sums[j + i] = 0
    # one of the two has nothing to do: calls in branches would cost counting references, 90 ns
    _gather(field, places, weights, begin, begin if listed else end, sums, j, length)
    count = _pick(dense, begin, end if listed else begin, sources, places, weights, live_places, live_weights)
    _gather(field, live_places, live_weights, ZERO, count, sums, j, length)


@kernel
def _pick(dense, begin, end, sources, places, weights, live_places, live_weights):
    """List the taps of dense planes, filled up to a multiple of four; returns how many."""
    count = ZERO
    for t in range(begin, end):
        live_places[count] = places[t]
        live_weights[count] = weights[t]
        count += np.uint64(dense[sources[t]])
    while count & THREE:
        live_places[count] = ZERO
        live_weights[count] = 0
        count += ONE
    return count


@kernel
def _gather(field, places, factors, begin, end, sums, j, length):
    for t in range(begin, end, FOUR):
        w0, w1, w2, w3 = factors[t], factors[t + ONE], factors[t + TWO], factors[t + THREE]
        x0, x1, x2, x3 = places[t], places[t + ONE], places[t + TWO], places[t + THREE]
        for i in range(length):  # each product is cast: otherwise they are of 64 bits
            a = np.int16(np.int16(w0 * field[x0 + i]) + np.int16(w1 * field[x1 + i]))
            b = np.int16(np.int16(w2 * field[x2 + i]) + np.int16(w3 * field[x3 + i]))
            sums[j + i] = np.int16(sums[j + i] + np.int16(a + b))


@kernel
def _find_contexts(field, channel, layout, own, bias, sums):
    """The sums of a channel, to which its own neighbours are still to be added, become what `table` is read by."""
    o = np.uint64(channel) << TWO
    w0, w1, w2, w3 = own[o], own[o + ONE], own[o + TWO], own[o + THREE]
    constant = bias[channel]
    shift = layout.shift & 15
    bits = layout.active_bits & 7
    most = np.int16(layout.most_active)
    x0 = np.uint64(GUARD + channel * layout.stride + layout.pitch - 1)
    x1 = x0 - np.uint64(layout.pitch - 1)
    x2, x3 = x1 - ONE, x1 + ONE
    j = _start(channel, layout)
    for i in range(np.uint64(layout.length)):
        left, above = np.int16(field[x0 + i]), np.int16(field[x1 + i])
        a = np.int16(np.int16(w0 * left) + np.int16(w1 * above))
        b = np.int16(np.int16(w2 * field[x2 + i]) + np.int16(w3 * field[x3 + i]))
        total = np.int16(np.int16(sums[j + i] + constant) + np.int16(a + b))
        cell = min(max(np.int16(total >> shift), np.int16(0)), np.int16(255))
        active = min(np.int16(abs(left) + abs(above)), most)
        sums[j + i] = np.int16(np.int16(cell << bits) | active)


@kernel
def _find(symbols, n, sums, j, row, bits, table):
    """Where `code` holds symbol n in the table of its context."""
    return (np.uint64(table[row + np.uint64(sums[j])]) << bits | np.uint64(symbols[n])) << ONE


@kernel
def _put_escaped(x, k, bits, p, escape, words):
    t = k >> bits + ONE
    return put_escaped(x, ((t << SYMBOL_BITS) | ((k >> ONE) - (t << bits))) << ONE, p, escape, words)


@kernel
def _encode_some(symbols, start, channel, some, layout, rows, table, sums, code, escape, words, p, state):
    """`some` planes from `channel` on, from the last element to the first; returns p."""
    bits = np.uint64(layout.symbol_bits)
    size = layout.height * layout.width
    for r in range(layout.height - 1, -1, -1):
        for c in range(layout.width - 1, -1, -1):
            for lane in range(some - 1, -1, -1):
                j = _start(channel + lane, layout) + np.uint64(r * layout.pitch + c)
                n = np.uint64(start + lane * size + r * layout.width + c)
                k = _find(symbols, n, sums, j, rows[channel + lane], bits, table)
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
    first = _start(channel, layout)
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
    field = np.zeros(_field_size(layout, channels), np.int8)
    eights = field.view(np.uint64)
    dense = np.zeros(channels, np.uint8)
    tally = np.zeros(3, np.int64)
    sums = np.zeros(_sums_size(layout, channels), np.int16)
    room = -(-layout.width // ROW_STRETCH) * ROW_STRETCH
    known = np.empty(GROUP * room, np.int32)
    live_places, live_weights = np.zeros(_most(starts), np.uint64), np.zeros(_most(starts), np.int16)
    begin = 0
    while begin < planes:
        low = (first_channel + begin) % channels
        high = min(channels, low + planes - begin)
        if begin > 0:
            field[:] = 0
            dense[:] = 0
            sums[:] = 0
        tally[:] = 0
        c = low
        while c < high:
            some = min(lanes, min((c // GROUP + 1) * GROUP, high) - c)
            listed = _list_dense(tally)
            for lane in range(some if tally[DENSE] or not layout.few else 0):
                _predict(
                    field, c + lane, dense, listed, layout, starts, sources, places, weights, live_places,
                    live_weights, sums,
                )  # fmt: skip
            start = (begin + c - low) * size
            if some == GROUP:
                p = _decode_eight(
                    field, c, layout, own, bias, rows, table, sums, known, slots, escape, words, end, p, state, symbols,
                    start,
                )  # fmt: skip
            else:
                p = _decode_some(
                    field, c, some, layout, own, bias, rows, table, sums, known, slots, escape, words, end, p, state,
                    symbols, start,
                )  # fmt: skip
            if p > end:
                return OVERRUN
            for lane in range(some):
                kind = _kind(eights, c + lane, layout)
                if kind == SCATTERED:
                    _scatter(field, eights, c + lane, layout, out_starts, out_places, out_weights, sums)
                dense[c + lane] = kind == DENSE
                tally[kind] += 1
            c += some
        begin += high - low
    if p != end:
        return BAD_END
    for lane in range(lanes):
        if state[lane] != LOW:
            return BAD_END
    return OK


@kernel
def _add_row(field, channel, row, layout, own, bias, sums, known, lane):
    """What is known of a row of `channel` before it: per element, the prediction but for the element to the left << 8,
    and the magnitude of the element above. In one array: with two it took 11 ns a row and not 5, for tests of overlap.
    """
    o = np.uint64(channel) << TWO
    w1, w2, w3 = own[o + ONE], own[o + TWO], own[o + THREE]
    constant = bias[channel]
    room = np.uint64(-(-layout.width // ROW_STRETCH) * ROW_STRETCH)
    x1 = np.uint64(GUARD + channel * layout.stride + row * layout.pitch)
    x2, x3 = x1 - ONE, x1 + ONE
    j = _start(channel, layout) + np.uint64(row * layout.pitch)
    o = np.uint64(lane) * room
    for i in range(room):
        above = np.int16(field[x1 + i])
        a = np.int16(np.int16(w1 * above) + np.int16(sums[j + i] + constant))
        b = np.int16(np.int16(w2 * field[x2 + i]) + np.int16(w3 * field[x3 + i]))
        known[o + i] = np.int32(np.int32(np.int16(a + b)) << 8) | np.int32(abs(above))


@kernel
def _choose(known, o, left, weight, magnitude, row, shift, bits, most, table):
    """The table of an element. weight, shift: 256 times the left weight, 8 more than the model's."""
    k = np.int64(known[o])
    cell = min(max((k + weight * left) >> shift, 0), 255)
    return np.uint64(table[row + np.uint64(cell << bits | min((k & 255) + magnitude, most))])


@kernel
def _decode_some(
    field, channel, some, layout, own, bias, rows, table, sums, known, slots, escape, words, end, p, state, symbols,
    start,
):  # fmt: skip
    """`some` planes from `channel` on; returns p, beyond `end` if it got there."""
    size = layout.height * layout.width
    room = -(-layout.width // ROW_STRETCH) * ROW_STRETCH
    shift, bits, most = (layout.shift & 15) + 8, layout.active_bits & 7, layout.most_active
    for r in range(layout.height):
        for lane in range(some):
            _add_row(field, channel + lane, r, layout, own, bias, sums, known, lane)
        for c in range(layout.width):
            # A step reads at most two words per lane: checked once here, the zeros behind the stream take the rest.
            if p > end:
                return p
            for lane in range(some):
                x = np.uint64(GUARD + (channel + lane) * layout.stride + (r + 1) * layout.pitch + c)
                left = np.int64(field[x - ONE])
                t = _choose(
                    known, np.uint64(lane * room + c), left, np.int64(own[np.uint64(channel + lane) << TWO]) << 8, abs(left),
                    rows[channel + lane], shift, bits, most, table,
                )  # fmt: skip
                e = look(state[lane], t, slots)
                s, f = e & BYTE, (e >> SYMBOL_BITS) & SLOT
                if f:
                    y = take(state[lane], f, e)
                else:
                    s, y, p = take_escaped(state[lane], t, p, escape, words)
                state[lane], p = refill(y, words[p], p)
                v = min(np.int64(s), layout.levels - 1) - layout.rest  # an escape may be any byte
                field[x] = np.int8(v)
                symbols[np.uint64(start + lane * size + r * layout.width + c)] = np.uint8(s)
    return p


@kernel
def _decode_eight(
    field, channel, layout, own, bias, rows, table, sums, known, slots, escape, words, end, p, state, symbols, start
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
            _add_row(field, channel + lane, r, layout, own, bias, sums, known, lane)
        v0 = v1 = v2 = v3 = v4 = v5 = v6 = v7 = 0
        for c in range(layout.width):
            # A step reads at most two words per lane: checked once here, the zeros behind the stream take the rest.
            if p > end:
                return p
            o = np.uint64(c)
            i = np.uint64(start + r * layout.width + c)
            x = np.uint64(GUARD + channel * layout.stride + (r + 1) * layout.pitch + c)
            t0 = _choose(known, o, v0, w0, abs(v0), r0, shift, bits, most, table)
            t1 = _choose(known, o + room, v1, w1, abs(v1), r1, shift, bits, most, table)
            t2 = _choose(known, o + TWO * room, v2, w2, abs(v2), r2, shift, bits, most, table)
            t3 = _choose(known, o + THREE * room, v3, w3, abs(v3), r3, shift, bits, most, table)
            t4 = _choose(known, o + FOUR * room, v4, w4, abs(v4), r4, shift, bits, most, table)
            t5 = _choose(known, o + FIVE * room, v5, w5, abs(v5), r5, shift, bits, most, table)
            t6 = _choose(known, o + SIX * room, v6, w6, abs(v6), r6, shift, bits, most, table)
            t7 = _choose(known, o + SEVEN * room, v7, w7, abs(v7), r7, shift, bits, most, table)
            e0, e1, e2, e3 = look(x0, t0, slots), look(x1, t1, slots), look(x2, t2, slots), look(x3, t3, slots)
            e4, e5, e6, e7 = look(x4, t4, slots), look(x5, t5, slots), look(x6, t6, slots), look(x7, t7, slots)
            s, f = e0 & BYTE, (e0 >> SYMBOL_BITS) & SLOT
            if f:
                x0 = take(x0, f, e0)
            else:
                s, x0, p = take_escaped(x0, t0, p, escape, words)
            x0, p = refill(x0, words[p], p)
            symbols[i] = np.uint8(s)
            v0 = np.int64(min(s, highest)) - rest
            field[x] = np.int8(v0)
            s, f = e1 & BYTE, (e1 >> SYMBOL_BITS) & SLOT
            if f:
                x1 = take(x1, f, e1)
            else:
                s, x1, p = take_escaped(x1, t1, p, escape, words)
            x1, p = refill(x1, words[p], p)
            symbols[i + size] = np.uint8(s)
            v1 = np.int64(min(s, highest)) - rest
            field[x + stride] = np.int8(v1)
            s, f = e2 & BYTE, (e2 >> SYMBOL_BITS) & SLOT
            if f:
                x2 = take(x2, f, e2)
            else:
                s, x2, p = take_escaped(x2, t2, p, escape, words)
            x2, p = refill(x2, words[p], p)
            symbols[i + TWO * size] = np.uint8(s)
            v2 = np.int64(min(s, highest)) - rest
            field[x + TWO * stride] = np.int8(v2)
            s, f = e3 & BYTE, (e3 >> SYMBOL_BITS) & SLOT
            if f:
                x3 = take(x3, f, e3)
            else:
                s, x3, p = take_escaped(x3, t3, p, escape, words)
            x3, p = refill(x3, words[p], p)
            symbols[i + THREE * size] = np.uint8(s)
            v3 = np.int64(min(s, highest)) - rest
            field[x + THREE * stride] = np.int8(v3)
            s, f = e4 & BYTE, (e4 >> SYMBOL_BITS) & SLOT
            if f:
                x4 = take(x4, f, e4)
            else:
                s, x4, p = take_escaped(x4, t4, p, escape, words)
            x4, p = refill(x4, words[p], p)
            symbols[i + FOUR * size] = np.uint8(s)
            v4 = np.int64(min(s, highest)) - rest
            field[x + FOUR * stride] = np.int8(v4)
            s, f = e5 & BYTE, (e5 >> SYMBOL_BITS) & SLOT
            if f:
                x5 = take(x5, f, e5)
            else:
                s, x5, p = take_escaped(x5, t5, p, escape, words)
            x5, p = refill(x5, words[p], p)
            symbols[i + FIVE * size] = np.uint8(s)
            v5 = np.int64(min(s, highest)) - rest
            field[x + FIVE * stride] = np.int8(v5)
            s, f = e6 & BYTE, (e6 >> SYMBOL_BITS) & SLOT
            if f:
                x6 = take(x6, f, e6)
            else:
                s, x6, p = take_escaped(x6, t6, p, escape, words)
            x6, p = refill(x6, words[p], p)
            symbols[i + SIX * size] = np.uint8(s)
            v6 = np.int64(min(s, highest)) - rest
            field[x + SIX * stride] = np.int8(v6)
            s, f = e7 & BYTE, (e7 >> SYMBOL_BITS) & SLOT
            if f:
                x7 = take(x7, f, e7)
            else:
                s, x7, p = take_escaped(x7, t7, p, escape, words)
            x7, p = refill(x7, words[p], p)
            symbols[i + SEVEN * size] = np.uint8(s)
            v7 = np.int64(min(s, highest)) - rest
            field[x + SEVEN * stride] = np.int8(v7)
    state[ZERO], state[ONE], state[TWO], state[THREE] = x0, x1, x2, x3
    state[FOUR], state[FIVE], state[SIX], state[SEVEN] = x4, x5, x6, x7
    return p
