"""Admission: the limits of a server, and the count of the bytes of all bodies. batching/ admits calls to the queue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import anyio
from starlette.requests import Request

from splitwire.codec.errors import LimitExceeded, RequestTimeout, ServerBusy, UsageError

DRAIN_FACTOR = 4
"""A refused body of up to DRAIN_FACTOR · max_body bytes is read and dropped, so that its sender can read the answer.
For a larger body the server closes the connection."""


MAX_BATCH = 32
"""Largest batch that requests share; batching/measure.py measures up to this size."""


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What the server accepts at a time; it refuses more (docs/runtime.md).

    max_body: bytes of one body. max_buffered: bytes of all bodies in memory. concurrency: runs of a model at a time.
    queue: requests that may wait for one. max_batch: images in a run that requests share; 1: none do. max_delay:
    seconds that a request may wait for others to share a run, while its model is busy. inline: seconds; a single
    request that is expected to take less runs in the event loop (docs/batching.md); 0: none does. body_timeout: seconds
    in which a body must arrive. retry_after: seconds that a refused client is asked to wait, about. streams: streams
    that are open at a time (docs/stream.md). answers, answer_bytes: how many replies to frames with an idempotency key
    are remembered, and their bytes; 0 answers: none. connections: open at a time, streams too. max_head: bytes of the
    head of a request. head_timeout: seconds in which it must arrive.
    Raises UsageError for values out of range.
    """

    max_body: int = 16 << 20
    max_buffered: int = 256 << 20
    concurrency: int = 2
    queue: int = 32
    max_batch: int = 8
    max_delay: float = 0.0
    inline: float = 0.5e-3
    body_timeout: float = 30.0
    retry_after: float = 1.0
    streams: int = 1024
    answers: int = 8192
    answer_bytes: int = 64 << 20
    connections: int = 960
    max_head: int = 16 << 10
    head_timeout: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_body <= self.max_buffered:
            raise UsageError(f"need 1 ≤ max_body ≤ max_buffered; got {self.max_body} and {self.max_buffered}")
        if self.concurrency < 1 or self.queue < 0 or self.body_timeout <= 0 or self.streams < 0:
            raise UsageError("need concurrency ≥ 1, queue ≥ 0, streams ≥ 0 and body_timeout > 0")
        if not 1 <= self.max_batch <= MAX_BATCH or not 0 <= self.max_delay < 1 or self.inline < 0:
            raise UsageError(f"need 1 ≤ max_batch ≤ {MAX_BATCH}, 0 ≤ max_delay < 1 and inline ≥ 0")
        if self.answers < 0 or self.answer_bytes < 0:
            raise UsageError("need answers ≥ 0 and answer_bytes ≥ 0")
        if self.connections < 1 or self.max_head < 256 or self.head_timeout <= 0:
            raise UsageError("need connections ≥ 1, max_head ≥ 256 and head_timeout > 0")


class Gate:
    """Counts the bytes of requests in the server. Only the thread of the event loop uses it."""

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        self._buffered = 0

    @property
    def buffered(self) -> int:
        """Bytes of bodies and frames in memory."""
        return self._buffered

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
