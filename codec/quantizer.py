"""Features ↔ level indices ↔ block symbols: the validated layer over kernels/quantize.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import NonFiniteFeatures
from .kernels import quantize as kernels
from .profile import Quantizer

Float32Array = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]


def quantize(x: Float32Array, quantizer: Quantizer) -> UInt8Array:
    """Map features to level indices with clipping: q = number of thresholds ≤ x.

    x: any shape, float32, finite. Returns uint8 of the same shape, in [0, N).
    Raises NonFiniteFeatures if any element is NaN or ±Inf (count and first index in the message).
    Source: Cohen et al. 2021, uniform quantizer with pinned ends, and its entropy-constrained variant.
    """
    flat = np.ascontiguousarray(x, np.float32).reshape(-1)
    out = np.empty(flat.size, np.uint8)
    bad = kernels.quantize(flat, np.array(quantizer.thresholds, np.float32), out)
    if bad:
        first = int(np.flatnonzero(~np.isfinite(flat))[0])
        index = tuple(int(i) for i in np.unravel_index(first, x.shape))
        raise NonFiniteFeatures(
            f"features must be finite; {bad} of {flat.size} are NaN or infinite, the first at index {index} "
            f"({flat[first]}); check the input and the front graph"
        )
    return out.reshape(x.shape)


def dequantize(q: UInt8Array, quantizer: Quantizer) -> Float32Array:
    """Level indices → reconstruction values, float32 of the same shape."""
    return np.array(quantizer.levels, np.float32)[q]


class BlockPacker:
    """Groups level indices of (P, H, W) planes to block symbols and turns symbols back into values.

    Planes that are not whole blocks are padded with level `padding`; the padding is dropped after decoding.
    """

    def __init__(self, quantizer: Quantizer, block: tuple[int, int], padding: int, height: int, width: int) -> None:
        self.levels = len(quantizer.levels)
        self.block = block
        self.padding = padding
        self.height, self.width = height, width
        self.rows, self.cols = -(-height // block[0]), -(-width // block[1])
        self._padded = (self.rows * block[0], self.cols * block[1])
        elements = block[0] * block[1]
        digits = np.arange(self.levels**elements)[:, None] // self.levels ** np.arange(elements) % self.levels
        # (K·bh·units,) machine words: two float32 move at once where the block is an even number of columns wide
        self._word = np.dtype(np.uint64 if block[1] % 2 == 0 else np.uint32)
        self._units = block[1] * 4 // self._word.itemsize
        self._values = np.ascontiguousarray(np.array(quantizer.levels, np.float32)[digits]).view(self._word).reshape(-1)

    def pack(self, q: UInt8Array) -> UInt8Array:
        """(P, H, W) level indices → (P·rows·cols,) symbols."""
        flat = q.reshape(-1)
        planes = flat.size // (self.height * self.width)
        if self._padded != (self.height, self.width):
            padded = np.full(planes * self._padded[0] * self._padded[1], self.padding, np.uint8)
            kernels.copy_planes(flat, self.height, self.width, padded, *self._padded)
            flat = padded
        row = np.empty(flat.size // self.block[1], np.uint8)
        out = np.empty(planes * self.rows * self.cols, np.uint8)
        kernels.pack(flat, self.cols, self.levels, *self.block, row, out)
        return out

    def unpack(self, symbols: UInt8Array, out: Float32Array) -> None:
        """(P·rows·cols,) symbols → reconstruction values in `out`, (P·H·W,) float32, contiguous."""
        whole = self._padded == (self.height, self.width)
        planes = symbols.size // (self.rows * self.cols)
        full = out if whole else np.empty(planes * self._padded[0] * self._padded[1], np.float32)
        kernels.unpack(symbols, self.cols, self.block[0], self._units, self._values, full.view(self._word))
        if not whole:
            kernels.copy_planes(full, *self._padded, out, self.height, self.width)
