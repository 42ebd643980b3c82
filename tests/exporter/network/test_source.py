"""Getting the network as a graph: modules and files of every kind, or one clear line."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from exporter_helpers import SHAPE, Net, inputs, network
from onnx import TensorProto as T
from onnx import helper
from torch import nn

from splitwire.codec.errors import UnsupportedModel, UsageError
from splitwire.exporter.cutting.torch_check import check_torch
from splitwire.exporter.network import inference, onnx_files
from splitwire.exporter.network.adapting import compatibility
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.source import from_file, from_module


class Small(nn.Module):
    """One convolution; `head` makes what comes out of its result."""

    def __init__(self, head=lambda y: y) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = head

    def forward(self, x):
        return self.head(self.conv(x).relu())


def small(head=lambda y: y) -> Small:
    torch.manual_seed(0)
    return Small(head)


def export(module):
    source = from_module(module, (1, *SHAPE))
    whole = Graph.of(source.model, what="whole", exact=True)
    assert check_torch(module, source, whole, inputs(3)) < 1e-5
    return source


# Modules


@dataclasses.dataclass
class Answer:
    main: torch.Tensor
    aux: torch.Tensor | None = None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "names"),
    [
        (lambda y: {"out": y, "mean": y.mean(1)}, ["out", "mean"]),
        (lambda y: [y, (y + 1, None)], ["output_0", "output_1_0"]),
        (lambda y: Answer(main=y * 2), ["main"]),
        (lambda y: Answer(main=y * 2, aux=y.mean((2, 3))), ["main", "aux"]),
    ],
)
def test_outputs_of_any_kind(head, names):
    module = small(head).train()
    source = export(module)
    assert [o.name for o in source.graph.outputs] == names
    assert source.batch is None
    assert "conv" in source.modules
    assert module.training
    assert type(module) is Small


@pytest.mark.slow
def test_an_example_in_place_of_a_shape():
    a, b = (from_module(small(), e) for e in (torch.ones(5, *SHAPE), (1, *SHAPE)))
    assert a.input_shape == b.input_shape == (1, *SHAPE)
    assert inference.serialise(a.model) == inference.serialise(b.model)


class Two(Small):
    def forward(self, x, mask):  # type: ignore[override]  # a second input, which is refused
        return self.conv(x) * mask


@pytest.mark.parametrize(
    ("make", "example", "error", "message"),
    [
        (Two, (1, *SHAPE), UnsupportedModel, r"must take one tensor; forward\(\) takes 2: x, mask\. Wrap it"),
        (lambda: small().half(), (1, *SHAPE), UnsupportedModel, r"torch.float16 weights; call module.float\(\) first"),
        (lambda: small().to("meta"), (1, *SHAPE), UnsupportedModel, r"weights are on meta; .*module.to\('cpu'\)"),
        (small, (1, 4, 16, 16), UsageError, r"does not take an input of shape \(1, 4, 16, 16\): .*to have 3 channels"),
        (small, (3,), UsageError, r"must be \(1, C, H, W\) with positive sizes, is \(3,\)"),
        (small, (1, 3, 0, 16), UsageError, "with positive sizes"),
        (small, (torch.ones(1, *SHAPE), torch.ones(1)), UsageError, "must be one tensor or a shape .* holds Tensors"),
        (small, torch.ones(1, *SHAPE).int(), UsageError, "must be a float32 or uint8 tensor .* it is torch.int32"),
        (lambda: small(lambda y: 3), (1, *SHAPE), UnsupportedModel, "returns int without a tensor"),
    ],
)
def test_a_module_that_is_refused(make, example, error, message):
    with pytest.raises(error, match=message) as caught:
        from_module(make(), example)
    assert "\n" not in str(caught.value)


# The batch


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [
        lambda y: y.reshape(1, -1),  # a size written into the network
        lambda y: y.permute(1, 0, 2, 3),  # runs at any batch, but the server could not tell the images apart
        lambda y: y.mean(),
    ],
)
def test_a_network_that_fixes_the_batch(head):
    source = export(small(head))
    assert source.batch == 1
    assert list(source.graph.inputs[0].shape) == [1, *SHAPE]
    assert "the batch is fixed at 1" in source.notes[0]


def onnx_model(nodes, *, batch="N", out=("N", 4), opset=18, ir_version=10, weights=(), domains=()):
    return helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", T.FLOAT, [batch, 4])],
            [helper.make_tensor_value_info("y", T.FLOAT, list(out))], initializer=weights,
        ),
        opset_imports=[helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)],
        ir_version=ir_version,
    )  # fmt: skip


def read(tmp_path, model, **options):
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return from_file(path, **options)


def test_other_symbols_for_the_batch(tmp_path):
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    source = read(tmp_path, onnx_model(relu, batch="unk_1", out=("unk_2", 4)))
    assert (source.batch, source.notes) == (None, ())


def test_a_file_that_only_claims_a_free_batch(tmp_path):
    shape = helper.make_tensor("shape", T.INT64, [2], [1, 4])
    reshape = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    source = read(tmp_path, onnx_model(reshape, out=("M", 4), weights=[shape]))
    assert source.batch == 1
    assert list(source.graph.inputs[0].shape) == [1, 4]
    assert "the batch is fixed at 1" in source.notes[0]
    assert Graph.of(source.model, what="whole").batch == 1


# What the edge's runtimes run


def run(data, x):
    return ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("opset", [22, 23, 25])
def test_a_newer_opset_that_changes_nothing(tmp_path, opset):
    nodes = [
        helper.make_node("Softplus", ["x"], ["a"]),  # redefined in 22
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 1]),  # in 23
        helper.make_node("Cast", ["b"], ["c"], to=T.FLOAT),  # in 23 and 24, with a new attribute
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    model = onnx_model(nodes, opset=opset, ir_version=13)
    source = read(tmp_path, model)
    assert (source.opset, source.model.ir_version) == (21, 10)
    assert f"written for opset {opset}" in source.notes[0]
    x = np.random.default_rng(0).standard_normal((3, 4), dtype=np.float32)
    np.testing.assert_array_equal(run(inference.serialise(source.model), x), run(model.SerializeToString(), x))


@pytest.mark.parametrize(
    ("op", "entries", "opset", "message"),
    [
        ("RMSNormalization", ["x", "w"], 23, "uses RMSNormalization as of opset 23, which needs ONNX Runtime 1.23;"),
        ("Swish", ["x"], 24, "uses Swish as of opset 24, which needs an ONNX Runtime later than 1.23; the edge"),
    ],
)
def test_an_opset_that_old_runtimes_do_not_have(tmp_path, op, entries, opset, message):
    weight = helper.make_tensor("w", T.FLOAT, [4], [1.0] * 4)
    model = onnx_model([helper.make_node(op, entries, ["y"])], opset=opset, weights=[weight])
    with pytest.raises(UnsupportedModel, match=message):
        read(tmp_path, model)


def test_a_type_that_old_runtimes_do_not_have(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=T.FLOAT4E2M1),
        helper.make_node("Cast", ["f"], ["y"], to=T.FLOAT),
    ]
    with pytest.raises(UnsupportedModel, match="uses Cast as of opset 23"):
        read(tmp_path, onnx_model(nodes, opset=23, ir_version=11))


def test_an_older_graph_keeps_its_opset_and_ir_version(tmp_path):
    source = read(tmp_path, onnx_model([helper.make_node("Relu", ["x"], ["y"])], opset=13, ir_version=8))
    assert (source.opset, source.model.ir_version, source.notes) == (13, 8, ())


@pytest.mark.slow
def test_what_torch_makes_runs_on_the_oldest_runtime():
    source = from_module(network(Net), (1, *SHAPE))
    assert source.opset <= compatibility.MAX_OPSET
    assert source.model.ir_version <= compatibility.MAX_IR


# Files that are refused


def test_not_onnx(tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(UsageError, match="no such ONNX file"):
        from_file(path)
    for content in (b"", b"PK\x03\x04 not a graph", b"\x00" * 100, onnx_model([]).SerializeToString()[:-5]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="not an ONNX file") as caught:
            from_file(path)
        assert "\n" not in str(caught.value)


def test_an_operator_of_somebody_elses(tmp_path):
    node = helper.make_node("FancyPool", ["x"], ["y"], domain="com.example", name="pool_3")
    with pytest.raises(UnsupportedModel, match=r"FancyPool of the domain 'com.example' \(node 'pool_3'\)"):
        read(tmp_path, onnx_model([node], domains=["com.example"]))
    with pytest.raises(UnsupportedModel, match="No Op registered for NoSuchOp"):
        read(tmp_path, onnx_model([helper.make_node("NoSuchOp", ["x"], ["y"])]))


def test_a_function_of_somebody_elses_is_inlined(tmp_path):
    node = helper.make_node("Twice", ["x"], ["y"], domain="com.example")
    model = onnx_model([node], domains=["com.example"])
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(
        helper.make_function("com.example", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    )
    source = read(tmp_path, model)
    assert [n.op_type for n in source.graph] == ["Add"]
    assert list(source.model.opset_imports) == [""]


def with_weights(tmp_path, n=512):
    """A file with its weights beside it."""
    values = np.arange(4 * n, dtype=np.float32).reshape(4, n)
    weight = onnx.numpy_helper.from_array(values, "w")
    back = onnx.numpy_helper.from_array(values.T / 1e6, "v")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("MatMul", ["m", "v"], ["y"])]
    model = onnx_model(nodes, weights=[weight, back])
    path = tmp_path / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="net.bin", size_threshold=0)
    return path, values @ (values.T / 1e6)


def test_weights_that_do_not_fit(tmp_path):
    path, _ = with_weights(tmp_path)
    data = (tmp_path / "net.bin").read_bytes()
    (tmp_path / "net.bin").write_bytes(data[:-8])
    with pytest.raises(UnsupportedModel, match=r"weights do not fit the model: 'v' needs 8,192 bytes.* 16,376 bytes"):
        from_file(path)
    (tmp_path / "net.bin").unlink()
    with pytest.raises(UnsupportedModel, match=r"net\.bin"):
        from_file(path)


def test_weights_of_too_few_bytes(tmp_path):
    weight = onnx.numpy_helper.from_array(np.zeros((4, 5), np.float32), "w")
    weight.raw_data = weight.raw_data[:-4]
    model = onnx_model([helper.make_node("MatMul", ["x", "w"], ["y"])], weights=[weight])
    with pytest.raises(UnsupportedModel, match=r"weights do not fit the model: 'w' of shape \[4,5\]"):
        read(tmp_path, model)


def test_weights_of_the_wrong_shape(tmp_path):
    weight = helper.make_tensor("w", T.FLOAT, [5, 4], [0.0] * 20)
    model = onnx_model([helper.make_node("MatMul", ["x", "w"], ["y"])], weights=[weight])
    with pytest.raises(UnsupportedModel, match="MatMul") as caught:
        Graph.of(read(tmp_path, model).model, what="network")
    assert "\n" not in str(caught.value)


# Large networks


def test_weights_beside_the_graph(tmp_path, monkeypatch):
    """Everything that happens above 2 GB, with the limit at 1 kB."""
    path, matrix = with_weights(tmp_path)
    monkeypatch.setattr(onnx_files, "MAX_MODEL_BYTES", 1000)
    source = from_file(path)
    assert all(type(v.const_value).__name__ == "ExternalTensor" for v in source.graph.initializers.values())

    x = np.eye(4, dtype=np.float32)
    (expected,) = Graph.of(source.model, what="whole").run(x)
    (large,) = Graph.of(source.model, what="whole", limit=1000).run(x)
    np.testing.assert_array_equal(large, expected)
    np.testing.assert_allclose(large.astype(np.float32, copy=False), matrix, rtol=1e-5)

    written = inference.save(source.model, tmp_path / "tmp", name="half.onnx", limit=1000)
    assert [p.name for p in written] == ["tmp.data", "tmp"]
    (tmp_path / "tmp.data").rename(tmp_path / "half.onnx.data")
    (tmp_path / "tmp").rename(tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").stat().st_size < 1000
    np.testing.assert_array_equal(run(tmp_path / "half.onnx", x), expected)

    assert [p.name for p in inference.save(source.model, tmp_path / "one.onnx")] == ["one.onnx"]
    np.testing.assert_array_equal(run(tmp_path / "one.onnx", x), expected)

    small_digest, large_digest = (inference.digest(source.model, limit=n) for n in (10**6, 1000))
    assert small_digest != large_digest
    v = source.graph.initializers["v"]
    assert v.const_value is not None
    v.const_value = ir.Tensor(v.const_value.numpy() + 1, name="v")
    assert inference.digest(source.model, limit=1000) != large_digest
