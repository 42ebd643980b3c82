"""Telemetry: the observer that counts. Metrics and the monitor page show what it has.

A frame costs it about two microseconds (benchmarks/speed/metrics.py).
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from msgspec import Struct

from splitwire.codec.errors import SplitwireError
from splitwire.codec.wire.report import DeviceReport

from .counting import BITS, IMAGES, SECONDS, Histogram
from .devices import MAX_NAME, Devices
from .observer import Answered, Observer

STAGES = ("receive", "queue", "decode", "back", "reply")
"""The stages of a frame, in their order."""
HTTP_CODES = ("internal", "method_not_allowed", "not_found", "unsupported_media_type")
"""Codes of refusals that are no error of splitwire."""
OTHER = "other"
MODELS = 64
"""Models with series of their own."""
EVENT_KINDS = 32
EVENTS = 100
REFUSALS = 50


class ModelState(Struct, frozen=True, kw_only=True):
    """A model and whether it serves. pair: fingerprint in hex. state: "ready", "warming", "quarantined", ….

    reason: why it does not serve, "" if it does.
    """

    name: str
    pair: str
    version: str = ""
    state: str = "ready"
    reason: str = ""


class Levels(Struct, frozen=True, kw_only=True):
    """How full the server is at this moment.

    queued: frames that wait for a compute thread. running: inferences. buffered: bytes of bodies in memory. streams:
    that are open. kept: answers that are remembered. ready: whether frames are taken.
    """

    queued: int = 0
    running: int = 0
    buffered: int = 0
    streams: int = 0
    kept: int = 0
    ready: bool = False
    models: tuple[ModelState, ...] = ()


class Happened(Struct, kw_only=True):
    """An event or a refusal. wall: when, seconds since 1970. count: how often it came since it is in the list."""

    wall: float
    kind: str
    text: str
    protocol: str = ""
    device: str = ""
    count: int = 1
    fields: dict[str, str | int | float] = {}


class ModelCounts:
    """What one pair has served. stages: seconds, as STAGES. whole: their sum."""

    __slots__ = (
        "answers", "batches", "bits", "elements", "frame_bytes", "images", "model", "pair", "reply_bytes", "stages",
        "whole",
    )  # fmt: skip

    def __init__(self, model: str, pair: str) -> None:
        self.model, self.pair = model, pair
        self.stages = tuple(Histogram(SECONDS) for _ in STAGES)
        self.whole = Histogram(SECONDS)
        self.bits = Histogram(BITS)
        self.batches = Histogram(IMAGES)
        self.images = self.elements = self.frame_bytes = self.reply_bytes = 0
        self.answers: dict[str, int] = {}


class Telemetry(Observer):
    """Counts what the server does.

    levels: reads how full the server is; the application sets it. clock: seconds, monotonic.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.levels: Callable[[], Levels] = Levels
        self.devices = Devices()
        self.models: dict[str, ModelCounts] = {}
        self.refusals: dict[tuple[str, str], int] = {}
        self.remembered_answers: dict[str, int] = {}
        self.event_kinds: dict[str, int] = {}
        self.events: deque[Happened] = deque(maxlen=EVENTS)
        self.recent_refusals: OrderedDict[tuple[str, str, str], Happened] = OrderedDict()
        self.watchers = 0
        self.started = time.time()
        self._clock = clock
        self._codes = frozenset({*_codes(SplitwireError), *HTTP_CODES})

    def answered(self, answer: Answered) -> None:
        counts = self.models.get(answer.pair) or self._new_model(answer.model, answer.pair)
        receive, queue, decode, back, reply = counts.stages
        receive.add(answer.received)
        queue.add(answer.queued)
        decode.add(answer.decoded)
        back.add(answer.ran)
        reply.add(answer.encoded)
        counts.whole.add(answer.received + answer.queued + answer.decoded + answer.ran + answer.encoded)
        size = answer.frame_bytes
        counts.bits.add(8 * size / answer.elements)
        counts.images += answer.images
        counts.elements += answer.elements
        counts.frame_bytes += size
        counts.reply_bytes += answer.reply_bytes
        counts.answers[answer.protocol] = counts.answers.get(answer.protocol, 0) + 1
        if answer.device:
            device = self.devices.heard(answer.device[:MAX_NAME], self._clock())
            device.answers += 1
            device.series.value += 1
            device.bytes += size + answer.reply_bytes
            device.model = answer.model
            device.protocol = answer.protocol
        else:
            self.devices.other.value += 1

    def remembered(self, protocol: str, device: str) -> None:
        self.remembered_answers[protocol] = self.remembered_answers.get(protocol, 0) + 1
        if (known := self.devices.find(device[:MAX_NAME])) is not None:
            known.remembered += 1

    def refused(self, code: str, text: str, *, protocol: str = "http", device: str = "") -> None:
        if code not in self._codes:
            code = OTHER
        self.refusals[code, protocol] = self.refusals.get((code, protocol), 0) + 1
        device = device[:MAX_NAME]
        key = (code, protocol, device)
        last = self.recent_refusals.get(key)
        if last is None:
            if len(self.recent_refusals) >= REFUSALS:
                self.recent_refusals.popitem(last=False)
            wall = time.time()
            self.recent_refusals[key] = Happened(
                wall=wall, kind=code, text=text[:300], protocol=protocol, device=device
            )
        else:
            last.wall, last.text = time.time(), text[:300]
            last.count += 1
            self.recent_refusals.move_to_end(key)
        if device and (known := self.devices.find(device)) is not None:
            known.refused += 1

    def batched(self, model: str, pair: str, images: int) -> None:
        counts = self.models.get(pair) or self._new_model(model, pair)
        counts.batches.add(images)

    def reported(self, device: str, report: DeviceReport) -> None:
        if name := (device or report.device)[:MAX_NAME]:
            heard = self.devices.heard(name, self._clock())
            heard.report, heard.reported = report, heard.heard

    def event(self, kind: str, text: str, **fields: str | int | float) -> None:
        known = kind in self.event_kinds or len(self.event_kinds) < EVENT_KINDS
        counted = kind if known else OTHER
        self.event_kinds[counted] = self.event_kinds.get(counted, 0) + 1
        self.events.append(Happened(wall=time.time(), kind=kind, text=text[:300], fields=fields))

    def now(self) -> float:
        """The time by its clock, seconds."""
        return self._clock()

    def _new_model(self, model: str, pair: str) -> ModelCounts:
        """Counts for a pair; those beyond MODELS share one."""
        if len(self.models) >= MODELS:
            if OTHER not in self.models:
                self.models[OTHER] = ModelCounts(OTHER, "")
            return self.models[OTHER]
        counts = self.models[pair] = ModelCounts(model, pair)
        return counts


def _codes(error: type[SplitwireError]) -> Iterator[str]:
    yield error.code
    for kind in error.__subclasses__():
        yield from _codes(kind)
