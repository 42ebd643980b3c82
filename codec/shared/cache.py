"""The cache folder: where it is, and files in it that carry a checksum.

A file of the cache is used only if it is whole and if nobody but its owner and root could have written it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from .files import write_atomically

VARIABLE = "SPLITWIRE_CACHE_DIR"
CHECKSUM_BYTES = 32  # SHA-256 of what follows, at the start of each file


def user_folder(environment: Mapping[str, str], platform: str = sys.platform) -> Path:
    """The user's cache folder on this system. Raises RuntimeError for a user without a home folder."""
    if platform == "win32":
        local = environment.get("LOCALAPPDATA", "")
        base = Path(local) if local else Path.home() / "AppData" / "Local"
    elif platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        xdg = environment.get("XDG_CACHE_HOME", "")
        # a relative path is to be ignored (XDG Base Directory Specification)
        base = Path(xdg) if xdg.startswith("/") else Path.home() / ".cache"
    return base / "splitwire"


def cache_folder(environment: Mapping[str, str], also: str = "") -> Path:
    """The folder that SPLITWIRE_CACHE_DIR names; else `also`, if it is not empty; else the user's.

    Raises RuntimeError for a user without a home folder.
    """
    named = environment.get(VARIABLE, "") or also
    return Path(named).expanduser().absolute() if named else user_folder(environment).absolute()


def read_checked(path: Path) -> bytes | None:
    """The body that `write_checked` wrote. None if there is no such file, or it is damaged or not trusted."""
    try:
        with path.open("rb") as file:
            if not trusted(os.fstat(file.fileno())):  # of the open file: what is checked is what is read
                return None
            checksum, body = file.read(CHECKSUM_BYTES), file.read()
    except OSError:
        return None
    return body if hashlib.sha256(body).digest() == checksum else None


def write_checked(path: Path, body: bytes) -> None:
    """Replace the file atomically by `body` with its checksum. Raises OSError."""
    try:
        write_atomically(path, hashlib.sha256(body).digest() + body)
    except OSError:
        # Windows does not replace a file that another process is reading; that file has the same content
        if os.name != "nt" or not path.is_file():
            raise


def trusted(status: os.stat_result) -> bool:
    """Whether root or this user owns the file and nobody else may write it: loading a file can run the code in it.

    On Windows there is no such owner to compare, so only the folder's permissions protect it.
    """
    if sys.platform == "win32":
        return True
    return status.st_uid in {0, os.geteuid()} and not status.st_mode & stat.S_IWOTH
