"""Pictures of video files and cameras through PyAV (`pip install splitwire[video]`), which is loaded on first use."""

from __future__ import annotations

import importlib
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from splitwire.codec.errors import DeviceError, UsageError
from splitwire.runtime_edge.events import Event, EventSink, ignore

from .base import Captured

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")
"""Endings of video files."""
SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "udp", "tcp", "srt")
"""Schemes of a camera's address."""
STALL_S = 2.0
FIRST_PAUSE_S, MAX_PAUSE_S = 0.25, 1.5
"""A camera is opened again after the first pause, then after twice the one before, at most the second."""
OPEN_S = 3.0
"""Longest time for a camera to open. With the longest pause this is less than five seconds."""
LOW_LATENCY = {"fflags": "nobuffer", "flags": "low_delay", "analyzeduration": "500000"}


class VideoFile:
    """The frames of a video file, in order, as RGB arrays. Raises UsageError if it cannot be read or decoded."""

    live = False

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise UsageError(f"{path}: no such video")
        self._av = _pyav(str(path))
        self._index = 0
        self._closed = False
        try:
            self._container = self._av.open(str(path))
        except (self._av.FFmpegError, OSError) as e:
            raise UsageError(f"{path}: the video cannot be read: {e}") from e
        if not self._container.streams.video:
            self._container.close()
            raise UsageError(f"{path}: no video stream in this file")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        self._frames = self._container.decode(stream)

    def __iter__(self) -> Iterator[Captured]:
        return self

    def __next__(self) -> Captured:
        try:
            if self._closed:
                raise StopIteration
            image = next(self._frames).to_ndarray(format="rgb24")
        except StopIteration:
            self._container.close()  # here, because no other thread may close it while this one decodes
            raise
        except (self._av.FFmpegError, OSError) as e:
            raise UsageError(f"{self._path}: the video cannot be read from frame {self._index} on: {e}") from e
        self._index += 1
        return Captured.now(image, name=f"{self._path.name}#{self._index - 1}", index=self._index - 1)

    def close(self) -> None:
        """There are no more frames."""
        self._closed = True


class Camera:
    """A camera that is opened again whenever it stalls, vanishes or cannot be opened: it never ends by itself.

    address: rtsp://…, http://… (MJPEG or any stream), or a V4L2 device as /dev/video0. Credentials in the address are
        not shown in events.
    stall_s: seconds without data after which it is opened again: at once 0.25 s later, then after twice as long, at
        most 1.5 s. open_s: longest time to open it. The first picture may take longer, while data comes: a decoder
        waits for a key frame.
    options: FFmpeg's, beside the ones for a low delay: {"rtsp_transport": "udp"}, {"video_size": "1280x720"}.
    format: FFmpeg's name of the container or device, if it does not find out by itself.
    on_event: gets `camera_lost` (with the reason) and `camera_back` (with the seconds that it was away).

    A thread reads and decodes, so that one that hangs in the driver holds up nothing. Pictures are RGB arrays.
    Raises UsageError (PyAV is not installed, a wrong argument).
    """

    live = True

    def __init__(
        self,
        address: str,
        *,
        stall_s: float = STALL_S,
        open_s: float = OPEN_S,
        options: Mapping[str, str] | None = None,
        format: str | None = None,
        on_event: EventSink = ignore,
    ) -> None:
        if not stall_s > 0 or not open_s > 0:
            raise UsageError(f"stall_s and open_s must be more than 0, got {stall_s} and {open_s}")
        self._av = _pyav(address)
        self._address = address
        self._shown = shown(address)
        self._stall_s, self._open_s = stall_s, open_s
        self._options = {**LOW_LATENCY, **(options or {})}
        self._format = format
        if format is None and address.startswith("/dev/"):
            self._format = "v4l2" if sys.platform == "linux" else None
        if address.startswith("rtsp"):
            self._options.setdefault("rtsp_transport", "tcp")
        self._on_event = on_event
        self._reader: _Reader | None = None
        self._index = 0
        self._lost_at: float | None = None
        self._told = False
        self._pause = FIRST_PAUSE_S
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Captured]:
        return self

    def __next__(self) -> Captured:
        while not self._closed.is_set():
            reader = self._reader
            if reader is None:
                reader = self._reader = _Reader(
                    self._av, self._address, self._format, self._options, (self._open_s, self._stall_s)
                )
            item = reader.next(self._stall_s, self._open_s)
            if self._closed.is_set():
                break
            if isinstance(item, str):
                self._lost(item)
            else:
                return self._picture(*item)
        raise StopIteration

    def close(self) -> None:
        """Close the camera, and end a `next` that waits."""
        self._closed.set()
        if self._reader is not None:
            self._reader.stop()

    def _picture(self, image: Any, captured: float, wall: float) -> Captured:
        if self._lost_at is not None:
            away = time.monotonic() - self._lost_at
            text = f"{self._shown}: the camera gives pictures again, after {away:.1f} s"
            self._on_event(Event(kind="camera_back", text=text, fields={"camera": self._shown, "away_s": away}))
        self._lost_at, self._told, self._pause = None, False, FIRST_PAUSE_S
        self._index += 1
        return Captured(image=image, captured=captured, wall=wall, name=self._shown, index=self._index - 1)

    def _lost(self, why: str) -> None:
        """Tell of it once, drop the reader, and wait before the next attempt."""
        if self._reader is not None:
            self._reader.stop()
            self._reader = None
        if self._lost_at is None:
            self._lost_at = time.monotonic()
        if not self._told:
            self._told = True
            text = f"{self._shown}: {why}; it is opened again until it works"
            self._on_event(Event(kind="camera_lost", text=text, fields={"camera": self._shown, "reason": why}))
        self._closed.wait(self._pause)
        self._pause = min(2 * self._pause, MAX_PAUSE_S)


