"""`splitwire edge run --json` ends with a summary, whatever ends it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from runtime_helpers import Pair, canned, http_answer

from splitwire.codec.errors import TransportError, UsageError
from splitwire.commands.edge.command import run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two pictures, one in a folder; a damaged one, and a text file."""
    (tmp_path / "sub").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/c.png"):
        Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "damaged.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


@pytest.mark.parametrize("case", ["none is a picture", "the server is away", "the credentials are refused", "Ctrl-C"])
def test_json_ends_with_a_summary_where_nothing_was_done(
    pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
):
    """One line whatever ends the run; a pipeline reads it as the last."""
    kind: type[Exception]
    asked, kind, stopped = [pictures / "a.png", pictures / "sub"], TransportError, "refused|is `splitwire cloud serve`"
    url = "http://127.0.0.1:1"
    if case == "none is a picture":
        asked, kind, stopped = [pictures / "notes.txt", pictures / "damaged.png"], UsageError, "None"
    if case == "Ctrl-C":

        def interrupt(_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("splitwire.runtime_edge.session.EdgeSession.warm_up", interrupt)
        kind, stopped = typer.Exit, "interrupted"
    away = case != "the credentials are refused"
    with canned(http_answer(401, b"", "text/plain")) as server, pytest.raises(kind):
        run(asked, front=pair.front, url=url if away else server.url, wait="0", as_json=True)
    *skipped, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [list(line) for line in skipped] == ([["skipped", "reason"]] * 2 if case == "none is a picture" else [])
    done = last["summary"]
    assert (done["images"], done["skipped"] + done["remaining"], done["op"]) == (0, 2, "n4")
    assert re.search(stopped, str(done["stopped"]))
    assert "frame_bytes" not in done
