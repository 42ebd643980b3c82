"""The tables and prediction weights of the entropy coders. They are part of the profile (profile.py).

Each class has a method `check`; the kernels accept whatever passes it.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

MAX_LEVELS = 256
MAX_TABLES = 64
MAX_ACTIVITIES = 8
TABLE_BITS = 12
TABLE_SIZE = 1 << TABLE_BITS
GROUP = 8
"""Channels that are coded side by side, and therefore not predicted from each other."""
OWN = ((0, -1), (-1, 0), (-1, -1), (-1, 1))
"""(rows, columns) from an element to its four neighbours, the elements of its plane that it is predicted from."""
PLACES = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))
"""(rows, columns) from an element to where a tap lies in its plane."""
CELLS = 256
ACTIVITY_SUMS = 16
MAX_PREDICTION_ACTIVITIES = 4
MAX_CLASSES = 16
MAX_PREDICTED_LEVELS = 64


class ContextTables(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Static tables of the neighbour-context block-symbol rANS coder (docs/bitstream.md, coder id 1).

    block: (height, width) of a block; its elements form one symbol s = Σ q_k·N^k, k in raster order inside the block.
    padding: level index of the elements of a block that lie outside the plane; the decoder drops them.
    left_activity, top_activity: N^(h·w) bytes each: the activity class, in [0, activities), of a symbol as its
        right-hand neighbour and as its lower neighbour sees it.
    context_map: C·(activities+1)² bytes: table index of (channel, activity of the top block, activity of the left
        block); the value `activities` stands for "outside the plane".
    frequencies: T·(N^(h·w)+1) little-endian uint16: per table the frequency of each symbol, then of the escape. Each
        row sums to 4096; the escape is ≥ 1. A symbol of frequency 0 is coded as the escape and 8 raw bits.
    """

    block: tuple[Annotated[int, Meta(ge=1, le=8)], Annotated[int, Meta(ge=1, le=8)]]
    padding: Annotated[int, Meta(ge=0, lt=MAX_LEVELS)]
    activities: Annotated[int, Meta(ge=1, le=MAX_ACTIVITIES)]
    left_activity: bytes
    top_activity: bytes
    context_map: bytes
    frequencies: bytes

    def frequency_rows(self, symbols: int) -> NDArray[np.uint16]:
        """(T, symbols + 1) uint16: the frequency of each symbol, then of the escape."""
        return np.frombuffer(self.frequencies, dtype="<u2").reshape(-1, symbols + 1)

    def check(self, levels: int, channels: int) -> None:
        """Raise ValueError unless every array has the right size and range for `levels` and `channels`."""
        symbols = levels ** (self.block[0] * self.block[1])
        if symbols > 256:
            raise ValueError(f"a block of {self.block} with {levels} levels has {symbols} symbols; at most 256")
        if self.padding >= levels:
            raise ValueError(f"padding must be one of {levels} levels, is {self.padding}")
        side = self.activities + 1
        if len(self.left_activity) != symbols or len(self.top_activity) != symbols:
            raise ValueError(f"activity tables must have {symbols} entries")
        if max(self.left_activity + self.top_activity) >= self.activities:
            raise ValueError(f"activity classes must be below {self.activities}")
        if len(self.context_map) != channels * side * side:
            raise ValueError(f"context map must have {channels * side * side} entries, has {len(self.context_map)}")
        _check_frequencies(self.frequencies, symbols, self.context_map)


def _check_frequencies(frequencies: bytes, symbols: int, context_map: bytes) -> None:
    """Raise ValueError unless there are 1 to MAX_TABLES valid tables, and the map names no other."""
    row = 2 * (symbols + 1)
    if not frequencies or len(frequencies) % row or len(frequencies) // row > MAX_TABLES:
        raise ValueError(f"frequencies must be 1..{MAX_TABLES} rows of {row} bytes, are {len(frequencies)}")
    rows = np.frombuffer(frequencies, "<u2").reshape(-1, symbols + 1).astype(np.int64)
    if max(context_map) >= rows.shape[0]:
        raise ValueError(f"context map names table {max(context_map)} of {rows.shape[0]}")
    if (rows.sum(axis=1) != TABLE_SIZE).any() or (rows[:, -1] < 1).any() or (rows >= TABLE_SIZE).any():
        raise ValueError(f"each table must sum to {TABLE_SIZE} with an escape of at least 1")


