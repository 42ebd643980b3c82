"""Scheduler: the compute threads, and the event loop's side.

**Handing over.** A call that comes is not handed to a thread at once. First the event loop does what else is ready,
which may bring more calls; all of them are then handed over together. A thread that ends a batch takes the next one
itself, without the event loop, and tells the loop once per batch.

**No handing over.** To hand a call to a thread and back costs 15 to 40 µs of CPU, as much as a small network's decoder.
So a call runs in the event loop itself if it is the only one in the server, and is expected to take less than
`ServerLimits.inline` seconds. The loop is held up no longer than that. A model that was not measured never runs there.

**Refusing.** Clients that are refused and do not back off ask again at once. The more of them there are, the longer
they wait for the refusal, at most HOLD_S. So they take a small share of the event loop, and not all of it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from weakref import WeakKeyDictionary

from splitwire.codec.errors import DeadlineExceeded, ServerBusy
from splitwire.codec.shared.device import usable_cores
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.call import Call
from splitwire.runtime_cloud.observe import Observer
from splitwire.runtime_cloud.session import CloudSession

from .batch import run
from .core import Batch, Core
from .job import Done, Job, Lane, level_of

HELPERS = 8
"""Most threads that help to decode a batch."""
HOLD_EACH_S = 0.4e-3
HOLD_S = 35e-3
"""A refusal is held for HOLD_EACH_S for each refusal that is held, at most HOLD_S. It costs about 20 µs of CPU, which
is a twentieth of HOLD_EACH_S."""


class Scheduler:
    """Runs calls in batches, in an order that is fair by device. Only the event loop's thread calls its methods.

    limits: concurrency (number of compute threads), queue, max_batch, max_delay, inline, retry_after. observer: hears
    of every batch. clock: seconds, comparable with Call.deadline.
    """

    def __init__(
        self, limits: ServerLimits, observer: Observer | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.limits = limits
        self._observer = Observer() if observer is None else observer
        self._clock = clock
        self._core = Core(limits, clock)
        self._lock = threading.Lock()
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._idle = 0
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lanes: WeakKeyDictionary[CloudSession, Lane] = WeakKeyDictionary()
        self._fresh: list[Job] = []
        self._timer: asyncio.TimerHandle | None = None
        self._held: deque[tuple[float, asyncio.Future[Done], ServerBusy]] = deque()
        helpers = min(HELPERS, usable_cores() - 1)
        self._helpers = ThreadPoolExecutor(helpers, "splitwire-decode") if helpers > 0 else None

    @property
    def running(self) -> int:
        """Calls that run now. Any thread may read it."""
        with self._lock:
            return self._core.running

    @property
    def waiting(self) -> int:
        """Calls that wait for a compute thread."""
        return self._core.queue.count + len(self._fresh)

    def check(self, device: str = "", priority: int = 0) -> None:
        """Raise ServerBusy if a call of this device would be refused. Called before a body is read: that is cheap."""
        with self._lock:
            self._core.check(None, level_of(priority), device)
        self._deliver_dropped()

    async def admit(self, device: str = "", priority: int = 0) -> None:
        """As `check`; a refusal is held, so that clients that do not back off cannot take all of the CPU."""
        try:
            self.check(device, priority)
        except ServerBusy as e:
            future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
            self._hold(future, e)
            await future

    async def run(self, session: CloudSession, call: Call, *, with_reply: bool = True) -> Done:
        """Run a call in its turn.

        with_reply: encode the reply too, in the compute thread. Raises ServerBusy, DeadlineExceeded, and what
        CloudSession.infer and .reply raise.
        """
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(session)
        if lane is None:
            lane = self._lanes[session] = Lane(session, self.limits.max_batch)
        if call.deadline is not None and self._clock() >= call.deadline:
            raise DeadlineExceeded("the deadline of the request passed before it ran")
        job = Job.of(lane, session, call, loop.create_future(), self._clock(), with_reply=with_reply)
        self._loop = loop
        self._fresh.append(job)
        if len(self._fresh) == 1:
            loop.call_soon(self._hand_over)
        return await job.future

    def close(self) -> None:
        """End the threads, each when its batch has run."""
        for _ in self._threads:
            self._tokens.put(False)
        self._threads = []
        if self._helpers is not None:
            self._helpers.shutdown(wait=False)

    # ------------------------------------------------------------------ in the event loop

    def _hand_over(self) -> None:
        """Run the calls that came since the last time, or put them into the queue."""
        jobs, self._fresh = self._fresh, []
        if len(jobs) == 1 and self._runs_here(jobs[0]):
            job = jobs[0]
            with self._lock:
                batch = self._core.start(job.lane, [job], self._clock())
            run(batch)
            with self._lock:
                self._core.finish(batch)
            self._deliver(batch)
            return
        for job in jobs:
            try:
                with self._lock:
                    self._core.admit(job)
            except ServerBusy as e:
                self._hold(job.future, e)
        self._deliver_dropped()
        self._wake()

    def _hold(self, future: asyncio.Future[Done], error: ServerBusy) -> None:
        """Refuse a call, some milliseconds from now."""
        held = len(self._held) + 1
        seconds = min(HOLD_S, HOLD_EACH_S * held)
        self._held.append((self._clock() + seconds, future, error))
        if held == 1:
            future.get_loop().call_later(seconds, self._refuse)

    def _refuse(self) -> None:
        now = self._clock() + 0.5e-3  # timers are exact to a millisecond
        while self._held and self._held[0][0] <= now:
            _, future, error = self._held.popleft()
            if not future.done():
                future.set_exception(error)
        if self._held:
            self._held[0][1].get_loop().call_later(max(1e-3, self._held[0][0] - now), self._refuse)

    def _runs_here(self, job: Job) -> bool:
        expected = job.lane.alone_s
        if expected is None or job.images * expected > self.limits.inline:
            return False
        core = self._core
        return not core.queue.count and not core.batches and not core.is_gone(job, self._clock())

    def _wake(self) -> None:
        """Wake as many idle threads as there are batches; or wake them later, if calls wait for more."""
        if not self._core.queue.count:
            return
        with self._lock:
            due = self._core.batches_due()
            wake = min(self._idle, due)
            self._idle -= wake
            start = min(due - wake, self.limits.concurrency - len(self._threads))
            later = self._core.due_s() if not due else None
        for _ in range(wake):
            self._tokens.put(True)
        for _ in range(start):
            self._start_thread()
        if later is not None and self._loop is not None and (self._timer is None or self._timer.cancelled()):
            self._timer = self._loop.call_later(later, self._later)

    def _later(self) -> None:
        self._timer = None
        self._wake()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"splitwire-compute-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _deliver(self, batch: Batch) -> None:
        """Tell the callers of a batch."""
        for job in batch.jobs:
            job.deliver()
        if self._core.dropped:
            self._deliver_dropped()
        if self._core.queue.count:
            self._wake()
        session = batch.jobs[0].session
        self._observer.batched(session.profile.model, session.pair, batch.images)

    def _deliver_dropped(self) -> None:
        if self._core.dropped:
            with self._lock:
                dropped, self._core.dropped = self._core.dropped, []
            for job in dropped:
                job.deliver()

    # ------------------------------------------------------------------ in a compute thread

    def _work(self) -> None:
        while True:
            with self._lock:
                batch = self._core.take()
                dropped = bool(self._core.dropped)
                if batch is None:
                    self._idle += 1
            if dropped:
                self._tell(self._deliver_dropped)
            if batch is None:
                if not self._tokens.get():
                    return
                continue
            run(batch, self._helpers)
            with self._lock:
                self._core.finish(batch)
            self._tell(self._deliver, batch)

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        loop = self._loop
        with suppress(RuntimeError):  # the loop is closed: the server has given up waiting
            if loop is not None:
                loop.call_soon_threadsafe(callback, *args)
