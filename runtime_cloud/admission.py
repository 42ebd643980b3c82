"""Admission: limits on one body, on all bodies together and on the number of waiting requests; and the compute threads.

The event loop only moves bytes. Decoding and inference run in threads, at most `concurrency` at a time. At most `queue`
further requests wait. Any other request is refused at once, before its body is read, when that still costs little.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request

from splitwire.codec.errors import LimitExceeded, RequestTimeout, ServerBusy, UsageError

T = TypeVar("T")

DRAIN_FACTOR = 4
"""A refused body of up to DRAIN_FACTOR · max_body bytes is read and dropped, so that its sender can read the answer.
For a larger body the server closes the connection."""


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What the server accepts at a time; it refuses more (docs/runtime.md).

    max_body: bytes of one body. max_buffered: bytes of all bodies in memory. concurrency: inferences at a time.
    queue: requests that may wait for an inference. body_timeout: seconds in which a body must arrive. retry_after:
    seconds that a refused client is asked to wait. streams: streams that are open at a time (docs/stream.md). answers,
    answer_bytes: how many replies to frames with an idempotency key are remembered, and their bytes; 0 answers: none.
    Raises UsageError for values out of range.
    """

    max_body: int = 16 << 20
    max_buffered: int = 256 << 20
    concurrency: int = 2
    queue: int = 32
    body_timeout: float = 30.0
    retry_after: float = 1.0
    streams: int = 1024
    answers: int = 8192
    answer_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if not 1 <= self.max_body <= self.max_buffered:
            raise UsageError(f"need 1 ≤ max_body ≤ max_buffered; got {self.max_body} and {self.max_buffered}")
        if self.concurrency < 1 or self.queue < 0 or self.body_timeout <= 0 or self.streams < 0:
            raise UsageError("need concurrency ≥ 1, queue ≥ 0, streams ≥ 0 and body_timeout > 0")
        if self.answers < 0 or self.answer_bytes < 0:
            raise UsageError("need answers ≥ 0 and answer_bytes ≥ 0")


class Gate:
    """Counts the requests and bytes in the server. Only the thread of the event loop changes the counters, except
    `running`."""

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        self._limiter: anyio.CapacityLimiter | None = None
        self._inside = 0
        self._buffered = 0
        self._running = 0
        self._running_lock = threading.Lock()

    @property
    def running(self) -> int:
        """Number of inferences that run now. Any thread may read it."""
        return self._running

    def check(self) -> None:
        """Raise ServerBusy if the queue is full. Called before the body is read, so that a refusal costs little."""
        if self._inside >= self.limits.concurrency + self.limits.queue:
            raise ServerBusy(
                f"{self.limits.concurrency} inferences run and {self.limits.queue} wait; come back later",
                self.limits.retry_after,
            )

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body of a request. It counts towards max_buffered until the block ends.

        Raises LimitExceeded (before reading if Content-Length is too large, else as soon as the stream is too long),
        ServerBusy (all bodies together are too large), RequestTimeout. Sets `request.state.close` if the rest of the
        body will not be read.
        """
        limit = self.limits.max_body
        declared = int(request.headers.get("content-length", "0"))  # the HTTP parser refuses anything but a number
        if declared > limit:
            request.state.close = declared > DRAIN_FACTOR * limit
            raise LimitExceeded(f"the body has {declared} bytes; the limit is {limit}")
        parts: list[bytes] = []
        size = 0
        try:
            with anyio.fail_after(self.limits.body_timeout):
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        self._buffered += len(part)
                        request.state.close = True
                        raise LimitExceeded(f"the body is longer than the limit of {limit} bytes")
                    try:
                        self.count(len(part))
                    except ServerBusy:
                        request.state.close = True
                        raise
                    parts.append(part)
            yield b"".join(parts)
        except TimeoutError as e:
            request.state.close = True
            raise RequestTimeout(f"the body did not arrive within {self.limits.body_timeout:g} s") from e
        finally:
            self._buffered -= size

    def count(self, size: int) -> None:
        """Count bytes that are stored, or no longer stored if `size` is negative, towards max_buffered.

        Raises ServerBusy if they are too many; they are counted all the same.
        """
        self._buffered += size
        if size > 0 and self._buffered > self.limits.max_buffered:
            raise ServerBusy(
                f"the bodies of all requests pass {self.limits.max_buffered} bytes; come back later",
                self.limits.retry_after,
            )

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count bytes that are stored until the block ends. Raises ServerBusy."""
        try:
            self.count(size)
            yield
        finally:
            self._buffered -= size

    async def run(self, work: Callable[[bytes], T], frame: bytes) -> T:
        """Run `work(frame)` in a compute thread, as soon as one is free. Raises ServerBusy, and what `work` raises."""
        self.check()
        if self._limiter is None:  # anyio binds a limiter to the running event loop; __init__ may run without one
            self._limiter = anyio.CapacityLimiter(self.limits.concurrency)
        self._inside += 1
        try:
            # Cancelled only after the server's grace period. A thread cannot be stopped; the wait for it can.
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
