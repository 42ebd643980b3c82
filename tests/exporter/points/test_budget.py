"""Uniform quantizers over ranges with the least output distortion: points for a bit budget, or with N levels."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from codec_helpers import relu_features
from exporter_helpers import SHAPE, inputs, network
from torch import nn

import splitwire
from splitwire.codec.design import FeatureStatistics, Widening, design_operating_point
from splitwire.codec.design.clipping import float32_quantizer
from splitwire.codec.design.rate import NARROWEST, WIDEST, RateOf
from splitwire.codec.errors import ExportError, UsageError
from splitwire.codec.profile import METADATA_KEY, CodecProfile
from splitwire.codec.shared.pictures import spread
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.pair.result import ExportResult
from splitwire.exporter.points import design as sensitivity
from splitwire.exporter.points.measure import measure_damage
from splitwire.exporter.points.ranges import SCALES

pytestmark = pytest.mark.slow


class Pooled(nn.Module):
    """Its answer depends on the means of planes, in which errors of neighbours cancel out. power: of the features
    before; with 3 the large values alone matter, and a range for all of them is too narrow."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Linear(8, 10)
        self.power = power

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head((self.act(self.conv(x)) ** self.power).mean((2, 3)))
        return y


def peaks() -> nn.Module:
    torch.manual_seed(0)
    net = Pooled(3).eval()
    net.head.weight.data *= 20
    return net


@pytest.fixture(scope="module")
def statistics() -> FeatureStatistics:
    found = FeatureStatistics(channels=16)
    found.add(relu_features((24, 16, 14, 14)))
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    stages: list[str] = []
    result = splitwire.export(
        peaks(), cut="act", calibration=inputs(48), out=tmp_path_factory.mktemp("peaks"),
        input_shape=(1, 3, 16, 16), levels=("r1.3", 2, "r0.65", "e2", 4),
        progress=lambda stage, done, total: stages.append(stage),
    )  # fmt: skip
    assert {"Look at rates", "Try ranges", "Design for a budget"} <= set(stages)
    return result


# A range that is a multiple


@pytest.mark.parametrize("levels", [2, 5])
def test_once_the_range_is_the_uniform_quantizer(statistics: FeatureStatistics, levels: int) -> None:
    uniform = design_operating_point(levels=levels, statistics=statistics)[0].quantizer
    widening = Widening(levels, statistics)
    assert widening.quantizer(1.0) == uniform
    twice = widening.quantizer(2.0)
    np.testing.assert_allclose(twice.levels, 2 * np.array(uniform.levels), rtol=1e-6)
    assert twice.levels[0] == 0  # what is at rest stays exact


def test_a_range_on_one_side_of_zero_grows_away_from_it() -> None:
    values = FeatureStatistics(channels=1)
    values.add(np.random.default_rng(0).normal(-5, 0.5, (4, 1, 32, 32)).astype(np.float32))
    low, high = Widening(3, values).quantizer(1.0).clipping_range
    assert -7 < low < high < 0
    wide = Widening(3, values).quantizer(2.0).clipping_range
    np.testing.assert_allclose(wide, (high - 2 * (high - low), high), rtol=1e-5)


@pytest.mark.parametrize("entropy", [0.2, 0.5, 0.9])
def test_the_width_for_an_entropy(statistics: FeatureStatistics, entropy: float) -> None:
    widening = Widening(5, statistics)
    scale = widening.scale_for(entropy)
    assert NARROWEST < scale < WIDEST
    assert widening.entropy(widening.quantizer(scale)) == pytest.approx(entropy, rel=0.02)
    assert widening.entropy(widening.quantizer(scale)) <= entropy


def test_what_no_width_has(statistics: FeatureStatistics) -> None:
    two, many = Widening(2, statistics), Widening(16, statistics)
    assert two.has(0.5)
    assert not two.has(1.5)  # more than two levels can have
    assert many.has(1.9)
    assert not many.has(0.2)  # the outermost levels would lie beyond all values
    assert two.scale_for(1.5) == pytest.approx(NARROWEST, rel=1e-4)


