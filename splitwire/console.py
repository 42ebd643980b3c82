r"""What every command shares: results on stdout, progress on stderr, errors as one line.

Nothing that is printed can fail for its characters: a stream whose encoding lacks one gets a plain one instead (`x` for
`×`), or its code (`\xe9`), so that nothing is lost. Tables have as many columns as fit.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import typer
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from splitwire.codec.text import printable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from splitwire.heartbeat import Heartbeat

PLAIN = {
    "·": "|", "•": "*", "–": "-", "—": "-", "−": "-", "…": "...", "×": "x", "→": "->", "←": "<-", "µ": "u", "μ": "u",
    "≤": "<=", "≥": ">=", "±": "+-", "°": " deg", "⁹": "^9", "²": "^2", "“": '"', "”": '"', "„": '"', "‘": "'",
    "’": "'", "█": "#", "✓": "x",
    **{chr(c): "+" for c in range(0x2500, 0x2580)},  # corners and crossings of boxes, but for these
    **dict.fromkeys("─━═╌╍┄┅┈┉╴╶╸╺", "-"),
    **dict.fromkeys("│┃║╎╏┆┇┊┋╵╷╹╻", "|"),
}  # fmt: skip
"""What stands for a character that the encoding of a stream lacks; for any other its code."""

NARROW = 12
WIDE_WORD = 20
"""Columns of text are wrapped, but to no fewer characters than these, or their longest word up to the second."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """The error handler of our streams: ASCII in place of what cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = printable(error.object[error.start : error.end])
    plain = "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return plain, error.end


HANDLER = "splitwire.plain"
codecs.register_error(HANDLER, _plain)


class Unwritable(OSError):
    """The output could not be written; its text says so."""


@contextmanager
def written() -> Iterator[None]:
    """Raises Unwritable for an OSError that is no closed pipe."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as e:
        raise Unwritable(e.errno, f"the output cannot be written: {e.strerror or e}") from e


class Console(RichConsole):
    """A console that lays out what the stream can show, so that columns stay in line."""

    @property
    def encoding(self) -> str:
        """What rich asks before it draws lines: it may use any, `_plain` replaces them one by one."""
        return "utf-8"

    def print(self, *objects: Any, **options: Any) -> None:
        """Raises Unwritable."""
        with written():
            super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every text passes here before it is measured."""
        encoding = getattr(self.file, "encoding", None) or "utf-8"
        return super().render_str(text.encode(encoding, HANDLER).decode(encoding), **options)


