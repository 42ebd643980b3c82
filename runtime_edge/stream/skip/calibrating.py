"""The threshold: what many thresholds would have done on a clip of which every frame was answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import CodecProfile
from splitwire.codec.shared.files import write_atomically
from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.results import SplitResult
from splitwire.runtime_edge.stream.parts import Decision, Look, StreamResult

from .symbols import FrameSymbols, Symbols

FORMAT = 1
SMALLEST, RATIO, STEPS = 1e-4, 1.25, 72
"""Thresholds that are tried: 0, and a geometric series up to about 760."""
MARGIN = 4.0
"""Of squared differences: the changes themselves may be half as large."""
MAX_FILE = 1 << 20


class Tried(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one threshold did on the clip. skipped: frames not sent. changed: of these, with another answer."""

    threshold: float
    skipped: int
    changed: int


class SkipTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What thresholds did on a clip, as a file beside front.onnx.

    It is not part of the profile, so that a camera can be calibrated without a new pair.

    fingerprint: of the pair, in hex. op: the operating point whose symbols are compared. frames: of the clip.
    tried: by rising threshold.
    """

    format: int = FORMAT
    fingerprint: str
    op: str
    frames: int
    tried: tuple[Tried, ...]

    def threshold(self, share: float) -> float:
        """A quarter of the largest threshold up to which at most `share` of the skipped frames have another answer.

        A quarter, because what moves before the camera tomorrow may be darker and differ half as much. Counted as
        (changed + 1) / (skipped + 1), so that few skipped frames prove little.
        Raises UsageError if there is none: the clip is too short or too lively.
        """
        chosen = None
        for tried in self.tried:
            if tried.changed > share * tried.skipped and tried.changed > 1:
                break
            if tried.changed + 1 <= share * (tried.skipped + 1):
                chosen = tried.threshold
        if chosen is None:
            most = max((t.skipped for t in self.tried if t.changed <= share * t.skipped), default=0)
            raise UsageError(
                f"no threshold is proved to change at most {share:.2%} of the answers: of {self.frames} frames at most"
                f" {most} could be skipped, {max(1, round(1 / share) - 1) if share > 0 else 'more'} are needed;"
                " calibrate with a longer clip of the same camera"
            )
        return max(t.threshold for t in self.tried if t.threshold <= chosen / MARGIN)

    def at(self, threshold: float) -> Tried:
        """What this threshold did. Raises StopIteration for one that was not tried."""
        return next(t for t in self.tried if t.threshold == threshold)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises OSError."""
        write_atomically(path, msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")

    @classmethod
    def load(cls, path: Path, profile: CodecProfile) -> SkipTable:
        """Read the file of a pair. Raises UsageError if it is missing, damaged or of another pair."""
        try:
            with path.open("rb") as f:
                table = msgspec.json.decode(f.read(MAX_FILE), type=cls)
        except FileNotFoundError:
            raise UsageError(
                f"{path}: not there; `splitwire edge calibrate-skip` makes it from a clip of the camera"
            ) from None
        except (OSError, msgspec.DecodeError, ValueError) as e:
            raise UsageError(f"{path}: no table of thresholds: {e}; calibrate again") from e
        if table.format != FORMAT or table.fingerprint != profile.fingerprint.hex():
            raise UsageError(f"{path}: of another pair or version of splitwire; calibrate again")
        return table

    @staticmethod
    def path_beside(front: Path) -> Path:
        """Where the file of a front lies unless one is named: front.skip.json."""
        return front.with_suffix(".skip.json")


@dataclass(kw_only=True)
class _Reference:
    """The last frame that a threshold would have sent."""

    symbols: FrameSymbols
    answer: SplitResult


class Trial:
    """Tries all thresholds on a stream at once, in constant memory. It is the stream's `skip`, and sends every frame.

    trial = Trial(session.profile, Sameness(session.profile))
    for result in session.stream(clip, skip=trial):
        trial.add(result)
    trial.table().save(path)
    """

    def __init__(self, profile: CodecProfile, same: Callable[[SplitResult, SplitResult], bool]) -> None:
        self._symbols = Symbols(profile)
        self._fingerprint = profile.fingerprint.hex()
        self._same = same
        self._waiting: dict[int, FrameSymbols] = {}
        self.thresholds = (0.0, *(float(t) for t in SMALLEST * RATIO ** np.arange(STEPS)))
        self._references: list[_Reference | None] = [None] * len(self.thresholds)
        self._skipped = [0] * len(self.thresholds)
        self._changed = [0] * len(self.thresholds)
        self._frames = 0

    def decide(self, look: Look, now: float) -> Decision:
        """Keep the frame's symbols, and send it."""
        self._waiting[look.captured.index] = self._symbols.of(look.features)
        return Decision.SEND

    def audit(self, repeated: SplitResult, answered: SplitResult) -> Event | None:
        """Nothing is repeated here."""
        return None

    def forget(self) -> None:
        """Nothing is repeated here."""

    def add(self, result: StreamResult) -> None:
        """Add a result of the stream. Raises its error."""
        if result.error is not None:
            raise result.error
        if result.result is None:
            return
        symbols = self._waiting.pop(result.index)
        self._frames += 1
        new = _Reference(symbols=symbols, answer=result.result)
        # Most thresholds have the same reference: it is compared once.
        apart: dict[int, float] = {}
        same: dict[int, bool] = {}
        for i, threshold in enumerate(self.thresholds):
            reference = self._references[i]
            if reference is None:
                self._references[i] = new
                continue
            key = id(reference)
            if key not in apart:
                apart[key] = self._symbols.distance(symbols, reference.symbols)
            if apart[key] > threshold:
                self._references[i] = new
                continue
            if key not in same:
                same[key] = self._same(reference.answer, result.result)
            self._skipped[i] += 1
            self._changed[i] += not same[key]

    def table(self) -> SkipTable:
        """What the thresholds did so far."""
        columns = zip(self.thresholds, self._skipped, self._changed, strict=True)
        return SkipTable(
            fingerprint=self._fingerprint,
            op=self._symbols.op,
            frames=self._frames,
            tried=tuple(Tried(threshold=t, skipped=s, changed=c) for t, s, c in columns),
        )
