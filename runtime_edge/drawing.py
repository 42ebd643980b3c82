"""Draws findings onto their picture: boxes, segments or a caption. It needs Pillow only."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from .findings import Classes, Detections, Findings, Segments, is_background

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

    Font = FreeTypeFont | BitmapFont

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]
"""(left, top, right, bottom), pixels."""

MIN_SIDE = 360
"""Pixels. A picture with a shorter longest side is enlarged, so that there is space for letters."""
OPACITY = 0.55
"""Opacity of the segments over the picture."""
MAX_LINES = 12
"""Most lines in a caption."""
PAPER, INK = (255, 255, 255), (20, 24, 32)


def draw(picture: Image.Image, findings: Findings) -> Image.Image:
    """Return a new "RGB" picture with the findings drawn on it.

    picture: the picture in whose pixels the boxes are measured; it is upright if the profile applies the EXIF
    orientation. A small picture is enlarged by a whole factor. Classes, shares of segments and values are written below
    the picture.
    """
    factor = max(1, -(-MIN_SIDE // max(picture.size)))
    base = picture.convert("RGB")
    if factor > 1:
        base = base.resize((base.width * factor, base.height * factor), Image.Resampling.BICUBIC)
    font = _font(max(13, round(min(base.size) / 32)))
    match findings:
        case Detections():
            return _boxes(base, findings, factor, font)
        case Segments():
            base = _overlaid(base, findings, factor)
            lines = [(f"{s.label} {s.share:.1%}", color_of(s.index)) for s in findings.classes]
        case Classes():
            lines = [(f"{c.label} {c.probability:.1%}", color_of(c.index)) for c in findings.top]
        case _:
            shapes = [(v.name, "x".join(map(str, v.shape)) or "one number") for v in findings.outputs]
            lines = [(f"{name} {shape}", color_of(i)) for i, (name, shape) in enumerate(shapes)]
    return _captioned(base, lines, font)


def color_of(index: int) -> Color:
    """The colour of a class: the same in every picture, and different from those of the neighbouring classes."""
    hue = (0.58 + index * 0.61803398875) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if index % 2 else 0.7, 0.9 if index % 3 else 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def _boxes(base: Image.Image, findings: Detections, factor: int, font: Font) -> Image.Image:
    """Draw all frames first and the names after them, so that no frame covers a name."""
    canvas = ImageDraw.Draw(base)
    thick = max(2, round(min(base.size) / 160))
    for d in reversed(findings.boxes):  # the best score is drawn last, on top
        canvas.rectangle([v * factor for v in d.box], outline=color_of(d.index), width=thick)
    taken: list[Box] = []
    for d in findings.boxes:
        text = f"{_drawable(d.label)} {d.score:.0%}"
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
        width, height = right - left + 8, bottom - top + 8
        x = min(max(d.box[0] * factor, 0), max(base.width - width, 0))
        y = _free(x, d.box[1] * factor, d.box[3] * factor, width, height, base.height, taken)
        taken.append((x, y, x + width, y + height))
        color = color_of(d.index)
        canvas.rectangle([x, y, x + width, y + height], fill=color)
        canvas.text((x + 4 - left, y + 4 - top), text, fill=_readable_on(color), font=font)
    return base


def _free(
    x: float,
    top: float,
    bottom: float,
    width: float,
    height: float,
    limit: int,
    taken: Sequence[Box],
) -> float:
    """The y of a name: the first place above its box, in it or further down that no other name overlaps; else above."""
    places = [top - height, top, bottom, bottom - height, *(top + k * (height + 1) for k in range(1, 8))]
    inside = [min(max(y, 0.0), max(limit - height - 1, 0.0)) for y in places]
    free = (y for y in inside if not any(_overlap((x, y, x + width, y + height), name) for name in taken))
    return next(free, inside[0])


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _overlaid(base: Image.Image, findings: Segments, factor: int) -> Image.Image:
    """Paint each class except the background in its colour, over the part of the picture that the network sees."""
    names = {s.index: s.label for s in findings.classes}
    colors = np.zeros((*findings.mask.shape, 3), np.uint8)
    opacity = np.zeros(findings.mask.shape, np.uint8)
    for index, label in names.items():
        if not is_background(label):
            where = findings.mask == index
            colors[where] = color_of(index)
            opacity[where] = round(255 * OPACITY)
    left, top, right, bottom = (round(v * factor) for v in findings.box)
    size = max(1, right - left), max(1, bottom - top)
    over, alpha = (Image.fromarray(a).resize(size, Image.Resampling.NEAREST) for a in (colors, opacity))
    base.paste(over, (left, top), alpha)
    return base


def _captioned(base: Image.Image, lines: Sequence[tuple[str, Color]], font: Font) -> Image.Image:
    """Write lines below the picture, each behind a patch of its colour."""
    shown = list(lines[:MAX_LINES])
    if len(lines) > MAX_LINES:
        shown[-1] = (f"and {len(lines) - MAX_LINES + 1} more", PAPER)
    _, top, _, bottom = font.getbbox("Åg|")
    step = round((bottom - top) * 1.5)
    pad = step // 2
    sheet = Image.new("RGB", (base.width, base.height + step * len(shown) + pad), PAPER)
    sheet.paste(base, (0, 0))
    canvas = ImageDraw.Draw(sheet)
    for i, (text, color) in enumerate(shown):
        y = base.height + pad // 2 + i * step
        canvas.rectangle([pad, y + step * 0.2, pad + step * 0.55, y + step * 0.75], fill=color)
        canvas.text((pad + step, y), _drawable(text), fill=INK, font=font)
    return sheet


def _font(size: int) -> Font:
    return ImageFont.load_default(size) if features.check("freetype2") else ImageFont.load_default()


def _drawable(text: str) -> str:
    """The text on one line, with `?` for the surrogates of file names that are not UTF-8: fonts cannot draw those."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _readable_on(color: Color) -> Color:
    red, green, blue = color
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER
