"""Where the coefficients of a feature tensor lie: its tiles, the DCT of each, and the bands of frequencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

WHOLE = 20
"""An axis of at most this size is transformed whole."""
BLOCK = 16
"""A longer axis is cut into blocks of its largest divisor up to this size. On MobileNetV2's 28×28, blocks of 14 need
fewer bytes than blocks of 7, and as many as the whole map."""
SMALLEST_BLOCK = 4
"""An axis without a divisor from here to BLOCK is transformed whole up to WHOLE_PRIME, and else not at all."""
WHOLE_PRIME = 64

EDGES = {
    10: (0.5, 1.2, 2.3, 3.5, 5.0, 6.5, 8.0, 10.0, 12.5),
    6: (0.5, 1.2, 2.3, 4.0, 6.5),
    4: (0.5, 1.2, 3.5),
    3: (0.5, 1.2),
}
"""Number of bands → radii in the plane of frequencies at which one ends, in steps of the DCT of the longer axis."""
MATRIX_NUMBERS = 2_000_000
"""The bands of a tensor share about this many numbers of channel matrices: many channels get fewer bands."""
LONGEST = {10: 10, 6: 6, 4: 4, 3: 0}
"""Number of bands → longer side of a tile from which it has that number of bands: a flat tile has as many scales."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """feature_shape: of one image's tensor. channels: their number. last: whether they are the last axis.

    grid: (height, width) of positions; tokens are a column of them. lead: tokens before a square map of them, as a
    class token. block: (height, width) of a tile. edges: radii of the bands.
    """

    feature_shape: tuple[int, ...]
    channels: int
    last: bool
    grid: tuple[int, int]
    block: tuple[int, int]
    edges: tuple[float, ...]
    lead: int = 0

    @classmethod
    def of(cls, feature_shape: Sequence[int], block: tuple[int, int] | None = None, bands: int | None = None) -> Layout:
        """The layout of features of this shape: (C, H, W), (H, W, C) with H = W ≠ C, tokens (T, D), or (D,).

        block: of a tile; must divide the map. None: by the size of each axis. bands: a key of EDGES; None: by the
        numbers of channels and of frequencies. Raises ValueError for other shapes, and for a block that does not fit.
        """
        shape = tuple(int(n) for n in feature_shape)
        lead = 0
        if len(shape) == 3:
            last = shape[0] == shape[1] != shape[2]
            channels, grid = (shape[2], shape[:2]) if last else (shape[0], shape[1:])
        elif len(shape) == 2:
            last, channels, grid = True, shape[1], (shape[0], 1)
            square = _leading_tokens(shape[0])
            if square is not None:
                lead, side = square, math.isqrt(shape[0] - square)
                grid = (side, side)
        elif len(shape) == 1:
            last, channels, grid = False, shape[0], (1, 1)
        else:
            raise ValueError(f"features of {len(shape)} axes; a transform takes 1 to 3")
        if lead:
            block = grid
        elif block is None:
            block = (_block(grid[0]), _block(grid[1]))
        if any(b < 1 or n % b for n, b in zip(grid, block, strict=True)):
            raise ValueError(f"tiles of {block[0]}×{block[1]} do not divide {grid[0]}×{grid[1]}")
        if bands is None:
            fitting = [n for n in EDGES if n * channels**2 <= MATRIX_NUMBERS and LONGEST[n] <= max(block)]
            bands = max(fitting, default=min(EDGES))
        return cls(
            feature_shape=shape,
            channels=channels,
            last=last,
            grid=(grid[0], grid[1]),
            block=(block[0], block[1]),
            edges=EDGES[bands],
            lead=lead,
        )

    @property
    def elements(self) -> int:
        """Features of one image."""
        return math.prod(self.feature_shape)

    @property
    def tiles(self) -> int:
        """Tiles of one image."""
        return (self.grid[0] // self.block[0]) * (self.grid[1] // self.block[1])

    @property
    def positions(self) -> int:
        """Positions in a tile; as many frequencies."""
        return self.block[0] * self.block[1] + self.lead

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """(P,) the frequencies of a tile band by band: indices into (leading tokens, then the block row by row)."""
        return np.argsort(self._band_of, kind="stable")

    @cached_property
    def bands(self) -> tuple[slice, ...]:
        """Of each band, lowest frequencies first, its place in `order`. Leading tokens are a band of their own."""
        counts = np.bincount(self._band_of)
        ends = np.cumsum(counts)
        return tuple(slice(int(e - n), int(e)) for n, e in zip(counts, ends, strict=True) if n)

    @cached_property
    def _band_of(self) -> NDArray[np.intp]:
        longer = max(self.block)
        down, across = (np.arange(n) * (longer / n) for n in self.block)
        radius = np.hypot(down[:, None], across[None]).reshape(-1)
        band = np.searchsorted(self.edges, radius, side="left")
        return np.concatenate([np.zeros(self.lead, np.intp), band + bool(self.lead)]).astype(np.intp)

    @cached_property
    def factors(self) -> tuple[Float64Array, Float64Array] | None:
        """The orthonormal DCT down and across; None with leading tokens, where only `basis` says it all."""
        return None if self.lead else (dct_matrix(self.block[0]), dct_matrix(self.block[1]))

    @cached_property
    def basis(self) -> Float64Array:
        """(P, P) orthonormal: frequencies, in `order`, from a tile's positions."""
        plane = np.kron(dct_matrix(self.block[0]), dct_matrix(self.block[1]))
        whole = np.eye(self.positions)
        whole[self.lead :, self.lead :] = plane
        matrix: Float64Array = whole[self.order]
        return matrix

    def by_channel(self, values: Any) -> Any:
        """(C,) → a shape that broadcasts over features, an array or a torch tensor."""
        shape = self.feature_shape
        axis = 0 if len(shape) == 1 or (len(shape) == 3 and not self.last) else len(shape) - 1
        return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])

    def to_tiles(self, x: Any) -> Any:
        """(B, *feature_shape) → (B, tiles, C, P), an array or a torch tensor."""
        (h, w), (a, b) = self.grid, self.block
        if self.lead or len(self.feature_shape) == 2:
            x = _permute(x, (0, 2, 1))  # tokens → (B, D, T)
            if self.lead:
                return x.reshape(-1, 1, self.channels, self.positions)
        elif self.last:
            x = _permute(x, (0, 3, 1, 2))
        x = x.reshape(-1, self.channels, h // a, a, w // b, b)
        return _permute(x, (0, 2, 4, 1, 3, 5)).reshape(-1, self.tiles, self.channels, a * b)

    def from_tiles(self, x: Any) -> Any:
        """The inverse of to_tiles."""
        (h, w), (a, b) = self.grid, self.block
        if self.lead:
            return _permute(x.reshape(-1, self.channels, self.positions), (0, 2, 1))
        x = _permute(x.reshape(-1, h // a, w // b, self.channels, a, b), (0, 3, 1, 4, 2, 5))
        if len(self.feature_shape) == 2:
            return _permute(x.reshape(-1, self.channels, h * w), (0, 2, 1))
        x = x.reshape(-1, self.channels, h, w)
        return _permute(x, (0, 2, 3, 1)) if self.last else x.reshape(-1, *self.feature_shape)


def dct_matrix(size: int) -> Float64Array:
    """(size, size) the orthonormal DCT-II: row k is the k-th frequency."""
    k = np.arange(size)
    matrix: Float64Array = np.cos(np.pi * (k[None] + 0.5) * k[:, None] / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def _block(size: int) -> int:
    if size <= WHOLE:
        return size
    fits = max(d for d in range(1, BLOCK + 1) if size % d == 0)
    if fits >= SMALLEST_BLOCK:
        return fits
    return size if size <= WHOLE_PRIME else 1


def _leading_tokens(tokens: int) -> int | None:
    """How many tokens stand before a square map of them, 0 or 1; None where they are no such map."""
    for lead in (0, 1):
        side = math.isqrt(tokens - lead)
        if side >= SMALLEST_BLOCK and side * side == tokens - lead and side <= WHOLE:
            return lead
    return None


def _permute(x: Any, axes: tuple[int, ...]) -> Any:
    return x.transpose(axes) if isinstance(x, np.ndarray) else x.permute(axes)
