"""The Unix socket beside an open spool, by which `splitwire edge spool` asks the process that has it, and the client.

One JSON document per line each way. Only the owner and root may connect: the socket has the mode 600, and the peer's
user id is checked where the system tells it.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from splitwire.codec.errors import SpoolError

from .maintenance import Answer, Failed, Request, Served, answer

MOST_LINE = 64 << 10
"""Bytes of a request. An answer is bounded by what maintenance.py puts into it."""
MOST_CLIENTS = 4
IDLE_S = 30.0
"""Seconds after which a silent client is disconnected."""
ANSWER_S = 600.0
"""Longest wait of the client: a salvage of a large file takes minutes."""
LONGEST_PATH = 100

_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """The address of the socket; a long path is shortened through a handle of its folder, where the system can."""
    if len(os.fsencode(path)) <= LONGEST_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _allowed(connection: socket.socket) -> bool:
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the mode of the socket decides
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid in (0, os.geteuid())


class Admin:
    """Answers on the socket until `close`. Raises OSError if the socket cannot be made."""

    def __init__(self, path: Path, spool: Served) -> None:
        self._path, self._spool = path, spool
        self._free = threading.BoundedSemaphore(MOST_CLIENTS)
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        path.unlink(missing_ok=True)  # of a process that was killed: this one has the spool's lock
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(self._socket.fileno(), 0o600)  # Linux makes the file with this mode: it is never open to others
            with _address(path) as address:
                self._socket.bind(address)
            path.chmod(0o600)
            self._socket.listen(MOST_CLIENTS)
        except BaseException:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._accept, name="spool-admin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering, and remove the socket. A second call has no effect."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            clients = list(self._clients)
        self._path.unlink(missing_ok=True)
        for one in (self._socket, *clients):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                if self._closed:
                    return
                continue
            with self._lock:
                if self._closed or not self._free.acquire(blocking=False):
                    client.close()
                    continue
                self._clients.add(client)
            threading.Thread(target=self._serve, args=(client,), name="spool-client", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, client.makefile("rb") as lines, suppress(OSError):
                client.settimeout(IDLE_S)
                if not _allowed(client):
                    return
                while line := lines.readline(MOST_LINE):
                    client.sendall(msgspec.json.encode(self._answer(line)) + b"\n")
                    if not line.endswith(b"\n"):
                        return  # too long: what follows is not the start of a request
        finally:
            with self._lock:
                self._clients.discard(client)
            self._free.release()

    def _answer(self, line: bytes) -> Answer:
        if not line.endswith(b"\n"):
            return Failed("usage", f"a request is one line of at most {MOST_LINE:,} bytes")
        try:
            request = _requests.decode(line)
        except msgspec.DecodeError as e:
            return Failed("usage", f"no such request: {e}")
        return answer(self._spool, request)


class Remote:
    """The client of an Admin. Raises ConnectionError, FileNotFoundError if nobody listens at the path, OSError."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_S)
        try:
            with _address(path) as address:
                self._socket.connect(address)
        except BaseException:
            self._socket.close()
            raise
        self._lines = self._socket.makefile("rb")

    def ask(self, request: Request) -> Answer:
        """Send a request, and wait for the answer. Raises SpoolError."""
        try:
            self._socket.sendall(msgspec.json.encode(request) + b"\n")
            line = self._lines.readline()
        except OSError as e:
            raise SpoolError(f"the process that has the spool does not answer: {e}") from e
        if not line.endswith(b"\n"):
            raise SpoolError("the process that has the spool closed the connection: it ended, or others ask it too")
        try:
            return _answers.decode(line)
        except msgspec.DecodeError as e:
            raise SpoolError(f"the process that has the spool answers as another version: {e}") from e

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._socket.close()
