"""Watch: tells which versions have changed in the folder, once their files are at rest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from .layout import Candidate, Stamp
from .slots import Key

log = logging.getLogger("splitwire.cloud")


class Watch:
    """Compares what lies in the folder with what was tried.

    settle: seconds that files must have been the same; those that are being written change, and wait. clock: seconds.
    """

    def __init__(self, settle: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._settle = settle
        self._clock = clock
        self._pending: dict[Key, tuple[Stamp | None, float]] = {}
        self._complaint = ""

    def settled(self, tried: Mapping[Key, Stamp | None], seen: Mapping[Key, Candidate]) -> list[Key]:
        """What is to be loaded, or unloaded because its folder is gone; in the order of `seen`.

        tried: the stamp of each version that the server knows.
        """
        self._complaint = ""
        now = self._clock()
        pending: dict[Key, tuple[Stamp | None, float]] = {}
        changed = []
        for key in (*seen, *(key for key in tried if key not in seen)):
            stamp = seen[key].stamp if key in seen else None
            if stamp is not None and tried.get(key) == stamp:
                continue
            known, since = self._pending.get(key, (stamp, now))
            if known != stamp:
                since = now
            if now - since >= self._settle:
                changed.append(key)
            else:
                pending[key] = (stamp, since)
        self._pending = pending
        return changed

    def complain(self, why: str) -> None:
        """The folder cannot be read: say so once."""
        if why != self._complaint:
            log.warning("models: %s; what is loaded serves on", why)
            self._complaint = why
