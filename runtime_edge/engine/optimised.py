"""Optimised graphs for the CPU, kept in the cache folder: a restart does not optimise the same graph again.

ONNX Runtime's optimiser fuses nodes and lays weights out for the processor. Its result depends on the file, the version
of ONNX Runtime, the processor and one option of the session; a file's name in the cache is a hash of all four. A file
that is damaged, or that somebody else could have written, is not used, and is written again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from splitwire.codec.shared.cache import cache_folder, read_checked, write_checked

MIN_BYTES, MAX_BYTES = 1 << 18, 256 << 20
"""A smaller graph is optimised in less time than a file is checked; of a larger one, reading it twice takes longer."""
KEPT = 16
"""Graphs in the folder; the oldest are removed."""
FOLDER = "graphs"
CPU_FIELDS = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant")
"""The lines of /proc/cpuinfo that tell one kind of processor from another, on x86 and on ARM."""


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor and its instruction sets, in words that are equal exactly where the optimised graphs are."""
    lines = {platform.machine()}
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        lines.add(platform.processor())
    else:
        lines |= {line for line in text.splitlines() if line.partition(":")[0].strip() in CPU_FIELDS}
    return "\n".join(sorted(lines))


class OptimisedGraph:
    """The optimised form of one graph file on this machine.

    file: the path in the cache folder; None if the graph is not to be kept, or there is no cache folder.
    """

    def __init__(self, graph: Path, *, version: str, options: str = "", root: Path | None = None) -> None:
        """version: of ONNX Runtime. options: what else the result depends on. root: the cache folder; None: the
        usual one."""
        self.file: Path | None = None
        with suppress(OSError, RuntimeError):  # no such graph: opening it says so; no home folder: nothing is kept
            if MIN_BYTES <= graph.stat().st_size <= MAX_BYTES:
                digest = hashlib.sha256(f"{version}\n{options}\n{processor()}\n".encode())
                digest.update(graph.read_bytes())
                self.file = (root or cache_folder(os.environ)) / FOLDER / f"{digest.hexdigest()[:32]}.onnx"

    def read(self) -> bytes | None:
        """The optimised graph. None if it is not there, damaged, or not trusted."""
        return None if self.file is None else read_checked(self.file)

    def make(self, open_and_save: Callable[[Path | None], Any]) -> Any:
        """Open the original graph and keep what the optimiser makes of it.

        open_and_save: opens the session, and has ONNX Runtime write the optimised graph to the path, unless that is
        None. Returns the session. A folder that cannot be written is no error: nothing is kept.
        """
        if self.file is None:
            return open_and_save(None)
        scratch = self.file.with_name(f".{self.file.name}.{secrets.token_hex(8)}.tmp")
        try:
            scratch.parent.mkdir(parents=True, exist_ok=True)
            scratch.touch()
        except OSError:
            return open_and_save(None)
        try:
            session = open_and_save(scratch)
            with suppress(OSError):  # a full disk: the file is not replaced
                if body := scratch.read_bytes():
                    write_checked(self.file, body)
                    _remove_oldest(self.file.parent)
        finally:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
        return session


def _remove_oldest(folder: Path) -> None:
    """Keep the newest files only. Raises OSError."""
    files = sorted(folder.glob("*.onnx"), key=lambda file: file.stat().st_mtime)
    for file in files[:-KEPT]:
        file.unlink(missing_ok=True)
