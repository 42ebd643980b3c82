"""The predictive rANS coder: a table for each level by what its neighbours foretell. Read docs/bitstream.md §6 first.

The levels of one image lie in `field`, int8, less the level at rest: each plane with a column of zeros behind its rows
and a row of zeros above and below, so that whatever lies outside is at rest and needs no test. Weighted sums over other
planes are then sums over shifted stretches of memory, all positions of a plane at once: plain multiply-and-add of int16,
which every compiler turns into SIMD, and which is exact (the profile is checked for overflow). Planes that are all at
rest add nothing and are passed over: most are, where features are sparse.

Eight planes at most are coded side by side, and predicted from planes of earlier groups, which a decoder has whole. What
it does not have whole are the planes themselves: their own four neighbours are added element by element.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .ans import (
    BAD_END,
    BYTE,
    LOW,
    OK,
    ONE,
    OVERRUN,
    SLOT,
    SYMBOL_BITS,
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
GUARD = 64
"""Elements before and behind all planes of `field` that sums may touch."""
CLASS_BITS, CELL_BITS = np.uint64(10), np.uint64(2)
MOST_CELL = 255


class Layout(NamedTuple):
    """How a plane lies in `field`. pitch: elements of a row. stride: of a plane. length: how many are predicted, from
    the first element of the plane on; all int."""

    height: int
    width: int
    pitch: int
    stride: int
    length: int

    @classmethod
    def of(cls, height: int, width: int) -> Layout:
        """Of (height, width) planes."""
        pitch = width + 1
        return cls(height, width, pitch, (height + 2) * pitch, -(-height * pitch // STRETCH) * STRETCH)


class Model(NamedTuple):
    """What the profile says, as the kernels read it.

    starts: (C + 1,) int64, where the taps of each channel start. channels: (taps,) int64, source of each. shifts:
    (taps,) int64, from an element of the first plane to the tap. weights: (taps,) int16. own: (C, 4) int16. bias: (C,)
    int16. own_shifts: (4,) int64. table: (classes·1024,) uint8 by class << 10 | cell << 2 | activity. activity: (16,)
    uint8. channel_class: (C,) uint64.
    """

    starts: np.ndarray
    channels: np.ndarray
    shifts: np.ndarray
    weights: np.ndarray
    own: np.ndarray
    own_shifts: np.ndarray
    bias: np.ndarray
    table: np.ndarray
    activity: np.ndarray
    channel_class: np.ndarray
    offset: int
    shift: int
    rest: int
    levels: int


@kernel
def encode(symbols, first_channel, lanes, layout, model, code, escape, words):
    """Code `symbols` into the end of `words`; returns the index of the first word written.

    symbols: (P·H·W,) uint8, planes of channels first_channel, first_channel + 1, … and again from 0 for the next image.
    layout, model: above. code, escape: ans.py. words: (≥ 2·symbols + 2·lanes,) uint16.
    """
    size = layout.height * layout.width
    channels = model.bias.size
    planes = symbols.size // size
    state = np.full(GROUP, LOW, np.uint64)
    field = np.zeros(_field_size(layout, channels), np.int8)
    live = np.zeros(channels, np.int64)
    sums = np.empty(GROUP * layout.length, np.int16)
    places, factors = _scratch(model)
    p = np.uint64(words.size)
    end = planes
    while end > 0:
        # planes begin to end − 1 are of one image, of channels low to high − 1
        high = (first_channel + end - 1) % channels + 1
        begin = max(0, end - high)
        low = high - (end - begin)
        live[:] = 0
        for c in range(low, high):
            live[c] = _lay_out(symbols, (begin + c - low) * size, field, c, layout, model.rest)
        top = high
        while top > low:
            group = max(low, (top - 1) // GROUP * GROUP)
            some = (top - group - 1) % lanes + 1  # the last lanes of the group, which may be fewer
            c = top - some
            for lane in range(some):
                _predict(field, c + lane, live, True, layout, model, places, factors, sums, lane * layout.length)
            p = _encode_planes(field, c, some, layout, model, sums, code, escape, words, p, state)
            top = c
        end = begin
        if low > 0:
            for c in range(low, high):  # the image before has other planes
                _clear(field, c, layout)
    for lane in range(lanes - 1, -1, -1):
        p -= TWO
        words[p] = np.uint16(state[lane] >> WORD)
        words[p + ONE] = np.uint16(state[lane] & WORD_MASK)
    return np.int64(p)


@kernel
def _field_size(layout, channels):
    return 2 * GUARD + 2 * layout.pitch + channels * layout.stride + layout.length


@kernel
def _scratch(model):
    """Room for the taps of one channel, four own ones and three to fill up."""
    most = 0
    for c in range(model.bias.size):
        most = max(most, model.starts[c + 1] - model.starts[c])
    return np.zeros(most + 7, np.int64), np.zeros(most + 7, np.int16)


@kernel
def _lay_out(symbols, start, field, channel, layout, rest):
    """Put a plane into the field; 1 unless all of it is at rest."""
    a = np.uint64(start)
    b = np.uint64(GUARD + channel * layout.stride + layout.pitch)
    found = np.int8(0)
    zero = np.int8(rest)
    for _ in range(layout.height):
        q = symbols[a : a + np.uint64(layout.width)]
        out = field[b : b + np.uint64(layout.width)]
        for i in range(layout.width):
            v = np.int8(np.int8(q[i]) - zero)
            out[i] = v
            found |= v
        a += np.uint64(layout.width)
        b += np.uint64(layout.pitch)
    return 1 if found else 0


@kernel
def _clear(field, channel, layout):
    start = GUARD + channel * layout.stride
    field[start : start + layout.stride] = 0


@kernel
def _predict(field, channel, live, own, layout, model, places, factors, sums, start):
    """sums[start:start + length] = bias + weighted sums over the taps of the channel, and over its own neighbours if
    `own`. places, factors: scratch."""
    origin = GUARD + layout.pitch
    count = 0
    for t in range(model.starts[channel], model.starts[channel + 1]):
        places[count] = origin + model.shifts[t]
        factors[count] = model.weights[t]
        count += live[model.channels[t]]
    if own and live[channel]:
        for k in range(4):
            places[count] = origin + channel * layout.stride + model.own_shifts[k]
            factors[count] = model.own[channel, k]
            count += 1
    while count % 4:
        places[count] = origin
        factors[count] = 0
        count += 1
    out = sums[start : start + layout.length]
    out[:] = model.bias[channel]
    for t in range(0, count, 4):
        w0, w1, w2, w3 = factors[t], factors[t + 1], factors[t + 2], factors[t + 3]
        f0 = field[places[t] : places[t] + layout.length]
        f1 = field[places[t + 1] : places[t + 1] + layout.length]
        f2 = field[places[t + 2] : places[t + 2] + layout.length]
        f3 = field[places[t + 3] : places[t + 3] + layout.length]
        for i in range(layout.length):  # each product is cast: otherwise they are of 64 bits
            a = np.int16(np.int16(w0 * f0[i]) + np.int16(w1 * f1[i]))
            b = np.int16(np.int16(w2 * f2[i]) + np.int16(w3 * f3[i]))
            out[i] = np.int16(out[i] + np.int16(a + b))


@kernel
def _table(total, left, above, channel_class, model):
    """The table of an element: by its channel, the cell of its prediction, and how active its neighbours are."""
    cell = np.uint64(min(max((np.int64(total) + model.offset) >> model.shift, 0), MOST_CELL))
    active = np.uint64(min(abs(np.int64(left)) + abs(np.int64(above)), 15))
    return np.uint64(model.table[channel_class << CLASS_BITS | cell << CELL_BITS | np.uint64(model.activity[active])])


@kernel
def _encode_planes(field, channel, some, layout, model, sums, code, escape, words, p, state):
    """`some` planes from `channel` on, from the last element to the first; returns p."""
    zero = model.rest
    for r in range(layout.height - 1, -1, -1):
        for c in range(layout.width - 1, -1, -1):
            for lane in range(some - 1, -1, -1):
                i = r * layout.pitch + c
                x = np.uint64(GUARD + (channel + lane) * layout.stride + layout.pitch + i)
                total = sums[np.uint64(lane * layout.length + i)]
                t = _table(
                    total, field[x - ONE], field[x - np.uint64(layout.pitch)], model.channel_class[channel + lane], model
                )
                k = (t << SYMBOL_BITS | np.uint64(np.int64(field[x]) + zero)) << ONE
                y = state[lane]
                if code[k | ONE]:
                    words[p - ONE] = np.uint16(y & WORD_MASK)
                    state[lane], p = put(y, code[k], code[k | ONE], p)
                else:
                    state[lane], p = put_escaped(y, k, p, escape, words)
    return p


@kernel
def decode(words, count, first_channel, lanes, layout, model, slots, escape, symbols):
    """Decode into `symbols`; returns OK, or why the stream cannot be one of ours.

    An escaped symbol may be any byte: whether it is one of the alphabet is for the caller to see.

    words: (count + 2·lanes + 2,) uint16, the stream followed by zeros. slots, escape: ans.py. The rest as in `encode`.
    """
    size = layout.height * layout.width
    channels = model.bias.size
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
    live = np.zeros(channels, np.int64)
    sums = np.empty(GROUP * layout.length, np.int16)
    places, factors = _scratch(model)
    begin = 0
    while begin < planes:
        low = (first_channel + begin) % channels
        high = min(channels, low + planes - begin)
        live[:] = 0
        if begin > 0:
            field[:] = 0
        c = low
        while c < high:
            some = min(lanes, min((c // GROUP + 1) * GROUP, high) - c)
            for lane in range(some):
                _predict(field, c + lane, live, False, layout, model, places, factors, sums, lane * layout.length)
            start = (begin + c - low) * size
            p = _decode_planes(
                field, c, some, live, layout, model, sums, slots, escape, words, end, p, state, symbols, start
            )
            if p > end:
                return OVERRUN
            c += some
        begin += high - low
    if p != end:
        return BAD_END
    for lane in range(lanes):
        if state[lane] != LOW:
            return BAD_END
    return OK


@kernel
def _decode_planes(
    field, channel, some, live, layout, model, sums, slots, escape, words, end, p, state, symbols, start
):  # fmt: skip
    """`some` planes from `channel` on; returns p, beyond `end` if it got there."""
    size = layout.height * layout.width
    pitch = np.uint64(layout.pitch)
    for r in range(layout.height):
        for c in range(layout.width):
            # A step reads at most two words per lane: checked once here, the zeros behind the stream take the rest.
            if p > end:
                return p
            i = r * layout.pitch + c
            for lane in range(some):
                x = np.uint64(GUARD + (channel + lane) * layout.stride + layout.pitch + i)
                left, above = np.int64(field[x - ONE]), np.int64(field[x - pitch])
                before, behind = np.int64(field[x - pitch - ONE]), np.int64(field[x - pitch + ONE])
                own = model.own[channel + lane]
                total = np.int64(sums[np.uint64(lane * layout.length + i)])
                total += own[0] * left + own[1] * above + own[2] * before + own[3] * behind
                t = _table(total, left, above, model.channel_class[channel + lane], model)
                e = look(state[lane], t, slots)
                s, f = e & BYTE, (e >> SYMBOL_BITS) & SLOT
                if f:
                    y = take(state[lane], f, e)
                else:
                    s, y, p = take_escaped(state[lane], t, p, escape, words)
                state[lane], p = refill(y, words[p], p)
                v = min(np.int64(s), model.levels - 1) - model.rest  # an escape may be any byte
                field[x] = np.int8(v)
                live[channel + lane] |= v != 0
                symbols[np.uint64(start + lane * size + r * layout.width + c)] = np.uint8(s)
    return p
