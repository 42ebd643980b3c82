"""The back half on this device answers while the server is away."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from runtime_helpers import Pair, images, serving

from splitwire.codec.errors import CircuitOpen, Corrupt, RequestTimeout, SplitwireError, UsageError
from splitwire.commands.edge.serve import open_fallback
from splitwire.runtime_edge.service.config import EdgeConfig, load_config
from splitwire.runtime_edge.service.parts import Problems, prepare
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.spool import Spool
from splitwire.runtime_edge.transport import HttpTransport, Key, LoopbackTransport, Reply


class Shaky:
    """A transport to a handler; the errors come in place of the answers to the frames of these numbers."""

    def __init__(self, pair: Pair, errors: dict[int, SplitwireError]) -> None:
        self._inner, self._errors, self._numbers = open_fallback(str(pair.back)), errors, count()

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        if error := self._errors.get(next(self._numbers)):
            raise error
        return self._inner.send(frame)

    def close(self) -> None: ...


def test_what_waits_for_the_server_is_answered_here(pair: Pair, tmp_path: Path):
    """Nothing is sent or spooled then. What the server refuses is no matter of the link, and is not computed here."""
    errors = {1: RequestTimeout("away"), 2: CircuitOpen("open", retry_after=1.0), 4: Corrupt("damaged")}
    pictures = [images(seed=i) for i in range(5)]
    with (
        Spool(tmp_path / "spool.db") as spool,
        EdgeSession(pair.front, transport=Shaky(pair, errors)) as session,
        EdgeSession(pair.front, transport=open_fallback(str(pair.back))) as plain,
    ):
        found = list(session.stream(iter(pictures), spool=spool, in_flight=1, fallback=open_fallback(str(pair.back))))
        assert [r.status for r in found] == ["answered"] * 4 + ["spooled"]
        assert spool.stats().frames == 1
        for result, picture in zip(found[:4], pictures, strict=False):
            assert result.result is not None
            expected = plain.infer(picture).outputs
            assert all(np.array_equal(result.result.outputs[name], y) for name, y in expected.items())
    assert [r.result.where for r in found if r.result] == ["cloud", "device", "device", "cloud"]
    assert [r.result.bytes_sent > 0 for r in found if r.result] == [True, False, False, True]
    assert [r.key is None for r in found] == [False, True, True, False, False]


def test_a_real_server_that_ends(pair: Pair):
    fallback = open_fallback(str(pair.back))
    where = []
    with serving(pair) as server:
        session = EdgeSession(pair.front, transport=HttpTransport(server.url, retries=0))
        where += [r.result.where for r in session.stream(iter([images()]), fallback=fallback) if r.result]
    where += [r.result.where for r in session.stream(iter([images()] * 3), fallback=fallback) if r.result]
    session.close()
    assert where == ["cloud", "device", "device", "device"]


def config(pair: Pair, back: str, tmp_path: Path) -> EdgeConfig:
    file = tmp_path / "edge.toml"
    file.write_text(
        f"""
[model]
front = {str(pair.front)!r}
back = {back!r}
[server]
url = "http://127.0.0.1:1"
[source]
uri = {str(tmp_path)!r}
watch = true
""",
        encoding="utf-8",
    )
    return load_config(file, {})


def test_a_service_opens_it(pair: Pair, tmp_path: Path):
    made = prepare(config(pair, str(pair.back), tmp_path), lambda event: None, open_fallback=open_fallback)
    made.source.close()
    made.session.close()
    assert isinstance(made.fallback, LoopbackTransport)
    plain = prepare(config(pair, "", tmp_path), lambda event: None, open_fallback=open_fallback)
    plain.source.close()
    plain.session.close()
    assert plain.fallback is None


def test_a_back_half_that_is_none_is_one_line(pair: Pair, tmp_path: Path):
    for back, said in ((str(pair.front), "front half"), (str(tmp_path / "none.onnx"), "none.onnx")):
        with pytest.raises(Problems) as caught:
            prepare(config(pair, back, tmp_path), lambda event: None, open_fallback=open_fallback)
        (line,) = caught.value.lines
        assert line.startswith("[model] back: ")
        assert said in line
    with pytest.raises(UsageError, match="does not run back halves"):
        prepare(config(pair, str(pair.back), tmp_path), lambda event: None)
