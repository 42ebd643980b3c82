"""Drift is seen when the input changes, and not while it is ordinary."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from control_profiles import coefficients_of, maps_of, scalar_profile, transform_profile
from runtime_helpers import flat_tables

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.drift import CELLS, DRIFT_KEY, DriftReference, Meter, reference_in, spread
from splitwire.codec.errors import ProfileError
from splitwire.codec.profile import Clipping, CodecProfile, Quantizer, TensorPoint
from splitwire.exporter.pair.drift import FEWEST, make_reference
from splitwire.runtime_edge.control import DriftMonitor

Draw = Callable[[np.random.Generator, int], np.ndarray]
FOUR = TensorPoint(
    quantizer=Quantizer.uniform(0, 0.5, 4), clipping=Clipping(method="histogram"), tables=flat_tables(4, 4)
)


def scalar() -> tuple[CodecProfile, Draw]:
    return scalar_profile(shape=(4, 8, 8), tensor=FOUR), maps_of


def transform() -> tuple[CodecProfile, Draw]:
    return transform_profile(), coefficients_of


KINDS = [scalar, transform]


def reference_of(profile: CodecProfile, draw: Draw, images: int = 256) -> DriftReference:
    reference = make_reference(profile, [[draw(np.random.default_rng(1), images)]])
    assert reference is not None
    return reference


def fires(monitor: DriftMonitor, profile: CodecProfile, frames: np.ndarray) -> list[tuple[int, str]]:
    """(number of the frame, kind of the event)."""
    codec = FeatureCodec(profile)
    found = []
    for i in range(len(frames)):
        features = [frames[i : i + 1]]
        event = monitor.observe(features, len(codec.encode(features)))
        if event is not None:
            found.append((i, event.kind))
    return found


@pytest.mark.parametrize(("kind", "images"), [(scalar, 300), (transform, 5000)])
def test_no_alarm_on_ordinary_images(kind, images: int):
    profile, draw = kind()
    monitor = DriftMonitor(profile, reference_of(profile, draw), op=profile.default_op)
    assert fires(monitor, profile, draw(np.random.default_rng(2), images)) == []
    assert 0 < monitor.score < 1


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "darker": lambda y: y * np.float32(0.4),
    "stronger": lambda y: y * np.float32(2.5),
    "inverted": lambda y: y.max() - y,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_fires_within_200_frames_once_and_says_when_it_ends(kind, change):
    profile, draw = kind()
    monitor = DriftMonitor(profile, reference_of(profile, draw), op=profile.default_op, wall=lambda: 5.0)
    rng = np.random.default_rng(2)
    assert fires(monitor, profile, draw(rng, 300)) == []
    drifted = fires(monitor, profile, CHANGES[change](draw(rng, 400)))
    assert [kind for _, kind in drifted] == ["drift"]
    assert drifted[0][0] < 200
    assert monitor.drifting
    assert [kind for _, kind in fires(monitor, profile, draw(rng, 300))] == ["drift_ended"]
    assert not monitor.drifting


def test_the_event_says_what_to_do():
    profile, draw = scalar()
    monitor = DriftMonitor(profile, reference_of(profile, draw), wall=lambda: 5.0)
    events = [monitor.observe([y], 100) for y in np.split(10 * draw(np.random.default_rng(2), 64), 64)]
    event = next(e for e in events if e is not None)
    assert event.wall == 5.0
    assert event.fields["signal"] in ("outside", "divergence")
    assert event.fields["value"] > event.fields["limit"]  # type: ignore[operator]  # both are numbers
    assert "`splitwire edge capture`" in event.text
    assert "`splitwire export --recalibrate`" in event.text


def test_a_batch_counts_as_its_images():
    profile, draw = scalar()
    monitor = DriftMonitor(profile, reference_of(profile, draw), op=profile.default_op)
    assert monitor.observe([10 * draw(np.random.default_rng(2), 64)], 64 * 100) is None
    events = [monitor.observe([10 * draw(np.random.default_rng(i), 64)], 64 * 100) for i in range(8)]
    assert [e.kind for e in events if e is not None] == ["drift"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resting_camera_does_not_raise_alarms(kind):
    """It shows one ordinary picture, with noise of the sensor; 100 times another one."""
    profile, draw = kind()
    reference = reference_of(profile, draw)
    rng = np.random.default_rng(3)
    for picture in np.split(draw(rng, 100), 100):
        monitor = DriftMonitor(profile, reference)
        noise = (1 + 0.1 * rng.normal(size=(96, *picture.shape))).astype(np.float32)
        assert [e for n in noise if (e := monitor.observe([picture * n], 100)) is not None] == []


def test_frame_lengths_are_compared_at_their_operating_point():
    profile, draw = transform()
    reference = reference_of(profile, draw)
    frames = draw(np.random.default_rng(2), 400)
    codec = FeatureCodec(profile)
    told, untold = DriftMonitor(profile, reference), DriftMonitor(profile, reference)
    wrong = DriftMonitor(profile, reference, op="q3")
    events: dict[str, list[str]] = {"told": [], "untold": [], "wrong": []}
    for i in range(len(frames)):
        features = [frames[i : i + 1]]
        op = ("q1", "q3")[i % 3 == 0]
        size = len(codec.encode(features, op=op))
        for name, event in (
            ("told", told.observe(features, size, op=op)),
            ("untold", untold.observe(features, size)),
            ("wrong", wrong.observe(features, size)),
        ):
            if event is not None:
                events[name].append(str(event.fields["signal"]))
    assert events == {"told": [], "untold": [], "wrong": ["bits"]}


def test_strange_images_are_stranger():
    profile, draw = scalar()
    monitor = DriftMonitor(profile, reference_of(profile, draw))
    ordinary = draw(np.random.default_rng(2), 50)
    usual = [monitor.strangeness([y]) for y in np.split(ordinary, 50)]
    strange = [monitor.strangeness([y]) for y in np.split(4 * ordinary + 1, 50)]
    assert max(usual) < min(strange)
    assert max(usual) < 1


# ------------------------------------------------------------------ the reference


def test_few_images_give_no_reference():
    profile, draw = scalar()
    assert make_reference(profile, [[draw(np.random.default_rng(1), FEWEST - 1)]]) is None
    assert make_reference(profile, [[np.zeros((FEWEST, 4, 8, 8), np.float32)]]) is None
    reference = make_reference(profile, [[y] for y in np.split(draw(np.random.default_rng(1), FEWEST), 4)])
    assert reference is not None
    assert reference.images == FEWEST


def test_the_reference_survives_the_metadata():
    profile, draw = scalar()
    reference = reference_of(profile, draw)
    assert reference_in({DRIFT_KEY: reference.to_json()}, "front.onnx") == reference
    assert reference_in({}, "front.onnx") is None
    assert len(reference.to_json()) < 8000
    assert reference.window == 64
    assert sum(reference.histogram) == pytest.approx(1)


def test_damaged_references_are_refused():
    profile, draw = scalar()
    reference = reference_of(profile, draw, FEWEST)
    cut = msgspec.structs.replace(reference.limits, longer=reference.limits.longer[1:])
    for text in ("{", "[]", msgspec.structs.replace(reference, limits=cut).to_json()):
        with pytest.raises(ProfileError, match=r"^front\.onnx: the reference for drift"):
            reference_in({DRIFT_KEY: text}, "front.onnx")


def test_limits_fall_with_the_number_of_images():
    reference = reference_of(*transform())
    for limits in msgspec.structs.astuple(reference.limits):
        assert limits[-1] < limits[0]


# ------------------------------------------------------------------ the meter


def test_the_meter_counts_cells_and_what_is_outside():
    profile, _ = scalar()
    meter = Meter(profile, "r3")
    features = np.zeros((2, 4, 8, 8), np.float32)
    features[1, 0] = 0.6  # beyond the clipping range of 0.5
    features[1, 1] = -0.1
    histograms, outside = meter.measure([features])
    assert histograms.shape == (2, 4 * CELLS)
    assert histograms.sum(axis=1) == pytest.approx([1, 1])
    assert outside.tolist() == [0, 0.5]
    assert histograms[0].reshape(4, CELLS)[:, 0].tolist() == [0.25] * 4
    assert histograms[1].reshape(4, CELLS)[0, -1] == 0.25
    assert meter.divergence(histograms[0], histograms[0]) == 0
    assert meter.divergence(histograms[1], histograms[0]) > 0


def test_coefficients_beyond_the_tables_are_outside():
    profile, draw = transform()
    meter = Meter(profile, "q2")  # step index 63
    y = draw(np.random.default_rng(0), 1)
    step = 2 ** (-1 / 4)
    y[0, 0, :3] = 15.4 * step, 15.6 * step, -16 * step
    y[0, 0, 3:] = 0
    assert meter.measure([y])[1].tolist() == [2 / 32]


def test_indices_are_spread():
    assert spread(5, 10).tolist() == [0, 1, 2, 3, 4]
    index = spread(100 * 64 * 64, 1000)
    assert len(index) > 990
    assert index.max() < 100 * 64 * 64
    columns = np.bincount(index % 64, minlength=64)
    assert columns.min() > 0
    assert columns.max() < 40
