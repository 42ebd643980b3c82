"""What the monitor page shows: counts of the last seconds, the devices, the models, refusals and events."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from splitwire.runtime_cloud.observe.counting import BITS, SECONDS, Histogram, quantile
from splitwire.runtime_cloud.observe.devices import FRESH_S, Device
from splitwire.runtime_cloud.observe.telemetry import STAGES, Happened, Telemetry

WINDOW_S = 10
"""Seconds that the figures of the page are of."""
HISTORY_S = 300
"""Seconds that its charts show."""
DEVICES = 50
LISTED = 30
"""Refusals and events on the page."""
CHOOSE_EVERY = 10
"""Ticks from one choice of the devices with series of their own to the next."""

Cells = list[int]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """All counts at one moment. at: seconds, monotonic. stages, whole, bits: the cells of the histograms, over all
    models. models: answers by pair."""

    at: float
    answers: int
    images: int
    remembered: int
    refused: int
    elements: int
    received: int
    sent: int
    stages: tuple[Cells, ...]
    whole: Cells
    bits: Cells
    models: dict[str, int]


class Watch:
    """Takes a sample once a second; makes the messages to the page out of the last ones."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._samples: deque[Sample] = deque([take(telemetry)], maxlen=WINDOW_S + 1)
        self._history: deque[dict[str, Any]] = deque(maxlen=HISTORY_S)
        self._ticks = 0
        self._version = _version()

    def tick(self) -> None:
        """Take a sample: once a second, whether someone watches or not."""
        last, sample = self._samples[-1], take(self._telemetry)
        elapsed = sample.at - last.at
        if elapsed <= 0:
            return
        self._samples.append(sample)
        self._telemetry.devices.tick(elapsed)
        if self._ticks % CHOOSE_EVERY == 0:
            self._telemetry.devices.choose()
        self._ticks += 1
        cells = _difference(sample.whole, last.whole)
        self._history.append(
            {
                "t": round(time.time(), 2),
                "fps": _rate(sample.answers - last.answers, elapsed),
                "in": _rate(sample.received - last.received, elapsed),
                "out": _rate(sample.sent - last.sent, elapsed),
                "p50": _ms(SECONDS, cells, 0.5),
                "p95": _ms(SECONDS, cells, 0.95),
                "refused": _rate(sample.refused - last.refused, elapsed),
            }
        )

    def history(self) -> str:
        """The points of the charts, one per second, as JSON."""
        return msgspec.json.encode(list(self._history)).decode()

    def state(self) -> str:
        """Everything but the charts, and their newest point, as JSON."""
        telemetry, new, old = self._telemetry, self._samples[-1], self._samples[0]
        elapsed = max(1e-3, new.at - old.at)
        levels = telemetry.levels()
        answers = new.answers - old.answers
        elements = new.elements - old.elements
        state = {
            "version": self._version,
            "started": round(telemetry.started, 3),
            "time": round(time.time(), 3),
            "ready": levels.ready,
            "queued": levels.queued,
            "running": levels.running,
            "buffered": levels.buffered,
            "streams": levels.streams,
            "kept": levels.kept,
            "watchers": telemetry.watchers,
            "answers": new.answers,
            "fps": _rate(answers, elapsed),
            "images": _rate(new.images - old.images, elapsed),
            "in": _rate(new.received - old.received, elapsed),
            "out": _rate(new.sent - old.sent, elapsed),
            "refused": _rate(new.refused - old.refused, elapsed),
            "remembered": _rate(new.remembered - old.remembered, elapsed),
            "bits": round(8 * (new.received - old.received) / elements, 4) if elements else None,
            "bits95": _quantile(BITS, _difference(new.bits, old.bits), 0.95),
            "stages": [
                {"name": name, "p50": _ms(SECONDS, cells, 0.5), "p95": _ms(SECONDS, cells, 0.95)}
                for name, cells in (
                    *((stage, _difference(new.stages[i], old.stages[i])) for i, stage in enumerate(STAGES)),
                    ("all", _difference(new.whole, old.whole)),
                )
            ],
            "devices": [self._device(device) for device in telemetry.devices.busiest(DEVICES)],
            "known": len(telemetry.devices),
            "models": self._models(new, old, elapsed),
            "refusals": [_happened(r) for r in list(reversed(telemetry.recent_refusals.values()))[:LISTED]],
            "events": [_happened(e) for e in list(reversed(telemetry.events))[:LISTED]],
            "point": self._history[-1] if self._history else None,
        }
        return msgspec.json.encode(state).decode()

    def _device(self, device: Device) -> dict[str, Any]:
        now = self._telemetry.now()
        shown: dict[str, Any] = {
            "name": device.name,
            "model": device.model,
            "protocol": device.protocol,
            "fps": round(device.rate, 2),
            "bytes": round(device.byte_rate),
            "answers": device.answers,
            "refused": device.refused,
            "silent": round(now - device.heard, 1),
        }
        report = device.report
        if report is not None and now - device.reported <= FRESH_S:
            shown |= {
                "captured": report.captured,
                "skipped": report.skipped,
                "dropped": report.dropped,
                "drift": report.drift,
                "waiting": report.waiting,
            }
        return shown

    def _models(self, new: Sample, old: Sample, elapsed: float) -> list[dict[str, Any]]:
        rows = []
        for model in self._telemetry.levels().models:
            counts = self._telemetry.models.get(model.pair)
            rows.append(
                {
                    "name": model.name,
                    "version": model.version,
                    "pair": model.pair,
                    "state": model.state,
                    "reason": model.reason[:300],
                    "answers": new.models.get(model.pair, 0),
                    "fps": _rate(new.models.get(model.pair, 0) - old.models.get(model.pair, 0), elapsed),
                    "bits": round(8 * counts.frame_bytes / counts.elements, 4) if counts and counts.elements else None,
                }
            )
        return rows


