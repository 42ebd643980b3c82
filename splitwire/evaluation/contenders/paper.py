"""The codec of Cohen et al. 2021 as published: clip, quantize, truncated unary, adaptive binary arithmetic coder.

The quantizers are those of the profile. Points n and e are made as the paper makes them: uniform with pinned ends, or
entropy-constrained, over the range with the least squared error. Those of points r have ranges that are splitwire's
(exporter/points/budget.py); the paper's coder on them is a family of its own. The elements run channel by channel, and
the contexts start afresh with each tensor of each image.
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
"""Side information of one tensor, bytes, as Cohen et al. 2021 count it. Four of them are real here, the length of the
coded tensor."""

LENGTH_BYTES = 4


class Paper:
    """One operating point in the paper's coder. What comes back is what splitwire's frame of the same point gives."""

    def __init__(self, profile: CodecProfile, op: str, *, family: str, side: int, detections: bool) -> None:
        """side: bytes of the profile's sizes, which come on top of the paper's side information."""
        self.family, self.setting, self.received = family, op, f"op {op}"
        self._shapes = [(1, *t.shape) for t in profile.tensors]
        point = profile.operating_points[profile.point_index(op)]
        self._quantizers = [t.quantizer for t in point.tensors]
        self._coders = [AdaptiveBinary(len(q.levels)) for q in self._quantizers]
        each = (SIDE_BYTES_DETECTION if detections else SIDE_BYTES) - LENGTH_BYTES
        self._side = side + each * len(self._shapes)

    def fit(self, sample: Sequence[Features]) -> None:
        """Nothing: the profile holds the quantizers."""

    def encode(self, features: Features) -> Sent:
        parts = []
        for x, quantizer, coder in zip(features, self._quantizers, self._coders, strict=True):
            coded, _ = coder.encode(quantize(x, quantizer).reshape(-1), 1, x.size)
            parts += [len(coded).to_bytes(LENGTH_BYTES, "little"), coded]
        return Sent(payload=b"".join(parts), side=self._side)

    def decode(self, sent: Sent) -> Features:
        found, start = [], 0
        for shape, quantizer, coder in zip(self._shapes, self._quantizers, self._coders, strict=True):
            end = start + LENGTH_BYTES + int.from_bytes(sent.payload[start : start + LENGTH_BYTES], "little")
            q = coder.decode(sent.payload[start + LENGTH_BYTES : end], 1, 1, math.prod(shape), lanes=1)
            found.append(dequantize(q, quantizer).reshape(shape))
            start = end
        return tuple(found)
