"""Seeded lines of text for rapidocr's networks: calibration and test lines have different words.

The words are the names of the ImageNet classes, which torchvision ships; every second one calibrates. Some lines end in
a number. Fonts, colours and noise are those of field_pictures.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from torchvision.models import MobileNet_V2_Weights

from benchmarks.inputs import field_pictures

HEIGHT = 48
NUMBERED = 0.3
"""Share of the lines that end in a number."""
FIRST = {"calibration": 0, "test": 1}
"""Number of a split's first word in the list of names; also its seed."""

Split = Literal["calibration", "test"]


class Line(NamedTuple):
    """picture: RGB, 48 pixels high. turned: whether it is upside down."""

    text: str
    picture: Image.Image
    turned: bool


def texts(split: Split, count: int, longest: int) -> list[str]:
    """`count` texts of one name each, some with a number. longest: of the name, characters."""
    names: list[str] = MobileNet_V2_Weights.DEFAULT.meta["categories"]
    words = [name for name in names[FIRST[split] :: 2] if len(name) <= longest]
    rng = np.random.default_rng(FIRST[split])
    numbers = rng.integers(10, 10_000, count)
    return [
        f"{word} {number}" if rng.random() < NUMBERED else str(word)
        for word, number in zip(rng.choice(words, count), numbers, strict=True)
    ]


def lines(split: Split, count: int, *, longest: int, widest: int, turned: bool = False) -> list[Line]:
    """`count` lines, at most `widest` pixels wide. turned: every second one is upside down."""
    rng = np.random.default_rng((7, FIRST[split]))
    drawn = []
    for i, text in enumerate(texts(split, count, longest)):
        picture, over = field_pictures.line(rng, text, height=HEIGHT, widest=widest), turned and i % 2 == 1
        drawn.append(Line(text, picture.rotate(180) if over else picture, over))
    return drawn
