"""Paced: a source at a rate that the user chose."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from splitwire.codec.errors import UsageError

from .base import Captured

if TYPE_CHECKING:
    from .base import Source


class Paced:
    """A source at a rate of its own.

    A stored source is slowed down to `fps` pictures per second. Of a live one, pictures are left out that come sooner
    than that after the last one, so that what is given is never old.
    """

    def __init__(self, source: Source, fps: float) -> None:
        if not fps > 0:
            raise UsageError(f"frames per second must be more than 0, got {fps}")
        self._source = source
        self._interval = 1 / fps
        self._next = 0.0
        self._closed = threading.Event()

    @property
    def live(self) -> bool:
        """Whether the source is live."""
        return self._source.live

    def __iter__(self) -> Iterator[Captured]:
        return self

    def __next__(self) -> Captured:
        if self.live:
            while True:
                captured = next(self._source)
                # A camera's pictures come a little early or late: a tenth of an interval is no difference.
                if captured.captured >= self._next - 0.1 * self._interval:
                    self._next = max(self._next, captured.captured - self._interval) + self._interval
                    return captured
        now = time.monotonic()
        if self._next > now and self._closed.wait(self._next - now):
            raise StopIteration
        self._next = max(self._next, now) + self._interval
        return next(self._source)

    def close(self) -> None:
        """Close the source."""
        self._closed.set()
        self._source.close()
