"""Frames of a video as calibration images, through PyAV (`pip install splitwire[video]`), which is loaded only here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitwire.codec.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg")
"""What counts as a video; only a file named outright, never one found in a folder."""


def count_frames(path: Path) -> int:
    """How many frames the first video stream holds: its packets, counted without decoding. Raises UsageError."""
    with _stream(path) as (container, stream):
        found = sum(1 for packet in container.demux(stream) if packet.size)
    if not found:
        raise UsageError(f"{path}: the video holds no frames")
    return found


def frames(path: Path, chosen: Sequence[int]) -> Iterator[tuple[int, Image]]:
    """(index, picture) of the frames `chosen`, which ascend, in order; fewer where the video is damaged or ends early.

    Every frame up to the last is decoded, on all cores: most cannot be without those before them.
    """
    wanted, last = set(chosen), max(chosen)
    with _stream(path) as (container, stream):
        stream.thread_type = "AUTO"
        for i, frame in enumerate(container.decode(stream)):
            if i in wanted:
                yield i, frame.to_image()
            if i >= last:
                return


@contextmanager
def _stream(path: Path) -> Iterator[tuple[Any, Any]]:
    """The opened file and its first video stream. Raises UsageError for whatever goes wrong in the library."""
    try:
        av = importlib.import_module("av")
    except ImportError as e:
        raise UsageError(
            f"{path}: a video is read with PyAV, which is not installed: pip install splitwire[video]"
        ) from e
    if not path.is_file():
        raise UsageError(f"{path}: no such video")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UsageError(f"{path}: no video stream in this file")
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError) as e:
        raise UsageError(f"{path}: the video cannot be read: {e}") from e
