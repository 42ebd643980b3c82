"""How a command starts and ends: streams that accept every character, closed pipes, full disks, Ctrl-C.

Without this module Python prints a traceback for these, or two lines about an error that it ignored.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import TextIO

from rich.markup import escape

from splitwire.codec.shared.text import printable
from splitwire.console import err, prepare_streams, written

CLOSED_PIPE = 141
"""128 + SIGPIPE, the status that a shell reports for a program that a closed pipe ended."""

INTERRUPTED = 130
"""128 + SIGINT."""


interrupts: list[int] = []
"""The numbers of the Ctrl-C signals so far."""


def prepare() -> None:
    """Prepare the streams and the handler of Ctrl-C. Called before the command runs."""
    prepare_streams()
    with suppress(ValueError):  # not the main thread
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    interrupts.append(number)
    signal.default_int_handler(number, frame)


def reason(e: OSError) -> str:
    """One line: the file, if the error names one, and the message of the system."""
    files = [os.fsdecode(f) if isinstance(f, bytes) else str(f) for f in (e.filename, e.filename2) if f is not None]
    message = e.strerror or str(e) or type(e).__name__
    return printable(": ".join([*([" and ".join(files)] if files else []), message]))


def finish(status: int) -> int:
    """Flush the streams and return the exit status. After this call nothing can fail any more."""
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        problem = close_if_broken(stream)
        if isinstance(problem, BrokenPipeError):
            status = status or CLOSED_PIPE
        elif problem is not None:
            status = status or 1
            if name == "stdout":
                with suppress(OSError):
                    err.print(f"[bold red]error:[/] {escape(problem.strerror or str(problem))}", soft_wrap=True)
    return status


def close_if_broken(stream: TextIO | None) -> OSError | None:
    """Flush a stream. If that fails, discard its buffer and return the error."""
    if stream is None or stream.closed:
        return None
    try:
        with written():
            stream.flush()
    except OSError as e:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            stream.flush()
        return e
    return None
