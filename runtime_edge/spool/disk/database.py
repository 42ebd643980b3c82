"""The one connection to the spool's database, and what an error of SQLite means."""

from __future__ import annotations

import enum
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from splitwire.codec.errors import SpoolError, SpoolFull, UsageError

PAGE = 4096
"""Bytes of a page of the database."""
WAL_PAGES = 1000
"""Pages in the write-ahead log after which SQLite copies them into the database."""
CACHE_KIB = 2000
APPLICATION_ID = 0x53706F6C
"""Marks a database as a spool."""
VERSION = 1
"""Version of the tables and bodies."""

NEWEST_FORMAT = 2
"""SQLite's number for a database with a write-ahead log, in bytes 18 and 19."""
PLAUSIBLE = 1000
"""A greater version is a damaged one."""
TABLES = ("records", "dead", "state")

Value = int | float | str | bytes | None


class Rows(Protocol):
    """The rows of a statement."""

    def fetchall(self) -> list[Any]:
        """All rows, as tuples."""
        ...


class Connection(Protocol):
    """What the spool needs of a connection: sqlite3's, in autocommit mode, or another with its errors."""

    def execute(self, sql: str, parameters: Sequence[Value] = (), /) -> Rows:
        """Run a statement. Raises sqlite3.Error with sqlite_errorcode."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


Connect = Callable[[Path], Connection]


def connect(path: Path) -> Connection:
    """Open the file with the standard library's sqlite3. The file is made for its owner alone.

    Raises sqlite3.Error, OSError.
    """
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        sync(path.parent)  # SQLite does that for its log, but not for the database
    return sqlite3.connect(path, timeout=0, isolation_level=None)


def sync(path: Path) -> None:
    """Sync a file or a folder. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Trouble(enum.Enum):
    """What an error of SQLite means for the spool."""

    FULL = "full"
    READ_ONLY = "read-only"
    LOCKED = "locked"
    DAMAGED = "damaged"
    IO = "io"
    OTHER = "other"


_TROUBLES = {
    sqlite3.SQLITE_FULL: Trouble.FULL,
    sqlite3.SQLITE_READONLY: Trouble.READ_ONLY,
    sqlite3.SQLITE_PERM: Trouble.READ_ONLY,
    sqlite3.SQLITE_BUSY: Trouble.LOCKED,
    sqlite3.SQLITE_LOCKED: Trouble.LOCKED,
    sqlite3.SQLITE_PROTOCOL: Trouble.LOCKED,
    sqlite3.SQLITE_CORRUPT: Trouble.DAMAGED,
    sqlite3.SQLITE_NOTADB: Trouble.DAMAGED,
    sqlite3.SQLITE_IOERR: Trouble.IO,
    sqlite3.SQLITE_CANTOPEN: Trouble.IO,
}


_UNREADABLE = (
    sqlite3.SQLITE_IOERR_CORRUPTFS,
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
)
"""A part of the file cannot be read: a bad sector, a file cut short."""


def trouble_of(e: Exception) -> Trouble:
    """What the error means, by SQLite's primary code or the operating system's."""
    if isinstance(e, OSError):
        import errno

        match e.errno:
            case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
                return Trouble.FULL
            case errno.EROFS | errno.EACCES | errno.EPERM:
                return Trouble.READ_ONLY
        return Trouble.IO
    code = getattr(e, "sqlite_errorcode", None)
    if code is None:
        return Trouble.OTHER
    if code in _UNREADABLE:
        return Trouble.DAMAGED
    return _TROUBLES.get(code & 0xFF, Trouble.OTHER)


def corrupt(text: str) -> sqlite3.DatabaseError:
    """The error that SQLite raises for a damaged database, for damage that it does not see."""
    error = sqlite3.DatabaseError(text)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def whole_head(path: Path) -> bool:
    """Whether the file begins as a database that can be written; SQLite calls another version read-only."""
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError:
        return True  # what SQLite says holds
    return not head or (head[:16] == b"SQLite format 3\0" and max(head[18:20]) <= NEWEST_FORMAT)


