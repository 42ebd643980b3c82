"""An evaluation's images with their targets, by number: the base class, and pictures that are files."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitwire.codec import preprocessing
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.codec.shared.text import printable

from . import coco, masks

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image of a Dataset, for the network and for an image codec.

    name: as in the data. x: (C, H, W) float32, the network's input. picture: the image codec's input, "RGB" or "L": the
    network's view, resized and cropped but not normalised, or the original where that has fewer pixels; None for arrays
    of inputs. target: a class number; of a detector a DetectionTruth (boxes in pixels of the input); of a segmentation
    (H, W) uint8, the class of each pixel of the input, 255 where none counts; for a user's metric, the row of `labels`
    of an .npz; None without labels.
    """

    name: str
    x: Float32Array
    picture: Image.Image | None
    target: Any


class Dataset(ABC):
    """Images to evaluate on, by number. Derive from it for data that no file holds.

    source: the place that they come from, in words. names: one for each image. targets: one for each image, in the form
    that the data has; None without labels. digest: SHA-256, hex, of names, sizes and targets; of arrays, of their
    contents. pictures: whether items have pictures.
    """

    pictures: ClassVar[bool] = True

    def __init__(self, source: str, names: Sequence[str], targets: Sequence[Any] | None, digest: str) -> None:
        self.source = printable(source)
        self.names = tuple(map(printable, names))
        self.targets = targets
        self.digest = digest

    @property
    def labelled(self) -> bool:
        """Whether items have targets."""
        return self.targets is not None

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def item(self, i: int) -> Item:
        """The i-th image. Safe to call from several threads.

        Raises UsageError if the picture cannot be read: the evaluation leaves it out and reports it.
        """

    @abstractmethod
    def input_of(self, picture: Image.Image) -> Float32Array:
        """(C, H, W): the network's input from a decoded `Item.picture`."""


class Pictures(Dataset):
    """Pictures, preprocessed as the profile says. targets: class numbers, coco.Annotated, masks.Mask or None."""

    def __init__(
        self, source: str, names: Sequence[str], targets: Sequence[Any] | None, digest: str, how: Preprocessing
    ) -> None:
        super().__init__(source, names, targets, digest)
        self._how = how

    def item(self, i: int) -> Item:
        with self._open(i) as opened:
            image = preprocessing.upright(opened, self._how)
            view = preprocessing.view(image, self._how)
            picture = image if image.width * image.height < view.width * view.height else view
            x = preprocessing.normalise(view, self._how)
            gray = image.mode in ("1", "L") or self._how.color == "gray"
            picture = picture.convert("L" if gray else "RGB")  # equal channels give the same L
            target = None if self.targets is None else self.targets[i]
            if isinstance(target, coco.Annotated):
                target = _boxes(target, image.size, self._how)
            elif isinstance(target, masks.Mask):
                target = masks.seen(target, image.size, self._how)
        return Item(name=self.names[i], x=x, picture=picture, target=target)

    def input_of(self, picture: Image.Image) -> Float32Array:
        # A picture of the crop's size is a view: only originals with fewer pixels are sent.
        if (picture.height, picture.width) == self._how.crop:
            return preprocessing.normalise(preprocessing.in_colors(picture, self._how), self._how)
        return preprocessing.apply(picture, self._how)

    @abstractmethod
    @contextmanager
    def _open(self, i: int) -> Iterator[Image.Image]:
        """The i-th picture, decoded as the file has it. Raises UsageError if it cannot be read."""


class PictureFiles(Pictures):
    """files: (name, path) of each picture."""

    def __init__(
        self, source: str, files: Sequence[tuple[str, Path]], targets: Sequence[Any] | None, how: Preprocessing
    ) -> None:
        digest = hashlib.sha256()
        for i, (name, path) in enumerate(files):
            target = None if targets is None else targets[i]
            digest.update(repr((name, path.stat().st_size, _plain(target))).encode())
        super().__init__(source, [name for name, _ in files], targets, digest.hexdigest(), how)
        self._files = [path for _, path in files]

    @contextmanager
    def _open(self, i: int) -> Iterator[Image.Image]:
        with preprocessing.opened(self._files[i]) as image:
            yield image


def _boxes(annotated: coco.Annotated, size: tuple[int, int], how: Preprocessing) -> coco.Truth:
    """The boxes in pixels of the network's input. size: (width, height) of the picture. Raises UsageError."""
    if annotated.size is not None and annotated.size != size:
        raise UsageError(
            f"the picture is {size[0]}x{size[1]}, its annotations are for {annotated.size[0]}x{annotated.size[1]}"
        )
    return coco.seen(annotated.truth, size, how)


def _plain(target: Any) -> Any:
    """What the digest takes of a target, the same in every run."""
    if isinstance(target, coco.Annotated):
        truth = target.truth
        return target.size, truth.boxes.tolist(), truth.labels.tolist(), truth.ignored.tolist()
    return (target.name, target.checksum) if isinstance(target, masks.Mask) else target
