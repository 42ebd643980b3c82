"""The work of `splitwire edge run`: it runs one picture after the other and prints each result at once."""

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
from splitwire.codec.preprocessing import opened, upright
from splitwire.codec.profile import Preprocessing
from splitwire.codec.shared.files import write_atomically
from splitwire.codec.shared.pictures import SUFFIXES
from splitwire.codec.shared.progress import ProgressFn
from splitwire.console import err, progress_bar
from splitwire.runtime_edge.drawing import draw
from splitwire.runtime_edge.findings import Findings, Size
from splitwire.runtime_edge.graph import Input
from splitwire.runtime_edge.results import SplitResult
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.waiting import patiently

from .link import reason
from .output import STAGES, Output, Row, Summary, on_one_line

KEPT_SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})
"""--save keeps these file types; a picture of another type is saved as .png."""
JPEG_QUALITY = 92


@dataclass(kw_only=True)
class Job:
    """Runs pictures one after the other and prints each result at once.

    how: preprocessing of the pair. wait_s: seconds to wait for a server that is away. repeat: runs per picture.
    saver: None to draw nothing. progress: whether to show progress. rows, skipped: results and skipped pictures so far.
    """

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
        """Run all pictures. After an error or Ctrl-C it prints the summary, also of no picture, then raises again.

        Raises UsageError if no file can be read as a picture.
        """
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
        except NonFiniteFeatures as e:  # caused by this picture; others can work
            self._skip(path, f"{path}: {e}")
            return
        findings = self.session.find(results[-1], size=size, task=self.task, top=self.top, min_score=self.min_score)
        saved = None if self.saver is None else self.saver.save(path, findings)
        row = _row(path, findings, results, saved)
        self.rows.append(row)
        self.output.row(row)

    def _skip(self, path: Path, reason: str) -> None:
        self.skipped += 1
        self.output.skipped(path, reason)

    def _read(self, path: Path) -> tuple[Input, Size]:
        """The network's input, and the size of the picture. Boxes are in pixels of the picture."""
        with opened(path) as image:
            size: Size = upright(image, self.how).size
            return self.session.preprocess(image), size

    def _answer(self, x: Input, waiting: Callable[[bool], None]) -> SplitResult:
        """Run one picture. If the server is away, wait for it; print a line when the wait begins and when it ends.

        waiting: called with True when the wait begins, with False when it ends.
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
    """Draws findings on the pictures and saves them in a folder, by the names of the pictures.

    If a name is used already, a number is added. The constructor raises UsageError if the folder cannot be made, or if
    it holds the pictures themselves.
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

    def save(self, source: Path, findings: Findings) -> Path:
        """Draw and write one picture, and return its path. Raises DeviceError if it cannot be written."""
        target = self._folder / self._name(source)
        with opened(source) as image:
            drawn = draw(upright(image, self._how), findings)
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
    """The named files, and all picture files below the named folders, in order. Raises UsageError if there are none."""
    images: list[Path] = []
    for path in paths:
        try:
            if path.is_dir():
                images += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
                continue
        except OSError as e:
            raise UsageError(f"{on_one_line(str(path))}: cannot be read: {reason(e)}") from e
        images.append(path)  # an unreadable or missing file is reported when its turn comes
    if not images:
        names = on_one_line(", ".join(map(str, paths)))
        raise UsageError(f"no pictures in {names}; expected {', '.join(sorted(SUFFIXES))}")
    return images


def _waiting(progress: ProgressFn, done: int, total: int, begins: bool) -> None:
    """Show progress of the wait for a server; when the wait ends, show that of the pictures again."""
    progress("Waiting for the server", int(not begins), None if begins else 1)
    if not begins:
        progress("Pictures", done, total)


def _row(path: Path, findings: Findings, results: Sequence[SplitResult], saved: Path | None) -> Row:
    last = results[-1]
    return Row(
        image=path,
        findings=findings,
        op=last.op,
        frame_bytes=last.frame_bytes,
        bytes_sent=last.bytes_sent,
        bits_per_element=last.bits_per_element,
        ms={stage: statistics.median(getattr(r.timings, stage) for r in results) for stage in STAGES},
        provider=last.provider,
        saved=saved,
    )
