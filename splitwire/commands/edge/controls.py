"""What `splitwire edge run` plugs into a stream beside skipping: rate, drift, a spool, and the back on this device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from splitwire.codec.errors import UsageError
from splitwire.runtime_edge.control import DriftMonitor, RateController
from splitwire.runtime_edge.service.switches import Drift, RateSwitch
from splitwire.runtime_edge.spool import Drain, Spool

from .link import LocalBack

if TYPE_CHECKING:
    from splitwire.runtime_edge.events import EventSink
    from splitwire.runtime_edge.session import EdgeSession
    from splitwire.runtime_edge.spool.drain import OnReply
    from splitwire.runtime_edge.spool.options import Tier
    from splitwire.runtime_edge.transport import Transport

TIERS = ("durable", "buffered")
POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class ControlOptions:
    """These options as the user gave them; None or False where not.

    latency_s: target of the rate control. min_op: the coarsest point that it takes. drift: watch the input. spool: file
    for the frames that do not get through; tier: as in Spool. fallback: back.onnx. spool_fallback: the frames that it
    answers are spooled too.
    """

    latency_s: float | None = None
    min_op: str | None = None
    drift: bool = False
    spool: Path | None = None
    tier: str = "durable"
    fallback: Path | None = None
    spool_fallback: bool = False

    def __post_init__(self) -> None:
        if self.latency_s is not None and not self.latency_s > 0:
            raise UsageError("--latency must be more than 0")
        if self.min_op is not None and self.latency_s is None:
            raise UsageError("--min-op is for the rate control: give --latency as well")
        if self.tier not in TIERS:
            raise UsageError(f"--spool-tier is {' or '.join(TIERS)}; got {self.tier!r}")
        if self.tier != TIERS[0] and self.spool is None:
            raise UsageError("--spool-tier goes with --spool")
        if self.spool_fallback and (self.spool is None or self.fallback is None):
            raise UsageError("--spool-fallback goes with --spool and --fallback")

    @property
    def outlasts_link(self) -> bool:
        """Whether frames are kept or answered while the link is down, for whatever reason."""
        return self.spool is not None or self.fallback is not None


@dataclass(frozen=True, kw_only=True)
class Controls:
    """The open parts of a stream; None where the user wants none."""

    rate: RateController | None = None
    drift: Drift | None = None
    spool: Spool | None = None
    fallback: LocalBack | None = None
    spool_fallback: bool = False

    def wait_for_spool(self, seconds: float) -> None:
        """Wait until nothing waits in the spool, at most `seconds`."""
        if self.spool is None:
            return
        pause = threading.Event()
        for _ in range(int(seconds / POLL_S)):
            if not self.spool.stats().frames:
                return
            pause.wait(POLL_S)


@contextmanager
def open_controls(
    options: ControlOptions,
    session: EdgeSession,
    transport: Transport,
    *,
    op: str | None,
    fps: float | None,
    threads: int | None,
    on_event: EventSink,
    on_reply: OnReply,
) -> Iterator[Controls]:
    """Open the parts of a stream; the drain runs until the block ends.

    transport: of the session, for the drain. op: the fixed operating point, or None. fps: of the source, if known.
    on_reply: takes the answers out of the spool, in the drain's thread.
    Raises UsageError, ProfileError, SpoolError, DeviceError.
    """
    profile = session.profile
    switch = RateSwitch(profile.operating_points[profile.point_index(op)].name)
    if options.latency_s is not None:
        if op is not None:
            raise UsageError("--op is a fixed operating point: leave out --latency and --min-op, or --op")
        switch.current = RateController(profile, target_s=options.latency_s, fps=fps, min_op=options.min_op)
    drift = None
    if options.drift:
        if session.drift_reference is None:
            raise UsageError(
                "--drift: this pair holds no limits of drift (few calibration images, or an older export);"
                " export it again"
            )
        drift = Drift(DriftMonitor(profile, session.drift_reference), switch)
    fallback = None if options.fallback is None else LocalBack(options.fallback, profile, threads=threads)
    if fallback is not None:
        fallback.warm_up()
    parts = Controls(rate=switch.current, drift=drift, fallback=fallback, spool_fallback=options.spool_fallback)
    if options.spool is None:
        yield parts
        return
    with Spool(options.spool, tier=cast("Tier", options.tier), on_event=on_event) as spool:
        drain = Drain(spool, transport, on_reply=on_reply, on_event=on_event)
        drain.start()
        try:
            yield replace(parts, spool=spool)
        finally:
            drain.close()
