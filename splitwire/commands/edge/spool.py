"""`splitwire edge spool`: list, export, drop, check, repair, stats. It asks the process that has the spool, if any."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from splitwire.codec.errors import SpoolError, UsageError
from splitwire.codec.shared.files import write_atomically
from splitwire.commands.options import seconds
from splitwire.console import out, print_json, print_wide

if TYPE_CHECKING:
    from splitwire.runtime_edge.spool.maintenance import Answer, Entry, Request

    Kind = TypeVar("Kind", bound=Answer)

STRUCTURE_BYTES = 64 << 20
"""Of a running process, SQLite's own check is asked for up to this size: frames of the camera wait meanwhile."""

app = typer.Typer(help="The frames that wait on disk; works while a runtime runs.", no_args_is_help=True)

Path_ = Annotated[Path, typer.Argument(metavar="SPOOL", help="The spool's file, as in the runtime's configuration.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DeadOnly = Annotated[bool, typer.Option("--dead", help="Those that the server refused, not those that wait.")]


@dataclasses.dataclass(frozen=True)
class Access:
    """A spool, here or in another process (running). ask: does what a request asks."""

    ask: Callable[[Request], Answer]
    running: bool


@contextmanager
def _open(path: Path) -> Iterator[Access]:
    """Ask the process that has the spool; open the file if none has. Raises SpoolError, UsageError."""
    from splitwire.runtime_edge.spool.admin import Remote
    from splitwire.runtime_edge.spool.maintenance import answer
    from splitwire.runtime_edge.spool.spool import SOCKET, Spool

    remote: Remote | None = None
    with suppress(ConnectionError, FileNotFoundError):
        remote = Remote(path.with_name(path.name + SOCKET))
    if remote is not None:
        try:
            yield Access(remote.ask, running=True)
        finally:
            remote.close()
        return
    if not path.exists() and not path.with_name(path.name + ".salvaged").exists():
        raise UsageError(f"there is no spool {path}")
    with Spool(path, max_bytes=None, max_age_s=None, admin=False, on_event=lambda event: _note(event.text)) as spool:
        yield Access(lambda request: answer(spool, request), running=False)


def _note(text: str) -> None:
    from splitwire.console import err

    err.print(f"note: {text}", markup=False, soft_wrap=True)


def _ask(access: Access, request: Request, kind: type[Kind]) -> Kind:
    """The answer of a kind. Raises SpoolError, UsageError with the text of a failure."""
    from splitwire.runtime_edge.spool.maintenance import Failed

    answer = access.ask(request)
    if isinstance(answer, Failed):
        raise (UsageError if answer.code == UsageError.code else SpoolError)(answer.message)
    if not isinstance(answer, kind):
        raise SpoolError(f"an answer of another kind: {type(answer).__name__}")
    return answer


def _entries(access: Access, *, dead: bool, frames: bool = False, limit: int | None = None) -> Iterator[Entry]:
    from splitwire.runtime_edge.spool.maintenance import MOST, List, Listed

    after, left = 0, limit
    while left is None or left > 0:
        size = MOST if left is None else min(left, MOST)
        entries = _ask(access, List(after=after, limit=size, dead=dead, frames=frames), Listed).entries
        if not entries:
            return
        yield from entries
        after = entries[-1].id
        left = None if left is None else left - len(entries)


def _document(entry: Entry) -> dict[str, object]:
    document: dict[str, object] = {
        "id": entry.id, "key": entry.key, "bytes": entry.size, "captured": entry.captured, "age_s": entry.age_s
    }  # fmt: skip
    return document | ({"code": entry.code, "reason": entry.reason} if entry.code else {})


def _time(wall: float) -> str:
    try:
        return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return "?"


@app.command("list")
def list_(
    path: Path_,
    dead: DeadOnly = False,
    limit: Annotated[int, typer.Option(min=1, help="Most frames to show, the oldest first.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON Lines, one per frame.")] = False,
) -> None:
    """List the oldest frames."""
    with _open(path) as access:
        entries = list(_entries(access, dead=dead, limit=limit))
    if as_json:
        for entry in entries:
            print_json(_document(entry), indent=None)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("id", "bytes", "captured (UTC)", "age, s", *(("reason",) if dead else ()), "key"):
        table.add_column(heading, justify="right" if heading in ("id", "bytes", "age, s") else "left")
    for e in entries:
        reason = (f"{e.code}: {e.reason}",) if dead else ()
        table.add_row(str(e.id), f"{e.size:,}", _time(e.captured), f"{e.age_s:,.0f}", *reason, e.key)
    print_wide(table, 120, optional=("key",)) if entries else out.print("no frames")


@app.command()
def export(
    path: Path_,
    to: Annotated[Path, typer.Option("--out", help="Folder to write: a file per frame, and index.jsonl.")],
    dead: DeadOnly = False,
    as_json: AsJson = False,
) -> None:
    """Write the frames to files. They stay in the spool."""
    import msgspec

    index = to / "index.jsonl"
    if index.exists():
        raise UsageError(f"{to} has an export already; name another folder")
    lines, count, size = [], 0, 0
    with _open(path) as access:
        for entry in _entries(access, dead=dead, frames=True):
            document = _document(entry)
            if entry.frame is not None:
                document["file"] = f"{entry.id:010}.frame"
                write_atomically(to / f"{entry.id:010}.frame", entry.frame)
                count, size = count + 1, size + len(entry.frame)
            lines.append(msgspec.json.encode(document) + b"\n")
    write_atomically(index, b"".join(lines))
    if as_json:
        print_json({"folder": str(to), "frames": count, "bytes": size})
    else:
        out.print(f"{count:,} frames, {size:,} bytes: {to}", markup=False, soft_wrap=True)


@app.command()
def drop(
    path: Path_,
    ids: Annotated[list[int] | None, typer.Option("--id", help="Id of a frame; repeatable.")] = None,
    older_than: Annotated[str | None, typer.Option(help="Frames that were stored this long ago, as 2h.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    dead: DeadOnly = False,
    as_json: AsJson = False,
) -> None:
    """Remove frames without sending them."""
    from splitwire.runtime_edge.spool.maintenance import MOST, Drop, Dropped

    if sum((bool(ids), older_than is not None, everything)) != 1:
        raise UsageError("name what to drop: one of --id, --older-than and --all")
    age = None if older_than is None else seconds("--older-than", older_than)
    count = 0
    with _open(path) as access:
        rest = list(ids or [])
        while True:
            request = Drop(ids=rest[:MOST] if ids else None, older_than_s=age, dead=dead)
            dropped = _ask(access, request, Dropped)
            count, rest = count + dropped.count, rest[MOST:]
            if not (rest if ids else dropped.more):
                break
    print_json({"dropped": count}) if as_json else out.print(f"{count:,} frames dropped")


@app.command()
def check(path: Path_, as_json: AsJson = False) -> None:
    """Verify the checksum of each frame, and the database. Exit status 1 if something is damaged."""
    from splitwire.runtime_edge.spool.maintenance import Check, Checked, Counted, Stats

    checked, damaged = 0, list[int]()
    with _open(path) as access:
        for dead in (False, True):
            last: int | None = 0
            while last is not None:
                part = _ask(access, Check(after=last, dead=dead), Checked)
                checked, last = checked + part.checked, part.last
                damaged += part.damaged
        problems: list[str] | None = None
        size = _ask(access, Stats(), Counted).stats.file_bytes
        if not access.running or size <= STRUCTURE_BYTES:
            problems = _ask(access, Check(structure=True), Checked).problems
    if as_json:
        print_json({"frames": checked, "damaged": damaged, "problems": problems})
    else:
        which = f": {', '.join(map(str, damaged))}" if damaged else ""
        out.print(f"{checked:,} frames read, {len(damaged):,} damaged{which}", soft_wrap=True)
        if problems is None:
            out.print("The database itself is not checked while a runtime has it and it is over 64 MB.")
        for problem in problems or ():
            out.print(problem, markup=False, soft_wrap=True)
    if damaged or problems:
        raise SpoolError(f"the spool {path} is damaged; run: splitwire edge spool repair {path}")


@app.command()
def repair(path: Path_, as_json: AsJson = False) -> None:
    """Make a new database of everything readable, and set the old one aside."""
    from splitwire.runtime_edge.spool.maintenance import Repair, Repaired

    with _open(path) as access:
        answer = _ask(access, Repair(), Repaired)
    if as_json:
        print_json({"frames": answer.frames, "aside": answer.aside})
    else:
        out.print(f"{answer.frames:,} frames wait; the old file is {answer.aside}", markup=False, soft_wrap=True)


@app.command()
def stats(path: Path_, as_json: AsJson = False) -> None:
    """Show what waits, its age, the limits and the counts since the spool was opened."""
    from splitwire.runtime_edge.spool.maintenance import Counted, Stats

    with _open(path) as access:
        document = dataclasses.asdict(_ask(access, Stats(), Counted).stats) | {"running": access.running}
    if as_json:
        print_json(document)
        return
    counts = document.pop("counts")
    for name, value in [*document.items(), *((f"{name} since opening", value) for name, value in counts.items())]:
        shown = f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
        out.print(f"{name.replace('_', ' ')}: {shown}", markup=False, soft_wrap=True)