class Taps(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The taps: elements of other channels that an element is predicted from (docs/bitstream.md §6, coder id 4).

    counts: C bytes: how many taps each channel has. sources: for each tap, channel by channel, a little-endian uint16:
        8 times the source channel, plus its place in PLACES. A source lies in an earlier group of 8 channels.
    """

    counts: bytes
    sources: bytes

    def arrays(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """(C,) number of taps of each channel; then the source channel and the place of each tap."""
        sources = np.frombuffer(self.sources, "<u2").astype(np.intp)
        return np.frombuffer(self.counts, np.uint8).astype(np.intp), sources >> 3, sources & 7

    def check(self, channels: int) -> None:
        """Raise ValueError unless counts and sources are valid for `channels` channels."""
        if len(self.counts) != channels or len(self.sources) != 2 * sum(self.counts):
            raise ValueError(f"taps of {channels} channels need as many counts, and two bytes for each tap")
        counts, channel, place = self.arrays()
        own = np.repeat(np.arange(channels), counts)
        if (place >= len(PLACES)).any() or (channel >= own // GROUP * GROUP).any():
            raise ValueError(f"a tap must be of an earlier group of {GROUP} channels, at one of {len(PLACES)} places")


class PredictionTables(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights and tables of the predictive rANS coder (docs/bitstream.md §6, coder id 4).

    rest: the zero level: the level index that counts as 0, and that elements outside the plane have.
    weights: int8, channel by channel: of the elements to the left, above, above left and above right, then of its taps.
    bias: C little-endian int16. offset, shift: from a prediction to one of CELLS cells.
    activities: number of classes of neighbours; activity: the class of each of ACTIVITY_SUMS sums, bytes below it.
    channel_class: C bytes below `classes`.
    context_map: classes·CELLS·activities bytes: table index of (channel class, cell, activity).
    frequencies: T·(N+1) little-endian uint16, as in ContextTables, of single levels.
    """

    rest: Annotated[int, Meta(ge=0, lt=MAX_LEVELS)]
    weights: bytes
    bias: bytes
    offset: Annotated[int, Meta(ge=-(1 << 15), lt=1 << 15)]
    shift: Annotated[int, Meta(ge=0, le=15)]
    activities: Annotated[int, Meta(ge=1, le=MAX_PREDICTION_ACTIVITIES)]
    activity: bytes
    classes: Annotated[int, Meta(ge=1, le=MAX_CLASSES)]
    channel_class: bytes
    context_map: bytes
    frequencies: bytes

    def frequency_rows(self, levels: int) -> NDArray[np.uint16]:
        """(T, levels + 1) uint16: the frequency of each level, then of the escape."""
        return np.frombuffer(self.frequencies, dtype="<u2").reshape(-1, levels + 1)

    def check(self, levels: int, channels: int, taps: Taps) -> None:
        """Raise ValueError unless every array has the right size and range, and no prediction overflows 16 bits."""
        if levels > MAX_PREDICTED_LEVELS:
            raise ValueError(f"prediction takes quantizers of up to {MAX_PREDICTED_LEVELS} levels, not of {levels}")
        if self.rest >= levels:
            raise ValueError(f"rest must be one of {levels} levels, is {self.rest}")
        counts = taps.arrays()[0] + len(OWN)
        if len(self.weights) != counts.sum() or len(self.bias) != 2 * channels:
            raise ValueError(f"prediction needs {counts.sum()} weights and {channels} biases")
        weights = np.abs(np.frombuffer(self.weights, np.int8).astype(np.int64))
        largest = np.add.reduceat(weights, np.cumsum(counts) - counts) * max(self.rest, levels - 1 - self.rest)
        largest += np.abs(np.frombuffer(self.bias, "<i2").astype(np.int64)) + abs(self.offset)
        if largest.max() >= 1 << 15:
            raise ValueError(f"predictions reach {largest.max()}; they must stay within 16 bits")
        if len(self.activity) != ACTIVITY_SUMS or max(self.activity) >= self.activities:
            raise ValueError(f"prediction needs {ACTIVITY_SUMS} activity classes below {self.activities}")
        if len(self.channel_class) != channels or max(self.channel_class) >= self.classes:
            raise ValueError(f"prediction needs a class below {self.classes} for each of {channels} channels")
        if len(self.context_map) != self.classes * CELLS * self.activities:
            raise ValueError(f"context map must have {self.classes}·{CELLS}·{self.activities} entries")
        _check_frequencies(self.frequencies, levels, self.context_map)
