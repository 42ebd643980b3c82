"""Observer: what the server calls when something has happened. The base class does nothing, and costs next to nothing.

All methods are called in the thread of the event loop. They must not wait, and must not raise.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from splitwire.codec.wire.report import DeviceReport


class Answered(Struct, frozen=True, kw_only=True, gc=False):
    """One frame that was answered, and what that took. Times are in seconds, sizes in bytes.

    model, pair: name and fingerprint (hex) of the pair. op: operating point. protocol: "http", "stream", …. device: id
    of the device, "" if it did not say. images: number of images in the frame. elements: of all its feature tensors.
    received: from the first byte of the request to its last. queued: until a compute thread took it. decoded, ran,
    encoded: decoder, back half, and writing the reply. ended: when the reply was ready, as time.perf_counter() counts.
    trace: the W3C traceparent of the request, "" for none.
    """

    model: str
    pair: str
    op: str
    protocol: str
    device: str
    images: int
    elements: int
    frame_bytes: int
    reply_bytes: int
    received: float
    queued: float
    decoded: float
    ran: float
    encoded: float
    ended: float
    trace: str = ""


class Observer:
    """Hears what the server does, and ignores it."""

    def answered(self, answer: Answered) -> None:
        """A frame was computed."""

    def remembered(self, protocol: str, device: str) -> None:
        """A frame came again, and its answer was remembered."""

    def refused(self, code: str, text: str, *, protocol: str = "http", device: str = "") -> None:
        """A request or a frame got an error. code: as in the error's body. text: one line, safe to print."""

    def batched(self, model: str, pair: str, images: int) -> None:
        """The back half of a pair (name, fingerprint in hex) ran once, on this many images."""

    def reported(self, device: str, report: DeviceReport) -> None:
        """A device said how it is (codec/wire/report.py)."""

    def event(self, kind: str, text: str, **fields: str | int | float) -> None:
        """Something that is no request has happened: a model was loaded, the server stops. text: one sentence."""


class Observers(Observer):
    """Calls several observers, in their order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)

    def answered(self, answer: Answered) -> None:
        for observer in self.observers:
            observer.answered(answer)

    def remembered(self, protocol: str, device: str) -> None:
        for observer in self.observers:
            observer.remembered(protocol, device)

    def refused(self, code: str, text: str, *, protocol: str = "http", device: str = "") -> None:
        for observer in self.observers:
            observer.refused(code, text, protocol=protocol, device=device)

    def batched(self, model: str, pair: str, images: int) -> None:
        for observer in self.observers:
            observer.batched(model, pair, images)

    def reported(self, device: str, report: DeviceReport) -> None:
        for observer in self.observers:
            observer.reported(device, report)

    def event(self, kind: str, text: str, **fields: str | int | float) -> None:
        for observer in self.observers:
            observer.event(kind, text, **fields)


def all_observers(observer: Observer) -> tuple[Observer, ...]:
    """An observer, or those that an Observers calls."""
    return observer.observers if isinstance(observer, Observers) else (observer,)
