"""Shapes that shape inference leaves open: TorchScript exports, graphs whose shapes depend on the data."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from exporter_helpers import inputs
from torch import nn

from splitwire.exporter.cutting import cuts, verify
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.cutting.split import split
from splitwire.exporter.network import source as graph
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.shapes import measured as shapes

SHAPE = (3, 12, 12)


class Shuffling(nn.Module):
    """shufflenet's channel shuffle and swin's windows, written with sizes taken from the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.proj = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).relu()
        x = torch.cat(self.conv2(x).chunk(2, dim=1), dim=1)
        x = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(n * (h // 4) * (w // 4), 16, c)
        x = torch.softmax(self.proj(x), dim=-1)
        x = x.view(n, (h // 4) * (w // 4) * 16, c)
        y: torch.Tensor = self.fc(x.relu().mean(1))
        return y


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("shapes") / "shuffling.onnx"
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Shuffling().eval(),
            (torch.zeros(2, *SHAPE),),
            str(path),
            dynamo=False,
            dynamic_axes={"input": {0: "batch"}},
            input_names=["input"],
        )
    return path


def activations(source):
    return list(shapes._shaped_by_sizes(Names(source.graph).flow))


def test_shapes_of_a_torchscript_export(file, monkeypatch):
    """Without the measuring not all tensors behind the shuffle are cuts; with it every shape is what comes."""
    with monkeypatch.context() as patch:
        patch.setattr(graph, "complete_shapes", lambda model, shape: None)
        before = graph.from_file(file)
    source = graph.from_file(file)
    fewer = cuts.find_cuts(before.graph, Names(before.graph))
    found = cuts.find_cuts(source.graph, Names(source.graph))
    assert {c.tensors for c in found} > {c.tensors for c in fewer}
    assert len(found) >= len(fewer) + 3
    whole = Graph.of(source.model, what="whole", exact=True)
    for cut in found:
        halves = split(source.model, cut.tensors)
        assert verify.check_halves(whole, halves, inputs(3, SHAPE)) == 0.0
        for n in verify.BATCHES:
            made = Graph.of(halves.front, what="front").run(inputs(n, SHAPE))
            assert made[0].shape == (n, *cut.shapes[0])
    windows = {str(v.shape[0]) for v in activations(source) if len(v.shape) == 3}
    assert "9*batch" in windows
    assert all(shapes._is_known(v, ir.SymbolicDim("batch")) for v in activations(source))


def test_batch_without_a_name(file, tmp_path):
    model = onnx.load(file)
    for name in ("", "input dim"):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = name
        onnx.save(model, tmp_path / "model.onnx")
        source = graph.from_file(tmp_path / "model.onnx")
        assert source.batch is None
        shape = source.graph.inputs[0].shape
        assert shape is not None
        assert all(shapes._is_known(v, shape[0]) for v in activations(source))


def parsed(text: str) -> ir.Model:
    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> agraph {text}'))
    shapes.complete_shapes(model, (1, 4))
    return model


def dims(model: ir.Model, name: str) -> list[str]:
    return [str(d) for d in ir.convenience.create_value_mapping(model.graph)[name].shape or ()]


def test_what_depends_on_the_data_stays_open():
    """The count of positive elements, and a length that is read off the data, are not written down as sizes."""
    model = parsed("""(float[N, 4] x) => (float[a, b] y, float[c] z) <int64[1] minus = {-1}, int64 zero = {0}> {
        s = Shape(x)
        same = Reshape(x, s)
        found = NonZero(same)
        y = Cast <to = 1> (found)
        top = ReduceMax <keepdims = 0> (same)
        whole = Cast <to = 7> (top)
        one = Constant <value = int64 {1}> ()
        r = Range(zero, whole, one)
        z = Cast <to = 1> (r)
    }""")
    assert dims(model, "same") == ["N", "4"]
    assert dims(model, "y") == ["a", "b"]
    assert dims(model, "z") == ["c"]


def test_only_lines_of_the_batch_are_written():
    """Half the batch, rounded down, equals batch − 1 at two of the sizes that are tried."""
    model = parsed("""(float[N, 4] x) => (float[a, b] y, float[c, d] z) <int64[1] two = {2}, int64[1] o = {0}> {
        n = Shape <start = 0, end = 1> (x)
        half = Div(n, two)
        y = Slice(x, o, half, o)
        twice = Mul(n, two)
        rest = Constant <value = int64[1] {2}> ()
        to = Concat <axis = 0> (twice, rest)
        z = Reshape(x, to)
    }""")
    assert dims(model, "y") == ["None", "4"]
    assert dims(model, "z") == ["2*N", "2"]


def test_nothing_runs_where_nothing_is_missing(file, monkeypatch):
    source = graph.from_file(file)

    def run(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(shapes, "_measure", run)
    shapes.complete_shapes(source.model, source.input_shape)


def test_a_graph_that_does_not_run_is_left_alone():
    model = parsed("""(float[N, 4] x) => (float[a, b] y) <int64[1] nine = {9}> {
        n = Shape <start = 0, end = 1> (x)
        to = Concat <axis = 0> (n, nine)
        y = Reshape(x, to)
    }""")
    assert dims(model, "y") == ["a", "b"]


def test_fixed_batch():
    model = parsed("""(float[2, 4] x) => (float[a, b] y) {
        s = Shape(x)
        y = Reshape(x, s)
    }""")
    assert dims(model, "y") == ["2", "4"]


def test_weights_that_are_views_are_taken():
    """Transposed views, which torch's exporter leaves: ONNX Runtime uses contiguous buffers only."""
    x = ir.Value(name="x", shape=ir.Shape(["batch", 3]), type=ir.TensorType(ir.DataType.FLOAT))
    weights = np.arange(6, dtype=np.float32).reshape(2, 3).T
    w = ir.Value(name="w", const_value=ir.Tensor(weights, name="w"), shape=ir.Shape([3, 2]))
    w.type = ir.TensorType(ir.DataType.FLOAT)
    node = ir.node("MatMul", [x, w])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", x.type, ir.Shape(["batch", 2])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 20}, name="views")
    brief = Graph.of(ir.Model(graph, ir_version=10), what="network", brief=True)
    sample = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(brief.run(sample)[0], sample @ weights)
