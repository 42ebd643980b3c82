"""Photographs that come with packages, and random crops of them: what `make reports` has in place of ImageNet.

Calibration wants pictures like those that will be sent. Both lists are photographs of things in their surroundings; no
photograph is in both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
from PIL import Image

from splitwire.codec.errors import UsageError
from splitwire.demo.photos import random_square

PACKAGES = Path("build/photographs")
"""Where the Makefile puts the packages that are wanted for their pictures only."""

NATURAL = {
    "skimage": ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "motorcycle_left.png"),
    "matplotlib": ("grace_hopper.jpg",),
    "imgaug": ("quokka.jpg",),
    "sklearn": ("china.jpg", "flower.jpg"),
    "ultralytics": ("bus.jpg", "zidane.jpg"),
}
"""Photographs by package."""

SHARE = (0.6, 1.0)
"""Side of a random crop, in shorter sides of its photograph: the subject stays in view."""
SIDE = 256
"""Of a crop as it is written, pixels."""


def natural() -> list[Path]:
    """Eleven photographs, none of ImageNet."""
    return [_only(package, name) for package, names in NATURAL.items() for name in names]


def imagenet() -> list[Path]:
    """Twenty photographs of ImageNet."""
    return sorted(_folder("foolbox").glob("data/imagenet_*.jpg"))


def write_crops(photographs: Iterable[Path], folder: Path, *, each: int) -> None:
    """`each` seeded random crops of every photograph, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20210513)
    for file in photographs:
        picture = Image.open(file).convert("RGB")
        for i in range(each):
            crop = random_square(picture, rng, SHARE)
            crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{file.stem}-{i:02}.png")


def _folder(package: str) -> Path:
    """Of a package. It is not imported: not all that it needs is there."""
    found = PathFinder.find_spec(package, [str(PACKAGES), *sys.path])
    if found is None or found.origin is None:
        raise UsageError(f"the photographs of the package {package} are needed; `make reports` installs it")
    return Path(found.origin).parent


def _only(package: str, name: str) -> Path:
    found = sorted(_folder(package).rglob(name))
    if len(found) != 1:
        raise UsageError(f"the package {package} should have one file {name}, has {len(found)}")
    return found[0]
