"""Messages to systemd: ready, stopping, and a watchdog that is fed only while frames advance.

The protocol is that of sd_notify(3): a datagram to the socket that NOTIFY_SOCKET names.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping


class Notifier:
    """Sends states to systemd; does nothing where systemd did not start the process.

    environment: None for os.environ; NOTIFY_SOCKET and WATCHDOG_USEC are read from it.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        env = os.environ if environment is None else environment
        self._address = env.get("NOTIFY_SOCKET", "")
        micro = env.get("WATCHDOG_USEC", "")
        ours = env.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self.watchdog_s = int(micro) / 1e6 if micro.isdigit() and ours else 0.0
        """Seconds within which systemd wants to hear from us; 0: it does not watch."""

    @property
    def active(self) -> bool:
        """Whether systemd listens."""
        return bool(self._address)

    def notify(self, *states: str) -> bool:
        """Send assignments such as READY=1. Returns whether they were sent; never raises."""
        if not self._address:
            return False
        # A leading @ means the abstract namespace of Linux.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
                s.sendto("\n".join(states).encode(), address)
        except OSError:
            return False
        return True

    def ready(self, status: str) -> bool:
        """The service is up. status: one line that `systemctl status` shows."""
        return self.notify("READY=1", f"STATUS={status}")

    def reloading(self) -> bool:
        """The configuration is being read again; `ready` follows."""
        return self.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        """The service drains and ends."""
        return self.notify("STOPPING=1")


class Watchdog:
    """Feeds systemd's watchdog while work advances.

    progress: a number that grows with each frame that was captured, sent, spooled or refused. idle: True while there is
    nothing to do, for example while a watched folder stays empty. `tick` is called often, at least every half of the
    watchdog's time; it feeds if the number has grown since the last feeding, or if there is nothing to do.
    """

    def __init__(self, notifier: Notifier, progress: Callable[[], int], idle: Callable[[], bool]) -> None:
        self._notifier = notifier
        self._progress = progress
        self._idle = idle
        self._last = -1

    @property
    def interval_s(self) -> float:
        """How often `tick` should be called: half of the watchdog's time; 0 if systemd does not watch."""
        return self._notifier.watchdog_s / 2

    def tick(self) -> bool:
        """Feed the watchdog if work advances. Returns whether it was fed."""
        now = self._progress()
        if now == self._last and not self._idle():
            return False
        self._last = now
        return self._notifier.notify("WATCHDOG=1")
