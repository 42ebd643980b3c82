"""Channel: a bounded queue between two stages, with a policy for when it is full."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Policy = Literal["block", "drop-oldest", "drop-newest"]
POLICIES: tuple[Policy, ...] = ("block", "drop-oldest", "drop-newest")


class Ended(Exception):
    """No more items: the channel was ended and is empty, or it was aborted."""


class Channel(Generic[T]):
    """A bounded queue. Several threads may put and get.

    policy: what `put` does where `capacity` items wait: wait, drop the one that waits longest, or drop the new one.
    No method polls: a thread that waits uses no CPU time.
    """

    def __init__(self, capacity: int, policy: Policy = "block") -> None:
        self._capacity = capacity
        self._policy = policy
        self._items: deque[T] = deque()
        self._lock = threading.Lock()
        self._not_empty = threading.Condition(self._lock)
        self._changed = threading.Condition(self._lock)  # for the side that puts: room, or demand
        self._getters = 0
        self._expected: float | None = None
        self._ended = False

    def put(self, item: T) -> int:
        """Add an item; returns how many items were dropped for it, 0 or 1. Raises Ended."""
        dropped = 0
        with self._lock:
            while len(self._items) >= self._capacity and not self._ended:
                if self._policy == "drop-newest":
                    return 1
                if self._policy == "drop-oldest":
                    self._items.popleft()
                    dropped = 1
                else:
                    self._changed.wait()
            if self._ended:
                raise Ended
            self._items.append(item)
            self._not_empty.notify()
        return dropped

    def get(self) -> T:
        """Remove the oldest item, after waiting for one. Raises Ended."""
        with self._lock:
            while not self._items:
                if self._ended:
                    raise Ended
                self._getters += 1
                self._changed.notify()
                try:
                    self._not_empty.wait()
                finally:
                    self._getters -= 1
            self._expected = None
            item = self._items.popleft()
            self._changed.notify()
            return item

    def expect(self, at: float | None) -> None:
        """Say when `get` will be called next, in time.monotonic(); None: not known."""
        with self._lock:
            self._expected = at
            self._changed.notify()

    def wait_for_demand(self, lead: float) -> None:
        """Wait until the channel is empty and a `get` waits, or is expected in less than `lead` seconds. Raises Ended.

        A stage that needs `lead` seconds for an item so begins with it as late as it can without a wait in `get`.
        """
        with self._lock:
            while True:
                if self._ended:
                    raise Ended
                left = None
                if not self._items:
                    if self._getters:
                        return
                    if self._expected is not None:
                        left = self._expected - lead - time.monotonic()
                        if left <= 0:
                            return
                self._changed.wait(left)

    def end(self) -> None:
        """Let `get` return what is in the channel, and raise Ended then."""
        with self._lock:
            self._ended = True
            self._not_empty.notify_all()
            self._changed.notify_all()

    def abort(self) -> None:
        """Drop what is in the channel, and end it."""
        with self._lock:
            self._items.clear()
        self.end()

    def __len__(self) -> int:
        with self._lock:
            return len(self._items)
