"""What the tests of the spool share: frames, clocks that are set by hand, and a reader of everything that waits."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.spool import Spool, Spooled
from splitwire.runtime_edge.spool.disk.clock import Clocks


def frame(number: int, size: int = 200) -> bytes:
    """A frame of `size` bytes, different for each number."""
    return random.Random(number).randbytes(size)


def put(spool: Spool, numbers: range, size: int = 200) -> list[int | None]:
    """Store frames, and wait until they are committed; returns their ids."""
    futures = [spool.put(frame(n, size), spool.new_key(), 1000.0 + n) for n in numbers]
    spool.stats()  # a call commits what waits, without the 50 ms
    return [future.result(timeout=30) for future in futures]


def everything(spool: Spool) -> list[Spooled]:
    """All frames that wait, in order."""
    records: list[Spooled] = []
    while more := spool.next(500, after=records[-1].id if records else 0):
        records += more
    return records


@dataclass
class Hands:
    """Clocks that only move when they are told. `boot` is the id of the machine's boot."""

    wall: float = 1_700_000_000.0
    running: float = 100.0
    boot: str = "first"

    def clocks(self) -> Clocks:
        return Clocks(wall=lambda: self.wall, running=lambda: self.running, boot=lambda: self.boot)

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.running += seconds

    def reboot(self, off_s: float, *, battery: bool = True) -> None:
        """Off for so long; without a battery the wall clock stands still meanwhile."""
        self.wall += off_s if battery else 0.0
        self.running, self.boot = 5.0, self.boot + "+"


@dataclass
class Told:
    """An EventSink that keeps the events."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def text(self, kind: str) -> str:
        return next(event.text for event in self.events if event.kind == kind)


def flip(path: Path, at: int, bits: int = 0xFF) -> None:
    """Change a byte of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bits]))
