"""Where compiled kernels are kept between processes: one checked file per kernel and signature.

Numba's built-in cache has four problems. It looks for its folder while modules are imported. It keeps one index per
function: two processes that compile different signatures at the same time can leave it with the wrong code. It does
not notice that a constant or a called kernel in another file has changed. And a damaged file, as after a loss of power,
makes the first call raise. Here nothing is touched before a kernel is first called, the file's name contains a hash of
all that its content depends on, and a damaged file is compiled again.

Anyone who can write to the folder decides what code its readers run, as with every cache of code.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from splitwire.codec.errors import DeviceError
from splitwire.codec.shared.cache import VARIABLE, cache_folder, read_checked, write_checked

log = logging.getLogger("splitwire.codec")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A kernel that this process compiled or loaded. milliseconds: to compile it, or to load it where `cached`."""

    kernel: str
    signature: str
    milliseconds: float
    cached: bool
    path: str
    """The file it was loaded from or written to; "" if there is none."""


class KernelStore:
    """The files of compiled kernels. Their folder is chosen when the first kernel is needed.

    loaded: the kernels that this process compiled or loaded, in order.
    """

    def __init__(self, compiler: str, compiler_folder: str = "") -> None:
        """compiler: name and version, part of the folder's name. compiler_folder: Numba's setting, or ""."""
        self._compiler = compiler
        self._compiler_folder = compiler_folder
        self._chosen: Path | None = None
        self._strict = False
        self._warned = False
        self.loaded: list[Loaded] = []

    def require(self, root: Path | None = None) -> Path:
        """Keep kernels below `root` from now on, and raise DeviceError whenever that fails. None: the usual folder.

        Returns the folder, which exists and can be written.
        """
        if root is not None:
            self._chosen = self._below(root)
        self._strict = True
        try:
            folder = self.folder()
            write_checked(folder / "probe", b"")
            (folder / "probe").unlink(missing_ok=True)
        except (OSError, RuntimeError) as e:
            raise self._unusable(e) from e
        return folder

    def folder(self) -> Path:
        """The folder of the files. Raises OSError or RuntimeError if no folder can be used."""
        if self._chosen is None:
            self._chosen = self._below(cache_folder(os.environ, self._compiler_folder))
        return self._chosen

    def read(self, name: str) -> bytes | None:
        """The body that was written under this name. None if there is no such file, or it is damaged or not trusted."""
        try:
            return read_checked(self.folder() / name)
        except (OSError, RuntimeError):
            return None

    def write(self, name: str, body: bytes) -> str:
        """Write `body` under this name; returns the path. On failure it warns once per process and returns ""."""
        try:
            path = self.folder() / name
            write_checked(path, body)
        except (OSError, RuntimeError) as e:
            self.complain(e)
            return ""
        return str(path)

    def complain(self, reason: Exception) -> None:
        """Warn once that kernels cannot be cached, and why. Raises DeviceError after `require`."""
        if self._strict:
            raise self._unusable(reason)
        if not self._warned:
            self._warned = True
            log.warning(
                "%s; until then each process compiles its kernels anew, which takes seconds", self._words(reason)
            )

    def _words(self, reason: Exception) -> str:
        why = (reason.strerror if isinstance(reason, OSError) else None) or str(reason) or type(reason).__name__
        where = f" in {self._chosen}" if self._chosen else ""
        return f"compiled kernels cannot be kept{where} ({why}); set {VARIABLE} to a folder that can be written"

    def _unusable(self, reason: Exception) -> DeviceError:
        return DeviceError(self._words(reason))

    def _below(self, root: Path) -> Path:
        """The folder below `root` for these sources, this Python and this compiler; installations share equal ones."""
        sources = sorted(Path(__file__).parents[1].rglob("*.py"))
        if not sources:  # a zip file, a frozen application: there is no source to hash
            raise RuntimeError("the sources of the kernels are not there to compare with")
        digest = hashlib.sha256()
        for source in sources:
            content = source.read_bytes()
            digest.update(f"{source.name} {len(content)} ".encode())
            digest.update(content)
        return root.absolute() / f"{self._compiler}-{sys.implementation.cache_tag}-{digest.hexdigest()[:12]}"