def explain(e: Exception, path: Path) -> SpoolError:
    """The error for the user: what happened to the spool, and what to do."""
    text = (e.strerror if isinstance(e, OSError) else None) or str(e)
    match trouble_of(e):
        case Trouble.FULL:
            return SpoolFull(
                f"the disk of the spool {path} is full ({text}); free space, or give it a smaller max_bytes"
            )
        case Trouble.READ_ONLY:
            return SpoolError(
                f"the spool {path} cannot be written ({text}); make the folder writable for this user, and check"
                " whether the file system is mounted read-only"
            )
        case Trouble.LOCKED:
            return SpoolError(
                f"the spool {path} is in use by another process; only one may open it. While a runtime runs, `splitwire"
                " edge spool` asks it"
            )
        case Trouble.DAMAGED:
            return SpoolError(f"the spool {path} is damaged ({text}); run: splitwire edge spool repair {path}")
        case _:
            return SpoolError(f"the spool {path} cannot be read or written ({text}); check the disk and the folder")


def begin_reading(connection: Connection) -> int:
    """Take the only lock, and read the write-ahead log that a crash has left.

    Returns the number of pages in that log that belong to complete commits.
    Raises sqlite3.Error.
    """
    run = connection.execute
    # One connection for ever: SQLite then keeps the index of the log in memory, and no second process can open the
    # file. Versions before 3.51.3 can lose commits in this mode with two connections.
    run("PRAGMA locking_mode=EXCLUSIVE").fetchall()
    run("PRAGMA cell_size_check=ON").fetchall()
    run("SELECT count(*) FROM sqlite_master").fetchall()
    if run("PRAGMA journal_mode").fetchall()[0][0] != "wal":
        return 0
    return max(0, int(run("PRAGMA wal_checkpoint(PASSIVE)").fetchall()[0][1]))


def prepare(connection: Connection, path: Path, *, synchronous: str) -> None:
    """Make the tables, and set what one connection keeps.

    synchronous: FULL syncs the log at every commit, NORMAL only when it is copied. Raises sqlite3.Error, UsageError
    (another database, or one of a newer version).
    """
    run = connection.execute
    tables = run("SELECT count(*) FROM sqlite_master").fetchall()[0][0]
    if tables:
        identity = run("PRAGMA application_id").fetchall()[0][0]
        version = run("PRAGMA user_version").fetchall()[0][0]
        names = {name for (name,) in run("SELECT name FROM sqlite_master").fetchall()}
        if not names.intersection(TABLES):
            raise UsageError(f"{path} is an SQLite database, but no spool; name another file")
        if identity != APPLICATION_ID or not 0 < version < PLAUSIBLE or not names.issuperset(TABLES):
            raise corrupt("its head is damaged")
        if version > VERSION:
            raise UsageError(f"{path} is a spool of version {version}, this splitwire reads {VERSION}; update it")
    else:
        run(f"PRAGMA page_size={PAGE}").fetchall()
        run("PRAGMA auto_vacuum=INCREMENTAL").fetchall()
    for pragma in (
        # EXTRA syncs the folder after the change to the log has deleted the rollback journal. Without that, a power
        # cut can bring the journal back, and SQLite then undoes the first transaction of a database that has grown.
        "synchronous=EXTRA",
        "journal_mode=WAL",
        f"synchronous={synchronous}",
        f"wal_autocheckpoint={WAL_PAGES}",
        f"journal_size_limit={2 * WAL_PAGES * PAGE}",
        f"cache_size=-{CACHE_KIB}",
        "mmap_size=0",
        "temp_store=MEMORY",
        "secure_delete=FAST",  # so that salvage finds no records that were removed
        f"fullfsync={int(synchronous == 'FULL')}",  # macOS: fsync alone leaves the data in the drive's cache
        f"checkpoint_fullfsync={int(synchronous == 'FULL')}",
    ):
        run(f"PRAGMA {pragma}").fetchall()
    if not tables:
        run("BEGIN IMMEDIATE")
        for table in TABLES:
            run(f"CREATE TABLE {table} (seq INTEGER PRIMARY KEY, body BLOB)")
        run(f"PRAGMA application_id={APPLICATION_ID}").fetchall()
        run(f"PRAGMA user_version={VERSION}").fetchall()
        run("COMMIT")
