"""Window: how many frames may be on their way, by the rate of the answers and the time of a round trip.

The bound is ⌈rate · round trip⌉ + 1. Both are measured: the rate of the answers, which a slow link limits; and the
round trip of frames that were sent while no other was on its way, because a queue in the link makes the others' longer.
If there was no such frame for PROBE_S, the window closes to one frame until there is one.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque

FIRST = 2
PROBE_S = 10.0
RECENT_S = 5.0
FEWEST = 4
ROUND_TRIPS = 3
"""The mean of this many round trips is taken."""


class Window:
    """Counts the frames in flight, and those between the front and the caller.

    fixed: the bound on frames in flight; None: it is measured, and at most `most`. slack: how many answered frames may
    wait for the caller, or for an earlier answer, beyond the bound.
    """

    def __init__(self, fixed: int | None, *, most: int, slack: int) -> None:
        self._limit = FIRST if fixed is None else fixed
        self._is_fixed = fixed is not None
        self._most = most
        self._slack = slack
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._free = threading.Condition(self._lock)
        self._entered = 0
        self._in_flight = 0
        self._largest = 0
        self._probing = False
        self._last_probe = time.monotonic()
        self._round_trips: deque[float] = deque(maxlen=ROUND_TRIPS)
        self._answers: deque[float] = deque(maxlen=32)
        self._closed = False

    @property
    def limit(self) -> int:
        """The bound on frames in flight."""
        return self._limit

    @property
    def largest(self) -> int:
        """Most frames that were in flight at a time."""
        return self._largest

    @property
    def round_trip(self) -> float | None:
        """Seconds of a round trip on an idle link; None before the first answer."""
        with self._lock:
            return sum(self._round_trips) / len(self._round_trips) if self._round_trips else None

    def enter(self) -> bool:
        """Count a frame that goes into the front, when there is room for it. False: the window is closed.

        One frame more than may be in flight: the front computes while the others are on their way.
        """
        with self._lock:
            while self._entered > self._limit + self._slack and not self._closed:
                self._room.wait()
            self._entered += 1
            return not self._closed

    def has_room(self) -> bool:
        """Whether `enter` would return at once."""
        return self._entered <= self._limit + self._slack

    def leave(self) -> None:
        """Count off a frame that the caller has taken."""
        with self._lock:
            self._entered -= 1
            self._room.notify()

    def is_full(self) -> bool:
        """Whether `wait` would wait."""
        return self._in_flight >= (1 if self._probing else self._limit)

    def wait(self) -> bool:
        """Wait until one more frame may be sent. False: the window is closed."""
        with self._lock:
            while self.is_full() and not self._closed:
                self._free.wait()
            return not self._closed

    def sent(self) -> bool:
        """Count a frame in flight. Returns whether it is alone: pass that to `answered`."""
        with self._lock:
            alone = self._in_flight == 0
            self._in_flight += 1
            self._largest = max(self._largest, self._in_flight)
            return alone

    def answered(self, seconds: float | None, *, alone: bool) -> None:
        """Count off a frame in flight. seconds: of its round trip; None if it failed."""
        with self._lock:
            self._in_flight -= 1
            if seconds is not None and not self._is_fixed:
                self._measure(seconds, alone)
            self._free.notify()
            self._room.notify()

    def close(self) -> None:
        """Let everyone who waits go on."""
        with self._lock:
            self._closed = True
            self._room.notify_all()
            self._free.notify_all()

    def _measure(self, seconds: float, alone: bool) -> None:
        now = time.monotonic()
        if alone:
            self._round_trips.append(seconds)
            self._last_probe = now
            self._probing = False
        elif now - self._last_probe > PROBE_S:
            self._probing = True
        self._answers.append(now)
        while now - self._answers[0] > RECENT_S:
            self._answers.popleft()
        span = now - self._answers[0]
        mean = sum(self._round_trips) / len(self._round_trips) if self._round_trips else math.inf
        if len(self._answers) >= FEWEST and span >= mean:  # less is no rate: answers may come in bursts
            rate = (len(self._answers) - 1) / span
            self._limit = min(math.ceil(rate * mean) + 1, self._most)
