"""The routes of the monitor: GET /metrics, /monitor, /monitor/events, and the files of the page."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from splitwire.codec.errors import ServerBusy
from splitwire.runtime_cloud.observe.metrics import Exposition
from splitwire.runtime_cloud.observe.telemetry import Telemetry

from .events import WATCHERS, Channel, EventStream
from .watch import Watch

Guard = Callable[[Request, str], None]
"""Raises a SplitwireError if a request may not do this: "metrics" or "monitor"."""

TICK_S = 1.0
RETRY_S = 5.0
FILES = {"monitor.css": "text/css", "monitor.js": "text/javascript", "charts.js": "text/javascript"}
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def anyone(request: Request, action: str) -> None:
    """The guard of a server without authentication."""


class Monitor:
    """Metrics and the live page of one server.

    guard: decides who may see them.
    """

    def __init__(self, telemetry: Telemetry, guard: Guard = anyone) -> None:
        self._telemetry, self._guard = telemetry, guard
        self._exposition = Exposition(telemetry)
        self._watch = Watch(telemetry)
        self._channel = Channel()
        folder = files("splitwire.runtime_cloud.observe.monitor") / "page"
        self._page = (folder / "monitor.html").read_bytes()
        self._files = {name: (folder / name).read_bytes() for name in FILES}

    def routes(self) -> list[Route]:
        """For the application."""
        return [
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/monitor", self.page, methods=["GET"]),
            Route("/monitor/events", self.events, methods=["GET"]),
            Route("/monitor/{name}", self.file, methods=["GET"]),
        ]

    async def run(self) -> None:
        """Take a sample once a second, and send it to the pages that are open. Runs until it is cancelled."""
        while True:
            await anyio.sleep(TICK_S)
            self._watch.tick()
            if self._telemetry.watchers:
                self._channel.publish(self._watch.state())

    def close(self) -> None:
        """End the connections of all pages, so that the server can stop."""
        self._channel.close()

    async def metrics(self, request: Request) -> Response:
        self._guard(request, "metrics")
        body, content_type = self._exposition.text(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    async def page(self, request: Request) -> Response:
        self._guard(request, "monitor")
        return Response(self._page, media_type="text/html", headers=HEADERS)

    async def file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            raise HTTPException(404)
        return Response(self._files[name], media_type=FILES[name], headers=HEADERS)

    async def events(self, request: Request) -> Response:
        self._guard(request, "monitor")
        if self._telemetry.watchers >= WATCHERS:
            raise ServerBusy(f"{WATCHERS} monitor pages are open; close one of them", RETRY_S)
        first = [("history", self._watch.history()), ("state", self._watch.state())]
        return EventStream(self._channel, first, self._count)

    def _count(self, change: int) -> None:
        self._telemetry.watchers += change
