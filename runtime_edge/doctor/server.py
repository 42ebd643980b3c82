"""The server: address, TLS, readiness, token, the pair that it serves, and its clock beside ours."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec

from splitwire.codec.errors import UsageError

from .checks import Check

SECONDS = 5.0
MOST_BYTES = 4 << 20
CLOCK_S = 5.0
"""Largest difference of the clocks that is fine. The Date header has whole seconds."""
CERTIFICATE_DAYS = 14
AUTHORITY = "give the certificate of the authority that signed it with --ca FILE"
CLOCK = "check this device's clock first (timedatectl)"
NAME = "use the name that the certificate has in --url, or renew it with this name as a subjectAltName"
CERTIFICATE = {
    9: f"it is not valid yet: {CLOCK}; a device without a battery clock is in the past",
    10: f"renew the server's certificate; {CLOCK}, if others can connect",
    62: NAME,
    64: NAME,
}
"""What to do, by OpenSSL's X509_V_ERR codes: not yet valid, expired, host name or address mismatch."""
PORTS = {"http": 80, "https": 443}
SAME_SERVER = {"stream": "http", "streams": "https"}
"""A stream reaches the server by the port and the TLS of its HTTP side."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """What to ask. url: http:// or https://. token: None for none. context: for https; None trusts what Python trusts.
    fingerprint: of the pair that it must serve, in hex; None if no front was given."""

    url: str
    token: str | None = None
    context: ssl.SSLContext | None = None
    fingerprint: str | None = None


class _Stop(Exception):
    """The check that makes the following ones pointless."""

    def __init__(self, check: Check) -> None:
        super().__init__(check.text)
        self.check = check


def check_server(server: Server, clock: Callable[[], float] = time.time) -> Iterator[Check]:
    """The checks of the part "server", until one makes the others pointless. clock: seconds since 1970, of ours.

    Raises UsageError for an address that is none.
    """
    parts = urlsplit(server.url)
    scheme = SAME_SERVER.get(parts.scheme, parts.scheme)
    if scheme not in PORTS or not parts.hostname:
        raise UsageError(f"a server's address is http://host:port or https://host:port; got {server.url!r}")
    try:
        yield _reached(parts, parts.port or PORTS[scheme])
        if scheme == "https":
            yield _secured(parts, parts.port or PORTS[scheme], server.context, clock())
        with _Connection(parts, scheme, server.context) as connection:
            ready, *_ = _get(connection, parts, "/readyz", None, clock)
            yield _readiness(ready)
            models, date, asked = _get(connection, parts, "/v1/models", server.token, clock)
        yield _token(models, server.token)
        yield _pair(models, server.fingerprint)
        yield _clock(date, asked)
    except _Stop as stop:
        yield stop.check


def _reached(parts: SplitResult, port: int) -> Check:
    host = parts.hostname or ""
    start = time.perf_counter()
    try:
        with socket.create_connection((host, port), SECONDS):
            milliseconds = 1e3 * (time.perf_counter() - start)
    except socket.gaierror as e:
        raise _Stop(
            _failed(
                "address", f"the name {host} is not found ({e.strerror})", "check the name, and the DNS of this device"
            )
        ) from e
    except ConnectionRefusedError as e:
        raise _Stop(
            _failed(
                "address", f"{host} refuses port {port}", "start `splitwire cloud serve` there, or correct the port"
            )
        ) from e
    except OSError as e:
        why = e.strerror or str(e) or type(e).__name__
        raise _Stop(
            _failed("address", f"{host}, port {port}: {why}", "check cable, address and firewall (`ping`, `ip route`)")
        ) from e
    return Check(
        part="server", name="address", verdict="ok", text=f"{host}, port {port}, answers in {milliseconds:.1f} ms",
        data={"connect_ms": milliseconds},
    )  # fmt: skip


def _secured(parts: SplitResult, port: int, context: ssl.SSLContext | None, now: float) -> Check:
    host = parts.hostname or ""
    context = context or ssl.create_default_context()
    try:
        with (
            socket.create_connection((host, port), SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            version, certificate = secure.version(), secure.getpeercert() or {}
    except ssl.SSLCertVerificationError as e:
        raise _Stop(
            _failed(
                "tls", f"the certificate is not trusted: {e.verify_message}", CERTIFICATE.get(e.verify_code, AUTHORITY)
            )
        ) from e
    except (ssl.SSLError, OSError) as e:
        raise _Stop(
            _failed(
                "tls", f"no TLS: {(e.strerror or str(e))}", "does the server speak https:// on this port? try http://"
            )
        ) from e
    ends = certificate.get("notAfter")
    days = (ssl.cert_time_to_seconds(str(ends)) - now) / 86400 if ends else None
    if days is not None and days < CERTIFICATE_DAYS:
        return Check(
            part="server", name="tls", verdict="warning", text=f"{version}; the certificate ends in {days:.0f} days",
            remedy="renew the server's certificate", data={"days": days},
        )  # fmt: skip
    shown = "" if days is None else f", certificate valid for {days:.0f} days"
    return Check(
        part="server", name="tls", verdict="ok", text=f"{version}{shown}", data={} if days is None else {"days": days}
    )


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes


class _Connection:
    """An HTTP connection that the block closes."""

    def __init__(self, parts: SplitResult, scheme: str, context: ssl.SSLContext | None) -> None:
        host, port = parts.hostname or "", parts.port
        self._connection = (
            http.client.HTTPSConnection(host, port, timeout=SECONDS, context=context)
            if scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=SECONDS)
        )

    def __enter__(self) -> http.client.HTTPConnection:
        return self._connection

    def __exit__(self, *error: object) -> None:
        self._connection.close()


def _get(
    connection: http.client.HTTPConnection, parts: SplitResult, path: str, token: str | None, clock: Callable[[], float]
) -> tuple[_Answer, str | None, float]:
    """The answer, its Date header, and our time in the middle of the exchange."""
    before = clock()
    try:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request("GET", parts.path.rstrip("/") + path, headers=headers)
        answer = connection.getresponse()
        body = answer.read(MOST_BYTES)
        answer.read()
    except (OSError, http.client.HTTPException, ValueError) as e:
        connection.close()
        why = getattr(e, "strerror", None) or str(e) or type(e).__name__
        raise _Stop(_failed("ready", f"GET {path}: {why}", "is it `splitwire cloud serve` that listens there?")) from e
    return _Answer(answer.status, body), answer.getheader("Date"), (before + clock()) / 2


def _readiness(answer: _Answer) -> Check:
    if answer.status == http.HTTPStatus.OK:
        return Check(part="server", name="ready", verdict="ok", text="its models are loaded and warm")
    if answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        return Check(
            part="server", name="ready", verdict="warning", text="it is up, and its models are not warm yet",
            remedy="wait: a server that starts compiles its kernels; then read its log",
        )  # fmt: skip
    if answer.status in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
        return Check(part="server", name="ready", verdict="skipped", text="it does not tell without credentials")
    raise _Stop(
        _failed("ready", f"GET /readyz is answered {answer.status}", "another program listens there; check the address")
    )


def _token(answer: _Answer, token: str | None) -> Check:
    if answer.status in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
        text = "no token was sent, and the server asks for one" if token is None else "the server refuses the token"
        raise _Stop(_failed("token", text, "give the server's token: SPLITWIRE_TOKEN or --token-file FILE"))
    text = "accepted" if token is not None else "none sent, none needed"
    return Check(part="server", name="token", verdict="ok", text=text)


def _pair(answer: _Answer, fingerprint: str | None) -> Check:
    try:
        models: list[dict[str, Any]] = msgspec.json.decode(answer.body)["models"]
        served = {str(model["fingerprint"]): f"{model['name']} cut at {model['cut']}" for model in models}
    except (msgspec.DecodeError, KeyError, TypeError):
        return _failed("pair", f"GET /v1/models is answered {answer.status}, with no list", "update the server")
    shown = ", ".join(f"{text} ({key[:8]})" for key, text in served.items()) or "nothing"
    if fingerprint is None:
        return Check(
            part="server", name="pair", verdict="skipped", text=f"it serves {shown}; --front tells which is yours"
        )
    if fingerprint not in served:
        return _failed(
            "pair", f"it serves {shown}, not the pair {fingerprint[:8]} of this front",
            "deploy front.onnx and back.onnx of one export: `splitwire cloud serve` with its folder",
        )  # fmt: skip
    return Check(part="server", name="pair", verdict="ok", text=f"it serves {served[fingerprint]}")


def _clock(date: str | None, ours: float) -> Check:
    try:
        theirs = parsedate_to_datetime(date or "").timestamp() + 0.5  # whole seconds, cut off
    except ValueError:
        return Check(part="server", name="clock", verdict="skipped", text="its answers have no Date")
    ahead = ours - theirs
    text = f"this device is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server"
    if abs(ahead) <= CLOCK_S:
        return Check(part="server", name="clock", verdict="ok", text=text, data={"ahead_s": ahead})
    return Check(
        part="server", name="clock", verdict="warning", text=text,
        remedy="set the clock: timedatectl set-ntp true; a device without a battery clock is wrong until then",
        data={"ahead_s": ahead},
    )  # fmt: skip


def _failed(name: str, text: str, remedy: str) -> Check:
    return Check(part="server", name=name, verdict="failed", text=text, remedy=remedy)
