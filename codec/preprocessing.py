"""Image → network input, without torch: what torchvision does to a PIL image, to the bit.

The exporter calibrates with it and the edge runs it, so that both see the same features. Pillow is imported on first
use: a back half that is fed frames needs none.
Source: torchvision.transforms.functional `resize`, `center_crop`, `pil_to_tensor`, `normalize` for PIL images
(0.29; the tests compare with them). As there, EXIF orientation is not applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .profile import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

Float32Array = NDArray[np.float32]


def apply(image: Image.Image, p: Preprocessing) -> Float32Array:
    """Resize, centre crop, scale to [0, 1] and normalise `image` as `p` says: `normalise(view(image, p), p)`.

    image: any PIL mode of 8 bits per channel; converted to RGB. Returns (3, *p.crop) float32, C-contiguous.
    Raises UsageError if the resized or padded image would hold more pixels than Pillow's decompression-bomb limit
    (a 1×60000 picture resized to 256 would need 4 GPixel), or if the image data is damaged.
    """
    return normalise(view(image, p), p)


def view(image: Image.Image, p: Preprocessing) -> Image.Image:
    """What the network sees of `image`: resized and cropped, RGB of p.crop, not yet normalised. Raises like `apply`."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # converted, they would be white nearly everywhere
        raise UsageError(f"image has mode {image.mode!r}, expected 8 bits per channel; convert it to 8 bits first")
    try:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        if p.resize is not None:
            rgb = _resize(rgb, p.resize, p.interpolation)
        cropped = _center_crop(rgb, p.crop)
        cropped.load()  # a crop is lazy, and so is a file
    except (OSError, SyntaxError, ValueError, MemoryError) as e:  # what Pillow raises while it decodes a damaged file
        raise UsageError(f"image cannot be decoded: {e}") from e
    return cropped


def normalise(view: Image.Image, p: Preprocessing) -> Float32Array:
    """An RGB picture of p.crop, as `view` makes it, as network input: (3, *p.crop) float32, C-contiguous."""
    x = np.ascontiguousarray(np.asarray(view, dtype=np.uint8).transpose(2, 0, 1), dtype=np.float32)
    x /= np.float32(255)
    x -= np.array(p.mean, dtype=np.float32)[:, None, None]
    x /= np.array(p.std, dtype=np.float32)[:, None, None]
    return x


def load(path: str | Path, p: Preprocessing) -> Float32Array:
    """The image file `path` as network input: (3, *p.crop) float32.

    Raises UsageError, naming the file, if it is missing, not an image, damaged, or over Pillow's pixel limit.
    """
    with opened(path) as image:
        return apply(image, p)


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """The image file `path`. Whatever is wrong with it, found now or inside, is a UsageError that names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            yield image
    except UsageError as e:
        raise UsageError(f"{path}: {e}") from e
    except FileNotFoundError as e:
        raise UsageError(f"{path}: no such file") from e
    except UnidentifiedImageError as e:
        raise UsageError(f"{path}: not an image file that Pillow can read") from e
    except Image.DecompressionBombError as e:
        raise UsageError(f"{path}: image has too many pixels ({e}); make it smaller") from e
    except (OSError, SyntaxError, ValueError) as e:
        raise UsageError(f"{path}: image cannot be read: {e}") from e


def placement(size: tuple[int, int], p: Preprocessing) -> tuple[float, float, float, float]:
    """Where a picture lies in the network's view: its point (x, y) is at (x·scale_x + shift_x, y·scale_y + shift_y).

    size: (width, height) of the picture, as PIL has it. Returns (scale_x, scale_y, shift_x, shift_y), in pixels.
    """
    resized = size if p.resize is None else _resized(size, p.resize)
    shift = []
    for length, wanted in zip(resized, reversed(p.crop), strict=True):
        before = max(wanted - length, 0) // 2  # padding, as in _center_crop, then the crop
        shift.append(before - round((max(length, wanted) - wanted) / 2.0))
    return resized[0] / size[0], resized[1] / size[1], float(shift[0]), float(shift[1])


def _resized(size: tuple[int, int], wanted: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) after resizing: the shorter side → `wanted`, the longer → int(wanted · long / short), which is
    torchvision's rounding; or both sides, of (height, width)."""
    if isinstance(wanted, tuple):
        return wanted[1], wanted[0]
    w, h = size
    stretched = int(wanted * max(w, h) / min(w, h))
    return (wanted, stretched) if w <= h else (stretched, wanted)


def _resize(image: Image.Image, size: int | tuple[int, int], interpolation: str) -> Image.Image:
    from PIL import Image

    modes = {
        "nearest": Image.Resampling.NEAREST,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
    }
    w, h = image.size
    new_w, new_h = _resized((w, h), size)
    if (new_w, new_h) == (w, h):
        return image
    _check_pixels(new_w, new_h, f"resized from {w}x{h}")
    return image.resize((new_w, new_h), modes[interpolation])


def _center_crop(image: Image.Image, crop: tuple[int, int]) -> Image.Image:
    """Centre crop of (height, width); a smaller image is padded with black first, the odd pixel right and below."""
    from PIL import Image

    height, width = crop
    w, h = image.size
    if width > w or height > h:
        padded = (max(w, width), max(h, height))
        _check_pixels(*padded, f"padded from {w}x{h}")
        canvas = Image.new("RGB", padded)
        canvas.paste(image, (max(width - w, 0) // 2, max(height - h, 0) // 2))
        image, (w, h) = canvas, padded
    # Python's round (half to even), as torchvision has it; int((h - height) / 2) would differ for half of the odd sizes
    top, left = round((h - height) / 2.0), round((w - width) / 2.0)
    return image.crop((left, top, left + width, top + height))


def _check_pixels(width: int, height: int, how: str) -> None:
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise UsageError(f"image {how} would be {width}x{height} pixels, over Pillow's limit of {limit}; crop it first")
