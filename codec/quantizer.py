"""Features ↔ level indices ↔ block symbols: the layer that validates and allocates for kernels/quantize.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import NonFiniteFeatures
from .kernels import quantize as kernels
from .profile import Quantizer

Float32Array = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]

SLAB = 1 << 18
"""Elements that are quantized at a time before packing: their indices take a quarter of a 1 MB second-level cache."""

STRETCH = 1 << 12
"""Elements, in whole planes, that are mean-preserving quantized at a time: they stay in the first-level cache."""


def quantize(x: Float32Array, quantizer: Quantizer) -> UInt8Array:
    """Map features to level indices with clipping: q = number of thresholds ≤ x.

    A mean-preserving quantizer takes the level below x or the one above it, so that the mean of each plane (the last
    two axes) stays.
    x: any shape, float32, finite. Returns uint8 of the same shape, in [0, N).
    Raises NonFiniteFeatures if any element is NaN or ±Inf (count and first index in the message).
    Source: Cohen et al. 2021, uniform quantizer with pinned ends, and its entropy-constrained variant. The mean is kept
    by the method of largest remainders (M. L. Balinski and H. P. Young, "Fair Representation", 1982).
    """
    flat = np.ascontiguousarray(x, np.float32).reshape(-1)
    out = np.empty(flat.size, np.uint8)
    if _Decisions(quantizer, *(1, *x.shape)[-2:]).take(flat, out):
        raise non_finite(x)
    return out.reshape(x.shape)


class _Decisions:
    """A quantizer for planes of (height, width), as the kernels take it."""

    def __init__(self, quantizer: Quantizer, height: int, width: int) -> None:
        self._thresholds = np.array(quantizer.thresholds, np.float32)
        self._plane = height * width
        self._range = _range(quantizer) if quantizer.preserves_mean else None

    def take(self, x: Float32Array, out: UInt8Array) -> int:
        """Write the level indices of whole planes into `out`; returns the number of elements that are not finite."""
        if self._range is None:
            return int(kernels.quantize(x, self._thresholds, out))
        together = max(1, STRETCH // self._plane) * self._plane
        steps, remainders = np.empty(together, np.int32), np.empty(together, np.uint8)
        return int(kernels.apportion(x, self._plane, *self._range, steps, remainders, out))


def _range(quantizer: Quantizer) -> tuple[np.float32, np.float32, np.float32, np.float32, int]:
    """The arguments of `kernels.apportion` for a quantizer: low, least, most, scale, levels."""
    (low, high), levels = quantizer.clipping_range, len(quantizer.levels)
    step = (high - low) / (levels - 1)
    # Clipping changes the sum of a plane; the other elements compensate at most one step per clipped element.
    return np.float32(low), np.float32(low - step), np.float32(high + step), np.float32(2**16 / step), levels


def non_finite(x: Float32Array) -> NonFiniteFeatures:
    """The error for a tensor that holds NaN or ±Inf, with their number and the first index."""
    bad = np.flatnonzero(~np.isfinite(x))
    index = tuple(int(i) for i in np.unravel_index(int(bad[0]), x.shape))
    return NonFiniteFeatures(
        f"features must be finite; {bad.size} of {x.size} are NaN or infinite, the first at index {index} "
        f"({x[index]}); check the input and the front graph"
    )


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
        self._decisions = _Decisions(quantizer, height, width)
        self._padded = (self.rows * block[0], self.cols * block[1])
        elements = block[0] * block[1]
        digits = np.arange(self.levels**elements)[:, None] // self.levels ** np.arange(elements) % self.levels
        values = np.array(quantizer.levels, np.float32)[digits]
        # (K·bh·units,) machine words: a word holds two float32 where the block has an even number of columns
        self._word = np.dtype(np.uint64 if block[1] % 2 == 0 else np.uint32)
        self._units = block[1] * 4 // self._word.itemsize
        self._values = np.ascontiguousarray(values).view(self._word).reshape(-1)
        self._threes = np.pad(values, ((0, 0), (0, 1))).view(np.uint64).reshape(-1) if block == (1, 3) else None

    def quantize(self, x: Float32Array) -> UInt8Array:
        """(…, H, W) float32 features → (P·rows·cols,) block symbols. Raises NonFiniteFeatures.

        It works on slabs of planes whose indices stay in the second-level cache until they are packed.
        """
        flat = np.ascontiguousarray(x).reshape(-1)
        plane = self.height * self.width
        if self.block == (1, 1):  # a symbol is an index, and the kernel that packs takes seconds to compile
            out = np.empty(flat.size, np.uint8)
            if self._decisions.take(flat, out):
                raise non_finite(x)
            return out
        slab = max(1, SLAB // plane) * plane
        blocks = self.rows * self.cols
        q = np.empty(min(slab, flat.size), np.uint8)
        out = np.empty(flat.size // plane * blocks, np.uint8)
        for start in range(0, flat.size, slab):
            part = flat[start : start + slab]
            if self._decisions.take(part, q[: part.size]):
                raise non_finite(x)
            first = start // plane * blocks
            self._pack(q[: part.size], out[first : first + part.size // plane * blocks])
        return out

    def pack(self, q: UInt8Array) -> UInt8Array:
        """(…, H, W) level indices → (P·rows·cols,) symbols."""
        out = np.empty(q.size // (self.height * self.width) * self.rows * self.cols, np.uint8)
        self._pack(q.reshape(-1), out)
        return out

    def _pack(self, q: UInt8Array, out: UInt8Array) -> None:
        if self.block == (1, 1):
            out[:] = q
            return
        if self._padded != (self.height, self.width):
            padded = np.full(out.size * self.block[0] * self.block[1], self.padding, np.uint8)
            kernels.copy_planes(q, self.height, self.width, padded, *self._padded)
            q = padded
        row = np.empty(q.size // self.block[1], np.uint8)
        kernels.pack(q, self.cols, self.levels, *self.block, row, out)

    def unpack(self, symbols: UInt8Array, out: Float32Array) -> None:
        """(P·rows·cols,) symbols → reconstruction values in `out`, (P·H·W,) float32, contiguous."""
        whole = self._padded == (self.height, self.width)
        planes = symbols.size // (self.rows * self.cols)
        full = out if whole else np.empty(planes * self._padded[0] * self._padded[1], np.float32)
        if self._threes is not None:
            kernels.unpack_threes(symbols, self._threes, full.view(np.uint32))
        else:
            kernels.unpack(symbols, self.cols, self.block[0], self._units, self._values, full.view(self._word))
        if not whole:
            kernels.copy_planes(full, *self._padded, out, self.height, self.width)
