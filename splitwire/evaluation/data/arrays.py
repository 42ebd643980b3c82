"""Images and labels in arrays: an .npz, or a dict of arrays."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.codec.shared.pictures import spread

from . import masks
from .dataset import Dataset, Float32Array, Item, Pictures
from .expected import Expected

Array = NDArray[Any]


class PictureArray(Pictures):
    """images: (n, H, W) or (n, H, W, 3) uint8."""

    def __init__(
        self,
        source: str,
        names: Sequence[str],
        targets: Sequence[Any] | None,
        digest: str,
        how: Preprocessing,
        images: Array,
    ) -> None:
        super().__init__(source, names, targets, digest, how)
        self._images = images

    @contextmanager
    def _open(self, i: int) -> Iterator[Image.Image]:
        yield Image.fromarray(np.ascontiguousarray(self._images[i]))


class InputArray(Dataset):
    """inputs: (n, C, H, W) float32, or what else the network takes."""

    pictures = False

    def __init__(
        self, source: str, names: Sequence[str], targets: Sequence[Any] | None, digest: str, inputs: Array
    ) -> None:
        super().__init__(source, names, targets, digest)
        self._inputs = inputs

    def item(self, i: int) -> Item:
        target = None if self.targets is None else self.targets[i]
        if isinstance(target, masks.Mask):
            target = target.pixels()
        return Item(name=self.names[i], x=np.ascontiguousarray(self._inputs[i]), picture=None, target=target)

    def input_of(self, picture: Image.Image) -> Float32Array:
        raise UsageError(f"{self.source} holds inputs of the network, which no image codec can send")


def from_arrays(path: Path, arrays: Mapping[str, Array], expected: Expected, limit: int) -> Dataset:
    """The dataset of `images` or `inputs` and maybe `labels` or `masks`.

    path: the file, or a name for arrays in memory; for messages and names of images. limit: most images.
    Raises UsageError: other arrays, shapes, types or class numbers than the network takes.
    """
    kinds = [name for name in ("images", "inputs") if name in arrays]
    if len(kinds) != 1:
        raise UsageError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; expected `images` (n, H, W[, 3]) uint8"
            " or `inputs` (n, C, H, W) float32, and maybe `labels`"
        )
    kind = kinds[0]
    if "masks" in arrays and not expected.segments:
        raise UsageError(f"{path} holds `masks`, and this network is no segmentation (splitwire export --task)")
    images, labels = arrays[kind], arrays.get("labels")
    if not images.ndim or not len(images):
        raise UsageError(f"{path}: `{kind}` holds no images")
    if labels is not None:
        _check_labels(path, labels, len(images), expected)
    if "masks" in arrays:
        masks.check_array(str(path), arrays["masks"], images)
    if kind == "images":
        _check_images(path, images)
    else:
        _check_inputs(path, images, expected)
    chosen = spread(len(images), limit)
    names = [f"{path.name}[{i}]" for i in chosen]
    targets = None if labels is None else _rows(labels[chosen])
    if "masks" in arrays:
        maps = arrays["masks"][chosen].astype(np.uint8)
        targets = [masks.checked(name, one) for name, one in zip(names, maps, strict=True)]
    digest = _digest(images[chosen], labels[chosen] if labels is not None and "masks" not in arrays else targets)
    if kind == "images":
        return PictureArray(str(path), names, targets, digest, expected.for_pictures, images[chosen])
    if not np.isfinite(images[chosen]).all():
        raise UsageError(f"{path}: `inputs` holds NaN or infinity")
    return InputArray(str(path), names, targets, digest, images[chosen])


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of an .npz by name, without pickled objects. Of arrays that are not used the names alone are read.

    Raises UsageError if it cannot be read.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            names = [str(n) for n in file.files]
            return {n: file[n] if n in ("images", "inputs", "labels", "masks") else np.empty(0) for n in names}
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error, MemoryError) as e:
        raise UsageError(f"{path} is not a readable .npz of plain arrays: {e}".splitlines()[0]) from e


def _check_labels(path: Path, labels: Array, n: int, expected: Expected) -> None:
    if expected.custom:
        if not labels.ndim or len(labels) != n:
            raise UsageError(f"{path}: `labels` is {labels.shape} for {n} images; expected one row each")
        return
    if expected.segments:
        raise UsageError(
            f"{path}: `labels` are class numbers, and this network is a segmentation; give `masks` (n, H, W) instead"
        )
    if expected.detections:
        raise UsageError(
            f"{path}: `labels` of an .npz are class numbers, and this network is a detector; boxes come as a COCO file"
        )
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"{path}: `labels` is {labels.shape} {labels.dtype}; expected ({n},) integers")
    if int(labels.min()) < 0 or (expected.count is not None and int(labels.max()) >= expected.count):
        known = "numbers from 0 on" if expected.count is None else f"classes 0 to {expected.count - 1}"
        raise UsageError(f"{path}: `labels` go from {labels.min()} to {labels.max()}; the network has {known}")


def _check_images(path: Path, images: Array) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise UsageError(f"{path}: `images` is {images.shape} {images.dtype}; expected (n, H, W) or (n, H, W, 3) uint8")


def _check_inputs(path: Path, inputs: Array, expected: Expected) -> None:
    if inputs.dtype != expected.dtype or not expected.fits(inputs.shape[1:]):
        raise UsageError(
            f"{path}: `inputs` is {inputs.shape} {inputs.dtype}; the network takes {expected.takes} {expected.dtype}"
        )


def _rows(labels: Array) -> list[Any]:
    """One target for each image: a plain number of (n,) labels, else the row."""
    return labels.tolist() if labels.ndim == 1 else list(labels)


def _digest(images: Array, labels: Array | Sequence[masks.Mask] | None) -> str:
    """SHA-256, hex, of the images and of the labels or masks."""
    digest = hashlib.sha256(repr((images.shape, images.dtype.str)).encode())
    digest.update(np.ascontiguousarray(images).data)
    if isinstance(labels, np.ndarray):
        digest.update(repr((labels.shape, labels.dtype.str)).encode() + np.ascontiguousarray(labels).tobytes())
    elif labels is not None:
        digest.update(repr([mask.checksum for mask in labels]).encode())
    return digest.hexdigest()
