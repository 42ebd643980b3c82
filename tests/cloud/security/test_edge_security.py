"""The edge against a server that asks who it is: HTTP and stream, tokens and certificates, and both renewed."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from runtime_helpers import Pair, Served, make_pair, serving, until
from token_helpers import Authority, TokenSet, audit_lines, bearer, token_set

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import AuthRefused, ConnectTimeout, Forbidden, SplitwireError, UsageError
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.engines.process import serve
from splitwire.runtime_cloud.repository.models import Models
from splitwire.runtime_cloud.security import Security
from splitwire.runtime_cloud.security import tokens as store
from splitwire.runtime_cloud.security.options import is_loopback
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.transport import HttpTransport, StreamTransport, Timeouts
from splitwire.runtime_edge.transport.credentials import Tls, TokenFile

pytest.importorskip("trustme")

KINDS: tuple[str, ...] = ("http", "stream")
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("second"), seed=1)


@pytest.fixture
def tokens(tmp_path: Path) -> TokenSet:
    return token_set(tmp_path)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> tuple[Path, Path]:
    return authority.issue("server")


def frame_of(pair: Pair, frame_id: int = 7) -> bytes:
    features = [np.ones((1, *t.shape), np.float32) for t in pair.profile.tensors]
    return FeatureCodec(pair.profile).encode(features, frame_id=frame_id)


def transport(kind: str, served: Served, *, secure: bool = False, **options: Any) -> Any:
    """A context: a transport of this kind to a server."""
    scheme = {"http": "http", "stream": "stream"}[kind] + ("s" if secure else "")
    url = served.url.replace("http", scheme, 1)
    cls: Any = HttpTransport if kind == "http" else StreamTransport
    return contextlib.closing(cls(url, timeouts=Timeouts(connect=5), **options))


def refusal(kind: str, served: Served, frame: bytes, **options: Any) -> SplitwireError:
    with transport(kind, served, retries=0, **options) as edge, pytest.raises(SplitwireError) as caught:
        edge.send(frame)
    return caught.value


# ------------------------------------------------------------------ tokens


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_an_edge(pair: Pair, second: Pair, tokens: TokenSet, tmp_path: Path, kind: str):
    audit = tmp_path / "audit.jsonl"
    with serving(pair, second, security=Security(tokens=tokens.path, audit=audit)) as served:
        with transport(kind, served, token=tokens.first) as edge:
            assert edge.send(frame_of(pair)).frame_id == 7
            with pytest.raises(Forbidden, match="'first' may not use the pair"):
                edge.send(frame_of(second, 8)) if kind == "stream" else raise_as_forbidden(edge, frame_of(second, 8))
            assert edge.send(frame_of(pair, 9)).frame_id == 9
        assert isinstance(refusal(kind, served, frame_of(pair)), AuthRefused)
        for token, words in ((tokens.expired, "expired"), (tokens.revoked, "revoked"), ("x", "not valid")):
            error = refusal(kind, served, frame_of(pair), token=token)
            assert isinstance(error, AuthRefused)
            assert words in str(error)
    reasons = [line["reason"] for line in audit_lines(audit) if line["outcome"] == "refused"]
    assert reasons == ["other_model", "no_token", "expired", "revoked", "wrong_token"]
    (allowed,) = [line for line in audit_lines(audit) if line["outcome"] == "allowed"]
    assert (allowed["caller"], allowed["model"], allowed["count"]) == ("first", "tiny-0", 2)


def raise_as_forbidden(edge: Any, frame: bytes) -> None:
    """HttpTransport has one error for 401 and 403."""
    try:
        edge.send(frame)
    except AuthRefused as e:
        raise Forbidden(str(e)) from e


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_renewed_on_both_sides_without_a_restart(pair: Pair, tokens: TokenSet, tmp_path: Path, kind: str):
    held = tmp_path / "device.token"
    held.write_text(tokens.first)
    with serving(pair, security=Security(tokens=tokens.path)) as served:
        with transport(kind, served, token=TokenFile(held)) as edge:
            assert edge.send(frame_of(pair, 1)).frame_id == 1
            with store.changing(tokens.path) as entries:
                _, new = store.rotate(entries, "first", overlap_s=0.0)
            held.write_text(new)
            served.api.service.policy.renew()
            served.api.service.policy.tick()  # as it does by itself every few seconds
            for i in range(2, 6):
                assert edge.send(frame_of(pair, i)).frame_id == i
        assert "has expired" in str(refusal(kind, served, frame_of(pair), token=tokens.first))


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_is_revoked_ends_what_is_open(pair: Pair, tokens: TokenSet, kind: str):
    with serving(pair, security=Security(tokens=tokens.path)) as served:
        options: dict[str, Any] = {"token": tokens.first, "retries": 0}
        with transport(kind, served, **options) as edge:
            assert edge.send(frame_of(pair)).frame_id == 7
            with store.changing(tokens.path) as entries:
                store.revoke(entries, "first")
            served.api.service.policy.renew()
            served.api.service.policy.tick()
            with pytest.raises(SplitwireError):
                edge.send(frame_of(pair, 8))
            until(lambda: len(served.api.streams) == 0)  # the stream is closed by the server
            with pytest.raises(AuthRefused, match="revoked"):
                edge.send(frame_of(pair, 9))


def test_a_stream_without_frames_ends_too(pair: Pair, tokens: TokenSet):
    security = Security(tokens=tokens.path)
    with serving(pair, security=security) as served, transport("stream", served, token=tokens.first) as edge:
        edge.send(frame_of(pair))
        assert len(served.api.streams) == 1
        with store.changing(tokens.path) as entries:
            store.revoke(entries, "first")
        until(lambda: len(served.api.streams) == 0)


# ------------------------------------------------------------------ TLS


@pytest.mark.parametrize("kind", KINDS)
def test_mutual_tls(pair: Pair, authority: Authority, certificate: tuple[Path, Path], tmp_path: Path, kind: str):
    """Whom the server lets in: a certificate of its authority that has not ended; and nobody else."""
    audit = tmp_path / "audit.jsonl"
    other = Authority(tmp_path, "other")
    security = Security(tls_cert=certificate[0], tls_key=certificate[1], client_ca=authority.ca, audit=audit)
    camera = authority.issue("camera-7")
    with serving(pair, security=security) as served:
        with transport(kind, served, secure=True, verify=Tls(ca=authority.ca, cert=camera[0], key=camera[1])) as edge:
            for i in range(3):
                assert edge.send(frame_of(pair, i)).frame_id == i
        wrong = {
            "none": Tls(ca=authority.ca),
            "expired": Tls(ca=authority.ca, **as_tls(authority.issue("late", ends_in=-DAY))),
            "of another authority": Tls(ca=authority.ca, **as_tls(other.issue("stranger"))),
        }
        for verify in wrong.values():
            error = refusal(kind, served, frame_of(pair), secure=True, verify=verify)
            assert "certificate" in str(error), error
        assert isinstance(refusal(kind, served, frame_of(pair), secure=True, verify=Tls(ca=other.ca)), ConnectTimeout)
    lines = audit_lines(audit)
    (allowed,) = [line for line in lines if line["outcome"] == "allowed"]
    assert (allowed["caller"], allowed["count"]) == ("camera-7", 3)
    reasons = [line["reason"] for line in lines if line["outcome"] == "refused"]
    for words in ("did not return a certificate", "has expired", "unable to get local issuer"):
        assert any(words in reason for reason in reasons), (words, reasons)


def as_tls(pair: tuple[Path, Path]) -> dict[str, Path]:
    return {"cert": pair[0], "key": pair[1]}


def test_certificates_have_scopes(
    pair: Pair, second: Pair, authority: Authority, certificate: tuple[Path, Path], tokens: TokenSet
):
    with store.changing(tokens.path) as entries:
        store.create(entries, "lift", certificate="lift-3", models=("tiny-0",), actions=("infer",))
    security = Security(
        tls_cert=certificate[0], tls_key=certificate[1], client_ca=authority.ca, tokens=tokens.path
    )  # fmt: skip
    lift, unknown = (Tls(ca=authority.ca, **as_tls(authority.issue(name))) for name in ("lift-3", "nobody"))
    with serving(pair, second, security=security) as served:
        with transport("http", served, secure=True, verify=lift) as edge:
            assert edge.send(frame_of(pair)).frame_id == 7
        assert "may not use the pair" in str(refusal("http", served, frame_of(second), secure=True, verify=lift))
        assert "not one that this server knows" in str(
            refusal("stream", served, frame_of(pair), secure=True, verify=unknown)
        )
        with transport("stream", served, secure=True, verify=unknown, token=tokens.second) as edge:
            assert edge.send(frame_of(second)).frame_id == 7
        with store.changing(tokens.path) as entries:
            store.revoke(entries, "lift")
        served.api.service.policy.renew()
        assert isinstance(refusal("http", served, frame_of(pair), secure=True, verify=lift), AuthRefused)


@pytest.mark.slow
def test_a_certificate_that_ends_while_the_connection_is_open(
    pair: Pair, authority: Authority, certificate: tuple[Path, Path]
):
    security = Security(tls_cert=certificate[0], tls_key=certificate[1], client_ca=authority.ca)
    short = authority.issue("short", ends_in=datetime.timedelta(seconds=4))
    verify = Tls(ca=authority.ca, **as_tls(short))
    with (
        serving(pair, security=security) as served,
        transport("http", served, secure=True, retries=0, verify=verify) as edge,
    ):
        edge.send(frame_of(pair))
        time.sleep(5)
        with pytest.raises(AuthRefused, match="the certificate has expired"):
            edge.send(frame_of(pair, 8))


@pytest.mark.slow
def test_the_servers_certificate_and_authorities_are_renewed_without_a_restart(
    pair: Pair, authority: Authority, tmp_path: Path
):
    """And while the files do not fit each other, the last ones stay in use."""
    new = Authority(tmp_path, "new")
    cert, key, ca = tmp_path / "s.crt", tmp_path / "s.key", tmp_path / "clients.pem"
    old_cert, old_key = authority.issue("old")
    new_cert, new_key = new.issue("new")
    cert.write_bytes(old_cert.read_bytes())
    key.write_bytes(old_key.read_bytes())
    ca.write_bytes(authority.ca.read_bytes())
    told: list[str] = []
    with serving(pair, security=Security(tls_cert=cert, tls_key=key, client_ca=ca)) as served:
        served.api.service.policy.told = lambda kind, text: told.append(text)
        first = Tls(ca=authority.ca, **as_tls(authority.issue("camera")))
        with transport("http", served, secure=True, verify=first) as edge:
            edge.send(frame_of(pair))
            cert.write_bytes(new_cert.read_bytes())

            def broken() -> bool:
                with transport("http", served, secure=True, verify=first) as another:
                    another.send(frame_of(pair))
                return bool(told)

            until(broken)  # looked at not more than once a second
            assert told == ["the certificate cannot be read; the one that was read last stays in use"]
            key.write_bytes(new_key.read_bytes())
            ca.write_bytes(new.ca.read_bytes())

            def renewed() -> bool:
                with contextlib.suppress(SplitwireError), transport("http", served, secure=True, verify=first) as more:
                    more.send(frame_of(pair))
                return len(told) > 1

            until(renewed)
            assert told[-1] == "the certificate was read again"
            edge.send(frame_of(pair, 8))  # the connection that was open stays
        camera = new.issue("camera-2")
        with transport("stream", served, secure=True, verify=Tls(ca=new.ca, **as_tls(camera))) as edge:
            assert edge.send(frame_of(pair)).frame_id == 7
        with pytest.raises(SplitwireError), transport("http", served, secure=True, retries=0, verify=first) as edge:
            edge.send(frame_of(pair))


def test_old_versions_of_tls_and_plain_http_are_refused(pair: Pair, certificate: tuple[Path, Path], tmp_path: Path):
    audit = tmp_path / "audit.jsonl"
    with serving(
        pair, security=Security(tls_cert=certificate[0], tls_key=certificate[1], audit=audit)
    ) as served:  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.options &= ~ssl.OP_NO_TLSv1_1
        with pytest.warns(DeprecationWarning):
            context.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(served.address, 10) as sock, pytest.raises(ssl.SSLError):
            context.wrap_socket(sock)
        with socket.create_connection(served.address, 10) as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" not in sock.recv(4096)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        with socket.create_connection(served.address, 10) as sock, context.wrap_socket(sock) as tls:
            assert tls.version() == "TLSv1.3"
    assert {line["action"] for line in audit_lines(audit)} == {"connect"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tls_key": "x"}, "go with a certificate"),
        ({"client_ca": "x"}, "go with a certificate"),
        ({"tls_cert": "{missing}"}, "no certificate with its private key in PEM: no such file"),
        ({"tls_cert": "{ca}"}, "no certificate with its private key in PEM"),
        ({"tls_cert": "{cert}", "tls_key": "{other}"}, "no certificate with its private key in PEM"),
        ({"tls_cert": "{cert}", "tls_key": "{key}", "client_ca": "{key}"}, "no certificates in PEM"),
    ],
)
def test_files_that_do_not_do(
    authority: Authority, certificate: tuple[Path, Path], tmp_path: Path, options: dict[str, str], message: str
):
    files = {
        "missing": tmp_path / "none.pem",
        "ca": authority.ca,
        "cert": certificate[0],
        "key": certificate[1],
        "other": authority.issue("else")[1],
    }
    with pytest.raises(UsageError, match=message):
        given: dict[str, Any] = {k: v.format(**files) for k, v in options.items()}
        Security(**given).tls()


# ------------------------------------------------------------------ where it listens


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_public_address_needs_authentication(pair: Pair, host: str):
    if host == "::" and not socket.has_ipv6:
        pytest.skip("no IPv6")
    with pytest.raises(UsageError, match=r"can be reached from the network, .*give --tokens or --client-ca, "):
        serve(Models([CloudSession(pair.back)]), host=host, port=0)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("0.0.0.0", False),
        ("::", False), ("192.168.0.4", False), ("::ffff:10.0.0.1", False), ("fe80::1%eth0", False), ("any name", False),
    ],
)  # fmt: skip
def test_what_is_public(host: str, loopback: bool):
    assert is_loopback(host) == loopback


@contextlib.contextmanager
def command(pair: Pair, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`splitwire cloud serve` in a process: it, and its URL."""
    arguments = [sys.executable, "-m", "splitwire", "cloud", "serve", str(pair.back.parent), "--port", "0", "--json"]
    process = subprocess.Popen([*arguments, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            process.wait(30)
        yield process, msgspec.json.decode(line)["url"] if line else ""
    finally:
        process.kill()
        process.communicate()


def test_the_command(pair: Pair, tokens: TokenSet, certificate: tuple[Path, Path], tmp_path: Path):
    """Tokens, TLS and the record by options; SIGHUP reads the tokens again; SIGTERM ends with status 0."""
    audit = tmp_path / "audit.jsonl"
    files = ("--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1]))
    options = ("--host", "0.0.0.0", "--tokens", str(tokens.path), "--audit", str(audit), *files)
    with command(pair, *options) as (process, url):
        assert url.startswith("https://0.0.0.0:")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with httpx.Client(base_url=url.replace("0.0.0.0", "127.0.0.1"), verify=context, trust_env=False) as client:
            assert client.get("/v1/models").status_code == 401
            assert client.get("/v1/models", headers=bearer(tokens.first)).status_code == 200
            with store.changing(tokens.path) as entries:
                store.revoke(entries, "first")
            os.kill(process.pid, signal.SIGHUP)
            until(lambda: client.get("/v1/models", headers=bearer(tokens.first)).status_code == 401)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert any(line.get("text", "").endswith("tokens were read, 0 new, 0 dropped") for line in audit_lines(audit))


def test_the_command_refuses_a_public_address(pair: Pair):
    with command(pair, "--host", "0.0.0.0") as (process, url):
        assert url == ""
        assert process.stderr is not None
        text = process.stderr.read()
        assert process.returncode == 2
        assert "anyone there could use the models: give --tokens or --client-ca" in text
        assert text.strip().count("\n") == 0
    with command(pair, "--host", "0.0.0.0", "--insecure") as (process, url):
        assert url.startswith("http://0.0.0.0:")


@pytest.mark.slow
def test_the_doctor_with_a_token_file(pair: Pair, tokens: TokenSet, tmp_path: Path):
    held = tmp_path / "device.token"

    def status(served: Served, token: str) -> int:
        held.write_text(token + "\n")
        arguments = [sys.executable, "-m", "splitwire", "doctor", "--url", served.url, "--token-file", str(held)]
        return subprocess.run(arguments, capture_output=True, check=False, timeout=120).returncode

    with serving(pair, security=Security(tokens=tokens.path)) as served:
        assert status(served, tokens.first) == 0
        assert status(served, tokens.revoked) == 1


# ------------------------------------------------------------------ handshakes


def test_handshakes_that_never_begin_take_no_room_from_others(
    pair: Pair, authority: Authority, certificate: tuple[Path, Path], tmp_path: Path
):
    audit = tmp_path / "audit.jsonl"
    security = Security(tls_cert=certificate[0], tls_key=certificate[1], audit=audit)
    limits = ServerLimits(connections=8)
    with serving(pair, security=security, limits=limits) as served, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(served.address, 10)) for _ in range(30)]
        with transport("http", served, secure=True, verify=Tls(ca=authority.ca)) as edge:
            for i in range(3):
                assert edge.send(frame_of(pair, i)).frame_id == i
        for sock in silent[:10]:  # the oldest had to go
            sock.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
    assert {line["reason"] for line in audit_lines(audit)} <= {"tls: not finished", "many"}


def test_a_handshake_in_pieces_and_a_request_in_its_last_packet(
    pair: Pair, authority: Authority, certificate: tuple[Path, Path]
):
    security = Security(tls_cert=certificate[0], tls_key=certificate[1])
    with serving(pair, security=security) as served:
        for size in (1, 37, 1 << 16):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            context = ssl.create_default_context(cafile=str(authority.ca))
            side = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
            with socket.create_connection(served.address, 10) as sock:
                while True:
                    try:
                        side.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        send_in_pieces(sock, outgoing.read(), size)
                        incoming.write(sock.recv(1 << 16))
                side.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                send_in_pieces(sock, outgoing.read(), size)  # the end of the handshake and the request at once
                answer = b""
                while b"live" not in answer:
                    received = sock.recv(1 << 16)
                    assert received, answer
                    incoming.write(received)
                    with contextlib.suppress(ssl.SSLWantReadError):
                        while part := side.read(1 << 16):  # one record at a time
                            answer += part
            assert answer.startswith(b"HTTP/1.1 200 ")


def send_in_pieces(sock: socket.socket, data: bytes, size: int) -> None:
    for i in range(0, len(data), size):
        sock.sendall(data[i : i + size])


def test_a_server_that_stops_waits_for_no_handshake(pair: Pair, certificate: tuple[Path, Path]):
    security = Security(tls_cert=certificate[0], tls_key=certificate[1])
    with serving(pair, security=security) as served, socket.create_connection(served.address, 10):
        until(lambda: len(served.server.server_state.connections) == 1)
        begun = time.monotonic()
        served.server.should_exit = True
        until(lambda: not served.server.server_state.connections)
        assert time.monotonic() - begun < 8  # less than a handshake may take
