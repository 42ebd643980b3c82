"""Reads every body out of a damaged database, whatever is damaged around it, and makes a new database of them.

SQLite finds a row through pages that point to each other, so one flipped byte there hides many rows. The log is worse:
SQLite ignores everything behind the first damaged page. This module looks for the magic of a body in each page of the
file and of the log instead, follows the chain of a long body through its overflow pages, and believes the CRC.
The layout is that of https://www.sqlite.org/fileformat2.html, sections 1.6 (cells and overflow) and 4.1 (the log).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Self

from splitwire.runtime_edge.spool.records import (
    COVER,
    DEAD,
    MAX_FRAME,
    RECORD,
    STATE,
    Damaged,
    Dead,
    State,
    content_of,
    pack_state,
    size_of,
    unpack,
    unpack_dead,
    unpack_state,
)

from .database import PAGE, Connection, connect, prepare, sync

WAL_HEAD, FRAME_HEAD = 32, 24
BATCH = 512
"""Records of one transaction while the new database is written."""

KEPT = 2
"""Damaged databases that are kept beside the spool; older ones are removed."""

USABLE = PAGE  # the spool reserves no bytes at the end of a page
MOST_LOCAL = USABLE - 35
LEAST_LOCAL = (USABLE - 12) * 32 // 255 - 23


def side(path: Path, suffix: str) -> Path:
    """A file beside the database: -wal, -shm, .salvage, .damaged-1."""
    return path.with_name(path.name + suffix)


def log_pages(path: Path) -> list[tuple[int, int]]:
    """(page number, offset of the page in the log) of the pages that belong to the present run of the log.

    They have the salts of the log's head, or of its first page if the head is damaged. SQLite takes fewer of them if a
    checksum is wrong, or if the last ones belong to a commit that was not complete. Raises OSError, except that a log
    which does not exist has no pages.
    """
    heads: list[tuple[bytes, int, int]] = []  # salts, page number, offset
    salts = b""
    with suppress(FileNotFoundError), side(path, "-wal").open("rb") as log:
        salts = log.read(WAL_HEAD)[16:24]
        at = WAL_HEAD
        while len(head := log.read(FRAME_HEAD)) == FRAME_HEAD:
            heads.append((head[8:16], int.from_bytes(head[:4], "big"), at + FRAME_HEAD))
            at += FRAME_HEAD + PAGE
            log.seek(at)
    if heads and not any(salts == found for found, _, _ in heads):
        salts = heads[0][0]
    return [(number, at) for found, number, at in heads if found == salts]


def behind(log: list[tuple[int, int]], complete: int) -> list[tuple[int, int]]:
    """Those pages of a log that are behind its first ones, of which SQLite has taken as many as `complete`."""
    end = WAL_HEAD + complete * (FRAME_HEAD + PAGE)
    return [(number, at) for number, at in log if at > end]


@dataclass
class Pages:
    """The pages of a database and of its log; each can be read by its number, in its newest version.

    log: what `log_pages` returned; later entries are newer.
    """

    path: Path
    log: list[tuple[int, int]]
    _newest: dict[int, int] = field(init=False)
    _file: FileIO = field(init=False)
    _wal: FileIO | None = field(init=False, default=None)

    def __enter__(self) -> Self:
        self._newest = dict(self.log)
        self._file = self.path.open("rb", buffering=0)
        if self.log:
            self._wal = side(self.path, "-wal").open("rb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._wal is not None:
            self._wal.close()

    def in_log(self, offset: int) -> bytes:
        """The page at an offset in the log."""
        return b"" if self._wal is None else _read(self._wal, offset)

    def in_file(self, number: int) -> bytes:
        """A page of the file; pages count from 1. Empty behind the end, and where the disk cannot be read."""
        return _read(self._file, (number - 1) * PAGE)

    def newest(self, number: int) -> bytes:
        """A page in its newest version."""
        offset = self._newest.get(number)
        return self.in_file(number) if offset is None else self.in_log(offset)

    def bodies(self, *, log: list[tuple[int, int]], file: bool) -> Iterator[tuple[bytes, bytes]]:
        """(magic, body) of everything whose checksum is right; the same body may come several times.

        log: the pages of the log to look at. file: whether to look into the database itself too.
        """
        for _, offset in reversed(log):
            yield from self._carve(self.in_log(offset))
        for number in range(1, 1 + (self.path.stat().st_size + PAGE - 1) // PAGE if file else 0):
            yield from self._carve(self.in_file(number))

    def _carve(self, page: bytes) -> Iterator[tuple[bytes, bytes]]:
        at = page.find(b"\xf5Sp")
        while at >= 0:
            after = at + 4
            magic = page[at:after]
            if magic in (RECORD, DEAD, STATE) and at + COVER.size <= len(page):
                _, _, length = COVER.unpack_from(page, at)
                for newest in (True, False):
                    body, local = self._body(page, at, COVER.size + length, newest)
                    with suppress(Damaged):
                        content_of(body, magic)
                        yield magic, body
                        after = at + local
                        break
                    if local == COVER.size + length:
                        break  # it has no overflow pages that could be read in another version
            at = page.find(b"\xf5Sp", after)

    def _body(self, page: bytes, at: int, length: int, newest: bool) -> tuple[bytes, int]:
        """The body that starts in a page, and how many of its bytes are in that page."""
        if length > MAX_FRAME + PAGE:
            return b"", length
        blob = 12 + 2 * length
        payload = length + 2 + max(1, (blob.bit_length() + 6) // 7)  # the row's head: its length, a null, the blob
        local = payload
        if payload > MOST_LOCAL:
            local = LEAST_LOCAL + (payload - LEAST_LOCAL) % (USABLE - 4)
            if local > MOST_LOCAL:
                local = LEAST_LOCAL
        local -= payload - length
        parts, missing = [page[at : at + local]], length - local
        chain = page[at + local : at + local + 4]
        while missing > 0 and len(chain) == 4:
            (number,) = struct.unpack(">I", chain)
            if not number:
                break
            overflow = self.newest(number) if newest else self.in_file(number)
            part = overflow[4 : 4 + missing]
            if not part:
                break
            parts.append(part)
            missing -= len(part)
            chain = overflow[:4]
        return b"".join(parts), local


@dataclass
class Salvaged:
    """What a salvage found: records and dead records that are whole, and where the damaged files are now."""

    records: int
    dead: int
    aside: Path


def rebuild(path: Path) -> Salvaged:
    """Set a damaged database aside, and put a new one with everything readable in its place.

    No connection may be open. Memory does not grow with the size of the file. After a power cut in between, `finish`
    completes it. Raises OSError, sqlite3.Error.
    """
    fresh = side(path, ".salvage")
    for leftover in (fresh, side(path, ".salvage-wal"), side(path, ".salvage-journal")):
        leftover.unlink(missing_ok=True)
    connection = connect(fresh)
    try:
        prepare(connection, fresh, synchronous="NORMAL")
        with Pages(path, log_pages(path)) as pages:
            state = _copy(pages, connection)
    finally:
        connection.close()  # copies the log into the file, and syncs it
    sync(fresh)
    complete = side(path, ".salvaged")
    fresh.replace(complete)  # a file of this name is complete
    sync(path.parent)
    aside = finish(path)
    return Salvaged(state.records, state.dead, aside or path)


def finish(path: Path) -> Path | None:
    """Complete a salvage whose new database is written: move the damaged files aside, and the new one into place.

    Returns where the damaged database is now, or None if there is no such salvage. Raises OSError.
    """
    complete = side(path, ".salvaged")
    if not complete.exists():
        return None
    number = 1
    while side(path, f".damaged-{number}").exists() and path.exists():
        number += 1
    aside = side(path, f".damaged-{number}")
    # The log first: beside the new database SQLite would take it for its log.
    for suffix in ("-wal", "-shm", ""):
        if side(path, suffix).exists():
            side(path, suffix).replace(side(aside, suffix))
    sync(path.parent)
    complete.replace(path)
    sync(path.parent)
    for suffix in ("", "-wal", "-shm"):
        side(path, f".damaged-{number - KEPT}{suffix}").unlink(missing_ok=True)
    return aside


def _copy(pages: Pages, connection: Connection) -> State:
    run = connection.execute
    newest = State()
    count = 0
    for magic, body in pages.bodies(log=pages.log, file=True):
        with suppress(Damaged):
            if not count % BATCH:
                if count:
                    run("COMMIT")
                run("BEGIN")
            count += 1
            if magic == RECORD:
                run("INSERT OR IGNORE INTO records VALUES (?, ?)", (_id(unpack(body).id), body))
            elif magic == DEAD:
                run("INSERT OR IGNORE INTO dead VALUES (?, ?)", (_id(unpack_dead(body).id), body))
            else:
                newest = max(newest, unpack_state(body), key=lambda state: state.generation)
    if not count:
        run("BEGIN")
    # Rows that were removed can still be in free pages: those below the head were delivered.
    run("DELETE FROM records WHERE seq < ? OR seq IN (SELECT seq FROM dead)", (newest.head,))
    state = count_again(connection, newest)
    run("INSERT OR REPLACE INTO state VALUES (1, ?)", (pack_state(state),))
    run("COMMIT")
    return state


def _id(value: int) -> int:
    if value >= 1 << 63:
        raise Damaged("its id is out of range")
    return value


def count_again(connection: Connection, state: State) -> State:
    """The state with the totals of the tables; reads them whole. Raises sqlite3.Error."""
    run = connection.execute
    first, last, records, record_bytes = run(
        "SELECT min(seq), max(seq), count(*), total(length(body)) FROM records"
    ).fetchall()[0]
    last_dead, dead, dead_bytes = run("SELECT max(seq), count(*), total(length(body)) FROM dead").fetchall()[0]
    state.records, state.dead = records, dead
    state.record_bytes = int(record_bytes) + records * size_of(0)
    state.dead_bytes = int(dead_bytes) + dead * size_of(0)
    state.next_id = max(state.next_id, (last or 0) + 1, (last_dead or 0) + 1)
    state.head = state.next_id if first is None else first
    state.generation += 1
    return state


def _read(file: FileIO, offset: int) -> bytes:
    """A page; empty if the disk cannot read it."""
    try:
        file.seek(offset)
        return file.read(PAGE)
    except OSError:
        return b""


def as_dead(seq: int, body: bytes | None, e: Damaged) -> Dead:
    """The dead record of a damaged one."""
    return Dead(seq, "damaged", f"the record is damaged: {e}", body or b"")
