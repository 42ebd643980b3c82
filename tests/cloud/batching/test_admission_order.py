"""Which call is admitted and which runs next: with a clock that the test moves, without threads and without a loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from splitwire.codec.errors import DeadlineExceeded, ServerBusy
from splitwire.codec.wire.frame import COMPACT, EXTENDED
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.batching.core import Batch, Core
from splitwire.runtime_cloud.batching.job import Job, Lane, level_of
from splitwire.runtime_cloud.batching.overload import CALM_S, FIRST_S, LONGEST_S, WINDOW_S
from splitwire.runtime_cloud.call import Call
from splitwire.runtime_cloud.session import BatchCosts, CloudSession


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lane(largest: int = 8, seconds: float = 0.010) -> Lane:
    """A model whose images take `seconds` each, and of which `largest` share a run."""
    costs = BatchCosts(decode_s=0.0, back_s=(seconds,), largest=largest, reason="")
    return Lane(cast("CloudSession", SimpleNamespace(costs=costs)), 8)


SESSION = cast("CloudSession", SimpleNamespace())


def core_of(clock: Clock, chance: Callable[[], float] = lambda: 0.0, **limits: Any) -> Core:
    return Core(ServerLimits(**{"concurrency": 1, "queue": 32, **limits}), clock, chance)


def job_of(model: Lane, core: Core, device: str = "", images: int = 1, **fields: Any) -> Job:
    future = cast("asyncio.Future[Any]", SimpleNamespace(done=lambda: False))
    head = bytes([COMPACT | EXTENDED, 1, 2, 3, 4, 0, 0, images]) if images > 1 else bytes([COMPACT, 1, 2, 3, 4])
    call = Call(frame=head + bytes(4), device=device, **fields)
    return Job.of(model, SESSION, call, future, core._clock(), with_reply=True)


def admitted(core: Core, model: Lane, *devices: str, **fields: Any) -> list[Job]:
    jobs = [job_of(model, core, device, **fields) for device in devices]
    for job in jobs:
        core.admit(job)
    return jobs


def devices(batch: Batch | None) -> str:
    assert batch is not None
    return "".join(job.device for job in batch.jobs)


# ------------------------------------------------------------------ order


def test_a_free_thread_takes_what_waits_at_once():
    core, model = core_of(Clock(), max_delay=0.5), lane()
    admitted(core, model, "a")
    assert core.due_s() == 0
    assert devices(core.take()) == "a"
    assert core.take() is None


def test_one_device_with_many_calls_does_not_delay_another():
    core, model = core_of(Clock(), max_batch=1), lane(largest=1)
    admitted(core, model, *"hhhhhh", *"p", *"q")
    order = []
    while (batch := core.take()) is not None:
        order.append(devices(batch))
        core.finish(batch)
    assert "".join(order) == "hpqhhhhh"


def test_a_device_that_was_silent_has_no_credit():
    clock = Clock()
    core, model = core_of(clock), lane(largest=1)
    for _ in range(50):
        admitted(core, model, "h")
        batch = core.take()
        assert batch is not None
        core.finish(batch)
    admitted(core, model, *"hhh", *"sss")
    order = ""
    while (batch := core.take()) is not None:
        order += devices(batch)
        core.finish(batch)
    assert order == "hshshs"


def test_expensive_calls_pay_their_cost():
    """One of the dear model's images costs as much as four of the cheap one's."""
    core, cheap, dear = core_of(Clock()), lane(largest=1, seconds=0.010), lane(largest=1, seconds=0.040)
    admitted(core, dear, *"ddd")
    admitted(core, cheap, *"cccccccc")
    order = ""
    while (batch := core.take()) is not None:
        order += devices(batch)
        core.finish(batch)
    assert order == "dccccdccccd"


def test_the_batch_of_a_frame_counts_as_its_images():
    core, model = core_of(Clock()), lane()
    jobs = [job_of(model, core, name, images) for name, images in (("a", 3), ("b", 4), ("c", 2), ("d", 20))]
    for job in jobs:
        core.admit(job)
    assert [job.images for job in jobs] == [3, 4, 2, 20]
    batches = [core.take() for _ in range(3)]
    assert [(devices(batch), batch.images) for batch in batches if batch] == [("ab", 7), ("c", 2), ("d", 20)]


def test_calls_of_several_devices_share_a_run_but_not_of_several_models():
    core, one, other = core_of(Clock()), lane(), lane()
    admitted(core, one, *"ab")
    admitted(core, other, "x")
    admitted(core, one, *"cdefgh", *"ij")
    assert [devices(core.take()) for _ in range(3)] == ["abcdefgh", "x", "ij"]


def test_a_model_that_is_not_measured_runs_alone():
    model = Lane(cast("CloudSession", SimpleNamespace(costs=None)), 8)
    core = core_of(Clock())
    admitted(core, model, *"ab")
    assert (model.limit, devices(core.take())) == (1, "a")


def test_priorities():
    assert [level_of(p) for p in (0, 1, 2, 3, 9)] == [2, 1, 2, 3, 3]
    core, model = core_of(Clock()), lane(largest=2)
    admitted(core, model, *"ll", priority=3)
    admitted(core, model, *"nn")
    admitted(core, model, "u", priority=1)
    assert [devices(core.take()) for _ in range(3)] == ["un", "nl", "l"]


# ------------------------------------------------------------------ waiting for more


def test_a_busy_model_waits_for_more_but_no_longer_than_the_delay():
    clock = Clock()
    core, model = core_of(clock, concurrency=2, max_delay=0.010), lane(largest=3)
    admitted(core, model, "a")
    first = core.take()
    assert first is not None
    clock.now += 0.002
    admitted(core, model, "b")
    assert core.take() is None
    assert core.due_s() == pytest.approx(0.010)
    clock.now += 0.004
    admitted(core, model, "c")
    assert core.due_s() == pytest.approx(0.006)
    admitted(core, model, "d")
    assert devices(core.take()) == "bcd"
    admitted(core, model, "e")
    clock.now += 0.010
    assert devices(core.take()) == "e"


def test_a_lone_client_does_not_wait_after_its_own_calls():
    clock = Clock()
    core, model = core_of(clock, max_delay=0.010), lane()
    for images in (1, 5, 1):
        core.admit(job_of(model, core, "a", images))
        batch = core.take()
        assert batch is not None
        core.finish(batch)


def test_after_a_shared_run_calls_wait_for_each_other():
    clock = Clock()
    core, model = core_of(clock, max_delay=0.010), lane()
    admitted(core, model, *"ab")
    batch = core.take()
    assert batch is not None
    core.finish(batch)
    admitted(core, model, "a")
    assert core.take() is None
    clock.now += 0.010
    assert devices(core.take()) == "a"


# ------------------------------------------------------------------ calls of no use


def test_what_is_late_or_abandoned_does_not_run():
    clock = Clock()
    core, model = core_of(clock), lane()
    late = job_of(model, core, "late", deadline=clock.now + 1)
    gone = job_of(model, core, "gone", abandoned=lambda: True)
    cancelled = job_of(model, core, "cancelled")
    cancelled.future = cast("asyncio.Future[Any]", SimpleNamespace(done=lambda: True))
    good = job_of(model, core, "good", deadline=clock.now + 3)
    for job in (late, gone, cancelled, good):
        core.admit(job)
    clock.now += 2
    assert devices(core.take()) == "good"
    assert [job.device for job in core.dropped] == ["late", "gone", "cancelled"]
    assert isinstance(late.error, DeadlineExceeded)
    assert core.queue.count == 0


def test_late_calls_make_room():
    clock = Clock()
    core, model = core_of(clock, queue=2, concurrency=1), lane(largest=1)
    admitted(core, model, "r")
    core.take()
    admitted(core, model, *"ab", deadline=clock.now + 1)
    with pytest.raises(ServerBusy):
        admitted(core, model, "c")
    clock.now += 2
    admitted(core, model, "c")
    assert sorted(job.device for job in core.dropped) == ["a", "b"]


# ------------------------------------------------------------------ overload


def full(clock: Clock, **limits: Any) -> tuple[Core, Lane, Batch]:
    """A core whose one thread is busy and whose queue of four is full of calls of the devices a to d."""
    core, model = core_of(clock, queue=4, **limits), lane(largest=1)
    admitted(core, model, "r")
    running = core.take()
    assert running is not None
    admitted(core, model, *"abcd")
    return core, model, running


def test_a_full_queue_refuses():
    core, model, _ = full(Clock(), retry_after=2.0)
    with pytest.raises(ServerBusy, match="1 inferences run and 4 wait; come back later") as refused:
        admitted(core, model, "e")
    assert refused.value.retry_after == 1.0
    with pytest.raises(ServerBusy):
        core.check(None, 2, "e")


def test_retry_after_is_spread_over_the_time_that_those_refused_take():
    clock = Clock()
    core, model, _ = full(clock, chance=lambda: 1.0)
    times = []
    for _ in range(300):
        with pytest.raises(ServerBusy) as refused:
            admitted(core, model, "e")
        times.append(refused.value.retry_after)
    assert times[0] == pytest.approx(1.0 + 0.05 + 0.01)  # five calls of 10 ms, and itself
    assert times[-1] == pytest.approx(1.0 + 0.05 + 300 * 0.01)
    clock.now += 1.5
    with pytest.raises(ServerBusy) as refused:
        admitted(core, model, "e")
    assert refused.value.retry_after == pytest.approx(1.0 + 0.04 + 0.01)


def test_a_higher_priority_takes_the_place_of_a_lower_one():
    core, model, _ = full(Clock())
    admitted(core, model, "u", priority=1)
    assert [(job.device, type(job.error)) for job in core.dropped] == [("d", ServerBusy)]
    assert core.queue.count == 4
    with pytest.raises(ServerBusy):
        admitted(core, model, "l", priority=3)


def test_a_device_with_many_calls_makes_room_for_another():
    core, model = core_of(Clock(), queue=4), lane(largest=1)
    admitted(core, model, "r")
    core.take()
    admitted(core, model, *"hhhh")
    admitted(core, model, *"pqs")
    assert [job.device for job in core.dropped] == ["h", "h", "h"]
    for device in "ht":  # every device has one call now
        with pytest.raises(ServerBusy):
            admitted(core, model, device)


def test_an_overloaded_server_has_a_short_queue_until_the_overload_is_over():
    clock = Clock()
    core, model, running = full(clock)
    with pytest.raises(ServerBusy):
        admitted(core, model, "e")
    core.finish(running)
    for _ in range(4):
        batch = core.take()
        assert batch is not None
        core.finish(batch)
    admitted(core, model, *"ab")  # one runs, one waits
    core.take()
    with pytest.raises(ServerBusy):
        admitted(core, model, "c")  # it would wait longer than one inference
    clock.now += 0.9 * CALM_S
    admitted(core, model, "c")  # the one that runs should have ended long ago
    with pytest.raises(ServerBusy):
        admitted(core, model, "d")
    clock.now += CALM_S  # nobody was refused for so long
    assert not core.overload.lasts(clock.now)
    admitted(core, model, *"cde")


def test_clients_that_ask_again_at_once_get_the_long_queue_back_sometimes():
    clock = Clock()
    core, model, _ = full(clock)
    tries: list[float] = []
    while len(tries) < 5:
        if not core.overload.lasts(clock.now):
            tries.append(clock.now)
        with pytest.raises(ServerBusy):
            core.check(model, 2, "e")
        clock.now += CALM_S / 2
    assert [b - a for a, b in itertools.pairwise(tries)] == [FIRST_S, 2 * FIRST_S, LONGEST_S, LONGEST_S]


def test_a_server_with_time_to_spare_gets_its_long_queue_back():
    """A few bursts, and nothing between them: they fit into the long queue."""
    clock = Clock()
    core, model, running = full(clock)
    with pytest.raises(ServerBusy):
        admitted(core, model, "e")
    core.finish(running)
    while (batch := core.take()) is not None:
        core.finish(batch)
    clock.now += 0.001
    while clock.now < 100 + WINDOW_S + 0.02:  # a call of 10 ms each 15 ms
        admitted(core, model, "a")
        batch = core.take()
        assert batch is not None
        clock.now += 0.010
        core.finish(batch)
        clock.now += 0.005
    assert not core.overload.lasts(clock.now)
    assert clock.now < 100 + CALM_S
    admitted(core, model, *"abcd")


def test_the_memory_of_devices_is_bounded():
    core, model = core_of(Clock()), lane()
    for i in range(5000):
        admitted(core, model, f"device {i}")
        batch = core.take()
        assert batch is not None
        core.finish(batch)
    assert len(core.queue._ends) < 300
    assert len(core.queue._latest) < 300
