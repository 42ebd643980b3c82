"""The monitor's routes and events over real sockets; test_monitor_page.py opens the page in a browser."""

from __future__ import annotations

import contextlib
import html.parser
import time
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from runtime_helpers import Pair, Served, serving, until

from splitwire.codec.wire.report import DeviceReport
from splitwire.runtime_cloud.observe import Telemetry, all_observers
from splitwire.runtime_cloud.observe.monitor.events import WATCHERS
from splitwire.runtime_cloud.observe.monitor.routes import FILES
from splitwire.runtime_cloud.observe.monitor.watch import Watch


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Served]:
    with serving(pair) as running:
        yield running


def telemetry_of(served: Served) -> Telemetry:
    return next(o for o in all_observers(served.api.service.observer) if isinstance(o, Telemetry))


@contextlib.contextmanager
def watching(served: Served) -> Iterator[Iterator[tuple[str, Any]]]:
    """(event, data) of one watcher."""

    def read(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
        name = ""
        for line in lines:
            kind, _, value = line.partition(": ")
            if kind == "event":
                name = value
            elif kind == "data":
                yield name, msgspec.json.decode(value)

    with httpx.stream("GET", served.url + "/monitor/events", timeout=20) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield read(response.iter_lines())


class Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href"):
                self.links.append(value or "")
            elif name == "style" or name.startswith("on"):
                self.inline.append(name)
        if tag == "style" or (tag == "script" and "src" not in dict(attrs)):
            self.inline.append(tag)


def test_the_page_loads_only_its_own_files(served: Served):
    response = httpx.get(served.url + "/monitor")
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    page = Links()
    page.feed(response.text)
    assert page.inline == []
    assert sorted(page.links) == ["data:,", "monitor/monitor.css", "monitor/monitor.js"]
    for name, kind in FILES.items():
        file = httpx.get(f"{served.url}/monitor/{name}")
        assert file.headers["content-type"].startswith(kind)
        assert file.headers["x-content-type-options"] == "nosniff"
        assert "://" not in file.text.replace("http://www.w3.org/2000/svg", "")
        assert "innerHTML" not in file.text
    assert httpx.get(served.url + "/monitor/..%2froutes.py").status_code == 404


@pytest.mark.slow
def test_a_watcher_gets_the_history_then_a_state_per_second(served: Served):
    telemetry = telemetry_of(served)
    telemetry.reported("<b>cam</b>", DeviceReport(captured=30.0, skipped=0.5, drift=1.25, waiting=7))
    with watching(served) as events:
        assert next(events)[0] == "history"
        name, first = next(events)
        assert name == "state"
        assert first["ready"] is True
        assert [m["state"] for m in first["models"]] == ["ready"]
        (device,) = first["devices"]
        assert device["name"] == "<b>cam</b>"
        assert (device["captured"], device["skipped"], device["drift"], device["waiting"]) == (30.0, 0.5, 1.25, 7)
        name, second = next(events)
        assert name == "state" and second["time"] > first["time"]
        assert second["watchers"] == 1
    until(lambda: telemetry.watchers == 0)


@pytest.mark.slow
def test_watchers_are_bounded(served: Served):
    telemetry = telemetry_of(served)
    with contextlib.ExitStack() as stack:
        for _ in range(WATCHERS):
            stack.enter_context(watching(served))
        until(lambda: telemetry.watchers == WATCHERS)
        refused = httpx.get(served.url + "/monitor/events")
        assert refused.status_code == 503 and "retry-after" in refused.headers
    until(lambda: telemetry.watchers == 0)
    with watching(served) as events:
        assert next(events)[0] == "history"


def test_a_server_with_watchers_stops_at_once(pair: Pair):
    with contextlib.ExitStack() as stack:
        with serving(pair) as running:
            events = stack.enter_context(watching(running))
            next(events)
            begun = time.monotonic()
        assert time.monotonic() - begun < 8  # without an end of the events it takes the whole grace period of 10 s
        assert all(name == "state" for name, _ in events)


def test_figures_are_of_the_last_seconds():
    clock = iter(range(1000))
    telemetry = Telemetry(clock=lambda: float(next(clock)))
    watch = Watch(telemetry)
    for _ in range(30):
        telemetry.refused("corrupt", "damaged")
        watch.tick()
    state = msgspec.json.decode(watch.state())
    assert state["refused"] > 0
    for _ in range(20):
        watch.tick()
    assert msgspec.json.decode(watch.state())["refused"] == 0
    assert len(msgspec.json.decode(watch.history())) == 50
