"""Image → network input without torch, bit for bit as torchvision does it with a PIL image.

The exporter calibrates with it and the edge runs it, so that both see the same features. Pillow is imported on first
use: the cloud, which receives frames, does not need it.
Source: torchvision.transforms.functional `resize`, `center_crop`, `pil_to_tensor`, `normalize` for PIL images
(0.29; the tests compare with them). As there, EXIF orientation is not applied unless `Preprocessing.exif` says so.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import UnsetType
from numpy.typing import NDArray

from .errors import UsageError
from .profile import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

Input = NDArray[Any]
"""float32, or uint8 where the network takes that."""


def apply(image: Image.Image, p: Preprocessing) -> Input:
    """Preprocess `image` as `p` says: `normalise(view(image, p), p)`.

    image: any PIL mode of 8 bits per channel. Returns p.input_shape of p.input_dtype, C-contiguous.
    Raises UsageError if the resized or padded image would hold more pixels than Pillow's decompression-bomb limit
    (a 1×60000 picture resized to 256 would need 4 GPixel), or if the image data is damaged.
    """
    return normalise(view(image, p), p)


def view(image: Image.Image, p: Preprocessing) -> Image.Image:
    """The part of `image` that the network sees: turned, resized and cropped to p.crop, not yet normalised.

    The mode is "L" for gray, else "RGB", also for networks that take BGR. Raises like `apply`.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # converted, they would be white nearly everywhere
        raise UsageError(f"image has mode {image.mode!r}, expected 8 bits per channel; convert it to 8 bits first")
    try:
        seen = in_colors(upright(image, p), p)
        if not isinstance(p.pad, UnsetType):
            seen = _letterbox(seen, p, p.pad)
        elif p.resize is not None:
            seen = _resize(seen, _resized(seen.size, p.resize), p.interpolation)
        cropped = _center_crop(seen, p.crop)
        cropped.load()  # a crop is lazy, and so is a file
    except (OSError, SyntaxError, ValueError, MemoryError) as e:  # what Pillow raises while it decodes a damaged file
        raise UsageError(f"image cannot be decoded: {e}") from e
    return cropped


def upright(image: Image.Image, p: Preprocessing) -> Image.Image:
    """`image` turned as its EXIF orientation says, if `p.exif` is set. A damaged EXIF block is ignored."""
    if p.exif is not True:
        return image
    from PIL import ImageOps

    image.load()  # damaged pixels are an error, and a TIFF is turned by Pillow itself
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error):
        return image


def in_colors(image: Image.Image, p: Preprocessing) -> Image.Image:
    """`image` as "L" for a network that takes gray, else as "RGB"."""
    mode = "L" if p.color == "gray" else "RGB"
    return image if image.mode == mode else image.convert(mode)


def normalise(view: Image.Image, p: Preprocessing) -> Input:
    """Turn the result of `view` into network input: p.input_shape of p.input_dtype, C-contiguous.

    Each step is one float32 operation: pixel / 255, or pixel · scale; − mean; / std.
    """
    pixels = np.asarray(view, dtype=np.uint8).reshape(*p.crop, p.channels)
    if p.color == "bgr":
        pixels = pixels[..., ::-1]
    if p.layout != "nhwc":
        pixels = pixels.transpose(2, 0, 1)
    if p.dtype == "uint8":
        return np.array(pixels, order="C")
    x = np.array(pixels, dtype=np.float32, order="C")
    if isinstance(p.scale, float):
        x *= np.float32(p.scale)
    else:
        x /= np.float32(255)
    axes = (-1,) if p.layout == "nhwc" else (-1, 1, 1)
    x -= np.array(p.mean, dtype=np.float32).reshape(axes)
    x /= np.array(p.std, dtype=np.float32).reshape(axes)
    return x


def picture(x: Input, p: Preprocessing) -> Image.Image:
    """The inverse of `normalise`: the picture of this input, rounded to 8 bits. "RGB", or "L" for gray."""
    from PIL import Image

    pixels = x if p.layout == "nhwc" else x.transpose(1, 2, 0)
    if p.dtype != "uint8":
        scale = p.scale if isinstance(p.scale, float) else 1 / 255
        values = pixels * np.array(p.std, np.float32) + np.array(p.mean, np.float32)
        pixels = np.clip(np.rint(values / np.float32(scale)), 0, 255).astype(np.uint8)
    if p.color == "gray":
        return Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    return Image.fromarray(np.ascontiguousarray(pixels[..., ::-1] if p.color == "bgr" else pixels))