@pytest.mark.parametrize("bits", [0.15, 0.4, 0.9])
def test_a_rate_is_met_from_below(statistics: FeatureStatistics, bits: float) -> None:
    point, spent = Widening(4, statistics).design(bits)
    assert 0.95 * bits <= spent <= bits
    assert point.clipping.scale == pytest.approx(
        point.quantizer.levels[-1] / Widening(4, statistics).quantizer(1).levels[-1]
    )
    entropy = RateOf(Widening(5, statistics), (0.1, 1.0)).entropy(bits)
    direct, bits_there = Widening(5, statistics).at(entropy)
    assert 0.9 * bits <= bits_there <= 1.02 * bits
    assert len(direct.quantizer.levels) == 5


@pytest.mark.parametrize("bits", [0.2, 0.4, 0.9])
def test_a_rate_is_met_with_means_preserved(statistics: FeatureStatistics, bits: float) -> None:
    point, spent = Widening(3, statistics, preserves_mean=True).design(bits)
    assert point.quantizer.preserves_mean
    assert 0.95 * bits <= spent <= bits


def test_means_are_preserved_where_the_answers_ask_for_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Pooled(1).eval()
    net.head.weight.data *= 20
    result = splitwire.export(
        net, cut="act", calibration=inputs(48), out=tmp_path, input_shape=(1, 3, 16, 16), levels=("r0.5", 2)
    )
    points = {p.name: p.tensors[0] for p in result.profile.operating_points}
    assert points["r0.5"].quantizer.preserves_mean
    assert not points["n2"].quantizer.preserves_mean
    assert '"mean_preserving":true' in result.profile.to_json()
    assert "mean_preserving" not in msgspec.json.encode(points["n2"]).decode()
    found = points["r0.5"].quantizer
    choices = [[found], [msgspec.structs.replace(found, mean_preserving=msgspec.UNSET)]]
    front, back = (Graph(p.read_bytes(), what=p.name) for p in (result.front, result.back))
    fresh = np.random.default_rng(7).standard_normal((32, 3, 16, 16)).astype(np.float32)
    preserving, plain = measure_damage(front, back, choices, list(fresh), lambda done: None)
    assert preserving.total < plain.total / 3


def test_impossible_rates(statistics: FeatureStatistics) -> None:
    with pytest.raises(ValueError, match="need bits > 0"):
        Widening(4, statistics).design(0.0)
    constant = FeatureStatistics(channels=2)
    constant.add(np.full((2, 2, 4, 4), 3.0, np.float32))
    with pytest.raises(ExportError, match=r"every feature at this cut is 3\.0"):
        Widening(4, constant)


# In a pair


def test_the_points(exported: ExportResult) -> None:
    profile = exported.profile
    assert [p.name for p in profile.operating_points] == ["n2", "e2", "n4", "r0.65", "r1.3"]
    for point, budget in zip(profile.operating_points[3:], (0.65, 1.3), strict=True):
        assert 0.9 * budget <= point.bits_per_element <= budget
        assert isinstance(point.tensors[0].clipping.scale, float)
    assert [o.kind.name for o in exported.options[0]] == ["n2", "n4", "e2", "r0.65", "r1.3"]


def test_only_points_of_a_budget_say_how_wide(exported: ExportResult) -> None:
    metadata = {p.key: p.value for p in onnx.load(exported.front).metadata_props}
    found = json.loads(metadata[METADATA_KEY])
    clippings = [p["tensors"][0]["clipping"] for p in found["operating_points"]]
    assert ["scale" in c for c in clippings] == [False, False, False, True, True]
    assert CodecProfile.from_json(exported.profile.to_json()) == exported.profile


def test_the_answers_gain_at_fewer_bits(exported: ExportResult) -> None:
    """On inputs that the design has not seen, against uniform quantizers of the least squared error that spend more."""
    front, back = (Graph(p.read_bytes(), what=p.name) for p in (exported.front, exported.back))
    points = {p.name: p for p in exported.profile.operating_points}
    fresh = list(inputs(96)[48:])
    for uniform, budget in (("n2", "r0.65"), ("n4", "r1.3")):
        assert points[budget].bits_per_element < points[uniform].bits_per_element
        choices = [[points[name].tensors[0].quantizer] for name in (uniform, budget)]
        before, after = measure_damage(front, back, choices, fresh, lambda done: None)
        assert after.total < 0.6 * before.total


