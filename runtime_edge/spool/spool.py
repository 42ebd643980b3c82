"""Spool: frames wait on disk until the server has answered them."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from splitwire.codec.errors import SpoolError, UsageError
from splitwire.runtime_edge.events import EventSink, ignore
from splitwire.runtime_edge.transport.base import Key

from .admin import Admin
from .disk.clock import Clocks
from .disk.database import Connect, connect, corrupt
from .disk.salvage import side
from .disk.store import RESERVED, Store
from .options import Options, SpoolStats, Tier, WhenFull
from .records import MAX_FRAME, Damaged, Spooled, unpack
from .writer import Put, Writer

T = TypeVar("T")

SOCKET = ".sock"
"""Suffix of the socket that answers `splitwire edge spool`."""
NEXT_BYTES = 8 << 20
"""Bytes of frames that `next` returns at most, unless the first alone has more."""


class Spool:
    """Frames that wait on disk, in order, each until it is acknowledged.

        with Spool("/var/lib/splitwire/spool.db") as spool:
            spool.put(frame, spool.new_key(), time.time()).result()    # now a power cut does not take it

    path: the database; its folder must exist. tier: "durable" syncs every commit, so that a frame whose future is done
    survives a power cut. "buffered" leaves the time of writing to the system: such a frame survives the end of the
    process by any cause, and a power cut may take what was stored since the last checkpoint (about 4 MB of log).
    max_bytes: of all frames, with an overhead of about 130 bytes each; None: no limit. max_age_s: older frames are
    dropped, by a clock that does not follow the wall clock; None: no limit. when_full: what `put` does when
    there is no room. device: id of the device in the keys; None keeps the one in the spool, which is random at first.
    connect: opens the database. clocks: where times come from. Both exist for tests. admin: whether to answer
    `splitwire edge spool` on a socket beside the file; if it cannot be made, an event says so.

    Every method may be called from any thread, but not in a process forked later.
    Raises SpoolError (in use by another process, read-only, cannot be opened), SpoolFull, UsageError (a wrong option,
    another kind of file). A damaged file is no error: it is set aside, and the spool has what could be read.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tier: Tier = "durable",
        max_bytes: int | None = 1 << 30,
        max_age_s: float | None = 7 * 86400.0,
        when_full: WhenFull = "drop-oldest",
        device: str | None = None,
        on_event: EventSink = ignore,
        connect: Connect = connect,
        clocks: Clocks | None = None,
        admin: bool = True,
    ) -> None:
        self.options = Options(
            tier=tier,
            max_bytes=max_bytes,
            max_age_s=max_age_s,
            when_full=when_full,
            device=device,
            on_event=on_event,
            connect=connect,
            clocks=clocks or Clocks(),
        )
        self.path = Path(path)
        self._keys = threading.Lock()
        self._boot = secrets.token_hex(8)
        self._pid = os.getpid()
        self._writer = Writer(self.path, self.options)
        state = self._writer.store.state
        self._device = state.device
        self._counter = self._writer.store.first_counter
        self._reserved = state.counter
        self._writer.last_counter = lambda: self._counter
        self._admin = self._open_admin() if admin else None

    @property
    def device(self) -> str:
        """Id of the device in the keys."""
        return self._device

    def new_key(self) -> Key:
        """The key of the next frame, whether it is spooled or sent at once.

        The boot id is random for each time the spool is opened. The counter goes on over restarts; after a crash it
        skips some numbers. Raises SpoolError.
        """
        self._use()
        with self._keys:
            if self._counter >= self._reserved:
                self._counter = self._writer.call(self._reserve)
                self._reserved = self._counter + RESERVED
            self._counter += 1
            return Key(self._device, self._boot, self._counter - 1)

    def put(self, frame: bytes, key: Key, captured_wall: float) -> Future[int | None]:
        """Store a frame. Returns at once, with a future that is done when the frame is committed.

        captured_wall: when it was captured, seconds since 1970. The future's result is the frame's id in the spool, or
        None if the policy "drop-newest" dropped it. It raises SpoolFull (the policy "refuse", or no room on the disk)
        or SpoolError; then the frame is not stored. If 32 MiB wait to be written, `put` itself waits.
        Raises SpoolError (closed), UsageError (the frame is empty or over 256 MiB).
        """
        self._use()
        if not 0 < len(frame) <= MAX_FRAME:
            raise UsageError(f"a frame in the spool has 1 to {MAX_FRAME:,} bytes; got {len(frame):,}")
        item = Put(bytes(frame), key, captured_wall)
        self._writer.put(item)
        return item.done

    def next(self, n: int, *, max_bytes: int = NEXT_BYTES, after: int = 0) -> list[Spooled]:
        """The oldest frames that wait, in order. They stay until they are acknowledged.

        n: how many at most. max_bytes: fewer if they have more bytes, but at least one. after: only frames behind this
        id. What was acknowledged does not come again, also while the disk does not take its removal. A damaged record
        among them is moved to the dead ones. Raises SpoolError.
        """
        self._use()
        return self._writer.call(lambda: self._next(n, max_bytes, after))

    def acknowledge(self, ids: Sequence[int]) -> None:
        """Remove frames that the server has answered. Returns at once; the next commit has it.

        A power cut before that commit brings them back: they are sent again, with the same keys. Raises SpoolError.
        """
        self._use()
        self._writer.acknowledge(tuple(ids))

    def bury(self, record_id: int, code: str, reason: str) -> bool:
        """Move a frame to the dead ones: kept with its reason, and not sent again.

        Returns whether it was there. Raises SpoolError.
        """
        self._use()
        return self._writer.call(lambda: self._bury(record_id, code, reason))

    def tell_when_stored(self, event: threading.Event) -> None:
        """Set an event whenever frames were stored."""
        self._writer.listeners.append(event)

    def stats(self) -> SpoolStats:
        """Totals, limits, and what was done since opening. Raises SpoolError."""
        return self.run(self._stats)

    def run(self, work: Callable[[Store], T]) -> T:
        """Run `work` in the writer thread, after what waits was committed. Raises SpoolError."""
        self._use()
        return self._writer.call(lambda: work(self._writer.store))

    def repair(self) -> tuple[int, Path]:
        """Set the database aside and make a new one with everything readable.

        Returns the number of frames that wait in the new one, and where the old one is. Raises SpoolError.
        """
        self._use()
        return self._writer.call(lambda: self._writer.rebuild("a repair was asked for"))

    def age(self, record: Spooled) -> float:
        """Seconds since a frame was stored, by the spool's clock."""
        return max(0.0, self._writer.store.clock.now() - record.stamp)

    def close(self) -> None:
        """Commit what waits, and close the database. A second call has no effect."""
        if os.getpid() == self._pid:
            if self._admin is not None:
                self._admin.close()
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _open_admin(self) -> Admin | None:
        try:
            return Admin(side(self.path, SOCKET), self)
        except (OSError, AttributeError) as e:  # Windows has no such sockets
            text = f"`splitwire edge spool` cannot ask this process: no socket {self.path}{SOCKET} ({e})"
            self._writer.tell("spool_no_socket", text)
            return None

    def _use(self) -> None:
        if os.getpid() != self._pid:
            raise SpoolError(f"the spool {self.path} was opened before fork(); open it in the process that uses it")

    def _reserve(self) -> int:
        with self._writer.store.transaction():
            return self._writer.store.reserve()

    def _next(self, n: int, max_bytes: int, after: int) -> list[Spooled]:
        writer = self._writer
        records: list[Spooled] = []
        while not records and (rows := writer.store.oldest(n, max_bytes, after)):
            if any(seq in writer.removed_missing for seq, _ in rows):
                raise corrupt("a frame that was removed is still there")
            if all(seq in writer.unremoved for seq, _ in rows):
                after = rows[-1][0]
            for seq, body in rows:
                if seq in writer.unremoved:
                    continue
                try:
                    record = unpack(body)
                except Damaged as e:
                    self._bury_damaged(seq, e)
                else:
                    if record.id != seq:
                        raise corrupt("a row has the number of another")
                    records.append(record)
        return records

    def _bury_damaged(self, seq: int, e: Damaged) -> None:
        if not self._bury(seq, "damaged", f"the record is damaged: {e}"):
            raise corrupt("a row cannot be found by its number")
        self._writer.counts.damaged += 1
        self._writer.tell("spool_record", f"record {seq} of the spool is damaged ({e}); the others are not", record=seq)

    def _bury(self, seq: int, code: str, reason: str) -> bool:
        with self._writer.store.transaction():
            moved = self._writer.store.bury(seq, code, reason)
        self._writer.counts.buried += moved
        return moved

    def _stats(self, store: Store) -> SpoolStats:
        state, options = store.state, self.options
        age = None
        for _, body in store.oldest(1, 1):
            with suppress(Damaged):
                age = self.age(unpack(body))
        file_bytes, free_bytes = store.file_bytes()
        return SpoolStats(
            path=str(self.path),
            device=state.device,
            tier=options.tier,
            frames=state.records,
            bytes=state.record_bytes,
            dead=state.dead,
            dead_bytes=state.dead_bytes,
            oldest_s=age,
            file_bytes=file_bytes,
            free_bytes=free_bytes,
            max_bytes=options.max_bytes,
            max_age_s=options.max_age_s,
            when_full=options.when_full,
            counts=self._writer.counts,
        )
