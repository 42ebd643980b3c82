"""The codec of Cohen et al. 2021 as published: clip, quantize, truncated unary, adaptive binary arithmetic coder.

The quantizers are those of the profile. Those of points n and e are the paper's: uniform with pinned ends, or
entropy-constrained, over the range with the least squared error. The ranges of points r are splitwire's
(exporter/points/budget.py); the paper's coder with them is a family of its own. Elements are coded channel by channel.
Each tensor of each image starts with new contexts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from splitwire.codec.entropy.cabac import AdaptiveBinary
from splitwire.codec.profile import CodecProfile
from splitwire.codec.quantizer import dequantize, quantize

from .protocol import Features, Sent

SIDE_BYTES = 12
SIDE_BYTES_DETECTION = 24
"""Side information of one tensor, bytes, as Cohen et al. 2021 count it. Four of them are in the payload, the length of
the coded tensor."""

LENGTH_BYTES = 4


class Paper:
    """One operating point in the paper's coder. The decoded features are those of splitwire's frame
    of the same point."""

    def __init__(self, profile: CodecProfile, op: str, *, family: str, side: int, detections: bool) -> None:
        """side: bytes of the profile's sizes, in addition to the paper's side information."""
        self.family, self.setting, self.received = family, op, f"op {op}"
        self._shapes = [(1, *t.shape) for t in profile.tensors]
        point = profile.operating_points[profile.point_index(op)]
        self._quantizers = [t.quantizer for t in point.tensors]
        self._coders = [AdaptiveBinary(len(q.levels)) for q in self._quantizers]
        side_bytes = (SIDE_BYTES_DETECTION if detections else SIDE_BYTES) - LENGTH_BYTES
        self._side = side + side_bytes * len(self._shapes)

    def fit(self, sample: Sequence[Features]) -> None:
        """Nothing to learn: the profile holds the quantizers."""

    def encode(self, features: Features) -> Sent:
        parts = []
        for x, quantizer, coder in zip(features, self._quantizers, self._coders, strict=True):
            coded, _ = coder.encode(quantize(x, quantizer).reshape(-1), 1, x.size)
            parts += [len(coded).to_bytes(LENGTH_BYTES, "little"), coded]
        return Sent(payload=b"".join(parts), side=self._side)

    def decode(self, sent: Sent) -> Features:
        features, start = [], 0
        for shape, quantizer, coder in zip(self._shapes, self._quantizers, self._coders, strict=True):
            end = start + LENGTH_BYTES + int.from_bytes(sent.payload[start : start + LENGTH_BYTES], "little")
            q = coder.decode(sent.payload[start + LENGTH_BYTES : end], 1, 1, math.prod(shape), lanes=1)
            features.append(dequantize(q, quantizer).reshape(shape))
            start = end
        return tuple(features)
