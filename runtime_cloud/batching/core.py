"""Who is admitted, what runs next, and when: the decisions of the scheduler, without threads and without an event loop.

**What runs.** A compute thread that is free takes what waits, at once. So a lone client never waits. While the threads
are busy, calls gather, and the next free thread takes as many calls of one model as its batch holds. With `max_delay`,
a free thread also waits for more calls of a model, but only while that model is busy: another run goes on, or the last
one was shared and ended within `max_delay`.

**Who is admitted.** `queue` calls may wait. When one more comes, the server is overloaded: it must refuse calls
whatever it does, and a long queue only makes those late that it accepts. So it admits a call only if the wait is
expected to be short, about as long as one inference, until the overload is over (overload.py).
A call is admitted at the expense of another one that is of lower priority, or of a device with more calls waiting.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from splitwire.codec.errors import DeadlineExceeded, ServerBusy
from splitwire.runtime_cloud.admission import ServerLimits

from .job import Job, Lane
from .overload import Overload
from .queue import FairQueue

SHORT_WAIT_S = 0.5e-3
"""While the server is overloaded, calls wait at least this long before others are refused; or one inference's time."""
SWEEP_S = 5e-3
"""Calls that are of no use any more are looked for in a full queue at most this often."""
LONGEST_RETRY_S = 30.0


@dataclass(slots=True, eq=False)
class Batch:
    """Calls of one model that run together. begun: when they were taken. expected_s: how long they should take."""

    lane: Lane
    jobs: list[Job]
    images: int
    begun: float
    expected_s: float


