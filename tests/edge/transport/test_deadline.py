"""The deadline of a frame: nothing that a server does holds `send` for longer."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from runtime_helpers import canned, good_answer, http_answer

from splitwire.codec.errors import RequestTimeout, ServerBusy, TransportError, UsageError
from splitwire.runtime_cloud.engines.process import url_of
from splitwire.runtime_edge.transport import HttpTransport, Key, Timeouts

FRAME = b"frame" * 100
TOTAL = 0.5


@contextlib.contextmanager
def dripping(answer: bytes, every: float = 0.02) -> Iterator[str]:
    """A server that sends its answer a byte at a time, so that no wait for the next bytes is long."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    for i in range(len(answer)):
                        connection.sendall(answer[i : i + 1])
                        if stop.wait(every):
                            return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield url_of(listener)
        finally:
            stop.set()
            thread.join(10)


BODY_ONLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.splitwire.reply\r\nContent-Length: 900\r\n\r\n" + bytes(
    900
)
DRIPS = {
    "head": good_answer(),
    "body": BODY_ONLY,
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 200,
    "no length": b"HTTP/1.1 200 OK\r\n\r\n" + bytes(900),
    "interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
}


@pytest.mark.parametrize("what", DRIPS)
def test_a_server_that_drips_bytes(what: str):
    with (
        dripping(DRIPS[what]) as url,
        contextlib.closing(HttpTransport(url, timeouts=Timeouts(total=TOTAL))) as transport,
    ):
        start = time.monotonic()
        with pytest.raises(RequestTimeout, match=r"did not answer within the deadline of 0\.5 s; raise it"):
            transport.send(FRAME)
        assert TOTAL <= time.monotonic() - start < TOTAL + 1.0


def test_a_slow_answer_within_the_deadline_is_taken():
    with dripping(good_answer(), every=0.0005) as url, contextlib.closing(HttpTransport(url)) as transport:
        assert transport.send(FRAME).bytes_received == len(good_answer())


def test_retries_and_pauses_are_within_the_deadline():
    """Each try may take 0.2 s, and there are a hundred of them."""
    with (
        canned(5.0) as server,
        contextlib.closing(
            HttpTransport(server.url, timeouts=Timeouts(read=0.2, total=TOTAL), retries=100)
        ) as transport,
    ):
        start = time.monotonic()
        with pytest.raises(RequestTimeout):
            transport.send(FRAME, Key("d", "b", 1))
        assert time.monotonic() - start < TOTAL + 1.0
    assert server.requests >= 2


def test_a_retry_after_past_the_deadline_is_not_waited_for():
    busy = http_answer(503, b"", "text/plain", "Retry-After: 5")
    with (
        canned(busy) as server,
        contextlib.closing(HttpTransport(server.url, timeouts=Timeouts(total=TOTAL))) as transport,
    ):
        start = time.monotonic()
        with pytest.raises(ServerBusy):
            transport.send(FRAME)
        assert time.monotonic() - start < TOTAL
    assert server.requests == 1


def test_a_frame_that_is_taken_a_byte_at_a_time():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def sip() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                while not stop.wait(0.02):
                    connection.recv(4096)

        thread = threading.Thread(target=sip)
        thread.start()
        url = url_of(listener)
        with contextlib.closing(HttpTransport(url, timeouts=Timeouts(total=TOTAL), retries=0)) as transport:
            start = time.monotonic()
            with pytest.raises(TransportError, match="within the deadline"):
                transport.send(bytes(20_000_000))
            assert time.monotonic() - start < TOTAL + 1.0
        stop.set()
        thread.join(10)


def test_the_deadline_has_a_default_and_may_be_none():
    assert Timeouts().total == 60.0
    with (
        canned(good_answer()) as server,
        contextlib.closing(HttpTransport(server.url, timeouts=Timeouts(total=None))) as transport,
    ):
        transport.send(FRAME)
    for wrong in ({"total": 0.0}, {"read": -1.0}, {"connect": 0.0}):
        with pytest.raises(UsageError, match="more than 0 seconds"):
            Timeouts(**wrong)
