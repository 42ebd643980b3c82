"""Pictures for planning where there are none: dead leaves, opaque discs of random size and colour over each other.

Their edges and flat areas have about the statistics of photographs, so that convolutions answer with features of a
likely sparsity. They are no substitute for the images of the task.
Source: Lee, Mumford, Huang 2001, "Occlusion models for natural images".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMALLEST, LARGEST = 1 / 40, 1 / 2
"""Radius of the discs, of the picture's shorter side; its density falls with the third power."""

DISCS = 1200
"""Enough to cover the picture."""

SHADING, TEXTURE = 0.25, 0.008
"""Slope of the grey level across the picture, and standard deviation of the noise; values are in [0, 1]."""


def dead_leaves(n: int, shape: tuple[int, ...], *, seed: int = 0) -> NDArray[np.float32]:
    """Pictures, n of them, of `shape` (C, H, W), float32 in [0, 1]; the same for the same seed."""
    rng = np.random.default_rng(seed)
    return np.stack([_picture(shape, rng) for _ in range(n)])


def _picture(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    channels, height, width = shape
    picture: NDArray[np.float32] = np.full(shape, 0.5, np.float32)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    # Density r⁻³ between the two radii: the inverse of its distribution function.
    u = rng.random(DISCS)
    radii = min(height, width) / np.sqrt(u / SMALLEST**2 + (1 - u) / LARGEST**2)
    centres = rng.random((DISCS, 2)) * (height, width)
    # Grey levels spread wider than hues, as in photographs.
    colours = 0.45 + 0.2 * rng.standard_normal((DISCS, 1)) + 0.06 * rng.standard_normal((DISCS, channels))
    slopes = SHADING * rng.standard_normal((DISCS, 2)) / (height, width)
    for radius, (y, x), colour, slope in zip(radii, centres, colours, slopes, strict=True):
        there = (
            slice(max(0, int(y - radius)), int(y + radius) + 2),
            slice(max(0, int(x - radius)), int(x + radius) + 2),
        )
        dy, dx = rows[there[0]] - y, columns[there[1]] - x
        inside = dy**2 + dx**2 <= radius**2
        shading = (slope[0] * dy + slope[1] * dx)[inside]
        picture[:, there[0], there[1]][:, inside] = colour[:, None] + shading
    # A lens does not draw edges of no width: each pixel takes a quarter of its neighbours on either side.
    for axis in (1, 2):
        picture = ((np.roll(picture, 1, axis) + 2 * picture + np.roll(picture, -1, axis)) / 4).astype(np.float32)
    picture += TEXTURE * rng.standard_normal(shape, dtype=np.float32)
    return np.clip(picture, 0, 1).astype(np.float32)
