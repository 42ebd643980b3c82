"""TLS with certificates that the tests make, client certificates, and files that change while a transport is open."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runtime_helpers import canned, good_answer, http_answer, read_request

from splitwire.codec.errors import AuthRefused, ConnectTimeout, TransportError, UsageError
from splitwire.commands.edge.link import open_transport
from splitwire.runtime_edge.transport import HttpTransport, Timeouts, Tls, TokenFile
from splitwire.runtime_edge.transport import credentials as credentials_module
from splitwire.runtime_edge.waiting import may_pass

trustme = pytest.importorskip("trustme")

FRAME = b"frame" * 100


@dataclass
class Secure:
    url: str
    connections: int = 0
    clients: int = 0


@contextlib.contextmanager
def secure(context: ssl.SSLContext) -> Iterator[Secure]:
    """A TLS server that answers every frame; clients: connections with a certificate of the client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        record = Secure(url=f"https://localhost:{listener.getsockname()[1]}")
        stop = threading.Event()

        def serve(plain: socket.socket) -> None:
            with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
                connection.settimeout(5)
                record.connections += 1
                record.clients += bool(connection.getpeercert())
                while read_request(connection) is not None:
                    connection.sendall(good_answer())

        def accept() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = listener.accept()
                    connection.settimeout(5)
                    threads.append(threading.Thread(target=serve, args=(connection,)))
                    threads[-1].start()

        threads = [threading.Thread(target=accept)]
        threads[0].start()
        try:
            yield record
        finally:
            stop.set()
            for thread in threads:
                thread.join(10)


