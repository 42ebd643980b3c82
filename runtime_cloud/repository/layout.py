"""What lies in the folder of a repository: which models, in which versions, and what is wrong with them. Reads names,
sizes and times only; opens no model.

    ROOT/NAME/VERSION/back.onnx     VERSION is a number; the largest is the newest
    ROOT/NAME/back.onnx             version 1
    ROOT/back.onnx, or ROOT is a file   version 1 of one model, named after the folder

A name from outside is only compared with the names found here: no path is made of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import BACK
from splitwire.codec.wire.reply import printable

from .settings import SETTINGS, Settings, VersionSettings, read_settings

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
VERSION = re.compile(r"[0-9]{1,18}")
FIRST = "1"
"""The version of a model that lies in no version folder."""
WEIGHTS = ".data"
"""The weights of a large model lie beside it, in a file with this after its name."""
MOST_ENTRIES = 10_000
"""Entries of a folder that are looked at."""

Files = tuple[tuple[str, int, int, int], ...]
"""(file, inode, bytes, time of the last change in ns) of the files of a version."""
Stamp = tuple[Files, str]
"""The files of a version, and what else decides how it runs."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A version of a model as it lies in the folder.

    path: of its back.onnx. files: what identifies their content. problem: why it cannot be loaded; "" if nothing is
    known against it. settings: how it runs.
    """

    name: str
    version: str
    path: Path
    files: Files = ()
    problem: str = ""
    settings: VersionSettings = field(default_factory=VersionSettings)

    @property
    def stamp(self) -> Stamp:
        """Changes when the version is to be loaded again."""
        return self.files, f"{self.settings} {self.problem}"

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(size for _, _, size, _ in self.files)

    @property
    def number(self) -> int:
        """The version as a number; -1 for none."""
        return int(self.version) if self.version else -1


@dataclass(frozen=True, kw_only=True)
class Scan:
    """All candidates by (name, version), in the order in which they are loaded: by name, the newest first.

    shares: the canary shares of each model, as its settings have them; None for settings that cannot be read.
    """

    candidates: dict[tuple[str, str], Candidate]
    shares: dict[str, dict[str, float] | None]


def scan(root: Path) -> Scan:
    """Look at the folder, or at the one file. Raises UsageError if it is neither."""
    try:
        if root.is_file():
            found = [_candidate(_name_of(root.resolve().parent), FIRST, root, root.resolve().parent, Settings())]
            return Scan(candidates={(c.name, c.version): c for c in found}, shares={})
        if not root.is_dir():
            raise UsageError(f"{root}: no such directory; give the one that `splitwire export --out` wrote")
        inside = root.resolve()
        models = [(_name_of(inside), root, False)] if _exists(root / BACK) else []
        models += [(path.name, path, True) for path in _folders(root)]
    except OSError as e:
        raise UsageError(f"{root} cannot be read: {e.strerror or e}") from e
    candidates: dict[tuple[str, str], Candidate] = {}
    shares: dict[str, dict[str, float] | None] = {}
    for name, folder, nested in models:
        try:
            found, settings = _model(name, folder, inside, nested)
        except OSError as e:
            found, settings = [_refused(name, folder, f"its folder cannot be read: {e.strerror or e}")], None
        for candidate in found:
            key = (candidate.name, candidate.version)
            if key in candidates:  # ROOT/back.onnx, and a folder in ROOT that has ROOT's name
                candidates[name, ""] = _refused(name, candidate.path, f"another model has the name {name}")
            else:
                candidates[key] = candidate
        if settings is None or settings.canary:
            shares[name] = None if settings is None else settings.canary
    return Scan(candidates=dict(sorted(candidates.items(), key=lambda i: (i[0][0], -i[1].number))), shares=shares)


def _model(name: str, folder: Path, inside: Path, nested: bool) -> tuple[list[Candidate], Settings | None]:
    """The versions of one model. nested: its folder lies in the repository's, and may hold version folders."""
    versions = [p for p in _folders(folder) if VERSION.fullmatch(p.name) and _exists(p / BACK)] if nested else []
    plain = _exists(folder / BACK)
    if not versions and not plain:
        return [], Settings()
    if nested and not NAME.fullmatch(name):
        why = "the name of its folder has other characters than A-Z a-z 0-9 . _ - or is longer than 128"
        return [_refused(printable(name[:128]), folder, why)], Settings()
    settings, problem = read_settings(folder / SETTINGS, inside)
    found = [_candidate(name, p.name, p / BACK, inside, settings, problem) for p in versions]
    if plain and not versions:
        found.append(_candidate(name, FIRST, folder / BACK, inside, settings, problem))
    elif plain:
        found.append(_refused(name, folder / BACK, f"{BACK} lies beside version folders; give it one of its own"))
    return found, None if problem else settings


def _candidate(name: str, version: str, path: Path, inside: Path, settings: Settings, problem: str = "") -> Candidate:
    chosen = settings.versions.get(version, VersionSettings())
    for file in _files(path):
        if not _exists(file):
            continue
        if not file.resolve().is_relative_to(inside):
            problem = problem or f"{file.name} is a link that leads out of the repository"
        elif not file.is_file():
            problem = problem or f"{file.name} is no file"
    return Candidate(name=name, version=version, path=path, files=files_of(path), problem=problem, settings=chosen)


def files_of(path: Path) -> Files:
    """The files of a version, by the path of its back.onnx, as they are now."""
    files = []
    for file in _files(path):
        with suppress(OSError):
            info = file.stat()
            files.append((file.name, info.st_ino, info.st_size, info.st_mtime_ns))
    return tuple(files)


def _files(path: Path) -> tuple[Path, Path]:
    return path, path.with_name(path.name + WEIGHTS)


def _refused(name: str, path: Path, why: str) -> Candidate:
    """What has no version, and cannot be loaded. It is listed with the reason."""
    return Candidate(name=name, version="", path=path, problem=why)


def _name_of(folder: Path) -> str:
    return folder.name if NAME.fullmatch(folder.name) else "model"


def _exists(path: Path) -> bool:
    """Whether there is anything of that name, also a link that leads nowhere."""
    return path.is_symlink() or path.exists()


def _folders(folder: Path) -> Iterator[Path]:
    """The folders in a folder, sorted; not those that are hidden."""
    entries = []
    for i, path in enumerate(folder.iterdir()):
        if i == MOST_ENTRIES:
            raise UsageError(f"{folder} has more than {MOST_ENTRIES} entries; give the models a folder of their own")
        entries.append(path)
    return (path for path in sorted(entries) if not path.name.startswith(".") and path.is_dir())
