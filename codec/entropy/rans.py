"""Coder id 1: static-table, neighbour-context block-symbol rANS (docs/bitstream.md §4)."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.kernels import rans as kernels
from splitwire.codec.profile import TensorPoint, TensorSpec
from splitwire.codec.tables import ContextTables

from .ans import MAX_LANES, AnsTables, check, choose_lanes, from_payload, room_for_words, to_payload

CODER_ID = 1


class ContextRans:
    """Block symbols of P planes of rows × cols blocks ↔ bytes, by rANS with static tables chosen by the neighbours.

    It holds the tables of one tensor at one operating point. It is immutable, so threads may share it.
    """

    coder_id: ClassVar[int] = CODER_ID
    max_lanes: ClassVar[int] = MAX_LANES
    whole_images: ClassVar[bool] = False

    def __init__(self, tables: ContextTables, levels: int, channels: int) -> None:
        tables.check(levels, channels)
        self.block = tables.block
        self.padding = tables.padding
        self.symbols = levels ** (tables.block[0] * tables.block[1])
        side = tables.activities + 1
        self._context_map = np.frombuffer(tables.context_map, np.uint8)
        self._plane_context = np.arange(channels, dtype=np.uint64) * np.uint64(side * side)
        self._plane_contexts = lru_cache(maxsize=8)(self._repeat_plane_contexts)
        self._top = neighbour_context(tables.top_activity, outside=tables.activities, scale=side)
        self._left = neighbour_context(tables.left_activity, outside=tables.activities, scale=1)
        self._ans = AnsTables.of(tables.frequency_rows(self.symbols))

    @classmethod
    def of(cls, point: TensorPoint, spec: TensorSpec) -> Self | None:
        """The coder of `point`, or None if it has no tables."""
        return None if point.tables is None else cls(point.tables, len(point.quantizer.levels), spec.planes[0])

    def encode(self, symbols: NDArray[np.uint8], rows: int, cols: int, channel: int = 0) -> tuple[bytes, int]:
        """Code (P·rows·cols,) block symbols; returns bytes and lanes. channel: of the first plane."""
        planes = symbols.size // (rows * cols)
        lanes = choose_lanes(symbols.size, planes)
        words = room_for_words(symbols.size, lanes)
        rows, cols, contexts = self._transpose_single_column(rows, cols, planes, channel)
        start = kernels.encode(symbols, rows, cols, lanes, contexts, self._ans.code, self._ans.escape, words)
        return to_payload(words, start), lanes

    def decode(
        self, payload: bytes | memoryview, planes: int, rows: int, cols: int, lanes: int, channel: int = 0
    ) -> NDArray[np.uint8]:
        """The inverse of `encode`: (planes·rows·cols,) uint8. Raises Truncated or Corrupt."""
        words, count = from_payload(payload, lanes)
        symbols = np.empty(planes * rows * cols, np.uint8)
        rows, cols, contexts = self._transpose_single_column(rows, cols, planes, channel)
        ans = self._ans
        status = kernels.decode(words, count, rows, cols, lanes, contexts, ans.slots, ans.escape, symbols)
        check(status, payload, symbols, self.symbols)
        return symbols

    def _transpose_single_column(
        self, rows: int, cols: int, planes: int, channel: int
    ) -> tuple[int, int, kernels.Contexts]:
        """Rows, columns and contexts as the kernels take them.

        A single column of blocks is coded as a row, with the two neighbours exchanged: their sum is the same, and
        inside a row the neighbour stays in a register.
        """
        plane = self._plane_contexts(planes, channel)
        if cols == 1:
            return 1, rows, kernels.Contexts(plane, self._left, self._top, self._context_map)
        return rows, cols, kernels.Contexts(plane, self._top, self._left, self._context_map)

    def _repeat_plane_contexts(self, planes: int, channel: int) -> NDArray[np.uint64]:
        """Where each plane's channel starts in the context map. Cached: a stream has few shapes."""
        return np.resize(np.roll(self._plane_context, -channel), planes)


def neighbour_context(activity: bytes, *, outside: int, scale: int) -> NDArray[np.uint8]:
    """(512,) what a neighbour's symbol adds to the context index; the second half is for one outside the plane."""
    out = np.full(512, outside * scale, np.uint8)
    out[: len(activity)] = np.frombuffer(activity, np.uint8) * np.uint8(scale)
    return out
