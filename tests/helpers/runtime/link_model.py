"""A camera, a sender and a link on a simulated clock, to test what chooses the rate without waiting for it."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from splitwire.runtime_edge.control import RateController, Rung


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One captured frame. latency: from its capture to its answer, seconds; None: dropped by the sender, or lost."""

    captured: float
    op: str
    latency: float | None


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """A frame in an event: its number, and how it was sent."""

    frame: int
    rung: Rung | None = None
    size: int = 0
    sent: float = 0.0
    busy: bool = False


@dataclass(kw_only=True)
class Model:
    """rate_at: bytes per second of the link upwards, at a time. rtt_s: round trip without transfer. back_s: time in the
    server, one frame after the other. jitter_s: mean of an exponential time on top. fps: of the camera. in_flight: most
    frames on their way. waiting: most captured frames that wait to be sent; the oldest is dropped. lost_at: whether a
    frame that is sent at a time gets no answer; the sender sees that after timeout_s."""

    rate_at: Callable[[float], float]
    rtt_s: float = 0.02
    back_s: float = 0.002
    jitter_s: float = 0.002
    fps: float = 10.0
    in_flight: int = 2
    waiting: int = 1
    lost_at: Callable[[float], bool] = lambda now: False
    timeout_s: float = 1.0
    seed: int = 0
    now: float = 0.0

    def clock(self) -> float:
        """The simulated time, seconds."""
        return self.now

    def run(self, controller: RateController, size_of: Callable[[Rung], int], seconds: float) -> list[Sent]:
        """Every frame that the camera captures in this time, in order."""
        chance = np.random.default_rng(self.seed)
        events: list[tuple[float, int, str, _Frame]] = []
        count = 0

        def add(at: float, kind: str, what: _Frame) -> None:
            nonlocal count
            count += 1
            heapq.heappush(events, (at, count, kind, what))

        for i in range(int(seconds * self.fps)):
            add(i / self.fps, "captured", _Frame(frame=i))
        results: dict[int, Sent] = {}
        queue: deque[int] = deque()
        link_free = server_free = 0.0
        flying = 0

        def send() -> None:
            nonlocal flying, link_free, server_free
            while queue and flying < self.in_flight:
                frame = queue.popleft()
                busy = self.now > frame / self.fps  # it waited for a place
                rung = controller.rung()
                size = size_of(rung)
                flying += 1
                if self.lost_at(self.now):
                    add(self.now + self.timeout_s, "lost", _Frame(frame=frame))
                    results[frame] = Sent(captured=frame / self.fps, op=rung.op, latency=None)
                    continue
                link_free = transfer(max(link_free, self.now), size)
                server_free = max(server_free, link_free + self.rtt_s / 2) + self.back_s
                back = server_free + self.rtt_s / 2 + float(chance.exponential(self.jitter_s))
                add(back, "answered", _Frame(frame=frame, rung=rung, size=size, sent=self.now, busy=busy))

        def transfer(start: float, size: float) -> float:
            """When these bytes have passed. The rate changes on the way."""
            while size > 0:
                rate = self.rate_at(start)
                part = min(size, rate * 0.005)
                start, size = start + part / rate, size - part
            return start

        while events:
            self.now, _, kind, what = heapq.heappop(events)
            if kind == "captured":
                queue.append(what.frame)
                if len(queue) > self.waiting and flying >= self.in_flight:
                    dropped = queue.popleft()
                    results[dropped] = Sent(captured=dropped / self.fps, op="", latency=None)
            elif kind == "lost":
                flying -= 1
                controller.lost(self.now)
            else:
                flying -= 1
                captured = what.frame / self.fps
                controller.delivered(what.size, what.sent, self.now, what.busy, rung=what.rung)
                op = "" if what.rung is None else what.rung.op
                results[what.frame] = Sent(captured=captured, op=op, latency=self.now - captured)
            send()
        return [results[i] for i in sorted(results)]


def within(frames: Sequence[Sent], target_s: float) -> float:
    """Share of the frames that were answered within the target."""
    return float(np.mean([f.latency is not None and f.latency <= target_s for f in frames]))
