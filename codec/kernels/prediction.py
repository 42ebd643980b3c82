"""Predictions of the predictive coder: weighted sums over the neighbours. Read docs/bitstream.md §6 first.

The levels of one image lie in `field`, int8, less the level at rest: each plane with a column of zeros behind its rows
and a row of zeros above and below, so that whatever lies outside is at rest and needs no test. Weighted sums over other
planes are then sums over shifted stretches of memory, all positions of a plane at once: plain multiply-and-add of
int16, which every compiler turns into SIMD, and which is exact (the profile is checked for overflow). A small plane
with few elements that are not at rest is not gathered but scattered: each of them is added to the sums it is part of.

Functions get arrays one by one, not in tuples, and have no returns or calls in branches where they are called often:
numba counts references with locked instructions, and removes that only where the flow is plain. It cost 50 to 100 ns a
call, most of the time of 3x3 planes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .ans import EIGHT, FOUR, ONE, SEVEN, SYMBOL_BITS, THREE, TWO, WORD_MASK, ZERO
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

    Taps of each channel, filled up with weights of 0 to a multiple of eight: starts: (C + 1,) uint64, where they start.
    channels: (taps,) uint64, source of each. places: (taps,) uint64, where in `field` it lies for the first element.
    weights: (taps,) int16.
    Taps by source: out_starts: (C + 1,) uint64. out_places: (taps,) uint32, where in `sums` the first element of the
    source adds to. out_weights: (taps,) int16.
    own: (4·C,) int16. bias: (C,) int16, with the offset. table: (classes·256 << active_bits,) uint8 by class, cell, and
    how active the neighbours are. rows: (C,) uint64, where the class of the channel starts there. magnitudes: (256,)
    uint8, of the levels of symbols.
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
    magnitudes: np.ndarray


@kernel
def field_size(layout, channels):
    """Elements of `field`; a multiple of 8."""
    return (2 * GUARD + 2 * layout.pitch + channels * layout.stride + layout.length) // 8 * 8 + 8


@kernel
def sums_size(layout, channels):
    """Elements of `sums`."""
    return (channels if layout.few else GROUP) * layout.span + ROW_STRETCH


@kernel
def most_taps(starts):
    """Room for the taps of one channel."""
    most = ZERO
    for c in range(starts.size - 1):
        most = max(most, starts[c + 1] - starts[c])
    return most + EIGHT


@kernel
def put_plane(symbols, start, field, channel, layout):
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
def kind_of(eights, channel, layout):
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
def scatter(field, eights, channel, layout, out_starts, out_places, out_weights, sums):
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
                        j = i + np.uint64(out_places[t])
                        sums[j] = np.int16(sums[j] + np.int16(out_weights[t] * v))


@kernel
def start_of(channel, layout):
    """Where in `sums` the first element of a channel lies."""
    return np.uint64((channel & layout.kept) * layout.span + layout.pitch)


@kernel
def list_dense(tally):
    """Whether to list the taps in dense planes. Where nearly all planes are, and the others at rest, a list costs more
    than it saves."""
    return tally[SCATTERED] > 0 or tally[DENSE] <= 2 * tally[AT_REST]


@kernel
def gather(
    field, channel, dense, listed, layout, starts, sources, places, weights, live_places, live_weights, sums
):  # fmt: skip
    """Add to the sums of a channel its taps in dense planes. live_places, live_weights: scratch."""
    begin, end = starts[channel], starts[channel + 1]
    j = start_of(channel, layout)
    length = np.uint64(layout.length)
    for i in range(ZERO if layout.few else length):
        sums[j + i] = 0
    # one of the two has nothing to do: calls in branches would cost counting references, 90 ns
    _gather(field, places, weights, begin, begin if listed else end, sums, j, length)
    count = _pick(dense, begin, end if listed else begin, sources, places, weights, live_places, live_weights)
    _gather(field, live_places, live_weights, ZERO, count, sums, j, length)


@kernel
def _pick(dense, begin, end, sources, places, weights, live_places, live_weights):
    """List the taps of dense planes, filled up to a multiple of eight; returns how many."""
    count = ZERO
    for t in range(begin, end):
        live_places[count] = places[t]
        live_weights[count] = weights[t]
        count += np.uint64(dense[sources[t]])
    while count & SEVEN:
        live_places[count] = ZERO
        live_weights[count] = 0
        count += ONE
    return count


@kernel
def _gather(field, places, factors, begin, end, sums, j, length):
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
def find_contexts(field, channel, layout, own, bias, sums):
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
    j = start_of(channel, layout)
    for i in range(np.uint64(layout.length)):
        left, above = np.int16(field[x0 + i]), np.int16(field[x1 + i])
        a = np.int16(np.int16(w0 * left) + np.int16(w1 * above))
        b = np.int16(np.int16(w2 * field[x2 + i]) + np.int16(w3 * field[x3 + i]))
        total = np.int16(np.int16(sums[j + i] + constant) + np.int16(a + b))
        cell = min(max(np.int16(total >> shift), np.int16(0)), np.int16(255))
        active = min(np.int16(abs(left) + abs(above)), most)
        sums[j + i] = np.int16(np.int16(cell << bits) | active)


@kernel
def add_row(field, channel, row, layout, own, bias, sums, known, lane):
    """What is known of a row of `channel` before it: per element, the prediction but for the symbol to the left << 8,
    and the magnitude of the element above. In one array: with two it took 11 ns a row and not 5, for tests of overlap.
    """
    o = np.uint64(channel) << TWO
    w1, w2, w3 = own[o + ONE], own[o + TWO], own[o + THREE]
    constant = np.int16(bias[channel] - np.int16(own[o] * np.int16(layout.rest)))
    room = np.uint64(-(-layout.width // ROW_STRETCH) * ROW_STRETCH)
    x1 = np.uint64(GUARD + channel * layout.stride + row * layout.pitch)
    x2, x3 = x1 - ONE, x1 + ONE
    j = start_of(channel, layout) + np.uint64(row * layout.pitch)
    o = np.uint64(lane) * room
    for i in range(room):
        above = np.int16(field[x1 + i])
        a = np.int16(np.int16(w1 * above) + np.int16(sums[j + i] + constant))
        b = np.int16(np.int16(w2 * field[x2 + i]) + np.int16(w3 * field[x3 + i]))
        known[o + i] = np.int32(np.int32(np.int16(a + b)) << 8) | np.int32(abs(above))
