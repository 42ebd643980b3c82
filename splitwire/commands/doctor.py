"""`splitwire doctor`: looks at this device and its server, and says what to do where something is not well."""

from __future__ import annotations

import os
import ssl
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.text import printable
from splitwire.console import interruptible, out, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from splitwire.runtime_edge.doctor import Report

# Nothing here may import NumPy, Numba or ONNX Runtime: one that does not fit the processor would end the command.

STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
VERDICT_WIDTH, NAME_WIDTH = 9, 18
MAX_WIDTH = 100
MAX_TOKEN_FILE = 1 << 16


def doctor(
    front: Annotated[Path | None, typer.Option(help="The front.onnx to time; also tells which pair is yours.")] = None,
    url: Annotated[str | None, typer.Option(help="The server to look at, http://host:port.")] = None,
    link: Annotated[
        str | None, typer.Option(help="Bandwidth upwards, as 250kbit or 5mbit, for the frames per second.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Token for the server; better in SPLITWIRE_TOKEN or in a file.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File that holds the token.")] = None,
    ca: Annotated[Path | None, typer.Option(help="Certificates (PEM) to trust, for an https:// server.")] = None,
    provider: Annotated[str | None, typer.Option(help="Execution provider of the front, as CPU or CUDA.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the front.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a page.")] = False,
) -> None:
    """Look at this device and its server: what is well, what is not, and what to do. Status 1 if a check failed."""
    from splitwire.runtime_edge.doctor import Questions, examine

    questions = Questions(
        front=front,
        url=url,
        token=_token(token, token_file),
        context=_context(ca),
        bits_per_second=None if link is None else bits_per_second(link),
        threads=threads,
        provider=provider,
    )
    with interruptible("the checks were not finished"), progress_bar(not as_json) as progress:
        report = examine(questions, progress)
    if as_json:
        print_json(document(report))
    else:
        _print(report)
    raise typer.Exit(report.exit_status)


def bits_per_second(text: str) -> float:
    """Bits per second from 250kbit, 5Mbit, 1gbit. Raises UsageError."""
    number = text.strip().lower().removesuffix("/s").removesuffix("ps").removesuffix("s").removesuffix("bit")
    scale = {"k": 1e3, "m": 1e6, "g": 1e9}.get(number[-1:], 1.0)
    try:
        rate = float(number.rstrip("kmg").strip()) * scale
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1e15 or "bit" not in text.lower():
        raise UsageError(f"--link takes a bandwidth, as in 250kbit, 5mbit or 1gbit; got {printable(text)!r}")
    return rate


def document(report: Report) -> dict[str, object]:
    """What --json prints."""
    counts = {verdict: sum(check.verdict == verdict for check in report.checks) for verdict in STYLES}
    return {
        "exit_status": report.exit_status,
        "counts": counts,
        "checks": msgspec.to_builtins(report.checks),
        "predictions": msgspec.to_builtins(report.predictions),
    }


def _token(token: str | None, file: Path | None) -> str | None:
    if token is not None and file is not None:
        raise UsageError("--token and --token-file are two ways to say one thing; give one of them")
    if file is not None:
        try:
            text = file.read_bytes()[:MAX_TOKEN_FILE].decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f"--token-file {printable(str(file))}: no token can be read") from e
    else:
        text = os.environ.get("SPLITWIRE_TOKEN", "") if token is None else token
    if not all("!" <= c <= "~" for c in text):
        raise UsageError("a token must be printable ASCII without spaces")
    return text or None


def _context(ca: Path | None) -> ssl.SSLContext | None:
    if ca is None:
        return None
    try:
        return ssl.create_default_context(cafile=str(ca))
    except (OSError, ValueError) as e:  # an SSLError is an OSError
        raise UsageError(f"--ca {printable(str(ca))}: no certificates in PEM") from e


def _print(report: Report) -> None:
    from rich.text import Text

    width = min(out.width, MAX_WIDTH)
    indent = VERDICT_WIDTH + NAME_WIDTH if width >= 60 else VERDICT_WIDTH
    part = None
    for check in report.checks:
        if check.part != part:
            part = check.part
            out.print(Text(part.capitalize(), style="bold"))
        head = f"{check.verdict:<{VERDICT_WIDTH}}{check.name:<{NAME_WIDTH}}"
        lines = textwrap.wrap(printable(check.text), width - indent) or [""]
        if indent == VERDICT_WIDTH:  # a narrow screen: the name has a line of its own
            lines = ["", *lines]
        first = Text(head)
        first.stylize(STYLES[check.verdict], 0, VERDICT_WIDTH)
        first.append(lines[0])
        first.rstrip()
        out.print(first, soft_wrap=True)
        for line in lines[1:]:
            out.print(Text(" " * indent + line), soft_wrap=True)
        for i, line in enumerate(textwrap.wrap(printable(check.remedy), width - indent - 2)):
            out.print(Text(" " * indent + ("  " if i else "→ ") + line, style="italic"), soft_wrap=True)
    if report.predictions:
        out.print()
        _print_predictions(report)
    counts = [
        f"{n} {verdict}"
        for verdict in STYLES
        if (n := sum(check.verdict == verdict for check in report.checks)) or verdict == "failed"
    ]
    out.print()
    for line in textwrap.wrap(f"{len(report.checks)} checks: {', '.join(counts)}", width):
        out.print(line, markup=False, soft_wrap=True)


def _print_predictions(report: Report) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    linked = report.predictions[0].link_fps is not None
    for name in ("point", "bits/element", "frame bytes", "encode ms", "device fps", *["link fps", "fps"] * linked):
        table.add_column(name, justify="left" if name == "point" else "right", no_wrap=True)
    for p in report.predictions:
        rates = [p.device_fps] if p.link_fps is None else [p.device_fps, p.link_fps, p.fps]
        shown = (f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" for rate in rates)
        table.add_row(p.op, f"{p.bits_per_element:.3f}", f"{p.frame_bytes:,}", f"{p.encode_ms:.2f}", *shown)
    print_table(table)
