"""Entropy coders, one per module, each a thin validated layer over its kernels.

A coder has a literal wire id that is never reused. What it needs beyond the quantizer lies in the profile, and that is
what chooses the coder, on both ends; a chunk table that names another is refused.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.profile import TensorPoint, TensorSpec

from .cabac import AdaptiveBinary
from .predictive import PredictiveRans
from .rans import ContextRans


class SymbolCoder(Protocol):
    """One tensor at one operating point: block symbols of whole planes ↔ bytes. Immutable, free to share.

    block, padding: how level indices form symbols (BlockPacker). max_lanes: the most a chunk of this coder may name.
    whole_images: whether a chunk that begins or ends inside an image costs it bytes.
    `tests/helpers/conformance.py` checks what is promised here.
    """

    coder_id: ClassVar[int]
    max_lanes: ClassVar[int]
    whole_images: ClassVar[bool]

    @property
    def block(self) -> tuple[int, int]:
        """(height, width) of a block, elements."""

    @property
    def padding(self) -> int:
        """Level index put where a block reaches over the plane."""

    @classmethod
    def of(cls, point: TensorPoint, spec: TensorSpec) -> Self | None:
        """The coder of `point`, or None if the profile does not hold what it needs."""

    def encode(self, symbols: NDArray[np.uint8], rows: int, cols: int, channel: int = 0) -> tuple[bytes, int]:
        """Code (P·rows·cols,) symbols, the first plane being of `channel`; returns bytes and lanes."""

    def decode(
        self, payload: bytes | memoryview, planes: int, rows: int, cols: int, lanes: int, channel: int = 0
    ) -> NDArray[np.uint8]:
        """The inverse of `encode`: (planes·rows·cols,) uint8, in range. Raises Truncated or Corrupt."""


CODERS: tuple[type[SymbolCoder], ...] = (PredictiveRans, ContextRans, AdaptiveBinary)
"""Every coder, the best first: the first that a point has what it needs for is the one that encodes."""
