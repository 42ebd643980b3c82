"""The record of who was refused and who was allowed what: JSON lines, without tokens and without what was sent.

Everything that is refused is a line, up to a rate; lines beyond it are counted. What is allowed is counted per caller,
action, model and address, and written about once a minute: so a frame costs a count, and not a line.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from splitwire.codec.errors import UsageError
from splitwire.codec.wire.reply import printable

log = logging.getLogger("splitwire.audit")

MAX_BYTES = 16 << 20
KEPT = 4
"""A file that is longer than MAX_BYTES gets the suffix .1, the former .1 becomes .2, and so on, up to .KEPT."""
REFUSALS, REFUSALS_PER_S = 50.0, 5.0
"""Refusals that are written at once, and per second in the long run."""
EVERY_S = 60.0
"""How often counts are written."""
COUNTED = 4096
"""Kinds of what is allowed that are counted apart until they are written."""

Key = tuple[str, str, str, str, str]
"""(caller, id, action, model, peer)."""


class Audit:
    """Writes the record. path: the file; None for the log `splitwire.audit`, which gets the refusals only.

    Several processes may write to one file. Raises UsageError if it cannot be opened. A line that cannot be written
    later is counted, and the server goes on.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.lost = 0
        self._fd: int | None = None
        self._counts: dict[Key, int] = {}
        self._since = time.time()
        self._room, self._room_at = REFUSALS, time.monotonic()
        self._left_out = 0
        if path is not None:
            try:
                self._open(path)
            except OSError as e:
                shown = printable(str(path))
                raise UsageError(f"{shown}: the record cannot be written there: {e.strerror or e}") from e

    def allowed(self, caller: str, entry_id: str, action: str, model: str, peer: str) -> None:
        """Count what somebody was allowed."""
        if self.path is None:
            return
        key = (caller, entry_id, action, model, peer)
        counts = self._counts
        counts[key] = counts.get(key, 0) + 1
        if len(counts) >= COUNTED:
            self.flush()

    def managed(self, caller: str, entry_id: str, action: str, model: str, peer: str, what: str) -> None:
        """Write at once that somebody changes something."""
        self._write(self._line("allowed", caller, entry_id, action, model, peer, target=what))

    def refused(
        self, reason: str, *, caller: str = "", entry_id: str = "", action: str = "", model: str = "", peer: str = "",
        target: str = "",
    ) -> None:  # fmt: skip
        """Write that somebody was refused. reason: one of a few words, as no_token. target: method and path."""
        now = time.monotonic()
        self._room = min(REFUSALS, self._room + (now - self._room_at) * REFUSALS_PER_S)
        self._room_at = now
        if self._room < 1.0:
            self._left_out += 1
            return
        self._room -= 1.0
        self._tell_left_out()
        self._write(self._line("refused", caller, entry_id, action, model, peer, reason=reason, target=target))

    def refused_again(self) -> None:
        """Count a refusal that gets no line, because its address was refused often."""
        self._left_out += 1

    def event(self, text: str) -> None:
        """Write that something else has happened: the tokens were read again."""
        self._write({"time": _moment(time.time()), "outcome": "event", "text": text})

    def tick(self) -> None:
        """Write the counts if it is time. Called now and then."""
        if time.time() - self._since >= EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write all counts."""
        self._tell_left_out()
        counts, self._counts = self._counts, {}
        since, self._since = self._since, time.time()
        if counts:
            start = _moment(since)
            self._write(
                *(self._line("allowed", *key, count=count, since=start) for key, count in counts.items())
            )  # fmt: skip

    def close(self) -> None:
        """Write all counts, and close the file."""
        self.flush()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _tell_left_out(self) -> None:
        if self._left_out and self._room >= 0.0:
            count, self._left_out = self._left_out, 0
            self._write({"time": _moment(time.time()), "outcome": "refused", "reason": "many", "count": count})

    @staticmethod
    def _line(
        outcome: str, caller: str, entry_id: str, action: str, model: str, peer: str, **more: str | int
    ) -> dict[str, str | int]:
        fields = {"caller": caller, "id": entry_id, "action": action, "model": model, "peer": peer, **more}
        shown = {k: printable(v) if isinstance(v, str) else v for k, v in fields.items() if v != ""}
        return {"time": _moment(time.time()), "outcome": outcome, **shown}

    def _write(self, *lines: dict[str, str | int]) -> None:
        data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        if self.path is None:
            log.info("%s", data.decode().rstrip())
            return
        try:
            os.write(self._ready(self.path), data)
        except OSError as e:
            if not self.lost:
                log.error("the record cannot be written: %s", e.strerror or e)
            self.lost += len(lines)

    def _ready(self, path: Path) -> int:
        """The file to write to: another one if it was renamed, by us for its length or by somebody else."""
        if self._fd is None:
            return self._open(path)
        found = os.fstat(self._fd)
        try:
            current = path.stat()
        except FileNotFoundError:
            current = None
        if current is None or (current.st_ino, current.st_dev) != (found.st_ino, found.st_dev):
            return self._open(path)
        if found.st_size >= MAX_BYTES:
            for i in range(KEPT - 1, 0, -1):
                with suppress(FileNotFoundError):
                    path.with_name(f"{path.name}.{i}").replace(path.with_name(f"{path.name}.{i + 1}"))
            path.replace(path.with_name(f"{path.name}.1"))
            return self._open(path)
        return self._fd

    def _open(self, path: Path) -> int:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        if self._fd is not None:
            os.close(self._fd)
        self._fd = fd
        return fd


def _moment(t: float) -> str:
    """UTC, to the millisecond."""
    whole, rest = divmod(round(t * 1e3), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{rest:03d}Z"
