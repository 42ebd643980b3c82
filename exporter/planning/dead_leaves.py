"""Synthetic pictures for a plan without data: dead leaves, opaque discs of random size and colour that overlap.

Their edges and flat areas have about the statistics of photographs, so the features have a realistic sparsity. They do
not replace images of the task.
Source: Lee, Mumford, Huang 2001, "Occlusion models for natural images".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitwire.codec import preprocessing
from splitwire.codec.profile import Preprocessing
from splitwire.exporter.network.inference import Float32Array

SMALLEST, LARGEST = 1 / 40, 1 / 2
"""Radius of the discs, as a share of the picture's shorter side; the density falls with the third power."""

DISCS = 1200
"""Enough to cover the picture."""

SHADING, TEXTURE = 0.25, 0.008
"""Slope of the grey level across the picture, and standard deviation of the noise; values are in [0, 1]."""


def synthetic_inputs(n: int, how: Preprocessing) -> list[Float32Array]:
    """Network inputs of n synthetic pictures, each of shape `how.input_shape`; always the same."""
    pixels = np.rint(dead_leaves(n, (how.channels, *how.crop)) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    pictures = (preprocessing.from_array(p[..., 0] if how.channels == 1 else p) for p in pixels)
    return [preprocessing.normalise(picture, how) for picture in pictures]


def dead_leaves(n: int, shape: tuple[int, ...], *, seed: int = 0) -> NDArray[np.float32]:
    """Make n pictures of `shape` (C, H, W), float32 in [0, 1]; the same for the same seed."""
    rng = np.random.default_rng(seed)
    return np.stack([_picture(shape, rng) for _ in range(n)])


def _picture(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    channels, height, width = shape
    picture: NDArray[np.float32] = np.full(shape, 0.5, np.float32)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    # Radii of density r⁻³ between the two limits: u through the inverse of the distribution function.
    u = rng.random(DISCS)
    radii = min(height, width) / np.sqrt(u / SMALLEST**2 + (1 - u) / LARGEST**2)
    centres = rng.random((DISCS, 2)) * (height, width)
    # Grey levels spread wider than hues, as in photographs.
    colours = 0.45 + 0.2 * rng.standard_normal((DISCS, 1)) + 0.06 * rng.standard_normal((DISCS, channels))
    slopes = SHADING * rng.standard_normal((DISCS, 2)) / (height, width)
    for radius, (y, x), colour, slope in zip(radii, centres, colours, slopes, strict=True):
        window = (
            slice(max(0, int(y - radius)), int(y + radius) + 2),
            slice(max(0, int(x - radius)), int(x + radius) + 2),
        )
        dy, dx = rows[window[0]] - y, columns[window[1]] - x
        inside = dy**2 + dx**2 <= radius**2
        shading = (slope[0] * dy + slope[1] * dx)[inside]
        picture[:, window[0], window[1]][:, inside] = colour[:, None] + shading
    # A lens blurs every edge a little: each pixel takes a quarter from each of its two neighbours.
    for axis in (1, 2):
        picture = ((np.roll(picture, 1, axis) + 2 * picture + np.roll(picture, -1, axis)) / 4).astype(np.float32)
    picture += TEXTURE * rng.standard_normal(shape, dtype=np.float32)
    return np.clip(picture, 0, 1).astype(np.float32)