class Authority:
    """A private CA; its certificate is the file `ca`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.authority: Any = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.ca = folder / f"{name}.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))

    def server(self, *, clients: bool = False, host: str = "localhost") -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(host).configure_cert(context)
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            self.authority.configure_trust(context)
        return context

    def client(self, folder: Path) -> tuple[Path, Path]:
        """(cert, key) of a device."""
        leaf = self.authority.issue_cert("camera@fleet", common_name="camera")
        cert, key = folder / "device.pem", folder / "device.key"
        leaf.private_key_pem.write_to_path(str(key))
        cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        return cert, key


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def send(url: str, **options: Any) -> None:
    with contextlib.closing(HttpTransport(url, retries=0, timeouts=Timeouts(connect=5), **options)) as transport:
        transport.send(FRAME)
        transport.send(FRAME)


def test_a_private_authority(authority: Authority):
    with secure(authority.server()) as server:
        send(server.url, verify=Tls(ca=authority.ca))
        assert server.connections == 1  # kept for the second frame
        with pytest.raises(ConnectTimeout, match=r"no TLS connection: .*certificate verify failed") as caught:
            send(server.url)  # the system's certificates
        assert not may_pass(caught.value)
        send(server.url, verify=False)


def test_another_host_and_another_authority(authority: Authority, tmp_path: Path):
    with secure(authority.server(host="elsewhere.example")) as server:
        with pytest.raises(ConnectTimeout, match="no TLS connection"):
            send(server.url, verify=Tls(ca=authority.ca))
        with pytest.raises(ConnectTimeout, match="no TLS connection"):
            send(server.url, verify=Tls(ca=Authority(tmp_path).ca))


def test_client_certificates(authority: Authority, tmp_path: Path):
    cert, key = authority.client(tmp_path)
    with secure(authority.server(clients=True)) as server:
        send(server.url, verify=Tls(ca=authority.ca, cert=cert, key=key))
        assert server.clients == 1
        both = tmp_path / "both.pem"
        both.write_bytes(cert.read_bytes() + key.read_bytes())
        send(server.url, verify=Tls(ca=authority.ca, cert=both))
        assert server.clients == 2
        with pytest.raises(TransportError) as caught:  # by TLS 1.3 the refusal comes after the handshake
            send(server.url, verify=Tls(ca=authority.ca))
        assert server.clients == 2
        assert not isinstance(caught.value, AuthRefused)


def test_the_command_takes_them(authority: Authority, tmp_path: Path):
    cert, key = authority.client(tmp_path)
    options: dict[str, Any] = {"timeout_s": 5, "deadline_s": 10, "token": None}
    with secure(authority.server(clients=True)) as server:
        with contextlib.closing(
            open_transport(server.url, ca=authority.ca, cert=cert, key=key, **options)
        ) as transport:
            transport.send(FRAME)
        assert server.clients == 1
    for wrong, message in (
        ({"cert": cert, "url": "http://x"}, "--cert goes with an https:// or streams:// address"),
        ({"key": key}, "--key goes with --cert"),
        ({"ca": cert, "cert": cert, "key": cert}, "--cert .*device.pem: no certificate with its private key in PEM"),
        ({"ca": tmp_path / "none"}, "--ca .*none: no certificates in PEM: no such file or directory"),
        ({"deadline_s": 0}, "--deadline must be more than 0"),
    ):
        with pytest.raises(UsageError, match=message):
            open_transport(**{"url": "https://x", **options, **wrong})


def test_files_that_cannot_be_used(authority: Authority, tmp_path: Path):
    with pytest.raises(UsageError, match="a private key goes with a certificate"):
        Tls(key=authority.ca)
    from cryptography.hazmat.primitives import serialization as ser

    cert, key = authority.client(tmp_path)
    private = ser.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(private.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.BestAvailableEncryption(b"x")))
    with pytest.raises(UsageError, match="the private key has a password; give one without"):  # and no prompt
        Tls(cert=cert, key=key)


def test_renewed_certificates_are_used_for_the_next_connection(authority: Authority, tmp_path: Path):
    renewed = Authority(tmp_path, "renewed")
    ca = tmp_path / "trusted.pem"
    ca.write_bytes(authority.ca.read_bytes())
    tls = Tls(ca=ca)
    with secure(authority.server()) as before, secure(renewed.server()) as after:
        send(before.url, verify=tls)
        with pytest.raises(ConnectTimeout):
            send(after.url, verify=tls)
        ca.write_text("half of a file")
        send(before.url, verify=tls)  # the last certificates stay
        ca.write_bytes(renewed.ca.read_bytes())
        send(after.url, verify=tls)
        with pytest.raises(ConnectTimeout):
            send(before.url, verify=tls)


# ------------------------------------------------------------------ tokens


def tokens_of(heads: list[bytes]) -> list[bytes]:
    return [head.split(b"Authorization: Bearer ")[1].split(b"\r\n")[0] for head in heads]


def rewrite(file: Path, text: str) -> None:
    """Write and make sure that the file's time differs, however coarse the file system's clock."""
    file.write_text(text)
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1_000_000))


def test_a_token_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(credentials_module, "LOOK_EVERY_S", 0.0)
    file = tmp_path / "token"
    file.write_text("first\n")
    with (
        canned(good_answer()) as server,
        contextlib.closing(HttpTransport(server.url, token=TokenFile(file))) as transport,
    ):
        transport.send(FRAME)
        rewrite(file, "second\n")
        transport.send(FRAME)
        rewrite(file, "")  # being written
        transport.send(FRAME)
        file.unlink()
        transport.send(FRAME)
        rewrite(file, "third")
        transport.send(FRAME)
    assert tokens_of(server.heads) == [b"first", b"second", b"second", b"second", b"third"]


def test_a_refused_token_is_looked_up_at_once(tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("old")
    refused = http_answer(401, b"", "text/plain")
    with (
        canned(refused, good_answer(), refused) as server,
        contextlib.closing(HttpTransport(server.url, token=TokenFile(file))) as transport,
    ):
        rewrite(file, "new")
        assert transport.send(FRAME).attempts == 2
        with pytest.raises(AuthRefused):
            transport.send(FRAME)  # no newer token: no retry
    assert tokens_of(server.heads) == [b"old", b"new", b"new"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\xff", "printable ASCII"), (b"a b", "ASCII without spaces"), (None, "no token can be read")],
)
def test_a_token_file_without_a_token(tmp_path: Path, content: bytes | None, message: str):
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        TokenFile(file)
    assert "a b" not in str(caught.value)
