"""Sources of pictures: files, watched folders, standard input, pace. Videos and cameras: test_cameras.py."""

from __future__ import annotations

import io
import itertools
import os
import threading
import time
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image
from stream_helpers import Clocked, array

from splitwire.codec.errors import UsageError
from splitwire.runtime_edge.sources import Captured, Items, Paced, Pictures, Pipe, WatchedFolder, open_source
from splitwire.runtime_edge.sources.video import shown


def pixels(value: int, size: tuple[int, int] = (6, 5)) -> np.ndarray:
    return np.full((size[1], size[0], 3), value, np.uint8)


def save(path: Path, value: int = 0) -> Path:
    Image.fromarray(pixels(value)).save(path)
    return path


def test_pictures_of_a_folder(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.JPG", "sub/c.png", "notes.txt"):
        Image.fromarray(pixels(1)).save(tmp_path / name, "PNG")
    before = time.monotonic()
    found = list(open_source(tmp_path))
    assert [Path(c.name).name for c in found] == ["a.JPG", "b.png", "c.png"]
    assert [c.index for c in found] == [0, 1, 2]
    assert all(before <= c.captured <= time.monotonic() and c.image == Path(c.name) for c in found)
    source = Pictures([tmp_path])
    next(source)
    source.close()
    assert list(source) == []
    with pytest.raises(UsageError, match=r"no pictures in .*empty; expected \.bmp"):
        (tmp_path / "empty").mkdir()
        Pictures([tmp_path / "empty"])


def test_a_watched_folder_gives_files_when_they_are_complete(tmp_path: Path):
    save(tmp_path / "old.png")
    source = WatchedFolder(tmp_path, poll_s=0.05)
    data = io.BytesIO()
    Image.fromarray(pixels(7)).save(data, "PNG")
    half = len(data.getvalue()) // 2

    def write() -> None:
        with (tmp_path / "slow.png").open("wb", buffering=0) as f:
            for byte in data.getvalue()[:half]:  # grows between any two looks
                f.write(bytes([byte]))
                time.sleep(0.005)
            f.write(data.getvalue()[half:])
        save(tmp_path / ".hidden.png")
        (tmp_path / "later").mkdir()
        Image.fromarray(pixels(8)).save(tmp_path / "part.tmp", "PNG")
        (tmp_path / "part.tmp").rename(tmp_path / "later" / "renamed.png")

    writer = threading.Thread(target=write)
    writer.start()
    for name, value in (("slow.png", 7), ("renamed.png", 8)):
        captured = next(source)
        assert Path(captured.name).name == name
        assert isinstance(captured.image, Path)
        assert np.asarray(Image.open(captured.image))[0, 0, 0] == value
    writer.join()
    time.sleep(0.01)  # another time of change
    save(tmp_path / "old.png", 9)  # overwritten: given again
    assert Path(next(source).name).name == "old.png"
    threading.Timer(0.1, source.close).start()
    assert list(source) == []


def test_a_watched_folder_in_order_of_time(tmp_path: Path):
    for i, name in enumerate(["c", "a", "b"]):
        os.utime(save(tmp_path / f"{name}.png"), (1000 + i, 1000 + i))
    source = WatchedFolder(tmp_path, existing=True, poll_s=0.01, remembered=3)
    assert [Path(next(source).name).stem for _ in range(3)] == ["c", "a", "b"]
    assert not WatchedFolder(tmp_path)._finished()
    with pytest.raises(UsageError, match="no such folder to watch"):
        WatchedFolder(tmp_path / "none")


def test_items_keep_their_own_captured():
    mine = Captured(image=array(), captured=1.0, wall=2.0, name="mine", index=7)
    first, second = Items([mine, "a.png"])
    assert first is mine
    assert (second.name, second.image) == ("a.png", Path("a.png"))


def test_items_close_their_generator():
    ended = []

    def endless():
        try:
            yield from itertools.repeat(array())
        finally:
            ended.append(True)

    source = Items(endless())
    next(source)
    source.close()
    assert ended == [True]
    assert list(source) == []


def test_a_stored_source_is_slowed_down():
    source = Paced(Items(array() for _ in range(5)), 50)
    begin = time.monotonic()
    times = [c.captured for c in source]
    assert time.monotonic() - begin >= 4 / 50
    assert all(taken - begin >= i / 50 - 0.001 for i, taken in enumerate(times))
    source = Paced(Items(array() for _ in range(5)), 0.01)
    next(source)
    threading.Timer(0.05, source.close).start()
    assert list(source) == []


@pytest.mark.parametrize(("fps", "least", "most"), [(50, 9, 11), (30, 6, 8), (500, 20, 20)])
def test_of_a_live_source_pictures_are_left_out(fps: float, least: int, most: int):
    """20 pictures in 0.2 s."""
    source = Clocked(20, 0.01)
    assert least <= len(list(Paced(source, fps))) <= most


# ------------------------------------------------------------------ standard input


def encoded(form: str, value: int, **options: object) -> bytes:
    data = io.BytesIO()
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(data, form, **options)
    return data.getvalue()


def with_thumbnail() -> bytes:
    """A JPEG file with another one in an APP1 segment."""
    inner, outer = encoded("JPEG", 1), encoded("JPEG", 2)
    return outer[:2] + b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner + outer[2:]


FILES = [
    encoded("JPEG", 3), encoded("PNG", 4), with_thumbnail(), encoded("JPEG", 5, progressive=True),
    encoded("JPEG", 6, restart_marker_blocks=1), encoded("PNG", 7),
]  # fmt: skip


@pytest.mark.parametrize("real", [False, True])
def test_files_one_behind_the_other(real: bool):
    joined = b"".join(FILES)
    stream: IO[bytes] = io.BytesIO(joined)
    if real:
        reading, writing = os.pipe()

        def write() -> None:
            with os.fdopen(writing, "wb") as f:
                f.write(joined)

        threading.Thread(target=write).start()
        stream = os.fdopen(reading, "rb")
    with stream:
        found = list(Pipe(stream))
    assert [c.index for c in found] == list(range(6))
    for captured, data in zip(found, FILES, strict=True):
        np.testing.assert_array_equal(np.asarray(captured.image), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(("form", "shape"), [("rgb24", (4, 3, 3)), ("bgr24", (4, 3, 3)), ("gray", (4, 3))])
def test_raw_frames(form: str, shape: tuple[int, ...]):
    frames = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    head = f"splitwire-raw 3 4 {form}\n".encode()
    found = [c.image for c in Pipe(io.BytesIO(head + frames.tobytes()))]
    expected = frames[..., ::-1] if form == "bgr24" else frames
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in found]), expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GIF89a", "picture 0 is neither JPEG nor PNG"),
        (FILES[0] + b"junk", "picture 1 is neither JPEG nor PNG"),
        (FILES[0][:-2], "the stream ends in picture 0"),
        (FILES[0][:-700], "the stream ends in picture 0"),
        (FILES[0][:30], "the stream ends in picture 0"),
        (FILES[1][:-3], "the stream ends in picture 0"),
        (b"\xff\xd8\xff\xe0\x00\x01", "picture 0 is damaged"),
        (b"\xff\xd8\xff\xe0\x00\x02abcd", "no JPEG marker at byte"),
        (FILES[1][:8] + b"\xff\xff\xff\xffIDAT", "picture 0 is damaged or has more than"),
        (b"splitwire-raw 3 4 yuv\n", "is no header of raw frames; expected b'splitwire-raw WIDTH HEIGHT FORMAT"),
        (b"splitwire-raw 0 4 gray\n", "is no header of raw frames"),
        (b"splitwire-raw 99999 99999 gray\n", "is no header of raw frames"),
        (b"splitwire-raw " + b"9" * 300, "is no header of raw frames"),
        (b"splitwire-raw 3 4 gray\n" + bytes(13), "the stream ends in frame 1"),
    ],
)
def test_damaged_streams(data: bytes, message: str):
    with pytest.raises(UsageError, match=message):
        list(Pipe(io.BytesIO(data)))


def test_a_read_that_waits_is_ended_by_close():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb"):
        source = Pipe(stream)
        threading.Timer(0.05, source.close).start()
        begin = time.monotonic()
        assert list(source) == []
        assert time.monotonic() - begin < 2


# ------------------------------------------------------------------ what a text means


def test_what_a_text_means(tmp_path: Path):
    assert isinstance(open_source(tmp_path, watch=True), WatchedFolder)
    assert isinstance(open_source(save(tmp_path / "a.png")), Pictures)
    assert isinstance(open_source(str(tmp_path), fps=3), Paced)
    with pytest.raises(UsageError, match="no such kind of source; a camera's address begins with rtsp://"):
        open_source("ftp://x/y")
    with pytest.raises(UsageError, match="no such video"):
        open_source(tmp_path / "none.mp4")
    with pytest.raises(UsageError, match="must be more than 0, got 0"):
        open_source(tmp_path, fps=0)


def test_an_address_is_shown_without_credentials():
    assert shown("rtsp://user:secret@10.0.0.7:554/main?x=1") == "rtsp://10.0.0.7:554/main?x=1"
    assert shown("rtsp://10.0.0.7/main") == "rtsp://10.0.0.7/main"
