"""Coder id 2: truncated unary, one adaptive context per bin, binary arithmetic coder (docs/bitstream.md §5).

This is the coder of Cohen et al. 2021. It is the reference that the other coders are compared with, and it needs no
tables in the profile. Its time grows with the level: an element of level q takes q + 1 steps.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import Corrupt, Truncated
from splitwire.codec.kernels import cabac as kernels
from splitwire.codec.profile import TensorPoint, TensorSpec

CODER_ID = 2


class AdaptiveBinary:
    """Level indices ↔ bytes by adaptive binary coding. Symbols are single levels. Immutable: threads may share it."""

    coder_id: ClassVar[int] = CODER_ID
    max_lanes: ClassVar[int] = 1
    whole_images: ClassVar[bool] = False
    block = (1, 1)
    padding = 0

    def __init__(self, levels: int) -> None:
        self.symbols = levels

    @classmethod
    def of(cls, point: TensorPoint, spec: TensorSpec) -> Self:
        """The coder of `point`. It needs no tables, so it fits every point."""
        return cls(len(point.quantizer.levels))

    def encode(self, symbols: NDArray[np.uint8], rows: int, cols: int, channel: int = 0) -> tuple[bytes, int]:
        """Code (n,) level indices; returns bytes and lanes (1). The shape of the planes has no effect."""
        room = symbols.size + 16
        while True:
            out = np.empty(room, np.uint8)
            size = kernels.encode(symbols, self.symbols - 1, out)
            if size != kernels.FULL:
                return out[:size].tobytes(), 1
            # More than a byte per element: many levels at random. A bin takes at most 11 bits, so the loop ends.
            room *= 2

    def decode(
        self, payload: bytes | memoryview, planes: int, rows: int, cols: int, lanes: int, channel: int = 0
    ) -> NDArray[np.uint8]:
        """The inverse of `encode`: (planes·rows·cols,) uint8. Raises Truncated or Corrupt."""
        data = np.zeros(len(payload) + kernels.TAIL, np.uint8)
        data[: len(payload)] = np.frombuffer(payload, np.uint8)
        symbols = np.empty(planes * rows * cols, np.uint8)
        status = kernels.decode(data, self.symbols - 1, symbols)
        if status == kernels.OVERRUN:
            raise Truncated(
                f"binary payload of {len(payload)} bytes ends before all {symbols.size} elements are decoded"
            )
        if status == kernels.BAD_END:
            raise Corrupt("binary payload does not end where its elements do; it was damaged or is not of this profile")
        return symbols
