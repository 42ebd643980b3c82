"""Drain: sends what waits in the spool, in order, at a bounded share of the link."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from splitwire.codec.errors import (
    BitstreamError,
    CircuitOpen,
    FeatureError,
    ProfileError,
    ServerBusy,
    SplitwireError,
    SpoolError,
    TransportError,
    UsageError,
)
from splitwire.runtime_edge.events import Event, EventSink, ignore
from splitwire.runtime_edge.transport.base import BatchTransport, Reply, Transport

from .records import Spooled
from .spool import Spool

REFUSED = (BitstreamError, ProfileError, FeatureError, UsageError)
"""Errors that say that this frame will never be taken."""
REFUSALS = 3
"""A frame is dead after this number of refusals: the first ones can come from bytes that the link damaged."""
FAILURES = 10
"""The same for errors of the server's own, which may be bugs that this frame causes."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Back-off while the link is down: a random time up to the first, doubled each time, up to the longest."""
LEAST_BYTES, MOST_BYTES = 4 << 10, 256 << 10
REQUEST_S = 0.5
"""A request holds as many bytes as the link took in this many seconds before, within the two limits above."""
IDLE_S = 5.0

OnReply = Callable[[Spooled, Reply], None]


@dataclass
class DrainCounts:
    """What a drain did: frames answered and buried, requests, and requests that failed because of the link."""

    answered: int = 0
    buried: int = 0
    requests: int = 0
    failed: int = 0


class Drain:
    """Sends the frames of a spool through a transport, in a thread of its own.

    share: of the time of the link that the drain may use, greater than 0, at most 1: after a request that took t
    seconds it waits t·(1/share − 1), so that frames from the camera get through. batch: frames per request, if the
    transport takes several; on a slow link fewer. on_reply: called with each answered frame and its reply, in the
    order of the answers, before the frame is acknowledged. If it raises, the frame stays and comes again.
    on_event: kinds `drain_refused` (a frame is dead, with the server's reason), `drain_waits` (the link is down),
    `drain_goes_on`, `drain_failed` (on_reply raised, or the spool cannot be read).
    Raises UsageError for a wrong option.

    `step` does the work of one request; `start` runs it in the thread until `close`, which leaves the transport open.
    """

    def __init__(
        self,
        spool: Spool,
        transport: Transport,
        *,
        share: float = 0.5,
        batch: int = 16,
        on_reply: OnReply | None = None,
        on_event: EventSink = ignore,
    ) -> None:
        if not 0 < share <= 1 or batch < 1:
            raise UsageError(f"share is greater than 0 and at most 1, batch at least 1; got {share} and {batch}")
        self._spool, self._transport = spool, transport
        self._share, self._batch = share, batch
        self._on_reply, self._on_event = on_reply, on_event
        self._budget = LEAST_BYTES
        self._failures = 0
        self._tries: dict[int, int] = {}
        self._wake, self._more, self._stop = threading.Event(), threading.Event(), threading.Event()
        spool.tell_when_stored(self._more)
        self._thread: threading.Thread | None = None
        self.counts = DrainCounts()

    def start(self) -> None:
        """Start the thread. A second call has no effect."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="spool-drain", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """End the back-off: the caller knows that the server can be reached again."""
        self._failures = 0
        self._wake.set()

    def close(self) -> None:
        """Stop after the request that is on its way. A second call has no effect."""
        self._stop.set()
        self._wake.set()
        self._more.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def step(self) -> float | None:
        """Send one request. Returns how long to wait before the next, in seconds; None if nothing waits in the spool.

        Raises SpoolError.
        """
        records = self._spool.next(self._batch, max_bytes=self._budget)
        if not records:
            return None
        start = time.monotonic()
        answers = self._send(records)
        took = time.monotonic() - start
        self.counts.requests += 1
        link: TransportError | None = None
        done: list[int] = []
        wait = took * (1 / self._share - 1)
        for record, answer in zip(records, answers, strict=True):
            if isinstance(answer, Reply):
                if self._deliver(record, answer):
                    done.append(record.id)
                    self._tries.pop(record.id, None)
                else:
                    wait = max(wait, FIRST_WAIT_S)
            elif isinstance(answer, TransportError):
                link = link or answer
            else:
                self._refused(record, answer)
                wait = max(wait, FIRST_WAIT_S) if record.id in self._tries else wait
        if done:
            self._spool.acknowledge(done)
            self.counts.answered += len(done)
        return max(wait, self._back_off(link, took, sum(len(record.frame) for record in records)))

    def _send(self, records: Sequence[Spooled]) -> Sequence[Reply | SplitwireError]:
        """The answer of each; what was not sent because the link failed has the link's error."""
        if len(records) > 1 and isinstance(self._transport, BatchTransport):
            try:
                return self._transport.send_many([r.frame for r in records], [r.key for r in records])
            except SplitwireError as e:
                # An error of the request, not of a frame: those are in the list. It must not count against a frame.
                link = e if isinstance(e, TransportError) else TransportError(str(e))
                return [link for _ in records]
        answers: list[Reply | SplitwireError] = []
        for record in records:
            try:
                answers.append(self._transport.send(record.frame, record.key))
            except TransportError as e:
                return [*answers, *(e for _ in records[len(answers) :])]
            except SplitwireError as e:
                answers.append(e)
        return answers

    def _deliver(self, record: Spooled, reply: Reply) -> bool:
        if self._on_reply is None:
            return True
        try:
            self._on_reply(record, reply)
        except Exception as e:
            self._tell("drain_failed", f"the answer of frame {record.key} could not be handed on: {e}")
            return False
        return True

    def _refused(self, record: Spooled, error: SplitwireError) -> None:
        tries = self._tries[record.id] = self._tries.get(record.id, 0) + 1
        if tries < (REFUSALS if isinstance(error, REFUSED) else FAILURES):
            return
        del self._tries[record.id]
        self._spool.bury(record.id, error.code, str(error))
        self.counts.buried += 1
        self._tell("drain_refused", f"frame {record.key} is not sent again: the server refuses it: {error}")

    def _back_off(self, link: TransportError | None, took: float, sent: int) -> float:
        """Seconds to wait because of the link, which is up if there is no error."""
        if link is None:
            if self._failures:
                self._tell("drain_goes_on", "the server answers again; the spool drains")
            self._failures = 0
            self._budget = int(min(MOST_BYTES, max(LEAST_BYTES, sent * REQUEST_S / max(took, 1e-3))))
            return 0.0
        self.counts.failed += 1
        if not self._failures:
            self._tell("drain_waits", f"frames wait in the spool: {link}")
        self._failures = min(self._failures + 1, 32)
        self._budget = LEAST_BYTES
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (self._failures - 1))
        wait = random.uniform(0, longest)  # noqa: S311 - spreads clients, no secret
        if isinstance(link, ServerBusy | CircuitOpen) and link.retry_after is not None:
            wait = max(wait, link.retry_after)
        return wait

    def _run(self) -> None:
        while not self._stop.is_set():
            self._more.clear()
            try:
                wait = self.step()
            except SpoolError as e:
                if self._stop.is_set():
                    return
                self._tell("drain_failed", str(e))
                wait = LONGEST_WAIT_S
            if wait is None:
                self._more.wait(IDLE_S)
            elif wait:
                self._wake.wait(wait)
                self._wake.clear()

    def _tell(self, kind: str, text: str) -> None:
        with suppress(Exception):  # a sink that raises must not end the thread
            self._on_event(Event(kind=kind, text=text))
