"""Runs probe.py in a child process: a wheel that dies takes the child with it, and the doctor says how it died."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

MODULE = "splitwire.runtime_edge.doctor.probe"
OURSELVES = (sys.executable, "-m", MODULE)
LAST_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a child found, or how it ended.

    found: what it printed; None if it did not get that far. ended: why not, in words. illegal: it died of an illegal
    instruction.
    """

    found: dict[str, Any] | None
    ended: str = ""
    illegal: bool = False


@dataclass(frozen=True, kw_only=True)
class Children:
    """Starts children. program: what runs the probes; a test gives another."""

    program: Sequence[str] = OURSELVES

    def ask(self, probe: str, *arguments: str, seconds: float) -> Answer:
        """Run a probe of probe.py and wait for what it prints."""
        with tempfile.TemporaryFile() as complaints:
            try:
                done = subprocess.run(  # noqa: S603 - this Python, our own module
                    [*self.program, probe, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=complaints, timeout=seconds, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return Answer(found=None, ended=f"it did not end within {seconds:.0f} s")
            except OSError as e:
                return Answer(found=None, ended=f"it cannot be started: {e.strerror or e}")
            complaints.seek(0)
            said = complaints.read().decode("utf-8", "replace").strip()
        if done.returncode < 0:
            died = signal.Signals(-done.returncode)
            illegal = died == signal.SIGILL
            words = "an illegal instruction (SIGILL)" if illegal else f"the signal {died.name}"
            return Answer(found=None, ended=f"it died of {words}", illegal=illegal)
        if done.returncode:
            last = said.splitlines()[-1] if said else f"status {done.returncode}"
            return Answer(found=None, ended=last[:LAST_CHARACTERS])
        try:
            return Answer(found=msgspec.json.decode(done.stdout.splitlines()[-1], type=dict[str, Any]))
        except (IndexError, msgspec.DecodeError):
            return Answer(found=None, ended="it printed something else than its result")
