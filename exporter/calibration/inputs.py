"""Calibration inputs, one at a time, from wherever the user has them.

A folder of images (searched recursively, so an ImageFolder works), a list of files, a video, a NumPy array or torch
tensor of network inputs, a torch Dataset, or any iterable (a DataLoader, too: of a tuple the first entry counts).
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitwire.codec import preprocessing as images
from splitwire.codec.errors import UsageError
from splitwire.codec.pictures import image_files, spread
from splitwire.codec.profile import Preprocessing
from splitwire.exporter.network.inference import InputType
from splitwire.exporter.network.pictures import check_fits

from . import video

LIMIT = 512
"""Images used unless the caller says otherwise: ranges and tables have settled well before (docs/exporter.md)."""

SPOT_CHECKS = 16
"""Items of an array or a Dataset that its digest looks at."""

Calibration = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | ArrayLike | Iterable[Any]
Named = tuple[str, NDArray[Any]]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A calibration image that could not be read, and why."""

    path: str
    reason: str


class CalibrationInputs:
    """One pass over the inputs, as (name, array): (C, H, W) float32, or what else the network takes.

    total: how many inputs will come at most, None if that is not known before. position: how many items of the source
    have been delivered or skipped; with `skip_to` a pass goes on where another one was left.
    """

    def __init__(
        self,
        items: Callable[[Callable[[int], bool]], Iterator[Named | Skipped | None]],
        *,
        total: int | None,
        digest: Callable[[], str | None] | None = None,
    ) -> None:
        """items: makes the stream. What it is given says whether the item of a position is wanted; where it is not,
        None may come in its place, at less cost. digest: see `digest`.
        """
        self.total = total
        self.position = 0
        self._first = 0
        self._items = enumerate(items(lambda i: i >= self._first))
        self._head: deque[tuple[int, Named]] = deque()
        self._skipped: list[tuple[int, Skipped]] = []
        self._digest = digest

    def __iter__(self) -> Iterator[Named]:
        while self._head or self._fill():
            at, named = self._head.popleft()
            self.position = at + 1
            yield named

    @property
    def skipped(self) -> list[Skipped]:
        """The files that could not be read, so far."""
        return [s for _, s in self._skipped]

    def skipped_before(self, position: int) -> list[tuple[int, Skipped]]:
        """Those before `position` (reading is ahead of delivery), with their own positions."""
        return [(i, s) for i, s in self._skipped if i < position]

    def peek(self, n: int) -> list[NDArray[Any]]:
        """The first n inputs, or as many as there are; the pass still starts with them.

        Raises UsageError if there is none.
        """
        while len(self._head) < n and self._fill():
            pass
        if not self._head:
            if self._skipped:
                first = self._skipped[0][1]
                raise UsageError(
                    f"none of the {len(self._skipped)} calibration images can be read; the first: {first.reason}"
                )
            raise UsageError("the calibration holds no inputs; it needs at least one, better 100")
        return [x for _, (_, x) in itertools.islice(self._head, n)]

    def skip_to(self, position: int, skipped: Sequence[tuple[int, Skipped]]) -> None:
        """Deliver from `position` on. skipped: what could not be read before it."""
        self._first = self.position = position
        self._head = deque((i, named) for i, named in self._head if i >= position)
        self._skipped = [*skipped, *((i, s) for i, s in self._skipped if i >= position)]

    def digest(self) -> str | None:
        """The same for the same inputs in the same order, as far as a spot check can tell; None where they may come
        only once (an iterable)."""
        return self._digest() if self._digest is not None else None

    def _fill(self) -> bool:
        """Take the next item that can be used. False at the end."""
        for at, item in self._items:
            if item is None or at < self._first:
                continue
            if isinstance(item, Skipped):
                self._skipped.append((at, item))
                continue
            self._head.append((at, item))
            return True
        return False


