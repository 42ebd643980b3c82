"""Room on the disk that nobody else can take: without it, a spool on a full disk could not even remove a frame.

SQLite writes a removal into its log first, and copies the log into the database later; both need room. A file of
RESERVE bytes lies beside the database. When the disk is full it is removed, and the log, which is smaller, fits.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from .database import PAGE, WAL_PAGES

GROUP_BYTES = 1 << 20
"""A commit takes frames of at most this many bytes, or one frame."""
RESERVE = WAL_PAGES * PAGE + 2 * GROUP_BYTES
"""The most by which the database grows when the log is copied: its pages, and those of one more commit."""


class Reserve:
    """The file that holds the room."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self) -> bool:
        """Take the room; returns whether the disk has it."""
        try:
            if self._path.stat().st_size == RESERVE:
                return True
        except OSError:
            pass
        try:
            handle = os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600)
        except OSError:
            return False
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, RESERVE)
            else:  # a system that may store zeros as a hole has nothing better
                os.write(handle, bytes(RESERVE))
        except OSError:
            self.spend()
            return False
        finally:
            os.close(handle)
        return True

    def spend(self) -> None:
        """Give the room back to the disk."""
        with suppress(OSError):
            self._path.unlink()


def free_bytes(folder: Path) -> int | None:
    """Bytes that this user can write to the disk of a folder; None if the system does not say."""
    try:
        disk = os.statvfs(folder)
    except (OSError, AttributeError):
        return None
    return disk.f_bavail * disk.f_frsize
