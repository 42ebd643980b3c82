"""The metrics of a server, in Prometheus' text formats. docs/observe.md has their table, and a test compares."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from .counting import BITS, IMAGES, SHOWN_SECONDS, Histogram
from .devices import FRESH_S
from .telemetry import OTHER, STAGES, Telemetry

PREFIX = "splitwire_cloud_"
PACKAGES = ("splitwire", "onnxruntime", "numpy")
"""Their versions are in the build info."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric. name: without PREFIX and without what its kind adds (`_total`, `_bucket`, `_info`)."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str

    def family(self) -> Metric:
        """The metric without samples."""
        if self.kind == "info":
            return InfoMetricFamily(PREFIX + self.name, self.text, labels=self.labels)
        kinds: dict[str, Callable[..., Metric]] = {
            "counter": CounterMetricFamily,
            "gauge": GaugeMetricFamily,
            "histogram": HistogramMetricFamily,
        }
        return kinds[self.kind](PREFIX + self.name, self.text, labels=self.labels)


MODEL = ("model", "pair")
ROWS = (
    Row(name="answers", kind="counter", labels=(*MODEL, "protocol"), text="Frames that were computed and answered"),
    Row(name="images", kind="counter", labels=MODEL, text="Images in these frames"),
    Row(name="frame_bytes", kind="counter", labels=MODEL, text="Bytes of these frames"),
    Row(name="reply_bytes", kind="counter", labels=MODEL, text="Bytes of the replies"),
    Row(name="stage_seconds", kind="histogram", labels=("stage", *MODEL), text="Time of one stage of a frame"),
    Row(name="request_seconds", kind="histogram", labels=MODEL, text="Time of all stages of a frame"),
    Row(name="bits_per_element", kind="histogram", labels=MODEL, text="Bits of a frame per element of its tensors"),
    Row(name="batch_images", kind="histogram", labels=MODEL, text="Images in one run of the back half"),
    Row(name="remembered", kind="counter", labels=("protocol",), text="Frames that were answered from memory"),
    Row(name="refusals", kind="counter", labels=("reason", "protocol"), text="Requests and frames that got an error"),
    Row(name="device_answers", kind="counter", labels=("device",), text="Frames answered, of the busiest devices"),
    Row(name="device_drift", kind="gauge", labels=("device",), text="Drift over its limit, as the device reports it"),
    Row(name="device_skipped", kind="gauge", labels=("device",), text="Share of pictures that the device skips"),
    Row(name="queue_depth", kind="gauge", labels=(), text="Frames that wait for a compute thread"),
    Row(name="running", kind="gauge", labels=(), text="Inferences that run now"),
    Row(name="buffered_bytes", kind="gauge", labels=(), text="Bytes of request bodies in memory"),
    Row(name="streams", kind="gauge", labels=(), text="Streams that are open"),
    Row(name="kept_answers", kind="gauge", labels=(), text="Answers that are remembered"),
    Row(name="devices", kind="gauge", labels=(), text="Devices that are remembered, at most 1,000"),
    Row(name="watchers", kind="gauge", labels=(), text="Monitor pages that are open"),
    Row(name="ready", kind="gauge", labels=(), text="1 while frames are taken"),
    Row(name="model_state", kind="gauge", labels=(*MODEL, "state"), text="1 for the state that a model is in"),
    Row(name="events", kind="counter", labels=("kind",), text="Events by kind"),
    Row(name="build", kind="info", labels=(), text="Versions of what runs"),
)


class _Collector(Collector):
    """Reads a Telemetry when Prometheus asks."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._build = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}

    def describe(self) -> list[Metric]:
        """The metrics without samples, so that a registry need not collect them to know their names."""
        return [row.family() for row in ROWS]

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        families: dict[str, Any] = {row.name: row.family() for row in ROWS}
        self._fill_models(families)
        self._fill_devices(families)
        self._fill_levels(families)
        telemetry = self._telemetry
        for protocol, count in telemetry.remembered_answers.items():
            families["remembered"].add_metric((protocol,), count)
        for (code, protocol), count in telemetry.refusals.items():
            families["refusals"].add_metric((code, protocol), count)
        for kind, count in telemetry.event_kinds.items():
            families["events"].add_metric((kind,), count)
        families["build"].add_metric((), self._build)
        yield from families.values()

    def _fill_models(self, families: dict[str, Any]) -> None:
        for counts in self._telemetry.models.values():
            labels = (counts.model, counts.pair)
            for protocol, count in counts.answers.items():
                families["answers"].add_metric((*labels, protocol), count)
            families["images"].add_metric(labels, counts.images)
            families["frame_bytes"].add_metric(labels, counts.frame_bytes)
            families["reply_bytes"].add_metric(labels, counts.reply_bytes)
            for stage, histogram in zip(STAGES, counts.stages, strict=True):
                _add(families["stage_seconds"], (stage, *labels), histogram, SHOWN_SECONDS)
            _add(families["request_seconds"], labels, counts.whole, SHOWN_SECONDS)
            _add(families["bits_per_element"], labels, counts.bits, BITS)
            _add(families["batch_images"], labels, counts.batches, IMAGES)

    def _fill_devices(self, families: dict[str, Any]) -> None:
        devices = self._telemetry.devices
        now = self._telemetry.now()
        families["device_answers"].add_metric((OTHER,), devices.other.value)
        for device in devices.own():
            families["device_answers"].add_metric((device.name,), device.series.value)
            if device.report is not None and now - device.reported <= FRESH_S:
                if device.report.drift is not None:
                    families["device_drift"].add_metric((device.name,), device.report.drift)
                if device.report.skipped is not None:
                    families["device_skipped"].add_metric((device.name,), device.report.skipped)

    def _fill_levels(self, families: dict[str, Any]) -> None:
        levels = self._telemetry.levels()
        gauges = {
            "queue_depth": levels.queued,
            "running": levels.running,
            "buffered_bytes": levels.buffered,
            "streams": levels.streams,
            "kept_answers": levels.kept,
            "devices": len(self._telemetry.devices),
            "watchers": self._telemetry.watchers,
            "ready": int(levels.ready),
        }
        for name, value in gauges.items():
            families[name].add_metric((), value)
        for model in levels.models:
            families["model_state"].add_metric((model.name, model.pair, model.state), 1)


class Exposition:
    """The metrics of one server as text."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(telemetry))
        ProcessCollector(registry=self._registry)

    def text(self, accept: str) -> tuple[bytes, str]:
        """(body, Content-Type): in the format that the Accept header asks for, or Prometheus' text format."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type


def _add(
    family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram, bounds: tuple[float, ...]
) -> None:
    rows = [(f"{bound:g}", float(count)) for bound, count in histogram.cumulative(bounds)]
    buckets = [*rows, ("+Inf", float(histogram.count))]
    family.add_metric(labels, buckets, sum_value=histogram.sum)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