def are_images(calibration: Calibration) -> bool:
    """Whether the calibration is made of image files or PIL images, which have to be preprocessed."""
    first: Any = calibration
    if not isinstance(calibration, (str, os.PathLike)) and _is_map(calibration) and len(first):
        first = _unpack(_item_of(calibration, 0))
    return isinstance(first, (str, os.PathLike)) or _is_picture(first)


def open_inputs(
    calibration: Calibration,
    *,
    shape: tuple[int, ...],
    preprocessing: Preprocessing | None,
    dtype: InputType = "float32",
    limit: int = LIMIT,
) -> CalibrationInputs:
    """Make one pass over `calibration`, at most `limit` inputs, spread evenly over it where its length is known.

    shape, dtype: of one network input, (C, H, W) mostly. preprocessing: for image files; must give these.
    Raises UsageError, at once or when the input comes: nothing there, no images, wrong shape or dtype.
    """
    if limit < 1:
        raise UsageError(f"the number of calibration images must be at least 1, is {limit}")
    usable = partial(_usable, preprocessing, shape, dtype)
    if isinstance(calibration, (str, os.PathLike)):
        path = Path(calibration)
        if path.suffix.lower() in video.SUFFIXES:
            return _from_video(path, usable(), limit)
        return _from_files([path] if path.is_file() else image_files(path), usable(), limit)
    if hasattr(calibration, "__array__"):
        array = np.asarray(_detached(calibration))
        calibration = array[None] if array.ndim == len(shape) else array if array.ndim else []
    if isinstance(calibration, Sequence) and len(calibration) and isinstance(calibration[0], (str, os.PathLike)):
        return _from_files([Path(cast(str, p)) for p in calibration], usable(), limit)
    convert = partial(_inputs_of, shape=shape, dtype=dtype, usable=usable)
    if _is_map(calibration) and (not isinstance(calibration, Sequence) or are_images(calibration)):
        return _from_map(calibration, convert, limit)
    if isinstance(calibration, Iterable) and not isinstance(calibration, Mapping):
        named = (pair for i, item in enumerate(calibration) for pair in convert(i, item))
        return CalibrationInputs(lambda _: itertools.islice(named, limit), total=None)
    raise UsageError(
        f"calibration is {type(calibration).__name__}; expected a folder, a list of image files, a video, a Dataset,"
        " or float32 inputs"
    )


def _from_files(files: list[Path], how: Preprocessing, limit: int) -> CalibrationInputs:
    chosen = [files[i] for i in spread(len(files), limit)]

    def read(wanted: Callable[[int], bool], at: int) -> Named | Skipped | None:
        if not wanted(at):
            return None
        try:
            return str(chosen[at]), images.load(chosen[at], how)
        except UsageError as e:
            return Skipped(path=str(chosen[at]), reason=str(e))

    return CalibrationInputs(
        lambda wanted: _ahead(partial(read, wanted), range(len(chosen))),
        total=len(chosen),
        digest=partial(_digest_of_files, chosen),
    )


def _from_video(path: Path, how: Preprocessing, limit: int) -> CalibrationInputs:
    frames = video.count_frames(path)
    chosen = spread(frames, limit)

    def items(wanted: Callable[[int], bool]) -> Iterator[Named | None]:
        places = {frame: at for at, frame in enumerate(chosen)}
        for frame, picture in video.frames(path, chosen):
            name = f"{path} frame {frame}"
            yield (name, images.apply(picture, how)) if wanted(places[frame]) else None

    return CalibrationInputs(items, total=len(chosen), digest=partial(_digest_of_files, [path]))


