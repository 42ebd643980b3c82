"""Parts of a stream that can be replaced or left out while it runs: rate and skip; and drift beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from splitwire.runtime_edge.control import DriftMonitor, RateController
from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.results import SplitResult
from splitwire.runtime_edge.stream.parts import Decision, Look
from splitwire.runtime_edge.stream.skip import Skip

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .sample import Sample


class RateSwitch:
    """A rate control that can be replaced, or left out: then every frame takes the operating point `op`."""

    def __init__(self, op: str) -> None:
        self._op = op
        self.current: RateController | None = None

    @property
    def fixed(self) -> str | None:
        """The operating point of all frames; None while a rate control chooses."""
        return self._op if self.current is None else None

    def choose(self) -> str:
        """The operating point of the next frame."""
        current = self.current
        return self._op if current is None else current.choose()

    def delivered(self, frame_bytes: int, sent: float, acknowledged: float, busy: bool) -> None:
        """As RatePart."""
        if (current := self.current) is not None:
            current.delivered(frame_bytes, sent, acknowledged, busy)

    def lost(self, now: float) -> None:
        """As RatePart."""
        if (current := self.current) is not None:
            current.lost(now)


class SkipSwitch:
    """Decides which frames are sent, by a Skip that can be replaced or left out; and shows each frame to the sample."""

    def __init__(self, sample: Sample | None) -> None:
        self._sample = sample
        self.current: Skip | None = None

    def decide(self, look: Look, now: float) -> Decision:
        """As SkipPart."""
        if self._sample is not None:
            self._sample.offer(look)
        current = self.current
        return Decision.SEND if current is None else current.decide(look, now)

    def audit(self, repeated: SplitResult, answered: SplitResult) -> Event | None:
        """As SkipPart."""
        current = self.current
        return None if current is None else current.audit(repeated, answered)

    def forget(self) -> None:
        """As SkipPart."""
        if (current := self.current) is not None:
            current.forget()


class Drift:
    """A DriftMonitor that is told the operating point while it is fixed: then it watches the length of frames too."""

    def __init__(self, monitor: DriftMonitor, rate: RateSwitch) -> None:
        self._monitor, self._rate = monitor, rate

    def observe(self, features: Sequence[NDArray[np.float32]], frame_bytes: int) -> Event | None:
        """As DriftPart."""
        return self._monitor.observe(features, frame_bytes, op=self._rate.fixed)
