"""Store the state of a calibration in a file in the output folder, to resume it after an interrupt.

The file belongs to one front graph, one list of inputs and one way to read them; any other calibration ignores it. It
is written under a temporary name and renamed. The longer a write takes, the fewer there are. The file is removed when
the pair is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from splitwire.codec.errors import SplitwireError
from splitwire.codec.shared.files import missing_folders

from .inputs import CalibrationInputs, Skipped

NAME = ".splitwire-calibration.npz"

INTERVAL_S = 30.0
"""Seconds between two checkpoints; a shorter calibration writes none."""

SHARE = 0.05
"""Largest share of the time for writing checkpoints; each has up to 512 MB, and the disk may be slow."""


class Checkpoint:
    """The state of one calibration in `folder`. As a context manager it removes the file, unless the run is
    interrupted.

    The file stays after an interrupt, lack of memory, or a crash: the user can start the same run again. It is removed
    after a SplitwireError: then the inputs or the network must change, and the key changes too.
    """

    def __init__(self, folder: Path, *key: bytes | str) -> None:
        """key: all that the result depends on."""
        self.path = folder / NAME
        self._unfinished = folder / f"{NAME}.tmp"
        parts = [k if isinstance(k, bytes) else k.encode() for k in key]
        self._key = hashlib.sha256(b"".join(hashlib.sha256(p).digest() for p in parts)).hexdigest()
        self._due = time.monotonic() + INTERVAL_S
        self._created: list[Path] = []

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, _: object) -> None:
        if isinstance(e, KeyboardInterrupt) and self.path.is_file():
            e.add_note(f"{self.path.parent} keeps the calibration so far, and the same command goes on with it")
        if e is None or isinstance(e, SplitwireError):
            with suppress(OSError):
                for path in (self.path, self._unfinished):
                    path.unlink(missing_ok=True)
                for folder in self._created:
                    folder.rmdir()  # fails if something else is in it

    def resume(self, state: Sequence[object], inputs: CalibrationInputs) -> int:
        """Set `state` and `inputs` to those of the interrupted run, and return how many inputs it had processed.

        Returns 0 if there is no file for this calibration.
        """
        if not self.path.is_file():
            return 0
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                head = json.loads(arrays["head"].tobytes())
                if head["key"] != self._key:
                    return 0
                attributes = [{k: _unpack(v, arrays) for k, v in part.items()} for part in head["state"]]
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error):
            # damaged: start again
            return 0
        for part, values in zip(state, attributes, strict=True):
            vars(part).update(values)
        inputs.skip_to(head["position"], [(i, Skipped(path=path, reason=why)) for i, path, why in head["skipped"]])
        return int(head["done"])

    def save_when_due(self, state: Sequence[object], inputs: CalibrationInputs, position: int, done: int) -> None:
        """Write the state if enough time has passed since the last write. A full disk is no error.

        position: in the source, after the items in `state`. done: number of processed inputs.
        """
        start = time.monotonic()
        if start < self._due:
            return
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        head = {
            "key": self._key,
            "position": position,
            "done": done,
            "skipped": [(i, s.path, s.reason) for i, s in inputs.skipped_before(position)],
            "state": [{k: _pack(v, arrays) for k, v in vars(part).items()} for part in state],
        }
        arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
        with suppress(OSError):
            self._write(arrays)
        now = time.monotonic()
        self._due = now + max(INTERVAL_S, (now - start) / SHARE)

    def _write(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self._created = self._created or missing_folders(self.path.parent)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._unfinished.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # no name is that of a parameter
            file.flush()
            os.fsync(file.fileno())
        self._unfinished.replace(self.path)


def _pack(value: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    """The value as JSON data, which keeps every float to the bit; arrays go into `arrays` under a name.

    Raises TypeError for types that no statistics should contain.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_pack(v, arrays) for v in value]
    if isinstance(value, np.ndarray):
        name = f"array{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, np.random.Generator):
        return {"generator": value.bit_generator.state}
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")


def _unpack(value: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, arrays) for v in value]
    if isinstance(value, dict) and "array" in value:
        return arrays[value["array"]]
    if isinstance(value, dict):
        generator = np.random.default_rng(0)
        generator.bit_generator.state = value["generator"]
        return generator
    return value
