"""The work of `splitwire edge run`: picture after picture through both halves, each said as soon as it is there."""

from __future__ import annotations

import errno
import functools
import io
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from splitwire.codec.errors import DeviceError, NonFiniteFeatures, SplitwireError, TransportError, UsageError
from splitwire.codec.files import write_atomically
from splitwire.codec.pictures import SUFFIXES
from splitwire.codec.preprocessing import opened, upright
from splitwire.codec.profile import Preprocessing
from splitwire.codec.progress import ProgressFn
from splitwire.console import err, progress_bar
from splitwire.runtime_edge.drawing import draw
from splitwire.runtime_edge.findings import Findings, Size
from splitwire.runtime_edge.graph import Input
from splitwire.runtime_edge.session import EdgeSession, SplitResult
from splitwire.runtime_edge.waiting import patiently

from .link import reason
from .output import STAGES, Output, Row, Summary, on_one_line

KEPT_SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})
"""Of pictures that --save writes; from any other a .png is made."""
JPEG_QUALITY = 92


@dataclass(kw_only=True)
class Job:
    """Pictures one after the other, each said as soon as it is there. rows, skipped: so far."""

    session: EdgeSession
    how: Preprocessing
    output: Output
    wait_s: float
    repeat: int
    task: str | None
    top: int
    min_score: float
    saver: Saver | None
    progress: bool
    op: str
    rows: list[Row] = field(default_factory=list)
    skipped: int = 0

    def run(self, paths: Sequence[Path]) -> None:
        """All of them. What was done, if only nothing, is summed up whatever ends it: the error, or KeyboardInterrupt,
        goes on after the summary."""
        try:
            self.session.warm_up()
            with progress_bar(self.progress) as progress:
                for done, path in enumerate(paths):
                    progress("Pictures", done, len(paths))
                    self._picture(path, functools.partial(_waiting, progress, done, len(paths)))
        except KeyboardInterrupt as e:
            self._sum_up(len(paths), "interrupted")
            e.add_note(f"{len(self.rows)} of {len(paths)} pictures are done, and printed")
            raise
        except SplitwireError as e:
            self._sum_up(len(paths), on_one_line(str(e)))
            raise
        self._sum_up(len(paths), None)
        if not self.rows:
            which = "the file cannot" if len(paths) == 1 else f"none of the {len(paths)} files can"
            raise UsageError(f"{which} be read as a picture")

    def _sum_up(self, total: int, stopped: str | None) -> None:
        remaining = total - len(self.rows) - self.skipped
        self.output.summary(
            Summary(
                rows=self.rows,
                skipped=self.skipped,
                remaining=remaining,
                stopped=stopped,
                op=self.op,
                task=self.task or self.session.profile.task or None,
            )
        )

    def _picture(self, path: Path, waiting: Callable[[bool], None]) -> None:
        try:
            x, size = self._read(path)
        except UsageError as e:
            self._skip(path, str(e))
            return
        try:
            results = [self._answer(x, waiting) for _ in range(self.repeat)]
        except NonFiniteFeatures as e:  # of this picture alone
            self._skip(path, f"{path}: {e}")
            return
        found = self.session.find(results[-1], size=size, task=self.task, top=self.top, min_score=self.min_score)
        saved = None if self.saver is None else self.saver.save(path, found)
        row = _row(path, found, results, saved)
        self.rows.append(row)
        self.output.row(row)

    def _skip(self, path: Path, reason: str) -> None:
        self.skipped += 1
        self.output.skipped(path, reason)

    def _read(self, path: Path) -> tuple[Input, Size]:
        """The network's input, and the size of the picture in whose pixels boxes are said."""
        with opened(path) as image:
            size: Size = upright(image, self.how).size
            return self.session.preprocess(image), size

    def _answer(self, x: Input, waiting: Callable[[bool], None]) -> SplitResult:
        """Of the server, which is waited for if it is away; with a line when that begins and when it is over.

        waiting: called with True when the wait begins, with False when it is over.
        """
        waited = False

        def say(e: TransportError) -> None:
            nonlocal waited
            if not waited:
                err.print(f"waiting up to {self.wait_s:g} s: {on_one_line(str(e))}", markup=False, soft_wrap=True)
                waiting(True)
            waited = True

        result = patiently(lambda: self.session.infer(x), wait_s=self.wait_s, on_wait=say)
        if waited:
            waiting(False)
            err.print("the server answers again; going on", markup=False)
        return result


class Saver:
    """Draws findings, into a folder: under the pictures' own names, with a number where a name is taken.

    Raises UsageError, before any work, if there cannot be such a folder, or a picture would be overwritten.
    """

    def __init__(self, folder: Path, sources: Sequence[Path], how: Preprocessing) -> None:
        self._folder = folder
        self._how = how
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            here = folder.resolve()
            if any(path.resolve().parent == here for path in sources):
                raise UsageError(f"--save {on_one_line(str(folder))}: the pictures are there; name another folder")
        except (OSError, ValueError) as e:
            raise UsageError(f"--save {on_one_line(str(folder))}: no such folder can be made: {reason(e)}") from e
        self._taken: set[str] = set()

    def save(self, source: Path, found: Findings) -> Path:
        """Draw and write one. Raises DeviceError if it cannot be written."""
        target = self._folder / self._name(source)
        with opened(source) as image:
            drawn = draw(upright(image, self._how), found)
        data = io.BytesIO()
        drawn.save(data, "PNG" if target.suffix.lower() == ".png" else "JPEG", quality=JPEG_QUALITY)
        try:
            write_atomically(target, data.getvalue())
        except OSError as e:
            raise DeviceError(f"{on_one_line(str(target))} cannot be written: {reason(e)}") from e
        return target

    def _name(self, source: Path) -> str:
        name = source.name if source.suffix.lower() in KEPT_SUFFIXES else f"{source.stem}.png"
        stem, suffix = Path(name).stem, Path(name).suffix
        number = 1
        while name.lower() in self._taken:
            number += 1
            name = f"{stem}-{number}{suffix}"
        self._taken.add(name.lower())
        return name


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the picture files in and under the folders named, in order. Raises UsageError for none."""
    found: list[Path] = []
    for path in paths:
        try:
            if path.is_dir():
                found += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
                continue
        except OSError as e:
            raise UsageError(f"{on_one_line(str(path))}: cannot be read: {reason(e)}") from e
        found.append(path)  # unreadable or missing: reported with its reason when its turn comes
    if not found:
        names = on_one_line(", ".join(map(str, paths)))
        raise UsageError(f"no pictures in {names}; expected {', '.join(sorted(SUFFIXES))}")
    return found


def _waiting(progress: ProgressFn, done: int, total: int, begins: bool) -> None:
    """Progress while a server is away; afterwards that of the pictures again."""
    progress("Waiting for the server", int(not begins), None if begins else 1)
    if not begins:
        progress("Pictures", done, total)


def _row(path: Path, found: Findings, results: Sequence[SplitResult], saved: Path | None) -> Row:
    last = results[-1]
    return Row(
        image=path,
        found=found,
        op=last.op,
        frame_bytes=last.frame_bytes,
        bytes_sent=last.bytes_sent,
        bits_per_element=last.bits_per_element,
        ms={stage: statistics.median(getattr(r.timings, stage) for r in results) for stage in STAGES},
        saved=saved,
    )
