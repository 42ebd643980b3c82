"""The drain: in order, several frames per request, a bounded share of the link, acknowledged only when answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from spool_helpers import Told, everything, frame, put

from splitwire.codec.errors import (
    CircuitOpen,
    Corrupt,
    FingerprintMismatch,
    RequestTimeout,
    ServerBusy,
    SplitwireError,
    TransportError,
    UsageError,
)
from splitwire.runtime_edge.spool import Drain, Spool, Spooled
from splitwire.runtime_edge.spool.records import unpack_dead
from splitwire.runtime_edge.transport.base import Key, Reply

Answer = Callable[[bytes], Reply | SplitwireError]


def reply(number: int = 0) -> Reply:
    outputs = {"y": np.zeros(1, np.float32)}
    return Reply(outputs=outputs, frame_id=number, decode_ms=0, back_ms=0, bytes_sent=1, bytes_received=1)


class Server:
    """A BatchTransport. answer: what each frame gets; delay_s, byte_s: times of a request; down: the error of all."""

    def __init__(self, answer: Answer = lambda _: reply()) -> None:
        self.answer, self.delay_s, self.byte_s = answer, 0.0, 0.0
        self.down: SplitwireError | None = None
        self.requests: list[list[bytes]] = []
        self.keys: list[Key | None] = []

    def send_many(self, frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]:
        self.requests.append(list(frames))
        self.keys += keys
        time.sleep(self.delay_s + self.byte_s * sum(map(len, frames)))
        if self.down is not None:
            return [self.down for _ in frames]
        return [self.answer(f) for f in frames]

    def send(self, data: bytes, key: Key | None = None) -> Reply:
        (answer,) = self.send_many([data], [key])
        if isinstance(answer, SplitwireError):
            raise answer
        return answer

    def close(self) -> None:
        """Nothing to close."""


class Single:
    """A transport without send_many."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def send(self, data: bytes, key: Key | None = None) -> Reply:
        return self.server.send(data, key)

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def spool(tmp_path: Path):
    with Spool(tmp_path / "spool.db", tier="buffered") as spool:
        yield spool


def drained(drain: Drain) -> None:
    """Step until the spool is empty, without the waits."""
    for _ in range(200):
        if drain.step() is None:
            return
    raise AssertionError("the spool does not drain")


def test_frames_are_sent_in_order_with_their_keys(spool: Spool):
    put(spool, range(50))
    keys = [r.key for r in everything(spool)]
    server, answers = Server(), list[Spooled]()
    drain = Drain(spool, server, on_reply=lambda record, _: answers.append(record))
    drained(drain)
    assert [f for request in server.requests for f in request] == [frame(n) for n in range(50)]
    assert max(len(request) for request in server.requests) == 16
    assert server.keys == keys
    assert [record.frame for record in answers] == [frame(n) for n in range(50)]
    assert spool.stats().frames == 0
    assert (drain.counts.answered, drain.counts.requests) == (50, len(server.requests))


def test_a_transport_for_single_frames(spool: Spool):
    put(spool, range(5))
    server = Server()
    drained(Drain(spool, Single(server)))
    assert server.requests == [[frame(n)] for n in range(5)]


@pytest.mark.parametrize("single", [False, True], ids=["batch", "single"])
def test_nothing_is_acknowledged_without_an_answer(spool: Spool, single: bool):
    put(spool, range(4))
    server = Server(lambda f: RequestTimeout("late") if f == frame(1) else reply())
    drain = Drain(spool, Single(server) if single else server)
    drain.step()
    # a single transport stops at the link's error: the frames behind it were not sent
    assert [r.frame for r in everything(spool)] == [frame(n) for n in ((1, 2, 3) if single else (1,))]
    assert drain.counts.failed == 1


def test_a_link_that_is_down_is_tried_less_and_less(spool: Spool):
    put(spool, range(3))
    server, told = Server(), Told()
    server.down = TransportError("refused")
    drain = Drain(spool, server, on_event=told)
    waits = [drain.step() or 0.0 for _ in range(40)]
    assert len(everything(spool)) == 3
    assert all(0 <= wait <= 30 for wait in waits)
    assert all(wait <= 0.5 * 2**i for i, wait in enumerate(waits))
    assert max(waits[10:]) > 10
    assert len({round(wait, 6) for wait in waits}) == 40  # full jitter
    server.down = None
    drained(drain)
    assert told.kinds == ["drain_waits", "drain_goes_on"]
    assert told.text("drain_waits") == "frames wait in the spool: refused"


@pytest.mark.parametrize("error", [ServerBusy("later", retry_after=7.0), CircuitOpen("later", retry_after=7.0)])
def test_retry_after_is_obeyed(spool: Spool, error: SplitwireError):
    put(spool, range(3))
    server = Server()
    server.down = error
    assert (Drain(spool, server).step() or 0) >= 7.0


