"""Calibration inputs, one at a time, from wherever the user has them.

A folder of images (searched recursively, so an ImageFolder works), a list of files, a NumPy array or torch tensor of
network inputs, or any iterable of them (a DataLoader, too: of a tuple the first entry counts).
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike

from splitwire.codec import preprocessing as images
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing

from .inference import Float32Array

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""What counts as an image in a folder; other files (labels, notes) are passed over in silence."""

LIMIT = 512
"""Images used unless the caller says otherwise: ranges and tables have settled well before (docs/exporter.md)."""

Calibration = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | ArrayLike | Iterable[Any]
Named = tuple[str, Float32Array]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that could not be read."""

    path: str
    reason: str


class CalibrationInputs:
    """One pass over the inputs, as (name, (C, H, W) float32). `skipped` fills up on the way.

    total: how many inputs will come at most, None if that is not known before.
    """

    def __init__(self, stream: Iterator[Named], *, total: int | None, skipped: list[Skipped]) -> None:
        self.total = total
        self.skipped = skipped
        self._stream = stream

    def __iter__(self) -> Iterator[Named]:
        return self._stream

    def peek(self, n: int) -> list[Float32Array]:
        """The first n inputs, or as many as there are; the pass still starts with them.

        Raises UsageError if there is none.
        """
        head = list(itertools.islice(self._stream, n))
        self._stream = itertools.chain(head, self._stream)
        if not head:
            if self.skipped:
                first = self.skipped[0]
                raise UsageError(
                    f"none of the {len(self.skipped)} calibration images can be read; the first: {first.reason}"
                )
            raise UsageError("the calibration holds no inputs; it needs at least one, better 100")
        return [x for _, x in head]


def image_files(folder: Path) -> list[Path]:
    """Image files below `folder`, sorted by path. Raises UsageError if there are none."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of calibration images")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file())
    if not files:
        raise UsageError(f"no images in {folder} or below it; looked for {', '.join(SUFFIXES)}")
    return files


def are_files(calibration: Calibration) -> bool:
    """Whether the calibration is a folder, a file or a list of files: whether images have to be preprocessed."""
    if isinstance(calibration, Sequence) and not isinstance(calibration, str) and len(calibration):
        calibration = calibration[0]
    return isinstance(calibration, (str, os.PathLike))


def imagenet_preprocessing(shape: tuple[int, ...]) -> Preprocessing:
    """What most image networks were trained with, for inputs of `shape`, (3, H, W): resize to 8/7 of the crop (256 for
    224; small networks, below 128, without a margin), ImageNet's mean and standard deviation."""
    if len(shape) != 3 or shape[0] != 3:
        raise UsageError(
            f"images make inputs of shape (3, H, W), the network takes {shape};"
            " pass arrays of that shape as calibration"
        )
    short = min(shape[1:])
    return Preprocessing(crop=(shape[1], shape[2]), resize=short if short < 128 else round(short * 8 / 7))


def open_inputs(
    calibration: Calibration,
    *,
    shape: tuple[int, ...],
    preprocessing: Preprocessing | None,
    limit: int = LIMIT,
) -> CalibrationInputs:
    """Make one pass over `calibration`, at most `limit` inputs, spread evenly over it where its length is known.

    shape: (C, H, W) of one network input. preprocessing: for image files; must give `shape`.
    Raises UsageError, at once or when the input comes: nothing there, no images, wrong shape or dtype.
    """
    if limit < 1:
        raise UsageError(f"the number of calibration images must be at least 1, is {limit}")
    if isinstance(calibration, (str, os.PathLike)):
        path = Path(calibration)
        return _from_files([path] if path.is_file() else image_files(path), shape, preprocessing, limit)
    if hasattr(calibration, "__array__"):
        array = np.asarray(calibration)
        array = array[None] if array.ndim == len(shape) else array
        chosen = _spread(len(array), limit) if array.ndim else []
        stream = (_input(f"calibration item {i}", array[i], shape) for i in chosen)
        return CalibrationInputs(stream, total=len(chosen), skipped=[])
    if isinstance(calibration, Sequence) and are_files(calibration):
        return _from_files([Path(cast(str, p)) for p in calibration], shape, preprocessing, limit)
    if isinstance(calibration, Iterable):
        return CalibrationInputs(itertools.islice(_from_items(calibration, shape), limit), total=None, skipped=[])
    raise UsageError(
        f"calibration is {type(calibration).__name__}; expected a folder, a list of image files, or float32 inputs"
    )


def _from_files(
    files: list[Path], shape: tuple[int, ...], preprocessing: Preprocessing | None, limit: int
) -> CalibrationInputs:
    if preprocessing is None:
        raise UsageError("calibration images need preprocessing=Preprocessing(crop=(H, W), …); or pass arrays instead")
    gives = (3, *preprocessing.crop)
    if gives != shape:
        raise UsageError(
            f"preprocessing makes inputs of shape {gives} from images, the network takes {shape};"
            " pass another preprocessing, or arrays of that shape as calibration"
        )
    chosen = [files[i] for i in _spread(len(files), limit)]
    skipped: list[Skipped] = []

    def read(path: Path) -> Named | Skipped:
        try:
            return str(path), images.load(path, preprocessing)
        except UsageError as e:
            return Skipped(path=str(path), reason=str(e))

    def stream() -> Iterator[Named]:
        for item in _ahead(read, chosen):
            if isinstance(item, Skipped):
                skipped.append(item)
            else:
                yield item

    return CalibrationInputs(stream(), total=len(chosen), skipped=skipped)


def _ahead(function: Callable[[T], R], items: Sequence[T], depth: int = 16) -> Iterator[R]:
    """`map` in threads, in order, at most `depth` results ahead of the consumer: images decode while the front runs."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _from_items(items: Iterable[Any], shape: tuple[int, ...]) -> Iterator[Named]:
    for i, item in enumerate(items):
        array = item[0] if isinstance(item, (tuple, list)) and len(item) and hasattr(item[0], "__array__") else item
        if not hasattr(array, "__array__"):
            raise UsageError(
                f"calibration item {i} is {type(array).__name__}; expected a float32 array of shape {shape}"
            )
        array = np.asarray(array)
        name = f"calibration item {i}"
        if array.ndim == len(shape):
            yield _input(name, array, shape)
        else:
            yield from (_input(f"{name}[{j}]", row, shape) for j, row in enumerate(array) if array.ndim)


def _input(name: str, array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> Named:
    if array.shape != shape:
        raise UsageError(f"{name} has shape {array.shape}; the network takes {shape}")
    if not np.issubdtype(array.dtype, np.floating):
        raise UsageError(
            f"{name} is {array.dtype}; calibration arrays must be network inputs, float32 and already normalised"
        )
    x = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(x).all():
        raise UsageError(f"{name} holds NaN or infinity; take it out of the calibration")
    return name, x


def _spread(n: int, limit: int) -> list[int]:
    """At most `limit` of the indices 0 … n − 1, evenly spread: a folder sorted by class is sampled from every class."""
    if n <= limit:
        return list(range(n))
    return [(2 * i + 1) * n // (2 * limit) for i in range(limit)]
