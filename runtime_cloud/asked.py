"""What the headers of a request, or the metadata of a gRPC call, say about its call: device, deadline, priority."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from splitwire.codec.errors import UsageError
from splitwire.codec.wire.reply import printable

from .call import Call
from .security import NOBODY, Caller

DEADLINE, DEVICE, PRIORITY = "x-splitwire-deadline-ms", "x-splitwire-device", "x-splitwire-priority"
_DEADLINE = re.compile(r"[0-9]{1,9}")
_DEVICE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PRIORITY = re.compile(r"[0-3]")


def asked_by(
    headers: Mapping[str, str],
    now: float,
    *,
    client: str = "",
    caller: Caller = NOBODY,
    abandoned: Callable[[], bool] | None = None,
) -> Call:
    """A call without its frame (docs/http.md). headers: by lower-case name. now: as time.perf_counter() counts.

    Raises UsageError for a header that is wrong.
    """
    return Call(
        frame=b"",
        device=parse_device(headers.get(DEVICE)),
        client=client,
        caller=caller,
        deadline=parse_deadline(headers.get(DEADLINE), now),
        priority=parse_priority(headers.get(PRIORITY)),
        trace=headers.get("traceparent", ""),
        abandoned=abandoned,
    )


def parse_deadline(header: str | None, now: float) -> float | None:
    """When the answer is of no use any more, on the clock of `now`; None without the header. Raises UsageError."""
    if header is None:
        return None
    if not _DEADLINE.fullmatch(header):
        raise UsageError(f"X-Splitwire-Deadline-Ms is a number of milliseconds; got {printable(header[:32])!r}")
    return now + int(header) / 1e3


def parse_device(header: str | None) -> str:
    """The id of the device; "" without the header. Raises UsageError."""
    if header is None:
        return ""
    if not _DEVICE.fullmatch(header):
        raise UsageError("X-Splitwire-Device is 1 to 64 letters, digits, '_', '.' or '-'")
    return header


def parse_priority(header: str | None) -> int:
    """The priority: 1 highest, 2 normal, 3 lowest, 0 for the default; 0 without the header. Raises UsageError."""
    if header is None:
        return 0
    if not _PRIORITY.fullmatch(header):
        raise UsageError(f"X-Splitwire-Priority is 0 to 3; got {printable(header[:32])!r}")
    return int(header)


def gone(receive: Any) -> Callable[[], bool] | None:
    """Says whether the client has closed its connection; None under a server that does not say so.

    receive: of the ASGI application. Under uvicorn it is a method of an object that knows. (To await the message
    http.disconnect would take a task per request.)
    """
    cycle: Any = getattr(receive, "__self__", None)
    return (lambda: bool(cycle.disconnected)) if hasattr(cycle, "disconnected") else None