def test_a_refused_frame_is_dead_after_three_times_and_blocks_nothing(spool: Spool):
    put(spool, range(10))
    refusals = {frame(2): Corrupt("a checksum is wrong"), frame(5): FingerprintMismatch("another pair")}
    server, told = Server(lambda f: refusals.get(f) or reply()), Told()
    drain = Drain(spool, server, on_event=told)
    drain.step()
    assert [r.frame for r in everything(spool)] == [frame(2), frame(5)]
    drained(drain)
    assert len(server.requests) == 3
    stats = spool.stats()
    assert (stats.frames, stats.dead) == (0, 2)
    rows = spool.run(lambda store: store.oldest_dead(9, 10**6))
    dead = [unpack_dead(body) for _, body in rows]
    assert [(d.code, d.reason) for d in dead] == [
        ("corrupt", "a checksum is wrong"),
        ("fingerprint_mismatch", "another pair"),
    ]
    assert [record.frame for d in dead if (record := d.record())] == [frame(2), frame(5)]
    assert told.kinds == ["drain_refused", "drain_refused"]


def test_a_frame_that_the_link_damaged_once_is_sent_again(spool: Spool):
    put(spool, range(3))
    tries = iter([Corrupt("on the way"), Corrupt("on the way")])
    drain = Drain(spool, Server(lambda f: next(tries, reply()) if f == frame(1) else reply()))
    drained(drain)
    assert (spool.stats().dead, drain.counts.answered) == (0, 3)


def test_errors_of_the_server_itself_are_repeated_longer(spool: Spool):
    put(spool, range(2))
    server = Server(lambda f: SplitwireError("internal") if f == frame(0) else reply())
    drained(Drain(spool, server))
    assert len(server.requests) == 10
    assert spool.stats().dead == 1


def test_an_error_of_the_whole_request_is_no_frames_fault(spool: Spool):
    put(spool, range(4))
    server = Server()
    send_many = server.send_many

    def failing(frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]:
        raise UsageError("too many frames")

    server.send_many = failing  # type: ignore[method-assign]  # the fault
    drain = Drain(spool, server)
    for _ in range(5):
        assert drain.step() is not None
    server.send_many = send_many  # type: ignore[method-assign]  # as before
    drained(drain)
    assert drain.counts.answered == 4


def test_a_result_that_cannot_be_handed_on_keeps_its_frame(spool: Spool):
    put(spool, range(2))
    full = [OSError("the outlet is full")]

    def outlet(_: Spooled, __: Reply) -> None:
        if full:
            raise full.pop()

    told = Told()
    drain = Drain(spool, Server(), on_reply=outlet, on_event=told)
    drain.step()
    assert [r.frame for r in everything(spool)] == [frame(0)]
    drained(drain)
    assert "could not be handed on: the outlet is full" in told.text("drain_failed")


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_share_of_the_link(spool: Spool, share: float):
    put(spool, range(2))
    server = Server()
    server.delay_s = 0.05
    wait = Drain(spool, server, share=share).step()
    assert wait is not None
    assert wait == pytest.approx(0.05 * (1 / share - 1), rel=0.5, abs=0.005)


def test_requests_are_smaller_on_a_slow_link(spool: Spool):
    put(spool, range(40), size=8_000)
    server = Server()
    server.byte_s = 0.5 / 20_000  # 20 KB in half a second
    drain = Drain(spool, server, batch=16)
    for _ in range(3):
        drain.step()
    assert [len(request) for request in server.requests] == [1, 2, 2]
    server.byte_s = 0.0
    for _ in range(3):
        drain.step()
    assert [len(request) for request in server.requests[-2:]] == [16, 16]


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.5}, {"batch": 0}])
def test_wrong_options(spool: Spool, options: dict[str, float]):
    with pytest.raises(UsageError, match="share is greater than 0 and at most 1, batch at least 1"):
        Drain(spool, Server(), **options)  # type: ignore[arg-type]  # wrong on purpose


def test_the_thread_drains_what_comes_and_wakes(spool: Spool):
    server, many = Server(), threading.Event()
    server.down = TransportError("down")

    def count(_: Spooled, __: Reply) -> None:
        if drain.counts.answered >= 30:
            many.set()

    drain = Drain(spool, server, share=1.0, on_reply=count)
    with drain:
        put(spool, range(20))
        for _ in range(100):
            if drain.counts.failed >= 3:
                break
            time.sleep(0.05)
        server.down = None
        drain.wake()
        put(spool, range(20, 60))
        assert many.wait(20)
        for _ in range(100):
            if not spool.stats().frames:
                break
            time.sleep(0.05)
    assert spool.stats().frames == 0
    assert drain.counts.answered == 60
