"""The features without a codec: float32, float16, int8."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.profile import CodecProfile

from .protocol import Features, Float32Array, Sent

T = TypeVar("T", bound=np.generic)
MAX_FLOAT16 = float(np.finfo(np.float16).max)


class Ranges:
    """For each tensor an interval that is mapped to 0…255. It is fixed in advance and not sent."""

    def __init__(self, outside: float = 0.0) -> None:
        """outside: the share of a sample's elements, in [0, 0.5), that is clipped on each side."""
        self._outside = outside
        self._low: list[np.float32] = []
        self._step: list[np.float32] = []

    def fit(self, sample: Sequence[Features]) -> None:
        """Take each tensor's quantiles over some images; with `outside` 0, its smallest and largest value."""
        self._low, self._step = [], []
        for tensors in zip(*sample, strict=True):
            values = np.concatenate([x.reshape(-1) for x in tensors])
            low, high = np.quantile(values, (self._outside, 1 - self._outside))
            if low == high:  # nearly all elements are equal: the quantiles leave out all others
                low, high = values.min(), values.max()
            self._low.append(np.float32(low))
            # of a constant tensor so small a step that no byte moves the feature noticeably
            self._step.append(np.float32(max((high - low) / 255, 1e-12)))

    def to_bytes(self, x: Float32Array, tensor: int) -> NDArray[np.uint8]:
        """The nearest of the 256 values, of any shape."""
        scaled: Float32Array = (x - self._low[tensor]) / self._step[tensor]
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)

    def to_features(self, q: NDArray[np.uint8], tensor: int) -> Float32Array:
        """The inverse but for rounding and clipping."""
        return self._low[tensor] + q.astype(np.float32) * self._step[tensor]


class Floats:
    """Every element as float32 (exact) or float16 (clipped to its largest)."""

    setting = ""

    def __init__(self, profile: CodecProfile, dtype: Literal["float32", "float16"], *, side: int) -> None:
        self.family: str = dtype
        self.received: str = dtype
        self._dtype, self._side = np.dtype(dtype), side
        self._shapes = [(1, *t.shape) for t in profile.tensors]

    def fit(self, sample: Sequence[Features]) -> None:
        """Nothing to learn."""

    def encode(self, features: Features) -> Sent:
        if self._dtype == np.float16:
            features = tuple(np.clip(x, -MAX_FLOAT16, MAX_FLOAT16) for x in features)
        return Sent(payload=b"".join(x.astype(self._dtype).tobytes() for x in features), side=self._side)

    def decode(self, sent: Sent) -> Features:
        values = np.frombuffer(sent.payload, self._dtype).astype(np.float32)
        return split(values, self._shapes)


class Int8:
    """Every element as one of 256 values between the sample's smallest and largest, per tensor."""

    family = received = "int8"
    setting = ""

    def __init__(self, profile: CodecProfile, *, side: int) -> None:
        self._ranges, self._side = Ranges(), side
        self._shapes = [(1, *t.shape) for t in profile.tensors]

    def fit(self, sample: Sequence[Features]) -> None:
        """Learn the ranges."""
        self._ranges.fit(sample)

    def encode(self, features: Features) -> Sent:
        payload = b"".join(self._ranges.to_bytes(x, i).tobytes() for i, x in enumerate(features))
        return Sent(payload=payload, side=self._side)

    def decode(self, sent: Sent) -> Features:
        parts = split(np.frombuffer(sent.payload, np.uint8), self._shapes)
        return tuple(self._ranges.to_features(q, i) for i, q in enumerate(parts))


def split(values: NDArray[T], shapes: Sequence[tuple[int, ...]]) -> tuple[NDArray[T], ...]:
    """The elements of several arrays, one after the other → the arrays."""
    ends = np.cumsum([math.prod(s) for s in shapes])
    return tuple(part.reshape(s) for part, s in zip(np.split(values, ends[:-1]), shapes, strict=True))
