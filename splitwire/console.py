r"""Output that all commands share: results on stdout, progress on stderr, errors in one line.

Printing never fails because of a character. If the encoding of a stream lacks it, a plain character replaces it (`x`
for `×`), or its code (`\xe9`). A table shows as many columns as fit.
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

from splitwire.codec.shared.text import printable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from splitwire.heartbeat import Heartbeat

PLAIN = {
    "·": "|", "•": "*", "–": "-", "—": "-", "−": "-", "…": "...", "×": "x", "→": "->", "←": "<-", "µ": "u", "μ": "u",
    "≤": "<=", "≥": ">=", "±": "+-", "°": " deg", "⁹": "^9", "²": "^2", "“": '"', "”": '"', "„": '"', "‘": "'",
    "’": "'", "█": "#", "✓": "x",
    **{chr(c): "+" for c in range(0x2500, 0x2580)},  # corners and crossings of boxes; the lines follow
    **dict.fromkeys("─━═╌╍┄┅┈┉╴╶╸╺", "-"),
    **dict.fromkeys("│┃║╎╏┆┇┊┋╵╷╹╻", "|"),
}  # fmt: skip
"""Replacements for characters that the encoding of a stream lacks. Any other character is replaced by its code."""

NARROW = 12
WIDE_WORD = 20
"""Text in a column is wrapped to at least NARROW characters, or to the length of its longest word, but at most
WIDE_WORD."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """The error handler of the streams: ASCII in place of characters that cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = printable(error.object[error.start : error.end])
    plain = "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return plain, error.end


HANDLER = "splitwire.plain"
codecs.register_error(HANDLER, _plain)


class Unwritable(OSError):
    """The output could not be written."""


@contextmanager
def written() -> Iterator[None]:
    """Turn an OSError in the block into Unwritable. BrokenPipeError passes unchanged."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as e:
        raise Unwritable(e.errno, f"the output cannot be written: {e.strerror or e}") from e


class Console(RichConsole):
    """A console that replaces characters before the layout, so that columns stay in line."""

    @property
    def encoding(self) -> str:
        """What rich checks before it draws lines. It may use any character; `_plain` replaces what the stream lacks."""
        return "utf-8"

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does. Raises Unwritable."""
        with written():
            super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Replace the characters that the stream lacks. rich calls this before it measures a text."""
        encoding = getattr(self.file, "encoding", None) or "utf-8"
        return super().render_str(text.encode(encoding, HANDLER).decode(encoding), **options)


out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def prepare_streams() -> None:
    """Make stdout and stderr accept every character."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=HANDLER)


def print_wide(table: Table, width: int, optional: Sequence[str] = ()) -> None:
    """Call print_table, with `width` columns in a file or a pipe."""
    print_table(table, optional, width=width)


def print_table(table: Table, optional: Sequence[str] = (), *, width: int | None = None, on: Console = out) -> None:
    """Print the columns of `table` that fit, and a line that names the others.

    optional: headings of the columns to leave out first, in this order. After them the last column is left out, then
    the one before it; the first column always stays. width: columns in a file or a pipe, unless COLUMNS is set.
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
    """A copy of the table without the columns that do not fit, and the headings of those columns."""
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
    r"""Return `value`, of any type that msgspec encodes, as JSON without a final newline. indent: None for one line.

    A file name that is not UTF-8 keeps its surrogate escapes (`"caf\udce9.png"`), as in Python's json module.
    `os.fsencode` turns it into the bytes of the name.
    """
    try:
        data = msgspec.json.encode(value)
    except UnicodeEncodeError:
        separators = (",", ":") if indent is None else None
        return json.dumps(_finite(msgspec.to_builtins(value)), indent=indent, separators=separators, allow_nan=False)
    return (data if indent is None else msgspec.json.format(data, indent=indent)).decode()


def _finite(value: object) -> object:
    """The value with None for NaN and infinities, as msgspec writes them."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print one JSON document on stdout, for `--json`. If indent is None, print one line of JSON Lines and flush it.

    If the encoding is not UTF-8, characters beyond ASCII are escaped; that is valid JSON too.
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
    """Turn Ctrl-C in the block into one line and exit status 130.

    kept: says what is kept and how to continue. A note of the KeyboardInterrupt replaces it.
    """
    try:
        yield
    except KeyboardInterrupt as e:
        notes = getattr(e, "__notes__", ())
        err.print(f"interrupted; {'; '.join(notes) or kept}", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None


class Bar:
    """A ProgressFn that draws bars on a terminal, and writes lines through a Heartbeat elsewhere."""

    def __init__(self, bar: Progress, lines: Heartbeat | None = None) -> None:
        self._bar = bar
        self._lines = lines
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if self._lines is not None:
            self._lines(stage, done, total)
        if stage not in self._tasks:
            # work that was done before the stage began must not count in its speed
            self._tasks[stage] = self._bar.add_task(stage, total=total, completed=done)
        self._bar.update(self._tasks[stage], completed=done, total=total)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Remove the bars from the screen while the block asks a question."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


@contextmanager
def progress_bar(enabled: bool = True) -> Iterator[Bar]:
    """Show progress on stderr: bars on a terminal, else a line about every ten seconds; nothing if not enabled."""
    from splitwire.heartbeat import Heartbeat

    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    drawn = enabled and err.is_terminal
    with Progress(*columns, console=err, disable=not drawn, transient=True) as bar:
        if drawn or not enabled:
            yield Bar(bar)
            return
        with Heartbeat(lambda line: err.print(line, markup=False, soft_wrap=True)) as lines:
            yield Bar(bar, lines)
