"""The result of a check, and the report of all."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Verdict = Literal["ok", "note", "warning", "failed", "skipped"]


class Check(Struct, frozen=True, kw_only=True):
    """One thing that the doctor looked at.

    part: "machine", "power", "runtime", "codec", "speed" or "server". name: stable, for programs.
    verdict: "failed": frames cannot be made or answered. "warning": they can, slowly or not for long. "note": good to
    know. "skipped": what was not asked for, or depends on a check that failed. text: what was found, in one sentence.
    remedy: what to do; "" where there is nothing to do. data: the figures in the text.
    """

    part: str
    name: str
    verdict: Verdict
    text: str
    remedy: str = ""
    data: dict[str, str | int | float | bool] = {}


class Prediction(Struct, frozen=True, kw_only=True):
    """Frames per second at one operating point.

    bits_per_element: from the calibration. frame_bytes: of a frame at that rate. encode_ms: measured here.
    device_fps: what preprocessing is left of: front and encoder one after the other, by their medians. link_fps: what
    the link carries; None without a link. fps: the smaller of the two.
    """

    op: str
    bits_per_element: float
    frame_bytes: int
    encode_ms: float
    device_fps: float
    link_fps: float | None
    fps: float


class Report(Struct, frozen=True, kw_only=True):
    """All checks, in order, and the predictions where a front was given."""

    checks: tuple[Check, ...]
    predictions: tuple[Prediction, ...] = ()

    @property
    def exit_status(self) -> int:
        """1 if a check failed, else 0."""
        return int(any(check.verdict == "failed" for check in self.checks))

    def find(self, name: str) -> Check:
        """The check with this name. Raises KeyError."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)
