"""COCO annotation files: boxes on pictures. Nothing in the file is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from splitwire.codec import preprocessing
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import MAX_DIM, Preprocessing

MIN_VISIBLE = 0.5
"""A box of which the centre crop leaves less than this share is ignored: it counts neither for nor against."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The boxes of one image.

    boxes: (n, 4) float32, left, top, right, bottom. labels: (n,) int64, the network's numbers. ignored: (n,) bool;
    to miss such a box is no mistake, nor is to find it (crowds, and boxes mostly out of view).
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]


class _Image(Struct):
    id: int
    file_name: str
    width: int | None = None
    height: int | None = None


class _Annotation(Struct):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _Category(Struct):
    id: int
    name: str


class _File(Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """One picture with its boxes in its own pixels. size: (width, height) as the file says, None if it does not."""

    file: Path
    name: str
    size: tuple[int, int] | None
    truth: Truth


def read(path: Path, folder: Path, labels: Sequence[str] | None) -> list[Annotated]:
    """The pictures of a COCO file, in its order.

    folder: holds the pictures. labels: of the network; a category's id is the number of its label.
    Raises UsageError: no COCO file, no images or no boxes in it, ids that do not match, a category that the network has
    no label for. Does not check that the pictures exist.
    """
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as e:
        raise UsageError(f"{path}: annotations cannot be read: {e.strerror or e}") from e
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UsageError(f"{path} is not a COCO file of boxes (images, annotations, categories): {e}") from e
    if not content.images:
        raise UsageError(f"{path} names no images; nothing can be evaluated")
    if not content.annotations:
        raise UsageError(f"{path} holds no boxes; give a file with annotations, or only the pictures to do without")
    _check_categories(path, content.categories, labels)
    known = {c.id for c in content.categories}
    boxes: dict[int, list[_Annotation]] = {}
    for image in content.images:
        if image.id in boxes:
            raise UsageError(f"{path}: two images have the id {image.id}")
        boxes[image.id] = []
    for i, annotation in enumerate(content.annotations):
        if annotation.image_id not in boxes:
            raise UsageError(f"{path}: annotation {i} is of image {annotation.image_id}, which the file does not name")
        if annotation.category_id not in known:
            raise UsageError(f"{path}: annotation {i} is of category {annotation.category_id}, which the file lacks")
        if min(annotation.bbox[2:]) < 0 or max(map(abs, annotation.bbox)) > MAX_DIM:
            raise UsageError(f"{path}: annotation {i} has the box {annotation.bbox}; expected x, y, width, height")
        boxes[annotation.image_id].append(annotation)
    return [
        Annotated(
            file=folder / _inside(path, image.file_name),
            name=image.file_name,
            size=(image.width, image.height) if image.width is not None and image.height is not None else None,
            truth=_truth(boxes[image.id]),
        )
        for image in content.images
    ]


def seen(truth: Truth, size: tuple[int, int], how: Preprocessing) -> Truth:
    """The boxes in pixels of the network's input: resized and cropped as the picture is, and cut off at the border.

    size: (width, height) of the picture. Boxes outside the crop are left out.
    """
    scale_x, scale_y, shift_x, shift_y = preprocessing.placement(size, how)
    whole = truth.boxes * np.array([scale_x, scale_y] * 2) + np.array([shift_x, shift_y] * 2)
    height, width = how.crop
    visible = np.clip(whole, 0, np.array([width, height] * 2))
    area, left = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (whole, visible))
    kept = left > 0
    return Truth(
        boxes=visible[kept].astype(np.float32),
        labels=truth.labels[kept],
        ignored=(truth.ignored | (left < MIN_VISIBLE * area))[kept],
    )


def _truth(annotations: Sequence[_Annotation]) -> Truth:
    """The boxes of one image, without those that have no area."""
    real = [a for a in annotations if a.bbox[2] > 0 and a.bbox[3] > 0]
    boxes = np.array([a.bbox for a in real], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Truth(
        boxes=boxes.astype(np.float32),
        labels=np.array([a.category_id for a in real], np.int64),
        ignored=np.array([a.iscrowd != 0 for a in real], np.bool_),
    )


def _check_categories(path: Path, categories: Sequence[_Category], labels: Sequence[str] | None) -> None:
    for category in categories:
        number, name = category.id, category.name
        if number < 0 or (labels is not None and number >= len(labels)):
            has = "numbers from 0 on" if labels is None else f"labels 0 to {len(labels) - 1}"
            raise UsageError(
                f"{path}: category {name!r} has the id {number}, the network has {has};"
                " a category's id must be the number of the network's label"
            )
        if labels is not None and labels[number] != name and name in labels:
            raise UsageError(
                f"{path}: category {name!r} has the id {number}, but the network's label {number} is"
                f" {labels[number]!r} and {name!r} is {list(labels).index(name)}; renumber the categories"
            )


def _inside(path: Path, name: str) -> PurePosixPath:
    """The path of a picture below the pictures' folder. Raises UsageError for one that leads out of it."""
    file = PurePosixPath(name)
    if not name or "\0" in name or file.is_absolute() or ".." in file.parts:
        raise UsageError(f"{path}: the image file {name!r} is not a path below the pictures' folder")
    return file
