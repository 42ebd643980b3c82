"""When a request wants to run: headers over HTTP, the hello of a stream, clients that go away."""

from __future__ import annotations

import contextlib
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from runtime_helpers import Pair, Served, canned, good_answer, serving, until
from stream_client import frame_of, hello, stream_to, watched

from splitwire.codec.errors import DeadlineExceeded
from splitwire.codec.wire.stream import Status, parse_refusal
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.call import Call, device_of
from splitwire.runtime_cloud.service import Service
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.transport import HttpTransport, StreamTransport, Timeouts

ONE_AT_A_TIME = ServerLimits(concurrency=1)


@pytest.fixture
def frame(pair: Pair) -> bytes:
    return frame_of(pair)


def only(served: Served) -> CloudSession:
    (session,) = served.api.service.models
    return session


def post(served: Served, frame: bytes, **headers: str) -> httpx.Response:
    names = {f"X-Splitwire-{name.replace('_', '-')}": value for name, value in headers.items()}
    return httpx.post(f"{served.url}/v1/infer", content=frame, headers=names, timeout=30)


def test_the_headers_reach_the_scheduler(pair: Pair, frame: bytes, monkeypatch: pytest.MonkeyPatch):
    calls: list[Call] = []
    answer = Service.answer

    async def seen(self: Service, call: Call) -> bytes:
        calls.append(call)
        return await answer(self, call)

    monkeypatch.setattr(Service, "answer", seen)
    with serving(pair) as served:
        assert post(served, frame, Device="camera-7", Priority="1", Deadline_Ms="60000").status_code == 200
        assert post(served, frame).status_code == 200
    first, second = calls
    assert (device_of(first), first.priority, first.client) == ("camera-7", 1, "127.0.0.1")
    assert first.deadline is not None
    assert (device_of(second), second.priority, second.deadline) == ("", 0, None)
    assert second.abandoned is not None


@pytest.mark.parametrize(
    "headers",
    [
        {"Deadline_Ms": "-1"},
        {"Deadline_Ms": "soon"},
        {"Deadline_Ms": "9" * 10},
        {"Priority": "4"},
        {"Priority": ""},
        {"Device": "a b"},
        {"Device": "a" * 65},
    ],
)
def test_headers_that_say_nothing(pair: Pair, frame: bytes, headers: dict[str, str]):
    with serving(pair) as served:
        response = post(served, frame, **headers)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "usage")


def test_a_deadline_that_passes_in_the_queue(pair: Pair, frame: bytes):
    with (
        serving(pair, limits=ONE_AT_A_TIME) as served,
        watched(only(served), held=True) as (count, release),
        ThreadPoolExecutor(4) as pool,
        stream_to(served.address, hello(deadline=0.05)) as client,
    ):
        running = pool.submit(post, served, frame)
        until(lambda: served.api.service.scheduler.running == 1)
        late = pool.submit(post, served, frame, Deadline_Ms="50")
        transport = HttpTransport(served.url, retries=0, timeouts=Timeouts(total=30))
        patient = pool.submit(transport.send, frame)
        client.frame(frame)
        until(lambda: served.api.service.scheduler.waiting == 3)
        with contextlib.suppress(TimeoutError):
            late.result(0.2)
        release.set()
        assert (late.result().status_code, late.result().json()["error"]["code"]) == (504, "deadline_exceeded")
        _, status, body = client.reply()
        assert (status, parse_refusal(body).code) == (Status.ERROR, "deadline_exceeded")
        assert running.result().status_code == 200
        assert patient.result().frame_id == 9
        transport.close()
        assert len(count) == 2


def test_a_deadline_of_now(pair: Pair, frame: bytes):
    with serving(pair) as served, watched(only(served)) as (count, _):
        assert post(served, frame, Deadline_Ms="0").status_code == 504
        assert not count


def test_the_edge_tells_its_deadline(pair: Pair, frame: bytes):
    """Only one that the caller chose: it costs 30 bytes a frame."""
    with canned(good_answer(9)) as record:
        for timeouts in (Timeouts(total=2.5), Timeouts()):
            with contextlib.closing(HttpTransport(record.url, timeouts=timeouts)) as transport:
                transport.send(frame)
    with_deadline, without = (head.decode() for head in record.heads)
    (line,) = (line for line in with_deadline.split("\r\n") if "Deadline" in line)
    name, _, value = line.partition(": ")
    assert name == "X-Splitwire-Deadline-Ms"
    assert 0 < int(value) <= 2500
    assert "Deadline" not in without


def test_the_edge_reads_the_error(pair: Pair, frame: bytes, monkeypatch: pytest.MonkeyPatch):
    async def late(self: Service, call: Call) -> bytes:
        raise DeadlineExceeded("the deadline of the request passed before it ran")

    monkeypatch.setattr(Service, "answer", late)
    with serving(pair) as served:
        transports: list[Any] = [
            HttpTransport(served.url),
            StreamTransport(served.url.replace("http", "stream"), timeouts=Timeouts(total=5)),
        ]
        for transport in transports:
            with contextlib.closing(transport), pytest.raises(DeadlineExceeded, match="passed before it ran"):
                transport.send(frame)


def test_requests_whose_client_has_gone_do_not_run(pair: Pair, frame: bytes):
    with (
        serving(pair, limits=ONE_AT_A_TIME) as served,
        watched(only(served), held=True) as (count, release),
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(post, served, frame)
        scheduler = served.api.service.scheduler
        until(lambda: scheduler.running == 1)
        head = f"POST /v1/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(frame)}\r\n\r\n".encode()
        with socket.create_connection(served.address) as lost, stream_to(served.address) as client:
            lost.sendall(head + frame)
            client.frame(frame)
            until(lambda: scheduler.waiting == 2)
            # With a reset. A client that only says that it sends no more is waiting for its answer.
            lost.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        until(lambda: len(served.api.streams) == 0)
        assert httpx.get(served.url + "/healthz").status_code == 200  # the server has heard of both ends
        release.set()
        assert running.result().status_code == 200
        until(lambda: scheduler.waiting == scheduler.running == 0)
        assert len(count) == 1
