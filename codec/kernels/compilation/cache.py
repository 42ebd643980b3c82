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
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from splitwire.codec.errors import DeviceError
from splitwire.codec.shared.files import write_atomically

log = logging.getLogger("splitwire.codec")

VARIABLE = "SPLITWIRE_CACHE_DIR"
CHECKSUM_BYTES = 32  # SHA-256 of what follows, at the start of each file


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A kernel that this process compiled or loaded. milliseconds: to compile it, or to load it where `cached`."""

    kernel: str
    signature: str
    milliseconds: float
    cached: bool
    path: str
    """The file it was loaded from or written to; "" if there is none."""


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
            self._replace(folder / "probe", b"")
            (folder / "probe").unlink(missing_ok=True)
        except (OSError, RuntimeError) as e:
            raise self._unusable(e) from e
        return folder

    def folder(self) -> Path:
        """The folder of the files. Raises OSError or RuntimeError if no folder can be used."""
        if self._chosen is None:
            named = os.environ.get(VARIABLE, "") or self._compiler_folder
            self._chosen = self._below(Path(named).expanduser() if named else user_folder(os.environ))
        return self._chosen

    def read(self, name: str) -> bytes | None:
        """The body that was written under this name. None if there is no such file, or it is damaged or not trusted."""
        try:
            with (self.folder() / name).open("rb") as file:
                if not _trusted(os.fstat(file.fileno())):  # of the open file: what is checked is what is read
                    return None
                data = file.read()
        except (OSError, RuntimeError):
            return None
        body = data[CHECKSUM_BYTES:]
        return body if hashlib.sha256(body).digest() == data[:CHECKSUM_BYTES] else None

    def write(self, name: str, body: bytes) -> str:
        """Write `body` under this name; returns the path. On failure it warns once per process and returns ""."""
        try:
            path = self.folder() / name
            self._replace(path, hashlib.sha256(body).digest() + body)
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

    @staticmethod
    def _replace(path: Path, data: bytes) -> None:
        """Replace the file atomically. Raises OSError."""
        try:
            write_atomically(path, data)
        except OSError:
            # Windows does not replace a file that another process is reading; that file has the same content
            if os.name != "nt" or not path.is_file():
                raise


def _trusted(status: os.stat_result) -> bool:
    """Whether root or this user owns the file and nobody else may write it: loading a file runs the code in it.

    On Windows there is no such owner to compare, so only the folder's permissions protect it.
    """
    if sys.platform == "win32":
        return True
    return status.st_uid in {0, os.geteuid()} and not status.st_mode & stat.S_IWOTH
