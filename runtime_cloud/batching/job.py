"""A call that waits or runs, and the lane of a model: which batch it takes, and what it costs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from splitwire.codec.wire.frame import peek_batch
from splitwire.runtime_cloud.call import Call, device_of
from splitwire.runtime_cloud.session import CloudResult, CloudSession

UNKNOWN_S = 1e-3
"""Cost of an image of a model that was not measured, until one has run."""
WEIGHT = 0.125
"""Weight of the last run in the moving averages."""
NORMAL = 2
LOWEST = 3


@dataclass(slots=True, eq=False, frozen=True)
class Done:
    """What became of a call. Times are seconds, as the scheduler's clock counts (time.perf_counter).

    reply: the reply bytes, b"" if none were asked for. begun, ended: when its batch began to run, and when its reply
    was ready. images: in the batch that it ran in.
    """

    result: CloudResult
    reply: bytes
    begun: float
    ended: float
    images: int


class Lane:
    """A model in the scheduler. Not safe between threads. Times are in seconds. Jobs keep the session alive, a lane
    does not.

    limit: the largest batch that calls share, in images. idle_s: a frame of one image on an idle machine, as measured
    at load. alone_s, image_s: moving averages, of a frame of one image that runs on its own (None for a model that was
    not measured), and of an image in the batches that run. images: how many wait. first_arrived: when the first call
    that waits came. last_end, last_images: of the last run; an image counts only if calls shared the run.
    """

    def __init__(self, session: CloudSession, max_batch: int) -> None:
        costs = session.costs
        self.limit = 1 if costs is None else max(1, min(max_batch, costs.largest))
        self.alone_s: float | None = costs.decode_s + costs.back_s[0] if costs is not None and costs.back_s else None
        self.image_s = self.idle_s = UNKNOWN_S if self.alone_s is None else self.alone_s
        self.images = 0
        self.first_arrived = 0.0
        self.last_end = float("-inf")
        self.last_images = 0

    def ran(self, jobs: int, images: int, seconds: float, end: float) -> None:
        """Take a run into the averages."""
        self.image_s += WEIGHT * (seconds / images - self.image_s)
        if images == 1 and self.alone_s is not None:
            self.alone_s += WEIGHT * (seconds - self.alone_s)
        self.last_end, self.last_images = end, images if jobs > 1 else 1


@dataclass(slots=True, eq=False)
class Job:
    """A call in the scheduler.

    session: of the model. device: whose turn it takes. images: of its frame, as the frame's header says. level: its
    priority. cost_s: what it is expected to cost. tag, waits: see queue.py. done, error: what became of it; one is set
    before it is delivered.
    """

    lane: Lane
    session: CloudSession
    call: Call
    future: asyncio.Future[Done]
    arrived: float
    with_reply: bool
    device: str
    images: int
    level: int
    cost_s: float
    tag: float = 0.0
    waits: bool = False
    done: Done | None = None
    error: Exception | None = field(default=None)

    @classmethod
    def of(
        cls,
        lane: Lane,
        session: CloudSession,
        call: Call,
        future: asyncio.Future[Done],
        arrived: float,
        *,
        with_reply: bool,
    ) -> Job:
        """The job of a call. Raises BitstreamError for a frame whose header cannot be read."""
        images = max(1, peek_batch(call.frame) if call.tensors is None else len(call.tensors.tensors[0]))
        device = device_of(call) or call.client
        level = level_of(call.priority)
        cost_s = images * lane.image_s
        return cls(lane, session, call, future, arrived, with_reply, device, images, level, cost_s)

    def deliver(self) -> None:
        """Tell the caller, in the thread of the event loop; a caller that was cancelled hears nothing."""
        if self.future.done():
            return
        if self.done is not None:
            self.future.set_result(self.done)
        elif self.error is not None:
            self.future.set_exception(self.error)


def level_of(priority: int) -> int:
    """The level of a priority, 1 to 3: 1 is the highest, 2 the normal one, 3 the lowest; 0 is the normal one too."""
    return NORMAL if priority <= 0 else min(priority, LOWEST)
