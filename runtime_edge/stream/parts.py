"""What the pipeline takes and gives: its results, and the interfaces of the parts that plug into it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from splitwire.codec.errors import SplitwireError
from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.results import SplitResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from splitwire.codec.wire.sizes import Int64Array
    from splitwire.runtime_edge.graph import Float32Array, FrontOutputs, Input
    from splitwire.runtime_edge.results import Where
    from splitwire.runtime_edge.sources.base import Captured, Picture
    from splitwire.runtime_edge.transport import Key, Reply

Status = Literal["answered", "repeated", "spooled", "failed"]
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class StreamResult:
    """What became of one picture of a source. Results come in the order of the pictures.

    index: of the picture in the source; a dropped picture leaves a gap. name: a file's path, or the source's name.
    captured: when, in seconds since 1970. size: (width, height) of the picture in pixels; None for an array of the
    network's input.
    status: "answered": `result` is the answer to this frame, and its `where` says who gave it. "repeated": the picture
        is like the last one sent (or the gate said no), so that nothing was sent, and `result` is the last answer.
        "spooled": the frame waits in the spool. "failed": `error` says why.
    result: None if failed or spooled, and for a picture that repeats a spooled one.
    age_ms: time from the capture until the result was handed over. answer_age_ms: the same for the picture that the
        answer is of; longer than age_ms where the answer is repeated; None without an answer.
    key: idempotency key of the frame; None if none was sent, and without a spool.
    """

    index: int
    name: str
    captured: float
    size: Size | None
    status: Status
    age_ms: float
    answer_age_ms: float | None
    result: SplitResult | None = None
    error: SplitwireError | None = None
    key: Key | None = None


@dataclass(frozen=True, kw_only=True)
class StreamStats:
    """Counts of a stream since its start, and its state now.

    captured: pictures that the source gave. dropped: of these, by the policy. answered, repeated, spooled, failed:
    results by status. on_device: frames that the fallback answered. bytes_sent: of all frames. in_flight: bound on
    frames in flight now; largest_in_flight: most that were. round_trip_ms: of a frame on an idle link.
    """

    captured: int
    dropped: int
    answered: int
    repeated: int
    spooled: int
    failed: int
    on_device: int
    bytes_sent: int
    in_flight: int
    largest_in_flight: int
    round_trip_ms: float | None


class Stages(Protocol):
    """The stages of an EdgeSession, as the pipeline calls them, each from a thread of its own."""

    def prepared(self, image: Picture) -> tuple[Input, Size | None]: ...

    def run_front(self, x: Input) -> FrontOutputs: ...

    def encode(
        self, features: Sequence[Float32Array], *, op: str | None, frame_id: int, sizes: Sequence[Int64Array]
    ) -> bytes: ...

    def send(self, frame: bytes, *, frame_id: int, key: Key | None = None) -> Reply: ...

    def next_frame_id(self) -> int: ...

    def assemble(
        self,
        front: FrontOutputs,
        reply: Reply,
        *,
        op: str | None,
        images: int,
        frame_bytes: int,
        ms: Sequence[float],
        where: Where,
    ) -> SplitResult: ...


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a decision to send or not may look at.

    captured: the picture. input: the network's input, of one image or of a batch. features: the tensors at the cut.
    """

    captured: Captured
    input: NDArray[Any]
    features: Sequence[NDArray[np.float32]]


class Decision(enum.Enum):
    """What happens to a frame.

    SEND: it is sent. REPEAT: nothing is sent, and the last answer is repeated. AUDIT: the last answer would be
    repeated, but the frame is sent all the same, to compare the answers.
    """

    SEND = "send"
    REPEAT = "repeat"
    AUDIT = "audit"


class SkipPart(Protocol):
    """Decides which frames are sent. `decide` is called in order by one thread, the others by any thread."""

    def decide(self, look: Look, now: float) -> Decision:
        """now: time.monotonic()."""
        ...

    def audit(self, repeated: SplitResult, answered: SplitResult) -> Event | None:
        """Compare the answer that would have been repeated with that of the frame."""
        ...

    def forget(self) -> None:
        """The last frame that was sent has no answer to repeat: send the next one."""
        ...


class Fallback(Protocol):
    """Answers a frame on this device. Called by several threads."""

    def send(self, frame: bytes, key: Key | None = None) -> Reply: ...


class RatePart(Protocol):
    """Chooses the operating point of each frame. Called by several threads."""

    def choose(self) -> str: ...

    def delivered(self, frame_bytes: int, sent: float, acknowledged: float, busy: bool) -> object:
        """sent, acknowledged: time.monotonic(). busy: whether another frame waited to be sent, or was on its way."""
        ...

    def lost(self, now: float) -> object: ...


class DriftPart(Protocol):
    """Watches the features. Called by one thread at a time."""

    def observe(self, features: Sequence[NDArray[np.float32]], frame_bytes: int) -> Event | None: ...


class SpoolPart(Protocol):
    """Keeps frames that could not be delivered, as `Spool` does. Called by several threads."""

    def new_key(self) -> Key:
        """The idempotency key of the next frame."""
        ...

    def put(self, frame: bytes, key: Key, captured_wall: float) -> Future[int | None]:
        """Keep a frame. The future is done when it is kept; None: it was dropped. It raises SplitwireError."""
        ...
