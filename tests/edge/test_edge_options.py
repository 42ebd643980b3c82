"""The options of `splitwire edge run` for the link and the processor: token, certificates, time-outs, providers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runtime_helpers import Pair, canned, good_answer, serving

from splitwire.codec.errors import ConnectTimeout, DeviceError, RequestTimeout, UsageError
from splitwire.commands.edge.command import run
from splitwire.commands.edge.link import find_token, full_names
from splitwire.commands.options import seconds


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with one picture, a.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.zeros((16, 20, 3), np.uint8)).save(folder / "a.png")
    return folder


def test_the_token(
    pair: Pair, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "token"
    file.write_text("of-the-file\n")
    monkeypatch.setenv("SPLITWIRE_TOKEN", "of-the-environment")
    for options, token in (
        ({}, "of-the-environment"),
        ({"token": "said"}, "said"),
        ({"token_file": file}, "of-the-file"),
    ):
        with canned(good_answer()) as server:
            run([pictures / "a.png"], front=pair.front, url=server.url, **options)
            assert f"Authorization: Bearer {token}\r\n".encode() in server.heads[0]
        said = capsys.readouterr()
        assert token not in said.out + said.err
    monkeypatch.delenv("SPLITWIRE_TOKEN")
    assert find_token(None, None, "SPLITWIRE_TOKEN") is None
    with pytest.raises(UsageError, match="two ways to say one thing"):
        find_token("a", file, "SPLITWIRE_TOKEN")
    with pytest.raises(UsageError, match="none: no token can be read: no such file or directory"):
        find_token(None, tmp_path / "none", "SPLITWIRE_TOKEN")
    file.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="a token is printable ASCII"):
        find_token(None, file, "SPLITWIRE_TOKEN")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ca": Path("none.pem")}, UsageError, "--ca goes with an https:// or streams:// address; got http://"),
        ({"ca": Path("none.pem"), "url": "https://127.0.0.1:1"}, UsageError, r"--ca none\.pem: no certificates in PEM"),
        ({"ca": Path(__file__), "url": "https://127.0.0.1:1"}, UsageError, r"\.py: no certificates in PEM"),
        ({"url": "stream://127.0.0.1:1", "lean": True}, UsageError, "--lean goes with an http:// address"),
        ({"url": "stream://127.0.0.1:1", "ca": Path("x")}, UsageError, "--ca goes with an https:// or streams://"),
        ({"url": "streams://127.0.0.1:1", "ca": Path("none.pem")}, UsageError, r"--ca none\.pem: no certificates"),
        ({"url": "stream://127.0.0.1:1"}, ConnectTimeout, "connection refused after 3 tries"),
        ({"provider": ["Abacus"]}, DeviceError, "execution provider 'Abacus' is not here; this ONNX Runtime has"),
        ({"threads": 100_000}, UsageError, r"threads must be from 1 to \d+, is 100000; this machine has \d+ cores"),
        ({"threads": 0}, UsageError, "threads must be from 1 to"),
        ({"wait": "soon"}, UsageError, "--wait takes a time, as in 60s, 500ms or 2min; got 'soon'"),
        ({"timeout": "0"}, UsageError, "--timeout must be more than 0"),
        ({"timeout": "-1s"}, UsageError, "--timeout takes a time"),
        ({"token": "a b"}, UsageError, "printable ASCII"),
    ],
)
def test_options_that_cannot_be(
    options: dict[str, Any], error: type[Exception], message: str, pair: Pair, pictures: Path
):
    defaults: dict[str, Any] = {"front": pair.front, "url": "http://127.0.0.1:1", "wait": "0"}
    with pytest.raises(error, match=message):
        run([pictures], **defaults | options)


def test_times_and_providers():
    assert [seconds("--wait", t) for t in ("60s", "500ms", "2min", "1h", "7", "1.5s")] == [60, 0.5, 120, 3600, 7, 1.5]
    assert full_names(None) is None
    assert full_names(["cpu", "CPUExecutionProvider", "X"]) == ["CPUExecutionProvider", "CPUExecutionProvider", "X"]


def test_a_stream(pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str]):
    with serving(pair) as server:
        url = server.url.replace("http", "stream")
        run([pictures / "a.png"], front=pair.front, url=url, repeat=2, as_json=True)
    picture, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert picture["bytes_sent"] == picture["frame_bytes"] + 2
    assert summary["summary"]["images"] == 1


def test_the_time_out_is_kept(pair: Pair, pictures: Path):
    with canned(5.0) as server:
        start = time.monotonic()
        with pytest.raises(RequestTimeout, match="did not answer in time"):
            run([pictures / "a.png"], front=pair.front, url=server.url, timeout="200ms", wait="0")
        assert time.monotonic() - start < 4
