"""Read frames of a video as calibration images, with PyAV (`pip install splitwire[video]`). No other module loads
it."""

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
"""Endings of videos. They apply to a file that the user names, not to files in a folder."""


def count_frames(path: Path) -> int:
    """The number of frames in the first video stream: its packets, counted without decoding. Raises UsageError."""
    with _stream(path) as (container, stream):
        count = sum(1 for packet in container.demux(stream) if packet.size)
    if not count:
        raise UsageError(f"{path}: the video holds no frames")
    return count


def frames(path: Path, chosen: Sequence[int]) -> Iterator[tuple[int, Image]]:
    """(index, picture) of the frames `chosen`, in order; fewer if the video is damaged or ends early.

    chosen: ascending indices. Decodes every frame up to the last one, on all cores: most frames depend on earlier ones.
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
    """The opened file and its first video stream. Raises UsageError for any error in the library."""
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
