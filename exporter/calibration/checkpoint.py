"""An interrupted calibration goes on where it was: its state, in a file beside the future pair.

The file belongs to one front graph, one list of inputs and one way to read them; for anything else it does not exist.
It is written under another name and renamed, the longer it takes the more rarely, and removed when the pair is written.
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
from splitwire.codec.files import missing_folders

from .inputs import CalibrationInputs, Skipped

NAME = ".splitwire-calibration.npz"

INTERVAL_S = 30.0
"""Seconds of calibration between two checkpoints; a shorter pass writes none."""

SHARE = 0.05
"""Share of the time that writing checkpoints may take: up to 512 MB each, on a slow disk."""


class Checkpoint:
    """The state of one calibration in `folder`; as a context manager, gone at the end unless the run was interrupted.

    It stays after what the user can do nothing about but start again: an interrupt, no memory, a crash. After an error
    of ours the inputs or the network must change, and with them the key.
    """

    def __init__(self, folder: Path, *key: bytes | str) -> None:
        """key: everything that the result depends on."""
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
                    folder.rmdir()  # only if nothing else is in it

    def resume(self, state: Sequence[object], inputs: CalibrationInputs) -> int:
        """Bring `state` and `inputs` to where the interrupted run was; returns how many inputs it had done, 0 if there
        is none, or it was another one."""
        if not self.path.is_file():
            return 0
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                head = json.loads(arrays["head"].tobytes())
                if head["key"] != self._key:
                    return 0
                attributes = [{k: _unpack(v, arrays) for k, v in one.items()} for one in head["state"]]
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error):
            # damaged: begin again
            return 0
        for one, values in zip(state, attributes, strict=True):
            vars(one).update(values)
        inputs.skip_to(head["position"], [(i, Skipped(path=path, reason=why)) for i, path, why in head["skipped"]])
        return int(head["done"])

    def save_when_due(self, state: Sequence[object], inputs: CalibrationInputs, position: int, done: int) -> None:
        """Write the state, if the last time is long enough ago. position: in the source, behind what `state` has seen.

        A disk that cannot take it stops nothing.
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
            "state": [{k: _pack(v, arrays) for k, v in vars(one).items()} for one in state],
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
    """As JSON, which keeps every float to the bit; arrays are put aside under a name.

    Raises TypeError for what no statistics should hold.
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
