"""`splitwire edge run` against servers: what it prints as it goes, keeps, waits for and refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runtime_helpers import Pair, Served, canned, good_answer, good_answer_to, http_answer, make_pair, serving

from splitwire import console, heartbeat
from splitwire.codec.errors import (
    AuthRefused,
    ConnectTimeout,
    DeviceError,
    TransportError,
    UsageError,
)
from splitwire.commands.edge import running as edge_run
from splitwire.commands.edge.command import run

COMMAND = [sys.executable, "-m", "splitwire"]


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Served]:
    with serving(pair) as running:
        yield running


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures (one in a folder, one with a name that looks like markup), a damaged one, and a text file."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "[bold]b.jpg", "sub/c.PNG"):
        Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(folder / name)
    (folder / "damaged.png").write_bytes((folder / "a.png").read_bytes()[:50])
    (folder / "notes.txt").write_text("not a picture")
    return folder


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines(served: Served, pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str]):
    run([pictures], front=pair.front, url=served.url, op="n2", top=2, repeat=3, as_json=True)
    said = capsys.readouterr()
    *rows, last = lines(said.out)
    skipped = [row for row in rows if "skipped" in row]
    rows = [row for row in rows if "image" in row]
    assert [Path(row["image"]).name for row in rows] == ["[bold]b.jpg", "a.png", "c.PNG"]
    for row in rows:
        assert (row["op"], row["task"]) == ("n2", "classification")
        assert [c["label"] for c in row["classes"]] == [f"label {c['index']}" for c in row["classes"]]
        assert row["classes"][0]["probability"] >= row["classes"][1]["probability"] > 0
        assert len(row["classes"]) == 2
        assert row["bytes_sent"] > row["frame_bytes"] > 0
        assert row["bits_per_element"] == 8 * row["frame_bytes"] / 256
        assert set(row["ms"]) == {"front", "encode", "network", "decode", "back", "total"}
        assert all(ms > 0 for ms in row["ms"].values())
        assert "saved" not in row
    (broken,) = skipped
    assert broken["skipped"].endswith("damaged.png")
    assert "damaged.png" in broken["reason"]
    assert said.err == f"skipped: {broken['reason']}\n"
    summary = last["summary"]
    assert (summary["images"], summary["skipped"], summary["remaining"], summary["op"]) == (3, 1, 0, "n2")
    assert summary["stopped"] is None
    for figure in ("frame_bytes", "bytes_sent"):
        assert summary[figure] == pytest.approx(sum(row[figure] for row in rows) / 3)


@pytest.mark.parametrize("width", [100, 80, 60, 40, 24])
def test_lines_fit(
    width: int,
    served: Served,
    pair: Pair,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(console.out, "width", width)
    run([pictures / "a.png", pictures / "[bold]b.jpg"], front=pair.front, url=served.url)
    said = capsys.readouterr()
    assert said.err == ""
    assert max(map(len, said.out.splitlines())) <= width
    words = " ".join(said.out.split())
    assert re.search(r"a\.png \d+ bytes \d+ sent [\d.]+ ms label \d [\d.]+%, label \d [\d.]+%, label \d [\d.]+%", words)
    assert "[bold]b.jpg" in words
    assert "2 of 2 pictures done at operating point n4 per picture: " in words
    assert re.search(r"per picture: \d+ bytes, [\d.]+ bits per element; \d+ sent \(with HTTP head\)", words)
    assert re.search(r"median: [\d.]+ ms; front [\d.]+ on CPU, encode [\d.]+, network [\d.]+, decode", words)


def test_bytes_are_the_frame_and_sent_is_the_request(pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str]):
    """What the server's socket received, counted there."""
    with canned(good_answer()) as server:
        run([pictures / "a.png"], front=pair.front, url=server.url, as_json=True)
        row = lines(capsys.readouterr().out)[0]
        assert row["bytes_sent"] == server.received
        assert row["bytes_sent"] - row["frame_bytes"] == len(server.heads[0])
    with canned(good_answer()) as server:
        run([pictures / "a.png"], front=pair.front, url=server.url, lean=True)
        counts = re.search(r"(\d+) bytes  (\d+) sent", capsys.readouterr().out)
        assert counts is not None
        frame, sent = counts.groups()
        assert (int(frame), int(sent)) == (row["frame_bytes"], server.received)
        assert int(sent) < row["bytes_sent"] - 56


