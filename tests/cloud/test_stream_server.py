"""The server's half of the stream, over real sockets: what it answers and refuses, and what hostile clients get."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from runtime_helpers import Pair, Served, make_pair, serving, until
from stream_client import REQUEST, frame_of, hello, stream_to, watched

from splitwire.codec.wire.reply import decode_reply
from splitwire.codec.wire.stream import (
    CLOSING,
    MAX_NUMBER,
    Keyed,
    Kind,
    Status,
    frame_record,
    keyed_record,
    number_record,
    parse_refusal,
    reply_record,
    varint,
)
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.session import CloudSession


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Served]:
    with serving(pair, limits=ServerLimits(max_body=100_000)) as running:
        yield running


@pytest.fixture(scope="module")
def frame(pair: Pair) -> bytes:
    return frame_of(pair)


def only(served: Served) -> CloudSession:
    (session,) = served.api.service.models
    return session


# ------------------------------------------------------------------ opening


def test_a_request_that_does_not_ask_for_the_stream(served: Served):
    for headers in ({}, {"Upgrade": "splitwire-stream"}, {"Upgrade": "websocket", "Connection": "Upgrade"}):
        answer = httpx.get(served.url + "/v1/stream", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "usage")


def test_an_upgrade_of_another_route_is_an_ordinary_request(served: Served, caplog: pytest.LogCaptureFixture):
    headers = {"Upgrade": "splitwire-stream", "Connection": "Upgrade"}
    assert httpx.get(served.url + "/healthz", headers=headers).json() == {"status": "live"}
    assert caplog.records == []


def test_models_that_warm_up(pair: Pair):
    with serving(pair) as server:
        server.api.service.ready = False
        headers = {"Upgrade": "splitwire-stream", "Connection": "Upgrade"}
        answer = httpx.get(server.url + "/v1/stream", headers=headers)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_number_of_streams(pair: Pair):
    with serving(pair, limits=ServerLimits(streams=1)) as server:
        headers = {"Upgrade": "splitwire-stream", "Connection": "Upgrade"}
        with stream_to(server.address):
            answer = httpx.get(server.url + "/v1/stream", headers=headers)
            assert (answer.status_code, answer.json()["error"]["message"]) == (
                503, "1 streams are open; come back later"
            )  # fmt: skip
        until(lambda: len(server.api.streams) == 0)
        with stream_to(server.address) as client:
            assert client.ping(7) == 7


def test_welcome_and_ping(served: Served):
    with stream_to(served.address, None) as client:
        welcome = client.welcome()
        assert (welcome.version, welcome.window, welcome.idle_s, welcome.max_frame) == (1, 16, 75.0, 100_000)
        assert client.ping(MAX_NUMBER) == MAX_NUMBER
    with stream_to(served.address, None) as client:
        assert client.welcome(hello(window=3)).window == 3


HELLOS = {
    "another version": (hello(versions=[2, 3]), "unsupported_version", "speaks version 2, 3 of the stream"),
    "another pair": (hello(pair=bytes(8)), "fingerprint_mismatch", "0000000000000000"),
    "no hello": (frame_record(0, b"x"), "corrupt", "does not belong here"),
    "a hello of rubbish": (b"\x01\x05abcde", "corrupt", "checksum does not match"),
}


@pytest.mark.parametrize("name", HELLOS)
def test_hellos_that_are_refused(served: Served, name: str):
    data, code, words = HELLOS[name]
    with stream_to(served.address, None) as client:
        client.say(data)
        refusal = client.goodbye()
        assert refusal.code == code
        assert words in refusal.message


def test_an_output_that_the_pair_has_not(served: Served, pair: Pair):
    with stream_to(served.address, None) as client:
        client.say(hello(pair=pair.profile.fingerprint, outputs=["logits", "boxes"]))
        assert client.goodbye().message == "the pair has no output 'boxes'; it has logits, best"


# ------------------------------------------------------------------ frames and replies


def test_a_reply_is_that_of_http(served: Served, frame: bytes):
    by_http = decode_reply(httpx.post(served.url + "/v1/infer", content=frame).content)
    with stream_to(served.address) as client:
        client.frame(frame)
        sequence, status, body = client.reply()
    by_stream = decode_reply(body)
    assert (sequence, status, by_stream.frame_id) == (0, Status.OUTPUTS, 9)
    for name, array in by_http.outputs.items():
        np.testing.assert_array_equal(by_stream.outputs[name], array)


def test_only_the_wanted_outputs_are_sent(served: Served, pair: Pair, frame: bytes):
    with stream_to(served.address, hello(pair=pair.profile.fingerprint, outputs=["best"])) as client:
        client.frame(frame)
        assert list(decode_reply(client.reply().body).outputs) == ["best"]


def test_outputs_without_a_pair_are_checked_with_each_frame(served: Served, frame: bytes):
    for outputs, status in ((["best"], Status.OUTPUTS), (["boxes"], Status.ERROR)):
        with stream_to(served.address, hello(outputs=outputs, boot="names")) as client:
            client.frame(frame)
            assert client.reply().status is status


def test_no_outputs_is_an_acknowledgement(served: Served, frame: bytes):
    with stream_to(served.address, hello(outputs=[], boot="none")) as client, watched(only(served)) as (count, _):
        client.frame(frame)
        assert client.reply() == (0, Status.TAKEN, b"")
        assert count == [1]


def test_two_pairs_on_one_stream(pair: Pair, tmp_path_factory: pytest.TempPathFactory):
    other = make_pair(tmp_path_factory.mktemp("other"), seed=1, two_tensors=True)
    with serving(pair, other) as both, stream_to(both.address) as client:
        for p in (pair, other):
            client.frame(frame_of(p))
            assert client.reply().status is Status.OUTPUTS


def test_an_error_concerns_its_frame_only(served: Served, pair: Pair, frame: bytes, tmp_path: Any):
    other = frame_of(make_pair(tmp_path, seed=1))
    with stream_to(served.address) as client:
        for data in (other, frame):
            client.frame(data)
        answers = {r.sequence: r for r in (client.reply(), client.reply())}
        assert answers[1].status is Status.OUTPUTS
        assert answers[0].status is Status.ERROR
        refusal = parse_refusal(answers[0].body)
        assert refusal.code == "fingerprint_mismatch"
        assert pair.profile.fingerprint.hex() in refusal.message


def test_a_busy_server_says_when_to_come_back(pair: Pair, frame: bytes):
    with (
        serving(pair, limits=ServerLimits(concurrency=1, queue=0, retry_after=2.5)) as server,
        watched(only(server), held=True) as (_, release),
        ThreadPoolExecutor(1) as pool,
        stream_to(server.address) as client,
    ):
        running = pool.submit(httpx.post, server.url + "/v1/infer", content=frame, timeout=20)
        until(lambda: server.api.service.scheduler.running == 1)
        client.frame(frame)
        _, status, body = client.reply()
        refusal = parse_refusal(body)
        assert (status, refusal.code) == (Status.ERROR, "server_busy")
        assert refusal.retry_after is not None
        assert 1.25 <= refusal.retry_after < 3  # spread, so that those who were refused do not all come at once
        release.set()
        assert running.result().status_code == 200


def test_a_bug_is_an_error_of_the_frame(served: Served, frame: bytes, caplog: pytest.LogCaptureFixture):
    session = only(served)

    def broken(*crossing: object) -> object:
        raise ZeroDivisionError("secret")

    run_back, session.run_back = session.run_back, broken  # type: ignore[method-assign, assignment]  # any arguments
    try:
        with stream_to(served.address, hello(boot="bug")) as client:
            client.frame(frame)
            refusal = parse_refusal(client.reply().body)
            assert (refusal.code, "secret" in refusal.message) == ("internal", False)
            assert client.ping(1) == 1
    finally:
        session.run_back = run_back  # type: ignore[method-assign]  # restored
    assert "a frame is not answered" in caplog.text


# ------------------------------------------------------------------ windows


def test_windows_shrink_and_grow_with_the_number_of_streams(pair: Pair):
    with (
        serving(pair, limits=ServerLimits(concurrency=2, queue=4)) as server,
        stream_to(server.address, None) as first,
    ):
        assert first.welcome().window == 6
        with stream_to(server.address, None) as second:
            assert second.welcome().window == 3
            assert first.ping(0) == 0
            assert first.windows == [3]
            second.leave()
        until(lambda: len(server.api.streams) == 1)
        first.ping(0)
        assert first.windows == [3, 6]


def test_more_frames_in_flight_than_allowed(pair: Pair, frame: bytes):
    with (
        serving(pair, limits=ServerLimits(concurrency=1, queue=1)) as server,
        watched(only(server), held=True),
        stream_to(server.address) as client,
    ):
        for _ in range(3):
            client.frame(frame)
        refusal = client.goodbye()
        assert (refusal.code, refusal.message) == ("usage", "more than 2 frames in flight; wait for replies")
        assert server.api.service.scheduler.running == 1


# ------------------------------------------------------------------ wrong and hostile clients


def damaged(frame: bytes) -> bytes:
    return frame[:-1] + bytes([frame[-1] ^ 1])


WRONG: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "a record added": (lambda f: frame_record(0, f) * 2, "corrupt", "is not number 1: one was lost, added or repeated"),
    "a record lost": (lambda f: frame_record(1, f), "corrupt", "is not number 0"),
    "a keyed record repeated": (lambda f: keyed_record(Keyed(0, 5, "", "", f)) * 2, "corrupt", "number 0, expected 1"),
    "a second hello": (lambda f: hello(), "corrupt", "kind 1 does not belong here"),
    "a welcome": (lambda f: b"\x02", "corrupt", "kind 2 does not belong here"),
    "a reply": (lambda f: reply_record(0, Status.TAKEN), "corrupt", "kind 4 does not belong here"),
    "an unknown kind": (lambda f: b"\x7f", "corrupt", "kind 127 does not belong here"),
    "a frame over the limit": (lambda f: b"\x80" + varint(100_001), "limit_exceeded", "100001 bytes is over the limit"),
    "256 MB announced": (lambda f: b"\x80" + varint((1 << 28) - 1), "limit_exceeded", "over the limit of 100000"),
    "a keyed frame over the limit": (lambda f: b"\x03" + varint(100_155), "limit_exceeded", "over the limit of 100154"),
    "a ping of a megabyte": (lambda f: b"\x06" + varint(1 << 20), "limit_exceeded", "over the limit of 14"),
    "an empty frame": (lambda f: b"\x80\x00", "corrupt", "needs at least 1"),
    "HTTP": (lambda f: REQUEST, "corrupt", "does not belong here"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_records_end_the_stream_with_a_reason(served: Served, frame: bytes, name: str):
    make, code, words = WRONG[name]
    with stream_to(served.address, hello(boot="wrong")) as client:
        client.say(make(frame))
        while (record := client.record()) is not None and record.head == Kind.REPLY:
            pass
        assert record is not None
        refusal = parse_refusal(record.body)
        assert refusal.code == code
        assert words in refusal.message
    until(lambda: len(served.api.streams) == 0 and served.api.service.gate._buffered == 0)


@pytest.mark.parametrize(
    "change", [damaged, lambda f: f[:-1], lambda f: f + b"\0", lambda f: b"hello" * 20, lambda f: f[:5]]
)
def test_a_damaged_frame_ends_the_stream(served: Served, frame: bytes, change: Callable[[bytes], bytes]):
    """And nothing behind it is counted."""
    with stream_to(served.address, hello(boot="damaged")) as client, watched(only(served)) as (count, _):
        client.say(frame_record(0, change(frame)) + frame_record(1, frame))
        sequence, status, _ = client.reply()
        assert (sequence, status) == (0, Status.DAMAGED)
        assert client.goodbye().code == "corrupt"
        assert count == []


def test_a_length_that_swallows_the_next_record_moves_no_counter(served: Served, frame: bytes):
    with stream_to(served.address, hello(boot="swallowed")) as client, watched(only(served)) as (count, _):
        true = frame_record(0, frame) + frame_record(1, frame)
        size = len(varint(len(frame)))
        client.say(true[:1] + varint(len(frame) + 20) + true[1 + size :] + bytes(200))
        assert client.reply().status is Status.DAMAGED
        assert client.goodbye().code == "corrupt"
        assert count == []


def test_records_byte_by_byte(served: Served, frame: bytes):
    with stream_to(served.address, hello(boot="bytes")) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in frame_record(0, frame):
            client.say(bytes([byte]))
        assert client.reply().status is Status.OUTPUTS


def test_slow_and_silent_clients(pair: Pair, frame: bytes):
    """No hello, half a record, nothing at all: each is told why, and leaves nothing behind."""
    with serving(pair, limits=ServerLimits(body_timeout=0.3)) as server:
        server.api.streams.hello_s, server.api.streams.idle_s = 0.4, 0.5
        with (
            stream_to(server.address, None) as mute,
            stream_to(server.address, hello(boot="half")) as half,
            stream_to(server.address, hello(boot="idle")) as idle,
        ):
            half.say(frame_record(0, frame)[:-5])
            until(lambda: server.api.service.gate._buffered > 0)
            assert half.goodbye().message == "the rest of a record did not arrive within 0.3 s"
            assert mute.goodbye().message == "no hello within 0.4 s"
            assert idle.goodbye().message == "nothing arrived for 0.5 s"
        until(lambda: len(server.api.streams) == 0)
        assert server.api.service.gate._buffered == 0


@pytest.mark.slow
def test_a_client_that_does_not_read(pair: Pair):
    """Nothing more is read from it, and after a while it is cut off; the others go on."""
    with (
        serving(pair, limits=ServerLimits(body_timeout=0.4)) as server,
        stream_to(server.address) as greedy,
        stream_to(server.address, hello(boot="polite")) as polite,
    ):
        # A system may buffer 30 MB for a client that does not read: that takes long to fill, 16 bytes at a time.
        greedy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        greedy.socket.settimeout(0.1)
        flood, sent = number_record(Kind.PING, MAX_NUMBER) * 2000, 0
        deadline = time.monotonic() + 60
        while len(server.api.streams) == 2:
            assert time.monotonic() < deadline, "it is not cut off"
            with contextlib.suppress(OSError):  # when nobody reads, and when it is cut off
                sent += greedy.socket.send(flood[sent % 16 :])
        assert polite.ping(3) == 3


def test_memory_of_all_clients(pair: Pair, frame: bytes):
    limits = ServerLimits(max_body=20_000, max_buffered=20_000)
    with (
        serving(pair, limits=limits) as server,
        stream_to(server.address, hello(boot="a")) as first,
        stream_to(server.address, hello(boot="b")) as second,
    ):
        first.say(b"\x80" + varint(20_000) + bytes(15_000))
        until(lambda: server.api.service.gate._buffered > 15_000)
        second.say(b"\x80" + varint(20_000) + bytes(15_000))
        refusal = second.goodbye()
        assert (refusal.code, refusal.retry_after) == ("server_busy", 1.0)
        first.say(bytes(5_000))
        assert first.reply().status is Status.DAMAGED
        until(lambda: server.api.service.gate._buffered == 0)


def test_a_client_that_hangs_up(served: Served, frame: bytes, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    with watched(only(served), held=True) as (count, release):
        with stream_to(served.address, hello(boot="gone")) as client:
            client.frame(frame)
            client.say(frame_record(1, frame)[:20])
            until(lambda: len(count) == 1)
        until(lambda: len(served.api.streams) == 0)
        release.set()
    until(lambda: served.api.service.gate._buffered == 0)
    assert caplog.records == []


# ------------------------------------------------------------------ the end


def test_a_server_that_stops_answers_what_it_has_taken(pair: Pair, frame: bytes):
    with (
        serving(pair) as server,
        watched(only(server), held=True) as (_, release),
        stream_to(server.address) as client,
        stream_to(server.address, hello(boot="idle")) as idle,
    ):
        for _ in range(3):
            client.frame(frame)
        until(lambda: server.api.service.scheduler.running == 2)
        server.server.should_exit = True
        assert parse_refusal(client.expect(Kind.GOODBYE)).code == CLOSING
        assert idle.goodbye().code == CLOSING
        client.frame(frame)  # too late: not answered
        threading.Timer(0.2, release.set).start()
        assert sorted(client.reply().sequence for _ in range(3)) == [0, 1, 2]
        assert client.record() is None


def test_a_client_that_says_goodbye(served: Served, frame: bytes):
    with stream_to(served.address, hello(boot="bye")) as client:
        client.leave()
        assert client.record() is None
    until(lambda: len(served.api.streams) == 0)


def test_many_clients_at_a_time(served: Served, pair: Pair):
    """Eight streams, pipelined; each gets the answers to its own frames."""

    def run(number: int) -> list[int]:
        with stream_to(served.address, hello(boot=f"many-{number}")) as client:
            ids = []
            for i in range(20):
                client.frame(frame_of(pair, frame_id=100 * number + i))
                ids.append(decode_reply(client.reply().body).frame_id)
            return ids

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == [[100 * n + i for i in range(20)] for n in range(8)]
