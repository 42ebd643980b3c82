"""Certificates and tokens from files. A file that changes is read again, so that a renewal needs no restart."""

from __future__ import annotations

import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from splitwire.codec.errors import UsageError

MAX_TOKEN_FILE = 1 << 16
LOOK_EVERY_S = 1.0
"""A file is looked at not more often than this."""

_Stamp = tuple[int, int, int]


def checked_token(token: str, where: str = "a token") -> str:
    """The token, if it may be a header. Raises UsageError. The message never holds the token."""
    if not token or not all("!" <= c <= "~" for c in token):
        raise UsageError(f"{where} must be printable ASCII without spaces")
    return token


class TokenFile:
    """A token in a file, for a token that something renews. Blank space around it is dropped.

    The file is looked at not more than once a second, and read again when it has changed. While it cannot be read, or
    holds no token, the last token stays. Raises UsageError if there is none to begin with.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stamp: _Stamp | None = None
        self._looked = time.monotonic()
        self._token = self._read()

    def current(self, *, now: bool = False) -> str:
        """The token. now: look at the file even if that was less than a second ago."""
        moment = time.monotonic()
        if now or moment - self._looked >= LOOK_EVERY_S:
            self._looked = moment
            if _stamp(self.path) != self._stamp:
                try:
                    self._token = self._read()
                except UsageError:
                    self._stamp = None  # half written, or gone for a moment
        return self._token

    def _read(self) -> str:
        name = "".join(c if c.isprintable() else "?" for c in str(self.path))
        try:
            stamp = _stamp(self.path)
            with self.path.open("rb") as f:
                token = f.read(MAX_TOKEN_FILE).decode("ascii").strip()
        except UnicodeDecodeError:
            raise UsageError(f"{name}: a token is printable ASCII") from None
        except (OSError, ValueError) as e:
            reason = (e.strerror if isinstance(e, OSError) else None) or str(e)
            raise UsageError(f"{name}: no token can be read: {reason[:1].lower() + reason[1:]}") from e
        if not token:
            raise UsageError(f"{name}: the file is empty")
        checked_token(token, f"{name}: a token")
        self._stamp = stamp
        return token


@dataclass(kw_only=True)
class Tls:
    """Files in PEM for https: whom to trust, and this device's certificate.

    ca: certificates to trust, instead of the system's. cert: certificate (and chain) that the server asks of this
    device. key: its private key without a password; None if it is in `cert`. A file that changes is used for the next
    connection. The constructor raises UsageError for files that cannot be used; if changed ones cannot, the last ones
    stay in use.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    _context: ssl.SSLContext = field(init=False, repr=False, compare=False)
    _stamps: list[_Stamp | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.key is not None and self.cert is None:
            raise UsageError("a private key goes with a certificate: give cert as well")
        self._stamps = self._look()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """The settings for the next connection."""
        stamps = self._look()
        if stamps != self._stamps:
            with suppress(UsageError):  # one of two files is renewed; the next connection looks again
                self._context, self._stamps = self._load(), stamps
        return self._context

    def _look(self) -> list[_Stamp | None]:
        return [_stamp(Path(path)) for path in (self.ca, self.cert, self.key) if path is not None]

    def _load(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
        except (OSError, ValueError) as e:  # an SSLError is an OSError
            raise UsageError(f"{_shown(self.ca)}: no certificates in PEM: {_reason(e)}") from e
        if self.cert is not None:
            try:
                # Without this function OpenSSL asks for a password at the terminal, and a service would wait there.
                context.load_cert_chain(str(self.cert), None if self.key is None else str(self.key), password=_refuse)
            except (OSError, ValueError) as e:
                names = " and ".join(_shown(path) for path in (self.cert, self.key) if path is not None)
                raise UsageError(f"{names}: no certificate with its private key in PEM: {_reason(e)}") from e
        return context


def tls_settings(verify: bool | ssl.SSLContext | Tls) -> ssl.SSLContext | Tls:
    """What `verify` of a transport stands for: True the system's certificates, False anyone, or what it says."""
    if isinstance(verify, ssl.SSLContext | Tls):
        return verify
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _refuse() -> str:
    raise ValueError("the private key has a password; give one without")


def _stamp(path: Path) -> _Stamp | None:
    """Changes when the file does."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _shown(path: str | Path | None) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(path))


def _reason(e: Exception) -> str:
    text = (e.strerror if isinstance(e, OSError) else None) or str(e) or type(e).__name__
    return text[:1].lower() + text[1:]