def test_outputs_without_a_task(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]):
    pair = make_pair(tmp_path / "pair", labels=False)
    with serving(pair) as served:
        run([pictures / "a.png"], front=pair.front, url=served.url)
        said = capsys.readouterr()
        assert re.search(r"^  logits \(1, 5\) float32: from -?[\d.]+ to [\d.]+$", said.out, re.MULTILINE)
        assert "note: the pair does not say what its outputs are; give --task classification, " in said.err
        run([pictures / "a.png"], front=pair.front, url=served.url, task="classification")
        said = capsys.readouterr()
        assert re.search(r"class \d [\d.]+%", said.out)
        assert said.err == ""
        with pytest.raises(UsageError, match="are not those of a detection; expected boxes, scores, labels"):
            run([pictures / "a.png"], front=pair.front, url=served.url, task="detection")


# ------------------------------------------------------------------ drawn pictures


def test_save(served: Served, pair: Pair, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (pictures / "sub" / "a.png").write_bytes((pictures / "a.png").read_bytes())
    Image.new("RGB", (20, 20)).save(pictures / "a.bmp")
    run([pictures], front=pair.front, url=served.url, save=tmp_path / "new" / "drawn", as_json=True)
    saved = {Path(row["image"]): Path(row["saved"]) for row in lines(capsys.readouterr().out) if "image" in row}
    names = {str(image.relative_to(pictures)): file.name for image, file in saved.items()}
    assert names == {
        "[bold]b.jpg": "[bold]b.jpg",
        "a.bmp": "a.png",
        "a.png": "a-2.png",
        "sub/a.png": "a-3.png",
        "sub/c.PNG": "c.PNG",
    }
    assert sorted(p.name for p in (tmp_path / "new" / "drawn").iterdir()) == sorted(names.values())
    formats, widths = {}, {}
    for source, file in saved.items():
        with Image.open(file) as drawn:
            formats[source.suffix], widths[source.name] = drawn.format, drawn.width
    assert formats == {".jpg": "JPEG", ".bmp": "PNG", ".png": "PNG", ".PNG": "PNG"}
    assert widths["a.png"] == 20 * 18  # enlarged, so that the caption can be read


@pytest.mark.parametrize(
    ("folder", "message"),
    [("pictures", "the pictures are there; name another folder"), ("pictures/a.png", "no such folder can be made: ")],
)
def test_save_never_overwrites_a_picture(folder: str, message: str, pair: Pair, pictures: Path, tmp_path: Path):
    before = {p: p.read_bytes() for p in pictures.rglob("*.*")}
    with pytest.raises(UsageError, match=message):
        run([pictures], front=pair.front, url="http://127.0.0.1:1", save=tmp_path / folder)
    assert {p: p.read_bytes() for p in pictures.rglob("*.*")} == before


def test_a_full_disk_is_one_line(
    served: Served,
    pair: Pair,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def full(path: Path, data: bytes) -> None:
        if path.name.startswith("c"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(edge_run, "write_atomically", full)
    with pytest.raises(DeviceError, match=r"c\.PNG cannot be written: no space left on device"):
        run([pictures], front=pair.front, url=served.url, save=tmp_path / "out", as_json=True)
    *_, last = lines(capsys.readouterr().out)
    assert (last["summary"]["images"], last["summary"]["remaining"]) == (2, 1)
    assert "no space left" in last["summary"]["stopped"]


# ------------------------------------------------------------------ interruptions


class Serving:
    """`splitwire cloud serve` as a process, on one port again and again."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as s:
            self.port = s.getsockname()[1]
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [*COMMAND, "cloud", "serve", str(self.folder), "--port", str(self.port), "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for i in range(200):
        Image.new("RGB", (16, 16), (i, 255 - i, 40)).save(folder / f"{i:03}.png")
    return folder


def edge_process(pair: Pair, url: str, pictures: Path, *options: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "edge", "run", str(pictures), "--front", str(pair.front), "--url", url, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_server_that_is_killed_costs_no_result(pair: Pair, many: Path):
    """200 pictures, a server that is not there at first, is killed in the middle and started again."""
    with Serving(pair.front.parent) as server:
        process = edge_process(pair, server.url, many, "--json", "--wait", "120s", "--repeat", "4")
        assert process.stdout is not None
        assert process.stderr is not None
        assert "waiting up to 120 s: " in process.stderr.readline()  # nobody listens yet
        server.start()
        got = [process.stdout.readline() for _ in range(60)]
        server.kill()
        assert process.stderr.readline() == "the server answers again; going on\n"
        assert re.match(r"waiting up to 120 s: 127\.0\.0\.1:\d+.*connection", process.stderr.readline())
        assert process.poll() is None
        server.start()
        rest, said = process.communicate(timeout=120)
    rows = lines("".join(got) + rest)
    assert process.returncode == 0
    assert [Path(row["image"]).name for row in rows[:-1]] == [f"{i:03}.png" for i in range(200)]
    assert (rows[-1]["summary"]["images"], rows[-1]["summary"]["remaining"]) == (200, 0)
    assert said == "the server answers again; going on\n"


def test_a_link_that_stays_down_keeps_what_was_done(pair: Pair, many: Path, capsys: pytest.CaptureFixture[str]):
    stop = http_answer(401, b"", "text/plain")
    with canned(*(good_answer(i) for i in range(5)), stop) as server, pytest.raises(AuthRefused):
        run([many], front=pair.front, url=server.url, as_json=True)
    rows = lines(capsys.readouterr().out)
    assert len(rows) == 6
    summary = rows[-1]["summary"]
    assert (summary["images"], summary["remaining"]) == (5, 195)
    assert "refused the credentials (status 401)" in summary["stopped"]

    with canned(*(good_answer(i) for i in range(3)), None) as server, pytest.raises(TransportError, match="closed the"):
        run([many], front=pair.front, url=server.url, wait="300ms")
    said = capsys.readouterr()
    assert "3 of 200 pictures done at operating point n4, 197 not reached" in said.out
    assert said.err.startswith("waiting up to 0.3 s: 127.0.0.1:")
    assert len(said.err.splitlines()) == 1


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_done(served: Served, pair: Pair, many: Path):
    process = edge_process(pair, served.url, many, "--json", "--repeat", "20")
    assert process.stdout is not None
    got = [process.stdout.readline() for _ in range(5)]
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=60)
    rows = lines("".join(got) + rest)
    summary = rows[-1]["summary"]
    assert process.returncode == 130
    assert summary["images"] == len(rows) - 1 >= 5
    assert summary["remaining"] == 200 - summary["images"]
    assert summary["stopped"] == "interrupted"
    assert said == f"interrupted; {summary['images']} of 200 pictures are done, and printed\n"


def test_results_come_while_the_rest_is_running(pair: Pair, pictures: Path):
    """The first picture is said before the second is answered."""
    with canned(good_answer_to, 3.0) as server:
        process = edge_process(pair, server.url, pictures, "--json", "--wait", "0")
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        alive = process.poll() is None
        process.kill()
        process.communicate()
    assert first["image"].endswith("[bold]b.jpg")
    assert alive


def test_a_server_that_warms_up_is_waited_for(pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str]):
    error = b'{"error": {"code": "server_busy", "message": "the models are still warming up"}}'
    busy = http_answer(503, error, "application/json")
    with canned(busy, busy, good_answer(2)) as server:  # each try is a frame of its own
        run([pictures / "a.png"], front=pair.front, url=server.url)
        assert server.requests == 3
    said = capsys.readouterr()
    assert re.fullmatch(
        r"waiting up to 60 s: 127\.0\.0\.1:\d+ is busy: the models are still warming up\n"
        r"the server answers again; going on\n",
        said.err,
    )
    assert "1 of 1 picture done" in said.out


def test_progress_says_that_the_server_is_waited_for(
    pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.02)
    with canned(None) as server, pytest.raises(TransportError):
        run([pictures / "a.png"], front=pair.front, url=server.url, wait="400ms")
    said = capsys.readouterr().err.splitlines()
    begins = next(i for i, line in enumerate(said) if line.startswith("waiting up to 0.4 s: 127.0.0.1:"))
    assert set(said[begins + 2 :]) == {"Waiting for the server: 0 s"}  # the line before may have been on its way


def test_an_answer_cut_short_is_waited_for(pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str]):
    with canned(
        good_answer()[:-10], http_answer(502, b"", "text/html"), good_answer(2), close_after_each=True
    ) as server:
        run([pictures / "a.png"], front=pair.front, url=server.url)
        assert server.requests == 3
    assert "1 of 1 picture done" in capsys.readouterr().out


# ------------------------------------------------------------------ pictures


def test_a_file_is_skipped_with_its_reason(
    served: Served, pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str]
):
    files = [pictures / "notes.txt", pictures / "none.png", pictures / "a.png"]
    run(files, front=pair.front, url=served.url)
    said = capsys.readouterr()
    assert f"skipped: {files[0]}: not an image file" in said.err
    assert f"skipped: {files[1]}: no such file" in said.err
    assert "1 of 3 pictures done at operating point n4, 2 skipped" in said.out


def test_all_unreadable(served: Served, pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UsageError, match="none of the 2 files can be read as a picture"):
        run([pictures / "notes.txt", pictures / "damaged.png"], front=pair.front, url=served.url)
    said = capsys.readouterr()
    assert said.err.count("skipped: ") == 2
    assert "0 of 2 pictures done at operating point n4, 2 skipped" in said.out


def test_what_is_wrong_is_said_before_the_server_is_asked(pair: Pair, pictures: Path, tmp_path: Path):
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"task": "poetry"}, r"a task is classification, detection, segmentation; got 'poetry'"),
        ({"token_file": tmp_path / "empty"}, r"--token-file .*empty: the file is empty"),
        ({"token_file": tmp_path / "binary"}, r"--token-file .*binary: a token is printable ASCII"),
        ({"front": pair.front.parent}, r"is a folder; name the file in it, front\.onnx"),
    ]
    for options, message in cases:
        with pytest.raises(UsageError, match=message):
            run([pictures], **{"front": pair.front, "url": "http://127.0.0.1:1", **options})
    with pytest.raises(UsageError, match=r"^the file cannot be read as a picture"):
        run([pictures / "notes.txt"], front=pair.front, url="http://127.0.0.1:1")


def test_nothing_to_run(pair: Pair, tmp_path: Path):
    with pytest.raises(UsageError, match="no pictures in"):
        run([tmp_path], front=pair.front, url="http://127.0.0.1:1")


def test_server_down_and_missing_front(pair: Pair, pictures: Path):
    with pytest.raises(ConnectTimeout, match="is `splitwire cloud serve` running there"):
        run([pictures], front=pair.front, url="http://127.0.0.1:1", wait="0")
    with pytest.raises(UsageError, match="no such file; make it with `splitwire export`"):
        run([pictures], front=pictures / "front.onnx", url="http://127.0.0.1:1")


def test_front_without_preprocessing(tmp_path: Path, pictures: Path):
    pair = make_pair(tmp_path / "pair", pictures=False)
    with pytest.raises(UsageError, match="exported without preprocessing"):
        run([pictures], front=pair.front, url="http://127.0.0.1:1")


def test_names_that_are_no_utf8(served: Served, pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str]):
    odd = Path(os.fsdecode(os.fsencode(pictures) + b"/caf\xe9\x1b.png"))
    odd.write_bytes((pictures / "a.png").read_bytes())
    run([odd], front=pair.front, url=served.url, as_json=True)
    assert os.fsencode(lines(capsys.readouterr().out)[0]["image"]) == os.fsencode(odd)
    run([odd], front=pair.front, url=served.url)
    assert "caf\\xe9?.png" in capsys.readouterr().out


def test_a_path_that_no_file_system_takes(pair: Pair):
    with pytest.raises(UsageError, match=r"(the file cannot be read|cannot be read: file name too long)"):
        run([Path("x" * 5000)], front=pair.front, url="http://127.0.0.1:1")
