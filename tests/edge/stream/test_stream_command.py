"""`splitwire edge run` on streams, and `splitwire edge calibrate-skip`."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runtime_helpers import Pair, Served, serving

from splitwire.codec.errors import TransportError, UsageError
from splitwire.commands.edge.command import run
from splitwire.commands.edge.skipping import calibrate_skip
from splitwire.commands.edge.streaming import Ages


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Served]:
    with serving(pair) as running:
        yield running


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Thirty: six different ones, each five times in a row."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        image = Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8))
        for k in range(5):
            image.save(folder / f"{i}{k}.png")
    return folder


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines(served: Served, pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str]):
    (pictures / "99.png").write_bytes(b"broken")
    run([pictures], front=pair.front, url=served.url, policy="block", in_flight=2, as_json=True)
    *rows, last = lines(capsys.readouterr().out)
    assert [row["index"] for row in rows] == list(range(31))
    for row in rows[:-1]:
        assert (row["status"], row["task"], row["op"]) == ("answered", "classification", "n4")
        assert row["bytes_sent"] > row["frame_bytes"] > 0
        assert row["answer_age_ms"] == row["age_ms"] > 0
    assert (rows[-1]["status"], rows[-1]["error"]["code"]) == ("failed", "usage")
    summary = last["summary"]
    assert (summary["captured"], summary["answered"], summary["failed"], summary["dropped"]) == (31, 30, 1, 0)
    assert summary["in_flight"] <= 2
    assert summary["bytes_sent"] == sum(row.get("bytes_sent", 0) for row in rows)
    assert 0 < summary["age_ms"]["median"] <= summary["age_ms"]["p99"]
    assert (summary["policy"], summary["stopped"]) == ("block", None)


def test_lines(served: Served, pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str]):
    run([pictures / "00.png", pictures / "10.png"], front=pair.front, url=served.url, fps=100)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("0  00.png  answered  ")
    assert " bytes  age " in said[0]
    assert "label" in said[0]
    assert said[2] == ""
    assert said[3].startswith("2 answered; ")
    assert " frames/s; age " in said[3]
    assert "at most 1 frames in flight" in said[4] or "frames in flight, round trip" in said[4]


def test_standard_input(
    served: Served, pair: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    frames = np.random.default_rng(1).integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)

    class Stdin:
        buffer = io.BytesIO(b"splitwire-raw 10 12 rgb24\n" + frames.tobytes())

    monkeypatch.setattr(sys, "stdin", Stdin())
    run(["-"], front=pair.front, url=served.url, as_json=True)
    *rows, _ = lines(capsys.readouterr().out)
    assert [(row["image"], row["status"]) for row in rows] == [("stdin", "answered")] * 5


def test_calibrated_skip(
    served: Served, pair: Pair, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    target = tmp_path / "skip.json"
    options: dict[str, Any] = {"front": pair.front, "url": served.url}
    calibrate_skip(str(pictures), **options, to=target, max_changed=0.1, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["frames"], found["op"]) == (30, "n4")
    assert found["chosen"]["skipped"] >= 20
    calibrate_skip(str(pictures), **options, to=target, max_changed=0.1)
    assert "30 frames: 3.3% would be sent, and 0.00% of the others had another answer" in capsys.readouterr().out
    run([pictures], **options, skip_unchanged=True, skip_table=target, max_changed=0.1, as_json=True)
    *rows, last = lines(capsys.readouterr().out)
    statuses = [row["status"] for row in rows]
    assert statuses.count("repeated") >= 20
    assert statuses[0] == "answered"
    assert all("classes" in row and "bytes_sent" not in row for row in rows if row["status"] == "repeated")
    assert last["summary"]["repeated"] == statuses.count("repeated")
    with pytest.raises(UsageError, match="no threshold is proved"):
        run([pictures], **options, skip_unchanged=True, skip_table=target, max_changed=0.0001)


def test_gate(
    served: Served, pair: Pair, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    (tmp_path / "my_gate.py").write_text("def every_tenth(look):\n    return look.captured.index % 10 == 0\n")
    monkeypatch.chdir(tmp_path)
    run([pictures], front=pair.front, url=served.url, gate="my_gate:every_tenth", as_json=True)
    *_, last = lines(capsys.readouterr().out)
    assert (last["summary"]["answered"], last["summary"]["repeated"]) == (3, 27)
    with pytest.raises(UsageError, match=r"--gate my_gate:none: .*expected module:function"):
        run([pictures], front=pair.front, url=served.url, gate="my_gate:none")


@pytest.mark.parametrize(
    ("places", "options", "message"),
    [
        (["rtsp://a/", "rtsp://b/"], {}, "is the only source of a run; give one"),
        (["none.mp4"], {}, "none.mp4: no such video"),
        (["."], {"policy": "newest"}, "--policy is block, drop-oldest, drop-newest; got 'newest'"),
        (["."], {"fps": 0.0}, "--fps must be more than 0"),
        (["."], {"fps": 5.0, "repeat": 2}, "--save and --repeat are for pictures"),
        (["."], {"skip_unchanged": True}, r"front\.skip\.json: not there; `splitwire edge calibrate-skip` makes it"),
        (["."], {"skip_table": Path("x")}, "--skip-table goes with --skip-unchanged"),
        (["."], {"skip_unchanged": True, "max_changed": 1.5}, "--max-changed is a share between 0 and 1"),
        (["x.png"], {"watch": True}, "no such folder to watch"),
    ],
)
def test_wrong_use(
    places: list[str], options: dict[str, Any], message: str, pair: Pair, pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(pictures)
    with pytest.raises(UsageError, match=message):
        run(places, front=pair.front, url="http://127.0.0.1:1", **options)


def test_a_server_that_is_away_ends_the_run(pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:1"):
        run([pictures], front=pair.front, url="http://127.0.0.1:1", policy="block", wait="300ms", as_json=True)
    *_, last = lines(capsys.readouterr().out)
    assert "127.0.0.1:1" in last["summary"]["stopped"]


def test_ages():
    ages = Ages()
    assert ages.quantile(0.5) is None
    values = np.random.default_rng(0).lognormal(3, 1, 2000)
    for value in values:
        ages.add(float(value))
    for q in (0.5, 0.99):
        exact = float(np.quantile(values, q))
        found = ages.quantile(q)
        assert found is not None
        assert exact * 0.97 < found < exact * 1.06
