"""Connections that count their bytes and keep their deadlines, and the pool of those that stay open.

The count is of the bytes written to the socket and read from it, heads included, because those bytes load the link.
Nothing is computed from header lengths. With TLS the count is of the bytes given to TLS, without records and handshake.

A connection belongs to one process: after a fork() the child drops those of its parent. If both used one, the child
could read the answer to a frame of its parent.
"""

from __future__ import annotations

import math
import os
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

READ_BYTES = 64 << 10
CORK_BYTES = 64 << 10
"""Parts of a request up to this size together are sent in one write, so that head and body share the first packet."""


class LinkError(Exception):
    """A failure of the link. `__cause__` is the system's error, if there is one."""


class NoConnection(LinkError):
    """No connection: the name does not resolve, nobody listens, or there is no TLS."""


class ConnectTimedOut(LinkError):
    """Nobody accepted the connection in time."""


class WriteTimedOut(LinkError):
    """The far end did not take the bytes in time."""


class ReadTimedOut(LinkError):
    """The far end did not answer in time."""


class PoolTimedOut(LinkError):
    """Every connection was in use for too long."""


class DeadlinePassed(LinkError):
    """The deadline of the whole exchange passed, whatever arrived in between."""


class Broken(LinkError):
    """The connection broke, or the far end closed it."""


class CutShort(Broken):
    """The far end closed the connection in the middle of its answer."""


@dataclass(kw_only=True, slots=True)
class Tally:
    """The bytes of one request.

    sent, received: bytes of all attempts. connects, attempt_received: connections opened and bytes received in the last
    attempt.
    """

    sent: int = 0
    received: int = 0
    connects: int = 0
    attempt_received: int = 0

    def begin_attempt(self) -> None:
        """Call this before each attempt of the same request."""
        self.connects = 0
        self.attempt_received = 0


class Link:
    """One open connection. One exchange at a time uses it.

    tally: of the exchange that uses it now. deadline: its end, as time.monotonic() counts; math.inf for none.
    """

    __slots__ = ("_poll", "_sock", "deadline", "idle_since", "tally")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._poll: select.poll | None = None
        self.tally = Tally()
        self.deadline = math.inf
        self.idle_since = 0.0

    def send(self, *parts: bytes, limit: float) -> None:
        """Send all parts. limit: longest wait, in seconds, until the next bytes are taken.

        Raises WriteTimedOut, DeadlinePassed, Broken.
        """
        joined = [b"".join(parts)] if sum(map(len, parts)) <= CORK_BYTES else parts
        for part in joined:
            rest: bytes | memoryview = part
            while rest:
                try:
                    self._sock.settimeout(allowed(limit, self.deadline))
                    sent = self._sock.send(rest)
                except TimeoutError as e:
                    raise self._late(WriteTimedOut()) from e
                except OSError as e:
                    raise Broken from e
                self.tally.sent += sent
                rest = memoryview(rest)[sent:] if sent < len(rest) else b""

    def receive(self, limit: float) -> bytes:
        """The next bytes, at least one; b"" when the far end has closed. limit: longest wait, in seconds.

        Raises ReadTimedOut, DeadlinePassed, Broken.
        """
        try:
            self._sock.settimeout(allowed(limit, self.deadline))
            data = self._sock.recv(READ_BYTES)
        except TimeoutError as e:
            raise self._late(ReadTimedOut()) from e
        except ssl.SSLEOFError:
            return b""
        except OSError as e:
            raise Broken from e
        self.tally.received += len(data)
        self.tally.attempt_received += len(data)
        return data

    def is_stale(self) -> bool:
        """Whether an idle connection cannot be used: the far end has closed it, or has sent what nobody asked for."""
        if not hasattr(select, "poll"):  # Windows
            return bool(select.select([self._sock], [], [], 0)[0])
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._sock, select.POLLIN)
        return bool(self._poll.poll(0))

    def detach(self) -> socket.socket:
        """The socket, for a protocol that takes the connection over. This object is of no use then."""
        return self._sock

    def close(self) -> None:
        """Close the connection, without a word to the far end."""
        with suppress(OSError):
            self._sock.close()

    def _late(self, e: LinkError) -> LinkError:
        return DeadlinePassed() if time.monotonic() >= self.deadline else e


