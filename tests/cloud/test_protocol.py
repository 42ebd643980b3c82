"""HTTP connections that misbehave: heads, chunks, silence, too many at once. Others are served all the while."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from runtime_helpers import Pair, Served, images, serving, until

from splitwire.codec.codec import FeatureCodec
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport import LoopbackTransport

LIMITS = ServerLimits(connections=8, head_timeout=0.6, max_head=4096)


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Served]:
    with serving(pair, limits=LIMITS) as server:
        yield server


@pytest.fixture
def frame(pair: Pair) -> bytes:
    with EdgeSession(pair.front, transport=LoopbackTransport(bytes)) as session:
        return FeatureCodec(session.profile).encode(session.run_front(images()).features)


@contextmanager
def connected(served: Served) -> Iterator[socket.socket]:
    with socket.create_connection(served.address, timeout=10) as connection:
        yield connection


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def healthy(served: Served) -> bool:
    return httpx.get(f"{served.url}/healthz", timeout=10).status_code == 200


@pytest.mark.parametrize("head", [b"GET /healthz HTTP/1.1\r\nX: ", b"GET /", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 900])
def test_an_endless_head(served: Served, head: bytes):
    with connected(served) as connection:
        sent = 0
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            connection.sendall(head)
            while sent < 64 << 20:
                connection.sendall(b"a" * 65536)
                sent += 65536
        assert sent < 32 << 20
    assert healthy(served)


def test_a_long_head_is_told(served: Served):
    with connected(served) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 5000)
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"the head is longer than the limit of 4096 bytes" in answer


@pytest.mark.parametrize("sent", [b"", b"GET /heal", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_does_not_arrive(served: Served, sent: bytes):
    with connected(served) as connection:
        connection.sendall(sent)
        assert all_of(connection).startswith(b"HTTP/1.1 408 ")


def test_a_head_that_drips(served: Served):
    with connected(served) as connection:
        begin = time.monotonic()
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            for byte in b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 4000:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - begin < 20


@pytest.mark.slow
def test_a_kept_connection_may_be_silent(served: Served):
    """Longer than a head may take: the limit is for heads that have begun, and for clients that never ask."""
    with httpx.Client() as client:
        assert client.get(f"{served.url}/healthz").status_code == 200
        time.sleep(1.5)
        with connected(served) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
            time.sleep(1.5)
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_silent_connections_make_room(pair: Pair, frame: bytes):
    limits = ServerLimits(connections=8, head_timeout=60.0)
    with serving(pair, limits=limits) as server, ExitStack() as stack, httpx.Client(timeout=10) as honest:
        url = f"{server.url}/v1/infer"
        assert honest.post(url, content=frame).status_code == 200
        silent = [stack.enter_context(connected(server)) for _ in range(40)]
        for _ in range(5):
            assert honest.post(url, content=frame).status_code == 200
        assert healthy(server)
        until(lambda: sum(_closed(c) for c in silent) >= 32)


def _closed(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_too_many_connections_that_ask_are_refused(pair: Pair):
    limits = ServerLimits(connections=4, retry_after=2.0)
    with serving(pair, limits=limits) as server, ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(connected(server))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        with connected(server) as connection:
            answer = all_of(connection)
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nRetry-After: 2\r\n" in answer
        assert b'"server_busy"' in answer


def chunked(parts: list[bytes], last: bytes = b"0\r\n\r\n") -> bytes:
    head = b"POST /v1/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + last


def test_chunks_of_one_byte(served: Served, frame: bytes):
    with connected(served) as connection:
        connection.sendall(chunked([bytes([byte]) for byte in frame]))
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_endless_framing(served: Served):
    with connected(served) as connection:
        trailer = chunked([b"x"], b"0\r\nX: ")
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            connection.sendall(trailer)
            for _ in range(1000):
                connection.sendall(b"a" * 65536)
    assert healthy(served)


def test_a_request_and_a_half_close(served: Served, frame: bytes):
    with connected(served) as connection:
        head = b"POST /v1/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(frame)
        connection.sendall(head + frame)
        connection.shutdown(socket.SHUT_WR)
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert len(answer.partition(b"\r\n\r\n")[2]) > 20
