"""Photographs from packages of PyPI and Debian, and random crops of them. `make reports` uses them for ImageNet.

Calibration needs pictures like those that are sent later. The lists have photographs of things in their surroundings,
or of the surroundings. No photograph is in two lists.
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
"""The Makefile installs here the packages of which only the pictures are used."""

NATURAL = {
    "skimage": ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "motorcycle_left.png"),
    "matplotlib": ("grace_hopper.jpg",),
    "imgaug": ("quokka.jpg",),
    "sklearn": ("china.jpg", "flower.jpg"),
    "ultralytics": ("bus.jpg", "zidane.jpg"),
}
"""Photographs by package."""

SHARE = (0.6, 1.0)
"""Range of the side of a random crop, as a share of the photograph's shorter side. The subject stays in view."""
SIDE = 256
"""Side of a written crop, pixels."""


def natural() -> list[Path]:
    """Eleven photographs that are not from ImageNet."""
    return [_only(package, name) for package, names in NATURAL.items() for name in names]


def imagenet() -> list[Path]:
    """Twenty photographs from ImageNet."""
    return sorted(_folder("foolbox").glob("data/imagenet_*.jpg"))


def scenes() -> list[Path]:
    """61 photographs of interiors, streets and landscapes: the backgrounds of Debian's package scratch."""
    files = sorted((PACKAGES / "scratch/usr/share/scratch/Media/Backgrounds").rglob("*.jpg"))
    if not files:
        raise UsageError("the photographs of Debian's package scratch are needed; `make transform-points` downloads it")
    return files


def write_crops(photographs: Iterable[Path], folder: Path, *, count: int) -> None:
    """Write `count` seeded random crops of every photograph, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20210513)
    for file in photographs:
        picture = Image.open(file).convert("RGB")
        for i in range(count):
            crop = random_square(picture, rng, SHARE)
            crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{file.stem}-{i:02}.png")


def _folder(package: str) -> Path:
    """The folder of a package. The package is not imported, because its requirements are not installed."""
    spec = PathFinder.find_spec(package, [str(PACKAGES), *sys.path])
    if spec is None or spec.origin is None:
        raise UsageError(f"the photographs of the package {package} are needed; `make reports` installs it")
    return Path(spec.origin).parent


def _only(package: str, name: str) -> Path:
    matches = sorted(_folder(package).rglob(name))
    if len(matches) != 1:
        raise UsageError(f"the package {package} should have one file {name}, has {len(matches)}")
    return matches[0]
