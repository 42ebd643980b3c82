"""Opens a stream: an ordinary route of the application, behind everything that guards the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from splitwire.codec.errors import UsageError
from splitwire.codec.wire.stream import PATH, UPGRADE
from splitwire.runtime_cloud.security import caller_of

from .connection import StreamConnection
from .streams import Streams

HAND_OVER = "splitwire_hand_over"
"""Where `scope["state"]` holds the function that takes a connection out of HTTP (http/protocol.py)."""
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + UPGRADE.encode("ascii") + b"\r\n\r\n"
)


def open_stream(streams: Streams) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint for `GET /v1/stream`. It raises ServerBusy while the models warm up."""

    async def endpoint(request: Request) -> Response:
        wanted = request.headers.get("upgrade", "").strip().lower()
        tokens = {token.strip().lower() for token in request.headers.get("connection", "").split(",")}
        if wanted != UPGRADE or "upgrade" not in tokens:
            raise UsageError(f"GET {PATH} opens a stream: ask for it with Upgrade: {UPGRADE} (docs/stream.md)")
        hand_over = request.scope.get("state", {}).get(HAND_OVER)
        if hand_over is None:
            raise UsageError("this server cannot open streams: run `splitwire cloud serve`, or use http://")
        streams.service.require_ready()
        streams.check()
        hand_over(StreamConnection(streams, caller_of(request.scope)))
        return Response(status_code=101)  # goes nowhere

    return endpoint
