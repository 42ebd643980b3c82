"""When to try again: back-off with full jitter, a budget for retries, and the circuit breaker.

Full jitter: the pause is drawn from 0 to a bound that doubles, so that edges which lost the same server do not come
back together (M. Brooker, "Exponential Backoff And Jitter", 2015). The budget bounds what retries add to the load on a
server that fails now and then; the breaker stops trying one that fails always.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Literal

from splitwire.codec.errors import CircuitOpen, UsageError
from splitwire.runtime_edge.events import Event, EventSink, Field, ignore

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 10.0
"""Longest pause before a retry, seconds. If the server asks for a longer one, there is no retry: the caller decides."""

State = Literal["closed", "open", "half_open"]


def pause(attempt: int, retry_after: float | None = None) -> float:
    """Seconds before the attempt after attempt number `attempt`, which counts from 1. Not less than retry_after."""
    bound = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt - 1, 32))
    return (retry_after or 0.0) + random.uniform(0.0, bound)  # noqa: S311 - no secret depends on it


class RetryBudget:
    """Lets retries be at most a share of the requests that succeed, beside a reserve. Threads share it.

    share: retries earned per success. reserve: most retries in a row without a success in between.
    """

    def __init__(self, *, share: float = 0.1, reserve: float = 10.0) -> None:
        self._share = share
        self._reserve = reserve
        self._left = reserve

    def earn(self) -> None:
        """A request succeeded."""
        if self._left < self._reserve:  # a race between threads loses a fraction of a retry
            self._left = min(self._reserve, self._left + self._share)

    def spend(self) -> bool:
        """Take one retry. False: there is none left."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class CircuitBreaker:
    """Stops trying a server that fails again and again: open after n failures in a row, then one probe at a time.

    closed: every frame is tried. open: none is; CircuitOpen is raised at once, for a time that doubles with each failed
    probe. half_open: one frame is tried, as a probe; its success closes the circuit.

    failures: in a row, until the circuit opens; 0 never opens it. first_s, longest_s: bounds of the time that it is
    open, in seconds; it is drawn from the upper half. on_event: gets an Event of kind "circuit" at every change of the
    state, with the fields state, server, failures and retry_in_s. Raises UsageError. Threads and transports share it.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        first_s: float = 0.5,
        longest_s: float = 30.0,
        on_event: EventSink = ignore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if failures < 0 or not 0 < first_s <= longest_s:
            raise UsageError("need failures ≥ 0 and 0 < first_s ≤ longest_s")
        self._threshold = failures
        self._first_s = first_s
        self._longest_s = longest_s
        self._on_event = on_event
        self._clock = clock
        self._lock = threading.Lock()
        self._state: State = "closed"
        self._failures = 0
        self._openings = 0
        self._until = 0.0
        self._reason = ""

    @property
    def state(self) -> State:
        """closed, open or half_open."""
        return self._state

    @property
    def failures(self) -> int:
        """Failures in a row, up to now."""
        return self._failures

    def after_fork(self) -> None:
        """In the child of a fork(): another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def admit(self, server: str) -> None:
        """Ask before an attempt; then call `succeeded`, `failed` or `forget`. Raises CircuitOpen."""
        if not self._failures:  # as for almost every frame: no lock
            return
        with self._lock:
            if self._state == "closed":
                return
            now = self._clock()
            if now < self._until:
                wait = self._until - now
                doing = "one frame is trying it now" if self._state == "half_open" else f"next try in {wait:.1f} s"
                raise CircuitOpen(
                    f"{server} is not tried: {self._failures} tries in a row failed, the last one because"
                    f" {self._reason}; {doing}",
                    wait,
                )
            self._state = "half_open"
            self._until = now + self._longest_s  # a probe that is never reported does not keep the circuit open
        self._tell(server, f"{server} is tried again, with one frame", 0.0)

    def succeeded(self, server: str) -> None:
        """The server answered."""
        if not self._failures and self._state == "closed":
            return
        with self._lock:
            reopened = self._state != "closed"
            self._state = "closed"
            self._failures = self._openings = 0
        if reopened:
            self._tell(server, f"{server} answers again", 0.0)

    def failed(self, server: str, reason: str, at_least_s: float = 0.0) -> None:
        """The server did not answer. reason: why, in words. at_least_s: how long the server asks to be left alone."""
        with self._lock:
            self._failures += 1
            self._reason = reason
            if not self._threshold or self._failures < self._threshold or self._state == "open":
                return
            self._state = "open"
            longest = min(self._longest_s, self._first_s * 2.0 ** min(self._openings, 32))
            wait = max(at_least_s, random.uniform(longest / 2, longest))  # noqa: S311 - no secret depends on it
            self._openings += 1
            self._until = self._clock() + wait
        self._tell(server, f"{server} does not answer: {reason}; the next try is in {wait:.1f} s", wait)

    def forget(self) -> None:
        """An attempt ended without saying anything about the server: let another frame be the probe."""
        if self._state == "half_open":
            with self._lock:
                self._until = 0.0

    def _tell(self, server: str, text: str, wait: float) -> None:
        fields: dict[str, Field] = {
            "state": self._state,
            "server": server,
            "failures": self._failures,
            "retry_in_s": round(wait, 3),
        }
        self._on_event(Event(kind="circuit", text=text, fields=fields))
