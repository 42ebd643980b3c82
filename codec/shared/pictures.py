"""Picture files in a folder, and an even choice of some of them."""

from __future__ import annotations

from pathlib import Path

from splitwire.codec.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""Files with these suffixes are images, in any case of letters. Other files of a folder (labels, notes) are ignored."""


def image_files(folder: Path) -> list[Path]:
    """The image files in `folder` and in the folders below it, sorted by path. Raises UsageError if there are none."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of calibration images")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file())
    if not files:
        raise UsageError(f"no images in {folder} or below it; looked for {', '.join(SUFFIXES)}")
    return files


def spread(n: int, limit: int) -> list[int]:
    """At most `limit` of the indices 0 … n − 1, evenly spread, in order.

    A folder whose files are sorted by class is so sampled from every class.
    """
    if n <= limit:
        return list(range(n))
    return [(2 * i + 1) * n // (2 * limit) for i in range(limit)]
