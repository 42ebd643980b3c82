"""Counting: histograms against numpy, devices in bounded memory, and what a bounded set of labels does."""

from __future__ import annotations

import numpy as np
import pytest

from splitwire.codec.wire.report import DeviceReport
from splitwire.runtime_cloud.observe import Answered, Observer, Observers, Telemetry
from splitwire.runtime_cloud.observe.counting import BITS, SECONDS, SHOWN_SECONDS, Histogram, quantile
from splitwire.runtime_cloud.observe.devices import Devices
from splitwire.runtime_cloud.observe.telemetry import EVENT_KINDS, MODELS, REFUSALS


def answered(device: str = "", *, pair: str = "00ff", frame_bytes: int = 100, ran: float = 1e-3) -> Answered:
    return Answered(
        model="tiny", pair=pair, op="n4", protocol="http", device=device, images=1, elements=400,
        frame_bytes=frame_bytes, reply_bytes=50, received=1e-4, queued=2e-4, decoded=3e-4, ran=ran, encoded=1e-5,
        ended=1.0,
    )  # fmt: skip


def test_cells_and_sums_are_those_of_numpy():
    values = np.concatenate([np.random.default_rng(0).lognormal(-6, 2, 5000), SECONDS, [0.0, 1e9]])
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.add(float(value))
    assert histogram.count == len(values)
    assert histogram.sum == pytest.approx(values.sum())
    for bound, count in histogram.cumulative(SHOWN_SECONDS):
        assert count == (values <= bound).sum()


def test_the_shown_bounds_are_bounds_of_cells():
    assert set(SHOWN_SECONDS) <= set(SECONDS)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 0.99])
def test_a_quantile_is_right_to_a_cell(share: float):
    values = np.random.default_rng(1).lognormal(-6, 1, 20_000)
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.add(float(value))
    assert quantile(SECONDS, histogram.cells, share) == pytest.approx(np.quantile(values, share), rel=0.1)


def test_quantiles_of_nothing_and_of_what_is_beyond_the_last_bound():
    histogram = Histogram(BITS)
    assert quantile(BITS, histogram.cells, 0.5) is None
    histogram.add(1e6)
    assert quantile(BITS, histogram.cells, 0.5) == BITS[-1]


def test_a_frame_is_counted_once_in_each_place():
    telemetry = Telemetry()
    telemetry.answered(answered("cam", frame_bytes=100))
    (counts,) = telemetry.models.values()
    assert [h.count for h in (*counts.stages, counts.whole, counts.bits)] == [1] * 7
    assert counts.whole.sum == pytest.approx(1e-4 + 2e-4 + 3e-4 + 1e-3 + 1e-5)
    assert counts.bits.sum == pytest.approx(8 * 100 / 400)
    assert (counts.images, counts.frame_bytes, counts.reply_bytes, counts.answers) == (1, 100, 50, {"http": 1})


def test_devices_are_bounded_and_the_silent_ones_go_first():
    devices = Devices(known=3, series=2)
    for i, name in enumerate(("a", "b", "a", "c", "d")):
        devices.heard(name, float(i))
    assert {d.name for d in devices} == {"a", "c", "d"}


def test_series_of_devices_never_fall():
    telemetry = Telemetry()
    telemetry.devices = Devices(known=100, series=2)
    rng = np.random.default_rng(0)
    seen: dict[str, int] = {}
    for tick in range(60):
        for device in rng.zipf(1.5, 40) + tick // 20 * 3:
            telemetry.answered(answered(f"cam-{device}"))
        telemetry.devices.tick(1.0)
        telemetry.devices.choose()
        own = {d.name: d.series.value for d in telemetry.devices.own()}
        assert len(own) <= 2
        now = {**own, "other": telemetry.devices.other.value}
        for name, value in now.items():
            if name in seen:
                assert value >= seen[name]
        seen = now
    assert seen["other"] > 0


def test_a_storm_of_names_models_codes_and_kinds_stays_small():
    telemetry = Telemetry()
    for i in range(3000):
        telemetry.answered(answered(f"device-{i}", pair=f"{i:016x}"))
        telemetry.refused(f"made-up-{i}", "x" * 5000, device=f"device-{i}")
        telemetry.event(f"kind-{i}", "y" * 5000)
    assert len(telemetry.devices) == 1000
    assert len(telemetry.models) == MODELS + 1 and "other" in telemetry.models
    assert telemetry.refusals == {("other", "http"): 3000}
    assert len(telemetry.recent_refusals) == REFUSALS
    assert len(telemetry.event_kinds) == EVENT_KINDS + 1
    assert max(len(e.text) for e in telemetry.events) == 300


def test_refusals_of_one_kind_are_one_line():
    telemetry = Telemetry()
    for _ in range(5):
        telemetry.refused("corrupt", "damaged", device="cam")
    (line,) = telemetry.recent_refusals.values()
    assert (line.kind, line.count, line.device) == ("corrupt", 5, "cam")


def test_a_device_is_known_by_its_report_and_names_are_cut():
    telemetry = Telemetry()
    telemetry.reported("", DeviceReport(device="cam", drift=1.5))
    telemetry.reported("x" * 500, DeviceReport(drift=0.5))
    telemetry.reported("", DeviceReport(drift=0.5))
    assert {d.name for d in telemetry.devices} == {"cam", "x" * 64}


def test_several_observers_hear_everything():
    one, two = Telemetry(), Telemetry()
    both: Observer = Observers([one, two])
    both.answered(answered("cam"))
    both.remembered("http", "cam")
    both.refused("corrupt", "damaged", device="cam")
    both.batched("tiny", "00ff", 4)
    both.reported("cam", DeviceReport(drift=1.0))
    both.event("ready", "ready")
    for telemetry in (one, two):
        (device,) = telemetry.devices
        assert (device.answers, device.remembered, device.refused) == (1, 1, 1)
        assert device.report == DeviceReport(drift=1.0)
        assert telemetry.models["00ff"].batches.count == 1
        assert [e.kind for e in telemetry.events] == ["ready"]
