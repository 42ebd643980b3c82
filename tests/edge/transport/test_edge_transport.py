"""HttpTransport against servers that behave, that are not there, and that talk rubbish. Loopback only."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from runtime_helpers import canned, good_answer, http_answer

from splitwire.codec import errors
from splitwire.codec.errors import (
    AuthRefused,
    BadResponse,
    ConnectTimeout,
    RequestTimeout,
    ServerBusy,
    SplitwireError,
    TransportError,
    UsageError,
)
from splitwire.codec.wire.reply import printable
from splitwire.runtime_edge.transport import HttpTransport, LoopbackTransport, Timeouts
from splitwire.runtime_edge.transport.http import client as transport_module
from splitwire.runtime_edge.transport.retry import pause

FRAME = b"frame" * 100
REPLY = "application/vnd.splitwire.reply"


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses before retries, asked for and not taken."""
    taken: list[float] = []

    def asked(attempt: int, retry_after: float | None = None) -> float:
        taken.append(pause(attempt, retry_after))
        return 0.0

    monkeypatch.setattr(transport_module, "pause", asked)
    return taken


def post(url: str, frame: bytes = FRAME, **options):
    with contextlib.closing(HttpTransport(url, **options)) as transport:
        return transport.send(frame)


def error_answer(status: int, code: str, message: str, *headers: str) -> bytes:
    body = msgspec.json.encode({"error": {"code": code, "message": message}})
    return http_answer(status, body, "application/json", *headers)


# ------------------------------------------------------------------ what is sent, and counted


def test_a_request_is_one_small_head_and_the_frame():
    with canned(good_answer()) as server:
        reply = post(server.url)
        host = server.url.removeprefix("http://")
    assert server.heads == [
        b"POST /v1/infer HTTP/1.1\r\n"
        b"Host: " + host.encode() + b"\r\n"
        b"Content-Type: application/vnd.splitwire.frame;r=2\r\n"
        b"User-Agent: splitwire\r\n"
        b"Content-Length: 500\r\n"
        b"\r\n"
    ]
    assert reply.bytes_sent == server.received == len(server.heads[0]) + len(FRAME)
    assert reply.bytes_received == len(good_answer())
    assert reply.frame_id == 0
    assert (reply.decode_ms, reply.back_ms, reply.attempts) == (0.1, 0.2, 1)
    np.testing.assert_array_equal(reply.outputs["logits"], np.zeros((1, 5), np.float32))


def test_lean_head():
    with canned(good_answer()) as server:
        assert post(server.url, lean=True).bytes_sent == server.received
        host = server.url.removeprefix("http://").encode()
    assert server.heads == [
        b"POST /v1/infer HTTP/1.1\r\nHost: " + host + b"\r\nAccept: */*;r=2\r\nContent-Length: 500\r\n\r\n"
    ]


def test_the_page_says_how_long_a_head_is():
    with canned(good_answer()) as server:
        lean, full = (post(server.url, lean=lean).bytes_sent - len(FRAME) for lean in (True, False))
        longer = len(server.url.removeprefix("http://")) - len("127.0.0.1:8500")
    page = (Path(__file__).parents[3] / "docs" / "runtime.md").read_text(encoding="utf-8")
    assert f"{full - longer} bytes to `127.0.0.1:8500`" in page
    assert f"`lean=True` reduces the head to {lean - longer} bytes" in page


@pytest.mark.parametrize("size", [1, 60_000, 65_536, 3_000_000])
def test_bytes_sent_are_those_that_the_server_saw(size: int):
    with canned(good_answer()) as server:
        assert post(server.url, bytes(size)).bytes_sent == server.received > size


