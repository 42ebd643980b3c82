"""Cuts the power of a spool again and again, and looks each time whether everything that was promised is there.

One spool lives through all cuts: frames go in, in groups as the camera's threads put them; some are delivered; the
power goes at a random write or sync, in commits, checkpoints, recovery and opening alike. After each cut the standard
library's sqlite3 opens a copy. Each frame whose `put` was done and that was not delivered must be there exactly once,
byte for byte and in order. The next round goes on with the disk as the cut left it.
"""

from __future__ import annotations

import random
import shutil
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import apsw
from faults_table import Row
from power_cut import Disk

from splitwire.codec.errors import SpoolError
from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.spool import Spool
from splitwire.runtime_edge.spool.options import Tier
from splitwire.runtime_edge.transport.base import Key

LONG = 0.03
"""Share of frames that are longer than a page of the database."""

CLOSING = 0.05
"""Share of the groups of frames after which the spool is closed and opened again."""


def content(counter: int) -> bytes:
    """The frame of a counter: 20 to 400 bytes, some up to 20,000; every one different."""
    rng = random.Random(counter)
    size = rng.randint(4_000, 20_000) if rng.random() < LONG else rng.randint(20, 400)
    return counter.to_bytes(8, "little") + rng.randbytes(size)


@dataclass
class Ledger:
    """What was promised. acknowledged: counters whose put was done; delivered: acknowledged to the spool as sent."""

    acknowledged: set[int] = field(default_factory=set)
    delivered: set[int] = field(default_factory=set)
    next_counter: int = 0


@dataclass
class Outcome:
    """Counts over all cuts.

    lost, twice, wrong, out_of_order: frames, all to be 0. redelivered: delivered frames that a cut brought back.
    unpromised: frames that are there although their put was not done yet. kept: cuts by what survived.
    """

    cuts: int = 0
    acknowledged: int = 0
    lost: int = 0
    twice: int = 0
    wrong: int = 0
    out_of_order: int = 0
    redelivered: int = 0
    unpromised: int = 0
    in_opening: int = 0
    seconds: float = 0.0
    kept: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)


def fill(spool: Spool, disk: Disk, ledger: Ledger, rng: random.Random) -> bool:
    """Put frames and deliver some, until power goes or the spool is closed. Returns whether power is left."""
    while not disk.off and rng.random() > CLOSING:
        try:
            waiting = []
            for _ in range(rng.choice((1, 3, 20, 32, 32, 48))):
                counter, ledger.next_counter = ledger.next_counter, ledger.next_counter + 1
                waiting.append((counter, spool.put(content(counter), Key("device", "boot", counter), 1.0)))
            delivery = rng.random() < 0.5
            records = spool.next(rng.choice((1, 16, 64, 200)))  # commits what waits
            if delivery:
                spool.acknowledge([record.id for record in records])
                ledger.delivered |= {record.key.counter for record in records}
        except SpoolError:
            if not disk.off:
                raise
        for counter, done in waiting:
            if done.exception(timeout=60) is None:
                ledger.acknowledged.add(counter)
    spool.close()
    return not disk.off


def verify(path: Path, copy: Path, ledger: Ledger, outcome: Outcome) -> None:
    """Open a copy with the standard library, and compare it with the ledger."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for suffix in ("", "-wal", "-journal", ".salvaged"):
        file = path.with_name(path.name + suffix)
        if file.exists():
            shutil.copy(file, copy / file.name)

    def note(event: Event) -> None:
        outcome.events[event.kind] += 1

    found: list[int] = []
    with Spool(copy / path.name, tier="buffered", max_bytes=None, max_age_s=None, on_event=note) as spool:
        last = 0
        while records := spool.next(1000, after=last):
            for record in records:
                found.append(record.key.counter)
                outcome.wrong += zlib.crc32(record.frame) != zlib.crc32(content(record.key.counter))
            last = records[-1].id
    there = set(found)
    outcome.twice += len(found) - len(there)
    outcome.lost += len(ledger.acknowledged - ledger.delivered - there)
    outcome.out_of_order += found != sorted(found)
    outcome.redelivered += len(there & ledger.delivered)
    outcome.unpromised += len(there - ledger.acknowledged)
    ledger.acknowledged -= ledger.delivered  # the others are promised until the end
    ledger.acknowledged &= there  # a loss is counted once
    ledger.delivered.clear()


def cut_power(cuts: int, folder: Path, seed: int = 1, tier: Tier = "durable") -> Outcome:
    """Cut the power `cuts` times; returns the counts."""
    rng, ledger, outcome, start = random.Random(seed), Ledger(), Outcome(), time.monotonic()
    path = folder / "spool" / "spool.db"
    path.parent.mkdir()
    for _ in range(cuts):
        # Most cuts come in the middle of work, some in opening, recovery and the first commits.
        disk = Disk(
            rng, rng.randint(1, 40) if rng.random() < 0.15 else rng.randint(40, 700), powersafe=rng.random() < 0.5
        )
        disk.checkpoint_pages = rng.choice((10, 50, 200, 1000))
        before = len(ledger.acknowledged)
        try:
            spool = Spool(path, tier=tier, connect=disk.connect, admin=False, max_bytes=None, max_age_s=None)
        except SpoolError:
            if not disk.off:
                raise
            outcome.in_opening += 1
        else:
            while fill(spool, disk, ledger, rng):
                try:
                    spool = Spool(path, tier=tier, connect=disk.connect, admin=False, max_bytes=None, max_age_s=None)
                except SpoolError:
                    if not disk.off:
                        raise
                    break
        disk.reboot()
        outcome.acknowledged += len(ledger.acknowledged) - before
        outcome.kept[disk.kept] += 1
        outcome.cuts += 1
        verify(path, folder / "copy", ledger, outcome)
    outcome.seconds = time.monotonic() - start
    return outcome


def rows(folder: Path, short: bool) -> list[Row]:
    """The row of 1,000 cuts; 20 in short."""
    outcome = cut_power(20 if short else 1000, folder)
    kept = ", ".join(f"{what} {n}" for what, n in sorted(outcome.kept.items()))
    return [
        Row(
            fault="power cut while frames are spooled (durable tier)",
            trials=outcome.cuts,
            promised=outcome.acknowledged,
            lost=outcome.lost,
            twice=outcome.twice,
            wrong=outcome.wrong + outcome.out_of_order + outcome.events["spool_damaged"],
            note=f"SQLite {apsw.sqlite_lib_version()} writes, the standard library's reads;"
            f" what survived of unsynced writes: {kept}; {outcome.in_opening} cuts while opening;"
            f" {outcome.redelivered} delivered frames came back, with their keys",
        )
    ]
