"""A capture is bounded, keeps the newest and the strangest, and goes on after a restart."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_profiles import maps_of
from PIL import Image
from runtime_helpers import make_pair
from typer.testing import CliRunner

from splitwire.cli import app
from splitwire.codec.errors import DeviceError, UsageError
from splitwire.runtime_edge.control import Capture


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)


def size_of_one() -> int:
    data = io.BytesIO()
    Image.fromarray(PIXELS).save(data, "PNG")
    return len(data.getvalue())


def test_pictures_are_png_files_with_their_pixels(tmp_path: Path):
    capture = Capture(tmp_path / "sample", max_bytes=10_000_000)
    paths = [capture.picture(PIXELS, 0.5), capture.picture(Image.fromarray(PIXELS[:, :, 0]), 1.25)]
    (tmp_path / "a.jpg").write_bytes(b"the bytes of a picture")
    paths.append(capture.picture(tmp_path / "a.jpg"))
    assert all(path is not None and path.is_file() for path in paths)
    first, gray, copied = (path for path in paths if path is not None)
    assert (np.asarray(Image.open(first)) == PIXELS).all()
    assert (np.asarray(Image.open(gray)) == PIXELS[:, :, 0]).all()
    assert copied.suffix == ".jpg"
    assert copied.read_bytes() == b"the bytes of a picture"
    assert [k.score for k in capture.kept] == [0.5, 1.25, 0]
    assert {p.name for p in (tmp_path / "sample").iterdir()} == {k.path.name for k in capture.kept}


def test_features_come_back(tmp_path: Path):
    capture = Capture(tmp_path, max_bytes=1_000_000)
    tensors = [maps_of(np.random.default_rng(0), 1), np.ones((1, 3), np.float32)]
    path = capture.features(tensors, 0.1)
    assert path is not None
    with np.load(path, allow_pickle=False) as archive:
        assert sorted(archive) == ["0", "1"]
        assert (archive["0"] == tensors[0]).all()
        assert (archive["1"] == tensors[1]).all()
    with pytest.raises(UsageError, match="one image at a time"):
        capture.features([np.ones((2, 3), np.float32)])


def test_newest_and_strangest_stay_within_the_bytes(tmp_path: Path):
    one = size_of_one()
    capture = Capture(tmp_path, max_bytes=10 * one, clock=Clock())
    scores = [0.1] * 5 + [9.0, 8.0, 7.0] + [0.2] * 22
    for score in scores:
        assert capture.picture(PIXELS, score) is not None
        assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= capture.max_bytes
    kept = capture.kept
    assert len(kept) == 10
    assert capture.total_bytes == 10 * one
    assert {k.score for k in kept} >= {9.0, 8.0, 7.0}
    numbers = [int(k.path.stem.split("-")[2]) for k in kept]
    assert numbers[-5:] == [26, 27, 28, 29, 30]
    assert {6, 7, 8} <= set(numbers)


def test_a_restart_goes_on(tmp_path: Path):
    one = size_of_one()
    clock = Clock()
    before = Capture(tmp_path, max_bytes=6 * one, clock=clock)
    for score in (5.0, *[0.1] * 8):
        before.picture(PIXELS, score)
    (tmp_path / "notes.txt").write_text("of the user")
    unfinished = tmp_path / ".000001000000000-0.000-000001.png.0123456789abcdef.tmp"
    unfinished.write_bytes(b"half")
    after = Capture(tmp_path, max_bytes=6 * one, clock=clock)
    assert after.kept == before.kept
    assert not unfinished.exists()
    after.picture(PIXELS, 0.1)
    assert {k.score for k in after.kept} == {5.0, 0.1}
    assert len({k.path for k in after.kept}) == 6
    assert (tmp_path / "notes.txt").exists()
    smaller = Capture(tmp_path, max_bytes=2 * one, clock=clock)
    assert smaller.total_bytes <= 2 * one
    assert 5.0 in {k.score for k in smaller.kept}


def test_a_time_between_files_which_the_strangest_do_not_wait_for(tmp_path: Path):
    clock = Clock()  # a second per look
    capture = Capture(tmp_path, max_bytes=1_000_000, every_s=60, clock=clock)
    kept = [capture.picture(PIXELS, score) is not None for score in (0.5, 0.4, 0.5, 0.6, 0.6)]
    assert kept == [True, False, False, True, False]
    clock.now += 60
    assert capture.picture(PIXELS, 0.0) is not None


def test_what_cannot_be_kept(tmp_path: Path):
    capture = Capture(tmp_path, max_bytes=10)
    assert capture.picture(PIXELS) is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="expected a picture"):
        capture.picture(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="there is no such file"):
        capture.picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="float64 of shape"):
        capture.picture(np.zeros((4, 4)))
    with pytest.raises(UsageError, match="size in bytes"):
        Capture(tmp_path, max_bytes=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="cannot be used for a capture"):
        Capture(tmp_path / "file", max_bytes=10)


# ------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny pair that takes 8×8 pictures."""
    return make_pair(tmp_path_factory.mktemp("pair")).front


def command(*arguments: str | Path) -> dict[str, Any]:
    run = CliRunner().invoke(app, ["edge", "capture", *map(str, arguments), "--json"])
    assert run.exit_code == 0, run.output
    document: dict[str, Any] = json.loads(run.stdout)
    return document


def test_the_command_takes_pictures_and_their_features(front: Path, tmp_path: Path):
    for i in range(5):
        Image.fromarray(np.roll(PIXELS, i, axis=0)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    first = command(tmp_path, "--front", front, "--out", tmp_path / "sample")
    assert (len(first["files"]), first["skipped"]) == (5, 1)
    assert [Path(f["path"]).read_bytes() for f in first["files"]] == [
        (tmp_path / f"{i}.png").read_bytes() for i in range(5)
    ]
    two = ["--what", "features", "--images", "2"]
    features = command(tmp_path / "0.png", tmp_path / "1.png", tmp_path / "2.png", "--front", front, "--out",
                       tmp_path / "features", *two)  # fmt: skip
    assert [Path(f["path"]).suffix for f in features["files"]] == [".npz"] * 2
    once = command(tmp_path / "sample", "--front", front, "--out", tmp_path / "once", "--every", "1h")
    assert len(once["files"]) == 1


def test_what_the_command_refuses(front: Path, tmp_path: Path):
    def said(*arguments: str) -> str:
        options = ["--front", str(front), "--out", str(tmp_path / "sample")]
        run = CliRunner().invoke(app, ["edge", "capture", *arguments, *options])
        assert isinstance(run.exception, UsageError), run.output
        return str(run.exception)

    assert said("x.png", "--what", "words").startswith("--what takes pictures or features")
    assert said("x.png", "--max-bytes", "many").startswith("--max-bytes takes a size")
    assert said("x.png", "rtsp://camera/1").startswith("rtsp://camera/1: a video, a camera or stdin is captured alone")
    assert said("x.png") == "none of the 1 files can be read as a picture"