def test_the_same_twice(exported: ExportResult, tmp_path: Path) -> None:
    again = splitwire.export(
        peaks(), cut="act", calibration=inputs(48), out=tmp_path, input_shape=(1, 3, 16, 16),
        levels=(2, "e2", 4, "r0.65", "r1.3"),
    )  # fmt: skip
    assert again.front.read_bytes() == exported.front.read_bytes()


class Gate(nn.Module):
    """Features of two values: no number of levels has more than one bit of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.gate = nn.Hardsigmoid()
        self.head = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.gate(1e6 * self.conv(x)).mean((2, 3)))
        return y


def test_more_bits_than_the_features_have(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = splitwire.export(
        Gate().eval(),
        cut="gate",
        calibration=inputs(8),
        out=tmp_path,
        input_shape=(1, 3, 16, 16),
        levels=("r0.1", "r4"),
    )
    few, many = result.profile.operating_points
    # the gate is open or not: there is no cheaper way to say so
    assert 0 <= few.bits_per_element <= many.bits_per_element <= 1.01
    assert many.bits_per_element > 0.5


@pytest.mark.parametrize("level", ["r0", "r0.000", "r-1", "r4.1", "r0.1234", "r", "r.5", "r1e0", "R1"])
def test_budgets_that_are_none(level: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"or r0\.001 to r4 for bits per element; are"):
        splitwire.export(
            Pooled(3), cut="act", calibration=inputs(4), out=tmp_path, input_shape=(1, 3, 16, 16), levels=(level,)
        )


# A range for a number of levels


def test_the_searched_range_does_the_least_damage_of_those_tried(tmp_path: Path) -> None:
    """On the inputs that it was chosen by; and on others less than the range with the least squared error."""
    calibration = inputs(48)
    result = splitwire.export(
        peaks(), cut="act", calibration=calibration, out=tmp_path, input_shape=(1, 3, 16, 16), levels=(4, "a4", "a2")
    )
    assert [p.name for p in result.profile.operating_points] == ["a2", "n4", "a4"]
    assert [o.kind.name for o in result.options[0]] == ["n2", "n4", "a2", "a4"]
    points = {p.name: p.tensors[0] for p in result.profile.operating_points}
    scale = points["a4"].clipping.scale
    assert isinstance(scale, float) and scale > 1
    uniform, searched = points["n4"].quantizer, points["a4"].quantizer
    np.testing.assert_allclose(searched.levels, scale * np.array(uniform.levels), rtol=1e-6)
    assert not searched.preserves_mean
    front, back = (Graph(p.read_bytes(), what=p.name) for p in (result.front, result.back))
    tried = [float32_quantizer(0.0, factor * uniform.levels[-1], 4) for factor in SCALES]
    damages = [d.total for d in measure_damage(front, back, [[q] for q in tried], list(calibration), lambda done: None)]
    assert SCALES[int(np.argmin(damages))] == scale
    fresh = list(inputs(96)[48:])
    before, after = measure_damage(front, back, [[uniform], [searched]], fresh, lambda done: None)
    assert after.total < 0.8 * before.total


def test_several_tensors_have_one_multiple(tmp_path: Path) -> None:
    result = splitwire.export(
        network(), cut="layer1.1.bn2,layer1.0", calibration=inputs(12, SHAPE), out=tmp_path, input_shape=(1, *SHAPE),
        levels=(4, "a4"),
    )  # fmt: skip
    uniform, searched = result.profile.operating_points
    assert [len(t.quantizer.levels) for t in searched.tensors] == [len(t.quantizer.levels) for t in uniform.tensors]
    (scale,) = {t.clipping.scale for t in searched.tensors}
    assert scale in SCALES


def test_damage_is_measured_on_inputs_of_the_whole_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder comes class by class: its first inputs are of the first classes only."""
    calibration = inputs(200)
    used: list[np.ndarray] = []

    def watched(front, back, choices, kept, progress):
        used.append(np.stack(kept))
        return measure_damage(front, back, choices, kept, progress)

    monkeypatch.setattr(sensitivity, "measure_damage", watched)
    splitwire.export(
        peaks(), cut="act", calibration=calibration, out=tmp_path, input_shape=(1, 3, 16, 16), levels=("a2", "r0.5")
    )
    assert len(used) == 2
    places = [[int(np.flatnonzero((calibration == x).all((1, 2, 3)))[0]) for x in kept] for kept in used]
    for found in places:
        assert found == spread(200, 64)
