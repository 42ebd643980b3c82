"""Progress in a log or a pipe: a line about every ten seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

INTERVAL_S = 10.0


class Heartbeat:
    """A ProgressFn and a context manager: in the block it prints the last report every INTERVAL_S seconds.

    It prints from its own thread, so there are lines also while a stage reports nothing for minutes. Work that ends
    within the first interval prints nothing.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="splitwire-progress", daemon=True)
        self._state: tuple[str, int, int | None] | None = None
        self._start = (0.0, 0)
        """The time at which the stage began, and how much of it was done then."""

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if self._state is None or self._state[0] != stage:
            self._start = (time.monotonic(), done)
        self._state = (stage, done, total)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(INTERVAL_S):
            if self._state is not None:
                with suppress(OSError, ValueError):  # stderr is closed; the work goes on
                    self._say(line(*self._state, *self._start, time.monotonic()))


def line(stage: str, done: int, total: int | None, since: float, before: int, now: float) -> str:
    """A line such as `Calibrate: 120 of 512, 40 s left`. since: when the stage began, with `before` done."""
    seconds = now - since
    if total is None or total <= 1:
        return f"{stage}: {f'{done} so far, ' if done else ''}{spoken(seconds)}"
    left = f", {spoken(seconds / (done - before) * (total - done))} left" if before < done < total else ""
    return f"{stage}: {done:,} of {total:,}{left or f', {spoken(seconds)}'}"


def spoken(seconds: float) -> str:
    """Seconds in words, as 12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
