"""StreamTransport against the real server, and against servers that open no stream."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from proxy import Proxy
from runtime_helpers import Pair, Served, http_answer, images, serving, until
from stream_client import frame_of, watched
from stream_fake import SWITCHED, End, answer, fake_stream

from splitwire.codec.errors import (
    AuthRefused,
    BadResponse,
    ConnectTimeout,
    Corrupt,
    FingerprintMismatch,
    ServerBusy,
    SplitwireError,
    TransportError,
    UsageError,
)
from splitwire.codec.wire.stream import (
    Refusal,
    goodbye_record,
    parse_keyed,
)
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport.base import Key, Reply
from splitwire.runtime_edge.transport.credentials import TokenFile
from splitwire.runtime_edge.transport.http import HttpTransport
from splitwire.runtime_edge.transport.stream import StreamTransport
from splitwire.runtime_edge.waiting import may_pass

FRAME = b"frame" * 20


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Served]:
    with serving(pair) as running:
        yield running


def stream_url(server: Served | Proxy) -> str:
    return server.url.replace("http", "stream")


@contextlib.contextmanager
def stream(url: str, **options) -> Iterator[StreamTransport]:
    with contextlib.closing(StreamTransport(url, **options)) as transport:
        yield transport


def ok(result: Reply | SplitwireError) -> Reply:
    assert isinstance(result, Reply), result
    return result


# ------------------------------------------------------------------ the real server


def test_outputs_are_those_of_http(served: Served, pair: Pair):
    x = images(2)
    with (
        EdgeSession(pair.front, transport=StreamTransport(stream_url(served))) as by_stream,
        EdgeSession(pair.front, transport=HttpTransport(served.url)) as by_http,
    ):
        a, b = by_stream.infer(x), by_http.infer(x)
        again = by_stream.infer(x)
    for name, array in b.outputs.items():
        np.testing.assert_array_equal(a.outputs[name], array)
    assert again.frame_bytes + 2 <= again.bytes_sent <= again.frame_bytes + 3
    assert a.bytes_sent > again.bytes_sent  # the first one opens the connection


def test_a_short_frame_costs_two_bytes_more(served: Served, pair: Pair):
    frames = [frame_of(pair, i) for i in range(10)]
    with Proxy(served.address) as proxy, stream(stream_url(proxy)) as transport:
        replies = [transport.send(frame) for frame in frames]
    assert [r.bytes_sent - len(f) for r, f in zip(replies[1:], frames[1:], strict=True)] == [2] * 9


def test_frames_of_several_threads_share_one_connection(served: Served, pair: Pair):
    frames = [frame_of(pair, i) for i in range(120)]
    with stream(stream_url(served)) as transport, ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(transport.send, frames))
        assert len(served.api.streams) == 1
    assert [r.frame_id for r in replies] == list(range(120))
    assert {r.attempts for r in replies} == {1}
    until(lambda: len(served.api.streams) == 0)


def test_many_frames_at_a_time(served: Served, pair: Pair):
    frames = [frame_of(pair, i) for i in range(100)]
    keys = [None if i % 2 else Key("other", "run-1", i) for i in range(100)]
    with stream(stream_url(served)) as transport, watched(next(iter(served.api.service.models))) as (count, _):
        assert [ok(r).frame_id for r in transport.send_many(frames, keys)] == list(range(100))
        assert len(count) == 100
        again = transport.send_many(frames, keys)
        assert [ok(r).frame_id for r in again] == list(range(100))
        assert len(count) == 150  # frames with a key of the caller are answered from memory
        with pytest.raises(UsageError, match="one key"):
            transport.send_many(frames, [None])


def test_an_error_is_that_of_its_frame(served: Served, pair: Pair):
    good = frame_of(pair)
    bad = good[:-1] + bytes([good[-1] ^ 1])
    with stream(stream_url(served)) as transport:
        first, second, third = transport.send_many([good, bad, good], [None] * 3)
        assert isinstance(second, Corrupt)
        assert "frame is damaged" in str(second)
        assert ok(first).frame_id == ok(third).frame_id == 9
        with pytest.raises(Corrupt):
            transport.send(bad)
        assert transport.send(good).attempts == 1


def test_only_some_outputs(served: Served, pair: Pair):
    with stream(stream_url(served), outputs=["best"], pair=pair.profile.fingerprint) as transport:
        assert list(transport.send(frame_of(pair)).outputs) == ["best"]
    with stream(stream_url(served), outputs=[]) as transport:
        reply = transport.send(frame_of(pair, frame_id=77))
        assert (reply.outputs, reply.frame_id) == ({}, 77)
    with stream(stream_url(served), outputs=["boxes"]) as transport, pytest.raises(UsageError, match="has no output"):
        transport.send(frame_of(pair))


def test_another_pair_is_refused_at_once(served: Served, pair: Pair):
    with stream(stream_url(served), pair=bytes(8)) as transport, pytest.raises(FingerprintMismatch):
        transport.send(frame_of(pair))


def test_a_busy_server_is_waited_for(pair: Pair):
    limits = ServerLimits(concurrency=1, queue=0, retry_after=0.2)
    with (
        serving(pair, limits=limits) as server,
        watched(next(iter(server.api.service.models)), held=True) as (_, release),
        ThreadPoolExecutor(2) as pool,
        stream(stream_url(server)) as one,
        stream(stream_url(server)) as two,
    ):
        first = pool.submit(one.send, frame_of(pair, 1))
        until(lambda: server.api.service.scheduler.running == 1)
        second = pool.submit(two.send, frame_of(pair, 2))
        time.sleep(0.1)
        release.set()
        assert (first.result().attempts, second.result().attempts) == (1, 2)


def test_busy_for_good(pair: Pair):
    limits = ServerLimits(streams=0)
    with serving(pair, limits=limits) as server, stream(stream_url(server), retries=0) as transport:
        with pytest.raises(ServerBusy, match="0 streams are open") as caught:
            transport.send(frame_of(pair))
        assert may_pass(caught.value)


def test_a_server_that_stops_and_comes_back(pair: Pair):
    """What it has taken is answered; what comes later goes to the next server."""
    with (
        serving(pair) as server,
        Proxy(server.address) as proxy,
        stream(stream_url(proxy), retries=20) as transport,
        watched(next(iter(server.api.service.models)), held=True) as (_, release),
        ThreadPoolExecutor(4) as pool,
    ):
        running = [pool.submit(transport.send, frame_of(pair, i)) for i in range(2)]
        until(lambda: server.api.service.scheduler.running == 2)
        with serving(pair) as successor:
            proxy.target = successor.address
            server.server.should_exit = True
            until(lambda: transport._connection is not None and not transport._connection.is_usable)
            assert transport.send(frame_of(pair, 7)).frame_id == 7
            assert len(successor.api.streams) == 1
            release.set()
            assert [(f.result().frame_id, f.result().attempts) for f in running] == [(0, 1), (1, 1)]


# ------------------------------------------------------------------ opening


def test_request_and_hello():
    def script(end: End) -> None:
        end.greet()
        end.frame()
        end.answer(0)
        end.until_closed()

    with fake_stream(script) as server, stream(server.url, token="secret", device="cam", outputs=["a"]) as transport:
        reply = transport.send(FRAME)
        host = server.url.removeprefix("stream://")
        (hello,) = server.hellos
    assert server.heads == [
        f"GET /v1/stream HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: splitwire-stream\r\n"
        "User-Agent: splitwire\r\nAuthorization: Bearer secret\r\n\r\n".encode()
    ]
    assert (hello.versions, hello.device, hello.counter, hello.outputs, hello.pair) == ((1,), "cam", 0, ("a",), None)
    assert len(hello.boot) == 16
    assert (reply.decode_ms, reply.back_ms, reply.attempts) == (0.1, 0.2, 1)


def test_keys_of_the_caller_make_the_hello():
    def script(end: End) -> None:
        end.greet()
        for i in range(4):
            end.frame()
            end.answer(i)
        end.until_closed()

    keys = [Key("d", "b", n) for n in (70, 71, 60)] + [Key("d", "earlier", 3)]
    with fake_stream(script) as server, stream(server.url) as transport:
        for key in keys:
            transport.send(FRAME, key)
        (hello,) = server.hellos
    assert (hello.device, hello.boot, hello.counter) == ("d", "b", 70)
    assert [r.is_frame for r in server.frames] == [True, True, False, False]
    assert parse_keyed(server.frames[2].body)[:4] == (2, 60, "", "")
    assert parse_keyed(server.frames[3].body)[:4] == (3, 3, "d", "earlier")


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8500", "http://host", "stream://", "stream://host:99999", "stream://host/?q=1",
     "stream://user:secret@host", "ftp://user:secret@host", "", "stream://ho st"],
)  # fmt: skip
def test_addresses_that_are_none(url: str):
    with pytest.raises(UsageError) as caught:
        StreamTransport(url)
    assert "secret" not in str(caught.value)


def test_options_out_of_range():
    wrong = ({"retries": -1}, {"window": 0}, {"ping_s": 0}, {"token": "a b"}, {"pair": b"x"}, {"device": "a b"})
    for options in wrong:
        with pytest.raises(UsageError):
            StreamTransport("stream://127.0.0.1:1", **options)


def test_nobody_there():
    with Proxy(("127.0.0.1", 1)) as proxy:
        address = proxy.address
    with stream("stream://{}:{}".format(*address)) as transport:
        with pytest.raises(ConnectTimeout, match=r"connection refused after 3 tries; is `splitwire cloud") as caught:
            transport.send(FRAME)
        assert may_pass(caught.value)
        start = time.monotonic()
        results = transport.send_many([FRAME] * 500, [None] * 500)
        assert {type(r) for r in results} <= {ConnectTimeout, TransportError} | {type(results[0])}
        assert time.monotonic() - start < 3


ANSWERS: dict[str, tuple[bytes, type[SplitwireError], str]] = {
    "an older server": (
        http_answer(404, b'{"error":{"code":"not_found","message":"GET /v1/stream: not found"}}', "application/json"),
        TransportError,
        "GET /v1/stream: not found",
    ),
    "another server": (http_answer(200, b"<html>", "text/html"), BadResponse, "answered text/html"),
    "no token": (http_answer(401, b"", "text/plain"), AuthRefused, "check the token"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", BadResponse, "does not answer in HTTP"),
    "another protocol": (SWITCHED.replace(b"splitwire-stream", b"websocket"), BadResponse, "not asked for"),
    "rubbish behind the 101": (SWITCHED + b"\x00" * 50, BadResponse, "does not speak the stream"),
    "a reply before the welcome": (SWITCHED + answer(0), BadResponse, "does not belong here"),
    "256 MB of welcome": (SWITCHED + b"\x02\xff\xff\xff\x7f", BadResponse, "over the limit of 16384"),
    "a goodbye": (
        SWITCHED + goodbye_record(Refusal(code="unsupported_version", message="this server is older\x1b[2J")),
        SplitwireError,
        "this server is older",
    ),
    "nothing": (b"", TransportError, "closed the connection before it answered"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_servers_that_open_no_stream(name: str):
    data, kind, words = ANSWERS[name]

    def script(end: End) -> None:
        end.head()
        end.say(data)
        time.sleep(0.05)

    with fake_stream(script) as server, stream(server.url, retries=0) as transport, pytest.raises(kind) as caught:
        transport.send(FRAME)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_token_that_is_renewed(tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("old")

    def refuse(end: End) -> None:
        end.log.heads.append(end.head())
        file.write_text("new-token")
        end.say(http_answer(401, b"", "text/plain"))
        time.sleep(0.05)

    def accept(end: End) -> None:
        end.greet()
        end.frame()
        end.answer(0)
        end.until_closed()

    with fake_stream(refuse, accept) as server, stream(server.url, token=TokenFile(file)) as transport:
        assert transport.send(FRAME).attempts == 1
    assert [b"Bearer new-token" in head for head in server.heads] == [False, True]


def test_closed():
    transport = StreamTransport("stream://127.0.0.1:1")
    transport.close()
    transport.close()
    with pytest.raises(UsageError, match="closed"):
        transport.send(FRAME)


def test_a_transport_that_nobody_closes_leaves_no_thread(served: Served, pair: Pair):
    def readers() -> int:
        return sum(t.name == "splitwire-stream" for t in threading.enumerate())

    until(lambda: readers() == 0)
    transport = StreamTransport(stream_url(served))
    transport.send(frame_of(pair))
    assert readers() == 1
    del transport
    gc.collect()
    until(lambda: readers() == 0)


# ------------------------------------------------------------------ fork, TLS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork()")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork() with threads, which is what is tested
def test_a_child_opens_a_connection_of_its_own(served: Served, pair: Pair):
    with stream(stream_url(served)) as transport:
        assert transport.send(frame_of(pair, 1)).frame_id == 1
        context = multiprocessing.get_context("fork")
        results = context.Queue()

        def child() -> None:
            results.put([transport.send(frame_of(pair, 100 + i)).frame_id for i in range(5)])

        process = context.Process(target=child)
        process.start()
        assert [transport.send(frame_of(pair, i)).frame_id for i in range(20)] == list(range(20))
        assert results.get(timeout=20) == [100, 101, 102, 103, 104]
        process.join(20)
        assert transport.send(frame_of(pair, 3)).attempts == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    try:
        subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl command")
    return cert, key


def test_tls(pair: Pair, certificate: tuple[Path, Path]):
    """Reads and writes at a time on one TLS connection, from eight threads."""
    cert, key = certificate
    with serving(pair, tls=(cert, key)) as server:
        url = stream_url(server).replace("stream://", "streams://")
        trusting = ssl.create_default_context(cafile=str(cert))
        frames = [frame_of(pair, i) for i in range(200)]
        with stream(url, verify=trusting) as transport, ThreadPoolExecutor(8) as pool:
            assert [r.frame_id for r in pool.map(transport.send, frames)] == list(range(200))
            assert transport.send(frames[5]).bytes_sent == len(frames[5]) + 2
        with stream(url, retries=0) as transport, pytest.raises(ConnectTimeout, match="no TLS connection"):
            transport.send(frames[0])
        with stream(url.replace("streams", "stream"), retries=0) as transport, pytest.raises(TransportError):
            transport.send(frames[0])
