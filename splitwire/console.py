"""What every command shares: results on stdout, progress on stderr, errors as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from rich.table import Table

ProgressFn = Callable[[str, int, int | None], None]
"""progress(stage, done, total): called by long work; `total` None while unknown. The rooms call it."""

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_wide(table: Table, width: int) -> None:
    """On stdout; in a file or a pipe, which has no width of its own, over so many columns."""
    (out if out.is_terminal else Console(file=out.file, width=width, highlight=False)).print(table)


def print_json(value: object) -> None:
    """One JSON document on stdout, for `--json`."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


class Bar:
    """A ProgressFn that draws."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int | None) -> None:
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
    """A rich progress bar on stderr with one line per stage; silent when stderr is not a terminal or not enabled."""
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not (enabled and err.is_terminal), transient=True) as bar:
        yield Bar(bar)
