"""What a network is for: from its outputs, labels and caller, in the profile; and what its numbers mean."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from exporter_helpers import Net, inputs, network
from onnx import TensorProto, helper
from runtime_helpers import make_pair

from splitwire.codec.errors import ProfileError, UsageError
from splitwire.codec.profile import CodecProfile
from splitwire.codec.shared.tasks import are_probabilities, divergence, log_probabilities
from splitwire.exporter.network.purpose import task_of
from splitwire.exporter.points.damage import Damage
from splitwire.exporting import export

F, I = TensorProto.FLOAT, TensorProto.INT64  # noqa: E741 - ONNX's names


def graph(*outputs, nodes=()):
    """A graph with inputs x, y, … that become the outputs (name, type, shape), by Identity or by `nodes`."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs]
    given = [helper.make_tensor_value_info(f"in_{name}", kind, shape) for name, kind, shape in outputs]
    made = nodes or [helper.make_node("Identity", [f"in_{name}"], [name]) for name, _, _ in outputs]
    return ir.from_proto(helper.make_model(helper.make_graph(made, "g", given, values))).graph


DETECTIONS = [("boxes", F, ["N", 4]), ("scores", F, ["N"]), ("labels", I, ["N"])]


@pytest.mark.parametrize(
    ("outputs", "labels", "task"),
    [
        (DETECTIONS, None, "detection"),
        ([("masks", F, ["N", 1, 8, 8]), *DETECTIONS], ("a",) * 5, "detection"),
        ([("y", F, ["B", 5])], ("a",) * 5, "classification"),
        ([("y", F, ["B", 5])], ("a",) * 6, None),  # an embedding beside somebody's list
        ([("y", F, ["B", 5])], None, None),  # classes, or a vector of features: nobody says
        ([("y", I, ["B", 5])], ("a",) * 5, None),
        ([("y", F, ["B", 1])], ("a",), None),
        ([("y", F, ["B", 5, 8, 8])], ("a",) * 5, "segmentation"),
        ([("y", F, ["B", 5, 8, 8])], None, None),
        ([("y", F, ["B", "K"])], ("a",) * 5, None),
        ([("boxes", F, ["N", 4]), ("scores", F, ["N"])], None, None),
    ],
)
def test_what_outputs_and_labels_say(outputs, labels, task):
    assert task_of(graph(*outputs), labels) == task


@pytest.mark.parametrize(
    ("chain", "task"),
    [
        (["Softmax"], "classification"),
        (["LogSoftmax"], "classification"),
        (["Softmax", "Identity"], "classification"),
        (["Softmax", "Flatten"], "classification"),
        (["Softmax", "Relu"], None),
        (["Sigmoid"], None),
        (["Identity"], None),
    ],
)
def test_a_softmax_at_the_end_makes_a_classifier(chain, task):
    names = ["in_y", *(f"v{i}" for i in range(len(chain) - 1)), "y"]
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]]) for i, op in enumerate(chain)]
    assert task_of(graph(("y", F, ["B", 7]), nodes=nodes), None) == task


@pytest.mark.parametrize(
    ("given", "outputs", "message"),
    [
        ("detection", [("y", F, ["B", 5])], r"needs the outputs boxes, scores, labels; the network has y \(\?, 5\)"),
        ("classification", DETECTIONS[1:2], r"needs an output \(batch, classes\); the network has scores \(\?\)"),
        ("segmentation", [("y", F, ["B", 5])], r"needs an output \(batch, classes, height, width\); the network has y"),
        ("pose", [("y", F, ["B", 5])], "a task is classification, detection, segmentation; got 'pose'"),
    ],
)
def test_a_task_that_cannot_be(given, outputs, message):
    with pytest.raises(UsageError, match=message):
        task_of(graph(*outputs), None, given)


def test_a_task_that_is_given_wins():
    assert task_of(graph(("y", F, ["B", 5])), None, "classification") == "classification"
    assert task_of(graph(("y", I, ["B", 8, 8])), None, "segmentation") == "segmentation"


@pytest.mark.slow
def test_export_bakes_the_task(tmp_path):
    options = {"cut": "layer1", "calibration": inputs(4), "levels": (2,), "out": tmp_path / "pair"}
    labels = tuple("abcdefghij")
    assert export(network(Net), labels=labels, **options).profile.task == "classification"
    assert export(network(Net), task="classification", **options).profile.task == "classification"
    with pytest.raises(UsageError, match="task detection needs the outputs"):
        export(network(Net), task="detection", **options)
    plain = export(network(Net), **options).profile
    assert plain.task is msgspec.UNSET
    assert "task" not in json.loads(plain.to_json())


def test_a_profile_without_a_task_is_as_it_was(tmp_path):
    """The bytes of older releases, and so their fingerprint."""
    old = make_pair(tmp_path).profile
    assert b'"task"' not in msgspec.json.encode(old)
    new = msgspec.structs.replace(old, task="detection")
    assert CodecProfile.from_json(new.to_json()) == new
    assert new.fingerprint != old.fingerprint
    with pytest.raises(ProfileError, match="task"):
        CodecProfile.from_json(new.to_json().replace('"detection"', '"poetry"'))


def test_logits_and_probabilities_are_told_apart_by_their_sums():
    logits = np.array([[1.0, 3.0, 2.0], [9.0, 0.0, 0.5]], np.float32)
    p = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True)
    assert not are_probabilities(logits)
    assert are_probabilities(p.astype(np.float32))
    for scores in (logits, p, np.log(p)):
        assert np.allclose(np.exp(log_probabilities(scores)), p, atol=1e-6)
    assert np.exp(log_probabilities(np.array([[1.0, 0.0]]))).tolist()[0] == pytest.approx([1, 0])
    assert not are_probabilities(np.array([[0.9, 0.8, 0.1]]))  # of independent tags
    assert not are_probabilities(np.zeros((0, 3)))


def test_scores_that_are_not_finite_leave_figures_to_choose_by():
    """Of a class that is masked with -inf, the divergence is that of the others; no answer kept is the largest."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 5)).astype(np.float64)
    masked = [np.insert(z, 2, -np.inf, axis=1) for z in (a, b)]
    assert divergence(*masked).tolist() == pytest.approx(divergence(a, b).tolist())
    broken = a.copy()
    broken[1, 3] = np.nan
    assert divergence(a, broken).tolist() == [0.0, np.inf, 0.0, 0.0]
    assert divergence(broken, b)[1] == 0.0
    damage = Damage(["y"])
    damage.add([masked[0]], [masked[1]], 4)
    assert 0.1 < damage.total < 10
    damage.add([a], [broken], 4)
    assert damage.total == np.inf


def test_damage_to_probabilities_is_that_to_their_logits():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 5)).astype(np.float32)
    softmax = [np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (a, b)]
    totals = []
    for old, new in ((a, b), softmax):
        damage = Damage(["y"])
        damage.add([old], [new], 6)
        totals.append(damage.total)
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)
    assert totals[0] > 0.1
