"""Skip: decides for each frame whether it is sent, and audits itself."""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Callable

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import CodecProfile
from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.results import SplitResult
from splitwire.runtime_edge.stream.parts import Decision, Look

from .symbols import FrameSymbols, Symbols

Gate = Callable[[Look], bool]
"""Whether a frame is worth sending, by a test of the user's own, as a small detector's confidence."""
Same = Callable[[SplitResult, SplitResult], bool]
AUDITS = 2000
"""Most audits that are remembered."""
SURE = 0.01
"""How improbable the audits must be with the stated share for the threshold to be lowered."""
LOWER = 0.5


class Skip:
    """Repeats the last answer for a frame whose symbols are like those of the last frame that was sent.

    threshold: largest `Symbols.distance` of such a frame; None: no frame is like another, so that only the gate
        decides. share: largest share of the skipped frames that may have another answer, for the audit.
    same: whether two answers are the same. refresh_s: a frame is sent at least this often; None: not by time.
    audit_every: one in this many skipped frames, at random, is sent all the same and its answer compared with the one
        that would have been repeated. Where the answers differ more often than `share`, by more than chance explains,
        an event says so, and the threshold is lowered: below the distances of the frames that differed, at least by
        half.
    gate: a frame for which it returns False is not sent, and not audited.
    Raises UsageError.
    """

    def __init__(
        self,
        profile: CodecProfile,
        *,
        threshold: float | None,
        same: Same,
        share: float = 0.01,
        refresh_s: float | None = 10.0,
        audit_every: int = 20,
        gate: Gate | None = None,
    ) -> None:
        if threshold is not None and not threshold >= 0:
            raise UsageError(f"a threshold is 0 or more, got {threshold}")
        if not 0 < share < 1:
            raise UsageError(f"the share of changed answers must be between 0 and 1, got {share}")
        if audit_every < 2 or (refresh_s is not None and not refresh_s > 0):
            raise UsageError(f"audit_every must be 2 or more and refresh_s more than 0; got {audit_every}, {refresh_s}")
        self._symbols = Symbols(profile)
        self._threshold = threshold
        self._same = same
        self._share = share
        self._refresh_s = math.inf if refresh_s is None else refresh_s
        self._audit_every = audit_every
        self._gate = gate
        self._random = random.Random(0)  # noqa: S311 - which frames are audited is no secret
        self._lock = threading.Lock()
        self._last: FrameSymbols | None = None
        self._sent_at: float | None = None
        self._until_audit = self._draw()
        self._audits: deque[bool] = deque(maxlen=AUDITS)
        self._audited: deque[float] = deque(maxlen=AUDITS)  # distances of the frames whose audits are to come, in order
        self._differing = math.inf

    @property
    def threshold(self) -> float | None:
        """The threshold now: the audit may have lowered it."""
        return self._threshold

    @property
    def audits(self) -> tuple[int, int]:
        """Audits since the threshold was last lowered, and how many of them had another answer."""
        with self._lock:
            return len(self._audits), sum(self._audits)

    def decide(self, look: Look, now: float) -> Decision:
        """Whether the frame is sent. Raises NonFiniteFeatures, and what the gate raises."""
        is_wanted = self._gate is None or self._gate(look)
        symbols = self._symbols.of(look.features) if is_wanted and self._threshold is not None else None
        with self._lock:
            due = is_wanted if self._sent_at is None else now - self._sent_at >= self._refresh_s
            if due:
                return self._send(symbols, look, now)
            if not is_wanted:
                return Decision.REPEAT
            if symbols is None or self._threshold is None or self._last is None:
                return self._send(symbols, look, now)
            apart = self._symbols.distance(symbols, self._last)
            if apart > self._threshold:
                return self._send(symbols, look, now)
            self._until_audit -= 1
            if self._until_audit > 0:
                return Decision.REPEAT
            self._until_audit = self._draw()
            self._send(symbols, look, now)
            self._audited.append(apart)
            return Decision.AUDIT

    def audit(self, repeated: SplitResult, answered: SplitResult) -> Event | None:
        """Compare the answer that would have been repeated with the frame's own."""
        differs = not self._same(repeated, answered)
        with self._lock:
            apart = self._audited.popleft() if self._audited else math.inf
            if differs:
                self._differing = min(self._differing, apart)
            self._audits.append(differs)
            count, changed = len(self._audits), sum(self._audits)
            if not differs or self._threshold is None or at_least(changed, count, self._share) >= SURE:
                return None
            before, self._threshold = self._threshold, LOWER * min(self._threshold, self._differing)
            self._audits.clear()
            self._differing = math.inf
            after = self._threshold
        text = (
            f"{changed} of {count} audited frames have another answer than the one that would have been repeated; at"
            f" most {self._share:.2%} may. The threshold is lowered from {before:.3g} to {after:.3g}; calibrate again"
            " with `splitwire edge calibrate-skip`"
        )
        fields = {"audits": count, "changed": changed, "share": self._share, "threshold": after}
        return Event(kind="skip_audit", text=text, fields=fields)

    def forget(self) -> None:
        """The last frame has no answer: the next one is sent."""
        with self._lock:
            self._audited.clear()  # one of them may be this frame
            self._last = None
            self._sent_at = None

    def _send(self, symbols: FrameSymbols | None, look: Look, now: float) -> Decision:
        if symbols is None and self._threshold is not None:
            symbols = self._symbols.of(look.features)
        self._last = symbols
        self._sent_at = now
        return Decision.SEND

    def _draw(self) -> int:
        """Skipped frames up to the next audit, `audit_every` on average: a fixed number could follow a motion."""
        return self._random.randint(1, 2 * self._audit_every - 1)


def at_least(changed: int, count: int, share: float) -> float:
    """The probability of `changed` or more of `count`, where each has the probability `share`."""
    below = 0.0
    for i in range(changed):
        log = math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1)
        below += math.exp(log + i * math.log(share) + (count - i) * math.log1p(-share))
    return max(0.0, 1.0 - below)