class _Reader:
    """One opening of a camera, in a thread of its own. A reader that is given up ends when its call returns."""

    def __init__(
        self, av: Any, address: str, form: str | None, options: Mapping[str, str], timeouts: tuple[float, float]
    ) -> None:
        self._av = av
        self._timeouts = timeouts
        self._is_open = False
        self._alive = time.monotonic()
        self._address, self._format, self._options = address, form, options
        self._items: queue.Queue[tuple[Any, float, float] | str] = queue.Queue(1)
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="splitwire-camera", daemon=True).start()

    def next(self, stall_s: float, open_s: float) -> tuple[Any, float, float] | str:
        """The next picture with its times; or the reason why there is none, after that long without data."""
        begin = time.monotonic()
        while True:
            limit = stall_s if self._is_open else open_s
            # data that waited for the caller, not the caller for it, is no stall
            left = max(self._alive, begin) + limit - time.monotonic()
            if left <= 0:
                return f"no data for {limit:g} s" if self._is_open else f"it did not open in {limit:g} s"
            try:
                return self._items.get(timeout=left)
            except queue.Empty:
                continue

    def stop(self) -> None:
        """Let the thread end, and wake up who waits."""
        self._stopped.set()
        try:
            self._items.put_nowait("closed")
        except queue.Full:
            return

    def _run(self) -> None:
        try:
            self._read()
            why = "the stream ended"
        except Exception as e:
            words = (e.strerror if isinstance(e, OSError) else None) or str(e) or type(e).__name__
            why = words.replace(self._address, shown(self._address))  # without the password
            why = why[:1].lower() + why[1:]
        self._give(why)

    def _read(self) -> None:
        with self._av.open(
            self._address, format=self._format, options=dict(self._options), timeout=self._timeouts
        ) as container:
            if not container.streams.video:
                raise DeviceError("it gives no video")
            self._is_open = True
            for packet in container.demux(container.streams.video[0]):
                self._alive = time.monotonic()
                for frame in packet.decode():
                    self._give((frame.to_ndarray(format="rgb24"), time.monotonic(), time.time()))
                if self._stopped.is_set():
                    return

    def _give(self, item: tuple[Any, float, float] | str) -> None:
        """Put an item, unless the reader is given up meanwhile."""
        while not self._stopped.is_set():
            try:
                self._items.put(item, timeout=1.0)
            except queue.Full:
                continue
            return


def shown(address: str) -> str:
    """The address without user and password."""
    parts = urlsplit(address)
    if parts.username is None and parts.password is None:
        return address
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _pyav(address: str) -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as e:
        raise UsageError(
            f"{shown(address)}: videos and cameras are read with PyAV, which is not installed: pip install"
            " splitwire[video]"
        ) from e