def from_array(pixels: NDArray[Any], order: str = "rgb") -> Image.Image:
    """Turn an array of pixels into a picture.

    pixels: (H, W, 3) uint8 with channels in `order`, "rgb" or "bgr" (OpenCV's); or (H, W) uint8, gray. Raises
    UsageError for anything else.
    """
    from PIL import Image

    if order not in ("rgb", "bgr"):
        raise UsageError(f"order is 'rgb' or 'bgr', not {order!r}")
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not fits or not pixels.size:
        raise UsageError(
            f"a picture as an array is (H, W, 3) or (H, W) uint8; got {pixels.shape} {pixels.dtype}"
            " (infer() takes network inputs)"
        )
    return Image.fromarray(np.ascontiguousarray(pixels[..., ::-1] if pixels.ndim == 3 and order == "bgr" else pixels))


def load(path: str | Path, p: Preprocessing) -> Input:
    """Load the image file `path` as network input: p.input_shape of p.input_dtype.

    Raises UsageError, naming the file, if it is missing, not an image, damaged, or over Pillow's pixel limit.
    """
    with opened(path) as image:
        return apply(image, p)


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file. Errors in opening it and in the `with` block become a UsageError that names the file."""
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
    """Where a picture lies in the network's view: a point (x, y) maps to (x·scale_x + shift_x, y·scale_y + shift_y).

    size: (width, height) of the picture, as PIL has it, after `upright`. Returns (scale_x, scale_y, shift_x, shift_y),
    in pixels.
    """
    shift = []
    if not isinstance(p.pad, UnsetType):
        resized = _fitted(size, p.crop)
        for length, wanted in zip(resized, reversed(p.crop), strict=True):
            shift.append(0 if p.pad_at == "end" else (wanted - length) // 2)
        return resized[0] / size[0], resized[1] / size[1], float(shift[0]), float(shift[1])
    resized = size if p.resize is None else _resized(size, p.resize)
    for length, wanted in zip(resized, reversed(p.crop), strict=True):
        before = max(wanted - length, 0) // 2  # padding, as in _center_crop, then the crop
        shift.append(before - round((max(length, wanted) - wanted) / 2.0))
    return resized[0] / size[0], resized[1] / size[1], float(shift[0]), float(shift[1])


def _resized(size: tuple[int, int], wanted: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) after resizing to `wanted`: the length of the shorter side, or (height, width).

    The longer side becomes int(wanted · long / short), which is torchvision's rounding.
    """
    if isinstance(wanted, tuple):
        return wanted[1], wanted[0]
    w, h = size
    stretched = int(wanted * max(w, h) / min(w, h))
    return (wanted, stretched) if w <= h else (stretched, wanted)


def _fitted(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the largest picture with the aspect ratio of `size` that fits into `crop`, (height, width).

    Source: LetterBox of Ultralytics' YOLO."""
    ratio = min(crop[0] / size[1], crop[1] / size[0])
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def _letterbox(image: Image.Image, p: Preprocessing, pad: int | tuple[int, int, int]) -> Image.Image:
    """`image` fitted into p.crop with its aspect ratio; the rest is filled on both sides, or right and below only."""
    from PIL import Image

    image = _resize(image, _fitted(image.size, p.crop), p.interpolation)
    height, width = p.crop
    color = pad if image.mode == "L" or not isinstance(pad, int) else (pad, pad, pad)
    canvas = Image.new(image.mode, (width, height), color)
    end = p.pad_at == "end"
    canvas.paste(image, (0, 0) if end else ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def _resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """`image` resized to (width, height)."""
    from PIL import Image

    modes = {
        "nearest": Image.Resampling.NEAREST,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
    }
    w, h = image.size
    if size == (w, h):
        return image
    _check_pixels(*size, f"resized from {w}x{h}")
    return image.resize(size, modes[interpolation])


def _center_crop(image: Image.Image, crop: tuple[int, int]) -> Image.Image:
    """Centre crop of (height, width); a smaller image is padded with black first, the odd pixel right and below."""
    from PIL import Image

    height, width = crop
    w, h = image.size
    if width > w or height > h:
        padded = (max(w, width), max(h, height))
        _check_pixels(*padded, f"padded from {w}x{h}")
        canvas = Image.new(image.mode, padded)
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
