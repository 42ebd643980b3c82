"""Coder id 4: rANS over single levels, a table for each by a prediction from other channels (docs/bitstream.md §6)."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.kernels import predictive as kernels
from splitwire.codec.profile import CELLS, OWN, PLACES, PredictionTables, Taps, TensorPoint, TensorSpec

from .ans import MAX_LANES, AnsTables, check, choose_lanes, from_payload, room_for_words, to_payload

CODER_ID = 4


class PredictiveRans:
    """Level indices ↔ bytes. Symbols are single levels: no blocks. Immutable after construction, so free to share."""

    coder_id: ClassVar[int] = CODER_ID
    max_lanes: ClassVar[int] = MAX_LANES
    block = (1, 1)
    whole_images: ClassVar[bool] = True

    def __init__(self, prediction: PredictionTables, taps: Taps, levels: int) -> None:
        self.padding = prediction.rest
        self.symbols = levels
        self._prediction, self._taps = prediction, taps
        self._ans = AnsTables.of(prediction.frequency_rows(levels))
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
        start = kernels.encode(symbols, channel, lanes, layout, model, self._ans.code, self._ans.escape, words)
        return to_payload(words, start), lanes

    def decode(
        self, payload: bytes | memoryview, planes: int, rows: int, cols: int, lanes: int, channel: int = 0
    ) -> NDArray[np.uint8]:
        """The inverse of `encode`: (planes·rows·cols,) uint8. Raises Truncated or Corrupt."""
        words, count = from_payload(payload, lanes)
        symbols = np.empty(planes * rows * cols, np.uint8)
        layout, model = self._models(rows, cols)
        status = kernels.decode(
            words, count, channel, lanes, layout, model, self._ans.slots, self._ans.escape, symbols
        )
        check(status, payload, symbols, self.symbols)
        return symbols

    def _model(self, rows: int, cols: int) -> tuple[kernels.Layout, kernels.Model]:
        """The tables, laid out for planes of this size; a stream has few sizes, so the last ones are kept."""
        layout = kernels.Layout.of(rows, cols)
        counts, channels, places = self._taps.arrays()
        tables = self._prediction
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        weights = np.frombuffer(tables.weights, np.int8).astype(np.int16)
        at = np.array([y * layout.pitch + x for y, x in PLACES], np.int64)
        first = starts[:-1] + len(OWN) * np.arange(counts.size)  # the own weights of each channel come first
        own = first[:, None] + np.arange(len(OWN))
        table = np.zeros((tables.classes, CELLS, 4), np.uint8)
        table[:, :, : tables.activities] = np.frombuffer(tables.context_map, np.uint8).reshape(
            tables.classes, CELLS, tables.activities
        )
        return layout, kernels.Model(
            starts=starts,
            channels=channels.astype(np.int64),
            shifts=channels * layout.stride + at[places],
            weights=np.delete(weights, own.reshape(-1)),
            own=weights[own],
            own_shifts=np.array([y * layout.pitch + x for y, x in OWN], np.int64),
            bias=np.frombuffer(tables.bias, "<i2").astype(np.int16),
            table=table.reshape(-1),
            activity=np.frombuffer(tables.activity, np.uint8).copy(),
            channel_class=np.frombuffer(tables.channel_class, np.uint8).astype(np.uint64),
            offset=tables.offset,
            shift=tables.shift,
            rest=tables.rest,
            levels=self.symbols,
        )
