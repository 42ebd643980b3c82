"""The proxy of the fault tests does to a connection what it is told, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from proxy import REPEATED, Fault, Link, Proxy

DATA = bytes(range(256)) * 40


@contextlib.contextmanager
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it gets, until the client ends."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def through(proxy: Proxy, data: bytes = DATA, seconds: float = 5.0) -> bytes:
    """Send the data, end, and return what comes back until the connection ends."""
    parts = []
    with socket.create_connection(proxy.address, seconds) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_without_faults_it_passes_everything():
    with echo() as server, Proxy(server) as proxy:
        assert through(proxy) == DATA
        assert through(proxy) == DATA
        assert proxy.connections == 2
        assert not proxy.done


def test_it_stops_quietly_with_open_connections(caplog: pytest.LogCaptureFixture):
    with echo() as server:
        with Proxy(server) as proxy:
            connection = socket.create_connection(proxy.address, 5)
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
        connection.close()
    assert caplog.records == []


def test_rate_and_delay_are_those_of_the_link():
    with echo() as server, Proxy(server, up=Link(rate=50_000, delay_s=0.05)) as proxy:
        start = time.monotonic()
        assert through(proxy) == DATA
        took = time.monotonic() - start
        assert took >= len(DATA) / 50_000 + 0.05
        proxy.up.rate = None
        start = time.monotonic()
        through(proxy)
        assert time.monotonic() - start < took - 0.1


def test_connections_share_the_rate():
    with echo() as server, Proxy(server, down=Link(rate=100_000)) as proxy:
        start = time.monotonic()
        threads = [threading.Thread(target=through, args=(proxy,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - start >= 2 * len(DATA) / 100_000 - 0.01


def test_corruption_changes_one_byte_where_it_is_planned():
    with echo() as server, Proxy(server, down=Link(plan=((7, "corrupt"), (5000, "corrupt")))) as proxy:
        received = through(proxy)
        assert [i for i, (a, b) in enumerate(zip(DATA, received, strict=True)) if a != b] == [7, 5000]
        assert proxy.done == {("down", "corrupt"): 2}
        assert through(proxy) == DATA  # a plan is for the first connection


def test_duplication_sends_some_bytes_twice():
    with echo() as server, Proxy(server, up=Link(plan=((1000, "duplicate"),))) as proxy:
        assert through(proxy) == DATA[:1000] + DATA[1000 - REPEATED : 1000] + DATA[1000:]


def test_truncation_ends_the_connection_in_order():
    with echo() as server, Proxy(server, down=Link(plan=((1000, "truncate"),))) as proxy:
        assert through(proxy) == DATA[:1000]


def test_reset_is_an_error():
    with echo() as server, Proxy(server, down=Link(plan=((1000, "reset"),))) as proxy, pytest.raises(ConnectionError):
        through(proxy)


def test_stall_for_a_time_and_for_ever():
    with echo() as server, Proxy(server, down=Link(plan=((1000, "stall"),), stall_s=0.2)) as proxy:
        start = time.monotonic()
        assert through(proxy) == DATA
        assert time.monotonic() - start >= 0.2
    with echo() as server, Proxy(server, down=Link(plan=((1000, "stall"),))) as proxy, pytest.raises(TimeoutError):
        through(proxy, seconds=0.2)


def test_open_connections_are_cut_and_new_ones_refused():
    with echo() as server, Proxy(server) as proxy:
        with socket.create_connection(proxy.address, 5) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            proxy.cut()
            with pytest.raises(ConnectionError):
                assert connection.recv(1) != b""
                connection.sendall(b"x")
        proxy.refusing = True
        with pytest.raises((ConnectionError, AssertionError)):
            assert through(proxy)
        proxy.refusing = False
        assert through(proxy) == DATA


@pytest.mark.parametrize("fault", ["corrupt", "duplicate"])
def test_random_faults_repeat_with_their_seed_and_have_their_mean_distance(fault: Fault):
    data = DATA * 20

    def run(seed: int) -> tuple[bytes, int]:
        link = Link(**{fault: 2000.0})  # type: ignore[arg-type]  # one of its fields
        with echo() as server, Proxy(server, down=link, seed=seed) as proxy:
            return through(proxy, data), proxy.done["down", fault]

    first, count = run(1)
    assert run(1) == (first, count)
    assert run(2)[0] != first
    assert 0.7 * len(data) / 2000 < count < 1.3 * len(data) / 2000
