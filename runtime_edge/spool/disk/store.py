"""The tables of the spool: everything that happens inside a transaction. One thread uses it, the spool's writer."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from splitwire.codec.errors import SpoolFull
from splitwire.runtime_edge.spool.records import (
    HEAD_BYTES,
    RECORD,
    STATE,
    Damaged,
    Dead,
    Spooled,
    State,
    content_of,
    pack,
    pack_dead,
    pack_state,
    size_of,
    stamp_of,
    unpack,
    unpack_dead,
    unpack_state,
)

from .clock import Clocks, SpoolClock
from .database import PAGE, Connect, Connection, begin_reading, corrupt, prepare
from .salvage import Pages, as_dead, behind, count_again, finish, log_pages

CHUNK = 64
"""Records that are removed in one step when room is made."""
EXPIRED = 256
"""Records that are too old and are removed in one transaction."""
RESERVED = 1 << 16
"""Counters of keys that are reserved by one commit."""
SHRINK_PAGES = 2048
"""Free pages that are given back to the file system in one step."""
KEEP_PAGES = 4096
"""Free pages that an empty spool keeps (16 MiB)."""


@dataclass
class Opening:
    """What opening found: records of incomplete or damaged commits in the log, a lost state, a finished salvage."""

    from_log: int = 0
    state_lost: bool = False
    aside: Path | None = None


@dataclass
class Removed:
    """How many records were removed, and their bytes (of their bodies, and their overhead)."""

    records: int = 0
    dead: int = 0
    bytes: int = 0


class Store:
    """The database of the spool and its state. Raises sqlite3.Error, OSError; UsageError (it is no spool)."""

    def __init__(self, path: Path, connect: Connect, *, synchronous: str, clocks: Clocks, device: str | None) -> None:
        self.path = path
        self.closed = False
        self.opening = Opening(aside=finish(path))
        self._stamp: float | None = None  # of the oldest record, once it was read
        log = log_pages(path)
        self._connection: Connection = connect(path)
        try:
            self._open(log, synchronous, clocks, device)
        except BaseException:
            self.close()
            raise

    def _open(self, log: list[tuple[int, int]], synchronous: str, clocks: Clocks, device: str | None) -> None:
        run = self._connection.execute
        complete = begin_reading(self._connection)
        lost: dict[int, Spooled] = {}
        delivered = 0  # no record below it waits
        tail = behind(log, complete)
        if tail and run("SELECT count(*) FROM sqlite_master").fetchall()[0][0]:
            # SQLite ignores what is behind the first damaged page of the log, and an incomplete commit.
            with Pages(self.path, log) as pages:
                for magic, body in pages.bodies(log=tail, file=False):
                    with suppress(Damaged):
                        if magic == RECORD:
                            record = unpack(body)
                            lost[record.id] = record
                        elif magic == STATE:
                            delivered = max(delivered, unpack_state(body).head)
        prepare(self._connection, self.path, synchronous=synchronous)
        self.state = self._read_state()
        self.clock = SpoolClock(copy(self.state), clocks)
        newest = run("SELECT max(seq) FROM records").fetchall()[0][0]
        if newest is not None:
            with suppress(Damaged):
                self.clock.at_least(unpack(self._body(newest)).stamp)
        with self.transaction():
            self.state.device = device or self.state.device or secrets.token_hex(8)
            self.first_counter = self.state.counter
            self.state.counter += RESERVED
            delivered = max(delivered, self.state.head)
            for seq in sorted(lost):
                if seq >= delivered and not self._exists(seq):
                    self._insert(lost[seq])
                    self.opening.from_log += 1
            if self.opening.from_log:
                self._find_head()
        # Everything into the database: the log starts empty, so that nothing stale is behind its valid part.
        run("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _read_state(self) -> State:
        rows = self._connection.execute("SELECT CAST(body AS BLOB) FROM state WHERE seq = 1").fetchall()
        try:
            if not rows:
                raise Damaged("there is none")
            return unpack_state(rows[0][0])
        except Damaged:
            state = count_again(self._connection, State())
            self.opening.state_lost = bool(rows or state.records or state.dead)
            return state

    @property
    def used(self) -> int:
        """Bytes that records and dead records count for."""
        return self.state.record_bytes + self.state.dead_bytes

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, the state included. Raises sqlite3.Error."""
        before = copy(self.state)
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        try:
            yield
            self.state.generation += 1
            self.clock.mark(self.state)
            run("INSERT OR REPLACE INTO state VALUES (1, ?)", (pack_state(self.state),))
            run("COMMIT")
        except BaseException:
            self.state, self._stamp = before, None
            with suppress(sqlite3.Error):
                run("ROLLBACK")
            raise

    def put(self, record: Spooled) -> int:
        """Store a frame under the next id, which is returned. Inside a transaction."""
        seq = self.state.next_id
        self._insert(Spooled(seq, record.key, record.frame, record.captured_wall, self.clock.now()))
        return seq

    def _insert(self, record: Spooled) -> None:
        body = pack(record)
        self._connection.execute("INSERT INTO records VALUES (?, ?)", (record.id, body))
        self.state.records += 1
        self.state.record_bytes += size_of(len(body))
        self.state.next_id = max(self.state.next_id, record.id + 1)
        if self.state.records == 1:
            self.state.head = record.id

    def oldest(self, n: int, max_bytes: int, after: int = 0) -> list[tuple[int, bytes | None]]:
        """(row, body) of the first records behind the row `after`: at most n, and of max_bytes in all but the first.

        Raises sqlite3.DatabaseError (damaged), also if these are all and their number is not that of the state.
        """
        run = self._connection.execute
        sizes = run("SELECT seq, length(body) FROM records WHERE seq > ? ORDER BY seq LIMIT ?", (after, n)).fetchall()
        if not after and len(sizes) < n and len(sizes) != self.state.records:
            raise corrupt(f"{self.state.records} frames should wait, and {len(sizes)} can be found")
        return self._within("records", sizes, max_bytes)

    def oldest_dead(self, n: int, max_bytes: int, after: int = 0) -> list[tuple[int, bytes | None]]:
        """The same of the dead records."""
        run = self._connection.execute
        sizes = run("SELECT seq, length(body) FROM dead WHERE seq > ? ORDER BY seq LIMIT ?", (after, n)).fetchall()
        return self._within("dead", sizes, max_bytes)

    def _within(
        self, table: str, sizes: list[tuple[int, int | None]], max_bytes: int
    ) -> list[tuple[int, bytes | None]]:
        if not sizes:
            return []
        total, last, count = 0, sizes[0][0] - 1, 0
        for seq, size in sizes:
            if seq <= last:
                raise corrupt("the rows are out of order")
            total += size or 0
            if total > max_bytes and count:
                break
            last, count = seq, count + 1
        sql = f"SELECT seq, CAST(body AS BLOB) FROM {table} WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?"  # noqa: S608 - the two names above
        rows = self._connection.execute(sql, (sizes[0][0], last, len(sizes))).fetchall()
        if len(rows) != count:
            raise corrupt("a row cannot be found again")
        return rows

    def remove(self, ids: Sequence[int]) -> list[int]:
        """Remove records; returns the ids that were not there. Inside a transaction."""
        missing = []
        for seq in ids:
            if (size := self._size("records", seq)) is None:
                missing.append(seq)
                continue
            self._connection.execute("DELETE FROM records WHERE seq = ?", (seq,))
            self._count_out(size)
        self._find_head()
        return missing

    def remove_dead(self, ids: Sequence[int]) -> int:
        """Remove dead records; returns how many. Inside a transaction."""
        count = 0
        for seq in ids:
            if (size := self._size("dead", seq)) is not None:
                self._connection.execute("DELETE FROM dead WHERE seq = ?", (seq,))
                self.state.dead = max(0, self.state.dead - 1)
                self.state.dead_bytes = max(0, self.state.dead_bytes - size_of(size))
                count += 1
        return count

    def bury(self, seq: int, code: str, reason: str) -> bool:
        """Move a record to the dead ones. Returns whether it was there. Inside a transaction."""
        if self._size("records", seq) is None:
            return False
        body = self._body(seq)
        try:
            content_of(body, RECORD)
            dead = Dead(seq, code, reason, body or b"")
        except Damaged as e:
            dead = as_dead(seq, body, e)
        packed = pack_dead(dead)
        self.remove([seq])
        self._connection.execute("INSERT OR REPLACE INTO dead VALUES (?, ?)", (seq, packed))
        self.state.dead += 1
        self.state.dead_bytes += size_of(len(packed))
        return True

    def make_room(self, size: int, most: int) -> Removed:
        """Remove the oldest dead records, then the oldest records, until `size` more bytes are at most `most` in all.

        Inside a transaction. Raises SpoolFull if the size alone is over it.
        """
        if size > most:
            raise SpoolFull(f"the frame takes {size:,} bytes in the spool, which holds at most {most:,}")
        removed, before = Removed(), self.used
        while self.used + size > most and (self.state.dead or self.state.records):
            dead = self.state.dead > 0
            table = "dead" if dead else "records"
            rows = self._connection.execute(
                f"SELECT seq, length(body) FROM {table} ORDER BY seq LIMIT ?",  # noqa: S608 - one of two names
                (CHUNK,),
            ).fetchall()
            if not rows:  # the totals are wrong: the tables are damaged
                raise corrupt("the totals do not fit the tables")
            excess, ids = self.used + size - most, []
            for seq, length in rows:
                ids.append(seq)
                excess -= size_of(length or 0)
                if excess <= 0:
                    break
            if dead:
                removed.dead += self.remove_dead(ids)
            else:
                removed.records += len(ids) - len(self.remove(ids))
        removed.bytes = before - self.used
        return removed

    def expired(self, max_age_s: float) -> bool:
        """Whether the oldest record is too old."""
        if not self.state.records:
            return False
        if self._stamp is None:
            rows = self._connection.execute(
                "SELECT substr(body, 1, ?) FROM records ORDER BY seq LIMIT 1", (HEAD_BYTES,)
            ).fetchall()
            start = rows[0][0] if rows else None
            self._stamp = stamp_of(start) if start is not None and len(start) == HEAD_BYTES else self.clock.now()
            if not 0 <= self._stamp <= self.clock.now():  # damaged: not a reason to drop the record
                self._stamp = self.clock.now()
        return self.clock.now() - self._stamp > max_age_s

    def expire(self, max_age_s: float) -> int:
        """Remove records that are too old, at most EXPIRED, the oldest first. Returns how many. In a transaction."""
        count = 0
        while count < EXPIRED and self.expired(max_age_s):
            rows = self._connection.execute("SELECT seq FROM records ORDER BY seq LIMIT 1").fetchall()
            self.remove([row[0] for row in rows])
            count += len(rows)
        return count

    def reserve(self) -> int:
        """Reserve counters for keys; returns the first. Inside a transaction."""
        first = self.state.counter
        self.state.counter += RESERVED
        return first

    def record(self, seq: int) -> Spooled:
        """A record. Raises Damaged, also if it is not there."""
        return unpack(self._body(seq))

    def dead(self, seq: int, body: bytes | None) -> Dead:
        """The dead record of a row."""
        try:
            return unpack_dead(body)
        except Damaged as e:
            return as_dead(seq, body, e)

    def shrink(self) -> bool:
        """Give free pages of an empty spool back to the file system, a step; returns whether there are more."""
        run = self._connection.execute
        if self.state.records or self.state.dead:
            return False
        free = run("PRAGMA freelist_count").fetchall()[0][0]
        if free <= KEEP_PAGES:
            return False
        run(f"PRAGMA incremental_vacuum({min(SHRINK_PAGES, free - KEEP_PAGES)})").fetchall()
        return True

    def file_bytes(self) -> tuple[int, int]:
        """Bytes of the pages of the database, and of its free pages."""
        run = self._connection.execute
        pages, free = (run(f"PRAGMA {name}").fetchall()[0][0] for name in ("page_count", "freelist_count"))
        return pages * PAGE, free * PAGE

    def structure(self) -> list[str]:
        """What SQLite finds wrong with the pages; reads all of them."""
        rows = self._connection.execute("PRAGMA quick_check(20)").fetchall()
        return [text for (text,) in rows if text != "ok"]

    def counts(self) -> tuple[int, int]:
        """Rows in the two tables; reads them."""
        run = self._connection.execute
        return (
            run("SELECT count(*) FROM records").fetchall()[0][0],
            run("SELECT count(*) FROM dead").fetchall()[0][0],
        )

    def checkpoint(self) -> None:
        """Copy the log into the database, and start the log again; its file keeps its size."""
        self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def close(self) -> None:
        """Close the connection. Never raises for the database."""
        self.closed = True
        with suppress(sqlite3.Error):
            self._connection.close()

    def _body(self, seq: int) -> bytes | None:
        rows = self._connection.execute("SELECT CAST(body AS BLOB) FROM records WHERE seq = ?", (seq,)).fetchall()
        body: bytes | None = rows[0][0] if rows else None
        return body

    def _exists(self, seq: int) -> bool:
        return self._size("records", seq) is not None or self._size("dead", seq) is not None

    def _size(self, table: str, seq: int) -> int | None:
        sql = f"SELECT coalesce(length(body), 0) FROM {table} WHERE seq = ?"  # noqa: S608 - one of two names
        rows = self._connection.execute(sql, (seq,)).fetchall()
        size: int | None = rows[0][0] if rows else None
        return size

    def _count_out(self, size: int) -> None:
        self.state.records = max(0, self.state.records - 1)
        self.state.record_bytes = max(0, self.state.record_bytes - size_of(size))

    def _find_head(self) -> None:
        first = self._connection.execute("SELECT min(seq) FROM records").fetchall()[0][0]
        if first is None and self.state.records:
            raise corrupt(f"{self.state.records} frames should wait, and none can be found")
        self.state.head = self.state.next_id if first is None else first
        self._stamp = None
