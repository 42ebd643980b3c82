"""FeatureCodec: the whole codec behind two calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .profile import CodecProfile

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class DecodedFrame:
    """tensors: one (B, *shape) float32 array per tensor of the profile. op: name of the operating point."""

    tensors: list[Float32Array]
    op: str
    frame_id: int
    batch: int


class FeatureCodec:
    """Encode feature tensors to a frame and back, as the profile says. Safe to share between threads."""

    def __init__(self, profile: CodecProfile) -> None:
        self.profile = profile

    def encode(self, tensors: Sequence[Float32Array], *, op: str | None = None, frame_id: int = 0) -> bytes:
        """(B, *shape) float32 per tensor → one frame (docs/bitstream.md).

        Raises ShapeMismatch, NonFiniteFeatures, ProfileError (no such operating point).
        """
        raise NotImplementedError  # written next

    def decode(self, frame: bytes) -> DecodedFrame:
        """Frame → tensors. Raises BitstreamError (Truncated, Corrupt, UnsupportedVersion, LimitExceeded) or
        FingerprintMismatch; nothing else, whatever the bytes."""
        raise NotImplementedError  # written next