def take(telemetry: Telemetry) -> Sample:
    """The counts of a server now."""
    models = telemetry.models.values()
    return Sample(
        at=telemetry.now(),
        answers=sum(sum(m.answers.values()) for m in models),
        images=sum(m.images for m in models),
        remembered=sum(telemetry.remembered_answers.values()),
        refused=sum(telemetry.refusals.values()),
        elements=sum(m.elements for m in models),
        received=sum(m.frame_bytes for m in models),
        sent=sum(m.reply_bytes for m in models),
        stages=tuple(_together([m.stages[i] for m in models], SECONDS) for i in range(len(STAGES))),
        whole=_together([m.whole for m in models], SECONDS),
        bits=_together([m.bits for m in models], BITS),
        models={m.pair: sum(m.answers.values()) for m in models},
    )


def _together(histograms: Sequence[Histogram], bounds: Sequence[float]) -> Cells:
    if not histograms:
        return [0] * (len(bounds) + 1)
    return [sum(column) for column in zip(*(h.cells for h in histograms), strict=True)]


def _difference(new: Cells, old: Cells) -> Cells:
    return [a - b for a, b in zip(new, old, strict=True)]


def _rate(count: float, elapsed: float) -> float:
    return round(count / elapsed, 2)


def _quantile(bounds: Sequence[float], cells: Cells, share: float) -> float | None:
    value = quantile(bounds, cells, share)
    return None if value is None else round(value, 4)


def _ms(bounds: Sequence[float], cells: Cells, share: float) -> float | None:
    value = quantile(bounds, cells, share)
    return None if value is None else round(value * 1e3, 3)


def _happened(entry: Happened) -> dict[str, Any]:
    return {
        "wall": round(entry.wall, 1),
        "kind": entry.kind,
        "text": entry.text,
        "protocol": entry.protocol,
        "device": entry.device,
        "count": entry.count,
    }


def _version() -> str:
    try:
        return version("splitwire")
    except PackageNotFoundError:
        return ""
