"""Opens a stream: an ordinary route of the application, behind everything that guards the others.

uvicorn has no public way to take a connection out of HTTP. But its protocol classes are plain asyncio protocols, and
they hand `scope["state"]` to the application. The subclass puts a function there, which the route calls if it agrees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from splitwire.codec.errors import UsageError
from splitwire.codec.wire.stream import PATH, UPGRADE

from .connection import StreamConnection
from .streams import Streams

STATE = "splitwire_hand_over"
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + UPGRADE.encode("ascii") + b"\r\n\r\n"
)


class _HandsOver:
    """Mixed into uvicorn's HTTP protocol, with h11 or with httptools: gives a connection to another protocol."""

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        state = {**app_state, STATE: self.hand_over}
        super().__init__(config, server_state, state, _loop)  # type: ignore[call-arg]  # uvicorn's class comes next
        self._server_state = server_state

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the answer says what is supported, and any client can ask for anything."""

    def hand_over(self, protocol: StreamConnection) -> None:
        """End HTTP on this connection; `protocol` gets it, and is told to shut down with the others."""
        http: Any = self
        http.cycle.disconnected = True  # what the application answers to this request goes nowhere
        http.flow.resume_reading()  # h11 pauses behind a request that may switch
        self._server_state.connections.discard(self)
        protocol.end_with(self._server_state.connections)
        http.transport.write(SWITCHING)
        http.transport.set_protocol(protocol)
        protocol.connection_made(http.transport)


def http_protocol() -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's `http` setting: its own choice, h11 or httptools, that can open streams."""
    made: type[asyncio.Protocol] = type("StreamHttpProtocol", (_HandsOver, AutoHTTPProtocol), {})
    return made


def open_stream(streams: Streams) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint for `GET /v1/stream`. It raises ServerBusy while the models warm up."""

    async def endpoint(request: Request) -> Response:
        wanted = request.headers.get("upgrade", "").strip().lower()
        tokens = {token.strip().lower() for token in request.headers.get("connection", "").split(",")}
        if wanted != UPGRADE or "upgrade" not in tokens:
            raise UsageError(f"GET {PATH} opens a stream: ask for it with Upgrade: {UPGRADE} (docs/stream.md)")
        hand_over = request.scope.get("state", {}).get(STATE)
        if hand_over is None:
            raise UsageError("this server cannot open streams: run `splitwire cloud serve`, or use http://")
        streams.service.require_ready()
        streams.check()
        hand_over(StreamConnection(streams))
        return Response(status_code=101)  # goes nowhere

    return endpoint
