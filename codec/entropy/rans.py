"""Coder id 1: static-table, neighbour-context block-symbol rANS (docs/bitstream.md §4)."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import Corrupt, Truncated
from splitwire.codec.kernels import rans as kernels
from splitwire.codec.profile import TABLE_SIZE, ContextTables, TensorPoint

CODER_ID = 1
MAX_LANES = 8

# Every lane ends with four bytes of state, about two of them lost: small tensors get fewer lanes. Measured with
# benchmarks/codec.py: below these sizes the bytes matter more than the overlap of the lanes.
_SYMBOLS_PER_LANE = 1024


def choose_lanes(symbols: int, planes: int) -> int:
    """How many lanes the encoder uses: a power of two up to 8, no more than there are planes."""
    lanes = 1
    while lanes < MAX_LANES and symbols >= 2 * lanes * _SYMBOLS_PER_LANE and 2 * lanes <= planes:
        lanes *= 2
    return lanes


class ContextRans:
    """The tables of one tensor at one operating point, laid out for the kernels.

    Block symbols of P planes of rows × cols blocks ↔ bytes. Immutable after construction, so free to share.
    """

    coder_id: ClassVar[int] = CODER_ID
    max_lanes: ClassVar[int] = MAX_LANES

    def __init__(self, tables: ContextTables, levels: int, channels: int) -> None:
        tables.check(levels, channels)
        self.block = tables.block
        self.padding = tables.padding
        self.symbols = levels ** (tables.block[0] * tables.block[1])
        side = tables.activities + 1
        self._context_map = np.frombuffer(tables.context_map, np.uint8)
        self._plane_context = np.arange(channels, dtype=np.uint64) * np.uint64(side * side)
        self._contexts = lru_cache(maxsize=8)(self._repeat_contexts)
        self._top = neighbour_context(tables.top_activity, outside=tables.activities, scale=side)
        self._left = neighbour_context(tables.left_activity, outside=tables.activities, scale=1)
        rows = tables.frequency_rows(self.symbols).astype(np.int64)
        self._escape = rows[:, -1].astype(np.uint64)
        code = np.zeros((rows.shape[0] * 256, 2), np.uint64)
        self._slots = np.empty(rows.shape[0] * TABLE_SIZE, np.uint32)
        for t, row in enumerate(rows):
            starts = np.concatenate([[0], np.cumsum(row)[:-1]])
            used = np.flatnonzero(row[:-1])
            code[t * 256 + used, 0] = -(-(1 << 43) // row[used])
            code[t * 256 + used, 1] = row[used] << 32 | (TABLE_SIZE - row[used]) << 16 | starts[used]
            # the escape (the last symbol) is marked by frequency 0 and needs no symbol
            symbol = np.append(np.arange(self.symbols), 0) | np.append(row[:-1], 0) << 8
            offset = np.arange(TABLE_SIZE) - np.repeat(starts, row)
            self._slots[t * TABLE_SIZE : (t + 1) * TABLE_SIZE] = np.repeat(symbol, row) | offset << 20
        self._code = code.reshape(-1)

    @classmethod
    def of(cls, point: TensorPoint, channels: int) -> Self | None:
        """The coder of `point`, or None if it has no tables."""
        return None if point.tables is None else cls(point.tables, len(point.quantizer.levels), channels)

    def encode(self, symbols: NDArray[np.uint8], rows: int, cols: int, channel: int = 0) -> tuple[bytes, int]:
        """Code (P·rows·cols,) block symbols, the first plane being of `channel`; returns bytes and lanes."""
        planes = symbols.size // (rows * cols)
        lanes = choose_lanes(symbols.size, planes)
        words = np.empty(2 * symbols.size + 2 * lanes, np.uint16)
        start = kernels.encode(
            symbols, rows, cols, lanes, self._contexts(planes, channel), self._top, self._left,
            self._context_map, self._code, self._escape, words,
        )  # fmt: skip
        return words[start:].astype("<u2", copy=False).tobytes(), lanes

    def decode(
        self, payload: bytes | memoryview, planes: int, rows: int, cols: int, lanes: int, channel: int = 0
    ) -> NDArray[np.uint8]:
        """The inverse of `encode`: (planes·rows·cols,) uint8. Raises Truncated or Corrupt."""
        if len(payload) % 2:
            raise Corrupt(f"rANS payload must be whole 16-bit words, has {len(payload)} bytes")
        count = len(payload) // 2
        words = np.empty(count + 2 * lanes + 2, np.uint16)
        words[:count] = np.frombuffer(payload, "<u2")
        words[count:] = 0
        symbols = np.empty(planes * rows * cols, np.uint8)
        status = kernels.decode(
            words, count, rows, cols, lanes, self._contexts(planes, channel), self._top, self._left,
            self._context_map, self._slots, self._escape, symbols,
        )  # fmt: skip
        if status == kernels.OVERRUN:
            raise Truncated(f"rANS payload of {len(payload)} bytes ends before all {symbols.size} symbols are decoded")
        if status == kernels.BAD_END:
            raise Corrupt("rANS payload does not end in the initial state; it was damaged or is not of this profile")
        if self.symbols < 256 and symbols.max() >= self.symbols:
            raise Corrupt(f"rANS payload holds an escaped symbol that is not below {self.symbols}")
        return symbols

    def _repeat_contexts(self, planes: int, channel: int) -> NDArray[np.uint64]:
        """Where each plane's channel starts in the context map; a stream has few shapes, so the last ones are kept."""
        return np.resize(np.roll(self._plane_context, -channel), planes)


def neighbour_context(activity: bytes, *, outside: int, scale: int) -> NDArray[np.uint8]:
    """(512,) context contribution of a neighbouring symbol; the second half is for one outside the plane."""
    out = np.full(512, outside * scale, np.uint8)
    out[: len(activity)] = np.frombuffer(activity, np.uint8) * np.uint8(scale)
    return out
