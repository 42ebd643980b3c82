"""What a user would send instead: the image itself."""

from __future__ import annotations

from PIL import Image

from splitwire.evaluation.contenders import images

JPEG_QUALITY = 90


def jpeg(image: Image.Image) -> bytes:
    """The picture as a JPEG of quality 90, optimised tables."""
    return images.jpeg(image, JPEG_QUALITY)
