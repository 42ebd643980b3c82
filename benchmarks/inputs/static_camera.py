"""A clip of a static camera, composed: garments of Fashion-MNIST that move over a fixed photograph.

No clip of a real camera is at hand, so this one is made from real photographs: a fixed crop of a photograph of
scikit-image as the scene, and garments of the demo's test images pasted over it, as in the detector's scenes. A garment
comes in from one side, moves, may rest, and leaves; most of the time nothing moves, as before most cameras. Each frame
has noise of its own like that of a sensor, and the light changes slowly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitwire.models import demo
from splitwire.models.detector import SIDE
from splitwire.models.making import backgrounds, scenes

NOISE = 2.0
"""Standard deviation of the noise of a pixel, of 255."""
LIGHT = 0.02
"""Largest change of the light, as a share, with a period of LIGHT_FRAMES."""
LIGHT_FRAMES = 1500
PHASES = {"empty": (60, 240), "enters": (10, 40), "rests": (0, 200), "leaves": (10, 40)}
"""Frames of each phase of a visit: shortest and longest."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """picture: (160, 160, 3) uint8 RGB. moves: whether the garment is elsewhere than in the frame before."""

    picture: NDArray[np.uint8]
    moves: bool


def clip(frames: int, *, seed: int, photograph: int = 0) -> Iterator[Frame]:
    """The frames of a clip. seed: of garments, visits and noise; the scene depends on `photograph` alone."""
    draw = np.random.default_rng((17, seed))
    scene = _scene(photograph)
    images, _ = demo.test_set()
    count = 0
    while True:
        which = int(draw.integers(len(images)))
        tint, opacity = scenes.garment(images[which], draw)
        alpha = opacity[..., None].astype(np.float32) / np.float32(255)
        for x, y, moves in _visit(opacity.shape, draw):
            canvas = scene.copy()
            if x is not None:
                _paste(canvas, tint, alpha, x, y)
            light = 1 + LIGHT * np.sin(2 * np.pi * count / LIGHT_FRAMES)
            noisy = canvas * light + draw.normal(0, NOISE, canvas.shape)
            yield Frame(picture=np.clip(np.rint(noisy), 0, 255).astype(np.uint8), moves=moves)
            count += 1
            if count == frames:
                return


def _scene(photograph: int) -> NDArray[np.float32]:
    photographs = backgrounds.photographs("samples")
    whole = photographs[photograph % len(photographs)]
    top, left = (whole.shape[0] - SIDE) // 2, (whole.shape[1] - SIDE) // 2
    return whole[top : top + SIDE, left : left + SIDE, :3].astype(np.float32)


def _visit(shape: tuple[int, ...], draw: np.random.Generator) -> Iterator[tuple[int | None, int, bool]]:
    """(left, top, whether it moves) of a garment in each frame; None where it is not there."""
    lengths = {name: int(draw.integers(low, high + 1)) for name, (low, high) in PHASES.items()}
    h, w = shape[:2]
    y = int(draw.integers(0, max(1, SIDE - h)))
    stop = int(draw.integers(0, max(1, SIDE - w)))
    for i in range(lengths["empty"]):
        yield None, 0, i == 0
    for i in range(lengths["enters"]):
        yield round(-w + (stop + w) * (i + 1) / lengths["enters"]), y, True
    for _ in range(lengths["rests"]):
        yield stop, y, False
    for i in range(lengths["leaves"]):
        yield round(stop + (SIDE - stop) * (i + 1) / lengths["leaves"]), y, True


def _paste(canvas: NDArray[np.float32], tint: NDArray[np.float32], alpha: NDArray[np.float32], x: int, y: int) -> None:
    left, right = max(0, x), min(SIDE, x + tint.shape[1])
    if right <= left:
        return
    inside = slice(left - x, right - x)
    window = canvas[y : y + tint.shape[0], left:right]
    window += alpha[: window.shape[0], inside] * (tint[: window.shape[0], inside] - window)
