"""An int8 front and a float16 back: what they compute, what they keep, and how they are chosen."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import typer
from exporter_helpers import SHAPE, inputs, write_images
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from typer.testing import CliRunner, Result

import splitwire
from splitwire.codec.errors import UnsupportedModel, UsageError
from splitwire.codec.profile import CodecProfile
from splitwire.commands.export.command import export as command
from splitwire.demo.fashion import to_inputs
from splitwire.exporter.cutting.cuts import find_cut
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.cutting.split import Halves, split
from splitwire.exporter.network.inference import Graph, serialise, weight_bytes
from splitwire.exporter.network.source import Source, from_file, from_module
from splitwire.exporter.pair.precision import float16_back, float16_by_hand, int8_front
from splitwire.exporter.pair.result import ExportResult
from splitwire.models import demo
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.graph import open_front
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport import LoopbackTransport


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x) + x
        return y


class Small(nn.Module):
    """What mobile networks are made of: ReLU6, a depthwise convolution, hard swish, a fire module, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU6())
        self.depth = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.Hardswish())
        self.squeeze = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.residual = Residual(16)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

    def fire(self, x: torch.Tensor) -> torch.Tensor:
        y = self.squeeze(x)
        return torch.cat([self.left(y), self.right(y)], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(torch.relu(self.residual(self.fire(self.depth(self.stem(x))))))
        return y


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    path.write_bytes(serialise(from_module(Small(), (1, *SHAPE)).model))
    return from_file(path, None)


def cut(source: Source, layer: str) -> Halves:
    found, _ = find_cut(Names.of(source), layer)
    return split(source.model, found.tensors)


def run(model: ir.Model, *arrays) -> list[np.ndarray]:
    return Graph.of(model, what="half").run(*arrays)


def decibels(exact: np.ndarray, other: np.ndarray) -> float:
    """Signal to noise."""
    return float(10 * np.log10(np.square(exact).mean() / np.square(exact - other).mean()))


def operators(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def ends(model: ir.Model) -> list[tuple[str | None, ir.DataType | None]]:
    return [(v.name, v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)]


@pytest.mark.parametrize("layer", ["depth", "squeeze", "left,right", "residual"])
def test_int8_front(source, layer):
    halves = cut(source, layer)
    front, before = halves.front, serialise(halves.front)
    x = inputs(24)
    made = int8_front(front, list(x[:16]))
    assert serialise(front) == before
    assert ends(made) == ends(front)
    assert made.graph.name == front.graph.name
    assert dict(made.graph.metadata_props) == dict(front.graph.metadata_props)
    assert made.opset_imports == front.opset_imports
    quantized = {v.dtype for v in made.graph.initializers.values()}
    assert ir.DataType.INT8 in quantized
    for exact, coarse in zip(run(front, x), run(made, x), strict=True):
        assert coarse.dtype == np.float32
        assert 25 < decibels(exact, coarse) < 60  # int8, and not float32 in disguise; the last 8 inputs are new to it
        assert len(np.unique(coarse)) > 2 * 256  # what crosses is not on an 8-bit grid


def test_weights_have_a_scale_per_channel(source):
    made = int8_front(cut(source, "squeeze").front, list(inputs(4)))
    pairs = [[v and v.const_value for v in n.inputs[:2]] for n in made.graph if n.op_type == "DequantizeLinear"]
    scales = [scale.numpy() for w, scale in pairs if w and scale and w.dtype == ir.DataType.INT8]
    assert [s.shape for s in scales] == [(16,), (16,)]  # stem and depth; squeeze makes the output and stays float32


def test_the_same_front_twice_is_the_same_bytes(source):
    front = cut(source, "left,right").front
    assert serialise(int8_front(front, list(inputs(9)))) == serialise(int8_front(front, list(inputs(9))))


def test_a_cut_tensor_that_the_front_reads_itself_is_put_out_unrounded():
    """From x a convolution makes y, an output, and from y others make z, an output: these read y
    in int8, the output y stays exact."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(4, 4 if i else 3, 1, 1)).astype(np.float32), f"w{i}") for i in range(3)
    ]
    nodes = [
        helper.make_node("Conv", [a, f"w{i}"], [b]) for i, (a, b) in enumerate([("x", "y"), ("y", "t"), ("t", "z")])
    ]  # no names
    values = {
        n: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c, 8, 8])
        for n, c in (("x", 3), ("y", 4), ("z", 4))
    }
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [values["x"]], [values["y"], values["z"]], weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    front = ir.from_proto(proto)
    x = inputs(8, (3, 8, 8))
    made = int8_front(front, list(x))
    (y, z), (y8, z8) = run(front, x), run(made, x)
    assert [v.name for v in made.graph.outputs] == ["y", "z"]
    assert np.allclose(y8, y, atol=1e-6)
    assert 25 < decibels(z, z8) < 60


def test_a_fixed_batch_is_filled_up(source):
    proto = ir.to_proto(cut(source, "squeeze").front)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    made = int8_front(ir.from_proto(proto), list(inputs(6)))
    assert run(made, inputs(4))[0].shape[0] == 4


def test_a_batch_norm_is_folded_first():
    """As a graph from elsewhere has it: convolution and batch norm apart."""
    rng = np.random.default_rng(0)
    numbers = {
        "w": rng.normal(size=(6, 3, 3, 3)), "v": rng.normal(size=(4, 6, 1, 1)), "scale": rng.uniform(0.01, 3, 6),
        "bias": rng.normal(size=6), "mean": rng.normal(size=6), "var": rng.uniform(0.1, 9, 6),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["b"], "norm"),
        helper.make_node("Relu", ["b"], ["c"], "act"),
        helper.make_node("Conv", ["c", "v"], ["y"], "last"),
    ]
    graph_ = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 8, 8])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in numbers.items()],
    )  # fmt: skip
    model = helper.make_model(graph_, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    front = ir.from_proto(model)
    x = inputs(8, (3, 8, 8))
    made = int8_front(front, list(x))
    assert "BatchNormalization" not in operators(made)
    assert set(made.opset_imports) == {""}
    assert decibels(run(front, x)[0], run(made, x)[0]) > 25


@pytest.mark.parametrize("layer", ["stem", "depth"])
def test_float16_back(source, layer):
    halves = cut(source, layer)
    made = float16_back(halves.back)
    features = run(halves.front, inputs(16))[:1]
    exact, half = run(halves.back, *features)[0], run(made, *features)[0]
    assert ends(made) == ends(halves.back)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 5e-3 * np.abs(exact).max()
    assert (half.argmax(1) == exact.argmax(1)).mean() > 0.9
    assert weight_bytes(made) < 0.52 * weight_bytes(halves.back)  # shapes are int64 in both
    onnx.checker.check_model(ir.to_proto(made), full_check=True)


def test_float16_by_hand_rounds_every_value(source):
    """Opened as it is, a CPU would round the weights alone."""
    halves = cut(source, "depth")
    made = float16_back(halves.back)
    features = run(halves.front, inputs(16))[:1]
    by_hand = float16_by_hand(made)
    assert ends(by_hand) == ends(made)
    exact, cpu, rounded = (run(m, *features)[0] for m in (halves.back, made, by_hand))
    assert np.array_equal(rounded, rounded.astype(np.float16).astype(np.float32))
    assert not np.array_equal(cpu, cpu.astype(np.float16).astype(np.float32)) or not np.array_equal(cpu, rounded)
    assert 0 < np.abs(rounded - exact).max() < 5e-3 * np.abs(exact).max()


@pytest.mark.slow
def test_normalisations_stay_float32():
    """In float16 ONNX Runtime 1.32 crashes on them, or gives garbage from the second run on."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(8 * 36), nn.Linear(8 * 36, 10))
    source = from_module(net, (1, 3, 8, 8))
    halves = cut(source, "1")
    made = float16_back(halves.back)
    (norm,) = [n for n in made.graph if n.op_type == "LayerNormalization"]
    values = [v for v in norm.inputs if v is not None]
    cast = values[0].producer()
    assert cast is not None and cast.op_type == "Cast", [str(v) for v in values]
    assert {v.dtype for v in values} == {ir.DataType.FLOAT}
    features = run(halves.front, inputs(4, (3, 8, 8)))
    half = Graph.of(made, what="half")
    first, second = half.run(*features)[0], half.run(*features)[0]
    assert np.array_equal(first, second)
    assert np.abs(first - run(halves.back, *features)[0]).max() < 5e-3


def test_the_tools_leave_logging_alone(source):
    before = list(logging.getLogger().handlers)
    halves = cut(source, "squeeze")
    int8_front(halves.front, list(inputs(2)))
    float16_back(halves.back)
    assert logging.getLogger().handlers == before


def test_refusals(source, tmp_path: Path, monkeypatch):
    halves = cut(source, "stem")
    with pytest.raises(UnsupportedModel, match=r"nothing in the front can be int8: .* cut later"):
        int8_front(halves.front, list(inputs(2)))
    with pytest.raises(UsageError, match="needs calibration inputs"):
        int8_front(cut(source, "squeeze").front, [])

    def broken(*_, **__):
        raise KeyError("no\nsuch tensor")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", broken)
    monkeypatch.setattr("onnxruntime.transformers.float16.convert_float_to_float16", broken)
    with pytest.raises(UnsupportedModel, match=r"quantizer does not take the front half: KeyError: [^\n]*such tensor"):
        int8_front(cut(source, "squeeze").front, list(inputs(2)))
    with pytest.raises(UnsupportedModel, match=r"converter does not take the back half: KeyError: [^\n]*such tensor"):
        float16_back(halves.back)


@pytest.fixture(scope="module")
def file(source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "small.onnx"
    path.write_bytes(serialise(source.model))
    return path


def export(file: Path, out: Path, **options) -> ExportResult:
    options = {"cut": "residual", "calibration": inputs(32), "levels": (2, 4)} | options
    return splitwire.export(file, out=out, **options)


def test_the_demo_in_int8_and_float16(demo_pair, tmp_path):
    """The accuracy on labelled test images, through edge, wire and cloud, is that of the float32 pair."""
    images, labels = (a[:200] for a in demo.test_set())
    x = to_inputs(images)
    result = splitwire.export(
        demo.load_network(),
        cut=demo.CUT,
        calibration=to_inputs(demo.calibration_set()[:96]),
        preprocessing=demo.PREPROCESSING,
        out=tmp_path,
        levels=(2, 4),
        front="int8",
        back="float16",
    )
    rights = []
    for folder, op in ((demo_pair, "q1"), (tmp_path, "n4")):
        cloud = CloudSession(folder / "back.onnx")
        with EdgeSession(folder / "front.onnx", transport=LoopbackTransport(cloud.handle)) as session:
            answers = [next(iter(session.infer(x[i : i + 50], op=op).outputs.values())) for i in range(0, len(x), 50)]
        rights.append((np.concatenate(answers).argmax(1) == labels).mean())
    assert rights[0] > 0.9
    assert abs(rights[1] - rights[0]) <= 0.02
    assert (result.profile.front_precision, result.profile.back_precision) == ("int8", "float16")
    front, back = result.comparisons
    assert [(c.half, c.option.precision, c.kept, c.inputs) for c in result.comparisons] == [
        ("front", "int8", True, 96),
        ("back", "float16", True, 96),
    ]
    for c in result.comparisons:
        assert c.option.agreement is not None and c.float32.agreement is not None
        assert abs(c.option.agreement - c.float32.agreement) <= 0.02
        assert c.option.megabytes < 0.6 * c.float32.megabytes
        assert c.option.milliseconds > 0
    assert front.option.bits_per_element == pytest.approx(front.float32.bits_per_element, rel=0.05)
    assert back.float32.bits_per_element == back.option.bits_per_element == front.option.bits_per_element
    point = result.profile.operating_points[result.profile.point_index()]
    assert point.agreement == back.option.agreement  # the profile speaks of the pair as it is written


@pytest.mark.slow
def test_the_codec_is_made_for_the_int8_features(file, tmp_path):
    """Means and tables are those of the features that the int8 front makes."""
    exact, coarse = export(file, tmp_path / "a"), export(file, tmp_path / "b", front="int8")
    # opened as the edge opens it: a plain session rounds otherwise on a CPU whose 8-bit sums overflow
    (features,) = open_front(coarse.front).run(inputs(32)).features
    (spec,) = coarse.profile.tensors
    assert spec.mean == pytest.approx(float(features.mean()), abs=1e-5)
    assert spec.mean != exact.profile.tensors[0].mean
    assert coarse.profile.calibration_images == 32
    assert coarse.profile.max_difference == exact.profile.max_difference
    assert "precision" not in exact.profile.to_json()  # pairs without options are as they were
    assert CodecProfile.from_json(coarse.profile.to_json()) == coarse.profile


@pytest.mark.slow
def test_a_refused_half_is_float32(file, tmp_path):
    plain = export(file, tmp_path / "plain")
    asked = []

    def accept(comparison):
        asked.append((comparison.half, comparison.option.precision, comparison.kept))
        return comparison.half == "back"

    result = export(file, tmp_path / "new", front="int8", back="float16", accept=accept)
    assert asked == [("front", "int8", False), ("back", "float16", False)]
    assert [c.kept for c in result.comparisons] == [False, True]
    assert "the int8 front was refused, and is float32" in result.notes
    assert result.profile.front_sha256 == plain.profile.front_sha256
    assert result.profile.back_sha256 != plain.profile.back_sha256
    assert result.profile.front_precision is msgspec.UNSET
    assert result.profile.tensors == plain.profile.tensors

    refused = export(file, tmp_path / "none", front="int8", accept=lambda _: False)
    assert refused.front.read_bytes() == plain.front.read_bytes()


@pytest.mark.slow
def test_an_iterable_is_calibrated_on_what_was_kept(file, tmp_path):
    array = export(file, tmp_path / "a", front="int8")
    stream = export(file, tmp_path / "b", front="int8", calibration=iter(inputs(32)))
    assert stream.profile.fingerprint == array.profile.fingerprint


def test_an_overflow_is_refused(source, tmp_path):
    """float16 ends at 65,504."""
    model = source.model.clone()
    for name, value in model.graph.initializers.items():
        if name in {"squeeze.0.weight", "left.0.weight", "right.0.weight"}:
            value.const_value = ir.tensor(value.const_value.numpy() * 1e4, name=name)
    path = tmp_path / "large.onnx"
    path.write_bytes(serialise(model))
    with pytest.raises(UnsupportedModel, match=r"the float16 back overflows: .* keep the"):
        export(path, tmp_path / "out", cut="depth", back="float16")
    assert not (tmp_path / "out").exists()


def test_only_what_there_is(file, tmp_path):
    with pytest.raises(UsageError, match="the front can be float32 or int8, not 'int4'"):
        export(file, tmp_path, front="int4")
    with pytest.raises(UsageError, match="the back can be float32 or float16, not 'int8'"):
        export(file, tmp_path, back="int8")


app = typer.Typer(pretty_exceptions_enable=False)
app.command()(command)


def command_line(file: Path, tmp_path: Path, *more: str) -> Result:
    if not (tmp_path / "images").exists():
        write_images(tmp_path / "images", 12)
    arguments = [
        "--cut",
        "squeeze",
        "--data",
        str(tmp_path / "images"),
        "--out",
        str(tmp_path / "out"),
        "--levels",
        "2",
    ]
    return CliRunner().invoke(app, [str(file), *arguments, *more])


def test_the_command_prints_the_comparison(file, tmp_path):
    run_ = command_line(file, tmp_path, "--front", "int8", "--back", "float16", "--image-size", "16x16")
    assert run_.exit_code == 0, run_.output
    rows = [line.split()[:2] for line in run_.stdout.splitlines() if line.startswith(("front ", "back "))]
    assert rows == [["front", "float32"], ["front", "int8"], ["back", "float32"], ["back", "float16"]]
    assert "12 calibration inputs, against the float32 network" in run_.stdout
    assert "float16 is meant for GPUs" in run_.stdout


def test_the_comparison_as_json(file, tmp_path):
    run_ = command_line(file, tmp_path, "--front", "int8", "--json")
    (comparison,) = json.loads(run_.stdout)["comparisons"]
    assert comparison["kept"] is True
    assert comparison["option"].keys() >= {"precision", "agreement", "bits_per_element", "milliseconds", "megabytes"}


@pytest.mark.parametrize(("answer", "kept"), [("\n", True), ("n\n", False)])
def test_the_command_asks_on_a_terminal(file, tmp_path, monkeypatch, answer, kept):
    questions = []

    def confirm(question, **options):
        questions.append((question, options["default"]))
        return answer == "\n"

    monkeypatch.setattr(typer, "confirm", confirm)
    monkeypatch.setattr("splitwire.commands.export.command.asks", lambda: True)
    run_ = command_line(file, tmp_path, "--front", "int8")
    assert questions == [("Keep the int8 front?", True)]
    profile = CodecProfile.from_metadata(
        ort.InferenceSession(tmp_path / "out" / "front.onnx").get_modelmeta().custom_metadata_map, "front.onnx"
    )
    assert (profile.front_precision == "int8") is kept
    assert run_.stdout.count("front") < run_.output.count("front")  # the table went to stderr, with the question

    questions.clear()
    command_line(file, tmp_path, "--front", "int8", "--yes")
    assert questions == []


@pytest.mark.parametrize("size", ["0", "16x16x16", "16x", "a", "-4"])
def test_image_sizes(file, tmp_path, size):
    run_ = command_line(file, tmp_path, f"--image-size={size}")
    assert isinstance(run_.exception, UsageError)
    assert "HEIGHTxWIDTH, as in 224 or 384x512" in str(run_.exception)


@pytest.mark.parametrize(
    ("machine", "flags", "overflows"),
    [("x86_64", "fma avx2", True), ("AMD64", "avx512_vnni", False), ("x86_64", "avx_vnni", False),
     ("x86_64", None, True), ("aarch64", "asimd", False)],
)  # fmt: skip
def test_exact_kernels_where_8_bits_overflow(demo_pair, monkeypatch, machine, flags, overflows):
    """ONNX Runtime's fast ones add 8-bit products in 16 bits on x86 without VNNI."""

    def read_text(path, **_):
        if flags is None:
            raise FileNotFoundError
        return flags

    file = demo_pair / "front.onnx"
    data = file.read_bytes()
    monkeypatch.setattr("platform.machine", lambda: machine)
    with monkeypatch.context() as m:
        m.setattr(Path, "read_text", read_text)
        session = open_front(file).engine.session
        graph_ = Graph(data, what="front")
    for options in (session.get_session_options(), graph_._session.get_session_options()):
        if overflows:
            assert options.get_session_config_entry("session.x64quantprecision") == "1"
        else:
            with pytest.raises(RuntimeError, match="x64quantprecision"):
                options.get_session_config_entry("session.x64quantprecision")
