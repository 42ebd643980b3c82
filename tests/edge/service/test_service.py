"""The service as a whole, in this process: a watched folder, a transport that can be cut, outlets, spool, reload."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runtime_helpers import Pair, until

from splitwire.codec.errors import AuthRefused, ConnectTimeout, SplitwireError, TransportError, UsageError
from splitwire.commands.edge.serve import open_fallback
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.service import logs
from splitwire.runtime_edge.service.config import EdgeConfig, read_config
from splitwire.runtime_edge.service.link import Link
from splitwire.runtime_edge.service.outlets import Line, Pump
from splitwire.runtime_edge.service.parts import Problems
from splitwire.runtime_edge.service.service import Service
from splitwire.runtime_edge.service.systemd import Notifier
from splitwire.runtime_edge.transport import HttpTransport, Key, LoopbackTransport, Reply
from splitwire.runtime_edge.waiting import may_pass


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    logger = logging.getLogger(logs.ROOT)
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


class Cloud:
    """The cloud in this process; `error`: what every frame gets instead of an answer. gate: holds answers back."""

    def __init__(self, pair: Pair) -> None:
        self._loopback = LoopbackTransport(CloudSession(pair.back).handle)
        self.error: SplitwireError | None = None
        self.keys: Counter[Key | None] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = 0
        self.closed = False

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        if self.error is not None:
            raise self.error
        self.waiting += 1
        assert self.gate.wait(10)
        self.keys[key] += 1
        return self._loopback.send(frame, key)

    def send_many(self, frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]:
        answers: list[Reply | SplitwireError] = []
        for frame, key in zip(frames, keys, strict=True):
            try:
                answers.append(self.send(frame, key))
            except SplitwireError as e:
                answers.append(e)
        return answers

    def close(self) -> None:
        self.closed = True


def put_picture(folder: Path, index: int) -> None:
    """A picture that appears whole."""
    pixels = np.random.default_rng(index).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f".{index}.tmp", "PNG")
    (folder / f".{index}.tmp").rename(folder / f"{index:05}.png")


class Field:
    """A configuration whose paths are in one folder."""

    def __init__(self, folder: Path, pair: Pair) -> None:
        self.folder = folder
        self.pictures = folder / "pictures"
        self.pictures.mkdir()
        self.lines = folder / "lines.jsonl"
        self.content: dict[str, dict[str, Any] | list[dict[str, Any]]] = {
            "model": {"front": str(pair.front)},
            "server": {"url": "http://127.0.0.1:9", "deadline_s": 5.0},
            "source": {"uri": str(self.pictures), "watch": True, "policy": "block"},
            "device": {"id": "pi-4"},
            "metrics": {"listen": "127.0.0.1:0"},
            "outlet": [{"kind": "file", "target": str(self.lines)}],
        }

    def config(self, **changed: Any) -> EdgeConfig:
        return read_config({**self.content, **changed}, "edge.toml", {})

    def wait_for(self, results: int = 0, *, answered: int = 0) -> None:
        """Wait for lines of results, and for those of them that are answers."""
        until(lambda: len(self.read("results")) >= results)
        until(lambda: sum(row["status"] == "answered" for row in self.read("results")) >= answered)

    def read(self, kind: str) -> list[dict[str, Any]]:
        """The lines of the outlet: the results, or the events of a kind."""
        if not self.lines.exists():
            return []
        lines = [json.loads(line) for line in self.lines.read_text().splitlines()]
        return [line for line in lines if kind == ("results" if "status" in line else line["event"])]


@pytest.fixture
def field(tmp_path: Path, pair: Pair) -> Field:
    return Field(tmp_path, pair)


@contextmanager
def running(service: Service) -> Iterator[None]:
    """The service in a thread; stopped, and its error raised, at the end."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            service.run()
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: service.ready or not thread.is_alive())
        yield
    finally:
        service.stop()
        thread.join(20)
        assert not thread.is_alive(), "the service does not stop"
    if errors:
        raise errors[0]


