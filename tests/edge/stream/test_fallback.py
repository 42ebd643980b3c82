"""Frames that the server does not answer are answered on the device, by the back half there."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runtime_helpers import Pair, images, make_pair, serving, until

from splitwire.codec.errors import (
    AuthRefused,
    Corrupt,
    FingerprintMismatch,
    RequestTimeout,
    ServerBusy,
    SplitwireError,
    UsageError,
)
from splitwire.commands.edge.command import run
from splitwire.commands.edge.link import LocalBack
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.spool import Spool
from splitwire.runtime_edge.stream import StreamResult
from splitwire.runtime_edge.transport import HttpTransport, Key, LoopbackTransport, Reply, StreamTransport, Timeouts


class Away:
    """A transport that fails after some frames."""

    def __init__(self, pair: Pair, error: SplitwireError, after: int = 0) -> None:
        self._cloud = LoopbackTransport(CloudSession(pair.back).handle)
        self._error, self._left = error, after

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        self._left -= 1
        if self._left < 0:
            raise self._error
        return self._cloud.send(frame, key)

    def close(self) -> None: ...


class Shaky(Away):
    """A transport that damages one frame, and is away for the next."""

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        self._left -= 1
        if self._left == 0:
            raise Corrupt("damaged")
        if self._left < 0:
            raise self._error
        return self._cloud.send(frame, key)


def places(results: list[StreamResult]) -> list[str]:
    return [r.result.where if r.result is not None else r.status for r in results]


@pytest.mark.parametrize("scheme", ["http", "stream"])
def test_a_server_that_stops_and_comes_back(pair: Pair, scheme: str):
    """Answers come without a gap, from the right side, and are those of the whole network."""
    batches = [images(seed=i) for i in range(15)]
    gates = [threading.Event() for _ in range(3)]

    def source() -> Iterator[np.ndarray]:
        for i, x in enumerate(batches):
            gates[i // 5].wait(20)
            yield x

    events: list[Event] = []
    with ExitStack() as stack:
        up = stack.enter_context(ExitStack())
        served = up.enter_context(serving(pair))
        limits = Timeouts(connect=2, read=2, write=2, total=2)
        url = served.url.replace("http", scheme)
        make = HttpTransport if scheme == "http" else StreamTransport
        transport = make(url, timeouts=limits, on_event=events.append)
        session = stack.enter_context(EdgeSession(pair.front, transport=transport))
        fallback = LocalBack(pair.back, session.profile)
        expected = [fallback.send(session.encode(session.run_front(x).features)).outputs for x in batches]
        stream = stack.enter_context(session.stream(source(), in_flight=1, fallback=fallback, wait_s=60.0))
        gates[0].set()
        results = [next(stream) for _ in range(5)]
        up.close()
        gates[1].set()
        results += [next(stream) for _ in range(5)]
        stack.enter_context(serving(pair, port=served.address[1]))
        until(lambda: _answers(session, batches[0]))
        gates[2].set()
        results += list(stream)
    assert places(results) == ["cloud"] * 5 + ["device"] * 5 + ["cloud"] * 5
    assert {r.status for r in results} == {"answered"}
    for result, outputs in zip(results, expected, strict=True):
        assert result.result is not None
        assert (result.result.bytes_sent == 0) == (result.result.where == "device")
        assert result.result.frame_bytes > 0
        for name, y in outputs.items():
            np.testing.assert_array_equal(result.result.outputs[name], y)
    assert stream.stats.on_device == 5


def _answers(session: EdgeSession, x: np.ndarray) -> bool:
    try:
        session.infer(x)
    except SplitwireError:
        return False
    return True


@pytest.mark.parametrize("both", [False, True])
def test_what_is_answered_here_is_spooled_only_where_asked(pair: Pair, tmp_path: Path, both: bool):
    transport = Away(pair, ServerBusy("busy"), after=2)
    fallback = LocalBack(pair.back, pair.profile)
    with (
        Spool(tmp_path / "spool.db", tier="buffered") as spool,
        EdgeSession(pair.front, transport=transport) as session,
    ):
        batches = [images(seed=i) for i in range(6)]
        results = list(session.stream(batches, in_flight=1, spool=spool, fallback=fallback, spool_fallback=both))
        assert places(results) == ["cloud"] * 2 + ["device"] * 4
        assert [kept.key for kept in spool.next(10)] == [r.key for r in results[2:] if both]
        assert all((r.key is not None) == both for r in results[2:])


def test_what_the_server_refuses_is_no_matter_of_the_link(pair: Pair, tmp_path: Path):
    """It is spooled, because the link can have damaged it, and not computed here."""
    fallback = LocalBack(pair.back, pair.profile)
    transport = Shaky(pair, RequestTimeout("away"), after=3)
    with (
        Spool(tmp_path / "spool.db", tier="buffered") as spool,
        EdgeSession(pair.front, transport=transport) as session,
    ):
        results = list(session.stream([images(seed=i) for i in range(4)], in_flight=1, spool=spool, fallback=fallback))
    assert places(results) == ["cloud", "cloud", "spooled", "device"]
    assert [r.key is None for r in results] == [False, False, False, True]


class Coarse:
    """A rate control for a link that takes very little."""

    def choose(self) -> str:
        return "n2"

    def delivered(self, frame_bytes: int, sent: float, acknowledged: float, busy: bool) -> None: ...

    def lost(self, now: float) -> None: ...


def test_no_link_asks_for_a_coarse_frame_here(pair: Pair):
    """And a token that is refused, which no retry helps, is a link that is down."""
    transport = Away(pair, AuthRefused("the server refuses the token"), after=1)
    fallback = LocalBack(pair.back, pair.profile)
    with EdgeSession(pair.front, transport=transport) as session:
        stream = session.stream([images(seed=i) for i in range(3)], in_flight=1, rate=Coarse(), fallback=fallback)
        points = [(r.result.where, r.result.op) for r in stream if r.result is not None]
    assert points == [("cloud", "n2"), ("device", "n4"), ("device", "n4")]


def test_a_fallback_that_cannot_answer_is_told_once(pair: Pair, tmp_path: Path):
    other = make_pair(tmp_path / "other", seed=1)
    broken = LoopbackTransport(CloudSession(other.back).handle)
    batches = [images(seed=i) for i in range(4)]
    events: list[Event] = []
    options: dict[str, Any] = {"in_flight": 1, "fallback": broken, "on_event": events.append}
    with EdgeSession(pair.front, transport=Away(pair, ServerBusy("busy"))) as session:
        assert [r.status for r in session.stream(batches, **options)] == ["failed"] * 4
        assert [event.kind for event in events] == ["fallback_failed"]
        with Spool(tmp_path / "spool.db", tier="buffered") as spool:
            assert [r.status for r in session.stream(batches, spool=spool, **options)] == ["spooled"] * 4
        with pytest.raises(UsageError, match="spool_fallback goes with a fallback and a spool"):
            session.stream(batches, spool_fallback=True, **options)


def test_the_back_of_another_pair_is_refused(pair: Pair, tmp_path: Path):
    other = make_pair(tmp_path / "other", seed=1)
    with pytest.raises(FingerprintMismatch, match=r"give the back\.onnx that was exported with it"):
        LocalBack(other.back, pair.profile)


# ---------------------------------------------------------------------- the command


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[dict[str, Any]]]:
    return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_command_without_a_server(pair: Pair, pictures: Path, lines: Callable[[], list[dict[str, Any]]]):
    run([pictures], front=pair.front, url="http://127.0.0.1:1", fallback=pair.back, as_json=True)
    *rows, last = lines()
    results = [row for row in rows if "status" in row]
    assert [(row["status"], row["where"], row["bytes_sent"]) for row in results] == [("answered", "device", 0)] * 6
    assert all(row["classes"] for row in results)
    assert [row["event"] for row in rows if "event" in row].count("link_down") == 1
    assert (last["summary"]["on_device"], last["summary"]["waiting"]) == (6, None)


def test_the_command_spools_and_drains(
    pair: Pair, pictures: Path, tmp_path: Path, lines: Callable[[], list[dict[str, Any]]]
):
    options: dict[str, Any] = {"front": pair.front, "spool": tmp_path / "spool.db", "as_json": True}
    run([pictures], url="http://127.0.0.1:1", wait="0", fallback=pair.back, spool_fallback=True, **options)
    *rows, last = lines()
    kept = {row["key"] for row in rows if row.get("where") == "device"}
    assert (len(kept), last["summary"]["waiting"], last["summary"]["drained"]) == (6, 6, 0)
    with serving(pair) as served:
        run([pictures / "0.png"], url=served.url, **options)
    *rows, last = lines()
    drained = [row for row in rows if row.get("status") == "drained"]
    assert {row["key"] for row in drained} == kept
    assert all(row["where"] == "cloud" and row["classes"] and row["age_ms"] > 0 for row in drained)
    assert (last["summary"]["waiting"], last["summary"]["drained"], last["summary"]["answered"]) == (0, 6, 1)


def test_the_command_in_words(pair: Pair, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options: dict[str, Any] = {"front": pair.front, "spool": tmp_path / "spool.db", "spool_tier": "buffered"}
    run([pictures], url="http://127.0.0.1:1", wait="0", **options)
    said = capsys.readouterr().out
    assert said.count("  spooled  age ") == 6
    assert "0 answered out of the spool, 6 wait in it" in said
    with serving(pair) as served:
        run([pictures / "0.png"], url=served.url, fallback=pair.back, **options)
    said = capsys.readouterr().out
    assert said.count("  drained  ") == 6
    assert "0 answered on this device\n6 answered out of the spool, 0 wait in it" in said


def test_rate_control_and_drift_by_the_command(pair: Pair, pictures: Path, lines: Callable[[], list[dict[str, Any]]]):
    with serving(pair) as served:
        options: dict[str, Any] = {"front": pair.front, "url": served.url, "in_flight": 1, "as_json": True}
        run([pictures], latency="20s", **options)
        assert {row["op"] for row in lines()[:-1]} == {"n4"}
        # A target that no answer keeps: down to the coarsest point, or the coarsest allowed one.
        run([pictures], latency="0.0001ms", **options)
        assert [row["op"] for row in lines()[:-1]][-3:] == ["n2"] * 3
        run([pictures], latency="0.0001ms", min_op="n4", **options)
        assert {row["op"] for row in lines()[:-1]} == {"n4"}
        with pytest.raises(UsageError, match="--drift: this pair holds no limits of drift"):
            run([pictures], drift=True, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"op": "n2", "latency": "1s"}, "--op is a fixed operating point: leave out --latency"),
        ({"min_op": "n2"}, "--min-op is for the rate control: give --latency as well"),
        ({"latency": "0"}, "--latency must be more than 0"),
        ({"spool_tier": "buffered"}, "--spool-tier goes with --spool"),
        ({"spool": Path("x"), "spool_tier": "safe"}, "--spool-tier is durable or buffered; got 'safe'"),
        ({"spool_fallback": True}, "--spool-fallback goes with --spool and --fallback"),
        ({"fallback": Path("nowhere.onnx")}, r"nowhere\.onnx: no such file"),
    ],
)
def test_options_that_do_not_go_together(pair: Pair, pictures: Path, options: dict[str, Any], says: str):
    with pytest.raises(UsageError, match=says):
        run([pictures], front=pair.front, url="http://127.0.0.1:1", **options)
