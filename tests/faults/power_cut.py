"""A disk that loses power: an SQLite VFS, by apsw, of which only what was synced survives a cut.

Writes go to real files, and are noted until the file is synced. At the cut, each file becomes its synced content plus
what of the noted writes the disk happens to have: none, the first ones with a torn last one, any sectors in any order,
or all; sectors that were being written can hold garbage. A file that was created and never synced may be gone. A file
that was deleted may be back. From the cut on every call fails.
"""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

SECTOR = 512
POWERSAFE_OVERWRITE = 0x1000
"""A device characteristic: a write damages no bytes beside it. SQLite assumes it of a file system by default."""
KEEP = ("none", "prefix", "sectors", "sectors", "all")
"""What survives of the writes since the last sync, drawn for each cut."""
GARBAGE = 0.02
"""Share of the unsynced sectors that hold random bytes after a cut."""


class PowerCut(Exception):
    """The machine is off."""


@dataclass
class _File:
    """synced: the content that survives; None: so does that there is no file. pending: (offset, bytes) of writes, and
    (size, None) of truncations since the last sync."""

    synced: bytearray | None
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        content = self.synced if self.synced is not None else bytearray()
        for at, data in self.pending:
            _apply(content, at, data)
        self.synced, self.pending = content, []


def _apply(content: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        if at <= len(content):
            del content[at:]
        else:
            content.extend(bytes(at - len(content)))
        return
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


class Disk:
    """The files of one folder, on a disk that loses power at the call number `cut_at` of writes, syncs and deletions.

    rng: draws what survives. powersafe: whether the disk says POWERSAFE_OVERWRITE. `connect` is for a Spool.
    """

    _number = 0

    def __init__(self, rng: random.Random, cut_at: int, *, powersafe: bool = True) -> None:
        Disk._number += 1
        self.name = f"power-cut-{Disk._number}"
        self.rng, self.cut_at, self.powersafe = rng, cut_at, powersafe
        self.calls, self.off, self.kept = 0, False, ""
        self.checkpoint_pages: int | None = None
        self._files: dict[Path, _File] = {}
        self._vfs = _Vfs(self)

    def connect(self, path: Path) -> Connection:
        """Open a database on this disk. Raises sqlite3.OperationalError if the power is off."""
        if self.off:
            raise off()
        return Connection(self, path)

    def file(self, path: Path) -> _File:
        if path not in self._files:
            self._files[path] = _File(bytearray(path.read_bytes()) if path.exists() else None)
        return self._files[path]

    def call(self) -> None:
        """Count a call that changes the disk. Raises PowerCut."""
        if not self.off:
            self.calls += 1
            if self.calls >= self.cut_at:
                self.off = True
                self.kept = self.rng.choice(KEEP)
        if self.off:
            raise PowerCut

    def reboot(self) -> None:
        """Leave in the folder what survived. No connection may be open."""
        for path, file in self._files.items():
            if (content := self._survivor(file)) is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)
        self._vfs.unregister()

    def _survivor(self, file: _File) -> bytes | None:
        rng = self.rng
        if not file.pending or self.kept == "none":
            return None if file.synced is None else bytes(file.synced)
        if file.synced is None and rng.random() < 0.5:
            return None  # created, and its folder never synced
        content = bytearray(file.synced or b"")
        pending = file.pending
        if self.kept == "prefix":
            pending = pending[: rng.randint(0, len(pending))]
            if pending and (torn := pending[-1])[1]:
                pending = [*pending[:-1], (torn[0], torn[1][: rng.randint(0, len(torn[1]))])]
        for at, data in pending:
            if data is None:
                if self.kept != "sectors" or rng.random() < 0.5:
                    _apply(content, at, None)
                continue
            for part_at, part in _sectors(at, data):
                if self.kept != "sectors" or rng.random() < 0.5:
                    _apply(content, part_at, rng.randbytes(len(part)) if self._garbage() else part)
        return bytes(content)

    def _garbage(self) -> bool:
        return self.kept == "sectors" and self.rng.random() < GARBAGE


def _sectors(at: int, data: bytes) -> list[tuple[int, bytes]]:
    edges = [at, *range((at // SECTOR + 1) * SECTOR, at + len(data), SECTOR), at + len(data)]
    return [(a, data[a - at : b - at]) for a, b in itertools.pairwise(edges) if b > a]


def off() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("the power is off")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    return error


class _Vfs(apsw.VFS):
    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.name, "")
        self._disk = disk

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
        return _VfsFile(self._disk, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - SQLite's name
        self._disk.call()
        file = self._disk.file(Path(filename))
        super().xDelete(filename, syncdir)
        if syncdir:
            file.synced, file.pending = None, []
        # else: the old content is back after a cut, unless the file is made again


class _VfsFile(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._file = disk.file(Path(path)) if path else _File(None)
        super().__init__("", name, flags)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - SQLite's name
        self._file.pending.append((offset, bytes(data)))  # the cut may come in the middle of this write
        self._disk.call()
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name
        self._file.pending.append((newsize, None))
        self._disk.call()
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.call()
        self._file.sync()

    def xDeviceCharacteristics(self) -> int:  # noqa: N802 - SQLite's name
        return POWERSAFE_OVERWRITE if self._disk.powersafe else 0

    def xSectorSize(self) -> int:  # noqa: N802 - SQLite's name
        return SECTOR if self._disk.powersafe else 4096


class _Rows:
    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def fetchall(self) -> list[Any]:
        return self._rows


class Connection:
    """apsw's connection with the methods and the errors of sqlite3."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        disk.file(path).sync()  # what `connect` of the spool does: the file is made, and its folder synced
        try:
            self._connection = apsw.Connection(str(path), vfs=disk.name)
        except (apsw.Error, PowerCut) as e:
            raise _translated(e) from e

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> _Rows:
        if self._disk.off:
            raise off()
        if sql.startswith("PRAGMA wal_autocheckpoint") and self._disk.checkpoint_pages:
            sql = f"PRAGMA wal_autocheckpoint={self._disk.checkpoint_pages}"
        try:
            return _Rows(list(self._connection.execute(sql, tuple(parameters))))
        except (apsw.Error, PowerCut) as e:
            raise _translated(e) from e

    def close(self) -> None:
        try:
            self._connection.close()
        except (apsw.Error, PowerCut) as e:
            self._connection.close(True)
            raise _translated(e) from e


def _translated(e: Exception) -> sqlite3.OperationalError:
    if isinstance(e, PowerCut):
        return off()
    error = sqlite3.OperationalError(str(e))
    error.sqlite_errorcode = getattr(e, "extendedresult", sqlite3.SQLITE_ERROR)
    return error
