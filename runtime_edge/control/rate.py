"""RateController chooses the operating point of each frame, so that its answer comes within a latency target.

It knows the link only from the replies: how fast bytes were delivered while frames waited (busy periods), the least
round trip, and how long the last frame waited behind others. Two limits follow for the bytes of the next frame:

    the link's    0.85 · rate · interval between frames, and rate · (0.8 · target − least round trip − queue)
    the allowed   ×0.85 after a late or a lost frame; up to the next operating point after n good frames; where the
                  link's limit is below that, n good frames raise the rate by 1/0.85

n doubles when a step up is followed by a late frame, and halves when it holds. Samples while the sender idles say
nothing about the link's capacity, so that they never lower the rate; as a lower bound they may raise it.
Sources: Cardwell et al., "BBR: Congestion-Based Congestion Control" (2016), for the rate from busy periods; Carlucci et
al., "Congestion Control for Web Real-Time Communication" (2017), for ×0.85 and the steps.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import CodecProfile, OperatingPoint

DOWN = 0.85
"""Factor of the bytes per frame after a late or a lost frame, and share of the link's rate that frames may use."""
GOOD_FRAMES = 8
"""Good frames in a row that allow the next higher operating point, at first and at least."""
MOST_GOOD_FRAMES = 64
GOOD = 0.7
"""A frame is good if its answer came within this share of the target."""
PLANNED = 0.8
"""Share of the target that a frame is planned to take."""
WAITING = 0.5
"""A frame is late, too, if it waited behind others for more than this share of the target."""
WINDOW = 6
"""Samples of busy periods in the rate."""
WINDOW_S = 3.0
"""Age of the oldest of them, seconds."""
RTT_WINDOW_S = 30.0
"""The least round trip is that of this time, so that a new route is noticed."""
SHORTEST_S = 0.001
"""A shorter transfer is not measured: clocks and threads are not that exact."""
HEADER_BYTES = 10
"""Side information of a compact frame (docs/bitstream.md §1). Real sizes are learned."""
LEARNING = 1 / 16
"""Weight of the last frame in the ratio of real to expected sizes."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A rate that can be chosen. op: name of the operating point. step_offset: for FeatureCodec.encode, 0 or negative:
    steps between this point and the next finer one. frame_bytes: expected, for one image."""

    op: str
    step_offset: int
    frame_bytes: float


@dataclass(frozen=True, kw_only=True)
class LinkState:
    """What the controller knows. bytes_per_second: None before the first busy period. min_rtt_s: None before the first
    reply. queue_s: how long the last frame waited behind others. allowed_bytes: of the next frame. good_frames: how
    many in a row allow the next step up."""

    bytes_per_second: float | None
    min_rtt_s: float | None
    queue_s: float
    allowed_bytes: float
    good_frames: int


def ladder(profile: CodecProfile, *, between: bool = False) -> tuple[Rung, ...]:
    """The rates of a pair, cheapest first. Left out are points that a cheaper one beats by its agreement.

    between: for a transform pair, also the steps between two points.
    """
    elements = sum(t.feature_elements for t in profile.tensors)
    rungs: list[tuple[Rung, OperatingPoint]] = []
    best = -1.0
    for point in sorted(profile.operating_points, key=lambda p: p.bits_per_element):
        if point.agreement is not None:
            if point.agreement < best:
                continue
            best = point.agreement
        size = point.bits_per_element * elements / 8 + HEADER_BYTES
        if between and rungs:
            rungs += [(rung, rungs[-1][1]) for rung in _between(rungs[-1][0], rungs[-1][1], point, size)]
        rungs.append((Rung(op=point.name, step_offset=0, frame_bytes=size), point))
    return tuple(rung for rung, _ in rungs)


def _between(rung: Rung, coarse: OperatingPoint, fine: OperatingPoint, size: float) -> list[Rung]:
    """The steps between two points of a transform pair; none if the tensors have different numbers of steps there."""
    if not isinstance(coarse.steps, tuple) or not isinstance(fine.steps, tuple):
        return []
    apart = {a - b for a, b in zip(coarse.steps, fine.steps, strict=True)}
    if len(apart) > 1:
        return []
    count = apart.pop()
    return [
        Rung(op=rung.op, step_offset=-i, frame_bytes=rung.frame_bytes * (size / rung.frame_bytes) ** (i / count))
        for i in range(1, count)
    ]


