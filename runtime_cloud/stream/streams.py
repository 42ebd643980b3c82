"""All streams of a server: their number, the window of each, and the tick that ends those that are silent or stuck."""

from __future__ import annotations

import asyncio
from typing import Protocol

from splitwire.codec.errors import ServerBusy
from splitwire.runtime_cloud.service import Service

WINDOW = 16
"""Most frames of one stream in flight."""
HELLO_S = 10.0
"""A client must say hello within this time."""
IDLE_S = 75.0
"""A stream on which nothing arrives for this time is closed; as an idle HTTP connection is (engines/process.py)."""
TICK_S = 1.0
"""Longest pause between two looks at the times of all streams."""


class Member(Protocol):
    """A stream, as seen from here."""

    def set_share(self, window: int) -> None:
        """Allow the client this many frames in flight."""
        ...

    def check_times(self, now: float) -> None:
        """End the stream if one of its times is over. now: the clock of the event loop, seconds."""
        ...


class Streams:
    """The streams of one server, and the service that they call.

    hello_s, idle_s: seconds to wait for a hello, and for any byte after it. Only the thread of the event loop uses it.
    """

    def __init__(self, service: Service, *, hello_s: float = HELLO_S, idle_s: float = IDLE_S) -> None:
        self.service = service
        self.hello_s = hello_s
        self.idle_s = idle_s
        self._members: set[Member] = set()
        self._share = self._fair_share()
        self._tick: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Number of streams that are open."""
        return len(self._members)

    @property
    def share(self) -> int:
        """Frames that one stream may have in flight now: at most WINDOW, at least 1."""
        return self._share

    def check(self) -> None:
        """Raise ServerBusy if no other stream may be opened."""
        limits = self.service.limits
        if len(self._members) >= limits.streams:
            raise ServerBusy(f"{limits.streams} streams are open; come back later", limits.retry_after)

    def add(self, member: Member) -> None:
        """A stream begins."""
        self._members.add(member)
        self._divide()
        if self._tick is None:
            self._schedule()

    def remove(self, member: Member) -> None:
        """A stream has ended."""
        self._members.discard(member)
        self._divide()

    def _fair_share(self) -> int:
        limits = self.service.limits
        places = limits.concurrency + limits.queue
        return max(1, min(WINDOW, places // max(1, len(self._members))))

    def _divide(self) -> None:
        """Tell all streams their window when it has changed, which it does a few times until it is 1."""
        share = self._fair_share()
        if share != self._share:
            self._share = share
            for member in self._members:
                member.set_share(share)

    def _schedule(self) -> None:
        shortest = min(self.hello_s, self.idle_s, self.service.limits.body_timeout)
        loop = asyncio.get_running_loop()
        self._tick = loop.call_later(min(TICK_S, shortest / 4), self._look)

    def _look(self) -> None:
        self._tick = None
        now = asyncio.get_running_loop().time()
        for member in list(self._members):
            member.check_times(now)
        if self._members:
            self._schedule()
