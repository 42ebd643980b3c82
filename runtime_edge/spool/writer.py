"""The writer thread: it owns the only connection, commits frames in groups, and handles what goes wrong on the disk."""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from splitwire.codec.errors import SplitwireError, SpoolError, SpoolFull
from splitwire.runtime_edge.events import Event, Field
from splitwire.runtime_edge.transport.base import Key

from .disk.database import Trouble, explain, trouble_of, whole_head
from .disk.lock import Lock
from .disk.reserve import GROUP_BYTES, RESERVE, Reserve, free_bytes
from .disk.salvage import rebuild, side
from .disk.store import Store
from .options import Counts, Options
from .records import Spooled, size_of

T = TypeVar("T")

GROUP_FRAMES = 32
GROUP_S = 0.05
"""A commit takes at most this many frames, or GROUP_BYTES, or what came within this many seconds."""
PENDING_BYTES = 32 << 20
"""Bytes of frames that wait for the writer; more wait outside."""
TICK_S = 10.0
"""Longest time between two looks at the age of records, seconds."""
QUIET_S = 60.0
"""Least time between two events of one kind that can come with every frame, seconds."""
REMEMBERED = 1024
"""Ids that are remembered because they were acknowledged and not in the table."""


@dataclass
class Put:
    """A frame on its way to the disk."""

    frame: bytes
    key: Key
    wall: float
    done: Future[int | None] = field(default_factory=Future)


@dataclass
class _Acknowledge:
    ids: Sequence[int]


@dataclass
class _Call:
    work: Callable[[], object]
    done: Future[object] = field(default_factory=Future)


TRIES_ON_FULL_DISK = 3
SLACK = 64 << 10
"""Bytes by which the frames must become fewer before others come in on a full disk: pages are freed as a whole."""

_STOP = object()
_Outcome = int | SpoolFull | None


