"""GET /metrics of the real server, its table in the docs, and the dashboard that reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from runtime_helpers import Pair, Served, serving

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.wire.report import DeviceReport
from splitwire.runtime_cloud.http.app import create_app
from splitwire.runtime_cloud.observe import Observer, Telemetry
from splitwire.runtime_cloud.observe.metrics import PREFIX, ROWS, Exposition, Row
from splitwire.runtime_cloud.repository import Models
from splitwire.runtime_cloud.session import CloudSession

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "observe.md"


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Served]:
    with serving(pair) as running:
        yield running


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_a_server_counts_what_it_does(served: Served, pair: Pair):
    tensors = [np.ones((2, *t.shape), np.float32) for t in pair.profile.tensors]
    frame = FeatureCodec(pair.profile).encode(tensors, frame_id=3)
    for counter in (1, 2, 2):
        key = {"Idempotency-Key": f'"cam:b:{counter}"'}
        assert httpx.post(served.url + "/v1/infer", content=frame, headers=key).is_success
    assert httpx.post(served.url + "/v1/infer", content=b"nonsense").status_code == 400
    assert httpx.get(served.url + "/nothing").status_code == 404
    response = httpx.get(served.url + "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    found = samples(response.text)
    model = (("model", "tiny-0"), ("pair", pair.profile.fingerprint.hex()))
    assert found[PREFIX + "answers_total", (*model, ("protocol", "http"))] == 2
    assert found[PREFIX + "images_total", model] == 4
    assert found[PREFIX + "frame_bytes_total", model] == 2 * len(frame)
    assert found[PREFIX + "remembered_total", (("protocol", "http"),)] == 1
    assert found[PREFIX + "refusals_total", (("protocol", "http"), ("reason", "truncated"))] == 1
    assert found[PREFIX + "refusals_total", (("protocol", "http"), ("reason", "not_found"))] == 1
    for stage in ("receive", "queue", "decode", "back", "reply"):
        assert found[PREFIX + "stage_seconds_count", (*model, ("stage", stage))] == 2
    whole = found[PREFIX + "request_seconds_sum", model]
    parts = sum(v for (name, _), v in found.items() if name == PREFIX + "stage_seconds_sum")
    assert whole == pytest.approx(parts)
    elements = sum(t.size for t in tensors)
    assert found[PREFIX + "bits_per_element_sum", model] == pytest.approx(2 * 8 * len(frame) / elements)
    assert found[PREFIX + "batch_images_count", model] >= 1
    assert found[PREFIX + "ready", ()] == 1
    assert found[PREFIX + "model_state", (*model, ("state", "ready"))] == 1
    assert found["process_cpu_seconds_total", ()] > 0


def test_openmetrics_is_given_to_those_who_ask(served: Served):
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    response = httpx.get(served.url + "/metrics", headers=accept)
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert response.text.endswith("# EOF\n")


def test_a_label_cannot_break_the_text():
    telemetry = Telemetry()
    telemetry.reported('a"}\n evil 1', DeviceReport(drift=2.0))
    device = telemetry.devices.heard('a"}\n evil 1', 1.0)
    device.answers = 1
    telemetry.devices.tick(1.0)
    telemetry.devices.choose()
    telemetry.devices.find('a"}\n evil 1')
    body, _ = Exposition(telemetry).text("")
    assert (PREFIX + "device_answers_total", (("device", 'a"}\n evil 1'),)) in samples(body.decode())


def test_the_page_has_every_metric_and_no_other():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    expected = [(full_name(row), row.kind, ", ".join(f"`{x}`" for x in row.labels) or "–", row.text) for row in ROWS]
    assert rows == expected


def full_name(row: Row) -> str:
    return PREFIX + row.name + {"counter": "_total", "info": "_info"}.get(row.kind, "")


def test_without_a_telemetry_there_is_no_page(pair: Pair):
    app = create_app(Models([CloudSession(pair.back)]), observer=Observer())
    assert not {"/metrics", "/monitor"} & {getattr(route, "path", "") for route in app.routes}
