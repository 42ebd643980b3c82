"""What is compared: something that makes bytes of the features, or of the image, and gives them back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Float32Array = NDArray[np.float32]
Features = tuple[Float32Array, ...]
"""One image's tensors at the cut, each (1, *shape) float32, C-contiguous."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """payload: what the cloud gets. side: bytes beside it, counted and not made (ranges, shapes)."""

    payload: bytes
    side: int = 0

    @property
    def bytes(self) -> int:
        """Of one image, all told."""
        return len(self.payload) + self.side


class FeatureContender(Protocol):
    """Sends the features. family, setting: see results.Point.

    received: contenders with the same text here give back the same features to the bit (the same operating point in
    two coders), so that the back half runs once for all of them.
    """

    family: str
    setting: str
    received: str

    def fit(self, sample: Sequence[Features]) -> None:
        """Learn what the paper's or a user's calibration would fix beforehand (ranges) from some images' features.

        Called once, before `encode`. Does not change between runs on the same images."""

    def encode(self, features: Features) -> Sent:
        """Timed: on one core, no threads."""

    def decode(self, sent: Sent) -> Features:
        """What the back half gets."""


class ImageContender(Protocol):
    """Sends the picture; the whole network runs in the cloud."""

    family: str
    setting: str

    def encode(self, picture: Image.Image) -> Sent:
        """An RGB or L picture, already of the network's size. Timed: on one core, no threads."""

    def decode(self, sent: Sent) -> Image.Image:
        """The picture in its mode again."""
