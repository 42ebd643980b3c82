"""Pairs that send transform coefficients: the export, both runtimes, the command."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import typer
from exporter_helpers import SHAPE, inputs, write_images
from typer.testing import CliRunner

import splitwire
from splitwire import CloudSession, EdgeSession, LoopbackTransport
from splitwire.codec.errors import UsageError
from splitwire.codec.transform import step_size
from splitwire.codec.wire.frame import parse_frame
from splitwire.commands.export.command import export as command
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.source import from_file

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(command)


def export(model, out, **options):
    defaults: dict[str, Any] = {"cut": "layer1", "calibration": inputs(40), "codec": "transform", "refine": 0}
    options = defaults | options
    return splitwire.export(model, out=out, **options)


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    return export(model, tmp_path_factory.mktemp("transform"))


@pytest.fixture(scope="module")
def whole(model):
    graph = Graph.of(from_file(model, None).model, what="whole network")
    return lambda x: graph.run(x)[0]


def test_the_ladder(made):
    profile = made.profile
    assert profile.is_transform
    assert [p.name for p in profile.operating_points] == [f"q{i}" for i in range(1, 9)]
    steps = [p.steps[0] for p in profile.operating_points]
    assert steps == sorted(set(steps))
    rates = [p.bits_per_element for p in profile.operating_points]
    assert rates[0] > rates[4] > rates[7]
    (spec,) = profile.tensors
    assert spec.feature_shape == (8, 8, 8)
    assert spec.mean == 0.0
    assert [m.op for m in made.measures] == [p.name for p in profile.operating_points]
    assert profile.default_op in {m.op for m in made.measures}
    assert "512 elements" in str(made)


def test_both_runtimes_answer_as_the_whole_network_does(made, whole):
    x = np.random.default_rng(7).standard_normal((8, *SHAPE)).astype(np.float32)
    cloud = CloudSession(made.back)
    with EdgeSession(made.front, transport=LoopbackTransport(cloud.handle)) as edge:
        distances, sent = [], []
        for point in made.profile.operating_points:
            answer = edge.infer(x, op=point.name)
            outputs = next(iter(answer.outputs.values()))
            distances.append(float(np.abs(outputs - whole(x)).mean()))
            sent.append(answer.frame_bytes)
            assert answer.bits_per_element == pytest.approx(answer.frame_bytes / 512)  # 8 bits, 8 images
    assert distances[0] < 0.2 * np.abs(whole(x)).mean()
    assert sent[0] > sent[7]


def test_a_frame_is_of_coder_6(made):
    front = Graph.of(ir.load(made.front), what="front")
    coefficients = np.asarray(front.run(inputs(1))[0], np.float32)
    frame = splitwire.FeatureCodec(made.profile).encode([coefficients])
    assert [chunk.coder for chunk in parse_frame(frame).chunks] == [None], "the point's"
    assert [spec.transform.coder_id for spec in made.profile.tensors] == [6]


@pytest.mark.slow
def test_the_same_twice(model, tmp_path):
    first, second = (export(model, tmp_path / name, refine=4) for name in ("a", "b"))
    assert first.profile.fingerprint == second.profile.fingerprint
    assert first.front.read_bytes() == second.front.read_bytes()
    assert first.back.read_bytes() == second.back.read_bytes()


def test_again_into_the_same_folder(made, model):
    assert export(model, made.front.parent).profile.fingerprint == made.profile.fingerprint
    with pytest.raises(UsageError, match=r"not net cut after layer2"):
        export(model, made.front.parent, cut="layer2")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"codec": "wavelet"}, "the codec can be scalar, transform or auto, not 'wavelet'"),
        ({"front": "int8"}, "codec 'transform' needs both halves in float32"),
        ({"back": "float16"}, "codec 'transform' needs both halves in float32"),
        ({"levels": (2, 4)}, "a transform has the operating points q1 to q8"),
        ({"default_op": "n4"}, "the default operating point 'n4' is not one of q1, q2"),
        ({"codec": "scalar", "task_loss": "torch.nn.functional:mse_loss"}, "these options ask for scalar points"),
        ({"task_loss": "torch.nn.functional:no_loss"}, "torch.nn.functional has no function 'no_loss'"),
        ({"task_loss": "torch.nn.functional:mse_loss"}, "the task loss 'mse_loss' failed: .*Error"),
        ({"codec": "auto", "default_op": "q3"}, "codec 'auto' chooses its default by measurement"),
    ],
)
def test_what_does_not_go_together(model, tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        export(model, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_task_loss_is_what_the_transform_is_made_for(model, tmp_path, made, whole):
    """Of a loss that looks at one class, other classes may move."""

    def loss(reference, outputs):
        return (reference[0][:, 3] - outputs[0][:, 3]).square().sum()

    aimed = export(model, tmp_path, task_loss=loss)
    shares = []
    for result in (made, aimed):
        back = Graph.of(ir.load(result.back), what="back half")
        front = Graph.of(ir.load(result.front), what="front half")
        coefficients = front.run(inputs(40))[0].astype(np.float32)
        step = float(step_size(result.profile.operating_points[2].steps[0]))
        moved = back.run(np.round(coefficients / step) * np.float32(step))[0] - whole(inputs(40))
        shares.append(np.square(moved[:, 3]).mean() / np.square(moved).mean())
    assert shares[1] < 0.75 * shares[0]


def test_too_few_inputs(model, tmp_path):
    with pytest.raises(splitwire.SplitwireError, match="8 or more calibration inputs; there are 5"):
        export(model, tmp_path, calibration=inputs(5))
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.slow
def test_the_command(model, tmp_path):
    write_images(tmp_path / "images", 12)
    arguments = [str(model), "--data", str(tmp_path / "images"), "--crop", "16", "--cut", "layer1"]
    arguments += ["--codec", "transform"]
    shown = CliRunner().invoke(app, [*arguments, "--refine", "0", "--out", str(tmp_path / "a")])
    assert shown.exit_code == 0, shown.output
    assert "step" in shown.stdout
    assert "8×8×8 features" in shown.stdout
    printed = CliRunner().invoke(app, [*arguments, "--refine", "1s", "--out", str(tmp_path / "b"), "--json"])
    assert printed.exit_code == 0, printed.output
    document = json.loads(printed.stdout)
    assert document["tensors"][0]["feature_shape"] == [8, 8, 8]
    assert [len(p["steps"]) for p in document["points"]] == [1] * 8
    refused = CliRunner().invoke(app, [*arguments, "--refine", "long", "--out", str(tmp_path / "c")])
    assert isinstance(refused.exception, UsageError)
    assert "--refine takes a time" in str(refused.exception)
    unknown = CliRunner().invoke(app, [*arguments, "--task-loss", "no_module:loss", "--out", str(tmp_path / "c")])
    assert isinstance(unknown.exception, UsageError)
    assert "the task loss 'no_module:loss' cannot be imported" in str(unknown.exception)
