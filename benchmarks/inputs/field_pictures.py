"""Seeded pictures for `make field`: lines and pages of text, captchas, photographs, in sizes that the networks take.

The fonts are matplotlib's. The code of a network's package need not resize its pictures. So NumPy can repeat that code,
and the inputs can be compared value by value.
"""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.inputs.photographs import imagenet, natural
from splitwire.demo.photos import random_square

WORDS = [
    "garden", "station", "winter", "travel", "market", "bridge", "yellow", "window", "morning", "paper", "silver",
    "engine", "orange", "summer", "planet", "coffee", "number", "letter", "forest", "corner", "music", "island",
    "doctor", "flower", "dinner", "camera", "pocket", "rocket", "circle", "butter",
]  # fmt: skip
SIGNS = "23456789abcdefghkmnpqrstuvwxyz"
FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono", "DejaVuSans-Oblique")


@functools.cache
def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"), size)


def colors(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Colours of ink and paper, dark on light or light on dark."""
    dark, light = (tuple(int(v) for v in rng.integers(low, low + 70, 3)) for low in (0, 185))
    return (dark, light) if rng.random() < 0.7 else (light, dark)


def noisy(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(picture, np.float64) + rng.normal(0, 6, (*picture.size[::-1], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def line(rng: np.random.Generator, text: str, *, height: int, widest: int) -> Image.Image:
    """One line of text, `height` pixels high and at most `widest` wide."""
    ink, paper = colors(rng)
    size = int(height * rng.uniform(0.5, 0.7))
    face = font(str(rng.choice(FACES)), size)
    while (length := int(face.getlength(text)) + 12) > widest:
        size -= 1
        face = font(Path(str(face.path)).stem, size)
    picture = Image.new("RGB", (length, height), paper)
    ImageDraw.Draw(picture).text((6, height // 2), text, ink, face, anchor="lm")
    return noisy(picture, rng)


def lines(folder: Path, count: int, seed: int, *, words: int, widest: int, turned: bool = False) -> dict[str, str]:
    """Write lines of text, 48 pixels high. turned: every second one is upside down. Returns the text by file name."""
    rng, said = np.random.default_rng(seed), {}
    for i in range(count):
        text = " ".join(rng.choice(WORDS, words))
        picture = line(rng, text, height=48, widest=widest)
        name = f"{i:02}.png"
        if turned and i % 2:
            picture = picture.rotate(180)
            name = f"{i:02}-turned.png"
        picture.save(folder / name)
        said[name] = text
    return said


def pages(folder: Path, count: int, seed: int, *, side: int) -> dict[str, str]:
    """Write photographs with six lines of text on them."""
    rng, photographs = np.random.default_rng(seed), natural()
    for i in range(count):
        photo = Image.open(photographs[int(rng.integers(len(photographs)))]).convert("RGB")
        page = random_square(photo, rng, (0.6, 1.0)).resize((side, side), Image.Resampling.BICUBIC)
        for row in range(6):
            text = " ".join(rng.choice(WORDS, rng.integers(1, 4)))
            piece = line(rng, text, height=int(rng.integers(24, 60)), widest=side - 40)
            across, down = (
                rng.integers(0, side - piece.width),
                row * side // 6 + rng.integers(0, side // 6 - piece.height),
            )
            page.paste(piece, (int(across), int(down)))
        page.save(folder / f"{i:02}.png")
    return {}


def captchas(folder: Path, count: int, seed: int, *, width: int, height: int, share: float) -> dict[str, str]:
    """Write captchas: four to six turned signs in different colours with lines across. share: height of a sign."""
    rng, said = np.random.default_rng(seed), {}
    for i in range(count):
        _, paper = colors(rng)
        picture = Image.new("RGB", (width, height), paper if sum(paper) > 400 else (235, 235, 235))
        draw = ImageDraw.Draw(picture)
        text = "".join(rng.choice(list(SIGNS), rng.integers(4, 7)))
        step = width / (len(text) + 0.5)
        for k, sign in enumerate(text):
            tile = Image.new("RGBA", (int(2 * step), height))
            ink = (*(int(v) for v in rng.integers(0, 130, 3)), 255)
            face = font(str(rng.choice(FACES)), int(height * share))
            ImageDraw.Draw(tile).text((step, height / 2), sign, ink, face, anchor="mm")
            tile = tile.rotate(float(rng.uniform(-18, 18)), Image.Resampling.BICUBIC)
            drop = int(rng.uniform(-0.5, 0.5) * height * (0.9 - share))
            picture.paste(tile, (int((k - 0.25) * step), drop), tile)
        for _ in range(2):
            ends = [(int(rng.integers(width)), int(rng.integers(height))) for _ in range(2)]
            draw.line(ends, tuple(int(v) for v in rng.integers(60, 200, 3)), 1)
        name = f"{i:02}.png"
        noisy(picture, rng).save(folder / name)
        said[name] = text
    return said


def photographs(folder: Path, count: int, seed: int, *, longest: int) -> dict[str, str]:
    """Write photographs and random parts of them, with `longest` pixels on the longer side."""
    rng, files = np.random.default_rng(seed), [*natural(), *imagenet()]
    for i in range(count):
        picture = Image.open(files[i % len(files)]).convert("RGB")
        if i >= len(files) or seed % 2:
            width, height = (int(n * rng.uniform(0.6, 1.0)) for n in picture.size)
            left, top = int(rng.integers(picture.width - width + 1)), int(rng.integers(picture.height - height + 1))
            picture = picture.crop((left, top, left + width, top + height))
        ratio = longest / max(picture.size)
        size = tuple(longest if n == max(picture.size) else max(1, round(n * ratio)) for n in picture.size)
        picture.resize((size[0], size[1]), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
    return {}
