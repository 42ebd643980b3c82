"""One process at a time: a lock file beside the database, held as long as the spool is open."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from splitwire.codec.errors import SpoolError

try:
    import fcntl
except ImportError:  # Windows: SQLite's own lock remains, which is free while a damaged file is replaced
    fcntl = None  # type: ignore[assignment]  # a platform without it


_held: set[tuple[int, Path]] = set()
"""(process, path) of the locks of this process: the system's do not exclude the process itself."""


class Lock:
    """The lock of a spool. It goes with the process, and a child of fork() does not have it.

    Raises SpoolError (another process has it, with its id), OSError.
    """

    def __init__(self, path: Path) -> None:
        spool = path.with_name(path.name.removesuffix(".lock"))
        self._me = (os.getpid(), path.absolute())
        self._handle = -1
        if self._me in _held:
            raise SpoolError(f"the spool {spool} is open in this process already; use that one")
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if fcntl is not None:
                fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks: SQLite's own remains
                return
            number = os.read(self._handle, 20).decode("ascii", "replace").strip()
            holder = f"process {number}" if number else "another process"
            os.close(self._handle)
            raise SpoolError(
                f"the spool {spool} is in use by {holder}; only one may open it. While a runtime"
                " runs, `splitwire edge spool` asks it"
            ) from e
        _held.add(self._me)
        with suppress(OSError):  # a full disk: only the message lacks the number then
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back. The file stays: a process that removes it could remove another's."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
            _held.discard(self._me)
