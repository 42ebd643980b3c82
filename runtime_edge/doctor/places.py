"""Where the doctor finds its facts. Tests give another root and other figures."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TOOL_S = 5.0
"""Longest time for a program such as vcgencmd."""


def free_bytes(folder: Path) -> int:
    """Bytes free for this user on the disk of the folder, or of the nearest folder above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, kw_only=True)
class Places:
    """The machine. root: what stands for `/`. machine: as `uname -m`. bits: of this Python. libc: name and version of
    the C library; ("", "") where it is not glibc. free: bytes free for a folder."""

    root: Path = Path("/")
    machine: str = field(default_factory=platform.machine)
    bits: int = field(default_factory=lambda: int(platform.architecture()[0].removesuffix("bit")))
    system: str = field(default_factory=platform.system)
    libc: tuple[str, str] = field(default_factory=platform.libc_ver)
    free: Callable[[Path], int] = free_bytes

    def read(self, path: str) -> str | None:
        """The text of a small file such as /proc/cpuinfo, stripped; None if it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace").strip()
        except (OSError, ValueError):
            return None

    def integer(self, path: str) -> int | None:
        """The decimal or 0x number in a file; None if there is none."""
        try:
            return int(self.read(path) or "", 0)
        except ValueError:
            return None

    def find(self, pattern: str) -> list[str]:
        """Paths that match a pattern such as /sys/class/hwmon/*/name, in order."""
        return sorted("/" + found.relative_to(self.root).as_posix() for found in self.root.glob(pattern.lstrip("/")))

    def says(self, *command: str) -> str | None:
        """What a program prints; None if it is not on PATH, fails or takes too long."""
        return says(command)


def says(command: Sequence[str]) -> str | None:
    """As `Places.says`."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - programs that this package names, found on PATH
            [program, *command[1:]], capture_output=True, text=True, errors="replace", timeout=TOOL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
