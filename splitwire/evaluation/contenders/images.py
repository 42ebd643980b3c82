"""The picture as JPEG, WebP or AVIF, by Pillow. The payload is the whole file."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from .protocol import Sent


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """The picture as a JPEG with optimised tables."""
    return encoded(picture, "JPEG", quality=quality, optimize=True)


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    """The file that Pillow makes."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


class PillowImage:
    """One file format at one quality, on one thread. All pictures of one run are RGB, or all are L.

    JPEG: 4:2:0, optimised tables. WebP: lossy, method 4 (its default); it has no gray, so an L picture is coded with
    flat chroma and converted back. AVIF: speed 6 (Pillow's default), 4:2:0, an L picture without chroma.
    """

    def __init__(self, form: str, quality: int) -> None:
        self.family, self.setting = form, f"q {quality}"
        self._quality = quality
        self._mode = "RGB"

    def encode(self, picture: Image.Image) -> Sent:
        self._mode = picture.mode
        if self.family == "JPEG":
            return Sent(payload=jpeg(picture, self._quality))
        options = {"WebP": {"method": 4}, "AVIF": {"max_threads": 1}}[self.family]
        return Sent(payload=encoded(picture, self.family, quality=self._quality, **options))

    def decode(self, sent: Sent) -> Image.Image:
        with Image.open(io.BytesIO(sent.payload)) as picture:
            return picture.convert(self._mode)
