"""What an export makes of the caller's options: scalar points, transform points, or what needs fewer bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from exporter_helpers import inputs

import splitwire
from splitwire.codec.errors import ExportError, UsageError
from splitwire.exporter import export as pipeline
from splitwire.exporter.network.inference import Array
from splitwire.exporter.pair import codec_choice, transform_pair
from splitwire.exporter.pair.codec_choice import Decision, bits_at_equal_damage, decide
from splitwire.exporter.points.damage import Damage

SCALAR = Decision("scalar")

Arrays = tuple[list[Array], list[Array]]
"""Outputs of the whole network, and those with an error."""


def decided(**options: Any) -> Decision:
    unset: dict[str, Any] = {
        "codec": None, "front": "float32", "back": "float32", "coder": "predictive", "default_op": None,
        "levels": False,
    }  # fmt: skip
    return decide(**unset | options)


@pytest.mark.parametrize(
    ("options", "decision"),
    [
        ({}, Decision("auto", may_fall_back=True)),
        ({"levels": True}, SCALAR),
        ({"front": "int8"}, SCALAR),
        ({"back": "float16"}, SCALAR),
        ({"coder": "context"}, SCALAR),
        ({"default_op": "n4"}, SCALAR),
        ({"default_op": "r0.4"}, SCALAR),
        ({"default_op": "q1"}, Decision("transform")),
        ({"default_op": "q8"}, Decision("transform")),
        ({"default_op": "q9"}, SCALAR),  # no point of the ladder; refused by name with the scalar points
        ({"default_op": "q3", "levels": True}, SCALAR),  # likewise
        ({"codec": "scalar"}, SCALAR),
        ({"codec": "scalar", "front": "int8", "levels": True}, SCALAR),
        ({"codec": "transform"}, Decision("transform")),
        ({"codec": "transform", "default_op": "q3"}, Decision("transform")),
        ({"codec": "auto"}, Decision("auto")),
        ({"codec": "auto", "levels": True}, Decision("auto")),
    ],
)
def test_what_is_made(options: dict[str, Any], decision: Decision) -> None:
    assert decided(**options) == decision


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"codec": "wavelet"}, "the codec can be scalar, transform or auto, not 'wavelet'"),
        ({"codec": "transform", "front": "int8"}, "codec 'transform' needs both halves in float32"),
        ({"codec": "auto", "back": "float16"}, "codec 'auto' needs both halves in float32"),
        ({"codec": "transform", "levels": True}, "a transform has the operating points q1 to q8"),
        ({"codec": "auto", "default_op": "q3"}, "codec 'auto' chooses its default by measurement"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        decided(**options)


def test_bits_at_equal_damage() -> None:
    scalar = [(0.4, 100.0), (0.1, 200.0), (0.2, 400.0), (0.025, 400.0)]  # the third is beaten by the second
    assert bits_at_equal_damage(scalar, [(0.1, 50.0)]) == pytest.approx(0.25)
    assert bits_at_equal_damage(scalar, [(0.05, 200 * 2**0.5)]) == pytest.approx(1.0)
    assert bits_at_equal_damage(scalar, [(0.1, 50.0), (0.4, 100.0)]) == pytest.approx(0.5)
    assert bits_at_equal_damage(scalar, [(0.1, 50.0), (0.001, 300.0)]) == pytest.approx(0.25)
    assert bits_at_equal_damage(scalar, [(0.01, 200.0), (0.001, 300.0)]) == pytest.approx(0.5)
    assert bits_at_equal_damage(scalar, [(0.5, 50.0), (0.001, 300.0)]) is None
    assert bits_at_equal_damage(scalar, [(math.nan, 50.0)]) is None


def test_damage_of_parts_is_that_of_the_whole() -> None:
    chance = np.random.default_rng(0)
    classes: Arrays = [chance.normal(size=(8, 5)).astype(np.float32)], [2 * np.eye(8, 5, dtype=np.float32)]
    maps, rows = chance.normal(size=(8, 3, 4, 4)), chance.normal(size=(8, 6))
    values: Arrays = [maps, rows], [np.ones_like(maps), np.zeros_like(rows)]
    for task, (expected, outputs) in {"classes": classes, "values": values}.items():
        names = ["y", "z"][: len(expected)]
        whole, first, second = (Damage(names) for _ in range(3))
        whole.add(expected, outputs, 8)
        first.add([y[:5] for y in expected], [y[:5] for y in outputs], 5)
        second.add([y[5:] for y in expected], [y[5:] for y in outputs], 3)
        joined = first.joined(second)
        assert joined.task == whole.task == task
        assert joined.total == pytest.approx(whole.total)
        assert joined.agreement == pytest.approx(whole.agreement)
        assert joined.relative_error == pytest.approx(whole.relative_error)
        assert Damage(names).joined(whole).total == pytest.approx(whole.total)


# Whole exports


class Correlated(torch.nn.Module):
    """Eight channels that are mixtures of two smooth ones: a transform needs far fewer bits. A ReLU network's features
    of noise are the opposite."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.smooth = torch.nn.AvgPool2d(5, 1, 2)
        self.mix = torch.nn.Conv2d(3, 8, 1, bias=False)
        self.mix.weight.data = torch.randn(8, 3, 1, 1, generator=generator)
        self.head = torch.nn.Linear(8, 6, bias=False)
        self.head.weight.data = 4 * torch.randn(6, 8, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.smooth(x)).tanh().mean((2, 3)))  # type: ignore[no-any-return]  # a module's call


