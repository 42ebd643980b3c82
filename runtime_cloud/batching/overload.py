"""Whether the server is overloaded: more is asked of it than it can do, and it must refuse calls whatever it does."""

from __future__ import annotations

from collections.abc import Iterable

CALM_S = 1.0
WINDOW_S, REFUSED_PART, BUSY_PART = 0.25, 0.25, 0.8
FIRST_S, LONGEST_S = 16.0, 64.0


class Overload:
    """Begins when the queue is full. It ends when

    * nobody was refused for CALM_S, or
    * in the last WINDOW_S fewer than REFUSED_PART of those admitted were refused, and the compute threads were busy for
      less than BUSY_PART of the time: a longer queue has room for them; or
    * FIRST_S have passed, for clients that ask again at once though the long queue has room for all of them. If the
      queue is full again soon behind that, the next time lasts twice as long, up to LONGEST_S.

    threads: number of compute threads. All times are seconds of one clock.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._calm_at = self._try_at = float("-inf")
        self._try_s = FIRST_S
        self._window = 0.0
        self._admitted = self._refused = 0
        self._busy_s = 0.0

    def begin(self, now: float) -> None:
        """The queue is full."""
        if self.lasts(now):
            return
        again = self._calm_at > self._try_at > now - self._try_s
        self._try_s = min(2 * self._try_s, LONGEST_S) if again else FIRST_S
        self._try_at = now + self._try_s
        self._calm_at = now + CALM_S
        self._open_window(now)

    def lasts(self, now: float) -> bool:
        """Whether the server is overloaded."""
        return now < self._calm_at and now < self._try_at

    def admitted(self) -> None:
        """A call was admitted."""
        self._admitted += 1

    def refused(self, now: float) -> None:
        """A call was refused."""
        self._refused += 1
        self._calm_at = now + CALM_S

    def ran(self, begun: float, now: float) -> None:
        """A compute thread was busy."""
        self._busy_s += now - max(begun, self._window)

    def review(self, now: float, running: Iterable[float]) -> None:
        """End the overload if the last window says so. running: when the batches that run now began."""
        passed = now - self._window
        if passed < WINDOW_S or not self.lasts(now):
            return
        busy_s = self._busy_s + sum(now - max(begun, self._window) for begun in running)
        if self._refused < REFUSED_PART * self._admitted and busy_s < BUSY_PART * self._threads * passed:
            self._calm_at = now
        self._open_window(now)

    def _open_window(self, now: float) -> None:
        self._window = now
        self._admitted = self._refused = 0
        self._busy_s = 0.0
