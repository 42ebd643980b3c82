"""The spool's clock: seconds that pass while the device is on or off, and never go back.

The age of a record decides when it is dropped, so a wall clock that is set back or forward must not change it. Within
one boot of the machine the clock follows the kernel's time since boot (CLOCK_BOOTTIME on Linux, which counts sleep;
the monotonic clock elsewhere). The wall clock is not read for it. After a reboot, nobody but the wall clock can say
how long the machine was off. It counts if it moved forward, and never for less than the time since the boot. A device
without a battery for its clock therefore counts too little, and keeps frames for too long rather than too short.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from splitwire.runtime_edge.spool.records import State

JUMP_S = 5.0
"""A wall clock that differs by more than this from the time since boot was set, seconds. NTP slews less."""


def time_since_boot() -> float:
    """Seconds since the machine started, sleep included where the system has such a clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def kernel_boot() -> str:
    """An id of this boot of the machine, or "" if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Clocks:
    """Where times come from; tests give others.

    wall: seconds since 1970. running: seconds since boot. boot: id of the boot.
    """

    wall: Callable[[], float] = time.time
    running: Callable[[], float] = time_since_boot
    boot: Callable[[], str] = kernel_boot


@dataclass
class SpoolClock:
    """The spool's clock, continued from a state."""

    state: State
    clocks: Clocks
    _zero: float = field(init=False)
    _wall: float = field(init=False)

    def __post_init__(self) -> None:
        state, running, wall = self.state, self.clocks.running(), self.clocks.wall()
        self._boot = self.clocks.boot()
        if not state.wall:  # a new spool, or its state was lost
            passed = 0.0
        elif self._boot and self._boot == state.boot and running >= state.running:
            passed = running - state.running
        else:
            passed = max(running, wall - state.wall, 0.0)
        self._zero = state.clock + passed - running
        self._wall = wall - running

    def now(self) -> float:
        """Seconds; greater than every stamp before."""
        return self._zero + self.clocks.running()

    def mark(self, state: State) -> None:
        """Write the time into a state."""
        running = self.clocks.running()
        state.boot, state.running, state.wall = self._boot, running, self.clocks.wall()
        state.clock = self._zero + running

    def at_least(self, stamp: float) -> None:
        """Continue after a stamp that is later than the state says (the state was lost)."""
        self._zero = max(self._zero, stamp - self.clocks.running())

    def jump(self) -> float:
        """Seconds by which the wall clock was set since the last call; 0 if it was not."""
        offset = self.clocks.wall() - self.clocks.running()
        moved = offset - self._wall
        self._wall = offset
        return moved if abs(moved) > JUMP_S else 0.0
