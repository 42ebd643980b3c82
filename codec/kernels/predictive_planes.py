"""The predictive coder over planes that lie in memory one after the other. Read docs/bitstream.md §6 first.

The levels of one image lie in `field`, int8, less the level at rest: each plane with a column of zeros behind its rows
and a row of zeros above and below, so that whatever lies outside is at rest and needs no test. Weighted sums over other
planes are then sums over shifted stretches of memory, all positions of a plane at once: plain multiply-and-add of
int16, which every compiler turns into SIMD, and which is exact (the profile is checked for overflow). Planes at rest
are left out.

Functions get arrays one by one, not in tuples, and have no returns or calls in branches where they are called often:
numba counts references with locked instructions, and removes that only where the flow is plain. It cost 50 to 100 ns a
call.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .ans import EIGHT, FOUR, LOW, OK, ONE, OVERRUN, SEVEN, THREE, TWO, ZERO, ended, read_states, write_states
from .compilation.policy import kernel
from .predictive import (
    ABOVE,
    AFTER,
    BEFORE,
    BIAS,
    GROUP,
    LEFT,
    ROW_STRETCH,
    Decoding,
    Encoding,
    Grid,
    decode_eight,
    decode_some,
    encode_eight,
    encode_some,
    own_start,
)

STRETCH = 32
"""Positions are predicted in multiples of this: a remainder of a loop costs more than the elements it leaves out."""
GUARD = 64
"""Elements before and behind all planes of `field` that sums may touch; a multiple of 8."""


class Layout(NamedTuple):
    """The numbers among what kernels need to know of planes and profile, all int.

    pitch: elements of a row in `field`. stride: of a plane there, a multiple of 8. length: how many are predicted, from
    the first element of the plane on. span: elements of a plane in `sums`, which holds a group of channels.
    """

    grid: Grid
    pitch: int
    stride: int
    length: int
    span: int


def lay_out(height: int, width: int, **profile: int) -> Layout:
    """For (height, width) planes; profile: the numbers of a Grid from shift on."""
    pitch = width + 1
    length = -(-height * pitch // STRETCH) * STRETCH
    stride = -(-(height + 2) * pitch // 8) * 8
    span = length + 2 * pitch
    room = -(-width // ROW_STRETCH) * ROW_STRETCH
    grid = Grid(height, width, 1, pitch, stride, span, room, 1, 1, **profile)
    return Layout(grid, pitch, stride, length, span)


class Model(NamedTuple):
    """The arrays of the same.

    Taps of each channel, filled up with weights of 0 to a multiple of eight: starts: (C + 1,) uint64, where they start.
    channels: (taps,) uint64, source of each. places: (taps,) uint64, where in `field` it lies for the first element.
    weights: (taps,) int16.
    own: (ENTRIES·C,) int16. table: (classes·256 << active_bits,) uint8 by class, cell, and
    how active the neighbours are. rows: (C,) uint64, where the class of the channel starts there. magnitudes: (256,)
    uint8, of the levels of symbols.
    """

    starts: np.ndarray
    channels: np.ndarray
    places: np.ndarray
    weights: np.ndarray
    own: np.ndarray
    table: np.ndarray
    rows: np.ndarray
    magnitudes: np.ndarray


@kernel
def encode(symbols, first_channel, lanes, layout, model, code, escape, words):
    """Code `symbols` into the end of `words`; returns the index of the first word written.

    symbols: (P·H·W,) uint8, planes of channels first_channel, first_channel + 1, … and again from 0 for the next image.
    layout, model: above. code, escape: ans.py, but with 2^symbol_bits symbols. words: (≥ 2·symbols + 2·lanes,) uint16.
    """
    starts, sources, places, weights = model.starts, model.channels, model.places, model.weights
    own, table, rows = model.own, model.table, model.rows
    grid = layout.grid
    size = grid.height * grid.width
    channels = rows.size
    planes = symbols.size // size
    state = np.full(GROUP, LOW, np.uint64)
    field = np.zeros(_field_size(layout, channels), np.int8)
    eights = field.view(np.uint64)
    active = np.zeros(channels, np.uint8)
    sums = np.zeros(_sums_size(layout), np.int16)
    live_places, live_weights = np.zeros(_most_taps(starts), np.uint64), np.zeros(_most_taps(starts), np.int16)
    arrays = Encoding(symbols, sums, rows, table, code, escape, words, state)
    p = np.uint64(words.size)
    end = planes
    while end > 0:
        # planes first to end − 1 are of one image, of channels low to high − 1
        high = (first_channel + end - 1) % channels + 1
        first = max(0, end - high)
        low = high - (end - first)
        if end < planes:
            field[:] = 0
            active[:] = 0
        count = 0
        for c in range(low, high):
            _put_plane(symbols, (first + c - low) * size, field, c, layout)
            active[c] = _is_active(eights, c, layout)
            count += active[c]
        top = high
        while top > low:
            group = max(low, (top - 1) // GROUP * GROUP)
            listed = _worth_listing(count, high - low)
            for c in range(group, top):
                _gather(
                    field, c, active, listed, layout, starts, sources, places, weights, live_places, live_weights, sums
                )  # fmt: skip
                _find_contexts(field, c, layout, own, sums)
            n, j = (first + group - low) * size, _first_sum(group, layout)
            if lanes == GROUP and top - group == GROUP:
                p = encode_eight(arrays, grid, n, group, j, p)
            else:
                p = encode_some(arrays, grid, n, group, top - group, lanes, j, p)
            top = group
        end = first
    return write_states(state, lanes, words, p)


@kernel
def decode(words, count, first_channel, lanes, layout, model, slots, escape, symbols):
    """Decode into `symbols`; returns OK, or why the stream cannot be one of ours.

    An escaped symbol may be any byte: whether it is one of the alphabet is for the caller to see.

    words: (count + 2·lanes + 2,) uint16, the stream followed by zeros. slots, escape: ans.py. The rest as in `encode`.
    """
    starts, sources, places, weights = model.starts, model.channels, model.places, model.weights
    own, table, rows = model.own, model.table, model.rows
    magnitudes = model.magnitudes
    grid = layout.grid
    size = grid.height * grid.width
    channels = rows.size
    planes = symbols.size // size
    end = np.uint64(count)
    state = np.empty(GROUP, np.uint64)
    status = read_states(words, count, lanes, state)
    if status != OK:
        return status
    p = np.uint64(2 * lanes)
    field = np.zeros(_field_size(layout, channels), np.int8)
    eights = field.view(np.uint64)
    active = np.zeros(channels, np.uint8)
    sums = np.zeros(_sums_size(layout), np.int16)
    known = np.empty(GROUP * grid.known_lane, np.int32)
    live_places, live_weights = np.zeros(_most_taps(starts), np.uint64), np.zeros(_most_taps(starts), np.int16)
    arrays = Decoding(symbols, field, sums, known, own, rows, table, magnitudes, slots, escape, words, state)
    first = 0
    while first < planes:
        low = (first_channel + first) % channels
        high = min(channels, low + planes - first)
        if first > 0:
            field[:] = 0
            active[:] = 0
        found = 0
        group = low
        while group < high:
            top = min(group // GROUP * GROUP + GROUP, high)
            listed = _worth_listing(found, group - low)
            for c in range(group, top):
                _gather(
                    field, c, active, listed, layout, starts, sources, places, weights, live_places, live_weights, sums
                )  # fmt: skip
            n, x, j = (first + group - low) * size, _first_element(group, layout), _first_sum(group, layout)
            if lanes == GROUP and top - group == GROUP:
                p = decode_eight(arrays, grid, n, group, x, j, end, p)
            else:
                p = decode_some(arrays, grid, n, group, top - group, lanes, x, j, end, p)
            if p > end:
                return OVERRUN
            for c in range(group, top):
                active[c] = _is_active(eights, c, layout)
                found += active[c]
            group = top
        first += high - low
    return ended(state, lanes, p, end)


@kernel
def _field_size(layout, channels):
    """Elements of `field`; a multiple of 8."""
    return (2 * GUARD + 2 * layout.pitch + channels * layout.stride + layout.length) // 8 * 8 + 8


@kernel
def _sums_size(layout):
    """Elements of `sums`."""
    return GROUP * layout.span + ROW_STRETCH


@kernel
def _first_element(channel, layout):
    """Where in `field` the first element of a channel lies."""
    return np.uint64(GUARD + channel * layout.stride + layout.pitch)


@kernel
def _first_sum(channel, layout):
    """Where in `sums` the first element of a channel lies."""
    return np.uint64((channel & GROUP - 1) * layout.span + layout.pitch)


@kernel
def _most_taps(starts):
    """Room for the taps of one channel."""
    most = ZERO
    for c in range(starts.size - 1):
        most = max(most, starts[c + 1] - starts[c])
    return most + EIGHT


@kernel
def _put_plane(symbols, start, field, channel, layout):
    """Put a plane into the field."""
    a = np.uint64(start)
    b = _first_element(channel, layout)
    width = np.uint64(layout.grid.width)
    zero = np.int8(layout.grid.rest)
    for _ in range(layout.grid.height):
        for i in range(width):
            field[b + i] = np.int8(np.int8(symbols[a + i]) - zero)
        a += width
        b += np.uint64(layout.pitch)


@kernel
def _is_active(eights, channel, layout):
    """Whether any element of the plane is not at rest. eights: `field`, eight elements at once."""
    first = np.uint64((GUARD + channel * layout.stride) // 8)
    last = first + np.uint64(layout.stride // 8)
    found = ZERO
    while first < last and found == ZERO:
        found = eights[first]
        first += ONE
    return np.uint8(found != ZERO)


@kernel
def _worth_listing(active, planes):
    """Whether to list the taps in active planes. Where nearly all planes are, a list costs more than it saves."""
    return 3 * active <= 2 * planes


@kernel
def _gather(
    field, channel, active, listed, layout, starts, sources, places, weights, live_places, live_weights, sums
):  # fmt: skip
    """The sums of a channel over its taps in active planes. live_places, live_weights: scratch."""
    begin, end = starts[channel], starts[channel + 1]
    j = _first_sum(channel, layout)
    length = np.uint64(layout.length)
    for i in range(length):
        sums[j + i] = 0
    # one of the two has nothing to do: calls in branches would cost counting references, 90 ns
    _add_taps(field, places, weights, begin, begin if listed else end, sums, j, length)
    count = _pick(active, begin, end if listed else begin, sources, places, weights, live_places, live_weights)
    _add_taps(field, live_places, live_weights, ZERO, count, sums, j, length)


@kernel
def _pick(active, begin, end, sources, places, weights, live_places, live_weights):
    """List the taps of active planes, filled up to a multiple of eight; returns how many."""
    count = ZERO
    for t in range(begin, end):
        live_places[count] = places[t]
        live_weights[count] = weights[t]
        count += np.uint64(active[sources[t]])
    while count & SEVEN:
        live_places[count] = ZERO
        live_weights[count] = 0
        count += ONE
    return count


@kernel
def _add_taps(field, places, factors, begin, end, sums, j, length):
    """Eight taps at once: 4.6 ns a tap for a plane of 14x14; four at once take 4.9."""
    for t in range(begin, end, EIGHT):
        u = t + FOUR
        w0, w1, w2, w3 = factors[t], factors[t + ONE], factors[t + TWO], factors[t + THREE]
        w4, w5, w6, w7 = factors[u], factors[u + ONE], factors[u + TWO], factors[u + THREE]
        x0, x1, x2, x3 = places[t], places[t + ONE], places[t + TWO], places[t + THREE]
        x4, x5, x6, x7 = places[u], places[u + ONE], places[u + TWO], places[u + THREE]
        for i in range(length):  # each product is cast: otherwise they are of 64 bits
            a = np.int16(np.int16(w0 * field[x0 + i]) + np.int16(w1 * field[x1 + i]))
            b = np.int16(np.int16(w2 * field[x2 + i]) + np.int16(w3 * field[x3 + i]))
            c = np.int16(np.int16(w4 * field[x4 + i]) + np.int16(w5 * field[x5 + i]))
            d = np.int16(np.int16(w6 * field[x6 + i]) + np.int16(w7 * field[x7 + i]))
            sums[j + i] = np.int16(sums[j + i] + np.int16(np.int16(a + b) + np.int16(c + d)))


@kernel
def _find_contexts(field, channel, layout, own, sums):
    """The sums of a channel, to which its own neighbours are still to be added, become what `table` is read by."""
    k = own_start(channel, 1)
    w0, w1, w2, w3, constant = own[k + LEFT], own[k + ABOVE], own[k + BEFORE], own[k + AFTER], own[k + BIAS]
    shift = layout.grid.shift & 15
    bits = layout.grid.active_bits & 7
    most = np.int16(layout.grid.most_active)
    x0 = _first_element(channel, layout) - ONE
    x1 = x0 - np.uint64(layout.pitch - 1)
    x2, x3 = x1 - ONE, x1 + ONE
    j = _first_sum(channel, layout)
    for i in range(np.uint64(layout.length)):
        left, above = np.int16(field[x0 + i]), np.int16(field[x1 + i])
        a = np.int16(np.int16(w0 * left) + np.int16(w1 * above))
        b = np.int16(np.int16(w2 * field[x2 + i]) + np.int16(w3 * field[x3 + i]))
        total = np.int16(np.int16(sums[j + i] + constant) + np.int16(a + b))
        cell = min(max(np.int16(total >> shift), np.int16(0)), np.int16(255))
        active = min(np.int16(abs(left) + abs(above)), most)
        sums[j + i] = np.int16(np.int16(cell << bits) | active)
