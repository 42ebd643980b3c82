"""Coder id 4: rANS over single levels; a prediction from other channels selects the table (docs/bitstream.md §6)."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.kernels import predictive_interleaved as interleaved
from splitwire.codec.kernels import predictive_planes as planar
from splitwire.codec.kernels.predictive import BLOCK, ENTRIES
from splitwire.codec.profile import TensorPoint, TensorSpec
from splitwire.codec.tables import CELLS, OWN, PLACES, PredictionTables, Taps

from .ans import MAX_LANES, AnsTables, check, choose_lanes, from_payload, room_for_words, to_payload

CODER_ID = 4

Shared = dict[str, NDArray[np.generic]]
"""The arrays of a model that are the same in both memory layouts of the planes."""


class PredictiveRans:
    """Level indices ↔ bytes by predictive rANS. Symbols are single levels. Immutable, so threads may share it."""

    coder_id: ClassVar[int] = CODER_ID
    max_lanes: ClassVar[int] = MAX_LANES
    block = (1, 1)
    whole_images: ClassVar[bool] = True

    def __init__(self, prediction: PredictionTables, taps: Taps, levels: int) -> None:
        taps.check(len(taps.counts))  # the kernels trust every number
        prediction.check(levels, len(taps.counts), taps)
        self.padding = prediction.rest
        self.symbols = levels
        self._prediction, self._taps = prediction, taps
        self._ans = AnsTables.of(prediction.frequency_rows(levels))
        # As few symbols per table as there are: at a stride of 256, the entries of all tables share one cache set.
        self._symbol_bits = max(1, levels - 1).bit_length()
        code = self._ans.code.reshape(-1, 256, 2)[:, : 1 << self._symbol_bits]
        self._code = np.ascontiguousarray(code).reshape(-1)
        self._models = lru_cache(maxsize=8)(self._model)

    @classmethod
    def of(cls, point: TensorPoint, spec: TensorSpec) -> Self | None:
        """The coder of `point`, or None if it has no prediction."""
        if not isinstance(point.prediction, PredictionTables) or not isinstance(spec.taps, Taps):
            return None
        return cls(point.prediction, spec.taps, len(point.quantizer.levels))

    def encode(self, symbols: NDArray[np.uint8], rows: int, cols: int, channel: int = 0) -> tuple[bytes, int]:
        """Code (P·rows·cols,) level indices; returns bytes and lanes. channel: of the first plane."""
        lanes = choose_lanes(symbols.size, symbols.size // (rows * cols))
        words = room_for_words(symbols.size, lanes)
        kernels, layout, model = self._models(rows, cols)
        start = kernels.encode(symbols, channel, lanes, layout, model, self._code, self._ans.escape, words)
        return to_payload(words, start), lanes

    def decode(
        self, payload: bytes | memoryview, planes: int, rows: int, cols: int, lanes: int, channel: int = 0
    ) -> NDArray[np.uint8]:
        """The inverse of `encode`: (planes·rows·cols,) uint8. Raises Truncated or Corrupt."""
        words, count = from_payload(payload, lanes)
        symbols = np.empty(planes * rows * cols, np.uint8)
        kernels, layout, model = self._models(rows, cols)
        status = kernels.decode(words, count, channel, lanes, layout, model, self._ans.slots, self._ans.escape, symbols)
        check(status, payload, symbols, self.symbols)
        return symbols

    def _model(self, rows: int, cols: int) -> tuple[ModuleType, NamedTuple, NamedTuple]:
        """The kernels for planes of this size, with their layout and model. Cached: a stream has few plane sizes."""
        tables = self._prediction
        activity = np.frombuffer(tables.activity, np.uint8)
        most_active = int(np.flatnonzero(np.append(activity[0], activity[:-1]) != activity).max(initial=0))
        active_bits = most_active.bit_length()
        table = np.frombuffer(tables.context_map, np.uint8).reshape(tables.classes, CELLS, tables.activities)
        profile = {
            "shift": tables.shift, "active_bits": active_bits, "most_active": most_active, "rest": tables.rest,
            "levels": self.symbols, "symbol_bits": self._symbol_bits,
        }  # fmt: skip
        shared = {
            "table": table[:, :, activity[np.minimum(np.arange(1 << active_bits), most_active)]].reshape(-1).copy(),
            "rows": np.frombuffer(tables.channel_class, np.uint8).astype(np.uint64) * np.uint64(CELLS << active_bits),
            "magnitudes": np.abs(np.minimum(np.arange(256), self.symbols - 1) - tables.rest).astype(np.uint8),
        }
        weights = _Weights.of(tables, self._taps)
        if interleaved.fits(rows, cols):
            small = interleaved.lay_out(weights.counts.size, rows, cols, weights.distinct, **profile)
            return interleaved, small, weights.interleaved(small, shared)
        layout = planar.lay_out(rows, cols, **profile)
        return planar, layout, weights.planar(layout, shared)


class _Weights(NamedTuple):
    """The weights of a profile's prediction as arrays.

    counts: (C,) taps of each channel. sources, places, taps: (taps,) source channel, place and weight of each tap.
    own: (C, ENTRIES) int16, the neighbour weights (kernels/predictive.py).
    """

    counts: NDArray[np.intp]
    sources: NDArray[np.intp]
    places: NDArray[np.intp]
    taps: NDArray[np.int16]
    own: NDArray[np.int16]

    @classmethod
    def of(cls, tables: PredictionTables, taps: Taps) -> Self:
        counts, sources, places = taps.arrays()
        weights = np.frombuffer(tables.weights, np.int8).astype(np.int16)
        first = np.cumsum(counts + len(OWN)) - counts - len(OWN)  # each channel's neighbour weights come first
        own = first[:, None] + np.arange(len(OWN))
        bias = (np.frombuffer(tables.bias, "<i2") + np.int16(tables.offset)).astype(np.int16)
        entries = np.column_stack([weights[own], bias, bias - weights[own[:, 0]] * np.int16(tables.rest)])
        return cls(counts, sources, places, np.delete(weights, own.reshape(-1)), entries)

    @property
    def distinct(self) -> int:
        """The number of taps. It is 0 if two are equal, because the sum of their weights may not fit into int8."""
        targets = np.repeat(np.arange(self.counts.size), self.counts)
        each = np.unique((targets * self.counts.size + self.sources) * len(PLACES) + self.places)
        return each.size if each.size == targets.size else 0

    def planar(self, layout: planar.Layout, shared: Shared) -> planar.Model:
        """The model for the planar kernels: taps in the order of their targets, padded to multiples of eight."""
        counts = self.counts
        filled = -(-counts // 8) * 8
        starts = np.concatenate([[0], np.cumsum(filled)])
        at = np.arange(counts.sum()) + np.repeat(starts[:-1] - (np.cumsum(counts) - counts), counts)
        shifts = np.array([y * layout.pitch + x for y, x in PLACES], np.int64)[self.places]
        first = planar.GUARD + layout.pitch + self.sources * layout.stride
        by_target = np.zeros((3, starts[-1]), np.int64)
        by_target[:, at] = self.sources, first + shifts, self.taps
        return planar.Model(
            starts=starts.astype(np.uint64), channels=by_target[0].astype(np.uint64),
            places=by_target[1].astype(np.uint64), weights=by_target[2].astype(np.int16), own=self.own.reshape(-1),
            **shared,
        )  # fmt: skip

    def interleaved(self, layout: interleaved.Layout, shared: Shared) -> interleaved.Model:
        """The model for the interleaved kernels: taps in the order of their sources."""
        channels, span = self.counts.size, layout.span
        targets = np.repeat(np.arange(channels), self.counts)
        shifts = -np.array([(y * layout.pitch + x) * span for y, x in PLACES], np.int64)
        listed = np.argsort(self.sources, kind="stable")
        matrix = np.zeros(1, np.int8)
        if layout.dense:
            listed = listed[:0]
            dense = np.zeros((channels, len(PLACES), span), np.int8)
            dense[self.sources, self.places, targets] = self.taps
            matrix = dense.reshape(-1)
        starts = np.concatenate([[0], np.cumsum(np.bincount(self.sources[listed], minlength=channels))])
        own = np.zeros((span, ENTRIES), np.int16)
        own[:channels] = self.own
        blocks = own.reshape(-1, BLOCK, ENTRIES).swapaxes(1, 2)
        return interleaved.Model(
            matrix=matrix, starts=starts.astype(np.uint64),
            targets=(targets - self.sources + shifts[self.places])[listed].astype(np.uint64),
            weights=self.taps[listed], shifts=shifts.astype(np.uint64), own=blocks.reshape(-1), **shared,
        )  # fmt: skip
