"""Ordered: jobs that are finished in any order and taken in the order in which they were added."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from .channel import Ended


class Finishing(Protocol):
    """A job. finished: set by Ordered."""

    finished: bool


J = TypeVar("J", bound=Finishing)


class Ordered(Generic[J]):
    """A queue of jobs, each of which can be taken when it and all before it are finished."""

    def __init__(self) -> None:
        self._jobs: deque[J] = deque()
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._wakers: list[Callable[[], None]] = []
        self._ended = False
        self._last: BaseException | None = None
        self._error: BaseException | None = None

    def add(self, job: J) -> None:
        """Add a job behind the others."""
        with self._lock:
            self._jobs.append(job)

    def finish(self, job: J) -> None:
        """Mark a job as finished."""
        with self._lock:
            job.finished = True
            if self._jobs and self._jobs[0] is job:
                self._wake()

    def end(self, last: BaseException | None = None) -> None:
        """No more jobs are added. `take` raises `last` after the jobs; Ended if it is None."""
        with self._lock:
            self._ended = True
            self._last = self._last or last
            self._wake()

    def abort(self, error: BaseException) -> None:
        """Lose the jobs, and let `take` raise this error."""
        with self._lock:
            self._error = self._error or error
            self._jobs.clear()
            self._wake()

    def take(self) -> J:
        """Wait for the next job and remove it. Raises Ended, or the error given to `end` or `abort`."""
        with self._lock:
            while (job := self._next()) is None:
                self._ready.wait()
            return job

    def take_or_call(self, waker: Callable[[], None]) -> J | None:
        """The next job if it is finished; if not, None, and `waker` is called once, from any thread, when `take` would
        not wait. Raises as `take`."""
        with self._lock:
            job = self._next()
            if job is None:
                self._wakers.append(waker)
            return job

    def forget(self, waker: Callable[[], None]) -> None:
        """Do not call `waker` any more."""
        with self._lock:
            if waker in self._wakers:
                self._wakers.remove(waker)

    def _next(self) -> J | None:
        if self._error is not None:
            raise self._error
        if self._jobs and self._jobs[0].finished:
            return self._jobs.popleft()
        if self._ended and not self._jobs:
            raise self._last or Ended()
        return None

    def _wake(self) -> None:
        self._ready.notify_all()
        wakers, self._wakers = self._wakers, []
        for waker in wakers:
            waker()