def test_a_small_request_leaves_in_one_packet():
    """Head and body in one write; the raw socket sees both in its first read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first: list[bytes] = []

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                first.append(connection.recv(65536))
                connection.sendall(good_answer())

        thread = threading.Thread(target=serve)
        thread.start()
        post(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join(10)
    assert first[0].endswith(FRAME)


def test_keep_alive_uses_one_connection():
    with canned(good_answer()) as server, contextlib.closing(HttpTransport(server.url)) as transport:
        costs = [transport.send(FRAME).bytes_sent for _ in range(5)]
    assert server.connections == 1
    assert len(set(costs)) == 1
    assert sum(costs) == server.received


def test_threads_share_a_transport_and_each_counts_its_own():
    sizes = [100 * i for i in range(1, 33)]
    with (
        canned(good_answer()) as server,
        contextlib.closing(HttpTransport(server.url)) as transport,
        ThreadPoolExecutor(4) as pool,
    ):
        costs = list(pool.map(lambda n: transport.send(bytes(n)).bytes_sent, sizes))
    assert sum(costs) == server.received
    assert all(n < cost < n + 200 for n, cost in zip(sizes, costs, strict=True))
    assert server.connections <= 4


def test_token_and_path_prefix():
    with canned(good_answer()) as server:
        post(server.url + "/behind/a/proxy/", token="s3cret")
    assert server.heads[0].startswith(b"POST /behind/a/proxy/v1/infer HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer s3cret\r\n" in server.heads[0]


def test_closed_transport():
    with canned(good_answer()) as server:
        transport = HttpTransport(server.url)
        transport.close()
        transport.close()
        with pytest.raises(UsageError, match="closed"):
            transport.send(FRAME)


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8500", "ftp://host", "http://", "http://host:99999", "http://host:port", "http://host/?q=1",
     "http://user:secret@host", "http://host/#x", "", "http://ho st", "http://[::1"],
)  # fmt: skip
def test_addresses_that_are_none(url: str):
    with pytest.raises(UsageError) as caught:
        HttpTransport(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_options_out_of_range():
    for options in ({"retries": -1}, {"token": "a b"}, {"token": "a\r\nX: y"}, {"token": ""}, {"max_connections": 0}):
        with pytest.raises(UsageError):
            HttpTransport("http://127.0.0.1:1", **options)


def test_loopback_passes_bytes_and_errors_through():
    body = good_answer().partition(b"\r\n\r\n")[2]
    reply = LoopbackTransport(lambda frame: body).send(FRAME)
    assert (reply.bytes_sent, reply.bytes_received) == (len(FRAME), len(body))

    def refuse(frame: bytes) -> bytes:
        raise errors.Corrupt("no")

    with pytest.raises(errors.Corrupt):
        LoopbackTransport(refuse).send(FRAME)


# ------------------------------------------------------------------ nobody there


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_server_down(naps: list[float]):
    port = free_port()
    with pytest.raises(ConnectTimeout) as caught:
        post(f"http://127.0.0.1:{port}")
    assert str(caught.value) == (
        f"127.0.0.1:{port}: connection refused after 3 tries; is `splitwire cloud serve` running there?"
    )
    assert len(naps) == 2
    assert 0 <= naps[0] <= 0.1  # full jitter
    assert 0 <= naps[1] <= 0.2


def test_server_that_comes_up_between_two_tries(monkeypatch: pytest.MonkeyPatch):
    port = free_port()
    with contextlib.ExitStack() as stack:

        def start(attempt: int, retry_after: float | None = None) -> float:
            monkeypatch.undo()
            listener = stack.enter_context(socket.create_server(("127.0.0.1", port)))

            def answer() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(good_answer())

            threading.Thread(target=answer).start()
            return 0.0

        monkeypatch.setattr(transport_module, "pause", start)
        assert post(f"http://127.0.0.1:{port}").attempts == 2


def test_connection_that_times_out(monkeypatch: pytest.MonkeyPatch, naps: list[float]):
    def never(*_: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket.socket, "connect", never)
    with pytest.raises(ConnectTimeout, match=r"127.0.0.1:1 did not accept a connection in time after 2 tries"):
        post("http://127.0.0.1:1", retries=1)


def test_answer_that_does_not_come_is_not_asked_for_again(naps: list[float]):
    with canned(30.0) as server:
        with pytest.raises(RequestTimeout, match="did not answer in time"):
            post(server.url, timeouts=Timeouts(read=0.2))
        assert server.requests == 1
    assert naps == []


def test_answer_that_does_not_come_is_asked_for_again_on_request(naps: list[float]):
    with canned(30.0, good_answer()) as server:
        reply = post(server.url, timeouts=Timeouts(read=0.3), retry_reads=True)
    assert reply.attempts == 2
    assert reply.bytes_sent == server.received  # both tries


def test_frame_that_is_not_taken():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,  # the kernel accepts; nobody reads
        pytest.raises(RequestTimeout, match="did not take the frame in time"),
    ):
        post(f"http://127.0.0.1:{listener.getsockname()[1]}", bytes(20_000_000), timeouts=Timeouts(write=0.3))


# ------------------------------------------------------------------ retries


def test_kept_connection_that_the_server_drops_is_replaced(naps: list[float]):
    """The second request goes out on the kept connection, is not answered, and is repeated on a new one."""
    with (
        canned(good_answer(), None, good_answer()) as server,
        contextlib.closing(HttpTransport(server.url)) as transport,
    ):
        assert transport.send(FRAME).attempts == 1
        second = transport.send(FRAME)
    assert second.attempts == 2
    assert server.connections == 2
    assert server.requests == 3
    assert second.bytes_sent == 2 * server.received // 3
    assert len(naps) == 1


def test_connection_closed_between_requests_is_not_used(naps: list[float]):
    with (
        canned(good_answer(), close_after_each=True) as server,
        contextlib.closing(HttpTransport(server.url)) as transport,
    ):
        transport.send(FRAME)
        time.sleep(0.05)  # the server's FIN arrives
        assert transport.send(FRAME).attempts == 1
    assert server.connections == 2


def test_new_connection_that_is_dropped_is_not_repeated(naps: list[float]):
    """The server may have died of this very frame, or have run it."""
    with canned(None) as server:
        with pytest.raises(TransportError, match="closed the connection before it answered") as caught:
            post(server.url)
        assert server.requests == 1
    assert type(caught.value) is TransportError


def test_busy_is_waited_out(naps: list[float]):
    busy = error_answer(503, "server_busy", "2 inferences run", "Retry-After: 3")
    with canned(busy, busy, good_answer()) as server:
        reply = post(server.url)
    assert reply.attempts == 3
    assert reply.bytes_sent == server.received
    assert server.connections == 1
    assert 3 <= naps[0] <= 3.1
    assert 3 <= naps[1] <= 3.2


@pytest.mark.parametrize("status", [429, 503])
def test_busy_proxy(naps: list[float], status: int):
    answer = http_answer(status, b"<html>", "text/html", "Retry-After: 1")
    with canned(answer, good_answer()) as server:
        assert post(server.url).attempts == 2


def test_busy_for_good(naps: list[float]):
    with canned(error_answer(503, "server_busy", "2 inferences run", "Retry-After: 3")) as server:
        with pytest.raises(ServerBusy, match=r"is busy: 2 inferences run; it asks to come back in 3 s") as caught:
            post(server.url)
        assert server.requests == 3
    assert caught.value.retry_after == 3


@pytest.mark.parametrize("headers", [(), ("Retry-After: 3600",), ("Retry-After: soon",)])
def test_busy_without_a_time_or_for_long_is_the_callers_decision(naps: list[float], headers: tuple[str, ...]):
    with canned(error_answer(503, "server_busy", "full", *headers)) as server:
        with pytest.raises(ServerBusy):
            post(server.url)
        assert server.requests == 1
    assert naps == []


# ------------------------------------------------------------------ rubbish

RUBBISH = {
    "no HTTP": (b"\x00\x01\x02 hello \xff\xff\r\n\r\n", "does not answer in HTTP"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", "does not answer in HTTP"),
    "HTML with 200": (http_answer(200, b"<html>", "text/html; charset=utf-8"), "answered text/html, not application"),
    "no content type": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "no content type"),
    "content type with an escape": (http_answer(200, b"", "text/\x1b[31mred"), ""),
    "garbage body": (http_answer(200, b"\xc1garbage", REPLY), "reply is damaged"),
    "empty body": (http_answer(200, b"", REPLY), "reply is damaged"),
    "5 GB": (
        f"HTTP/1.1 200 OK\r\nContent-Type: {REPLY}\r\nContent-Length: 5000000000\r\n\r\n".encode(),
        "the limit is",
    ),
    "impossible length": (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", ""),
    "unknown field with an escape": (http_answer(200, b"\x81\xa6\x1b[31m!\x01", REPLY), "reply is damaged"),
    "endless length": (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", ""),
    "body cut short": (http_answer(200, bytes(1000), REPLY)[:-900], ""),
    "compressed": (http_answer(200, b"\x1f\x8b", REPLY, "Content-Encoding: gzip"), "compressed its answer"),
    "redirect": (http_answer(307, b"", "text/plain", "Location: http://x/\x1b[31m"), ""),
    "HTML with 500": (http_answer(500, b"<html>oops", "text/html"), "answered status 500 without an error of ours"),
    "JSON that is no error": (http_answer(400, b'{"detail": "x"}', "application/json"), "answered status 400"),
    "deep JSON": (http_answer(400, b"[" * 100_000, "application/json"), "answered status 400"),
    "a head without end": (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000, ""),
    "early hints for ever": (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50, ""),
}


@pytest.mark.parametrize("kind", RUBBISH)
def test_rubbish_is_one_clear_line(kind: str, naps: list[float]):
    answer, words = RUBBISH[kind]
    with canned(answer, close_after_each=True) as server:
        with pytest.raises(BadResponse) as caught:
            post(server.url, timeouts=Timeouts(read=2))
        assert server.requests == 1
    text = str(caught.value)
    assert words in text
    assert text.isprintable(), text
    assert len(text) < 400


def test_redirects_are_named_and_not_followed():
    with canned(http_answer(307, b"", "text/plain", "Location: https://elsewhere/v1/infer")) as server:
        with pytest.raises(BadResponse, match="redirects to https://elsewhere/v1/infer; redirects are not followed"):
            post(server.url)
        assert server.requests == 1


def test_answer_over_the_limit_stops_while_it_arrives():
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {REPLY}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with canned(head + 40 * chunk) as server, pytest.raises(BadResponse, match="the limit is 100000"):
        post(server.url, max_reply_bytes=100_000)


def test_chunked_answer_is_read():
    body = good_answer().partition(b"\r\n\r\n")[2]
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {REPLY}; v=1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with canned(head + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n") as server:
        assert post(server.url).outputs["logits"].shape == (1, 5)


def test_after_rubbish_the_transport_still_works():
    with (
        canned(http_answer(200, b"<html>", "text/html"), good_answer()) as server,
        contextlib.closing(HttpTransport(server.url)) as transport,
    ):
        with pytest.raises(BadResponse):
            transport.send(FRAME)
        assert transport.send(FRAME).attempts == 1


# ------------------------------------------------------------------ what a server tells


def family(root: type[SplitwireError]) -> list[type[SplitwireError]]:
    """The class and those below it, of the errors that a server can name."""
    return [root, *(c for child in root.__subclasses__() if child.__module__ == root.__module__ for c in family(child))]


@pytest.mark.parametrize("kind", family(SplitwireError))
def test_every_error_of_ours_comes_back_as_itself(kind: type[SplitwireError]):
    answer = error_answer(418, kind.code, "the server's sentence")
    with canned(answer) as server, pytest.raises(SplitwireError) as caught:
        post(server.url)
    assert type(caught.value) is kind
    assert "the server's sentence" in str(caught.value)


def test_a_code_of_a_newer_server():
    answer = error_answer(500, "flux_capacitor", "out of plutonium")
    with canned(answer) as server, pytest.raises(TransportError, match="answered 500: out of plutonium") as caught:
        post(server.url)
    assert type(caught.value) is TransportError


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("told", [True, False])
def test_credentials_refused(status: int, told: bool):
    answer = error_answer(status, "auth_refused", "no token") if told else http_answer(status, b"", "text/plain")
    with canned(answer) as server, pytest.raises(AuthRefused, match="refused the credentials"):
        post(server.url)


def test_a_servers_sentence_cannot_write_to_the_terminal():
    answer = error_answer(400, "corrupt", "\x1b[2Jnice\n\u202eterminal" + "x" * 10_000)
    with canned(answer) as server, pytest.raises(errors.Corrupt) as caught:
        post(server.url)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    assert printable("plain ünïcode") == "plain ünïcode"


def test_tls_address_of_a_plain_server():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(65536)

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(ConnectTimeout, match=r"no TLS connection: .*; check https:// and the certificate"):
            post(f"https://127.0.0.1:{listener.getsockname()[1]}", retries=0)
        thread.join(10)


def test_answer_that_breaks_off():
    """A reset in the middle, as when a server is killed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def break_off() -> None:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(good_answer()[:-10])
            time.sleep(0.1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        thread = threading.Thread(target=break_off)
        thread.start()
        with pytest.raises(TransportError, match="closed the connection in the middle of its answer"):
            post(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join(10)


def test_plain_address_of_a_tls_server_and_back(naps: list[float]):
    with canned(good_answer()) as server, pytest.raises(ConnectTimeout):
        tls = server.url.replace("http", "https")
        post(tls, retries=0, timeouts=Timeouts(connect=0.5), verify=ssl.create_default_context())
