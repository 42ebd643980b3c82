"""Capture: a bounded folder of pictures or features for the next calibration, the newest and the strangest ones.

A file is NAME = MILLISECONDS-SCORE-NUMBER.SUFFIX: when it was captured (since 1970), how strange it is (DriftMonitor
.strangeness), and a running number. So a restart finds what it needs in the names. Files appear whole or not at all.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from splitwire.codec.errors import DeviceError, UsageError
from splitwire.codec.shared.files import write_atomically
from splitwire.codec.shared.pictures import SUFFIXES

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = str | Path | Image | NDArray[Any]

NEWEST_SHARE = 0.5
"""Share of the bytes for the newest; the rest is for the strangest of the others."""
FEATURES = ".npz"
MOST_SCORE = 9999.999
_UNFINISHED = re.compile(r"\.\d{15}-\d+\.\d{3}-\d{6,}\.\w+\.[0-9a-f]+\.tmp")
_NAME = re.compile(r"(\d{15})-(\d+\.\d{3})-(\d{6,})\.(\w+)")

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A file of the sample. captured: seconds since 1970. score: 0 is ordinary; from 1 on as strange as drift."""

    path: Path
    captured: float
    score: float
    size: int


class Capture:
    """Collects a sample in a folder. For one thread.

    folder: made if it is not there; only files with names as above count and are removed. max_bytes: of all files
    together, never exceeded. every_s: least time from one new file to the next; a stranger image than all that are kept
    need not wait. clock: seconds since 1970.
    Raises UsageError (a size that is not positive), DeviceError (the folder cannot be used).
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        max_bytes: int,
        every_s: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_bytes < 1 or every_s < 0:
            raise UsageError("a capture needs a size in bytes of at least 1, and a time of at least 0 seconds")
        self.folder, self.max_bytes, self._every, self._clock = Path(folder), max_bytes, every_s, clock
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._kept = [kept for path in self.folder.iterdir() if (kept := _parsed(path)) is not None]
            for path in self.folder.glob(".*.tmp"):
                if _UNFINISHED.fullmatch(path.name):
                    path.unlink(missing_ok=True)  # of a run that was interrupted
        except OSError as e:
            raise DeviceError(f"{self.folder} cannot be used for a capture: {e.strerror or e}") from e
        self._number = 1 + max((int(kept.path.stem.split("-")[2]) for kept in self._kept), default=0)
        self._latest = max((kept.captured for kept in self._kept), default=float("-inf"))
        self._make_room(0)

    @property
    def kept(self) -> tuple[Kept, ...]:
        """The files of the sample, oldest first."""
        return tuple(sorted(self._kept, key=lambda kept: (kept.captured, kept.path.name)))

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(kept.size for kept in self._kept)

    def picture(self, image: Picture, score: float = 0.0) -> Path | None:
        """Keep a picture; returns its file, or None if it is not kept.

        image: the path of a picture, whose bytes are copied; a PIL image, or (H, W, 3) or (H, W) uint8 pixels, which
        become a PNG file. score: how strange it is. Raises UsageError (no picture), DeviceError (cannot be written).
        """
        if not self._due(score):
            return None
        if isinstance(image, str | Path):
            path = Path(image)
            if path.suffix.lower() not in SUFFIXES:
                raise UsageError(f"{path}: expected a picture, one of {', '.join(sorted(SUFFIXES))}")
            try:
                return self._keep(path.read_bytes(), path.suffix.lower(), score)
            except FileNotFoundError as e:
                raise UsageError(f"{path}: there is no such file") from e
        return self._keep(_png(image), ".png", score)

    def features(self, tensors: Sequence[Float32Array], score: float = 0.0) -> Path | None:
        """Keep the tensors at the cut of one image, (1, *shape) float32 each, where pictures must not leave the device.

        Pairs with several tensors are kept whole. Errors and result are those of `picture`.
        """
        if not self._due(score):
            return None
        if any(len(tensor) != 1 for tensor in tensors):
            raise UsageError("features are captured one image at a time: the first axis of each tensor must be 1")
        data = io.BytesIO()
        np.savez_compressed(data, **{str(i): tensor for i, tensor in enumerate(tensors)})  # type: ignore[arg-type]  # names
        return self._keep(data.getvalue(), FEATURES, score)

    def _due(self, score: float) -> bool:
        return self._clock() - self._latest >= self._every or score > max((k.score for k in self._kept), default=-1.0)

    def _keep(self, data: bytes, suffix: str, score: float) -> Path | None:
        now = self._clock()
        if len(data) > self.max_bytes or not self._make_room(len(data), score=score):
            return None
        shown = min(max(score, 0.0), MOST_SCORE)
        path = self.folder / f"{int(now * 1000):015d}-{shown:.3f}-{self._number:06d}{suffix}"
        try:
            write_atomically(path, data)
        except OSError as e:
            raise DeviceError(f"{path} cannot be written: {e.strerror or e}") from e
        self._number += 1
        self._latest = now
        self._kept.append(Kept(path=path, captured=now, score=shown, size=len(data)))
        return path

    def _make_room(self, size: int, score: float = 0.0) -> bool:
        """Remove what is neither among the newest nor among the strangest, until `size` bytes are free.

        The new file counts as the newest, so it always has room.
        """
        order = sorted(self._kept, key=lambda kept: kept.captured, reverse=True)
        budget = self.max_bytes - size
        newest: list[Kept] = []
        used = 0
        for kept in order:
            if used + kept.size > min(budget, max(0.0, NEWEST_SHARE * self.max_bytes - size)):
                break
            newest.append(kept)
            used += kept.size
        rest = sorted(order[len(newest) :], key=lambda kept: (kept.score, kept.captured), reverse=True)
        chosen = list(newest)
        for kept in rest:
            if used + kept.size <= budget:
                chosen.append(kept)
                used += kept.size
        remaining = {kept.path for kept in chosen}
        for kept in self._kept:
            if kept.path not in remaining:
                kept.path.unlink(missing_ok=True)
        self._kept = chosen
        return used <= budget


def _parsed(path: Path) -> Kept | None:
    found = _NAME.fullmatch(path.name)
    if found is None or not path.is_file():
        return None
    return Kept(path=path, captured=int(found[1]) / 1000, score=float(found[2]), size=path.stat().st_size)


def _png(image: Image | NDArray[Any]) -> bytes:
    from PIL import Image as Images  # sessions that capture features do not need Pillow

    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise UsageError(f"a picture is (H, W, 3) or (H, W) uint8; got {image.dtype} of shape {image.shape}")
        image = Images.fromarray(image)
    if image.mode not in ("1", "L", "P", "RGB", "RGBA"):
        image = image.convert("RGB")
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
