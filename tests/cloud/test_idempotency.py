"""A frame that comes again is answered from memory, within bounds, and never with another frame's answer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from runtime_helpers import Pair, Served, serving

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import Corrupt, RequestTimeout, ServerBusy, UsageError
from splitwire.codec.wire.reply import decode_reply
from splitwire.runtime_cloud.idempotency import DEVICE_SHARE, Answers, parse_key
from splitwire.runtime_edge.transport import HttpTransport, Key, Reply, Timeouts


class Computer:
    """Counts what is computed; the reply is the frame, reversed. hold: until set, nothing is answered."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.hold: anyio.Event | None = None
        self.error: Exception | None = None

    def of(self, frame: bytes) -> Callable[[], Awaitable[bytes]]:
        async def compute() -> bytes:
            self.frames.append(frame)
            if self.hold is not None:
                await self.hold.wait()
            if self.error is not None:
                raise self.error
            return frame[::-1]

        return compute


def check(answers: Answers) -> None:
    """The counts are those of what is held."""
    entries = [e for device in answers._devices.values() for e in device.values()]
    assert answers.count == len(entries)
    assert answers.bytes == sum(len(e.reply or b"") for e in entries) == sum(answers._device_bytes.values())
    assert set(answers._devices) == set(answers._device_bytes)


def test_a_repeat_is_not_computed():
    answers, computer = Answers(entries=100, max_bytes=10_000), Computer()

    async def main() -> None:
        for _ in range(3):
            assert await answers.answer("d:b:1", b"abc", computer.of(b"abc")) == b"cba"
        assert await answers.answer("d:b:2", b"abc", computer.of(b"abc")) == b"cba"
        # the same key for other bytes is a mistake of the sender; it gets the answer to its own frame all the same
        assert await answers.answer("d:b:1", b"xyz", computer.of(b"xyz")) == b"zyx"

    anyio.run(main)
    assert computer.frames == [b"abc", b"abc", b"xyz"]
    assert (answers.computed, answers.repeated, answers.count) == (3, 2, 2)
    check(answers)


def test_a_repeat_waits_for_the_first_that_runs():
    answers, computer = Answers(entries=100, max_bytes=10_000), Computer()
    replies: list[bytes] = []

    async def ask() -> None:
        replies.append(await answers.answer("d:b:1", b"abc", computer.of(b"abc")))

    async def main() -> None:
        computer.hold = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            assert replies == []
            computer.hold.set()

    anyio.run(main)
    assert replies == [b"cba"] * 5
    assert computer.frames == [b"abc"]


def test_a_failure_is_not_remembered():
    """Those who wait for it compute for themselves, one at a time; a cancelled first is one that failed."""
    answers, computer = Answers(entries=100, max_bytes=10_000), Computer()

    async def main() -> None:
        computer.error = ServerBusy("full")
        with pytest.raises(ServerBusy):
            await answers.answer("d:b:1", b"abc", computer.of(b"abc"))
        check(answers)
        computer.error = None
        computer.hold = anyio.Event()
        async with anyio.create_task_group() as outer:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(answers.answer, "d:b:1", b"abc", computer.of(b"abc"))
                await anyio.wait_all_tasks_blocked()
                outer.start_soon(answers.answer, "d:b:1", b"abc", computer.of(b"abc"))
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
            await anyio.wait_all_tasks_blocked()
            computer.hold.set()
        assert await answers.answer("d:b:1", b"abc", computer.of(b"abc")) == b"cba"

    anyio.run(main)
    assert len(computer.frames) == 3
    check(answers)


def test_the_memory_is_bounded():
    answers, computer = Answers(entries=40, max_bytes=4_000), Computer()

    async def main() -> None:
        for i in range(500):
            frame = bytes(i % 400)
            await answers.answer(f"device{i % 7}:b:{i}", frame, computer.of(frame))
            assert answers.count <= 40
            assert answers.bytes <= 4_000
            check(answers)
        await answers.answer("big:b:1", bytes(5_000), computer.of(bytes(5_000)))
        check(answers)
        assert "big" not in answers._devices

    anyio.run(main)


def test_one_device_cannot_push_out_the_others():
    answers, computer = Answers(entries=40, max_bytes=100_000), Computer()

    async def main() -> None:
        for i in range(5):
            await answers.answer(f"quiet:b:{i}", b"x", computer.of(b"x"))
        for i in range(1000):
            await answers.answer(f"loud:b:{i}", b"x", computer.of(b"x"))
        assert len(answers._devices["loud"]) == 40 // DEVICE_SHARE
        before = len(computer.frames)
        for i in range(5):
            await answers.answer(f"quiet:b:{i}", b"x", computer.of(b"x"))
        await answers.answer("loud:b:999", b"x", computer.of(b"x"))
        assert len(computer.frames) == before
        await answers.answer("loud:b:0", b"x", computer.of(b"x"))
        assert len(computer.frames) == before + 1

    anyio.run(main)
    check(answers)


