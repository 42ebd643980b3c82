"""Masks of a segmentation: the class of every pixel, in PNGs beside the pictures or in an array."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitwire.codec import preprocessing
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing

UInt8Array = NDArray[np.uint8]

IGNORED = 255
"""Value of a pixel that counts neither for nor against, as in PASCAL VOC and Cityscapes."""

FOLDERS = (("images", "masks"), ("JPEGImages", "SegmentationClass"))
"""Names of the folder of pictures and of the folder of masks; the second row is PASCAL VOC's."""

MODES = ("P", "L", "1")
"""Modes of a PNG whose pixels are class numbers."""


@dataclass(frozen=True, kw_only=True)
class Mask:
    """One mask, checked. source: a PNG, or (H, W) uint8. highest: class in it; −1 if every pixel is ignored.
    checksum: CRC-32 of its pixels."""

    name: str
    source: Path | UInt8Array
    highest: int
    checksum: int

    def pixels(self) -> UInt8Array:
        """(H, W) class numbers, IGNORED where nothing counts. Raises UsageError if the file cannot be read."""
        return read(self.source) if isinstance(self.source, Path) else self.source


def read(path: Path) -> UInt8Array:
    """The class numbers in a PNG. Raises UsageError."""
    with preprocessing.opened(path) as image:
        if image.mode not in MODES:
            raise UsageError(
                f"a mask is a PNG of class numbers with {IGNORED} for ignored pixels (mode P or L); this one is"
                f" {image.mode}"
            )
        return np.array(image, dtype=np.uint8)


def checked(name: str, source: Path | UInt8Array) -> Mask:
    """The mask of one picture. Raises UsageError if the file cannot be read."""
    pixels = read(source) if isinstance(source, Path) else source
    counted = pixels[pixels != IGNORED]
    highest = int(counted.max()) if counted.size else -1
    return Mask(name=name, source=source, highest=highest, checksum=zlib.crc32(pixels.tobytes()))


def folders(path: Path, annotations: Path | None) -> tuple[Path, Path | None]:
    """The folder of pictures in `path`, and the folder of masks; None without masks.

    annotations: the folder of masks, where the user names one. Raises UsageError: no such folder, masks alone.
    """
    if annotations is not None:
        if not annotations.is_dir():
            raise UsageError(
                f"{annotations} is no folder; for a segmentation --annotations names the folder of masks (PNG)"
            )
        return path, annotations
    for pictures, masks in FOLDERS:
        if (path / masks).is_dir():
            if not (path / pictures).is_dir():
                raise UsageError(f"{path} holds {masks} and no {pictures} beside it; put the pictures there")
            return path / pictures, path / masks
    return path, None


def files_of(names: Sequence[str], folder: Path) -> list[Path]:
    """The masks of pictures, by their paths without suffix. Raises UsageError if some have none."""
    masks = {p.relative_to(folder).with_suffix("").as_posix(): p for p in folder.rglob("*.png") if p.name[0] != "."}
    stems = [Path(name).with_suffix("").as_posix() for name in names]
    missing = [name for name, stem in zip(names, stems, strict=True) if stem not in masks]
    if missing:
        raise UsageError(
            f"{len(missing)} of {len(names)} pictures have no mask in {folder}, the first is {missing[0]}; add a PNG of"
            " the same name for each, or give a .txt list of the pictures that have one, with --annotations"
            f" {folder}"
        )
    return [masks[stem] for stem in stems]


def check_array(source: str, masks: NDArray[Any], images: NDArray[Any]) -> None:
    """Check the `masks` of an .npz, or of a dict of arrays. images: `images` or `inputs`. Raises UsageError."""
    if masks.ndim != 3 or len(masks) != len(images) or not np.issubdtype(masks.dtype, np.integer):
        raise UsageError(
            f"{source}: `masks` is {masks.shape} {masks.dtype} for {len(images)} images; expected"
            f" ({len(images)}, H, W) integers"
        )
    # A picture is (H, W) or (H, W, 3); an input is (C, H, W), or (H, W, C).
    if masks.shape[1:] not in (images.shape[1:3], images.shape[2:4]):
        raise UsageError(
            f"{source}: `masks` is {masks.shape}, the images are {images.shape}; a mask has the size of its image"
        )
    if masks.size and (int(masks.min()) < 0 or int(masks.max()) > IGNORED):
        raise UsageError(
            f"{source}: `masks` go from {masks.min()} to {masks.max()}; expected class numbers from 0 on, {IGNORED} for"
            " ignored pixels"
        )


def seen(mask: Mask, size: tuple[int, int], how: Preprocessing) -> UInt8Array:
    """(H, W) of the network's view: each pixel takes the class of the nearest pixel of the mask, IGNORED outside the
    picture.

    size: (width, height) of the picture. Raises UsageError if the mask is of another size.
    """
    pixels = mask.pixels()
    if pixels.shape != size[::-1]:
        raise UsageError(
            f"the picture is {size[0]}x{size[1]}, its mask {mask.name} is {pixels.shape[1]}x{pixels.shape[0]}"
        )
    scale_x, scale_y, shift_x, shift_y = preprocessing.placement(size, how)
    height, width = how.crop
    rows = np.floor((np.arange(height) + 0.5 - shift_y) / scale_y).astype(np.int64)
    columns = np.floor((np.arange(width) + 0.5 - shift_x) / scale_x).astype(np.int64)
    inside = ((rows >= 0) & (rows < size[1]))[:, None] & ((columns >= 0) & (columns < size[0]))[None]
    view = pixels[np.clip(rows, 0, size[1] - 1)[:, None], np.clip(columns, 0, size[0] - 1)[None]]
    return np.where(inside, view, np.uint8(IGNORED))
