"""The predictive coder over small planes, all channels side by side. Read docs/bitstream.md §6 first.

Position by position, `field` holds the levels of one image, int8, less the level at rest, all channels of a position in
a row: what is done to an element is done to all channels at once, and nothing is paid per plane. Around the plane lie
positions at rest, a column behind its rows and a row above and below, so that what lies outside needs no test.

Each element that is not at rest is added to the sums that it is part of, once it is known: most features of the small
planes deep in a network are at rest. Where the taps of a channel are a good part of all there are, its weights are a
dense matrix, by source and place, over all targets, and adding them is plain SIMD; otherwise they are a list.

The loops over images and groups look like those of predictive_planes.py and stay apart: what a group needs are other
arrays, and a kernel around both would count references to all of them for every group.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .ans import LOW, OK, ONE, OVERRUN, ZERO, ended, read_states, write_states
from .compilation.policy import kernel
from .predictive import (
    ABOVE,
    AFTER,
    BEFORE,
    BIAS,
    BLOCK,
    GROUP,
    WIDE,
    Decoding,
    Encoding,
    Grid,
    decode_eight,
    decode_some,
    encode_eight,
    encode_some,
    own_start,
)

PLACES = 5
"""As in codec/tables.py, which says where they are; `_inside` knows it too."""
LARGEST = 32
"""Most positions of a plane, with the column after its rows, for which this layout is used. It encodes 3×3 planes 4
times as fast as the planar layout, and 7×7 planes half as fast."""
BUDGET = 1 << 20
"""Most bytes of a dense matrix, so that it stays in the caches."""
DENSER = 6
"""Channels per tap from which on a list is as fast as a matrix (3×3 planes of 128 and of 384 channels)."""


class Layout(NamedTuple):
    """pitch: positions in a row. span: channels at a position, a multiple of BLOCK. dense: whether `matrix` is used."""

    grid: Grid
    pitch: int
    span: int
    dense: int


def fits(height: int, width: int) -> bool:
    """Whether (height, width) planes are small enough."""
    return height * (width + 1) <= LARGEST


def lay_out(channels: int, height: int, width: int, taps: int, **profile: int) -> Layout:
    """The layout for `channels` planes with `taps` taps in total. profile: the numbers of a Grid from shift on."""
    span = -(-channels // BLOCK) * BLOCK
    pitch = width + 1
    grid = Grid(height, width, span, pitch * span, 1, 1, 1, GROUP, BLOCK, **profile)
    dense = channels * PLACES * span <= BUDGET and taps * DENSER >= channels * channels
    return Layout(grid, pitch, span, int(dense))


class Model(NamedTuple):
    """The arrays of the profile, for the kernels.

    matrix: (C·PLACES·span,) int8, weights by source, place and target; of one element where there is none.
    starts: (C + 1,) uint64, where the list has the taps of each source. targets: (taps,) uint64, from an element to
    where it adds to, modulo 2^64. weights: (taps,) int16. shifts: (PLACES,) uint64, the same for the matrix, by place.
    own: (ENTRIES·span,) int16. table, rows, magnitudes: as in predictive_planes.py.
    """

    matrix: np.ndarray
    starts: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    shifts: np.ndarray
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
    matrix, starts, targets, weights, shifts = model.matrix, model.starts, model.targets, model.weights, model.shifts
    own, table, rows = model.own, model.table, model.rows
    grid = layout.grid
    size = grid.height * grid.width
    channels = rows.size
    planes = symbols.size // size
    state = np.full(GROUP, LOW, np.uint64)
    field = np.zeros(_positions(layout) * layout.span, np.int8)
    sums = np.zeros(_positions(layout) * layout.span, np.int16)
    live, near = np.empty(GROUP + 1, np.uint64), np.empty(PLACES + 1, np.uint64)
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
            sums[:] = 0
        _put_image(symbols, first * size, field, low, high, layout)
        group = low
        while group < high:
            top = min(group // GROUP * GROUP + GROUP, high)
            _spread(field, group, top, layout, matrix, starts, targets, weights, shifts, live, near, sums)
            group = top
        _find_contexts(field, layout, own, sums)
        top = high
        while top > low:
            group = max(low, (top - 1) // GROUP * GROUP)
            n, j = (first + group - low) * size, _first_element(group, layout)
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
    matrix, starts, targets, weights, shifts = model.matrix, model.starts, model.targets, model.weights, model.shifts
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
    field = np.zeros(_positions(layout) * layout.span, np.int8)
    sums = np.zeros(_positions(layout) * layout.span, np.int16)
    live, near = np.empty(GROUP + 1, np.uint64), np.empty(PLACES + 1, np.uint64)
    known = np.empty(GROUP * grid.width, np.int32)
    arrays = Decoding(symbols, field, sums, known, own, rows, table, magnitudes, slots, escape, words, state)
    first = 0
    while first < planes:
        low = (first_channel + first) % channels
        high = min(channels, low + planes - first)
        if first > 0:
            field[:] = 0
            sums[:] = 0
        group = low
        while group < high:
            top = min(group // GROUP * GROUP + GROUP, high)
            n, x = (first + group - low) * size, _first_element(group, layout)
            if lanes == GROUP and top - group == GROUP:
                p = decode_eight(arrays, grid, n, group, x, x, end, p)
            else:
                p = decode_some(arrays, grid, n, group, top - group, lanes, x, x, end, p)
            if p > end:
                return OVERRUN
            _spread(field, group, top, layout, matrix, starts, targets, weights, shifts, live, near, sums)
            group = top
        first += high - low
    return ended(state, lanes, p, end)


@kernel
def _positions(layout):
    """Of `field`: those of the plane, those around it, and one in front of the first row and behind the last."""
    return (layout.grid.height + 2) * layout.pitch + 2


@kernel
def _first_element(channel, layout):
    """Where the first element of a channel lies."""
    return np.uint64((layout.pitch + 1) * layout.span + channel)


@kernel
def _put_image(symbols, start, field, low, high, layout):
    """Put planes, one after the other in `symbols`, into the field."""
    size = np.uint64(layout.grid.height * layout.grid.width)
    zero = np.int8(layout.grid.rest)
    number = np.uint64(high - low)
    a = np.uint64(start)
    for r in range(layout.grid.height):
        for c in range(layout.grid.width):
            b = _first_element(low, layout) + np.uint64((r * layout.pitch + c) * layout.span)
            for i in range(number):
                field[b + i] = np.int8(np.int8(symbols[a + i * size]) - zero)
            a += ONE


@kernel
def _spread(field, group, top, layout, matrix, starts, targets, weights, shifts, live, near, sums):
    """Add each element of planes group to top − 1 that is not at rest to the sums that it is part of.

    live, near: scratch, for which of the planes are not at rest, and which places of the matrix lie in the plane.
    """
    span = np.uint64(layout.span)
    first = np.uint64((group // GROUP + 1) * GROUP // BLOCK * BLOCK)  # up to the first target, weights are 0
    last_row, last_col = layout.grid.height - 1, layout.grid.width - 1
    for r in range(last_row + 1):
        for c in range(last_col + 1):
            x = _first_element(0, layout) + np.uint64((r * layout.pitch + c) * layout.span)
            count, places = ZERO, ZERO
            for channel in range(np.uint64(group), np.uint64(top)):
                live[count] = channel
                count += np.uint64(field[x + channel] != 0)
            for k in range(np.uint64(PLACES)):
                near[places] = k
                places += np.uint64(_inside(k, r, c, last_row, last_col))
            for n in range(count if layout.dense else ZERO):
                channel = live[n]
                v = np.int16(field[x + channel])
                for m in range(places):
                    row = (channel * np.uint64(PLACES) + near[m]) * span
                    j = x + shifts[near[m]]
                    for i in range(first, span):
                        sums[j + i] = np.int16(sums[j + i] + np.int16(v * np.int16(matrix[row + i])))
            for n in range(ZERO if layout.dense else count):
                channel = live[n]
                v = np.int16(field[x + channel])
                for t in range(starts[channel], starts[channel + ONE]):
                    j = x + channel + targets[t]
                    sums[j] = np.int16(sums[j] + np.int16(weights[t] * v))


@kernel
def _inside(k, r, c, last_row, last_col):
    """Whether what has the element in row r and column c at place k lies in the plane."""
    return (
        (k == 0)
        | ((k == 1) & (c < last_col))
        | ((k == 2) & (c > 0))
        | ((k == 3) & (r < last_row))
        | ((k == 4) & (r > 0))
    )


@kernel
def _find_contexts(field, layout, own, sums):
    """The sums, to which own neighbours are still to be added, become what `table` is read by."""
    shift = layout.grid.shift & 15
    bits = layout.grid.active_bits & 7
    most = np.int16(layout.grid.most_active)
    span = np.uint64(layout.span)
    for r in range(layout.grid.height):
        for c in range(layout.grid.width):
            x = _first_element(0, layout) + np.uint64((r * layout.pitch + c) * layout.span)
            for first in range(ZERO, span, WIDE):
                k = own_start(first, WIDE)
                x0 = x - span
                x1 = x - np.uint64(layout.pitch) * span
                x2, x3 = x1 - span, x1 + span
                for i in range(WIDE):
                    left, above = np.int16(field[x0 + i]), np.int16(field[x1 + i])
                    a = np.int16(np.int16(own[k + i] * left) + np.int16(own[k + ABOVE * WIDE + i] * above))
                    b = np.int16(own[k + BEFORE * WIDE + i] * field[x2 + i])
                    d = np.int16(own[k + AFTER * WIDE + i] * field[x3 + i])
                    total = np.int16(np.int16(sums[x + i] + own[k + BIAS * WIDE + i]) + np.int16(np.int16(a + b) + d))
                    cell = min(max(np.int16(total >> shift), np.int16(0)), np.int16(255))
                    active = min(np.int16(abs(left) + abs(above)), most)
                    sums[x + i] = np.int16(np.int16(cell << bits) | active)
                x += WIDE
