"""Calibration inputs, one at a time, from every kind of source.

A source is a folder of images (searched recursively, so an ImageFolder works), a list of files, a video, a NumPy array
or torch tensor of network inputs, a torch Dataset, or any iterable. An iterable may be a DataLoader: the first entry of
each tuple is used.
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
from numpy.typing import NDArray

from splitwire.codec import preprocessing as images
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.codec.shared.pictures import image_files, spread
from splitwire.exporter.network.inference import InputType

from . import video
from .items import Calibration, InputForm, Named, are_images, detached, is_indexed, item_at

LIMIT = 512
"""Default for the largest number of inputs: ranges and tables settle well before that (docs/exporter.md)."""

SPOT_CHECKS = 16
"""How many items of an array or a Dataset its digest reads."""

IsWanted = Callable[[int], bool]
"""Whether a pass needs the item at this position. For an item that it does not need, a source may yield None."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A calibration image that cannot be read, and why."""

    path: str
    reason: str


class CalibrationInputs:
    """One pass over the inputs, as (name, array): (C, H, W) float32, or the type that the network takes.

    total: the largest number of inputs that can come; None if the source does not know it. position: how many items of
    the source the pass has delivered or skipped. `skip_to` resumes a pass where another one stopped.
    """

    def __init__(
        self,
        items: Callable[[IsWanted], Iterator[Named | Skipped | None]],
        *,
        total: int | None,
        digest: Callable[[], str] | None = None,
    ) -> None:
        """items: starts the stream. digest: see `digest`; None for a source that can be read only once."""
        self.total = total
        self.position = 0
        self._first = 0
        self._make_items = items
        self._items = enumerate(items(lambda i: i >= self._first))
        self._head: deque[tuple[int, Named]] = deque()
        self._skipped: list[tuple[int, Skipped]] = []
        self._digest = digest

    def __iter__(self) -> Iterator[Named]:
        while self._head or self._fill():
            at, named = self._head.popleft()
            self.position = at + 1
            yield named

    def again(self) -> CalibrationInputs | None:
        """A second pass over the same inputs; None if the source can be read only once (an iterable)."""
        if self._digest is None:
            return None
        return CalibrationInputs(self._make_items, total=self.total, digest=self._digest)

    @property
    def skipped(self) -> list[Skipped]:
        """The files that could not be read, so far."""
        return [s for _, s in self._skipped]

    def skipped_before(self, position: int) -> list[tuple[int, Skipped]]:
        """The unreadable files before `position`, with their positions. (Reading runs ahead of delivery.)"""
        return [(i, s) for i, s in self._skipped if i < position]

    def peek(self, n: int) -> list[NDArray[Any]]:
        """The first n inputs, or all if there are fewer. The pass still starts with them.

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
        """Go to `position`. skipped: the files before it that could not be read, with their positions."""
        self._first = self.position = position
        self._head = deque((i, named) for i, named in self._head if i >= position)
        self._skipped = [*skipped, *((i, s) for i, s in self._skipped if i >= position)]

    def digest(self) -> str | None:
        """Equal for equal inputs in the same order, as far as a spot check can tell.

        None if the source can be read only once.
        """
        return self._digest() if self._digest is not None else None

    def _fill(self) -> bool:
        """Read the next usable item. False at the end."""
        for at, item in self._items:
            if item is None or at < self._first:
                continue
            if isinstance(item, Skipped):
                self._skipped.append((at, item))
                continue
            self._head.append((at, item))
            return True
        return False


def open_inputs(
    calibration: Calibration,
    *,
    shape: tuple[int, ...],
    preprocessing: Preprocessing | None,
    dtype: InputType = "float32",
    limit: int = LIMIT,
) -> CalibrationInputs:
    """Make one pass over `calibration`: at most `limit` inputs, spread evenly over it where its length is known.

    shape, dtype: of one network input, (C, H, W) mostly. preprocessing: for images; must give this shape and type.
    Raises UsageError, at once or when the input comes: nothing there, no images, wrong shape or dtype.
    """
    if limit < 1:
        raise UsageError(f"the number of calibration images must be at least 1, is {limit}")
    form = InputForm(shape=shape, dtype=dtype, preprocessing=preprocessing)
    if isinstance(calibration, (str, os.PathLike)):
        path = Path(calibration)
        if path.suffix.lower() in video.SUFFIXES:
            return _from_video(path, form.for_images(), limit)
        return _from_files([path] if path.is_file() else image_files(path), form.for_images(), limit)
    if hasattr(calibration, "__array__"):
        array = np.asarray(detached(calibration))
        calibration = array[None] if array.ndim == len(shape) else array if array.ndim else []
    if isinstance(calibration, Sequence) and len(calibration) and isinstance(calibration[0], (str, os.PathLike)):
        return _from_files([Path(cast(str, p)) for p in calibration], form.for_images(), limit)
    if is_indexed(calibration) and (not isinstance(calibration, Sequence) or are_images(calibration)):
        return _from_indexed(calibration, form, limit)
    if isinstance(calibration, Iterable) and not isinstance(calibration, Mapping):
        inputs = (named for i, item in enumerate(calibration) for named in form.inputs_of(i, item))
        return CalibrationInputs(lambda _: itertools.islice(inputs, limit), total=None)
    raise UsageError(
        f"calibration is {type(calibration).__name__}; expected a folder, a list of image files, a video, a Dataset,"
        " or float32 inputs"
    )


def _from_files(files: list[Path], how: Preprocessing, limit: int) -> CalibrationInputs:
    chosen = [files[i] for i in spread(len(files), limit)]

    def read(is_wanted: IsWanted, at: int) -> Named | Skipped | None:
        if not is_wanted(at):
            return None
        try:
            return str(chosen[at]), images.load(chosen[at], how)
        except UsageError as e:
            return Skipped(path=str(chosen[at]), reason=str(e))

    return CalibrationInputs(
        lambda is_wanted: _read_ahead(partial(read, is_wanted), range(len(chosen))),
        total=len(chosen),
        digest=partial(_digest_of_files, chosen),
    )


def _from_video(path: Path, how: Preprocessing, limit: int) -> CalibrationInputs:
    chosen = spread(video.count_frames(path), limit)

    def items(is_wanted: IsWanted) -> Iterator[Named | None]:
        positions = {frame: at for at, frame in enumerate(chosen)}
        for frame, picture in video.frames(path, chosen):
            name = f"{path} frame {frame}"
            yield (name, images.apply(picture, how)) if is_wanted(positions[frame]) else None

    return CalibrationInputs(items, total=len(chosen), digest=partial(_digest_of_files, [path]))


def _from_indexed(source: Any, form: InputForm, limit: int) -> CalibrationInputs:
    """From an array of inputs or a Dataset: it has a length, and gives its items by number."""
    chosen = spread(len(source), limit)

    def items(is_wanted: IsWanted) -> Iterator[Named | None]:
        for at, i in enumerate(chosen):
            yield form.single_input(i, item_at(source, i)) if is_wanted(at) else None

    def digest() -> str:
        total = hashlib.sha256(f"{type(source).__name__} {len(source)} {chosen}".encode())
        for i in (chosen[at] for at in spread(len(chosen), SPOT_CHECKS)):
            total.update(form.single_input(i, item_at(source, i))[1].tobytes())
        return total.hexdigest()

    return CalibrationInputs(items, total=len(chosen), digest=digest)


def _digest_of_files(files: Sequence[Path]) -> str:
    entries = [(str(p), s.st_size, s.st_mtime_ns) for p in files if p.exists() for s in [p.stat()]]
    return hashlib.sha256(repr((len(files), entries)).encode()).hexdigest()


def _read_ahead(function: Callable[[T], R], items: Iterable[T], depth: int = 16) -> Iterator[R]:
    """`map` in threads, in order, at most `depth` results ahead of the consumer: images decode while the front runs."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