class Writer:
    """The thread and its queue. Raises SpoolError, UsageError if the spool cannot be opened."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path, self.options, self.counts = path, options, Counts()
        self.listeners: list[threading.Event] = []
        self.removed_missing: set[int] = set()
        self.unremoved: set[int] = set()  # acknowledged, but the commit failed: nobody gets them again
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._pending = 0
        self._room = threading.Condition()
        self._reserve = Reserve(side(path, ".reserve"))
        self._disk_limit: int | None = None  # bytes of frames, while the disk is full
        self._said: dict[str, float] = {}
        self._closed = False
        self.last_counter: Callable[[], int] | None = None
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="spool", daemon=True)
        self._thread.start()
        opened.result()

    @property
    def store(self) -> Store:
        """The tables; only work that `call` runs may use them."""
        return self._store

    # -- for other threads -----------------------------------------------------------------------------------------

    def put(self, item: Put) -> None:
        """Queue a frame; waits while too many bytes wait. Raises SpoolError (closed)."""
        with self._room:
            self._room.wait_for(lambda: self._pending < PENDING_BYTES or self._closed)
            self._use()
            self._pending += len(item.frame)
            self._queue.put(item)

    def acknowledge(self, ids: Sequence[int]) -> None:
        """Queue the removal of records. Raises SpoolError (closed)."""
        with self._room:
            self._use()
            self._queue.put(_Acknowledge(ids))

    def call(self, work: Callable[[], T]) -> T:
        """Run work in the thread, after what waits was committed. Raises SpoolError, and what it raises."""
        call = _Call(work)
        with self._room:
            self._use()
            self._queue.put(call)
        return call.done.result()  # type: ignore[return-value]  # what `work` returned

    def close(self) -> None:
        """Commit what waits and end the thread."""
        with self._room:
            closed, self._closed = self._closed, True
            self._room.notify_all()
            if not closed:
                self._queue.put(_STOP)
        self._thread.join()

    def _use(self) -> None:
        if self._closed:
            raise SpoolError(f"the spool {self.path} is closed")

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self, opened: Future[None]) -> None:
        lock = None
        try:
            lock = Lock(side(self.path, ".lock"))
            self._open()
        except BaseException as e:
            if lock is not None:
                lock.release()
            opened.set_exception(explain(e, self.path) if isinstance(e, sqlite3.Error | OSError) else e)
            return
        opened.set_result(None)
        while self._turn():
            pass
        if self.last_counter is not None:
            counter = self.last_counter()
            with suppress(sqlite3.Error), self._store.transaction():
                self._store.state.counter = counter
        self._store.close()
        lock.release()

    def _open(self) -> None:
        try:
            self._store = self._new_store()
        except sqlite3.DatabaseError as e:
            trouble = trouble_of(e)
            if trouble is Trouble.FULL:
                self._reserve.spend()
                self._store = self._new_store()
            elif trouble is Trouble.DAMAGED or not whole_head(self.path):
                self.rebuild(str(e))
            else:
                raise
        self._find_room()
        opening = self._store.opening
        if opening.from_log:
            n = opening.from_log
            self.tell("spool_log", f"{n} frames came from an incomplete or damaged part of the spool's log", frames=n)
        if opening.state_lost:
            self.tell("spool_state", "the totals of the spool were damaged; they are counted again")
        if opening.aside is not None:
            self.tell("spool_damaged", f"a salvage of the spool was completed; the damaged file is {opening.aside}")

    def _new_store(self) -> Store:
        options = self.options
        synchronous = "FULL" if options.tier == "durable" else "NORMAL"
        return Store(self.path, options.connect, synchronous=synchronous, clocks=options.clocks, device=options.device)

    def _turn(self) -> bool:
        """Take what waits, commit it, run a call. Returns whether to go on."""
        puts: list[Put] = []
        ids: list[int] = []
        size, deadline = 0, time.monotonic() + TICK_S
        item: object = None
        while True:
            try:
                item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                item = None
                break
            if not puts and not ids:
                deadline = time.monotonic() + GROUP_S
            if isinstance(item, Put):
                puts.append(item)
                size += len(item.frame)
                if len(puts) == GROUP_FRAMES or size >= GROUP_BYTES:
                    break
            elif isinstance(item, _Acknowledge):
                ids += item.ids
            else:
                break
        if puts or ids or self.unremoved:
            self._commit(puts, [*self.unremoved, *ids])
            with self._room:
                self._pending -= size
                self._room.notify_all()
        self._look_after()
        if isinstance(item, _Call):
            try:
                result = self._safely(item.work)
            except BaseException as e:
                item.done.set_exception(explain(e, self.path) if isinstance(e, sqlite3.Error | OSError) else e)
            else:
                item.done.set_result(result)
        return item is not _STOP

    def _safely(self, work: Callable[[], T]) -> T:
        """Run work; if the database is damaged, set it aside and run it again. Raises sqlite3.Error, OSError."""
        if self._store.closed:  # a salvage failed; perhaps the disk is back
            self._store = self._new_store()
        try:
            return work()
        except sqlite3.DatabaseError as e:
            if trouble_of(e) is not Trouble.DAMAGED:
                raise
            self.rebuild(str(e))
            return work()

    def _commit(self, puts: list[Put], ids: list[int]) -> None:
        """One transaction; the futures are done when it is committed."""
        try:
            outcomes = self._write_or_make_room(puts, ids)
        except Exception as e:
            failure = e if isinstance(e, SplitwireError) else explain(e, self.path)
            self.counts.refused += len(puts)
            self.unremoved.update(ids)
            self._tell_sometimes("spool_failed", str(failure), frames=len(puts))
            for put in puts:
                put.done.set_exception(failure)
            return
        self.unremoved.clear()
        self.counts.acknowledged += len(ids)
        self.counts.commits += bool(puts)
        for put, outcome in zip(puts, outcomes, strict=True):
            if isinstance(outcome, SpoolFull):
                self.counts.refused += 1
                put.done.set_exception(outcome)
            else:
                self.counts.stored += outcome is not None
                self.counts.dropped += outcome is None
                put.done.set_result(outcome)
        for listener in self.listeners if puts else ():
            listener.set()

    def _write_or_make_room(self, puts: list[Put], ids: list[int]) -> list[_Outcome]:
        if self._disk_limit is not None:
            self._find_room()
        for _ in range(TRIES_ON_FULL_DISK):
            try:
                return self._safely(lambda: self._write(puts, ids))
            except (sqlite3.Error, OSError) as e:
                if trouble_of(e) is not Trouble.FULL:
                    raise
                self._on_full_disk(e, sum(len(put.frame) for put in puts))
        return self._write(puts, ids)

    def _write(self, puts: list[Put], ids: list[int]) -> list[_Outcome]:
        store, options = self._store, self.options
        outcomes: list[_Outcome] = []
        dropped = 0
        most = min((n for n in (options.max_bytes, self._disk_limit) if n is not None), default=None)
        with store.transaction():
            missing = store.remove(ids) if ids else []
            for put in puts:
                size = size_of(len(put.frame) + 80 + len(put.key.device) + len(put.key.boot))
                try:
                    if most is not None and store.used + size > most:
                        dropped += self._make_room(size, most)
                    self._check_disk(size)
                    outcomes.append(store.put(Spooled(0, put.key, put.frame, put.wall, 0.0)))
                except SpoolFull as e:
                    outcomes.append(None if options.when_full == "drop-newest" else e)
        if len(self.removed_missing) + len(missing) > REMEMBERED:
            self.removed_missing.clear()
        self.removed_missing.update(missing[:REMEMBERED])
        self.counts.dropped += dropped
        if lost := dropped + sum(not isinstance(outcome, int) for outcome in outcomes):
            text = f"the spool is full ({most} bytes), and frames are lost: {options.when_full}"
            self._tell_sometimes("spool_full", text, frames=lost, policy=options.when_full)
        return outcomes

    def _make_room(self, size: int, most: int) -> int:
        """Make room by the policy; returns how many frames were dropped. Raises SpoolFull."""
        if self.options.when_full == "drop-oldest":
            return self._store.make_room(size, most).records
        disk = "its disk is full" if self._disk_limit == most else f"of {most:,} bytes"
        raise SpoolFull(f"the spool is full: {self._store.used:,} bytes wait for the server, {disk}")

    def _check_disk(self, size: int) -> None:
        """A large frame must fit in the log and in the database. Raises SpoolFull."""
        if size > GROUP_BYTES and (free := free_bytes(self.path.parent)) is not None and 2 * size > free:
            raise SpoolFull(f"a frame of {size:,} bytes takes twice that on the disk, which has {free:,}")

    def _on_full_disk(self, e: Exception, size: int) -> None:
        """The disk has no room: use the reserve, and from now on let frames in only where others go out."""
        self._tell_sometimes("spool_disk_full", str(explain(e, self.path)))
        self._reserve.spend()
        with suppress(sqlite3.Error):
            self._store.checkpoint()
        now = self._store.used if self._disk_limit is None else self._disk_limit
        # The database has its pages already: at least half of them can hold frames.
        least = self._store.file_bytes()[0] // 2
        self._disk_limit = max(1, least, now - 2 * size - SLACK)

    def _find_room(self) -> None:
        """Fill the reserve; if that works, the disk is not full, or not any more."""
        if not self._reserve.fill():
            text = f"the disk of the spool {self.path} has no {RESERVE:,} bytes in reserve; free space"
            self._tell_sometimes("spool_no_reserve", text, bytes=RESERVE)
        elif self._disk_limit is not None:
            self._disk_limit = None
            self.tell("spool_disk_room", f"the disk of the spool {self.path} has room again")

    def _look_after(self) -> None:
        """What is done between commits: the clock, records that are too old, an empty spool's free pages."""
        max_age_s = self.options.max_age_s
        try:
            if moved := self._store.clock.jump():
                direction = "back" if moved < 0 else "forward"
                text = (
                    f"the clock was set {direction} by {abs(moved):,.0f} s; the ages of spooled frames do not follow it"
                )
                self.tell("clock_jump", text, seconds=round(moved, 3))
            while max_age_s is not None and self._safely(lambda: self._store.expired(max_age_s)):
                with self._store.transaction():
                    count = self._store.expire(max_age_s)
                self.counts.expired += count
                text = f"frames in the spool are older than {max_age_s:,.0f} s; they are dropped"
                self._tell_sometimes("spool_expired", text, frames=count)
                if not self._queue.empty():
                    break  # new frames first; the next turn goes on
            while self._queue.empty() and self._store.shrink():
                pass
        except Exception as e:  # the thread goes on: the next turn tries again
            self._tell_sometimes("spool_failed", str(explain(e, self.path)), frames=0)

    def rebuild(self, why: str) -> tuple[int, Path]:
        """Set the database aside, and open a new one with everything readable. In the thread.

        Returns the frames in the new one, and where the old one is. Raises sqlite3.Error, OSError.
        """
        before = None
        if (store := getattr(self, "_store", None)) is not None:
            before = store.state.records
            store.close()
        salvaged = rebuild(self.path)
        self._store = self._new_store()
        self.removed_missing.clear()
        saved = f"{salvaged.records} frames" if before is None else f"{salvaged.records} of {before} frames"
        text = f"the spool was damaged ({why}): {saved} were saved; the old file is {salvaged.aside}"
        self.tell("spool_damaged", text, frames=salvaged.records, aside=str(salvaged.aside))
        return salvaged.records, salvaged.aside

    def tell(self, kind: str, text: str, **fields: Field) -> None:
        """Report an event."""
        with suppress(Exception):  # a sink that raises must not end the thread
            self.options.on_event(Event(kind=kind, text=text, wall=self.options.clocks.wall(), fields=fields))

    def _tell_sometimes(self, kind: str, text: str, **fields: Field) -> None:
        now = time.monotonic()
        if now - self._said.get(kind, -QUIET_S) >= QUIET_S:
            self._said[kind] = now
            self.tell(kind, text, **fields)
