"""What `splitwire edge spool` asks of a spool, and the answers: the same for an open spool and over its socket.

Each request does a bounded piece of work in the writer thread, so that a running camera never waits long; the client
goes on with the id that the answer ends at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from splitwire.codec.errors import SplitwireError

from .disk.store import Store
from .options import SpoolStats
from .records import Damaged, unpack

T = TypeVar("T")

MOST = 500
"""Frames of one answer."""
MOST_BYTES = 4 << 20
"""Bytes of the frames of one answer, unless the first alone has more."""


class Stats(msgspec.Struct, tag="stats"):
    """Asks for SpoolStats."""


class List(msgspec.Struct, tag="list", kw_only=True):
    """Asks for entries behind the id `after`: of the frames that wait, or of the dead ones; with their bytes or not."""

    after: int = 0
    limit: int = MOST
    dead: bool = False
    frames: bool = False


class Drop(msgspec.Struct, tag="drop", kw_only=True):
    """Asks to remove frames by their ids, frames of at least an age, or (with neither) all; of one of the two kinds."""

    ids: list[int] | None = None
    older_than_s: float | None = None
    dead: bool = False


class Check(msgspec.Struct, tag="check", kw_only=True):
    """Asks to read the frames behind `after` and verify their checksums. structure: asks SQLite instead, which reads
    the whole file at once."""

    after: int = 0
    dead: bool = False
    structure: bool = False


class Repair(msgspec.Struct, tag="repair"):
    """Asks for a new database with everything readable."""


Request = Stats | List | Drop | Check | Repair


class Entry(msgspec.Struct, tag="entry", kw_only=True, omit_defaults=True):
    """A frame. key: device:boot:counter, or "" if it cannot be read. size: bytes of the
    frame. age_s: since it was stored. code, reason: of a
    dead one. frame: its bytes, if they were asked for and can be read."""

    id: int
    key: str
    size: int
    captured: float = 0.0
    age_s: float = 0.0
    code: str = ""
    reason: str = ""
    frame: bytes | None = None


class Listed(msgspec.Struct, tag="listed"):
    """Entries; none: there are no more behind the id that was given."""

    entries: list[Entry]


class Dropped(msgspec.Struct, tag="dropped"):
    """How many were removed, and whether there may be more."""

    count: int
    more: bool


class Checked(msgspec.Struct, tag="checked"):
    """checked: how many were read. last: goes on from here; None: that was all. damaged: ids. problems: SQLite's."""

    checked: int = 0
    last: int | None = None
    damaged: list[int] = []
    problems: list[str] = []


class Repaired(msgspec.Struct, tag="repaired"):
    """Frames in the new database, and where the old one is."""

    frames: int
    aside: str


class Counted(msgspec.Struct, tag="counted"):
    """The stats."""

    stats: SpoolStats


class Failed(msgspec.Struct, tag="failed"):
    """An error: its code and its text."""

    code: str
    message: str


Answer = Listed | Dropped | Checked | Repaired | Counted | Failed


class Served(Protocol):
    """What the answers need of a Spool."""

    def run(self, work: Callable[[Store], T]) -> T:
        """Run work in the writer thread."""
        ...

    def stats(self) -> SpoolStats:
        """The stats."""
        ...

    def repair(self) -> tuple[int, Path]:
        """Set the database aside, and make a new one."""
        ...


def answer(spool: Served, request: Request) -> Answer:
    """Do what a request asks. An error of the spool becomes a Failed."""
    try:
        match request:
            case Stats():
                return Counted(spool.stats())
            case List():
                return Listed(spool.run(lambda store: _list(store, request)))
            case Drop():
                return spool.run(lambda store: _drop(store, request))
            case Check():
                return spool.run(lambda store: _check(store, request))
            case Repair():
                frames, aside = spool.repair()
                return Repaired(frames, str(aside))
    except SplitwireError as e:
        return Failed(e.code, str(e))


def _rows(store: Store, dead: bool, limit: int, after: int) -> Sequence[tuple[int, bytes | None]]:
    read = store.oldest_dead if dead else store.oldest
    return read(max(1, min(limit, MOST)), MOST_BYTES, max(0, after))


def _list(store: Store, request: List) -> list[Entry]:
    now = store.clock.now()
    entries = []
    for seq, body in _rows(store, request.dead, request.limit, request.after):
        dead = store.dead(seq, body) if request.dead else None
        entry = Entry(id=seq, key="", size=0)
        if dead is not None:
            entry.code, entry.reason = dead.code, dead.reason
        try:
            record = unpack(dead.body if dead is not None else body)
        except Damaged as e:
            entry.code = entry.code or "damaged"
            entry.reason = entry.reason or f"the record is damaged: {e}"
        else:
            entry.key, entry.size, entry.captured = str(record.key), len(record.frame), record.captured_wall
            entry.age_s = round(max(0.0, now - record.stamp), 3)
            entry.frame = record.frame if request.frames else None
        entries.append(entry)
    return entries


def _drop(store: Store, request: Drop) -> Dropped:
    if request.ids is not None:
        ids, more = request.ids[:MOST], len(request.ids) > MOST
    else:
        rows = _rows(store, request.dead, MOST, 0)
        ids = [seq for seq, body in rows if _old(store, request, seq, body)]
        more = len(ids) == len(rows) > 0
    with store.transaction():
        if request.dead:
            return Dropped(store.remove_dead(ids), more)
        return Dropped(len(ids) - len(store.remove(ids)), more)


def _old(store: Store, request: Drop, seq: int, body: bytes | None) -> bool:
    if request.older_than_s is None:
        return True
    try:
        record = unpack(store.dead(seq, body).body if request.dead else body)
    except Damaged:
        return False  # nobody knows how old it is
    return store.clock.now() - record.stamp >= request.older_than_s


def _check(store: Store, request: Check) -> Checked:
    if request.structure:
        waiting, dead = store.counts()
        problems = store.structure()
        if (waiting, dead) != (store.state.records, store.state.dead):
            totals = f"{store.state.records} and {store.state.dead} dead frames"
            problems.append(f"the totals say {totals}; {waiting} and {dead} are there")
        return Checked(problems=problems)
    rows = _rows(store, request.dead, MOST, request.after)
    damaged = []
    for seq, body in rows:
        if request.dead:
            buried = store.dead(seq, body)
            if buried.code != "damaged" and buried.record() is None:
                damaged.append(seq)
            continue
        try:
            unpack(body)
        except Damaged:
            damaged.append(seq)
    return Checked(len(rows), rows[-1][0] if rows else None, damaged)
