"""A socket that one thread reads while others write, also with TLS."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from contextlib import suppress

from splitwire.runtime_edge.transport.sockets import Broken, DeadlinePassed, WriteTimedOut

READ_BYTES = 64 << 10


class DuplexSocket:
    """A connected socket, for one thread that reads and any that write, one at a time.

    OpenSSL's objects are not safe for a read and a write at a time. So the socket never blocks: a thread waits for it
    by poll(), and takes a lock only for the call itself. Without TLS the kernel does this, and the lock is not used.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._lock = threading.Lock() if isinstance(sock, ssl.SSLSocket) else None

    def receive(self, timeout: float) -> bytes | None:
        """The next bytes; b"" when the far end has closed; None if nothing came for `timeout` seconds.

        Raises Broken.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                if self._lock is None:
                    if not self._wait(timeout, write=False):
                        return None
                    return self._sock.recv(READ_BYTES)
                with self._lock:
                    return self._sock.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                timeout = end - time.monotonic()
                if timeout <= 0 or (self._lock is not None and not self._wait(timeout, write=False)):
                    return None
            except ssl.SSLEOFError:
                return b""
            except (OSError, ValueError) as e:  # ValueError: closed by another thread
                raise Broken from e

    def send(self, data: bytes, *, limit: float, deadline: float) -> None:
        """Send all bytes. limit: longest wait, in seconds, until the next bytes are taken.

        Raises WriteTimedOut, DeadlinePassed, Broken. A part of the bytes may be sent then.
        """
        rest: bytes | memoryview = data
        while rest:
            try:
                if self._lock is None:
                    sent = self._sock.send(rest)
                else:
                    with self._lock:
                        sent = self._sock.send(rest)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as e:
                write = not isinstance(e, ssl.SSLWantReadError)
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise DeadlinePassed from None
                if not self._wait(min(limit, remaining), write=write):
                    raise (WriteTimedOut if limit < remaining else DeadlinePassed) from None
            except (OSError, ValueError) as e:
                raise Broken from e
            else:
                rest = memoryview(rest)[sent:] if sent < len(rest) else b""

    def _wait(self, timeout: float, *, write: bool) -> bool:
        """Whether the socket can be read or written, or has ended, within `timeout` seconds."""
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT if write else select.POLLIN)
            return bool(poll.poll(min(timeout, 1e6) * 1e3))
        sockets = [self._sock]
        return any(select.select([] if write else sockets, sockets if write else [], sockets, min(timeout, 1e6)))

    def shut(self) -> None:
        """End the connection: a thread that waits in `receive` returns. Any thread may call it."""
        with suppress(OSError, ValueError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptor. Only when no other thread uses it, or in the child of a fork()."""
        with suppress(OSError, ValueError):
            self._sock.close()
