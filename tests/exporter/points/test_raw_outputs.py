"""Outputs that are neither classes nor boxes: each channel counts, the default is fine enough, and a note says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_helpers import N, network, pictures, save, value, weight

import splitwire
from splitwire.exporter.points.damage import Damage, by_channel
from splitwire.exporter.points.measure import PointMeasure


def raw_head(rng: np.random.Generator) -> np.ndarray:
    """(2, 6, 100): four rows of boxes in pixels, two of scores below 0.1."""
    boxes, scores = rng.uniform(0, 320, (2, 4, 100)), rng.uniform(0, 0.1, (2, 2, 100))
    return np.concatenate([boxes, scores], axis=1).astype(np.float32)


@pytest.mark.parametrize("transposed", [False, True])
def test_lost_scores_are_not_hidden_by_the_boxes(transposed):
    """The scores are gone, the boxes untouched: a thousandth of the whole output's norm, and every detection."""
    y = raw_head(np.random.default_rng(0))
    lost = y.copy()
    lost[:, 4:] = 0
    if transposed:
        y, lost = y.transpose(0, 2, 1), lost.transpose(0, 2, 1)
    assert np.linalg.norm(lost - y) / np.linalg.norm(y) < 1e-3
    damage = Damage(["y"])
    for i in range(2):  # batch by batch
        damage.add([y[i : i + 1]], [lost[i : i + 1]], 1)
    assert damage.task == "values"
    assert damage.relative_error == pytest.approx(np.sqrt(2 / 6))
    assert damage.total == pytest.approx(2 / 6)


def test_outputs_weigh_the_same_whatever_their_channels():
    rng = np.random.default_rng(1)
    many, one = rng.normal(size=(3, 40, 50)), rng.normal(size=(3, 1, 8, 8))
    damage = Damage(["many", "one", "numbers"])
    damage.add([many, one, np.arange(3)], [many * 1.1, one * 1.3, np.arange(3)], 3)
    assert damage.relative_error == pytest.approx(np.sqrt((0.1**2 + 0.3**2) / 2))


def test_channels_that_hold_nothing_or_come_later():
    """Zeros say nothing of an error; an output whose size depends on the data may grow."""
    damage = Damage(["y"])
    damage.add([np.array([[[1.0, 0.0]] * 5])], [np.array([[[0.5, 0.0]] * 5])], 1)
    assert damage.relative_error == pytest.approx(0.5)
    damage.add([np.array([[[0.0, 0.0, 2.0]] * 5])], [np.array([[[0.0, 0.0, 2.0]] * 5])], 1)
    assert damage.relative_error == pytest.approx(np.sqrt(0.25 / 2))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((2,), None), ((2, 5), 1), ((2, 22, 2100), 1), ((2, 3549, 6), 2), ((2, 7, 7), 2), ((2, 21, 33, 65), 1),
        ((2, 255, 13, 13), 1), ((2, 64, 48, 3), 3), ((2, 3, 20, 20, 85), 4),
    ],
)  # fmt: skip
def test_which_axis_the_channels_are(shape, axis):
    x = np.random.default_rng(2).uniform(size=shape)
    wanted = [x.sum()] if axis is None else [x.take(i, axis).sum() for i in range(shape[axis])]
    np.testing.assert_allclose(by_channel(x), wanted)


def test_the_bar():
    """0.05: on raw heads 98.5 % and more of the detections stay (docs/results/field.md)."""
    assert PointMeasure(op="n4", inputs=1, task="values", relative_error=0.05).good
    assert not PointMeasure(op="n4", inputs=1, task="values", relative_error=0.051).good


@pytest.mark.slow
@pytest.mark.parametrize("head", ["raw", "classes"])
def test_an_export_says_what_it_cannot_judge(tmp_path: Path, head: str):
    """Levels that nobody asked for go on to 128 there, and the default is fine enough; classes are as they were."""
    nodes = [N("Conv", ["r", "h"], ["m"]), N("Reshape", ["m", "shape"], ["boxes"])]
    shape = weight("shape", 3)
    shape.ClearField("raw_data")
    shape.data_type = 7
    shape.raw_data = np.array([0, 5, -1], np.int64).tobytes()
    raw = network(nodes, [value("boxes", ["n", 5, 196])], [weight("h", 5, 6, 1, 1), shape])
    path = save(raw if head == "raw" else network(), tmp_path / "net.onnx")
    pair = splitwire.export(path, cut="r", calibration=pictures(4), out=tmp_path / "pair")
    names = [p.name for p in pair.profile.operating_points]
    fine = [name in names for name in ("n16", "n32", "n64", "n128")]
    said = [note for note in pair.notes if note.startswith("what the outputs say is not known")]
    assert len(said) == (head == "raw") and all(fine) == any(fine) == (head == "raw")
    if head == "raw":
        assert "`splitwire evaluate --metric`" in said[0]
        chosen = next(m for m in pair.measures if m.op == pair.profile.default_op)
        assert chosen.relative_error is not None and chosen.relative_error <= 0.05
        asked = splitwire.export(path, cut="r", calibration=pictures(4), levels=(2,), out=tmp_path / "two")
        assert [p.name for p in asked.profile.operating_points] == ["n2"]
