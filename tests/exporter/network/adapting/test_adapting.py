"""Networks as people have them at the input: constants beside the image, half precision, batches that mix or are fixed.

References are ONNX Runtime on the file as it came, and torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from exporter_helpers import SHAPE, inputs, network, write_images
from numpy.typing import ArrayLike
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper
from torch import nn
from typer.testing import CliRunner

import splitwire
from splitwire.cli import app
from splitwire.codec.errors import ShapeMismatch, SplitwireError, UsageError
from splitwire.exporter.network import mixing
from splitwire.exporter.network.adapting import constants
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.source import Source, from_file
from splitwire.network import parse_constants

pytestmark = pytest.mark.slow

node = h.make_node
CONV = [node("Conv", ["x", "a"], ["c"], strides=[2, 2]), node("Relu", ["c"], ["r"])]


def weights(dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {"a": rng.normal(0, 0.3, (6, 3, 3, 3)).astype(dtype), "b": rng.normal(0, 0.3, (4, 6, 3, 3)).astype(dtype)}


def save(path: Path, nodes, extra=(), *, outs=None, given=None, kind=T.FLOAT, batch="n", opset=17) -> Path:
    """Write a network: x (batch, 3, 16, 16) and extra inputs (name, type, shape) → outs, or y (batch, 4)."""
    entries = [h.make_tensor_value_info("x", kind, [batch, *SHAPE])]
    entries += [h.make_tensor_value_info(*e) for e in extra]
    leaves = [h.make_tensor_value_info(*o) for o in outs or [("y", kind, [batch, 4])]]
    held = [numpy_helper.from_array(v, k) for k, v in (weights() if given is None else given).items()]
    model = h.make_model(h.make_graph(nodes, "g", entries, leaves, held), opset_imports=[h.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def run(path: Path, **feeds: ArrayLike) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    first: np.ndarray = session.run(None, {k: np.asarray(v) for k, v in feeds.items()})[0]
    return first


def through(source: Source, x: np.ndarray) -> np.ndarray:
    return Graph.of(source.model, what="whole", exact=True).run(x)[0]


SCALED = [
    *CONV,
    node("Conv", ["r", "b"], ["d"]),
    node("GlobalMaxPool", ["d"], ["p"]),
    node("Flatten", ["p"], ["f"]),
    node("Cast", ["shape"], ["g"], to=T.FLOAT),
    node("ReduceSum", ["g"], ["s"], keepdims=0),
    node("Mul", ["f", "s"], ["m"]),
    node("Where", ["on", "m", "f"], ["w"]),
    node("Mul", ["w", "per_image"], ["v"]),
    node("Add", ["v", "threshold"], ["y"]),
]
EXTRA = [
    ("shape", T.INT64, [2]),
    ("threshold", T.FLOAT, []),
    ("on", T.BOOL, [1]),
    ("per_image", T.FLOAT, ["n", 1]),
]


@pytest.fixture(scope="module")
def scaled(tmp_path_factory) -> Path:
    """A network with four inputs beside the image: sizes, a threshold, a switch, and a factor for each image."""
    return save(tmp_path_factory.mktemp("scaled") / "net.onnx", SCALED, EXTRA)


def test_constants_in_place_of_inputs(scaled):
    x = inputs(3)
    expected = run(
        scaled, x=x, shape=np.array([3, 5]), threshold=np.float32(0.5), on=np.array([True]),
        per_image=np.full((3, 1), 2, np.float32),
    )  # fmt: skip
    assert not np.allclose(expected[0], expected[1])
    given: dict[str, ArrayLike] = {"shape": [3, 5], "threshold": 0.5, "on": True, "per_image": np.float32(2)}
    source = from_file(scaled, constants=given)
    assert source.batch is None
    np.testing.assert_allclose(through(source, x), expected, rtol=1e-5)
    np.testing.assert_allclose(through(source, x[:1]), expected[:1], rtol=1e-5)
    assert [v.name for v in source.graph.inputs] == ["x"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 1}, r"no input 'size' to make constant; the network takes 'x' .float n×3×16×16\), 'shape' .int64 2"),
        ({"shape": [1.5, 2]}, r"'shape' 2 takes whole numbers from -9223372036854775808 .* got \[1.5, 2\]"),
        ({"shape": [1, 2, 3]}, r"'shape' 2 has another shape than the input; got \[1, 2, 3\] of shape \(3,\)"),
        ({"shape": [[1, 2], [3]]}, r"must be numbers in equal rows; got \[\[1, 2\], \[3\]\]"),
        ({"shape": ["a", "b"]}, r"must be numbers, and the input int64; got \['a', 'b'\]"),
        ({"on": 2}, "'on' 1 takes whole numbers from 0 to 1; got 2"),
        ({"threshold": 1e300}, "'threshold' scalar takes float32 numbers up to"),
        ({"per_image": [[1.0], [2.0]]}, "first axis of 'per_image' is the batch: its constant has one row, .*; got 2"),
        ({"x": 0, "shape": 0, "threshold": 0, "on": 0, "per_image": 0}, "nothing is left for the image"),
        ({"shape": 1, "threshold": 0}, r"takes 'x' .*, 'per_image' .*--constant 'per_image=VALUE', or constants="),
        ({}, r"the network must have one input, and takes 'x' \(float n×3×16×16\), .*--constant 'per_image=VALUE'"),
    ],
)  # fmt: skip
def test_constants_that_do_not_fit(scaled, given, message):
    with pytest.raises(SplitwireError, match=message) as e:
        from_file(scaled, constants=given)
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


def test_a_whole_number_that_float16_cannot_hold():
    x, s = (h.make_tensor_value_info(name, T.FLOAT16, []) for name in "xs")
    model = ir.from_proto(h.make_model(h.make_graph([], "g", [x, s], [s])))
    with pytest.raises(UsageError, match="'s' scalar takes float16 numbers up to 65504; got 70000"):
        constants.bake_constants(model, {"s": 70000})


@pytest.mark.parametrize("text", ["s", "s=", "s= ", "=1", "s=abc", "s=[1", 's={"a":1}'])
def test_a_constant_that_the_command_cannot_read(text):
    with pytest.raises(UsageError, match=r"--constant takes NAME=VALUE, with a number, .*; got ") as e:
        parse_constants([text])
    assert str(e.value).endswith(f"; got {text!r}")


def test_a_constant_for_a_module():
    with pytest.raises(UsageError, match="constants are for the inputs of an ONNX file; a torch module"):
        splitwire.export(network(), cut="layer1", calibration=inputs(2), constants={"a": 1})
    with pytest.raises(UsageError, match="constants are for the inputs of an ONNX file; a torch module"):
        splitwire.plan(network(), data=inputs(2), input_shape=(1, *SHAPE), constants={"a": 1})
    constants.check_none({})


def test_constants_by_the_command(scaled, tmp_path):
    write_images(tmp_path / "images", 4)
    given = ["--constant", "shape=3,5", "--constant", "threshold=0.5", "--constant", "on=true", "--constant"]
    command = ["export", str(scaled), "--cut", "r", "--data", str(tmp_path / "images"), "--levels", "4", "--json"]
    command += ["--out", str(tmp_path / "pair"), *given, "per_image=[[2]]"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["cut"] == "r"
    x = inputs(1)
    (r,) = ort.InferenceSession(str(tmp_path / "pair" / "front.onnx")).run(None, {"x": x})
    (y,) = ort.InferenceSession(str(tmp_path / "pair" / "back.onnx")).run(None, {"r": r})
    feeds: dict[str, ArrayLike] = {"shape": np.array([3, 5]), "threshold": np.float32(0.5), "on": np.array([True])}
    np.testing.assert_allclose(y, run(scaled, x=x, per_image=np.full((1, 1), 2, np.float32), **feeds), rtol=1e-5)
    planned = ["plan", str(scaled), "--json", "--images", "2", *given, "per_image=2"]
    result = CliRunner().invoke(app, planned, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for wrong in ("shape", "shape=", "shape=a", "=3", 'shape="3"', "shape=null"):
        with pytest.raises(UsageError, match="--constant takes NAME=VALUE, with a number, numbers with commas"):
            CliRunner().invoke(app, [*command, "--constant", wrong], catch_exceptions=False)
    with pytest.raises(UsageError, match="'shape' is given twice"):
        CliRunner().invoke(app, [*command, "--constant", "shape=1,2"], catch_exceptions=False)


HALF = [
    *CONV,
    node("Constant", [], ["k"], value=numpy_helper.from_array(np.array([0.1], np.float16), "k")),
    node("Mul", ["r", "k"], ["s"]),
    node("Cast", ["s"], ["wide"], to=T.FLOAT),
    node("Cast", ["wide"], ["t"], to=T.FLOAT16),
    node("Conv", ["t", "b"], ["d"]),
    node("GlobalMaxPool", ["d"], ["p"]),
    node("Flatten", ["p"], ["y"]),
]


def test_float16_files_become_float32(tmp_path):
    path = save(tmp_path / "half.onnx", HALF, given=weights(np.float16), kind=T.FLOAT16)
    source = from_file(path)
    assert "the network is in float16: it was converted to float32, with the same weights" in source.notes[0]
    x = inputs(3)
    ours, theirs = through(source, x), run(path, x=x.astype(np.float16)).astype(np.float32)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())
    assert np.abs(ours - theirs).max() > 0  # it is not rounded to half precision any more
    result = splitwire.export(path, cut="r", calibration=inputs(6), levels=(4,), out=tmp_path / "pair")
    assert sum("converted to float32" in n for n in result.notes) == 1
    planned = splitwire.plan(path, data=inputs(2), images=2)
    assert sum("converted to float32" in n for n in planned.notes) == 1
    front = ort.InferenceSession(str(result.front))
    assert (front.get_inputs()[0].type, front.get_outputs()[0].type) == ("tensor(float)", "tensor(float)")


@pytest.mark.parametrize("kinds", [(T.FLOAT, T.FLOAT16), (T.FLOAT16,), (T.FLOAT16, T.BFLOAT16, T.FLOAT)])
def test_outputs_alone_in_half_precision_are_named(tmp_path, kinds):
    """The network itself is float32, and is not called anything else."""
    graph = [
        node("Conv", ["x", "a"], ["c"], strides=[2, 2]), node("GlobalMaxPool", ["c"], ["p"]),
        node("Flatten", ["p"], ["y"]), *(node("Cast", ["y"], [f"o{i}"], to=kind) for i, kind in enumerate(kinds)),
    ]  # fmt: skip
    outs = [h.make_tensor_value_info(f"o{i}", kind, ["n", 6]) for i, kind in enumerate(kinds)]
    entry = h.make_tensor_value_info("x", T.FLOAT, ["n", 3, 32, 32])
    made = h.make_graph(graph, "g", [entry], outs, [numpy_helper.from_array(weights()["a"], "a")])
    path = tmp_path / "net.onnx"
    onnx.save(h.make_model(made, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    half = [f"'o{i}'" for i, kind in enumerate(kinds) if kind != T.FLOAT]
    types = "bfloat16 and float16" if T.BFLOAT16 in kinds else "float16"
    named = f"the output {half[0]} is" if len(half) == 1 else f"the outputs {', '.join(half)} are"
    source = from_file(path)
    assert source.notes == (f"{named} in {types}: the pair gives float32 there",)
    assert {v.dtype.name for v in source.graph.outputs if v.dtype} == {"FLOAT"}


def test_float16_weights_alone_and_bodies(tmp_path):
    """Weights in half precision behind casts, one of them in the body of an If; the input is float32."""
    wide = [(w, h.make_tensor_value_info(f"{w}32", T.FLOAT, None)) for w in ("a", "a2")]
    body = [h.make_graph([node("Cast", [w], [f"{w}32"], to=T.FLOAT)], w, [], [out]) for w, out in wide]
    given = weights(np.float16)
    given["a2"] = given["a"] * 2
    given["yes"] = np.array(True)
    nodes = [
        node("If", ["yes"], ["w"], then_branch=body[0], else_branch=body[1]),
        node("Conv", ["x", "w"], ["c"], strides=[2, 2]), node("Relu", ["c"], ["r"]),
        node("Cast", ["b"], ["b32"], to=T.FLOAT), node("Conv", ["r", "b32"], ["d"]),
        node("GlobalMaxPool", ["d"], ["p"]), node("Flatten", ["p"], ["y"]),
    ]  # fmt: skip
    path = save(tmp_path / "weights.onnx", nodes, given=given)
    source = from_file(path)
    assert "in float16" in source.notes[0]
    np.testing.assert_allclose(through(source, inputs(2)), run(path, x=inputs(2)), rtol=1e-5, atol=1e-6)


def test_bfloat16_files_become_float32(tmp_path):
    """ONNX Runtime's CPU has no bfloat16 convolution; the reference is float32 with the weights rounded by torch."""
    rounded = {k: torch.from_numpy(v).bfloat16().float().numpy() for k, v in weights().items()}
    nodes = [*CONV, node("Conv", ["r", "b"], ["d"]), node("GlobalMaxPool", ["d"], ["p"]), node("Flatten", ["p"], ["y"])]
    wide = save(tmp_path / "wide.onnx", nodes, given=rounded)
    model = onnx.load(wide)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = T.BFLOAT16
    for tensor in model.graph.initializer:
        bits = (numpy_helper.to_array(tensor).view(np.uint32) >> 16).astype(np.uint16)
        tensor.CopyFrom(h.make_tensor(tensor.name, T.BFLOAT16, bits.shape, bits.tobytes(), raw=True))
    model.opset_import[0].version = 22  # the first with such a convolution
    model.ir_version = 10
    onnx.save(model, tmp_path / "bf.onnx")
    source = from_file(tmp_path / "bf.onnx")
    assert any("the network is in bfloat16: it was converted to float32" in n for n in source.notes)
    np.testing.assert_allclose(through(source, inputs(2)), run(wide, x=inputs(2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_modules_in_half_precision(kind, tmp_path):
    module = network().to(kind)
    result = splitwire.export(module, cut="layer1", calibration=inputs(6), levels=(4,), out=tmp_path)
    assert f"the network is in {str(kind)[6:]}: it was converted to float32" in result.notes[0]
    assert {p.dtype for p in module.parameters()} == {kind}
    assert module.training
    wide = network().to(kind).float().eval()
    (r,) = ort.InferenceSession(str(result.front)).run(None, {"input": inputs(2)})
    back = ort.InferenceSession(str(result.back))
    (y,) = back.run(None, {back.get_inputs()[0].name: r})
    with torch.no_grad():
        np.testing.assert_allclose(y, wide(torch.from_numpy(inputs(2))).numpy(), rtol=1e-4, atol=1e-5)


class Standardise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = (x - x.mean()) / x.std()
        return self.fc(self.relu(self.conv(x)).amax((2, 3)))


class OwnStatistics(nn.Module):
    """Batch norm without running statistics uses those of the batch, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.bn = nn.BatchNorm2d(4, track_running_stats=False)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.relu(self.bn(self.conv(x))).amax((2, 3)))


END = [node("Conv", ["r", "b"], ["d"]), node("GlobalMaxPool", ["d"], ["p"]), node("Flatten", ["p"], ["y"])]
TRAINING = [
    node("Conv", ["x", "a"], ["c"], strides=[2, 2]),
    node("BatchNormalization", ["c", "g", "o", "m", "v"], ["bn", "m2", "v2"], training_mode=1),
    node("Relu", ["bn"], ["r"]), *END,
]  # fmt: skip
DYNAMIC = [  # as quantize_dynamic() writes: one scale for the whole batch
    node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), node("DequantizeLinear", ["q", "s", "z"], ["x8"]),
    node("Conv", ["x8", "a"], ["c"], strides=[2, 2]), node("Relu", ["c"], ["r"]), *END,
]  # fmt: skip
STATIC = [
    node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["x8"]),
    node("Conv", ["x8", "a"], ["c"], strides=[2, 2]), node("Relu", ["c"], ["r"]), *END,
]  # fmt: skip
TOP = [*CONV, *END[:2], node("Flatten", ["p"], ["f"]), node("TopK", ["f", "two"], ["y", "i"])]
BN = {k: np.full(6, v, np.float32) for k, v in (("g", 1), ("o", 0), ("m", 0), ("v", 1))}
SCALE = {"s": np.float32(0.02), "z": np.uint8(128)}


@pytest.mark.parametrize(
    ("nodes", "given", "outs", "mixes"),
    [
        (TRAINING, BN, None, True),
        (DYNAMIC, {}, None, True),
        (STATIC, SCALE, None, False),
        ([*CONV, *END], {}, None, False),
        (TOP, {"two": np.array([2])}, [("y", T.FLOAT, ["n", 2]), ("i", T.INT64, ["n", 2])], False),
        ([*CONV, *END[:2], node("Flatten", ["p"], ["f"]), node("Softmax", ["f"], ["y"], axis=0)], {}, None, True),
    ],
    ids=["training", "dynamic int8", "static int8", "plain", "top k", "softmax over the batch"],
)
def test_images_that_influence_each_other(tmp_path, nodes, given, outs, mixes):
    path = save(tmp_path / "net.onnx", nodes, given=weights() | given, outs=outs)
    x = inputs(4) * np.array([0.1, 1, 5, 20], np.float32).reshape(4, 1, 1, 1)
    alone = np.concatenate([run(path, x=x[i : i + 1]) for i in range(4)])
    assert np.allclose(alone, run(path, x=x), rtol=1e-3, atol=1e-3) != mixes
    source = from_file(path)
    assert source.batch == (1 if mixes else None)
    assert any("influence each other" in n for n in source.notes) == mixes
    if mixes:
        np.testing.assert_allclose([through(source, x[i : i + 1])[0] for i in range(4)], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", [Standardise, OwnStatistics])
def test_a_module_whose_images_influence_each_other(cls, tmp_path):
    torch.manual_seed(0)
    module = cls().eval()
    x = inputs(12) * np.random.default_rng(0).choice([0.1, 1, 5], (12, 1, 1, 1)).astype(np.float32)
    result = splitwire.export(module, cut="relu", calibration=x, levels=(8,), out=tmp_path)
    assert any("the images of a batch influence each other" in n for n in result.notes)
    cloud = splitwire.CloudSession(result.back)
    with splitwire.EdgeSession(result.front, transport=splitwire.LoopbackTransport(cloud.handle)) as edge:
        assert edge.input_shape == (1, *SHAPE)
        got = np.concatenate([edge.infer(x[i : i + 1]).outputs["output"] for i in range(12)])
        with pytest.raises(ShapeMismatch):
            edge.infer(x[:2])
    with torch.no_grad():
        alone = np.concatenate([module(torch.from_numpy(x[i : i + 1])).numpy() for i in range(12)])
    assert (got.argmax(1) == alone.argmax(1)).mean() > 0.8


def test_rounding_is_not_taken_for_mixing(model):
    """Not even where it is as large as it gets: logits far from zero, whose differences are the answer."""
    source = from_file(model)
    assert source.batch is None
    assert not mixing.mixes_images(source.model, source.input_shape, "float32")


def test_a_batch_fixed_at_four(tmp_path):
    path = save(tmp_path / "four.onnx", [*CONV, *END], batch=4)
    write_images(tmp_path / "images", 6)
    result = splitwire.export(path, cut="r", calibration=tmp_path / "images", levels=(8,), out=tmp_path / "pair")
    assert "a picture alone is filled up to 4 with copies of itself, and costs as much as 4" in " ".join(result.notes)
    cloud = splitwire.CloudSession(result.back)
    with splitwire.EdgeSession(result.front, transport=splitwire.LoopbackTransport(cloud.handle)) as edge:
        image = next((tmp_path / "images").rglob("*.png"))
        x = edge.preprocess(image)
        one = edge.infer_image(image)
        four = edge.infer(np.concatenate([x, x, x, x]))
        np.testing.assert_array_equal(one.outputs["y"], four.outputs["y"][:1])
        assert (one.frame_bytes, one.outputs["y"].shape) == (four.frame_bytes, (1, 4))
        assert one.bits_per_element == pytest.approx(4 * four.bits_per_element)
        three = inputs(3)
        expected = run(path, x=np.concatenate([three, three[-1:]]))[:3]
        got = edge.infer(three).outputs["y"]
        assert got.shape == (3, 4)
        assert np.abs(got - expected).max() < 0.2 * np.abs(expected).max()
        with pytest.raises(ShapeMismatch):
            edge.infer(inputs(5))


def test_a_fixed_batch_with_an_output_for_all(tmp_path):
    """Pictures cannot be run one by one: said at export, and by the session in place of a wrong answer."""
    nodes = [*CONV, *END, node("ReduceSum", ["y"], ["total"], keepdims=0), node("Reshape", ["total", "one"], ["all"])]
    outs = [("y", T.FLOAT, [4, 4]), ("all", T.FLOAT, [1])]
    path = save(tmp_path / "four.onnx", nodes, batch=4, outs=outs, given=weights() | {"one": np.array([1])})
    result = splitwire.export(path, cut="r", calibration=inputs(8), levels=(8,), out=tmp_path / "pair")
    assert "pictures cannot be run one by one: the output 'all' does not have one row" in " ".join(result.notes)
    cloud = splitwire.CloudSession(result.back)
    with splitwire.EdgeSession(result.front, transport=splitwire.LoopbackTransport(cloud.handle)) as edge:
        assert set(edge.infer(inputs(4)).outputs) == {"y", "all"}
        with pytest.raises(ShapeMismatch, match=r"'all' has the shape \(1,\).*1 cannot be run alone; give infer\(\) 4"):
            edge.infer(inputs(1))