class Core:
    """The decisions. Not safe between threads: the scheduler holds a lock.

    limits: concurrency, queue, max_batch, max_delay, retry_after. clock: seconds. chance: as random.random.
    batches: those that run. dropped: calls that will not run, with their errors, to be delivered.
    """

    def __init__(
        self, limits: ServerLimits, clock: Callable[[], float], chance: Callable[[], float] = random.random
    ) -> None:
        self.limits = limits
        self.queue = FairQueue()
        self.batches: list[Batch] = []
        self.dropped: list[Job] = []
        self.overload = Overload(limits.concurrency)
        self._clock = clock
        self._chance = chance
        self._swept = float("-inf")
        self._refused = 0.0
        self._refused_at = 0.0

    @property
    def running(self) -> int:
        """Calls that run now."""
        return sum(len(batch.jobs) for batch in self.batches)

    # ------------------------------------------------------------------ admission

    def admit(self, job: Job) -> None:
        """Put a call into the queue. Raises ServerBusy if it has no room, for this call at least."""
        now = self._clock()
        loser = self.check(job.lane, job.level, job.device)
        if loser is not None:
            self.queue.remove(loser, unused=True)
            loser.error = self._refusal(now)
            self.dropped.append(loser)
        self.overload.admitted()
        self.queue.push(job)

    def check(self, lane: Lane | None, level: int, device: str) -> Job | None:
        """Raise ServerBusy if there is no room for a call; returns the call that would have to make room, or None.

        lane: of the call; None before it is known which model it is for.
        """
        now = self._clock()
        if not self._is_full(lane, now):
            return None
        if now - self._swept >= SWEEP_S:
            self._swept = now
            for job in self.queue.waiting():
                self._drop_if_gone(job, now)
            if not self._is_full(lane, now):
                return None
        latest = self.queue.latest()
        if latest is None or not self._gives_way(latest, level, device):
            raise self._refusal(now)
        return latest

    def wait_s(self, now: float) -> float:
        """How long a call that comes now is expected to wait."""
        rest = sum(max(0.0, batch.begun + batch.expected_s - now) for batch in self.batches)
        return (self.queue.cost_s + rest) / self.limits.concurrency

    def _is_full(self, lane: Lane | None, now: float) -> bool:
        free = max(0, self.limits.concurrency - len(self.batches))
        if self.queue.count >= self.limits.queue + free:
            self.overload.begin(now)
            return True
        self.overload.review(now, (batch.begun for batch in self.batches))
        if not self.overload.lasts(now) or self.queue.count < max(
            free, min(self.limits.concurrency, self.limits.queue)
        ):
            return False
        # What a call costs on its own; before the model is known, that of the most expensive one that runs.
        lanes = [batch.lane for batch in self.batches] if lane is None else [lane]
        alone_s = max((lane.idle_s for lane in lanes), default=0.0)
        return self.wait_s(now) > max(SHORT_WAIT_S, alone_s)

    def _gives_way(self, latest: Job, level: int, device: str) -> bool:
        if latest.level != level:
            return latest.level > level
        return latest.device != device and latest.tag - latest.cost_s >= self.queue.tag(level, device)

    def _refusal(self, now: float) -> ServerBusy:
        """The error for a call without room. Those that were refused shall come back one after the other: in a time in
        which the server can serve them, and at random in it."""
        self._refused = max(0.0, 1.0 - (now - self._refused_at)) * self._refused + 1.0
        self._refused_at = now
        self.overload.refused(now)
        waiting = self.queue.count
        each = self.queue.cost_s / waiting if waiting else 0.0
        spread = self.wait_s(now) + self._refused * each / self.limits.concurrency
        base = self.limits.retry_after
        after = base * (0.5 + 0.5 * self._chance()) + self._chance() * min(spread, LONGEST_RETRY_S)
        return ServerBusy(f"{len(self.batches)} inferences run and {waiting} wait; come back later", after)

    # ------------------------------------------------------------------ what runs

    def take(self) -> Batch | None:
        """The next batch, which runs from now on; None if nothing waits, or what waits shall wait for more."""
        now = self._clock()
        taking = True
        while taking:
            taking = False
            for lane in self.queue.lanes():
                if self._ripe_at(lane, now) > now:
                    continue
                jobs = [job for job in self.queue.take(lane) if not self._drop_if_gone(job, now)]
                if jobs:
                    return self.start(lane, jobs, now)
                taking = True
                break
        return None

    def start(self, lane: Lane, jobs: list[Job], now: float) -> Batch:
        """Calls run from now on."""
        images = sum(job.images for job in jobs)
        batch = Batch(lane, jobs, images, now, images * lane.image_s)
        self.batches.append(batch)
        return batch

    def finish(self, batch: Batch) -> None:
        """A batch has run."""
        now = self._clock()
        self.batches.remove(batch)
        self.overload.ran(batch.begun, now)
        batch.lane.ran(len(batch.jobs), batch.images, now - batch.begun, now)

    def due_s(self) -> float | None:
        """Seconds until what waits may run; None if nothing waits."""
        now = self._clock()
        return min((max(0.0, self._ripe_at(lane, now) - now) for lane in self.queue.lanes()), default=None)

    def batches_due(self) -> int:
        """How many batches could run now."""
        now = self._clock()
        return sum(-(-lane.images // lane.limit) for lane in self.queue.lanes() if self._ripe_at(lane, now) <= now)

    def is_gone(self, job: Job, now: float) -> bool:
        """Whether nobody waits for a call any more; its error is set."""
        call = job.call
        if call.deadline is not None and now >= call.deadline:
            job.error = DeadlineExceeded("the deadline of the request passed before it ran")
            return True
        if call.abandoned is not None and call.abandoned():
            job.error = ServerBusy("the caller has gone", self.limits.retry_after)
            return True
        return job.future.done()

    def _drop_if_gone(self, job: Job, now: float) -> bool:
        if not self.is_gone(job, now):
            return False
        if job.waits:
            self.queue.remove(job, unused=True)
        self.dropped.append(job)
        return True

    def _ripe_at(self, lane: Lane, now: float) -> float:
        """When a free thread takes the calls of a lane."""
        delay = self.limits.max_delay
        if not delay or lane.images >= lane.limit:
            return now
        busy = bool(self.batches) or (lane.last_images > 1 and now - lane.last_end < delay)
        return lane.first_arrived + delay if busy else now
