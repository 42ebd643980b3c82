"""open_source: the source that a text means."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from splitwire.codec.errors import UsageError
from splitwire.runtime_edge.events import EventSink, ignore

from .base import Source
from .pacing import Paced
from .pictures import Items, Pictures, WatchedFolder
from .pipe import Pipe
from .video import SCHEMES, SUFFIXES, Camera, VideoFile


def open_source(
    what: str | Path, *, watch: bool = False, fps: float | None = None, on_event: EventSink | None = None
) -> Source:
    """Open a source of pictures.

    what: a picture or a folder of pictures; a video file; a camera, as rtsp://…, http://… or /dev/video0; "-" for
        standard input (JPEG or PNG files one behind the other, or raw frames after a header).
    watch: give the pictures that appear in the folder from now on. fps: pictures per second: a stored source is slowed
        down to it, of a live one some are left out. on_event: takes events, as of a camera that is away.
    Raises UsageError. Videos and cameras need PyAV (`pip install splitwire[video]`).
    """
    source = _open(what, watch, ignore if on_event is None else on_event)
    return source if fps is None else Paced(source, fps)


def as_source(source: Source | Iterable[Any]) -> Source:
    """The source itself, or one of the items of an iterable. Raises UsageError for a text: `open_source` is for it."""
    if isinstance(source, str | Path):
        raise UsageError(f"stream() takes a source or an iterable; for {str(source)!r} give it open_source(…)")
    if hasattr(source, "live") and hasattr(source, "close"):
        return cast("Source", source)
    return Items(source)


def is_camera(what: str) -> bool:
    """Whether a text is the address of a camera."""
    return urlsplit(what).scheme.lower() in SCHEMES or what.startswith("/dev/")


def _open(what: str | Path, watch: bool, on_event: EventSink) -> Source:
    text = str(what)
    if watch:
        return WatchedFolder(what)
    if text == "-":
        return Pipe()
    if isinstance(what, str) and is_camera(what):
        return Camera(what, on_event=on_event)
    if Path(what).suffix.lower() in SUFFIXES:
        return VideoFile(what)
    if "://" in text:
        raise UsageError(f"{text}: no such kind of source; a camera's address begins with {'://, '.join(SCHEMES)}://")
    return Pictures([what])
