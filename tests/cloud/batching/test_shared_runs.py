"""Requests that share a run: which models may, the same answers as alone, errors of one frame, the threads."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from runtime_helpers import Pair, make_pair, serving, until

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import Corrupt, DeadlineExceeded, ServerBusy, ShapeMismatch
from splitwire.codec.wire.reply import decode_reply
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.batching import Done, Scheduler, batch, measure, prepare
from splitwire.runtime_cloud.batching.measure import mixes
from splitwire.runtime_cloud.call import Call
from splitwire.runtime_cloud.observe import Observer
from splitwire.runtime_cloud.session import BatchCosts, CloudSession
from splitwire.runtime_edge.transport import HttpTransport, Key

Array = np.ndarray[Any, Any]


@pytest.fixture
def session(pair: Pair) -> CloudSession:
    """A session that is measured, with a result that does not depend on this machine."""
    session = CloudSession(pair.back)
    prepare(session)
    session.costs = BatchCosts(decode_s=1e-4, back_s=(1e-4, 1e-4, 1e-4, 1e-4), largest=8, reason="")
    return session


def frames_of(session: CloudSession, count: int) -> list[bytes]:
    """Frames of one image or two, at both operating points."""
    codec = FeatureCodec(session.profile)
    rng = np.random.default_rng(5)
    points = [point.name for point in session.profile.operating_points]
    frames = []
    for i in range(count):
        tensors = [rng.uniform(0, 2, (1 + i % 2, *t.shape)).astype(np.float32) for t in session.profile.tensors]
        frames.append(codec.encode(tensors, op=points[i % len(points)], frame_id=i))
    return frames


def assert_same(reply: bytes, alone: bytes) -> None:
    one, other = decode_reply(reply), decode_reply(alone)
    assert one.frame_id == other.frame_id
    assert one.outputs.keys() == other.outputs.keys()
    for name, values in one.outputs.items():
        assert values.shape == other.outputs[name].shape
        np.testing.assert_allclose(values, other.outputs[name], rtol=1e-5, atol=1e-5)


class Batches(Observer):
    """The images of each run."""

    def __init__(self) -> None:
        self.images: list[int] = []

    def batched(self, model: str, pair: str, images: int) -> None:
        self.images.append(images)


def answers(
    session: CloudSession, calls: Sequence[Call], observer: Observer | None = None, **limits: Any
) -> list[Done | BaseException]:
    """What the scheduler makes of calls that come in one round of the event loop."""

    async def main() -> list[Done | BaseException]:
        scheduler = Scheduler(ServerLimits(**limits), observer)
        try:
            return await asyncio.gather(*(scheduler.run(session, c) for c in calls), return_exceptions=True)
        finally:
            scheduler.close()

    return asyncio.run(main())


def done(answer: Done | BaseException | None) -> Done:
    assert isinstance(answer, Done), answer
    return answer


# ------------------------------------------------------------------ which models


def test_a_model_is_measured(pair: Pair):
    assert CloudSession(pair.back).costs is None
    session = CloudSession(pair.back)
    prepare(session)
    costs = session.costs
    assert costs is not None
    assert costs.reason == ""
    assert costs.largest in (1, 2, 4, 8, 16, 32)
    assert costs.decode_s > 0
    assert min(costs.back_s) > 0


def test_a_network_of_a_fixed_batch_is_not_batched(tmp_path):
    session = CloudSession(make_pair(tmp_path / "fixed", batch=3).back)
    prepare(session)
    assert session.costs is not None
    assert (session.costs.largest, session.costs.reason) == (1, "it takes a batch of 3 and no other")
    assert len(session.costs.back_s) == 1


@pytest.mark.parametrize(
    ("back", "reason"),
    [
        (lambda x: {"y": x.mean((1, 2))}, ""),
        (lambda x: {"y": x.astype(np.float16).mean((1, 2))}, ""),
        (lambda x: {"y": x, "boxes": np.zeros((7, 4))}, "output 'boxes' has no batch axis"),
        (lambda x: {"y": x.sum()}, "output 'y' has no batch axis"),
        (lambda x: {"y": x[:1]}, "output 'y' has no batch axis"),
        (lambda x: {"y": x - x.mean(0)}, "output 'y' of an image depends on the images beside it"),
        (lambda x: {"y": x * (1 + 2e-4 * (len(x) - 1))}, "output 'y' of an image depends on the images beside it"),
        (lambda x: {"best": np.full(len(x), len(x))}, "output 'best' of an image depends on the images beside it"),
    ],
)
def test_backs_that_mix_images_are_found(back: Callable[[Array], dict[str, Array]], reason: str):
    session = cast("CloudSession", SimpleNamespace(run_back=lambda tensors: back(tensors[0])))
    rng = np.random.default_rng(0)
    first, second = ([rng.uniform(size=(1, 4, 4)).astype(np.float32)] for _ in range(2))
    assert mixes(session, first, second) == reason


def test_a_back_that_refuses_two_images_is_not_batched():
    def back(tensors: Sequence[Array]) -> dict[str, Array]:
        if len(tensors[0]) > 1:
            raise RuntimeError("Reshape: cannot make {2,16} into {1,16}\nmore")
        return {"y": tensors[0]}

    x = [np.zeros((1, 16), np.float32)]
    assert mixes(cast("CloudSession", SimpleNamespace(run_back=back)), x, x).startswith("Reshape: cannot make")


def test_a_batch_grows_while_an_image_gets_cheaper(monkeypatch: pytest.MonkeyPatch, pair: Pair):
    """One run costs 1 ms, and 0.2 ms per image; from 8 images on 1 ms per image."""
    cost = {1: 1.2, 2: 1.4, 4: 1.8, 8: 2.6, 16: 10.0}
    module = importlib.import_module("splitwire.runtime_cloud.batching.measure")  # the package has a function so named
    monkeypatch.setattr(module, "_fastest", lambda session, tensors: cost[len(tensors[0])] / 1e3)
    session = CloudSession(pair.back)
    session.warm_up()
    costs = measure(session)
    assert costs.largest == 8
    assert costs.back_s == tuple(c / 1e3 for c in cost.values())


# ------------------------------------------------------------------ answers


def test_answers_of_a_shared_run_are_those_of_single_ones(session: CloudSession):
    frames, seen = frames_of(session, 7), Batches()
    got = [done(a) for a in answers(session, [Call(frame=f) for f in frames], seen, concurrency=1, max_batch=32)]
    assert seen.images == [7, 3]
    for frame, answer in zip(frames, got, strict=True):
        assert_same(answer.reply, session.handle(frame))
        assert answer.result.batch == decode_reply(answer.reply).outputs["best"].shape[0]
        assert answer.begun <= answer.ended


def test_two_tensors_and_wanted_outputs(tmp_path):
    session = CloudSession(make_pair(tmp_path / "two", two_tensors=True).back)
    prepare(session)
    session.costs = BatchCosts(decode_s=1e-4, back_s=(1e-4,), largest=8, reason="")
    frames = frames_of(session, 5)
    calls = [Call(frame=f, outputs=("best",) if i % 2 else None) for i, f in enumerate(frames)]
    for i, answer in enumerate(answers(session, calls, concurrency=1)):
        assert_same(done(answer).reply, session.handle(frames[i], calls[i].outputs))


def test_a_damaged_frame_costs_the_others_nothing(session: CloudSession):
    frames, seen = frames_of(session, 4), Batches()
    damaged = frames[1][:-1] + bytes([frames[1][-1] ^ 1])
    got = answers(session, [Call(frame=f) for f in (frames[0], damaged, *frames[2:])], seen)
    assert isinstance(got[1], Corrupt)
    for i in (0, 2, 3):
        assert_same(done(got[i]).reply, session.handle(frames[i]))
    assert len(seen.images) == 1


def test_a_back_that_fails_on_a_batch_runs_its_frames_one_by_one(session: CloudSession):
    run_back = session.run_back

    def moody(tensors: Any, sizes: Any = ()) -> Any:
        if len(tensors[0]) > 2:
            raise ShapeMismatch("too many")
        return run_back(tensors, sizes)

    session.run_back = moody  # type: ignore[method-assign]  # an ONNX graph that does so is hard to make
    frames = frames_of(session, 4)
    for frame, answer in zip(frames, answers(session, [Call(frame=f) for f in frames]), strict=True):
        assert_same(done(answer).reply, session.handle(frame))


def test_threads_that_help_to_decode(session: CloudSession, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch, "SPLIT_S", 1e-5)
    threads: set[str] = set()
    decode = session.decode

    def seen(frame: bytes) -> Any:
        threads.add(threading.current_thread().name.rpartition("_")[0])
        return decode(frame)

    session.decode = seen  # type: ignore[method-assign]  # as before, and it says where it runs
    frames = frames_of(session, 4)

    async def main() -> list[Done]:
        scheduler = Scheduler(ServerLimits())
        scheduler._helpers = scheduler._helpers or ThreadPoolExecutor(1, "splitwire-decode")
        try:
            return await asyncio.gather(*(scheduler.run(session, Call(frame=f)) for f in frames))
        finally:
            scheduler.close()

    got = asyncio.run(main())
    assert threads == {"", "splitwire-decode"}
    for frame, answer in zip(frames, got, strict=True):
        assert_same(answer.reply, session.handle(frame))


# ------------------------------------------------------------------ the scheduler


def test_a_lone_cheap_call_runs_in_the_event_loop(session: CloudSession):
    threads = []
    infer = session.infer

    def seen(frame: bytes) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return infer(frame)

    session.infer = seen  # type: ignore[method-assign]  # as before, and it says where it runs
    (frame,) = frames_of(session, 1)
    answers(session, [Call(frame=frame)])
    answers(session, [Call(frame=frame)], inline=0.0)
    assert session.costs is not None
    session.costs = BatchCosts(decode_s=1e-4, back_s=(1e-3,), largest=8, reason="")
    answers(session, [Call(frame=frame)])
    session.costs = None
    answers(session, [Call(frame=frame)])
    assert threads == [True, False, False, False]


def test_a_deadline_that_has_passed(session: CloudSession):
    (frame,) = frames_of(session, 1)
    (answer,) = answers(session, [Call(frame=frame, deadline=1.0)])
    assert isinstance(answer, DeadlineExceeded)


def test_more_calls_than_places(session: CloudSession):
    calls = [Call(frame=f) for f in frames_of(session, 6)]
    got = answers(session, calls, concurrency=1, queue=3, max_batch=1)
    assert [isinstance(a, ServerBusy) for a in got] == [False] * 4 + [True] * 2


def test_calls_gather_while_the_thread_is_busy(session: CloudSession):
    """Held back: one call, then six more, which share a run of at most four images."""
    started, release = threading.Event(), threading.Event()
    infer, seen = session.infer, Batches()

    def held(frame: bytes) -> Any:
        started.set()
        assert release.wait(20)
        return infer(frame)

    session.infer = held  # type: ignore[method-assign]  # waits
    frames = frames_of(session, 13)[::2]  # of one image

    async def main() -> list[Done]:
        scheduler = Scheduler(ServerLimits(concurrency=1, max_batch=4, inline=0.0), seen)
        try:
            first = asyncio.create_task(scheduler.run(session, Call(frame=frames[0])))
            while not started.is_set():
                await asyncio.sleep(0.001)
            others = [asyncio.create_task(scheduler.run(session, Call(frame=f))) for f in frames[1:]]
            while scheduler.waiting < 6:
                await asyncio.sleep(0.001)
            assert scheduler.running == 1
            others[2].cancel()
            release.set()
            return await asyncio.gather(first, *(o for o in others if o is not others[2]))
        finally:
            scheduler.close()

    got = asyncio.run(main())
    assert [answer.images for answer in got] == [1, 3, 3, 3, 2, 2]
    assert seen.images == [1, 3, 2]


def test_no_thread_stays(session: CloudSession):
    calls = [Call(frame=f) for f in frames_of(session, 6)]
    answers(session, calls, concurrency=3, max_batch=1)
    until(lambda: not any(t.name.startswith("splitwire-compute") for t in threading.enumerate()))


def test_many_clients_over_sockets(pair: Pair):
    """Eight devices at a time, keys and all; every answer is that of its own frame."""
    session = CloudSession(pair.back)
    frames = frames_of(session, 16)
    alone = [session.handle(frame) for frame in frames]
    with serving(pair, batching=True, limits=ServerLimits(queue=64)) as server:

        def device(number: int) -> None:
            transport = HttpTransport(server.url)
            try:
                for i in range(40):
                    which = (number * 5 + i) % 16
                    reply = transport.send(frames[which], Key(f"device-{number}", "boot", i))
                    expected = decode_reply(alone[which])
                    assert reply.frame_id == expected.frame_id
                    np.testing.assert_allclose(reply.outputs["logits"], expected.outputs["logits"], atol=1e-5)
            finally:
                transport.close()

        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(device, n) for n in range(8)]:
                future.result()
        assert server.api.service.scheduler.running == server.api.service.scheduler.waiting == 0
