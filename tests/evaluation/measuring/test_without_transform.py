"""The halves of a transform pair at the features: together they are the whole network, to the last digits."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper
from onnx_helpers import SHAPE, N, in_runtime, network, pictures, save, value, weight

import splitwire
from splitwire.codec.errors import ProfileError
from splitwire.codec.profile import METADATA_KEY, CodecProfile
from splitwire.codec.transform import Transform
from splitwire.codec.warmup import example_transform
from splitwire.evaluation.measuring.pair import Pair
from splitwire.evaluation.measuring.without_transform import from_features, with_features
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.pair.bake import write_pair
from splitwire.runtime_cloud.graph import open_back


def branches() -> onnx.ModelProto:
    """Two convolutions beside each other, joined behind the cut; the brightness of the input leaves early."""
    nodes = [
        N("Conv", ["x", "a"], ["c"]), N("Relu", ["c"], ["r"]),
        N("Conv", ["x", "b"], ["s"], strides=[4, 4]),
        N("ReduceMean", ["x"], ["light"], axes=[1, 2, 3], keepdims=0),
        N("GlobalAveragePool", ["r"], ["p"]), N("GlobalAveragePool", ["s"], ["q"]),
        N("Concat", ["p", "q"], ["pq"], axis=1), N("Flatten", ["pq"], ["f"]), N("MatMul", ["f", "w"], ["y"]),
    ]  # fmt: skip
    outputs = [value("light", ["n"]), value("y", ["n", 6])]
    weights = [weight("a", 6, 3, 3, 3), weight("b", 4, 3, 3, 3), weight("w", 10, 6)]
    graph = h.make_graph(nodes, "g", [value("x", ["n", *SHAPE])], outputs, weights)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


def tokens() -> onnx.ModelProto:
    """16 patches of 12 channels, mixed behind the cut."""
    nodes = [
        N("Conv", ["x", "a"], ["c"], strides=[4, 4]), N("Reshape", ["c", "flat"], ["f"]),
        N("Transpose", ["f"], ["t"], perm=[0, 2, 1]), N("MatMul", ["t", "b"], ["u"]), N("Tanh", ["u"], ["v"]),
        N("ReduceMean", ["v"], ["m"], axes=[1], keepdims=0), N("MatMul", ["m", "w"], ["y"]),
    ]  # fmt: skip
    flat = numpy_helper.from_array(np.array([0, 12, 16]), "flat")
    weights = [weight("a", 12, 3, 4, 4), flat, weight("b", 12, 12), weight("w", 12, 6)]
    graph = h.make_graph(nodes, "g", [value("x", ["n", *SHAPE])], [value("y", ["n", 6])], weights)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


NETWORKS = {
    "one tensor": (network, "r", ["r"]),
    "a batch of two": (lambda: network(outputs=[value("y", [2, 6])], batch=2), "r", ["r"]),
    "two tensors": (branches, "r,s", ["r", "s"]),
    "tokens": (tokens, "t", ["t"]),
    "an output at the cut": (lambda: network(outputs=[value("r", ["n", 6, 14, 14]), value("y", ["n", 6])]), "r", ["r"]),
}


def exported(path: Path, cut: str) -> Path:
    splitwire.export(path, cut=cut, calibration=pictures(8), out=path.parent / "pair", codec="transform", refine=0)
    return path.parent / "pair"


@pytest.fixture(scope="module")
def one_tensor(tmp_path_factory) -> Path:
    return exported(save(network(), tmp_path_factory.mktemp("one") / "net.onnx"), "r")


@pytest.mark.parametrize("name", NETWORKS)
def test_front_and_back_at_the_features_are_the_whole_network(name, tmp_path):
    """The transform loses something even without a codec; at the features nothing is lost."""
    make, cut, tensors = NETWORKS[name]
    path = save(make(), tmp_path / "net.onnx")
    pair, x = Pair(exported(path, cut)), pictures(6)[2:]
    batches = [list(x[i : i + pair.batch]) for i in range(0, len(x), pair.batch)]
    model = make()
    outputs_of_network = [output.name for output in model.graph.output]
    features = zip(tensors, pair.profile.tensors, strict=True)
    model.graph.output.extend(
        value(t, ["k", *spec.feature_shape]) for t, spec in features if t not in outputs_of_network
    )
    tapped = save(model, tmp_path / "tapped.onnx")
    for batch in batches:
        whole = in_runtime(tapped, np.stack(batch))
        fronts = pair.front(batch)
        for k, tensor in enumerate(tensors):
            for i, fronted in enumerate(fronts):
                np.testing.assert_allclose(fronted.features[k][0], whole[tensor][i], rtol=1e-5, atol=1e-6)
                assert fronted.crossing[k].shape[1:] == pair.profile.tensors[k].shape
        outputs = pair.back([f.features for f in fronts], fronts)
        assert list(outputs) == outputs_of_network
        for output, expected in outputs.items():
            np.testing.assert_allclose(expected, whole[output], rtol=1e-5, atol=1e-6)
        as_sent = pair.receive([f.crossing for f in fronts], fronts)
        assert np.abs(as_sent["y"] - whole["y"]).max() > 1e-5
        np.testing.assert_allclose(as_sent["y"], whole["y"], atol=0.3)


def test_the_back_begins_with_the_features(one_tensor):
    """What only the synthesis needs is gone: nodes and weights."""
    model = ir.load(one_tensor / "back.onnx")
    names = {node.name for node in model.graph}
    back = from_features(model).graph
    assert [v.name for v in back.inputs] == ["r"]
    assert list(back.inputs[0].shape or ()) == ["n", 6, 14, 14]
    assert [node.op_type for node in back] == ["Conv", "GlobalAveragePool", "Flatten"]
    assert list(back.initializers) == ["b"]
    assert len(names) > 6
    front = with_features(ir.load(one_tensor / "front.onnx")).graph
    assert [v.name for v in front.outputs] == ["r/coefficients", "r"]


def test_as_they_are_the_files_give_no_features(one_tensor):
    pair, x = Pair(one_tensor, features=False), list(pictures(2))
    fronts = pair.front(x)
    assert [f.features for f in fronts] == [(), ()]
    outputs = pair.receive([f.crossing for f in fronts], fronts)
    expected = open_back(one_tensor / "back.onnx").run([np.concatenate([f.crossing[0] for f in fronts])])
    np.testing.assert_array_equal(outputs["y"], expected["y"])


def test_a_pair_without_a_transform_sends_its_features(tmp_path):
    path = save(network(), tmp_path / "net.onnx")
    splitwire.export(path, cut="r", calibration=pictures(8), out=tmp_path / "pair", levels=(2,), codec="scalar")
    pair = Pair(tmp_path / "pair")
    fronts = pair.front(list(pictures(2)))
    assert all(f.features is f.crossing for f in fronts)
    received = pair.receive([f.crossing for f in fronts], fronts)
    np.testing.assert_array_equal(received["y"], pair.back([f.features for f in fronts], fronts)["y"])


def test_weights_beside_the_graphs(one_tensor, tmp_path):
    front, back = (ir.load(one_tensor / name) for name in ("front.onnx", "back.onnx"))
    profile = CodecProfile.from_metadata(dict(front.metadata_props), "front")
    write_pair(front, back, profile, tmp_path, limit=100)
    assert {p.name for p in tmp_path.iterdir()} >= {"front.onnx.data", "back.onnx.data"}
    answers = []
    for folder in (one_tensor, tmp_path):
        pair = Pair(folder)
        fronts = pair.front(list(pictures(3)))
        answers.append(pair.back([f.features for f in fronts], fronts)["y"])
    np.testing.assert_array_equal(answers[0], answers[1])


def test_a_body_that_reads_the_features_from_outside():
    """The branches of an If have no inputs: they name the features."""
    nodes = [
        N("Reshape", ["t/coefficients", "shape"], ["t"]), N("Shape", ["t"], ["s"]), N("Size", ["s"], ["k"]),
        N("Cast", ["k"], ["b"], to=T.BOOL),
        N("If", ["b"], ["y"], **{
            f"{name}_branch": h.make_graph([N(kind, ["t"], [f"{kind}y"])], kind, [], [value(f"{kind}y", None)])
            for name, kind in (("then", "Relu"), ("else", "Neg"))
        }),
    ]  # fmt: skip
    shape = numpy_helper.from_array(np.array([0, 12]), "shape")
    graph = h.make_graph(nodes, "g", [value("t/coefficients", ["n", 1, 12])], [value("y", ["n", 12])], [shape])
    model = ir.from_proto(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8))
    model.metadata_props[METADATA_KEY] = vector_profile().to_json()
    cut = from_features(model)
    assert [v.name for v in cut.graph.inputs] == ["t"]
    assert not cut.graph.initializers
    x = np.random.default_rng(0).standard_normal((3, 12)).astype(np.float32)
    np.testing.assert_array_equal(Graph.of(cut, what="back").run(x)[0], np.maximum(x, 0))


def vector_profile() -> CodecProfile:
    """Of 12 coefficients of a vector t."""
    example = example_transform((1, 12))
    (spec,) = example.tensors
    assert isinstance(spec.transform, Transform)
    transform = msgspec.structs.replace(spec.transform, features="t", feature_shape=(12,))
    tensor = msgspec.structs.replace(spec, name="t/coefficients", transform=transform)
    return msgspec.structs.replace(example, tensors=(tensor,))


def test_a_graph_without_the_features_of_its_profile(one_tensor):
    model = ir.load(one_tensor / "front.onnx")
    features = ir.convenience.create_value_mapping(model.graph)["r"]
    features.name = "other"
    with pytest.raises(ProfileError, match=r"the front half does not hold the features 'r' of its own profile; export"):
        with_features(model)
