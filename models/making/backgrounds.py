"""Backgrounds of scenes: noise, gradients, stripes, checks, and photographs of scikit-image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitwire.codec.errors import UsageError
from splitwire.models.detector import SIDE
from splitwire.models.fashion import UInt8Array

Float32Array = NDArray[np.float32]
Draw = np.random.Generator

TRAINING = (
    "astronaut.png",
    "coffee.png",
    "camera.png",
    "coins.png",
    "brick.png",
    "grass.png",
    "retina.jpg",
    "hubble_deep_field.jpg",
)
"""Files of scikit-image, for the training scenes."""
HELD_OUT = ("chelsea.png", "rocket.jpg", "gravel.png", "moon.png", "motorcycle_left.png")
"""The same for all other scenes: held-out scenes have other photographs and other garments."""
LONGEST = 512


def photographs(split: str) -> tuple[UInt8Array, ...]:
    """The photographs for a split ("train", or another one): (H, W, 3) uint8, the longer side at most 512 pixels.

    Raises UsageError if scikit-image is not installed.
    """
    try:
        import skimage
    except ImportError as e:
        raise UsageError("scenes need the photographs of scikit-image; `pip install splitwire[demo]`") from e
    pictures = []
    for name in TRAINING if split == "train" else HELD_OUT:
        picture = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
        picture.thumbnail((LONGEST, LONGEST))
        pictures.append(np.asarray(picture))
    return tuple(pictures)


def any_of(pictures: Sequence[UInt8Array], draw: Draw) -> Float32Array:
    """A background, (160, 160, 3) float32 in [0, 255]: with probability ½ a crop of `pictures`, otherwise drawn."""
    kind = int(draw.integers(8))
    if kind < 4:
        return _crop(pictures[int(draw.integers(len(pictures)))], draw)
    return (_noise, _gradient, _stripes, _checks)[kind - 4](draw)


def _crop(photograph: UInt8Array, draw: Draw) -> Float32Array:
    """A square of a photograph, at least 160 pixels wide if it has them; scaled, flipped at random, and dimmed."""
    height, width = photograph.shape[:2]
    shorter = min(height, width)
    side = int(draw.integers(min(SIDE, shorter), shorter + 1))
    x, y = int(draw.integers(width - side + 1)), int(draw.integers(height - side + 1))
    picture = Image.fromarray(photograph[y : y + side, x : x + side]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture).astype(np.float32)
    if draw.random() < 0.5:
        pixels = pixels[:, ::-1]
    dimmed: Float32Array = pixels * np.float32(draw.uniform(0.6, 1.0))
    return dimmed


def _colours(n: int, draw: Draw) -> Float32Array:
    return draw.uniform(0, 255, (n, 3)).astype(np.float32)


def _mix(share: Float32Array, draw: Draw) -> Float32Array:
    """(160, 160) shares in [0, 1] → a picture between two colours."""
    a, b = _colours(2, draw)
    mixed: Float32Array = a + share[..., None] * (b - a)
    return mixed


def _noise(draw: Draw) -> Float32Array:
    """Coloured noise at several scales, weaker at finer scales, with a little grain."""
    total = np.zeros((SIDE, SIDE, 3), np.float32)
    for cells, weight in ((3, 0.5), (9, 0.3), (30, 0.2)):
        coarse = draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        total += weight * np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    grain = draw.normal(0, draw.uniform(0, 12), (SIDE, SIDE, 1)).astype(np.float32)
    noise: Float32Array = np.clip(total + grain, 0, 255)
    return noise


def _ramp(draw: Draw) -> Float32Array:
    """(160, 160) float32: the position in pixels along a random direction."""
    angle = float(draw.uniform(0, 2 * np.pi))
    axis = np.arange(SIDE, dtype=np.float32) - SIDE / 2
    return np.float32(np.cos(angle)) * axis + np.float32(np.sin(angle)) * axis[:, None]


def _gradient(draw: Draw) -> Float32Array:
    ramp = _ramp(draw)
    return _mix((ramp - ramp.min()) / (ramp.max() - ramp.min()), draw)


def _stripes(draw: Draw) -> Float32Array:
    wave = np.sin(_ramp(draw) * np.float32(2 * np.pi / draw.uniform(5, 40)))
    return _mix(np.clip(0.5 + np.float32(draw.uniform(0.5, 4)) * wave, 0, 1), draw)


def _checks(draw: Draw) -> Float32Array:
    side = float(draw.uniform(5, 30))
    along = np.floor((np.arange(SIDE) + float(draw.uniform(0, side))) / side).astype(np.int64)
    return _mix(((along[:, None] + along) % 2).astype(np.float32), draw)
