"""Symbols: the quantized features of a frame, and how far two frames are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from splitwire.codec.profile import CodecProfile
from splitwire.codec.quantizer import quantize
from splitwire.codec.transform import MOST, Transform, step_reciprocal

Float32Array = NDArray[np.float32]
FrameSymbols = tuple[NDArray[Any], ...]
"""Of each tensor: level indices of its shape, uint8, or (B, tiles, K) coefficients in steps, int16."""
POOL = 2
"""Side of a cell of a feature map, in elements: the noise of one element weighs less, an object as much."""


class Symbols:
    """Quantizes features at the operating point with the most bits: a coarser one is blind to small changes."""

    def __init__(self, profile: CodecProfile) -> None:
        point = max(profile.operating_points, key=lambda p: p.bits_per_element)
        self.op = point.name
        self._orders: list[NDArray[np.intp]] = []
        self._scales: list[np.float32] = []
        self._quantizers = []
        self._is_map = [len(spec.shape) == 3 for spec in profile.tensors]
        if isinstance(point.steps, tuple):
            for spec, step in zip(profile.tensors, point.steps, strict=True):
                if isinstance(spec.transform, Transform):
                    self._orders.append(spec.transform.order())
                    self._scales.append(step_reciprocal(step))
        else:
            # A mean-preserving quantizer rounds by what else is in the plane: a change far away would change symbols.
            self._quantizers = [msgspec.structs.replace(t.quantizer, mean_preserving=UNSET) for t in point.tensors]

    def of(self, features: Sequence[Float32Array]) -> FrameSymbols:
        """The symbols of all tensors. Raises NonFiniteFeatures."""
        if self._quantizers:
            pairs = zip(features, self._quantizers, strict=True)
            return tuple(quantize(x, q) for x, q in pairs)
        parts = []
        for x, order, scale in zip(features, self._orders, self._scales, strict=True):
            steps = np.nan_to_num(np.rint(x[..., order] * scale))  # the encoder refuses what is no number
            parts.append(np.clip(steps, -MOST, MOST).astype(np.int16))
        return tuple(parts)

    def distance(self, a: FrameSymbols, b: FrameSymbols) -> float:
        """Mean squared difference of the symbols in the cell where it is largest.

        What moves is somewhere, noise is everywhere: a mean over the whole frame would hide a small object. A cell is
        2×2 elements of a feature map in all channels, a token, or a tile of coefficients. Infinite for another batch.
        """
        return max(_tensor_distance(x, y, is_map) for x, y, is_map in zip(a, b, self._is_map, strict=True))


def _tensor_distance(a: NDArray[Any], b: NDArray[Any], is_map: bool) -> float:
    if a.shape != b.shape:
        return float("inf")
    difference = a.astype(np.float32) - b
    if not is_map:  # (B, T, D), (B, D)
        squares = np.einsum("...d,...d->...", difference, difference)
        return float(squares.max() / a.shape[-1])
    squares = np.einsum("bchw,bchw->bhw", difference, difference) / np.float32(a.shape[1])
    for axis in (1, 2):
        pooled = min(POOL, squares.shape[axis])
        edges = np.arange(0, squares.shape[axis] - pooled + 1, pooled)  # an odd last row goes to the cell before it
        squares = np.add.reduceat(squares, edges, axis=axis) / np.float32(pooled)
    return float(squares.max())
