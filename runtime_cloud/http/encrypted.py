"""TLS on one connection: the handshake, and then HTTP.

asyncio and uvicorn can do this themselves, but then nobody hears of a connection before its handshake is over:
those that never begin one would not count towards `ServerLimits.connections`, could stay for a minute, and would be in
no record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol, cast

from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.security import Policy
from splitwire.runtime_cloud.security.tls import ServerContext, ServerTls

log = logging.getLogger("splitwire.cloud")


class Http(Protocol):
    """What is needed of http/protocol.py."""

    connections: set[Any]

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take the connection."""
        ...

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        ...

    def eof_received(self) -> bool | None:
        """The client sends no more."""
        ...

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        ...

    def make_room(self) -> bool:
        """Close a connection that is of no use."""
        ...


class Handshake(asyncio.Protocol):
    """One connection until it is encrypted. `encrypted` makes what uvicorn calls for each.

    waiting: all of a server, the oldest first.
    """

    def __init__(
        self, http: Http, tls: ServerTls, policy: Policy, limits: ServerLimits, waiting: dict[Handshake, None]
    ) -> None:
        self._http, self._tls, self._policy, self._limits, self._waiting = http, tls, policy, limits, waiting
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None
        self._begun = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or refuse the connection if there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        if len(self._http.connections) >= self._limits.connections:
            if self._waiting:
                next(iter(self._waiting)).shutdown()
            elif not self._http.make_room():
                self._transport.abort()
                return
        self._waiting[self] = None
        self._http.connections.add(self)
        self._task = asyncio.get_running_loop().create_task(self._encrypt())

    def data_received(self, data: bytes) -> None:
        """Keep what comes before `start_tls` has taken the connection."""
        self._begun += data

    def shutdown(self) -> None:
        """Give up: the server stops, or needs the room."""
        self._leave()
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()

    def _leave(self) -> None:
        self._waiting.pop(self, None)
        self._http.connections.discard(self)

    async def _encrypt(self) -> None:
        loop = asyncio.get_running_loop()
        peer = self._transport.get_extra_info("peername")
        early, context = _Early(), self._tls.current()
        failures: list[str] = []
        # It runs between two steps of start_tls: the TLS protocol is set, but has not asked the context for its part.
        loop.call_soon(self._feed, context, failures)
        try:
            transport = await loop.start_tls(
                self._transport,
                early,
                context,
                server_side=True,
                ssl_handshake_timeout=self._limits.head_timeout,
            )
        except (OSError, asyncio.CancelledError) as e:  # an SSLError is an OSError, and so are time-outs
            self._leave()
            self._transport.abort()
            reason = failures[0] if failures else "not finished"
            self._policy.handshake_failed(reason, str(peer[0]) if peer else "")
            if isinstance(e, asyncio.CancelledError):
                raise
            return
        except Exception:
            self._leave()
            self._transport.abort()
            log.exception("a handshake fails")
            return
        self._leave()
        if transport is None or early.lost:  # gone in the same moment
            return
        transport.set_protocol(cast("asyncio.Protocol", self._http))
        self._http.connection_made(transport)
        if early.data:
            self._http.data_received(bytes(early.data))
        if early.eof and not self._http.eof_received():
            transport.close()

    def _feed(self, context: ServerContext, failures: list[str]) -> None:
        """Give TLS what has come already, and a place for its failure."""
        context.expected = failures
        taker: Any = self._transport.get_protocol()
        while self._begun and taker is not self:
            space = taker.get_buffer(len(self._begun))
            size = min(len(space), len(self._begun))
            space[:size] = self._begun[:size]
            taker.buffer_updated(size)
            del self._begun[:size]


class _Early(asyncio.Protocol):
    """Keeps what arrives between the end of the handshake and the moment in which HTTP takes the connection."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.eof = self.lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.eof = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


def encrypted(
    protocol: Callable[..., Http], tls: ServerTls, policy: Policy, limits: ServerLimits
) -> Callable[..., Handshake]:
    """For uvicorn's `http` setting: `protocol` behind TLS."""
    waiting: dict[Handshake, None] = {}

    def make(**options: Any) -> Handshake:
        return Handshake(protocol(**options), tls, policy, limits, waiting)

    return make