def test_off():
    answers, computer = Answers(entries=0, max_bytes=0), Computer()
    for _ in range(2):
        anyio.run(answers.answer, "d:b:1", b"abc", computer.of(b"abc"))
    assert len(computer.frames) == 2


def test_the_header():
    assert parse_key(None) == ""
    assert parse_key('"cam:b00t:1"') == "cam:b00t:1"
    for wrong in ("", '""', "cam:b00t:1", '"', '"a', '"a"b"', f'"{"x" * 161}"', '"ü"', '"a\tb"'):
        with pytest.raises(UsageError, match="Idempotency-Key must be"):
            parse_key(wrong)


# ------------------------------------------------------------------ over HTTP


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Served]:
    with serving(pair) as running:
        yield running


def frame_of(pair: Pair, frame_id: int) -> bytes:
    tensors = [np.full((1, *t.shape), frame_id % 3, np.float32) for t in pair.profile.tensors]
    return FeatureCodec(pair.profile).encode(tensors, frame_id=frame_id)


def test_one_key_over_all_ways(served: Served, pair: Pair):
    answers = served.api.service.answers
    computed, repeated = answers.computed, answers.repeated
    frames = [frame_of(pair, i) for i in range(4)]
    keys = [Key("cam", "b00t", i) for i in range(4)]
    with contextlib.closing(HttpTransport(served.url)) as transport:
        first = transport.send(frames[0], keys[0])
        for results in (transport.send_many(frames, keys), transport.send_many(frames, keys)):
            assert [r.frame_id for r in results if isinstance(r, Reply)] == [0, 1, 2, 3]
            assert isinstance(results[0], Reply)
            assert (results[0].decode_ms, results[0].back_ms) == (first.decode_ms, first.back_ms)
        assert transport.send(frames[3], keys[3]).frame_id == 3
        assert transport.send(frames[2], keys[3]).frame_id == 2  # a key used twice by mistake
    assert (answers.computed - computed, answers.repeated - repeated) == (5, 6)


def test_a_retry_after_a_read_timeout_waits_for_the_first(served: Served, pair: Pair):
    """The inference takes longer than the edge waits: the frame comes again, and is computed once."""
    (session,) = served.api.service.models
    release = threading.Event()
    run_back, calls = session.run_back, []
    repeated = served.api.service.answers.repeated

    def slow(*crossing: Any) -> Any:
        calls.append(1)
        assert release.wait(20)
        return run_back(*crossing)

    session.run_back = slow  # type: ignore[method-assign, assignment]  # any arguments
    timeouts = Timeouts(read=0.4)
    with (
        contextlib.closing(HttpTransport(served.url, timeouts=timeouts, retries=9)) as transport,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(transport.send, frame_of(pair, 5), Key("cam", "slow", 5))
        time.sleep(0.6)  # by now the first try is given up
        release.set()
        reply = waiting.result(20)
    assert (reply.frame_id, len(calls)) == (5, 1)
    assert reply.attempts >= 2
    assert served.api.service.answers.repeated == repeated + 1
    with pytest.raises(RequestTimeout):
        release.clear()
        with contextlib.closing(HttpTransport(served.url, timeouts=Timeouts(read=0.2))) as transport:
            transport.send(frame_of(pair, 6))  # without a key: an error, because it may run
    release.set()
    session.run_back = run_back  # type: ignore[method-assign]  # restored


def test_a_wrong_key_and_a_wrong_frame(served: Served, pair: Pair):
    response = httpx.post(served.url + "/v1/infer", content=frame_of(pair, 1), headers={"Idempotency-Key": "bare"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "usage")
    count = served.api.service.answers.count
    with contextlib.closing(HttpTransport(served.url, retries=0)) as transport, pytest.raises(Corrupt):
        transport.send(frame_of(pair, 1)[:-1] + b"\xff", Key("cam", "damaged", 1))
    assert served.api.service.answers.count == count
    reply = httpx.post(served.url + "/v1/infer", content=frame_of(pair, 1), headers={"Idempotency-Key": '"c:b:1"'})
    assert decode_reply(reply.content).frame_id == 1