def _from_map(source: Any, convert: Callable[[int, Any], Iterator[Named]], limit: int) -> CalibrationInputs:
    """An array of inputs or a Dataset: what has a length, and gives its items by number."""
    chosen = spread(len(source), limit)

    def only(i: int) -> Named:
        found = list(convert(i, _item_of(source, i)))
        if len(found) != 1:
            raise UsageError(f"calibration item {i} is a batch of {len(found)}; a Dataset gives one input per item")
        return found[0]

    def items(wanted: Callable[[int], bool]) -> Iterator[Named | None]:
        for at, i in enumerate(chosen):
            yield only(i) if wanted(at) else None

    def digest() -> str:
        found = hashlib.sha256(f"{type(source).__name__} {len(source)} {chosen}".encode())
        for i in (chosen[at] for at in spread(len(chosen), SPOT_CHECKS)):
            found.update(only(i)[1].tobytes())
        return found.hexdigest()

    return CalibrationInputs(items, total=len(chosen), digest=digest)


def _digest_of_files(files: Sequence[Path]) -> str:
    entries = [(str(p), s.st_size, s.st_mtime_ns) for p in files if p.exists() for s in [p.stat()]]
    return hashlib.sha256(repr((len(files), entries)).encode()).hexdigest()


def _ahead(function: Callable[[T], R], items: Iterable[T], depth: int = 16) -> Iterator[R]:
    """`map` in threads, in order, at most `depth` results ahead of the consumer: images decode while the front runs."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _is_map(source: object) -> bool:
    """A Dataset, an array, a list: a length, and items by number."""
    sized = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return sized and not isinstance(source, (Mapping, bytes))


def _item_of(source: Any, i: int) -> Any:
    try:
        return source[i]
    except Exception as e:  # a Dataset runs whatever its author wrote
        raise UsageError(f"calibration item {i} cannot be read: {type(e).__name__}: {e}".splitlines()[0]) from e


def _unpack(item: Any) -> Any:
    """The input of an (input, label) pair."""
    if isinstance(item, (tuple, list)) and len(item) and (_is_picture(item[0]) or hasattr(item[0], "__array__")):
        return item[0]
    return item


def _is_picture(item: object) -> bool:
    """Whether it is a PIL image; without importing Pillow for those who have none."""
    return any(cls.__module__ == "PIL.Image" for cls in type(item).__mro__)


def _detached(item: Any) -> Any:
    """A torch tensor that is part of a gradient, or on a GPU, cannot become an array."""
    return item.detach().cpu() if hasattr(item, "detach") else item


def _inputs_of(
    i: int, item: Any, *, shape: tuple[int, ...], dtype: InputType, usable: Callable[[], Preprocessing]
) -> Iterator[Named]:
    """The inputs in an item: one, or a batch of them."""
    name = f"calibration item {i}"
    item = _unpack(item)
    if _is_picture(item):
        yield name, images.apply(item, usable())
        return
    if not hasattr(item, "__array__"):
        raise UsageError(f"{name} is {type(item).__name__}; expected a {dtype} array of shape {shape}")
    array = np.asarray(_detached(item))
    if array.ndim == len(shape) + 1:
        yield from (_input(f"{name}[{j}]", row, shape, dtype) for j, row in enumerate(array))
    else:
        yield _input(name, array, shape, dtype)


def _input(name: str, array: np.ndarray[Any, Any], shape: tuple[int, ...], dtype: InputType) -> Named:
    if array.shape != shape:
        raise UsageError(f"{name} has shape {array.shape}; the network takes {shape}")
    if dtype == "uint8":
        if array.dtype != np.uint8:
            raise UsageError(f"{name} is {array.dtype}; the network takes uint8")
        return name, np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise UsageError(
            f"{name} is {array.dtype}; calibration arrays must be network inputs, float32 and already normalised"
        )
    x = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(x).all():
        raise UsageError(f"{name} holds NaN or infinity; take it out of the calibration")
    return name, x


def _usable(preprocessing: Preprocessing | None, shape: tuple[int, ...], dtype: InputType) -> Preprocessing:
    """What makes inputs of `shape` and `dtype` from images. Raises UsageError."""
    if preprocessing is None:
        raise UsageError("calibration images need preprocessing=Preprocessing(crop=(H, W), …); or pass arrays instead")
    check_fits(preprocessing, shape, dtype)
    return preprocessing