out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def prepare_streams() -> None:
    """Let stdout and stderr take every character."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=HANDLER)


def print_wide(table: Table, width: int, optional: Sequence[str] = ()) -> None:
    """The same as print_table, with `width` columns in a file or a pipe."""
    print_table(table, optional, width=width)


def print_table(table: Table, optional: Sequence[str] = (), *, width: int | None = None, on: Console = out) -> None:
    """The columns of `table` that fit, and a line that names the others.

    optional: headings of columns that go first, in this order; then the last go, and never the first. width: in a file
    or a pipe, which has none of its own, unless COLUMNS is set.
    """
    fixed = on.is_terminal or width is None or os.environ.get("COLUMNS", "").isdigit()
    console = Console(file=on.file, width=on.width if fixed else width, highlight=False)
    if on.is_terminal:
        console = on
    shown, missing = _fitted(table, optional, console)
    caption, shown.caption = shown.caption, None
    console.print(shown)
    if caption:
        console.print(caption, style="table.caption")
    if missing:
        text = f"not shown in {console.width} columns: {', '.join(missing)}; --json has all"
        console.print(text, style="table.caption", markup=False)


def _fitted(table: Table, optional: Sequence[str], console: Console) -> tuple[Table, list[str]]:
    """A copy without the columns that do not fit, and their headings."""
    import copy
    import dataclasses

    from rich.measure import Measurement
    from rich.padding import Padding

    _, right, _, left = Padding.unpack(table.padding)

    def need(column: int) -> int:
        of = table.columns[column]
        sizes = [Measurement.get(console, console.options.update(width=10_000), c) for c in (of.header, *of.cells)]
        most = max(s.maximum for s in sizes)
        return most if of.no_wrap else min(most, max(NARROW, min(WIDE_WORD, max(s.minimum for s in sizes))))

    needs = [need(i) for i in range(len(table.columns))]

    def wide(kept: Sequence[int]) -> int:
        between = 0 if table.box is None else len(kept) - 1 + 2 * table.show_edge
        return sum(needs[i] + left + right for i in kept) + between - (0 if table.pad_edge else left + right)

    kept = list(range(len(table.columns)))
    headings = [str(c.header) for c in table.columns]
    first_to_go = [headings.index(name) for name in optional if name in headings]
    order = [*first_to_go, *(i for i in reversed(kept) if i not in first_to_go and i > 0)]
    missing = []
    while wide(kept) > console.width and order:
        kept.remove(order[0])
        missing.append(headings[order.pop(0)])
    shown = copy.copy(table)
    shown.columns = [dataclasses.replace(table.columns[i], _index=k) for k, i in enumerate(kept)]
    for i, column in zip(kept, shown.columns, strict=True):
        if not column.no_wrap:
            column.min_width = needs[i]
        if wide(kept) > console.width and column is shown.columns[0]:
            column.no_wrap, column.min_width, column.overflow = False, None, "fold"
    return shown, missing


def json_text(value: object, *, indent: int | None = 2) -> str:
    r"""`value`, anything msgspec encodes, as JSON, without the final newline. In one line where indent is None.

    A file name that is not UTF-8 keeps its surrogate escapes (`"caf\udce9.png"`), as Python's json writes and reads
    them: `os.fsencode` gives its bytes back.
    """
    try:
        data = msgspec.json.encode(value)
    except UnicodeEncodeError:
        separators = (",", ":") if indent is None else None
        return json.dumps(_finite(msgspec.to_builtins(value)), indent=indent, separators=separators, allow_nan=False)
    return (data if indent is None else msgspec.json.format(data, indent=indent)).decode()


def _finite(value: object) -> object:
    """NaN and infinities as null, the way msgspec writes them."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_json(value: object, *, indent: int | None = 2) -> None:
    """One JSON document on stdout, for `--json`; one line of JSON Lines, at once, where indent is None.

    In an encoding that is not UTF-8, characters beyond ASCII are escaped, which is JSON too.
    """
    text = json_text(value, indent=indent)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if not encoding.lower().replace("_", "-").startswith("utf"):
        text = "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)
    with written():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


@contextmanager
def interruptible(kept: str) -> Iterator[None]:
    """Ctrl-C becomes one line, and status 130.

    kept: what is kept and how to go on, unless the work that was interrupted says it in a note of its exception.
    """
    try:
        yield
    except KeyboardInterrupt as e:
        notes = getattr(e, "__notes__", ())
        err.print(f"interrupted; {'; '.join(notes) or kept}", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None


class Bar:
    """A ProgressFn that draws on a terminal; elsewhere one that writes a line now and then."""

    def __init__(self, bar: Progress, lines: Heartbeat | None = None) -> None:
        self._bar = bar
        self._lines = lines
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if self._lines is not None:
            self._lines(stage, done, total)
        if stage not in self._tasks:
            # what is done at first was not done now, and says nothing of the pace
            self._tasks[stage] = self._bar.add_task(stage, total=total, completed=done)
        self._bar.update(self._tasks[stage], completed=done, total=total)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Off the screen, so that a question can be asked."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


@contextmanager
def progress_bar(enabled: bool = True) -> Iterator[Bar]:
    """On stderr: bars on a terminal, elsewhere a line about every ten seconds; silent if not enabled."""
    from splitwire.heartbeat import Heartbeat

    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    drawn = enabled and err.is_terminal
    with Progress(*columns, console=err, disable=not drawn, transient=True) as bar:
        if drawn or not enabled:
            yield Bar(bar)
            return
        with Heartbeat(lambda line: err.print(line, markup=False, soft_wrap=True)) as lines:
            yield Bar(bar, lines)
