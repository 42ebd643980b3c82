"""What an unfinished evaluation has measured already, kept on disk batch by batch, so that it can go on after a kill.

One folder per evaluation in OUT/.partial, named by everything that its figures depend on: an evaluation of other data
or with other settings does not see it and does not disturb it. A batch is written under another name and renamed, so
that it is there as a whole or not at all.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Raw, Struct

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.files import write_atomically

FOLDER = ".partial"


class Sending(Struct, frozen=True, kw_only=True):
    """The bytes sent, and the nanoseconds of the encoder, for each image of a batch by one contender."""

    sent: tuple[int, ...]
    ns: tuple[int, ...]


class Batch(Struct, frozen=True, kw_only=True):
    """One batch, measured. images: positions in the data of those that could be read. skipped: (name, reason).

    sendings: by contender. outcomes: the task's for each image, by what was received; they stay encoded until one
    contender's are asked for, since those of detectors are large.
    """

    images: tuple[int, ...]
    skipped: tuple[tuple[str, str], ...]
    sendings: dict[str, Sending]
    outcomes: dict[str, Raw]

    def with_more(self, other: Batch) -> Batch:
        """This batch with the results of further contenders on the same images. other: with these."""
        return msgspec.structs.replace(
            self, sendings={**self.sendings, **other.sendings}, outcomes={**other.outcomes, **self.outcomes}
        )


class Store:
    """The finished batches of one evaluation in the folder `out`.

    key: everything that the figures depend on. Raises UsageError if the folder cannot be made or written to: now, not
    after the first batch.
    """

    def __init__(self, out: Path, *key: bytes | str) -> None:
        parts = [k if isinstance(k, bytes) else k.encode() for k in key]
        digest = hashlib.sha256(b"".join(hashlib.sha256(p).digest() for p in parts)).hexdigest()
        self._out = out
        self._created = [p for p in (out, *out.parents) if not p.exists()]
        self.folder = out / FOLDER / digest[:32]
        self._trying(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        self._trying(lambda: write_atomically(self.folder / "started", b""))

    def load(self, index: int) -> Batch | None:
        """A finished batch; None where it is not there, or damaged: it is then measured again."""
        try:
            return msgspec.msgpack.decode(self._path(index).read_bytes(), type=Batch)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    @property
    def empty(self) -> bool:
        """Whether no batch is finished."""
        return not any(self.folder.glob("[0-9]*.msgpack"))

    def save(self, index: int, batch: Batch) -> None:
        """Keep a batch. Raises UsageError if the disk does not take it; those before stay."""
        self._trying(lambda: write_atomically(self._path(index), msgspec.msgpack.encode(batch)))

    def remove(self) -> None:
        """Forget this evaluation; the folder of all of them goes with the last."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()

    def abandon(self) -> None:
        """After an error that starting again does not fix: as `remove`, and the folders made for it, if empty."""
        self.remove()
        for folder in self._created:
            with suppress(OSError):
                folder.rmdir()

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06}.msgpack"

    def _trying(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as e:
            raise UsageError(f"cannot write to {self._out}: {e.strerror or e}; name another folder with --out") from e
