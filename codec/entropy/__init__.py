"""Entropy coders, one per module, each a thin validated layer over its kernels.

A coder has a literal wire id that is never reused. The profile holds its tables, and both ends choose the coder by the
tables that are there. A frame whose chunk table names another coder is refused.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.profile import TensorPoint, TensorSpec

from .ans import MAX_LANES
from .cabac import AdaptiveBinary
from .predictive import PredictiveRans
from .rans import ContextRans
from .transform import CODER_IDS


class SymbolCoder(Protocol):
    """An entropy coder for one tensor at one operating point: block symbols of whole planes ↔ bytes.

    It is immutable, so threads may share it.
    block, padding: how level indices form symbols (BlockPacker). max_lanes: the most lanes of a chunk of this coder.
    whole_images: whether a chunk that begins or ends inside an image has a higher rate.
    `tests/helpers/codec/conformance.py` checks that every coder keeps this interface.
    """

    coder_id: ClassVar[int]
    max_lanes: ClassVar[int]
    whole_images: ClassVar[bool]

    @property
    def block(self) -> tuple[int, int]:
        """(height, width) of a block, elements."""

    @property
    def padding(self) -> int:
        """Level index of the elements of a block that lie outside the plane."""

    @classmethod
    def of(cls, point: TensorPoint, spec: TensorSpec) -> Self | None:
        """The coder of `point`, or None if the profile does not hold what it needs."""

    def encode(self, symbols: NDArray[np.uint8], rows: int, cols: int, channel: int = 0) -> tuple[bytes, int]:
        """Code (P·rows·cols,) symbols; returns bytes and lanes. channel: of the first plane."""

    def decode(
        self, payload: bytes | memoryview, planes: int, rows: int, cols: int, lanes: int, channel: int = 0
    ) -> NDArray[np.uint8]:
        """The inverse of `encode`: (planes·rows·cols,) uint8, in range. Raises Truncated or Corrupt."""


CODERS: tuple[type[SymbolCoder], ...] = (PredictiveRans, ContextRans, AdaptiveBinary)
"""Every coder of level indices, lowest rate first. A point is coded by the first one whose tables it has."""

MOST_LANES = {kind.coder_id: kind.max_lanes for kind in CODERS} | dict.fromkeys(CODER_IDS, MAX_LANES)
"""Wire id of every coder, that of transform coefficients too → the most lanes of one of its chunks."""