def get(service: Service, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{service.health_url}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def test_results_metrics_and_keys(field: Field, pair: Pair) -> None:
    cloud = Cloud(pair)
    service = Service(field.config(), carrier=cloud)
    with running(service):
        for i in range(10):
            put_picture(field.pictures, i)
        until(lambda: len(field.read("results")) == 10)
        assert get(service, "/readyz")[0] == 200
        text = get(service, "/metrics")[1]
    rows = field.read("results")
    assert [(row["index"], row["status"], row["task"]) for row in rows] == [
        (i, "answered", "classification") for i in range(10)
    ]
    assert all(row["bytes_sent"] == row["frame_bytes"] > 0 and row["age_ms"] > 0 for row in rows)
    assert [Path(row["image"]).name for row in rows] == [f"{i:05}.png" for i in range(10)]
    assert len(cloud.keys) == 10
    assert {(key.device, key.counter) for key in cloud.keys if key} == {("pi-4", i) for i in range(10)}
    for line in (
        'splitwire_edge_frames_total{status="answered"} 10.0',
        "splitwire_edge_connected 1.0",
        "splitwire_edge_age_seconds_count 10.0",
        'splitwire_edge_events_total{kind="link_up"} 1.0',
        'device="pi-4",model="tiny-0"',
    ):
        assert line in text
    assert cloud.closed and len(field.read("link_up")) == 1


@pytest.mark.slow
def test_the_spool_keeps_what_the_link_does_not_take(field: Field, pair: Pair) -> None:
    """Also where the failure is not one that passes by itself: the token is refused. New frames go beside old ones."""
    cloud = Cloud(pair)
    cloud.error = AuthRefused("the server refuses the token")
    spool = {"path": str(field.folder / "spool.db"), "tier": "buffered", "share": 1.0}
    for first in (0, 20):
        service = Service(field.config(spool=spool), carrier=cloud)
        with running(service):
            for i in range(first, first + 20):
                put_picture(field.pictures, i)
            field.wait_for(20 + 2 * first)
            if not first:
                assert {row["status"] for row in field.read("results")} == {"spooled"}
                assert "token" in field.read("link_down")[0]["text"]
                cloud.error = None
    rows = field.read("results")
    answered = Counter(row["key"] for row in rows if row["status"] in ("answered", "drained"))
    assert set(answered) == {row["key"] for row in rows}
    counters = {int(key.rpartition(":")[2]) for key in answered}
    assert len(counters) == 40, "the counter goes on over the restart"
    drained = [row for row in rows if row["status"] == "drained"]
    place_of = {row["key"]: row["index"] for row in rows if "index" in row}
    order = [place_of[row["key"]] for row in drained]
    assert all(abs(place - index) < 8 for place, index in enumerate(order)), "in order, but for those in flight at once"
    assert all(row["classes"] and row["age_ms"] > 0 for row in drained)
    assert sum(cloud.keys.values()) == 40


def test_a_stop_answers_what_is_in_flight(field: Field, pair: Pair, tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        systemd.settimeout(5)
        cloud = Cloud(pair)
        notifier = Notifier({"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "200000"})
        service = Service(field.config(), carrier=cloud, notifier=notifier)
        with running(service):
            assert systemd.recv(1000).startswith(b"READY=1\nSTATUS=tiny-0 after relu")
            assert systemd.recv(1000) == b"WATCHDOG=1"
            cloud.gate.clear()
            put_picture(field.pictures, 0)
            put_picture(field.pictures, 1)
            until(lambda: cloud.waiting >= 1)
            service.stop()
            until(lambda: service.ready is False)
            assert get(service, "/readyz")[0] == 503 and get(service, "/healthz")[0] == 200
            cloud.gate.set()
        said: list[bytes] = []
        while not said or said[-1] != b"STOPPING=1":
            said.append(systemd.recv(1000))
    rows = field.read("results")
    assert rows and {row["status"] for row in rows} == {"answered"}
    assert len(rows) == sum(cloud.keys.values())


def test_a_stuck_frame_starves_the_watchdog(field: Field, pair: Pair, tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        cloud = Cloud(pair)
        cloud.gate.clear()
        notifier = Notifier({"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "100000"})
        with running(Service(field.config(), carrier=cloud, notifier=notifier)):
            put_picture(field.pictures, 0)
            until(lambda: cloud.waiting >= 1)
            time.sleep(0.2)
            systemd.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    systemd.recv(1000)
            time.sleep(0.3)
            with pytest.raises(BlockingIOError):
                systemd.recv(1000)
            cloud.gate.set()
            systemd.settimeout(5)
            assert systemd.recv(1000) == b"WATCHDOG=1"


def test_the_end_of_the_source_ends_the_service(field: Field, pair: Pair) -> None:
    for i in range(5):
        put_picture(field.pictures, i)
    source = {"uri": str(field.pictures), "policy": "block"}
    Service(field.config(source=source), carrier=Cloud(pair)).run()
    assert len(field.read("results")) == 5 and len(field.read("source_ended")) == 1


def test_a_dead_outlet_stops_no_frame(field: Field, pair: Pair) -> None:
    outlets = [{"kind": "socket", "target": str(field.folder / "nobody")}, {"kind": "file", "target": str(field.lines)}]
    service = Service(field.config(outlet=outlets), carrier=Cloud(pair))
    with running(service):
        for i in range(8):
            put_picture(field.pictures, i)
        until(lambda: len(field.read("results")) == 8)
        until(lambda: "outlet_lost_lines_total" in get(service, "/metrics")[1])
    assert len(field.read("outlet_lost")) == 1, "reported once"


def test_a_slow_outlet_loses_lines_and_says_how_many() -> None:
    gate = threading.Event()
    taken: list[Line] = []
    events: list[Event] = []
    lost: list[int] = []

    class Slow:
        def write(self, line: Line) -> None:
            gate.wait(10)
            taken.append(line)

        def close(self) -> None: ...

    pump = Pump("slow", Slow(), on_event=events.append, on_lost=lambda: lost.append(1), waiting=4)
    start = time.monotonic()
    for i in range(50):
        pump.offer({"i": i}, "results")
    assert time.monotonic() - start < 1
    gate.set()
    until(lambda: len(events) == 2)
    assert pump.close(5) == 0
    assert len(taken) + len(lost) == 50 and 45 <= len(lost) <= 46
    assert [event.kind for event in events] == ["outlet_lost", "outlet_back"]
    assert events[1].fields["lost"] == len(lost)


@pytest.mark.slow
def test_reload(field: Field, pair: Pair) -> None:
    """What can change does, what cannot is named, and a mistake changes nothing."""
    cloud = Cloud(pair)
    second = field.folder / "second.jsonl"
    now = field.config()
    service = Service(now, carrier=cloud, reread=lambda: now)
    with running(service):
        put_picture(field.pictures, 0)
        until(lambda: len(field.read("results")) == 1)
        now = field.config(outlet=[{"kind": "file", "target": str(field.folder / "none" / "x")}])
        service.reload()
        until(lambda: len(field.read("reload_refused")) == 1)
        now = field.config(
            rate={"target_ms": 250.0},
            log={"format": "json"},
            outlet=[{"kind": "file", "target": str(field.lines)}, {"kind": "file", "target": str(second)}],
            source={"uri": "elsewhere"},
        )
        service.reload()
        until(lambda: len(field.read("reload")) == 1)
        event = field.read("reload")[0]
        assert (event["changed"], event["needs_restart"]) == ("rate, outlet, log", "source")
        put_picture(field.pictures, 1)
        until(lambda: len(field.read("results")) == 2)
        now = field.config(server={"url": "http://127.0.0.1:1", "deadline_s": 1.0}, rate={"target_ms": 250.0})
        service.reload()
        until(lambda: len(field.read("reload")) == 2)
        assert cloud.closed, "its last frame was answered"
        put_picture(field.pictures, 2)
        until(lambda: len(field.read("link_down")) == 1)
        service.stop()
        until(lambda: len(field.read("results")) == 3)
    assert '"status":"answered"' in second.read_text()


def test_skip_gate_capture_and_rate(field: Field, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    (field.folder / "even_gate.py").write_text("def even(look):\n    return look.captured.index % 2 == 0\n")
    monkeypatch.syspath_prepend(str(field.folder))
    sample = field.folder / "sample"
    config = field.config(
        skip={"gate": "even_gate:even", "refresh_s": 1000.0},
        drift={"capture": str(sample), "capture_every_s": 0.0},
        rate={"target_ms": 1000.0},
    )
    cloud = Cloud(pair)
    with running(Service(config, carrier=cloud)):
        for i in range(10):
            put_picture(field.pictures, i)
        until(lambda: len(field.read("results")) == 10)
    assert [row["status"] for row in field.read("results")] == ["answered", "repeated"] * 5
    assert sum(cloud.keys.values()) == 5 and list(sample.glob("*.png"))


def test_all_mistakes_are_named_before_anything_starts(field: Field) -> None:
    config = field.config(
        server={"url": "ftp://x", "token_file": ""},
        source={"uri": str(field.folder / "none"), "watch": True},
        model={"front": str(field.folder / "none.onnx")},
        spool={"path": str(field.folder / "none" / "spool.db")},
        outlet=[{"kind": "hook", "target": "no_such:thing"}],
        metrics={"listen": "0.0.0.0:1"},
    )
    with pytest.raises(Problems) as caught:
        Service(config).run()
    lines = caught.value.lines
    assert len(lines) == 6 and not any("\n" in line for line in lines)
    for part in ("[server] url", "[model]", "[source] uri", "hook 'no_such:thing'", "[spool] path", "[metrics] listen"):
        assert any(part in line for line in lines), part
    assert not field.lines.exists()


@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        ("model", {"op": "n9"}, "n9"),
        ("model", {"provider": "CUDA"}, "CUDA"),
        ("skip", {"changed": 0.01}, "edge calibrate-skip"),
        ("skip", {"gate": "nothing"}, "expected module:function"),
        ("server", {"url": "http://x", "ca": "ca.pem"}, "https://"),
        ("server", {"url": "http://x", "token_file": "none"}, "[server] token_file"),
        ("source", {"uri": "-"}, "standard input"),
    ],
)
def test_a_mistake_is_one_line(field: Field, pair: Pair, section: str, values: dict[str, Any], says: str) -> None:
    if section == "model":
        values = {"front": str(pair.front), **values}
    with pytest.raises(Problems) as caught:
        Service(field.config(**{section: values})).run()
    assert len(caught.value.lines) == 1 and says in caught.value.lines[0]


class Plain:
    """A carrier that fails with `error`, or waits at a gate."""

    def __init__(self, error: SplitwireError | None = None) -> None:
        self.error, self.closed, self.gate, self.entered = error, False, threading.Event(), threading.Event()

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        if self.error is not None:
            raise self.error
        self.entered.set()
        assert self.gate.wait(10)
        return Reply(outputs={}, frame_id=0, decode_ms=0, back_ms=0, bytes_sent=1, bytes_received=1)

    def send_many(self, frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]:
        return [self.send(f, k) for f, k in zip(frames, keys, strict=True)]

    def close(self) -> None:
        self.closed = True


def test_a_link_closes_the_old_transport_after_its_last_frame() -> None:
    old, new = Plain(), Plain()
    link = Link(old, device="d", patient=False)
    thread = threading.Thread(target=link.send, args=(b"x",))
    thread.start()
    assert old.entered.wait(5)
    link.replace(new)
    closed = [old.closed]
    old.gate.set()
    thread.join(5)
    assert [*closed, old.closed, new.closed] == [False, True, False]
    link.finish(-1.0)
    with pytest.raises(TransportError, match="the service ends"):
        link.send(b"x")


def test_a_link_tells_of_changes_only() -> None:
    events: list[str] = []
    carrier = Plain(AuthRefused("no"))
    link = Link(carrier, device="d", patient=False, on_event=lambda e: events.append(e.kind))
    for error in (AuthRefused("no"), AuthRefused("no"), None, None, UsageError("a frame's own"), TransportError("x")):
        carrier.error = error
        carrier.gate.set()
        try:
            link.send(b"x")
        except SplitwireError as e:
            assert e.code == getattr(error, "code", None)
    assert events == ["link_down", "link_up", "link_down"]


@pytest.mark.parametrize("patient", [False, True])
def test_what_may_pass_still_says_so_behind_a_link(patient: bool) -> None:
    """The stream spools a frame only where the failure may pass, and that is in the cause of the error."""
    away = HttpTransport("http://127.0.0.1:1", retries=0)
    link = Link(away, device="d", patient=patient)
    with pytest.raises(ConnectTimeout) as refused:
        link.send(b"x")
    assert may_pass(refused.value)
    link.replace(Plain(AuthRefused("no")))
    with pytest.raises(TransportError) as token:
        link.send(b"x")
    assert may_pass(token.value) == patient


@pytest.mark.slow
def test_the_fallback_answers_while_the_link_is_down(field: Field, pair: Pair) -> None:
    cloud = Cloud(pair)
    config = field.config(
        model={"front": str(pair.front), "back": str(pair.back)},
        spool={"path": str(field.folder / "spool.db"), "tier": "buffered", "share": 1.0, "fallback_too": True},
    )
    service = Service(config, carrier=cloud, open_fallback=open_fallback)
    with running(service):
        for first, error in ((0, None), (5, AuthRefused("no")), (10, None)):
            cloud.error = error
            for i in range(first, first + 5):
                put_picture(field.pictures, i)
            field.wait_for(answered=first + 5)
        until(lambda: len(field.read("results")) == 20)
        assert "splitwire_edge_fallback_frames_total 5.0" in get(service, "/metrics")[1]
    rows = field.read("results")
    answered = [row for row in rows if row["status"] == "answered"]
    assert [row["where"] for row in answered] == ["cloud"] * 5 + ["device"] * 5 + ["cloud"] * 5
    drained = [row for row in rows if row["status"] == "drained"]
    assert {row["key"] for row in drained} == {row["key"] for row in answered if row["where"] == "device"}
    classes = {row["key"]: row["classes"] for row in answered}
    assert all(row["where"] == "cloud" and row["classes"] == classes[row["key"]] for row in drained)


def test_the_spool_of_answers_needs_both(field: Field, pair: Pair) -> None:
    with pytest.raises(UsageError, match=r"\[spool\] path and \[model\] back"):
        field.config(spool={"fallback_too": True})
