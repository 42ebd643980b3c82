"""Who is let in: limits on a body, on all bodies together, and on the work that waits; and the compute threads.

The event loop only moves bytes. Decoding and inference run in threads, `concurrency` at a time; `queue` more may wait;
who comes after that is told to come back, at once, while it is cheap.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request

from splitwire.codec.errors import LimitExceeded, RequestTimeout, ServerBusy, UsageError

T = TypeVar("T")

DRAIN_FACTOR = 4
"""A refused body up to this many times max_body is still read (and dropped), so that its sender gets to see the answer;
the connection of a larger one is closed."""


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What the server accepts at once; it refuses more (docs/runtime.md).

    max_body: bytes of one request's body. max_buffered: bytes of all bodies in memory. concurrency: inferences at
    once. queue: requests that may wait for one. body_timeout: seconds for a body to arrive. retry_after: seconds that a
    refused client is asked to wait.
    """

    max_body: int = 16 << 20
    max_buffered: int = 256 << 20
    concurrency: int = 2
    queue: int = 32
    body_timeout: float = 30.0
    retry_after: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_body <= self.max_buffered:
            raise UsageError(f"need 1 ≤ max_body ≤ max_buffered; got {self.max_body} and {self.max_buffered}")
        if self.concurrency < 1 or self.queue < 0 or self.body_timeout <= 0:
            raise UsageError("need concurrency ≥ 1, queue ≥ 0 and body_timeout > 0")


class Gate:
    """Counts what is inside; the event loop's thread alone touches the counters, but for `running`."""

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        self._limiter: anyio.CapacityLimiter | None = None
        self._inside = 0
        self._buffered = 0
        self._running = 0
        self._running_lock = threading.Lock()

    @property
    def running(self) -> int:
        """Inferences that a thread is working on now; may be read from any thread."""
        return self._running

    def check(self) -> None:
        """Raise ServerBusy if the queue is full; before the body is read, so that refusing costs nothing."""
        if self._inside >= self.limits.concurrency + self.limits.queue:
            raise ServerBusy(
                f"{self.limits.concurrency} inferences run and {self.limits.queue} wait; come back later",
                self.limits.retry_after,
            )

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The request's body, counted in max_buffered until the block ends.

        Raises LimitExceeded (by Content-Length, before reading; else as soon as the stream is too long), ServerBusy
        (all bodies together), RequestTimeout. Sets `request.state.close` where the rest of the body is not awaited.
        """
        limit = self.limits.max_body
        declared = int(request.headers.get("content-length", "0"))  # the HTTP parser has checked that it is a number
        if declared > limit:
            request.state.close = declared > DRAIN_FACTOR * limit
            raise LimitExceeded(f"the body has {declared} bytes; the limit is {limit}")
        parts: list[bytes] = []
        size = 0
        try:
            with anyio.fail_after(self.limits.body_timeout):
                async for part in request.stream():
                    size += len(part)
                    self._buffered += len(part)
                    if size > limit:
                        request.state.close = True
                        raise LimitExceeded(f"the body is longer than the limit of {limit} bytes")
                    if self._buffered > self.limits.max_buffered:
                        request.state.close = True
                        raise ServerBusy(
                            f"the bodies of all requests pass {self.limits.max_buffered} bytes; come back later",
                            self.limits.retry_after,
                        )
                    parts.append(part)
            yield b"".join(parts)
        except TimeoutError as e:
            request.state.close = True
            raise RequestTimeout(f"the body did not arrive within {self.limits.body_timeout:g} s") from e
        finally:
            self._buffered -= size

    async def run(self, work: Callable[[bytes], T], frame: bytes) -> T:
        """`work(frame)` in a compute thread, when one is free. Raises ServerBusy, and what `work` raises."""
        self.check()
        if self._limiter is None:  # anyio ties a limiter to the running event loop, which __init__ may not have
            self._limiter = anyio.CapacityLimiter(self.limits.concurrency)
        self._inside += 1
        try:
            # Abandoned only when the server's grace is over: a thread cannot be stopped, the wait for it can.
            return await anyio.to_thread.run_sync(
                self._counted, work, frame, limiter=self._limiter, abandon_on_cancel=True
            )
        finally:
            self._inside -= 1

    def _counted(self, work: Callable[[bytes], T], frame: bytes) -> T:
        with self._running_lock:
            self._running += 1
        try:
            return work(frame)
        finally:
            with self._running_lock:
                self._running -= 1