def allowed(limit: float, deadline: float) -> float | None:
    """Seconds that a step may take: its limit, but not past the deadline. Raises DeadlinePassed."""
    if deadline == math.inf:
        return limit if limit < math.inf else None
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise DeadlinePassed
    return min(limit, remaining)


def connect(host: str, port: int, *, tls: ssl.SSLContext | None, tally: Tally, limit: float, deadline: float) -> Link:
    """Open a connection to the first address of the host that accepts one.

    limit: seconds for all of it. The look-up of the name counts, but the system does not let it be interrupted.
    Raises NoConnection, ConnectTimedOut, DeadlinePassed.
    """
    tally.connects += 1
    end = min(deadline, time.monotonic() + limit)
    last: Exception = OSError("the name has no address")
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:
        raise NoConnection from e
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(allowed(limit, end))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                sock.settimeout(allowed(limit, end))
                sock = tls.wrap_socket(sock, server_hostname=host)
        except DeadlinePassed:  # of `end`
            sock.close()
            last = TimeoutError()
            break
        except OSError as e:  # a time-out and an SSLError are OSErrors
            sock.close()
            last = e
        except BaseException:
            sock.close()
            raise
        else:
            return Link(sock)
    if isinstance(last, TimeoutError):
        raise (DeadlinePassed() if time.monotonic() >= deadline else ConnectTimedOut()) from last
    raise NoConnection from last


class Forked(Protocol):
    """What has something to drop in the child of a fork()."""

    def after_fork(self) -> None:
        """Called in the child, before any other code runs there."""
        ...


_forked: weakref.WeakSet[Forked] = weakref.WeakSet()


def drop_after_fork(holder: Forked) -> None:
    """Let `holder.after_fork()` be called in every child that this process forks from now on."""
    _forked.add(holder)


def _in_child() -> None:
    for holder in list(_forked):
        holder.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork()
    os.register_at_fork(after_in_child=_in_child)


class Pool:
    """Connections to one server that stay open between exchanges; threads share it.

    connect: opens one; gets the tally and the deadline. most: connections at a time. keepalive_s: one that was idle for
    longer is not used again. It must be less than the server's limit: then this side closes first, and no request uses
    a connection that the server is closing.
    """

    def __init__(self, connect: Callable[[Tally, float], Link], *, most: int, keepalive_s: float) -> None:
        self._connect = connect
        self._most = most
        self._keepalive_s = keepalive_s
        self._idle: list[Link] = []
        self._closed = False
        self.after_fork()
        drop_after_fork(self)

    def after_fork(self) -> None:
        """Begin without connections. A lock that another thread of the parent held would stay locked for ever."""
        for link in self._idle:
            link.close()  # this process's copy of the descriptor; the parent's connection stays as it is
        self._idle = []
        self._free = threading.BoundedSemaphore(self._most)

    def take(self, tally: Tally, *, limit: float, deadline: float) -> Link:
        """A connection for one exchange; it goes back by `give`. limit: longest wait for a free one, in seconds.

        Raises PoolTimedOut, DeadlinePassed, and what `connect` raises.
        """
        if not self._free.acquire(timeout=allowed(limit, deadline)):
            raise DeadlinePassed if time.monotonic() >= deadline else PoolTimedOut
        try:
            link = self._kept() or self._connect(tally, deadline)
        except BaseException:
            self._free.release()
            raise
        link.tally, link.deadline = tally, deadline
        return link

    def give(self, link: Link, *, keep: bool) -> None:
        """End an exchange. keep: whether the connection can be used again."""
        if keep and not self._closed:
            link.idle_since = time.monotonic()
            self._idle.append(link)  # atomic, as is pop()
        else:
            link.close()
        self._free.release()

    def close(self) -> None:
        """Close the connections that are idle, and every other one after its exchange."""
        self._closed = True
        while self._idle:
            with suppress(IndexError):
                self._idle.pop().close()

    def _kept(self) -> Link | None:
        """The connection that was used last, if it can be used again."""
        now = time.monotonic()
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                return None
            if now - link.idle_since <= self._keepalive_s and not link.is_stale():
                return link
            link.close()
