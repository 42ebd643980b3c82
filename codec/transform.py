"""What a pair says of transform coefficients: their classes, tables and steps (docs/bitstream.md §7, coders 5 and 6).

In a transform pair the front ends in an analysis of the features and the back begins with their synthesis. Between them
lie coefficients, `tiles` × N per image: float32, in units of the reference step 1, in the order in which the graphs
have them. Not all of them are sent. One step quantizes all that are.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType
from numpy.typing import NDArray

from .tables import MAX_TABLES, TABLE_SIZE

STEPS = 128
"""Number of step indices; four are one octave."""
UNIT_STEP = 64
"""Index of the step 1."""
QUARTERS = 4
"""Steps, and classes, of an octave."""
CLASSES = 128
"""Number of classes; four are one octave of mean magnitude."""
NOT_SENT = 255
"""Stands for a class: such a coefficient is never coded, and decoded to zero."""
SYMBOLS = 32
"""Symbols of a coefficient: its zigzag value where it is below 31, and the escape."""
MOST = 32767
"""Largest magnitude of a quantized coefficient."""
DEAD_ZONE = 0.42
STATIC: Literal[5] = 5
TERSE: Literal[6] = 6
"""Coder ids of coefficients. TERSE is STATIC with fewer bytes at both ends of a payload; new exports use it."""
USUAL_STEP = 3968
"""Of 4096, the frequency of the operating point's step in coder 6. Each of the 128 indices has 1."""

_ROOTS = np.array([1.0, 1.1892071150027210, 1.4142135623730951, 1.6817928305074290], np.float32)
_INVERSE_ROOTS = np.array([1.0, 0.8408964152537145, 0.7071067811865476, 0.5946035575013605], np.float32)


def step_size(index: int) -> np.float32:
    """The step of an index from 0 to 127, 2^((index − 64)/4): a float32 constant times a power of two."""
    octave, quarter = divmod(index - UNIT_STEP, QUARTERS)
    return np.float32(np.ldexp(_ROOTS[quarter], octave))


def step_reciprocal(index: int) -> np.float32:
    """What the encoder multiplies by instead of dividing by the step: a float32 constant times a power of two."""
    octave, quarter = divmod(index - UNIT_STEP, QUARTERS)
    return np.float32(np.ldexp(_INVERSE_ROOTS[quarter], -octave))


def coding_order(classes: bytes) -> NDArray[np.intp]:
    """(K,) the K coefficients of N that are sent, as they are coded: by falling class, within one as they lie.

    classes: N bytes of Transform.classes.
    """
    values = np.frombuffer(classes, np.uint8)
    sent = np.flatnonzero(values != NOT_SENT)
    return sent[np.argsort(CLASSES - 1 - values[sent], kind="stable")]


class Transform(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The features behind the coefficients of a tensor, and how these are coded.

    features: name of the feature tensor in both graphs; feature_shape: its shape without the batch axis, 1 to 3 dims.
    classes: N bytes, 0 to 127: a quarter of an octave of mean magnitude each; or NOT_SENT. At least one is sent.
    frequencies: T rows (1 to 64) of 32 little-endian uint16: how often each symbol occurs in a group that is not all
        zero. Each row sums to 4096; the last is the escape and at least 1.
    zero_groups: T little-endian uint16, 1 to 4095: how often, of 4096, a group of 16 coefficients is all zero.
    first: a coefficient of class c has table c − j − first at step index j, or the nearest that there is.
    dead_zone: for the encoder: |y|/step is rounded up from the fraction 1 − dead_zone on; 0 to 0.5.
    outward: two float32 from −0.5 to 0.5: what is added to a decoded magnitude of 1, and to larger ones, in steps.
    coder: TERSE, or not set where the coder is STATIC, as in all profiles before version 1.4 of the bitstream.
    """

    features: str
    feature_shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=1 << 26)], ...], Meta(min_length=1, max_length=3)]
    classes: bytes
    frequencies: bytes
    zero_groups: bytes
    first: Annotated[int, Meta(ge=-CLASSES, lt=CLASSES)]
    dead_zone: Annotated[float, Meta(ge=0.0, le=0.5)] = DEAD_ZONE
    outward: tuple[Annotated[float, Meta(ge=-0.5, le=0.5)], Annotated[float, Meta(ge=-0.5, le=0.5)]] = (0.0, 0.0)
    coder: Literal[6] | UnsetType = UNSET

    @property
    def coder_id(self) -> int:
        """Wire id of the coder."""
        return STATIC if isinstance(self.coder, UnsetType) else self.coder

    @property
    def feature_elements(self) -> int:
        """Elements of one image's features."""
        return math.prod(self.feature_shape)

    def frequency_rows(self) -> NDArray[np.uint16]:
        """(T, 32) uint16: the frequency of each symbol, the last one the escape's."""
        return np.frombuffer(self.frequencies, "<u2").reshape(-1, SYMBOLS)

    def zero_frequencies(self) -> NDArray[np.uint16]:
        """(T,) uint16: the frequency, of 4096, of a group that is all zero."""
        return np.frombuffer(self.zero_groups, "<u2")

    def order(self) -> NDArray[np.intp]:
        """(K,) where the coefficients that are sent lie, as they are coded (coding_order)."""
        return coding_order(self.classes)

    def tables_at(self, step: int) -> NDArray[np.intp]:
        """(K,) the table of each coefficient that is sent, as they are coded, at a step index."""
        classes = np.frombuffer(self.classes, np.uint8)[self.order()].astype(np.intp)
        return np.clip(classes - step - self.first, 0, len(self.zero_groups) // 2 - 1)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless every array has the right size and range for coefficients of this shape."""
        if len(shape) != 2 or len(self.classes) != shape[1]:
            raise ValueError(f"coefficients of shape {shape} need two axes, tiles and N, and N classes")
        classes = np.frombuffer(self.classes, np.uint8)
        sent = classes != NOT_SENT
        if (classes[sent] >= CLASSES).any():
            raise ValueError(f"classes of coefficients must be below {CLASSES}, or {NOT_SENT} for what is not sent")
        if not sent.any():
            raise ValueError("at least one coefficient must be sent; all classes are that of what is not")
        if any(float(np.float32(a)) != a for a in self.outward):
            raise ValueError(f"outward must be two float32 values, is {self.outward}")
        row = 2 * SYMBOLS
        if not self.frequencies or len(self.frequencies) % row or len(self.frequencies) // row > MAX_TABLES:
            raise ValueError(f"frequencies must be 1..{MAX_TABLES} rows of {row} bytes, are {len(self.frequencies)}")
        rows = self.frequency_rows().astype(np.int64)
        if (rows.sum(axis=1) != TABLE_SIZE).any() or (rows[:, -1] < 1).any() or (rows >= TABLE_SIZE).any():
            raise ValueError(f"each table must sum to {TABLE_SIZE} with an escape of at least 1")
        if len(self.zero_groups) != 2 * len(rows):
            raise ValueError(f"zero_groups must have {len(rows)} entries, as there are tables")
        zero = self.zero_frequencies()
        if (zero < 1).any() or (zero >= TABLE_SIZE).any():
            raise ValueError(f"zero_groups must be 1..{TABLE_SIZE - 1}")
