"""Stream: the results of a pipeline, for a `for` loop and for an `async for` loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from splitwire.codec.errors import UsageError
from splitwire.runtime_edge.events import EventSink, ignore

from .channel import POLICIES, Ended, Policy
from .parts import DriftPart, Fallback, RatePart, SkipPart, SpoolPart, Stages, StreamResult, StreamStats
from .pipeline import Parts, Pipeline

if TYPE_CHECKING:
    from splitwire.runtime_edge.sources.base import Source

MOST_IN_FLIGHT = 8
"""Most frames in flight unless the caller says how many: an HttpTransport has as many connections."""
MAX_IN_FLIGHT = 256
JOIN_S = 1.0


class Stream:
    """The results of a source, in order: an iterator, an asynchronous iterator, and a context manager of both kinds.

    It ends when the source ends and the last result is taken. A second loop goes on where the first one stopped.
    `close`, the end of a `with` block, and dropping the last reference stop all stages at once.

    `next` raises the source's own error after all results before it; and what a part (skip, rate, an event's receiver)
    raises by mistake, at once. An error of one picture or frame is the `error` of its result.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._finalizer = weakref.finalize(self, pipeline.stop)

    @classmethod
    def start(
        cls,
        stages: Stages,
        source: Source,
        *,
        policy: Policy,
        in_flight: int | None,
        rate: RatePart | None,
        drift: DriftPart | None,
        skip: SkipPart | None,
        spool: SpoolPart | None,
        wait_s: float,
        fallback: Fallback | None,
        on_event: EventSink | None,
        spool_fallback: bool = False,
    ) -> Self:
        """Start the stages. The arguments are those of `EdgeSession.stream`. Raises UsageError."""
        if policy not in POLICIES:
            raise UsageError(f"a policy is {', '.join(POLICIES)}; got {policy!r}")
        if in_flight is not None and not 1 <= in_flight <= MAX_IN_FLIGHT:
            raise UsageError(f"in_flight must be 1 to {MAX_IN_FLIGHT}, got {in_flight}")
        if wait_s < 0:
            raise UsageError(f"wait_s must be 0 or more, got {wait_s}")
        if spool_fallback and (fallback is None or spool is None):
            raise UsageError("spool_fallback goes with a fallback and a spool")
        parts = Parts(
            rate=rate,
            drift=drift,
            skip=skip,
            spool=spool,
            fallback=fallback,
            spool_fallback=spool_fallback,
            on_event=on_event or ignore,
        )
        pipeline = Pipeline(
            stages,
            source,
            parts,
            policy=policy,
            in_flight=in_flight,
            most_in_flight=MOST_IN_FLIGHT,
            wait_s=wait_s,
        )
        return cls(pipeline)

    @property
    def stats(self) -> StreamStats:
        """Counts since the start, and the state now."""
        p = self._pipeline
        round_trip = p.window.round_trip
        return StreamStats(
            captured=p.counts["captured"],
            dropped=p.counts["dropped"],
            answered=p.statuses["answered"],
            repeated=p.statuses["repeated"],
            spooled=p.statuses["spooled"],
            failed=p.statuses["failed"],
            on_device=p.counts["on_device"],
            bytes_sent=p.counts["bytes_sent"],
            in_flight=p.window.limit,
            largest_in_flight=p.window.largest,
            round_trip_ms=None if round_trip is None else round_trip * 1e3,
        )

    def close(self) -> None:
        """Stop all stages and close the source. What is in flight is not waited for longer than a second."""
        self._finalizer.detach()
        self._pipeline.stop()
        self._pipeline.join(JOIN_S)

    # ------------------------------------------------------------------ for

    def __iter__(self) -> Iterator[StreamResult]:
        return self

    def __next__(self) -> StreamResult:
        try:
            return self._pipeline.hand_over(self._pipeline.results.take())
        except Ended:
            self.close()
            raise StopIteration from None
        except BaseException:  # Ctrl-C too
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------------ async for

    def __aiter__(self) -> AsyncIterator[StreamResult]:
        return self

    async def __anext__(self) -> StreamResult:
        loop = asyncio.get_running_loop()
        results = self._pipeline.results
        try:
            while True:
                ready = asyncio.Event()
                waker = _Waker(loop, ready)
                job = results.take_or_call(waker)
                if job is not None:
                    return self._pipeline.hand_over(job)
                try:
                    await ready.wait()
                finally:
                    results.forget(waker)
        except Ended:
            await self.aclose()
            raise StopAsyncIteration from None
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """`close`, without blocking the event loop."""
        self._finalizer.detach()
        self._pipeline.stop()
        await asyncio.get_running_loop().run_in_executor(None, self._pipeline.join, JOIN_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


class _Waker:
    """Sets an event of an event loop from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ready: asyncio.Event) -> None:
        self._loop = loop
        self._ready = ready

    def __call__(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ready.set)