@pytest.fixture(scope="module")
def by_default(tmp_path_factory):
    """A default export with fewer scalar points, which take most of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "LEVELS", (2, 4, 8))
        return splitwire.export(
            Correlated().eval(), cut="mix", calibration=inputs(40), out=tmp_path_factory.mktemp("made"), refine=0
        )


@pytest.mark.slow
def test_the_default_bakes_a_transform(by_default) -> None:
    profile = by_default.profile
    assert profile.is_transform
    (said,) = [n for n in by_default.notes if "bits of scalar points" in n]
    assert float(said.removeprefix("transform points need ").split()[0]) < 0.7
    assert said.endswith("of the bits of scalar points at equal output distortion")
    assert {m.op: m.inputs for m in by_default.measures} == {f"q{i}": 40 for i in range(1, 9)}
    agreements = [p.agreement for p in profile.operating_points]
    assert agreements == [m.agreement for m in by_default.measures]
    assert profile.default_op in {p.name for p in profile.operating_points}


@pytest.mark.slow
def test_its_measures_are_those_of_a_transform_alone(by_default, tmp_path) -> None:
    """The choice measures held-out inputs first; the figures are of all."""
    alone = splitwire.export(
        Correlated().eval(), cut="mix", calibration=inputs(40), out=tmp_path, codec="transform", refine=0
    )
    assert alone.profile.fingerprint == by_default.profile.fingerprint
    assert alone.measures == by_default.measures


@pytest.fixture
def few_levels(monkeypatch):
    monkeypatch.setattr(pipeline, "LEVELS", (2, 4))


@pytest.mark.slow
def test_the_default_bakes_scalar_points(model, tmp_path, monkeypatch, few_levels) -> None:
    """As if transform points took a thousand times the bits that they take."""
    measured = codec_choice.bits_at_equal_damage

    def worse(scalar, transform):
        return measured(scalar, [(damage, 1000 * bits) for damage, bits in transform])

    monkeypatch.setattr(codec_choice, "bits_at_equal_damage", worse)
    result = splitwire.export(model, cut="layer1", calibration=inputs(40), out=tmp_path / "a", refine=0)
    assert [p.name for p in result.profile.operating_points] == ["n2", "n4"]
    (said,) = [n for n in result.notes if n.startswith("scalar points were kept: transform points need ")]
    assert float(said.split(" need ")[1].split()[0]) > 1
    assert said.endswith("times the bits at equal output distortion")
    alone = splitwire.export(model, cut="layer1", calibration=inputs(40), out=tmp_path / "b", codec="scalar")
    assert result.measures == alone.measures
    assert result.profile == alone.profile


def test_scalar_points_where_only_they_keep_the_answers(model, tmp_path, monkeypatch) -> None:
    """As if the fine levels of scalar points were fine enough, and no step of a transform."""
    monkeypatch.setattr(pipeline, "LEVELS", (2, 200))
    monkeypatch.setattr(codec_choice, "bits_at_equal_damage", lambda *_: 0.5)
    measured = transform_pair.damages_of

    def coarse(pair, *rest):
        damages = measured(pair, *rest)
        return [damages[-1]] * len(damages) if len(damages) == 8 else damages

    monkeypatch.setattr(codec_choice, "damages_of", coarse)
    result = splitwire.export(model, cut="layer1", calibration=inputs(40), out=tmp_path, refine=0)
    assert result.profile.default_op == "n200"
    assert "scalar points were kept: no transform point keeps the answers as the best of them does" in result.notes


class Rooted(torch.nn.Module):
    """A root of what is zero in half of the features: gradients that are no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.conv(x)).sqrt().mean((2, 3)))  # type: ignore[no-any-return]  # a module's call


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "said"),
    [(5, "a transform is designed on 8 or more calibration inputs; there are 5"), (12, "no output depends on")],
)
def test_scalar_where_no_transform_can_be_designed(tmp_path, few_levels, count: int, said: str) -> None:
    module = Rooted().eval()
    result = splitwire.export(module, cut="relu", calibration=inputs(count), out=tmp_path / "a")
    assert not result.profile.is_transform
    assert [n for n in result.notes if n.startswith(f"scalar points were kept: {said}")]
    with pytest.raises(ExportError, match=said):
        splitwire.export(module, cut="relu", calibration=inputs(count), out=tmp_path / "b", codec="auto")


@pytest.mark.slow
def test_scalar_where_the_algebra_fails(model, tmp_path, few_levels, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError("Eigenvalues did not converge")

    monkeypatch.setattr(transform_pair, "design_transform", fail)
    result = splitwire.export(model, cut="layer1", calibration=inputs(12), out=tmp_path)
    assert not result.profile.is_transform
    expected = "scalar points were kept: no transform can be computed for these features: Eigenvalues did not converge"
    assert expected in result.notes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "point"),
    [({"levels": (2, 4)}, "n2"), ({"coder": "context"}, "n2"), ({"default_op": "n4"}, "n4"), ({"front": "int8"}, "n2")],
)
def test_scalar_on_request_says_nothing(model, tmp_path, few_levels, options: dict[str, Any], point: str) -> None:
    result = splitwire.export(model, cut="layer1", calibration=inputs(12), out=tmp_path, **options)
    assert point in {p.name for p in result.profile.operating_points}
    assert not any("scalar points" in n for n in result.notes)


def test_a_name_that_no_point_has(model, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"default operating point 'q9' is not among n2, n3"):
        splitwire.export(model, cut="layer1", calibration=inputs(12), out=tmp_path, default_op="q9")
