"""Sources of stored pictures: files and folders, a folder that is watched, and any iterable."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.pictures import SUFFIXES

from .base import Captured

if TYPE_CHECKING:
    from .base import Picture

POLL_S = 0.25
"""Seconds between two looks at a watched folder."""


class Pictures:
    """Picture files, and the picture files of folders and the folders below, in order.

    A file that cannot be read is found out when its turn comes. Raises UsageError if there are none.
    """

    live = False

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._paths = iter(_listed(paths))
        self._index = 0

    def __iter__(self) -> Iterator[Captured]:
        return self

    def __next__(self) -> Captured:
        path = next(self._paths)
        self._index += 1
        return Captured.now(path, name=str(path), index=self._index - 1)

    def close(self) -> None:
        """There are no more pictures."""
        self._paths = iter(())


class WatchedFolder:
    """The pictures that appear in a folder and the folders below it, in the order of their times.

    A file is given when its size and time are the same at two looks in a row and it is not empty, so that a file that
    is still being written is left alone; a program that renames a finished file into the folder is safe in any case.
    Files and folders whose names begin with a dot are ignored. A file that is overwritten is given again.
    existing: whether files that are there already are given too. poll_s: seconds between two looks.
    remembered: most files of which it is remembered that they were given. Beyond it the oldest are forgotten, and given
        again if they are still there: remove files that are done.
    Raises UsageError if there is no such folder; a folder that vanishes later is waited for.
    """

    live = True

    def __init__(
        self, folder: str | Path, *, existing: bool = False, poll_s: float = POLL_S, remembered: int = 100_000
    ) -> None:
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise UsageError(f"{folder}: no such folder to watch")
        if not poll_s > 0 or remembered < 1:
            raise UsageError(f"poll_s must be more than 0 and remembered at least 1; got {poll_s} and {remembered}")
        self._poll_s = poll_s
        self._remembered = remembered
        self._given: dict[Path, tuple[int, int]] = {} if existing else self._look()
        self._growing: dict[Path, tuple[int, int]] = {}
        self._complete: deque[Path] = deque()
        self._index = 0
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Captured]:
        return self

    def __next__(self) -> Captured:
        while not self._complete:
            if self._closed.is_set():
                raise StopIteration
            self._complete.extend(self._finished())
            if not self._complete:
                self._closed.wait(self._poll_s)
        path = self._complete.popleft()
        self._index += 1
        return Captured.now(path, name=str(path), index=self._index - 1)

    def close(self) -> None:
        """Stop watching; `next` ends at once."""
        self._closed.set()
        self._complete.clear()

    def _look(self) -> dict[Path, tuple[int, int]]:
        """Size and time (ns) of each picture file in the folder."""
        found = {}
        with suppress(OSError):  # a folder can vanish while it is walked
            for path in self._folder.rglob("*"):
                hidden = any(part.startswith(".") for part in path.relative_to(self._folder).parts)
                if path.suffix.lower() in SUFFIXES and not hidden:
                    with suppress(OSError):
                        stat = path.stat()
                        found[path] = (stat.st_size, stat.st_mtime_ns)
        return found

    def _finished(self) -> list[Path]:
        """The new files that did not change since the last look, by time and name."""
        seen = {path: state for path, state in self._look().items() if self._given.get(path) != state}
        done = [path for path, state in seen.items() if state[0] and self._growing.get(path) == state]
        done.sort(key=lambda path: (seen[path][1], str(path)))
        for path in done:
            self._given[path] = seen.pop(path)
        self._growing = seen
        while len(self._given) > self._remembered:
            del self._given[next(iter(self._given))]
        return done


class Items:
    """What an iterable gives: arrays, PIL images or paths of pictures; or Captured of its own times and names.

    close: a generator is closed, unless it runs in another thread at that moment; then it ends with its next item.
    """

    live = False

    def __init__(self, items: Iterable[Any], *, name: str = "items") -> None:
        self._items = iter(items)
        self._name = name
        self._index = 0
        self._closed = False

    def __iter__(self) -> Iterator[Captured]:
        return self

    def __next__(self) -> Captured:
        if self._closed:
            raise StopIteration
        item = next(self._items)
        index = self._index
        self._index += 1
        if isinstance(item, Captured):
            return item
        image: Picture = Path(item) if isinstance(item, str) else item
        if not isinstance(image, Path | np.ndarray) and not hasattr(image, "convert"):
            raise UsageError(
                f"item {index} of the source is a {type(item).__name__}; expected an array, a PIL image or a path"
            )
        return Captured.now(image, name=str(image) if isinstance(image, Path) else self._name, index=index)

    def close(self) -> None:
        """There are no more items."""
        self._closed = True
        if hasattr(self._items, "close"):
            with suppress(ValueError):  # the generator runs
                self._items.close()


def _listed(paths: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        try:
            if path.is_dir():
                found += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
                continue
        except OSError as e:
            raise UsageError(f"{path}: cannot be read: {e.strerror or e}") from e
        found.append(path)
    if not found:
        raise UsageError(f"no pictures in {', '.join(map(str, paths))}; expected {', '.join(sorted(SUFFIXES))}")
    return found
