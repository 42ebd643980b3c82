"""The interface of a contender: it encodes the features or the picture, and decodes them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Float32Array = NDArray[np.float32]
Features = tuple[Float32Array, ...]
"""One image's tensors at the cut, each (1, *shape) float32, C-contiguous. What a transform pair sends in their place,
its coefficients, has this type too."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """payload: the bytes that the cloud receives. side: number of further bytes that count, but are not made (ranges,
    shapes)."""

    payload: bytes
    side: int = 0

    @property
    def bytes(self) -> int:
        """All bytes of one image."""
        return len(self.payload) + self.side


class FeatureContender(Protocol):
    """Sends the features. family, setting: see results.Point.

    received: contenders with the same text here decode the same features to the bit (the same operating point in two
    coders). The back half runs once for all of them.
    """

    family: str
    setting: str
    received: str

    def fit(self, sample: Sequence[Features]) -> None:
        """Learn from some images' features what a calibration fixes (ranges).

        Called once, before `encode`. The same images must give the same result in every run.
        """

    def encode(self, features: Features) -> Sent:
        """Encode on one thread. The call is timed."""

    def decode(self, sent: Sent) -> Features:
        """The features that the back half receives."""


class ImageContender(Protocol):
    """Sends the picture; the whole network runs in the cloud."""

    family: str
    setting: str

    def encode(self, picture: Image.Image) -> Sent:
        """Encode an RGB or L picture of the network's size, on one thread. The call is timed."""

    def decode(self, sent: Sent) -> Image.Image:
        """The decoded picture, in the mode of the original."""
