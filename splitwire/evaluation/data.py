"""The images of an evaluation, with their targets, from wherever the user has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitwire.codec.profile import CodecProfile

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image.

    name: as in the data, unique. x: (C, H, W) float32, the network's input. picture: what an image codec is given: the
    network's view, resized and cropped but not normalised, "RGB" or "L"; the original where that has fewer pixels; None
    for arrays of inputs. target: class number; of detection a Truth (boxes in pixels of the input); what `labels` of an
    .npz holds for a user's metric; None without labels.
    """

    name: str
    x: Float32Array
    picture: Image.Image | None
    target: Any


class Dataset(Protocol):
    """Images by number. source: in words. digest: SHA-256 of names, sizes and targets, hex (of arrays, their contents).

    labelled: whether items have targets. pictures: whether items have pictures.
    """

    source: str
    digest: str
    labelled: bool
    pictures: bool

    def __len__(self) -> int: ...

    def item(self, i: int) -> Item:
        """The i-th. Safe to call from several threads. Raises UsageError if the picture cannot be read: skip it, and
        say so."""

    def name(self, i: int) -> str:
        """Of the i-th item, without reading it."""

    def input_of(self, picture: Image.Image) -> Float32Array:
        """(C, H, W): the network's input from a decoded `Item.picture`."""


def open_data(
    path: Path | Sequence[Path],
    profile: CodecProfile,
    input_shape: Sequence[int | None],
    *,
    annotations: Path | None = None,
    limit: int | None = None,
    detections: bool,
    custom: bool = False,
    classes: int | None = None,
) -> Dataset:
    """Find out what `path` is, and check it before anything is computed.

    path: a folder with one folder per class (by the profile's labels, by number, or in sorted order if there are as
    many as classes); a folder of pictures without labels; a list of picture files; a .txt file with one such file per
    line; a COCO .json with its pictures beside it, or a folder of pictures with `annotations`; an .npz with `images`
    (n, H, W) or (n, H, W, 3) uint8 or `inputs` (n, C, H, W) float32, and maybe `labels` (n,) integers.
    input_shape: of the front graph, with the batch axis; None where an axis is free. limit: at most so many images,
    evenly spread. detections: whether the network is a detector (tasks.is_detector). custom: a user's metric judges,
    so that labels may be anything. classes: how many the network tells apart, where that is known (tasks.classes_in).
    Raises UsageError in one line: nothing there, half-labelled, classes that do not fit, a malformed file.
    """
    raise NotImplementedError
