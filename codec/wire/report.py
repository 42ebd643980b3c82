"""What a device tells the server about itself: the pictures that it takes and skips, and how far they have drifted.

Over HTTP it is the value of a header of a frame's request, as JSON; in a stream a record of its own, as msgpack
(docs/monitor.md, docs/stream.md). Nothing is decided by it: it is only shown.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from splitwire.codec.errors import Corrupt

from .reply import UNREADABLE, printable

HEADER = "X-Splitwire-Report"
"""Name of the HTTP header."""
EVERY_S = 10.0
"""A device reports at most once in this many seconds."""
MAX_BYTES = 1024
"""Longest report."""
NAME_PATTERN = r"\A[A-Za-z0-9_.-]{0,64}\Z"

Amount = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class DeviceReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a device is, since its last report.

    device: its id, 1 to 64 letters, digits, `_`, `-` and `.`; "" if the server knows it from the key of the frame.
    captured: pictures per second that its source gave. skipped: share of these that were like the last one sent. None
    if it skips nothing. dropped: share that was dropped because the link or the device was too slow. drift: the largest
    signal of drift over its limit, from 1 on the input has drifted; None if it is not watched. waiting: frames in its
    spool; None without one.
    """

    device: Annotated[str, Meta(pattern=NAME_PATTERN)] = ""
    captured: Amount | None = None
    skipped: Share | None = None
    dropped: Share | None = None
    drift: Amount | None = None
    waiting: Annotated[int, Meta(ge=0)] | None = None


def to_header(report: DeviceReport) -> str:
    """The value of the header."""
    return msgspec.json.encode(_rounded(report)).decode("ascii")


def from_header(text: str) -> DeviceReport:
    """Read the value of the header. Raises Corrupt."""
    return _checked(text.encode("utf-8", "replace"), msgspec.json.Decoder(DeviceReport))


def to_body(report: DeviceReport) -> bytes:
    """The body of a record in a stream."""
    return msgspec.msgpack.encode(_rounded(report))


def from_body(body: bytes) -> DeviceReport:
    """Read the body of a record in a stream. Raises Corrupt."""
    return _checked(body, msgspec.msgpack.Decoder(DeviceReport))


def _rounded(report: DeviceReport) -> DeviceReport:
    """Three digits are enough, and short."""
    numbers = {name: getattr(report, name) for name in ("captured", "skipped", "dropped", "drift")}
    return msgspec.structs.replace(
        report, **{name: None if value is None else float(f"{value:.3g}") for name, value in numbers.items()}
    )


def _checked(
    data: bytes, decoder: msgspec.json.Decoder[DeviceReport] | msgspec.msgpack.Decoder[DeviceReport]
) -> DeviceReport:
    if len(data) > MAX_BYTES:
        raise Corrupt(f"a report has at most {MAX_BYTES} bytes, this one {len(data)}")
    try:
        report = decoder.decode(data)
    except UNREADABLE as e:
        raise Corrupt(f"the report of a device is invalid: {printable(str(e))}") from e
    if not all(math.isfinite(v) for v in (report.captured or 0.0, report.drift or 0.0)):
        raise Corrupt("the report of a device has a number that is not finite")
    return report
