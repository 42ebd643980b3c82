"""What a spool is opened with, and what it says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from splitwire.codec.errors import UsageError
from splitwire.runtime_edge.events import EventSink, ignore
from splitwire.runtime_edge.transport.base import Key

from .disk.clock import Clocks
from .disk.database import Connect, connect

Tier = Literal["durable", "buffered"]
WhenFull = Literal["drop-oldest", "drop-newest", "refuse"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a Spool, which describes them. Raises UsageError for a wrong one."""

    tier: Tier = "durable"
    max_bytes: int | None = 1 << 30
    max_age_s: float | None = 7 * 86400.0
    when_full: WhenFull = "drop-oldest"
    device: str | None = None
    on_event: EventSink = ignore
    connect: Connect = connect
    clocks: Clocks = Clocks()  # noqa: RUF009 - it is frozen

    def __post_init__(self) -> None:
        if self.tier not in ("durable", "buffered"):
            raise UsageError(f"a tier is 'durable' or 'buffered'; got {self.tier!r}")
        if self.when_full not in ("drop-oldest", "drop-newest", "refuse"):
            raise UsageError(f"when_full is 'drop-oldest', 'drop-newest' or 'refuse'; got {self.when_full!r}")
        if (self.max_bytes is not None and self.max_bytes <= 0) or (
            self.max_age_s is not None and not self.max_age_s > 0
        ):
            raise UsageError(
                f"max_bytes and max_age_s must be greater than 0; got {self.max_bytes} and {self.max_age_s}"
            )
        if self.device is not None:
            Key(self.device, "0", 0)  # raises UsageError


@dataclass
class Counts:
    """What a spool did since it was opened.

    stored, acknowledged, buried: frames. dropped: by the policy when full. refused: not stored, by the policy or
    because of an error. expired: too old. damaged: records with a wrong checksum. commits: with frames.
    """

    stored: int = 0
    acknowledged: int = 0
    buried: int = 0
    dropped: int = 0
    refused: int = 0
    expired: int = 0
    damaged: int = 0
    commits: int = 0


@dataclass(frozen=True, kw_only=True)
class SpoolStats:
    """The state of a spool.

    frames, bytes: that wait; bytes include the spool's own per frame. dead, dead_bytes: that are not sent again.
    oldest_s: age of the oldest frame that waits, seconds. file_bytes, free_bytes: the database, and its free pages.
    max_bytes, max_age_s: the limits; None: none. counts: since it was opened.
    """

    path: str
    device: str
    tier: str
    frames: int
    bytes: int
    dead: int
    dead_bytes: int
    oldest_s: float | None
    file_bytes: int
    free_bytes: int
    max_bytes: int | None
    max_age_s: float | None
    when_full: str
    counts: Counts
