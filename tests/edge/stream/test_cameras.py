"""Videos and cameras through PyAV: a camera that stalls, vanishes or is not there yet; RTSP from a local server."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import av
import numpy as np
import pytest
from cameras import Server, mjpeg_camera, picture, rtsp_camera
from runtime_helpers import until

from splitwire.codec.errors import UsageError
from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.sources import Camera, Captured, VideoFile, open_source


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    until(lambda: not any(t.name == "splitwire-camera" for t in threading.enumerate()), 10)


def level(captured: Captured) -> int:
    """The index, modulo 10, of the picture that was captured."""
    assert isinstance(captured.image, np.ndarray)
    assert captured.image.shape == (48, 64, 3)
    return round((float(captured.image.mean()) - 20) / 20)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_a_video_file(video: Path):
    found = list(open_source(video))
    assert [level(c) for c in found] == [*range(10), 0, 1]
    assert (found[3].name, found[3].index) == ("clip.mp4#3", 3)
    source = VideoFile(video)
    next(source)
    source.close()
    assert list(source) == []


def test_a_damaged_video(video: Path, tmp_path: Path):
    (tmp_path / "not.mp4").write_bytes(b"text" * 100)
    with pytest.raises(UsageError, match=r"not\.mp4: the video cannot be read"):
        VideoFile(tmp_path / "not.mp4")


def test_without_pyav(video: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"PyAV, which is not installed: pip install splitwire\[video\]"):
        VideoFile(video)
    with pytest.raises(UsageError, match=r"rtsp://h/: videos and cameras"):
        Camera("rtsp://user:secret@h/")


CAMERAS = {"http": mjpeg_camera, "rtsp": rtsp_camera}


def opened(kind: str) -> AbstractContextManager[Server]:
    return CAMERAS[kind]()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["http", "rtsp"])
def test_a_stalled_camera_is_back_within_five_seconds(kind: str):
    """With the defaults: the camera sends nothing for three seconds, and the connection stays open."""
    events: list[Event] = []
    with opened(kind) as server:
        source = Camera(f"{kind}://127.0.0.1:{server.port}/", on_event=events.append)
        assert len({level(next(source)) for _ in range(5)}) > 2
        server.stalled.set()
        threading.Timer(3.0, server.stalled.clear).start()
        last = time.monotonic()
        gaps = []
        while len(events) < 2:
            captured = next(source).captured
            gaps.append(captured - last)
            last = captured
        assert 3 <= max(gaps) < 5
        source.close()


@pytest.mark.parametrize("kind", ["http", "rtsp"])
def test_a_camera_that_stays_stalled_is_opened_again(kind: str):
    events: list[Event] = []
    with opened(kind) as server:
        source = Camera(f"{kind}://user:secret@127.0.0.1:{server.port}/", stall_s=0.5, on_event=events.append)
        first = next(source)
        assert level(first) in range(10)
        server.stalled.set()
        threading.Timer(1.2, server.stalled.clear).start()
        begin = time.monotonic()
        again = next(source)
        while again.captured < begin + 1.0:
            again = next(source)
        assert time.monotonic() - begin < 5
        assert again.index > first.index
        assert server.connections >= 2
        assert [e.kind for e in events] == ["camera_lost", "camera_back"]
        # FFmpeg's own time-out may be a moment earlier
        assert events[0].text.startswith(f"{kind}://127.0.0.1:{server.port}/: ")
        assert events[0].text.endswith("; it is opened again until it works")
        assert "secret" not in events[0].text
        assert isinstance(events[1].fields["away_s"], float)
        source.close()


@pytest.mark.slow
def test_a_camera_that_vanishes_and_is_not_there_at_first():
    events: list[Event] = []
    with opened("http") as server:
        server.refusing = True
        source = Camera(f"http://127.0.0.1:{server.port}/", on_event=events.append)
        threading.Timer(0.8, setattr, (server, "refusing", False)).start()
        next(source)
        assert [e.kind for e in events] == ["camera_lost", "camera_back"]
        assert server.connections >= 3  # 0, 0.25, 0.75 s
        server.refusing = True
        server.cut()
        threading.Timer(0.8, setattr, (server, "refusing", False)).start()
        begin = time.monotonic()
        while len(events) < 4:
            next(source)
        assert time.monotonic() - begin < 5
        assert events[2].fields["reason"] in ("the stream ended", "input/output error", "end of file")
        source.close()


def test_close_ends_a_wait_for_a_camera():
    with opened("http") as server:
        server.stalled.set()
        source = Camera(f"http://127.0.0.1:{server.port}/", stall_s=20, open_s=20)
        threading.Timer(0.2, source.close).start()
        begin = time.monotonic()
        assert list(source) == []
        assert time.monotonic() - begin < 2


def test_a_device_that_is_not_there():
    events: list[Event] = []
    source = Camera("/dev/video99", on_event=events.append)
    threading.Timer(0.3, source.close).start()
    assert list(source) == []
    assert events[0].kind == "camera_lost"
    assert "no such file or directory" in events[0].text


def test_wrong_options():
    with pytest.raises(UsageError, match="must be more than 0, got 0 and 3"):
        Camera("rtsp://h/", stall_s=0)
