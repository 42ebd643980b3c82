"""The pipeline: order, policies, bounds, errors, cancellation, and the asynchronous face."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from runtime_helpers import Pair, images, until
from stream_helpers import Clocked, Staged, array

from splitwire.codec.errors import (
    BadResponse,
    Corrupt,
    NonFiniteFeatures,
    ServerBusy,
    SplitwireError,
    UsageError,
)
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.control import DriftMonitor, RateController
from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.sources import Items, Source, as_source
from splitwire.runtime_edge.spool import Spool
from splitwire.runtime_edge.stream import Decision, Look, Stream, StreamResult
from splitwire.runtime_edge.stream.pipeline import Parts
from splitwire.runtime_edge.stream.skip import Skip, Trial
from splitwire.runtime_edge.transport import Key, LoopbackTransport


def start(stages: Staged, source: Source, **options: Any) -> Stream:
    chosen: dict[str, Any] = {
        "policy": "block", "in_flight": None, "rate": None, "drift": None, "skip": None, "spool": None, "wait_s": 0.0,
        "fallback": None, "on_event": None, **options,
    }  # fmt: skip
    return Stream.start(stages, source, **chosen)


def values(results: Iterator[StreamResult]) -> list[float]:
    return [float(r.result.outputs["y"][0]) for r in results if r.result is not None]


def stream_threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("splitwire-")}


def held_by(gate: threading.Event) -> Callable[[float], None]:
    """For Staged: frames are answered when the gate is set."""

    def wait(value: float) -> None:
        assert gate.wait(20)

    return wait


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    until(lambda: not stream_threads(), 5)


def test_results_are_those_of_infer_and_in_order(pair: Pair):
    transport = LoopbackTransport(CloudSession(pair.back).handle)
    batches = [images(seed=i) for i in range(20)]
    with EdgeSession(pair.front, transport=transport) as session:
        expected = [session.infer(x) for x in batches]
        before = time.time()
        with session.stream(batches) as stream:
            results = list(stream)
    assert [r.index for r in results] == list(range(20))
    for result, infer in zip(results, expected, strict=True):
        assert (result.status, result.error, result.name, result.size) == ("answered", None, "items", None)
        assert before <= result.captured <= time.time()
        assert result.result is not None
        assert result.result.op == infer.op
        assert result.result.frame_bytes == infer.frame_bytes
        assert result.answer_age_ms == result.age_ms > 0
        for name, y in infer.outputs.items():
            np.testing.assert_array_equal(result.result.outputs[name], y)


def test_pictures_have_sizes_and_a_broken_one_fails_alone(pair: Pair, tmp_path: Any):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    pixels = np.zeros((16, 20, 3), np.uint8)
    with EdgeSession(pair.front, transport=LoopbackTransport(CloudSession(pair.back).handle)) as session:
        results = list(session.stream([pixels, tmp_path / "broken.png", pixels[:, :10]]))
    assert [(r.status, r.size) for r in results] == [
        ("answered", (20, 16)), ("failed", None), ("answered", (10, 16)),
    ]  # fmt: skip
    assert "broken.png" in str(results[1].error)


def test_answers_that_overtake_each_other_come_in_order():
    stages = Staged()
    delays = itertools.cycle([0.03, 0.0, 0.01])
    stages.fails = lambda value: time.sleep(next(delays))
    assert values(start(stages, Items(array(i) for i in range(30)), in_flight=4)) == list(range(30))
    assert stages.most == 4


def test_stages_overlap():
    """Front and network 10 ms each: alone 20 ms per frame."""
    stages = Staged(front_s=0.01, send_s=0.01)
    begin = time.monotonic()
    assert len(list(start(stages, Items(array(i) for i in range(40))))) == 40
    assert time.monotonic() - begin < 40 * 0.02 / 1.4


@pytest.mark.parametrize(("front_ms", "send_ms", "bound"), [(10, 5, 2), (4, 16, 5), (20, 1, 2)])
def test_frames_in_flight_are_rate_times_round_trip_and_one(front_ms: int, send_ms: int, bound: int):
    stages = Staged(front_s=front_ms / 1e3, send_s=send_ms / 1e3)
    stream = start(stages, Items(array(i) for i in range(60)))
    list(stream)
    stats = stream.stats
    assert stages.most <= bound + 1  # a late thread can make a round trip look longer
    assert stats.largest_in_flight == stages.most
    assert stats.round_trip_ms is not None
    assert stats.round_trip_ms >= send_ms


def test_a_slow_link_does_not_fill_with_frames():
    """One frame at a time passes, in 10 ms: more in flight only wait longer."""
    link = threading.Lock()

    def pass_through(value: float) -> None:
        with link:
            time.sleep(0.01)

    stages = Staged(fails=pass_through)
    list(start(stages, Items(array(i) for i in range(60))))
    assert stages.most <= 3


def test_in_flight_is_obeyed():
    stages = Staged(send_s=0.005)
    list(start(stages, Items(array(i) for i in range(30)), in_flight=3))
    assert stages.most == 3


def test_block_gives_every_picture():
    stages = Staged(front_s=0.004)
    stream = start(stages, Clocked(50, 0.001))
    assert values(stream) == list(range(50))
    assert stream.stats.dropped == 0


def test_drop_oldest_keeps_ages_within_two_intervals():
    """A camera of 100 frames per second, a front of 12 ms, preparation and network of 4 ms: the front sets the rate."""
    stages = Staged(prepare_s=0.004, front_s=0.012, send_s=0.004)
    stream = start(stages, Clocked(150, 0.01), policy="drop-oldest")
    results = list(stream)
    stats = stream.stats
    assert stats.captured == 150 == stats.dropped + stats.answered
    assert stats.dropped > 10
    ages = sorted(r.age_ms for r in results)
    # two intervals of results and the wake-ups of a busy machine; a queue of two pictures would add as much again
    assert ages[len(ages) // 2] < 12 + 12 + 10 + 4
    assert [r.index for r in results] == sorted(r.index for r in results)


def test_drop_newest_keeps_what_waits():
    gate = threading.Event()
    stages = Staged(fails=held_by(gate))
    stream = start(stages, Clocked(40, 0.001), policy="drop-newest", in_flight=1)
    until(lambda: stream.stats.dropped > 20)
    gate.set()
    taken = values(stream)
    assert taken[0] == 0
    assert len(taken) > 3
    assert max(taken[:4]) < 20  # in flight, in the front, and two that wait: none is the newest
    assert stream.stats.dropped == 40 - len(taken)


def test_a_slow_caller_makes_a_camera_drop_and_not_wait():
    stream = start(Staged(), Clocked(60, 0.002), policy="drop-oldest")
    ages = []
    for result in stream:
        time.sleep(0.01)
        ages.append(result.age_ms)
    assert stream.stats.dropped > 20
    assert sorted(ages)[len(ages) // 2] < 60


def test_errors_of_frames_are_results():
    def fail(value: float) -> Exception | None:
        return {2.0: NonFiniteFeatures("NaN"), 3.0: ServerBusy("busy")}.get(value)

    results = list(start(Staged(fails=fail), Items(array(i) for i in range(6))))
    assert [r.status for r in results] == ["answered", "answered", "failed", "failed", "answered", "answered"]
    assert [type(r.error) for r in results[2:4]] == [NonFiniteFeatures, ServerBusy]


def test_wait_s_sends_again():
    tries = itertools.count()
    stages = Staged(fails=lambda value: ServerBusy("busy") if next(tries) < 2 else None)
    results = list(start(stages, Items([array()]), wait_s=5))
    assert [r.status for r in results] == ["answered"]
    assert len(stages.sent) == 3


class Kept:
    """A spool in memory."""

    def __init__(self) -> None:
        self.frames: list[tuple[bytes, Key, float]] = []
        self._counter = itertools.count()

    def new_key(self) -> Key:
        return Key("device", "boot", next(self._counter))

    def put(self, frame: bytes, key: Key, captured_wall: float) -> Future[int | None]:
        self.frames.append((frame, key, captured_wall))
        done: Future[int | None] = Future()
        done.set_result(len(self.frames))
        return done


def test_frames_that_cannot_be_delivered_are_spooled():
    spool = Kept()
    stages = Staged(
        fails=lambda value: ServerBusy("busy") if value == 1 else NonFiniteFeatures("") if value > 2 else None
    )
    results = list(start(stages, Items(array(i) for i in range(4)), spool=spool, in_flight=1))
    assert [r.status for r in results] == ["answered", "spooled", "answered", "failed"]
    ((frame, key, wall),) = spool.frames
    assert frame == array(1).tobytes()
    assert (key.counter, wall) == (1, results[1].captured)
    assert results[1].result is None


@pytest.mark.parametrize("refusal", [Corrupt("checksum"), BadResponse("reply"), UsageError("key")])
def test_a_frame_that_the_link_damaged_is_spooled(refusal: SplitwireError):
    """Once the server has answered, what it refuses can be damage. Before, it can be any server."""
    spool = Kept()
    stages = Staged(fails=lambda value: refusal if value in (0, 3) else None)
    results = list(start(stages, Items(array(i) for i in range(5)), spool=spool, in_flight=1))
    assert [r.status for r in results] == ["failed", "answered", "answered", "spooled", "answered"]
    assert [frame for frame, _, _ in spool.frames] == [array(3).tobytes()]


def test_the_spool_of_the_package_fits(tmp_path: Any):
    """And for the type checker: so do its rate control and its drift monitor."""
    with Spool(tmp_path / "spool.db", tier="buffered") as spool:
        source = Items(array(i) for i in range(3))
        stages = Staged(fails=lambda value: ServerBusy("busy") if value == 1 else None)
        results = list(start(stages, source, spool=spool))
        assert [r.status for r in results] == ["answered", "spooled", "answered"]
        (kept,) = spool.next(8)
        assert kept.frame == array(1).tobytes()


def parts(rate: RateController, drift: DriftMonitor, spool: Spool, skip: Skip | Trial) -> Parts:
    return Parts(rate=rate, drift=drift, spool=spool, fallback=LoopbackTransport(bytes), skip=skip, on_event=print)


class Rate:
    """Says n2 for every second frame, and remembers what it was told."""

    def __init__(self) -> None:
        self._names = itertools.cycle(["n4", "n2"])
        self.told: list[tuple[int, float, float, bool]] = []
        self.lost_at: list[float] = []

    def choose(self) -> str:
        return next(self._names)

    def delivered(self, frame_bytes: int, sent: float, acknowledged: float, busy: bool) -> None:
        self.told.append((frame_bytes, sent, acknowledged, busy))

    def lost(self, now: float) -> None:
        self.lost_at.append(now)


class Drift:
    def observe(self, features: Any, frame_bytes: int) -> Event | None:
        return Event(kind="drift", text="x") if features[0][0, 0] == 3 else None


def test_rate_and_drift_plug_in():
    rate = Rate()
    events: list[Event] = []
    stages = Staged(send_s=0.002, fails=lambda value: ServerBusy("") if value == 5 else None)
    source = Items(array(i) for i in range(6))
    results = list(start(stages, source, rate=rate, drift=Drift(), on_event=events.append))
    assert [r.result.op for r in results if r.result is not None] == ["n4", "n2", "n4", "n2", "n4"]
    assert len(rate.told) == 5
    assert all(size == 16 and 0.002 <= end - begin < 1 for size, begin, end, _ in rate.told)
    assert len(rate.lost_at) == 1
    assert [e.kind for e in events] == ["drift"]


class Every:
    """Sends every third frame, and audits the sixth."""

    def __init__(self) -> None:
        self.audits: list[tuple[float, float]] = []
        self.forgotten = 0

    def decide(self, look: Look, now: float) -> Decision:
        value = look.features[0][0, 0]
        return Decision.AUDIT if value == 5 else Decision.REPEAT if value % 3 else Decision.SEND

    def audit(self, repeated: Any, answered: Any) -> Event | None:
        self.audits.append((float(repeated.outputs["y"][0]), float(answered.outputs["y"][0])))
        return Event(kind="audit", text="x")

    def forget(self) -> None:
        self.forgotten += 1


def test_repeated_answers_have_their_own_age():
    skip = Every()
    events: list[Event] = []
    stages = Staged()
    source = Clocked(10, 0.005)
    results = list(start(stages, source, skip=skip, on_event=events.append))
    assert sorted(stages.sent) == [0, 3, 5, 6, 9]
    statuses = ["answered", "repeated", "repeated", "answered", "repeated", "answered"]
    assert [r.status for r in results[:6]] == statuses
    assert values(iter(results)) == [0, 0, 0, 3, 3, 5, 6, 6, 6, 9]
    assert results[2].answer_age_ms is not None
    assert results[2].answer_age_ms > results[2].age_ms + 5
    assert skip.audits == [(3.0, 5.0)]
    assert [e.kind for e in events] == ["audit"]


def test_what_repeats_a_failed_frame_fails():
    skip = Every()
    results = list(start(Staged(fails=lambda v: ServerBusy("") if v == 3 else None), Clocked(6, 0.003), skip=skip))
    assert [r.status for r in results] == ["answered", "repeated", "repeated", "failed", "failed", "answered"]
    assert skip.forgotten == 1
    assert skip.audits == []


# ------------------------------------------------------------------ the end


def endless() -> Iterator[np.ndarray]:
    while True:
        yield array()


@pytest.mark.parametrize("how", ["close", "with", "drop", "session"])
def test_ends_at_once(how: str, pair: Pair):
    session = EdgeSession(pair.front, transport=LoopbackTransport(CloudSession(pair.back).handle))
    source = Clocked(10**6, 0.001) if how == "drop" else Items(images() for _ in itertools.count())
    if how == "drop":
        stream: Stream | None = start(Staged(), source)
    else:
        stream = session.stream(source)
    assert stream is not None
    next(stream)
    assert stream_threads()
    begin = time.monotonic()
    if how == "with":
        with stream:
            next(stream)
    elif how == "close":
        stream.close()
    elif how == "session":
        session.close()
    if how == "drop":
        stream = None
        gc.collect()
    else:
        with pytest.raises(StopIteration):
            next(stream)
    until(lambda: not stream_threads(), 2)
    assert time.monotonic() - begin < 2


def test_close_does_not_wait_for_an_answer():
    gate = threading.Event()
    stages = Staged(fails=held_by(gate))
    stream = start(stages, Items(endless()))
    until(lambda: stages.in_flight > 0)
    begin = time.monotonic()
    stream.close()
    assert time.monotonic() - begin < 3
    gate.set()


def test_an_interrupt_ends_the_stream(monkeypatch: pytest.MonkeyPatch):
    stream = start(Staged(), Clocked(10**6, 0.001))

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stream._pipeline.results, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)


def test_a_bug_in_a_part_reaches_the_caller():
    class Wrong(Every):
        def decide(self, look: Look, now: float) -> Decision:
            raise ZeroDivisionError("bug")

    with pytest.raises(ZeroDivisionError, match="bug"):
        list(start(Staged(), Items(endless()), skip=Wrong()))


def test_an_error_of_the_source_comes_after_its_pictures():
    def broken() -> Iterator[np.ndarray]:
        yield array(0)
        yield array(1)
        raise UsageError("the disk is gone")

    stream = start(Staged(send_s=0.02), Items(broken()))
    assert values(itertools.islice(stream, 2)) == [0, 1]
    with pytest.raises(UsageError, match="the disk is gone"):
        next(stream)


def test_waiting_takes_no_cpu_time():
    stream = start(Staged(), Clocked(2, 1.0), policy="drop-oldest")
    next(stream)
    begin = time.process_time()
    next(stream)
    assert time.process_time() - begin < 0.05  # of a second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "newest"}, "a policy is block, drop-oldest, drop-newest; got 'newest'"),
        ({"in_flight": 0}, "in_flight must be 1 to 256, got 0"),
        ({"wait_s": -1.0}, "wait_s must be 0 or more"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        start(Staged(), Items([]), **options)


def test_a_text_is_no_source():
    with pytest.raises(UsageError, match="give it open_source"):
        as_source("rtsp://camera")
    with pytest.raises(UsageError, match="item 0 of the source is a int"):
        list(start(Staged(), Items([3])))


# ------------------------------------------------------------------ asyncio


def run(make: Callable[[], Any]) -> Any:
    return asyncio.run(make())


def test_async_for():
    async def all_of_them() -> tuple[list[float], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        async with start(Staged(front_s=0.005), Items(array(i) for i in range(20))) as stream:
            found = [float(r.result.outputs["y"][0]) async for r in stream if r.result is not None]
        ticking.cancel()
        return found, ticks

    found, ticks = run(all_of_them)
    assert found == list(range(20))
    assert ticks > 10  # the loop was not blocked


def test_async_cancellation():
    async def cancelled() -> None:
        stream = start(Staged(), Clocked(2, 20.0))
        await anext(stream)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.05)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    run(cancelled)