class RateController:
    """Chooses the operating point of each frame. Several threads may call it.

    profile: of the pair. target_s: seconds from handing a frame to the transport until its answer. fps: frames per
    second of the source; None: measured from the calls of `choose`. op: forces this operating point. min_op, max_op:
    the lowest and the highest one that it may choose, by their rates; None: all. between: use the steps between the
    points of a transform pair, too; then `rung` says the step offset. good_frames: n, at first and at least.
    clock: seconds, monotonic; `delivered` and `lost` get times of the same clock.
    It starts at the profile's default operating point.
    Raises UsageError for a target or a number that is not positive, or a min_op above max_op; ProfileError for an
    operating point that the profile does not have.
    """

    def __init__(
        self,
        profile: CodecProfile,
        *,
        target_s: float,
        fps: float | None = None,
        op: str | None = None,
        min_op: str | None = None,
        max_op: str | None = None,
        between: bool = False,
        good_frames: int = GOOD_FRAMES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not target_s > 0 or (fps is not None and not fps > 0) or good_frames < 1:
            raise UsageError("the latency target, the frame rate and the number of good frames must be positive")
        self.target_s = target_s
        self.rungs = _allowed_rungs(profile, op, min_op, max_op, between=between)
        self._clock = clock
        self._lock = threading.Lock()
        self._at = _start(self.rungs, profile)
        self._allowed = self.rungs[self._at].frame_bytes
        self._size_ratio = 1.0
        self._sized = False
        self._rate: float | None = None
        self._busy: deque[tuple[float, int, float]] = deque(maxlen=WINDOW)
        self._rtts: deque[tuple[float, float]] = deque()
        self._last_acknowledged = -1e300
        self._queue = 0.0
        self._fixed_interval = None if fps is None else 1 / fps
        self._interval: float | None = self._fixed_interval
        self._chosen_at: float | None = None
        self._idle = True
        self._fewest = self._needed = good_frames
        self._good = 0
        self._since_step: int | None = None
        self._lowered_at = -1e300

    def choose(self) -> str:
        """The name of the operating point of the next frame. With `between`, its steps are those of `rung`."""
        return self.rung().op

    def rung(self) -> Rung:
        """The rate of the next frame: the highest one that fits the limits, or the lowest of all."""
        with self._lock:
            self._note_interval(self._clock())
            limit = self._limit()
            fitting = [i for i, rung in enumerate(self.rungs) if rung.frame_bytes <= limit * (1 + 1e-9)]
            self._at = fitting[-1] if fitting else 0
            return self.rungs[self._at]

    def delivered(
        self, frame_bytes: int, sent: float, acknowledged: float, busy: bool, *, rung: Rung | None = None
    ) -> None:
        """Tell of an answered frame.

        frame_bytes: on the wire. sent: when it was handed to the transport. acknowledged: when its answer came. busy:
        whether it had waited because as many frames as allowed were on their way. rung: of the frame; None: the last
        chosen one.
        """
        with self._lock:
            rtt = max(acknowledged - sent, 1e-9)
            queued = sent < self._last_acknowledged
            transfer = acknowledged - max(sent, self._last_acknowledged)
            self._last_acknowledged = max(self._last_acknowledged, acknowledged)
            self._idle = not busy
            self._learn_size(frame_bytes, self.rungs[self._at] if rung is None else rung)
            self._note_rtt(acknowledged, rtt, frame_bytes)
            least = self._rtts[0][1]
            self._measure_rate(frame_bytes, acknowledged, transfer if queued else transfer - least, rtt, busy=busy)
            own = 0.0 if self._rate is None else frame_bytes / self._rate
            self._queue = max(0.0, rtt - least - own)
            if rtt > self.target_s or self._queue > WAITING * self.target_s:
                self._late(sent, acknowledged)
            elif rtt <= GOOD * self.target_s:
                self._counted_good()
            else:
                self._good = 0

    def lost(self, now: float) -> None:
        """Tell of a frame without an answer. Those that were on their way together count once."""
        with self._lock:
            self._good = 0
            if now - self._lowered_at < self.target_s:
                return
            if self._rate is not None:
                self._rate *= DOWN
            self._lower(now)

    @property
    def state(self) -> LinkState:
        """What the controller knows at the moment."""
        with self._lock:
            return LinkState(
                bytes_per_second=self._rate,
                min_rtt_s=self._rtts[0][1] if self._rtts else None,
                queue_s=self._queue,
                allowed_bytes=self._limit() * self._size_ratio,
                good_frames=self._needed,
            )

    def _limit(self) -> float:
        """Most bytes of the next frame, as frames are expected to be."""
        if self._rate is None:
            return self._allowed
        least = self._rtts[0][1] if self._rtts else 0.0
        limit = self._rate * max(0.0, PLANNED * self.target_s - least - self._queue)
        if self._interval is not None:
            limit = min(limit, DOWN * self._rate * self._interval)
        return min(self._allowed, limit / self._size_ratio)

    def _measure_rate(self, frame_bytes: int, now: float, transfer: float, rtt: float, *, busy: bool) -> None:
        if busy and transfer > SHORTEST_S:
            self._busy.append((now, frame_bytes, transfer))
            while now - self._busy[0][0] > WINDOW_S:
                self._busy.popleft()
            self._rate = sum(b for _, b, _ in self._busy) / sum(t for _, _, t in self._busy)
        elif self._rate is not None and frame_bytes / rtt > self._rate:
            self._busy.clear()
            self._rate = frame_bytes / rtt
            self._needed = self._fewest  # it is another link than the one that steps up failed on

    def _note_rtt(self, now: float, rtt: float, frame_bytes: int) -> None:
        """Keep the least round trips of the window, rising: the first is the least. The frame's own transfer does not
        count."""
        if self._rate is not None:
            rtt = max(rtt - frame_bytes / self._rate, 0.0)
        while self._rtts and self._rtts[-1][1] >= rtt:
            self._rtts.pop()
        self._rtts.append((now, rtt))
        while now - self._rtts[0][0] > RTT_WINDOW_S:
            self._rtts.popleft()

    def _learn_size(self, frame_bytes: int, rung: Rung) -> None:
        """Frames are larger than expected where several images are in one, or pictures hold more than those of the
        calibration."""
        ratio = frame_bytes / rung.frame_bytes
        if not self._sized:
            self._sized = True
            self._size_ratio = ratio
        self._size_ratio += LEARNING * (ratio - self._size_ratio)

    def _note_interval(self, now: float) -> None:
        """The time between frames of the source. A sender that cannot follow sees longer ones, which do not count."""
        if self._fixed_interval is None and self._chosen_at is not None:
            gap = now - self._chosen_at
            if self._interval is None or gap < self._interval:
                self._interval = gap if self._interval is None else self._interval + (gap - self._interval) / 4
            elif self._idle:
                self._interval += (gap - self._interval) / 16
        self._chosen_at = now

    def _late(self, sent: float, now: float) -> None:
        self._good = 0
        if sent >= self._lowered_at:  # a frame from before the last step down does not show its effect
            self._lower(now)

    def _lower(self, now: float) -> None:
        self._lowered_at = now
        self._allowed = DOWN * min(self._limit(), self.rungs[self._at].frame_bytes)
        self._allowed = max(self._allowed, self.rungs[0].frame_bytes)
        if self._since_step is not None:
            self._needed = min(2 * self._needed, MOST_GOOD_FRAMES)
            self._since_step = None

    def _counted_good(self) -> None:
        self._good += 1
        if self._since_step is not None:
            self._since_step += 1
            if self._since_step >= self._fewest:
                self._since_step = None
                self._needed = max(self._needed // 2, self._fewest)
        if self._good >= self._needed and self._at + 1 < len(self.rungs):
            self._good = 0
            wanted = self.rungs[self._at + 1].frame_bytes
            self._allowed = max(self._allowed, wanted)
            if self._rate is not None and self._limit() < wanted:
                # The link may have become faster without a busy period that shows it.
                self._rate /= DOWN
                self._busy.clear()
            if self._limit() >= wanted:
                self._since_step = 0


def _allowed_rungs(
    profile: CodecProfile, op: str | None, min_op: str | None, max_op: str | None, *, between: bool
) -> tuple[Rung, ...]:
    """The rates from min_op to max_op, or `op` alone. A named point is there even if a cheaper one beats it."""
    for name in (op, min_op, max_op):
        profile.point_index(name)
    elements = sum(t.feature_elements for t in profile.tensors)
    bits = {p.name: p.bits_per_element for p in profile.operating_points}

    def single(name: str) -> Rung:
        return Rung(op=name, step_offset=0, frame_bytes=bits[name] * elements / 8 + HEADER_BYTES)

    if op is not None:
        return (single(op),)
    low = 0.0 if min_op is None else single(min_op).frame_bytes
    high = max(map(single, bits), key=lambda r: r.frame_bytes).frame_bytes
    high = high if max_op is None else single(max_op).frame_bytes
    if low > high:
        raise UsageError(f"the lowest operating point {min_op!r} needs more bits than the highest, {max_op!r}")
    named = {name: single(name) for name in (min_op, max_op) if name is not None}
    rungs = {(r.op, r.step_offset): r for r in ladder(profile, between=between) if low <= r.frame_bytes <= high}
    rungs |= {(name, 0): rung for name, rung in named.items()}
    return tuple(sorted(rungs.values(), key=lambda r: r.frame_bytes))


def _start(rungs: Sequence[Rung], profile: CodecProfile) -> int:
    """The index of the default operating point, or of the nearest rate."""
    default = profile.operating_points[profile.point_index()]
    wanted = default.bits_per_element * sum(t.feature_elements for t in profile.tensors) / 8 + HEADER_BYTES
    return min(range(len(rungs)), key=lambda i: abs(rungs[i].frame_bytes - wanted))
