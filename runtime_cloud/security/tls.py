"""The server's certificate, and those that it asks of clients, from files that are read again when they change.

A renewed certificate, and another list of authorities, count for every new connection; those that are open stay as they
are.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from splitwire.codec.errors import UsageError

log = logging.getLogger("splitwire.cloud")

LOOK_EVERY_S = 1.0
Stamp = tuple[int, int, int, int]


class _Side(ssl.SSLObject):
    """The TLS of one connection.

    asyncio drops a connection at once when its handshake fails, and OpenSSL's last word to the client with it: which
    certificate it wants, or what is wrong with the one it got. So the failure is told only the second time, and the
    first time looks as if more had to be read. The client reads the alert, and closes; or its time is over.
    """

    failures: list[str]
    outgoing: ssl.MemoryBIO
    failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """Take the next step. Raises SSLError."""
        if self.failure is not None:
            raise self.failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as e:
            self.failure = e
            self.failures.append(_reason(e))
            if not self.outgoing.pending:
                raise
            raise ssl.SSLWantReadError from e


class ServerContext(ssl.SSLContext):
    """What was read from the files.

    expected: of the handshake that begins next; the reason is added if it fails.
    """

    sslobject_class = _Side
    expected: list[str] | None = None

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """The TLS of another connection."""
        side = cast("_Side", super().wrap_bio(incoming, outgoing, *args, **kwargs))
        side.outgoing = outgoing
        side.failures = [] if self.expected is None else self.expected
        self.expected = None
        return side


class ServerTls:
    """TLS of a server, 1.2 or newer.

    cert, key: files in PEM: the certificate with its chain, and its private key without a password; None if the key is
    in `cert`. client_ca: certificates of the authorities; each client must show a certificate of one of them. None: no
    client is asked. Raises UsageError for files that cannot be used. If changed ones cannot, the last ones stay.

    changed: called with one sentence when the files were read
    again, or cannot be.
    """

    def __init__(self, cert: Path, key: Path | None = None, client_ca: Path | None = None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self.changed: Callable[[str], None] = lambda text: None
        self._stamps = self._look()
        self._looked = time.monotonic()
        self._renew = False
        self._current = self._load()

    def current(self) -> ServerContext:
        """The context for the next connection."""
        moment = time.monotonic()
        if moment - self._looked >= LOOK_EVERY_S or self._renew:
            self._looked = moment
            stamps = self._look()
            if stamps != self._stamps or self._renew:
                self._renew = False
                self._stamps = stamps  # also if the files do not fit: one of two is renewed, and then the other one
                self._read_again()
        return self._current

    def renew(self) -> None:
        """Read the files for the next connection. Any thread, or a signal's handler, may call it."""
        self._renew = True

    def _read_again(self) -> None:
        try:
            self._current = self._load()
        except UsageError as e:
            log.error("%s; the certificate that was read last stays in use", e)
            self.changed("the certificate cannot be read; the one that was read last stays in use")
        else:
            log.info("the certificate was read again")
            self.changed("the certificate was read again")

    def _look(self) -> list[Stamp | None]:
        return [_stamp(path) for path in (self._cert, self._key, self._client_ca) if path is not None]

    def _load(self) -> ServerContext:
        context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            # Without this function OpenSSL asks for a password at the terminal, and a service would wait there.
            context.load_cert_chain(self._cert, self._key, password=_refuse)
        except (OSError, ValueError) as e:
            names = " and ".join(_shown(path) for path in (self._cert, self._key) if path is not None)
            raise UsageError(f"{names}: no certificate with its private key in PEM: {_words(e)}") from e
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self._client_ca)
            except (OSError, ValueError) as e:
                raise UsageError(f"{_shown(self._client_ca)}: no certificates in PEM: {_words(e)}") from e
        return context


def _refuse() -> str:
    raise ValueError("the private key has a password; give one without")


def _reason(e: ssl.SSLError) -> str:
    """Why a handshake failed, in words of OpenSSL."""
    detail = e.verify_message if isinstance(e, ssl.SSLCertVerificationError) else ""
    return (detail or (e.reason or "").replace("_", " ").lower() or type(e).__name__)[:64]


def _words(e: Exception) -> str:
    text = (e.strerror if isinstance(e, OSError) else None) or str(e) or type(e).__name__
    return text[:1].lower() + text[1:]


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _shown(path: Path) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(path))
