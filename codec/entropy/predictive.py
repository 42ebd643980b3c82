"""Coder id 4: rANS over single levels, a table for each by a prediction from other channels (docs/bitstream.md §6)."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.kernels import prediction
from splitwire.codec.kernels import predictive as kernels
from splitwire.codec.profile import TensorPoint, TensorSpec
from splitwire.codec.tables import CELLS, OWN, PLACES, PredictionTables, Taps

from .ans import MAX_LANES, AnsTables, check, choose_lanes, from_payload, room_for_words, to_payload

CODER_ID = 4


class PredictiveRans:
    """Level indices ↔ bytes. Symbols are single levels: no blocks. Immutable after construction, so free to share."""

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
        # symbols close together, as few as there are: at 256 a table all of them fall into one set of the cache
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
        """Code (P·rows·cols,) level indices, the first plane being of `channel`; returns bytes and lanes."""
        lanes = choose_lanes(symbols.size, symbols.size // (rows * cols))
        words = room_for_words(symbols.size, lanes)
        layout, model = self._models(rows, cols)
        start = kernels.encode(symbols, channel, lanes, layout, model, self._code, self._ans.escape, words)
        return to_payload(words, start), lanes

    def decode(
        self, payload: bytes | memoryview, planes: int, rows: int, cols: int, lanes: int, channel: int = 0
    ) -> NDArray[np.uint8]:
        """The inverse of `encode`: (planes·rows·cols,) uint8. Raises Truncated or Corrupt."""
        words, count = from_payload(payload, lanes)
        symbols = np.empty(planes * rows * cols, np.uint8)
        layout, model = self._models(rows, cols)
        status = kernels.decode(words, count, channel, lanes, layout, model, self._ans.slots, self._ans.escape, symbols)
        check(status, payload, symbols, self.symbols)
        return symbols

    def _model(self, rows: int, cols: int) -> tuple[prediction.Layout, prediction.Model]:
        """The tables, laid out for planes of this size; a stream has few sizes, so the last ones are kept."""
        counts, sources, places = self._taps.arrays()
        tables = self._prediction
        activity = np.frombuffer(tables.activity, np.uint8)
        most_active = int(np.flatnonzero(np.append(activity[0], activity[:-1]) != activity).max(initial=0))
        active_bits = most_active.bit_length()
        layout = prediction.lay_out(
            counts.size,
            rows,
            cols,
            shift=tables.shift,
            active_bits=active_bits,
            most_active=most_active,
            rest=tables.rest,
            levels=self.symbols,
            symbol_bits=self._symbol_bits,
        )
        weights = np.frombuffer(tables.weights, np.int8).astype(np.int16)
        first = np.cumsum(counts + len(OWN)) - counts - len(OWN)  # the own weights of each channel come first
        own = first[:, None] + np.arange(len(OWN))
        taps = np.delete(weights, own.reshape(-1))
        targets = np.repeat(np.arange(counts.size), counts)
        shifts = np.array([y * layout.pitch + x for y, x in PLACES], np.int64)[places]
        # by target, filled up to multiples of eight
        filled = -(-counts // 8) * 8
        starts = np.concatenate([[0], np.cumsum(filled)])
        at = np.arange(counts.sum()) + np.repeat(starts[:-1] - (np.cumsum(counts) - counts), counts)
        by_target = np.zeros((3, starts[-1]), np.int64)
        by_target[:, at] = sources, prediction.GUARD + layout.pitch + sources * layout.stride + shifts, taps
        # by source
        order = np.argsort(sources, kind="stable")
        outs = np.concatenate([[0], np.cumsum(np.bincount(sources, minlength=counts.size))])
        out_places = (targets & layout.kept) * layout.span + layout.pitch - shifts
        table = np.frombuffer(tables.context_map, np.uint8).reshape(tables.classes, CELLS, tables.activities)
        table = table[:, :, activity[np.minimum(np.arange(1 << active_bits), most_active)]]
        return layout, prediction.Model(
            starts=starts.astype(np.uint64),
            channels=by_target[0].astype(np.uint64),
            places=by_target[1].astype(np.uint64),
            weights=by_target[2].astype(np.int16),
            out_starts=outs.astype(np.uint64),
            out_places=out_places[order].astype(np.uint32),
            out_weights=taps[order],
            own=weights[own].reshape(-1),
            bias=(np.frombuffer(tables.bias, "<i2") + np.int16(tables.offset)).astype(np.int16),
            table=table.reshape(-1).copy(),
            rows=np.frombuffer(tables.channel_class, np.uint8).astype(np.uint64) * np.uint64(CELLS << active_bits),
            magnitudes=np.abs(np.minimum(np.arange(256), self.symbols - 1) - tables.rest).astype(np.uint8),
        )
