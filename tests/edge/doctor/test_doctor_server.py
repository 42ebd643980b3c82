"""The doctor's checks of the server: each is made to fail, and shows its remedy."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from runtime_helpers import Pair, serving

from splitwire.codec.errors import UsageError
from splitwire.commands.doctor import bits_per_second
from splitwire.runtime_edge.doctor.checks import Check
from splitwire.runtime_edge.doctor.server import Server, check_server

OURS = "ab" * 8
MODELS = json.dumps({"models": [{"name": "net", "cut": "relu", "fingerprint": OURS}]}).encode()


@contextmanager
def server(
    *, ready: int = 200, models: tuple[int, bytes] = (200, MODELS), ahead: float = 0.0, token: str | None = None
) -> Iterator[str]:
    """URL of a server that answers so, with a Date that is `ahead` seconds in the future."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body = (ready, b"{}") if self.path == "/readyz" else models
            if token is not None and self.path != "/readyz" and self.headers["Authorization"] != f"Bearer {token}":
                status, body = 401, b"{}"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + ahead, usegmt=True)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def checks(url: str, **asked: str | None) -> dict[str, Check]:
    return {check.name: check for check in check_server(Server(url=url, **asked))}  # type: ignore[arg-type]  # strings


def assert_check(check: Check, verdict: str, text: str, remedy: str) -> None:
    assert check.verdict == verdict, check
    assert re.search(text, check.text), check
    assert remedy in check.remedy, check


def test_all_is_well_with_the_real_server(pair: Pair):
    with serving(pair) as served:
        found = checks(served.url, fingerprint=pair.profile.fingerprint.hex())
    assert list(found) == ["address", "ready", "token", "pair", "clock"]
    assert {check.verdict for check in found.values()} == {"ok"}, found
    assert found["pair"].text == "it serves tiny-0 cut at relu"


def test_no_such_name():
    found = checks("http://no-such-host.invalid:8500")
    assert list(found) == ["address"]
    assert_check(found["address"], "failed", "the name no-such-host.invalid is not found", "DNS")


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert_check(
        checks(f"http://127.0.0.1:{port}")["address"], "failed", f"refuses port {port}", "splitwire cloud serve"
    )


def test_out_of_reach(monkeypatch: pytest.MonkeyPatch):
    def late(*arguments: object, **options: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", late)
    assert_check(checks("http://10.0.0.1:8500")["address"], "failed", "port 8500: timed out", "firewall")


def test_something_else_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        found = checks(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert_check(found["ready"], "failed", "GET /readyz: ", "is it `splitwire cloud serve`")
    with server(ready=404) as url:
        assert_check(checks(url)["ready"], "failed", "answered 404", "another program listens there")


def test_a_server_that_warms_up():
    with server(ready=503) as url:
        assert_check(checks(url)["ready"], "warning", "not warm yet", "wait: a server")


def test_credentials():
    with server(token="right") as url:
        assert checks(url, token="right")["token"].text == "accepted"
        assert_check(checks(url, token="wrong")["token"], "failed", "refuses the token", "--token-file")
        assert_check(checks(url)["token"], "failed", "no token was sent", "SPLITWIRE_TOKEN")
    with server(ready=401) as url:
        assert checks(url)["ready"].verdict == "skipped"


def test_another_pair():
    with server() as url:
        assert checks(url, fingerprint=OURS)["pair"].verdict == "ok"
        said = r"it serves net cut at relu \(abababab\), not the pair cdcdcdcd"
        assert_check(checks(url, fingerprint="cd" * 8)["pair"], "failed", said, "of one export")
        assert checks(url)["pair"].verdict == "skipped"
    with server(models=(200, b"<html>")) as url:
        assert_check(checks(url, fingerprint=OURS)["pair"], "failed", "answered 200, with no list", "update the server")


@pytest.mark.parametrize(("ahead", "text"), [(-3600, "3[56]\\d\\d s ahead of the server"), (3600, "behind the server")])
def test_a_wrong_clock(ahead: float, text: str):
    with server(ahead=ahead) as url:
        assert_check(checks(url)["clock"], "warning", text, "timedatectl set-ntp true")


def test_an_address_that_is_none():
    for url in ("ftp://x", "x", "http://"):
        with pytest.raises(UsageError, match="a server's address is http"):
            checks(url)


# ------------------------------------------------------------------ TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of 127.0.0.1 in one file, valid for ten days, by openssl; skips without it."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "10",
        "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt",
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl")
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@contextmanager
def secured(certificate: Path) -> Iterator[str]:
    """URL of a TLS server that answers nothing after the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)

        def answer() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                    with context.wrap_socket(connection, server_side=True):
                        pass
                except OSError:
                    continue

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


@pytest.mark.skipif(sys.platform == "win32", reason="openssl")
def test_certificates(certificate: Path):
    with secured(certificate) as url:
        assert_check(checks(url)["tls"], "failed", "the certificate is not trusted: self", "--ca FILE")
        trusting = Server(url=url, context=ssl.create_default_context(cafile=str(certificate)))
        found = {check.name: check for check in check_server(trusting)}
        assert_check(found["tls"], "warning", "TLSv1.3; the certificate ends in (9|10) days", "renew")
        early = {c.name: c for c in check_server(trusting, lambda: time.time() - 20 * 86400)}
        assert_check(early["tls"], "ok", "valid for (29|30) days", "")
    with server() as url:
        plain = checks(url.replace("http:", "https:"))
    assert_check(plain["tls"], "failed", "no TLS: ", "try http://")


@pytest.mark.parametrize(
    ("days", "name", "text", "remedy"),
    [
        ((-20, -10), "127.0.0.1", "certificate has expired", "renew the server's certificate"),
        ((10, 20), "127.0.0.1", "not yet valid", "check this device's clock first"),
        ((-1, 100), "other.example", "IP address mismatch", "use the name that the certificate has in --url"),
    ],
)
def test_certificates_that_do_not_hold(tmp_path: Path, days: tuple[int, int], name: str, text: str, remedy: str):
    """Of a trusted authority, but at another time or of another server."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    path, now = tmp_path / "both.pem", datetime.now(UTC)
    begin, end = (now + timedelta(days=n) for n in days)
    authority.issue_cert(name, not_before=begin, not_after=end).private_key_and_cert_chain_pem.write_to_path(path)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with secured(path) as url:
        found = {check.name: check for check in check_server(Server(url=url, context=context))}
    assert list(found) == ["address", "tls"]
    assert_check(found["tls"], "failed", text, remedy)


@pytest.mark.parametrize(
    ("text", "rate"), [("250kbit", 250e3), ("5Mbit", 5e6), ("1.5 gbit/s", 1.5e9), ("9600bit", 9600), ("2mbits", 2e6)]
)
def test_bandwidths(text: str, rate: float):
    assert bits_per_second(text) == rate


@pytest.mark.parametrize("text", ["", "5", "mbit", "5mb", "-1mbit", "0kbit", "nanbit", "infbit", "1e99bit"])
def test_what_is_no_bandwidth(text: str):
    with pytest.raises(UsageError, match="--link takes a bandwidth, as in 250kbit"):
        bits_per_second(text)
