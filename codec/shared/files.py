"""Atomic writing of files: a reader sees the whole file or none."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec

from .text import printable_json


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write `data` to `path` atomically, and create its folders. A reader sees the old file or the new one.

    This holds after a loss of power as well. The data is written beside `path` under another name, which is then
    renamed; if that fails, nothing is left. mode: of the new file, less what the umask takes. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: only the owner can read its files. The kernels in a container image are compiled by root and read by
    # other users.
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(scratch, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value`, anything msgspec encodes, as indented JSON with printable text, atomically. Raises OSError."""
    write_atomically(path, msgspec.json.format(printable_json(value), indent=2) + b"\n")


def missing_folders(out: Path) -> list[Path]:
    """The folders that mkdir(parents=True) will make, innermost first."""
    return [p for p in (out, *out.parents) if not p.exists()]
