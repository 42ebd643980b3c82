"""ONNX files as people have them: where their weights lie, what they declare, what they give out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exporter_helpers import write_images
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper
from onnx_helpers import N, answers, check_pair, export, in_runtime, network, pictures, save, value, weight
from typer.testing import CliRunner

from splitwire import plan
from splitwire.cli import app
from splitwire.codec.errors import UnsupportedModel, UsageError
from splitwire.exporter.cutting.cuts import find_cut, find_cuts
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.network import onnx_files
from splitwire.exporter.network.source import from_file

SECRET = (b"-----SECRET-KEY-0123456789-----\n" * 40)[:24]
"""As long as the six float32 numbers of the weight `k`."""


def external(location: str, offset: int | str | None = 0, length: int | str | None = 24, name: str = "k"):
    """A weight of six numbers that says where its bytes lie."""
    tensor = weight(name, 6)
    tensor.ClearField("raw_data")
    tensor.data_location = T.EXTERNAL
    for key, text in (("location", location), ("offset", offset), ("length", length)):
        if text is not None:
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(text)
    return tensor


def as_initializer(tensor):
    return network([N("Add", ["y", "k"], ["z"])], [value("z", ["n", 6])], [tensor])


def in_constant(tensor):
    return network([N("Constant", [], ["k"], value=tensor), N("Add", ["y", "k"], ["z"])], [value("z", ["n", 6])])


def in_body(tensor):
    then = h.make_graph([N("Add", ["y", "k"], ["t"])], "t", [], [value("t", ["n", 6])], [tensor])
    other = h.make_graph([N("Identity", ["y"], ["e"])], "e", [], [value("e", ["n", 6])])
    node = N("If", ["yes"], ["z"], then_branch=then, else_branch=other)
    return network([node], [value("z", ["n", 6])], [numpy_helper.from_array(np.array(True), "yes")])


def in_function(tensor):
    nodes = [N("Constant", [], ["k"], value=tensor), N("Add", ["i", "k"], ["o"])]
    function = h.make_function("own", "Shifted", ["i"], ["o"], nodes, [h.make_opsetid("", 17)])
    call = N("Shifted", ["y"], ["z"], domain="own")
    return network([call], [value("z", ["n", 6])], functions=[function], domains={"own": 1})


def in_sparse(tensor):
    indices = numpy_helper.from_array(np.arange(6), "k_indices")
    sparse = h.make_sparse_tensor(tensor, indices, [6])
    return network([N("Add", ["y", "k"], ["z"])], [value("z", ["n", 6])], sparse_initializer=[sparse])


PLACES = {f.__name__: f for f in (as_initializer, in_constant, in_body, in_function, in_sparse)}
"""Wherever a model can hold a tensor, it can ask for the bytes of a file."""


@pytest.mark.parametrize("place", PLACES)
def test_weights_beside_the_model_are_found_wherever_they_are_asked_for(tmp_path, place):
    (tmp_path / "k.bin").write_bytes(b"ahead" + numpy_helper.to_array(weight("k", 6)).tobytes())
    path = save(PLACES[place](external("k.bin", 5)), tmp_path / "net.onnx")
    plain = save(as_initializer(weight("k", 6)), tmp_path / "plain.onnx")
    pair = export(path)
    assert sorted(p.name for p in pair.iterdir()) == ["back.onnx", "front.onnx"]
    (tmp_path / "k.bin").unlink()  # the pair needs it no more
    for n in (1, 3):
        np.testing.assert_allclose(answers(pair, pictures(n))["z"], in_runtime(plain, pictures(n))["z"], atol=0.1)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", ["absolute", "above", "link", "link in a link"])
def test_no_file_outside_the_models_folder_is_read(tmp_path, place, how):
    """The bytes of any file of the machine would be in the pair."""
    secret, folder = tmp_path / "private.key", tmp_path / "net"
    secret.write_bytes(SECRET)
    folder.mkdir()
    location = {"absolute": str(secret), "above": "inner/../../private.key"}.get(how, "k.bin")
    (folder / "inner").mkdir()
    if how == "link":
        (folder / "k.bin").symlink_to(secret)
    elif how == "link in a link":
        (folder / "inner" / "k.bin").symlink_to("../../private.key")
        (folder / "k.bin").symlink_to("inner/k.bin")
    path = save(PLACES[place](external(location)), folder / "net.onnx")
    wanted = "at an absolute path" if how == "absolute" else "outside the model's folder"
    with pytest.raises(UnsupportedModel, match=rf"net\.onnx: the weight 'k' lies {wanted}.*folder alone: put ") as e:
        export(path)
    assert "\n" not in str(e.value)
    assert not (folder / "pairs").exists()


WRONG = {
    "missing": (external("none.bin"), r"'none.bin', which is missing; the file belongs beside the model"),
    "windows": (external("w\\k.bin"), r"which is missing; its separators are those of Windows"),
    "windows, absolute": (external("C:\\k.bin"), "at an absolute path"),
    "no place": (external(""), "does not say in which file it lies"),
    "a folder": (external("."), "which is not a file"),
    "a circle of links": (external("circle"), "which cannot be read"),
    "past the end": (external("k.bin", 4), r"'k' needs 24 bytes, and is said to be bytes 4 to 28 .* has 24 bytes"),
    "starts past the end": (external("k.bin", 10**12, None), "which has 24 bytes"),
    "negative": (external("k.bin", -4), "bytes -4 to 20"),
    "too short": (external("k.bin", 0, 20), "needs 24 bytes, and is said to be bytes 0 to 20"),
    "negative length": (external("k.bin", 24, -24), "needs 24 bytes"),
    "no number": (
        external("k.bin", "first"),
        "'k': its offset in 'k.bin' must be a whole number of bytes; the model says 'first'",
    ),
    "no whole number": (external("k.bin", "1e3"), "its offset in 'k.bin' must be a whole .* says '1e3'"),
    "a length in words": (external("k.bin", 0, "all " * 99), "its length in 'k.bin' must be .* says 'all all [al ]*…'"),
    "more digits than Python reads": (external("k.bin", "9" * 5000), "its offset .* says '9{39}…'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_that_are_not_where_the_model_says(tmp_path, case):
    tensor, words = WRONG[case]
    (tmp_path / "k.bin").write_bytes(bytes(24))
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(UnsupportedModel, match=words) as e:
        from_file(save(as_initializer(tensor), tmp_path / "net.onnx"))
    assert "\n" not in str(e.value)


def test_a_hugging_face_cache(tmp_path):
    """Model and weights are links into one folder; ONNX Runtime takes that."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    model = network()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx_data", size_threshold=0)
    for name, blob in (("m.onnx", "aa"), ("m.onnx_data", "bb")):
        shutil.move(tmp_path / name, blobs / blob)
        (snapshot / name).symlink_to(os.path.relpath(blobs / blob, snapshot))
    check_pair(snapshot / "m.onnx")


def test_large_weights_of_a_hugging_face_cache_stay_where_they_are(tmp_path, monkeypatch):
    onnx.save(network(), tmp_path / "m.onnx", save_as_external_data=True, location="bb", size_threshold=0)
    (tmp_path / "snapshot").mkdir()
    for link, file in (("m.onnx", "m.onnx"), ("bb", "bb")):
        (tmp_path / "snapshot" / link).symlink_to(tmp_path / file)
    monkeypatch.setattr(onnx_files, "MAX_MODEL_BYTES", 100)
    source = from_file(tmp_path / "snapshot" / "m.onnx")
    b = source.graph.initializers["b"].const_value
    assert isinstance(b, ir.ExternalTensor)
    assert Path(b.path) == tmp_path / "bb"
    np.testing.assert_array_equal(b.numpy(), numpy_helper.to_array(weight("b", 6, 6, 3, 3)))


def test_other_files(tmp_path):
    (tmp_path / "net.ort").write_bytes(b"\x08\0\0\0ORTM" + bytes(64))
    with pytest.raises(UsageError, match="ONNX Runtime's own format; give the ONNX file"):
        from_file(tmp_path / "net.ort")
    (tmp_path / "circle.onnx").symlink_to("circle.onnx")
    with pytest.raises(UsageError, match="no such ONNX file"):
        from_file(tmp_path / "circle.onnx")


@pytest.mark.parametrize("name", ["net.json", "net.onnxtxt", "net.pb", "net"])
def test_a_file_of_any_name(tmp_path, name):
    """ONNX Runtime takes no notice of it; nothing is said about formats."""
    found = from_file(save(network(), tmp_path / name))
    assert [n.outputs[0].name for n in found.graph] == ["c", "r", "d", "p", "y"]


def test_damage_is_said_once_and_in_words(tmp_path, caplog):
    model = network()
    model.graph.initializer[0].data_type = 77
    with pytest.raises(UsageError, match=r"not an ONNX file .*77 is not a valid DataType"):
        from_file(save(model, tmp_path / "type.onnx"))
    model = network()
    model.graph.initializer[0].name = ""
    with pytest.raises(UnsupportedModel, match="not a valid ONNX model"):
        from_file(save(model, tmp_path / "name.onnx"))
    assert not caplog.records


def test_a_file_in_the_memory_layout_of_one_cpu(tmp_path):
    model = network(domains={"com.microsoft.nchwc": 1})
    model.graph.node[1].domain = "com.microsoft.nchwc"
    with pytest.raises(
        UnsupportedModel, match=r"saved by ONNX Runtime in the memory layout of one CPU .*EXTENDED or below"
    ):
        from_file(save(model, tmp_path / "net.onnx"))


# What a file declares


@pytest.mark.parametrize("number", [-1, 0, -7])
def test_a_batch_that_is_no_positive_number_is_free(tmp_path, number):
    model = network(batch=number)
    path = save(model, tmp_path / "net.onnx")
    assert from_file(path).batch is None
    pair = export(path)
    named = save(network(), tmp_path / "named.onnx")
    for n in (1, 3):
        np.testing.assert_allclose(answers(pair, pictures(n))["y"], in_runtime(named, pictures(n))["y"], atol=0.1)


def test_a_size_that_is_no_positive_number_is_asked_for(tmp_path):
    model = network()
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = -1
    path = save(model, tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=r"inputs of any size, \(n, 3, \?, \?\); say which: --image-size"):
        from_file(path)
    source = from_file(path, (1, 3, 20, 24))
    shapes = {c.tensors: c.shapes for c in find_cuts(source.graph, Names(source.graph))}
    assert shapes["r",] == ((6, 18, 22),)


def test_an_input_that_says_nothing_of_its_shape(tmp_path):
    model = network()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    path = save(model, tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=r"inputs of any size, \(\?, \?, \?, \?\); say which: --image-size"):
        from_file(path)
    check_pair(path)


def test_an_optional_input_is_refused(tmp_path):
    model = network([N("OptionalGetElement", ["o"], ["x"])])
    model.graph.node.insert(0, model.graph.node.pop())
    kind = h.make_optional_type_proto(h.make_tensor_type_proto(T.FLOAT, ["n", 3, 16, 16]))
    model.graph.input[0].CopyFrom(h.make_value_info("o", kind))
    with pytest.raises(UnsupportedModel, match=r"must have one float32 or uint8 input; it has: 'o' \(no tensor"):
        from_file(save(model, tmp_path / "net.onnx"))


def test_shapes_written_for_another_batch_or_size_are_inferred_anew(tmp_path):
    """A symbol over the batch of input and output, as widely advised, and what stands between is as it was."""
    model = onnx.shape_inference.infer_shapes(network(batch=1))
    assert len(model.graph.value_info) == 4
    for v in (model.graph.input[0], model.graph.output[0]):
        v.type.tensor_type.shape.dim[0].dim_param = "N"
    path = save(model, tmp_path / "batch.onnx")
    found = from_file(path)
    assert found.batch is None
    assert [c.tensors for c in find_cuts(found.graph, Names(found.graph))] == [("c",), ("r",), ("d",), ("p",)]
    check_pair(path)
    assert [c.cut.label for c in plan(path, link="1mbit", images=2).plan.cuts] == ["c", "r", "d", "p"]

    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 20
    found = from_file(save(model, tmp_path / "size.onnx"))
    shapes = {c.tensors: c.shapes for c in find_cuts(found.graph, Names(found.graph))}
    assert (shapes["r",], shapes["p",]) == (((6, 18, 14),), ((6, 1, 1),))


def test_stale_shapes_behind_an_operator_that_inference_does_not_know(tmp_path):
    """Nothing contradicts the batch of 1, since nothing is inferred: it is measured."""
    model = network(batch="n")
    model.graph.node[0].CopyFrom(N("FusedConv", ["x", "a"], ["c"], domain="com.microsoft", activation="Relu"))
    model.graph.value_info.extend([value("c", [1, 6, 14, 14]), value("r", [1, 6, 14, 14])])
    found = from_file(save(model, tmp_path / "net.onnx"))
    shapes = {c.tensors: c.shapes for c in find_cuts(found.graph, Names(found.graph))}
    assert shapes["c",] == ((6, 14, 14),)


# Types


def quantized() -> onnx.ModelProto:
    """As ONNX Runtime's quantizer writes it in the QOperator format: int8 between operators of com.microsoft."""
    rng = np.random.default_rng(0)
    numbers = {
        "s": np.float32(0.05),
        "o": np.int8(0),
        "qa": rng.integers(-90, 90, (6, 3, 3, 3)).astype(np.int8),
        "sw": np.float32(0.004),
    }
    q, micro = ["s", "o"], {"domain": "com.microsoft"}
    nodes = [
        N("QuantizeLinear", ["x", *q], ["xq"]),
        N("QLinearConv", ["xq", *q, "qa", "sw", "o", *q], ["cq"]),
        N("QLinearAdd", ["cq", *q, "cq", *q, *q], ["addq"], **micro),
        N("DequantizeLinear", ["addq", *q], ["f"]),
        N("QuantizeLinear", ["f", *q], ["fq"]),
        N("QLinearGlobalAveragePool", ["fq", *q, *q], ["pq"], channels_last=0, **micro),
        N("DequantizeLinear", ["pq", *q], ["p"]),
        N("Flatten", ["p"], ["y"]),
    ]
    model = network(initializers=[numpy_helper.from_array(np.asarray(v), k) for k, v in numbers.items()])
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    del model.graph.initializer[:2]
    return model


def test_integers_of_operators_that_onnx_does_not_know_are_no_cuts(tmp_path):
    path = save(quantized(), tmp_path / "net.onnx")
    source = from_file(path)
    assert [c.tensors for c in find_cuts(source.graph, Names(source.graph))] == [("f",), ("p",)]
    with pytest.raises(UnsupportedModel, match=r"'addq' holds int8; the codec carries float32; nearest cuts: f"):
        export(path, "addq")
    check_pair(path, "f")
    assert [c.cut.label for c in plan(path, link="1mbit", images=2).plan.cuts] == ["f", "p"]


def test_a_network_of_integers_has_nothing_to_cut_at(tmp_path):
    """Everything between input and output is int8: the message says that, not that nothing separates the network."""
    scale, zero = weight("s", 1), numpy_helper.from_array(np.zeros(1, np.int8), "z")
    nodes = [
        N("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
        N("MaxPool", ["q"], ["m"], kernel_shape=[2, 2]),
        N("DequantizeLinear", ["m", "s", "z"], ["y"], axis=1),
    ]
    entry, end = value("x", ["n", 1, 8, 8]), value("y", ["n", 1, 7, 7])
    graph = h.make_graph(nodes, "g", [entry], [end], [scale, zero])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    names = Names.of(from_file(save(model, tmp_path / "net.onnx")))
    with pytest.raises(UnsupportedModel, match=r"'m' holds int8; .*; there is no float32 tensor to cut at$"):
        find_cut(names, "m")
    with pytest.raises(UsageError, match=r"'x' is the input: .*; there is no float32 tensor to cut at$"):
        find_cut(names, "x")


def test_a_sequence_inside_the_back_half(tmp_path):
    one = numpy_helper.from_array(np.array(1), "one")
    nodes = [
        N("SplitToSequence", ["d"], ["parts"], axis=1, keepdims=1),
        N("SequenceAt", ["parts", "one"], ["part"]),
        N("GlobalMaxPool", ["part"], ["m"]),
        N("Flatten", ["m"], ["z"]),
    ]
    path = save(network(nodes, [value("y", ["n", 6]), value("z", ["n", 1])], [one]), tmp_path / "net.onnx")
    check_pair(path)
    with pytest.raises(UnsupportedModel, match=r"parts at layer 'parts' is no plain tensor .* nearest cuts: d"):
        export(path, "parts")


# Outputs


def cast(name: str, kind: int):
    return [N("Cast", ["y"], [name], to=kind)], [value("y", ["n", 6]), value(name, ["n", 6], kind)]


@pytest.mark.parametrize("kind", ["INT16", "UINT16", "UINT32", "UINT64", "INT8", "DOUBLE", "BOOL"])
def test_outputs_of_any_width(tmp_path, kind):
    path = save(network(*cast("z", getattr(T, kind))), tmp_path / "net.onnx")
    pair = export(path)
    z = answers(pair, pictures(2))["z"]
    assert z.dtype == in_runtime(path, pictures(2))["z"].dtype
    assert z.shape == (2, 6)


def test_outputs_of_unusual_shape_and_name(tmp_path):
    """A long name, a scalar, one without elements, one with nine axes, one that says nothing of its shape."""
    long = "o" * 300
    number = {"nine": [-1, 1, 1, 1, 1, 1, 1, 1, 6], "none": [0], "two": [1]}
    inits = [numpy_helper.from_array(np.array(v), k) for k, v in number.items()]
    nodes = [
        N("Identity", ["y"], [long]),
        N("Reshape", ["y", "nine"], ["far"]),
        N("Slice", ["y", "none", "none", "two"], ["empty"]),
        N("Neg", ["y"], ["open"]),
    ]
    outputs = [value(long, ["n", 6]), value("far", None), value("empty", ["n", 0]), value("open", None)]
    path = save(network(nodes, outputs, inits), tmp_path / "net.onnx")
    assert {k: v.shape for k, v in check_pair(path).items()} == {
        long: (3, 6),
        "far": (3, 1, 1, 1, 1, 1, 1, 1, 6),
        "empty": (3, 0),
        "open": (3, 6),
    }


def test_a_scalar_fixes_the_batch(tmp_path):
    """It says one thing for all images of a batch, so that it runs one by one."""
    nodes = [N("ReduceMean", ["y"], ["mean"], keepdims=0)]
    path = save(network(nodes, [value("mean", [])]), tmp_path / "net.onnx")
    assert from_file(path).batch == 1
    assert check_pair(path, batches=(1,))["mean"].shape == ()


def test_an_output_that_says_nothing_of_its_type(tmp_path):
    """How intermediate values are often made outputs."""
    empty = onnx.ValueInfoProto(name="p")
    check_pair(save(network([], [value("y", ["n", 6]), empty]), tmp_path / "net.onnx"))
    empty.name = "parts"
    model = network([N("SplitToSequence", ["y"], ["parts"], axis=1)], [value("y", ["n", 6]), empty])
    with pytest.raises(UnsupportedModel, match=r"'parts' is a sequence of tensors.* --outputs y"):
        from_file(save(model, tmp_path / "net.onnx"))


def zipmap() -> onnx.ModelProto:
    """A classifier as scikit-learn's converters end it."""
    pairs = h.make_sequence_type_proto(h.make_map_type_proto(T.INT64, h.make_tensor_type_proto(T.FLOAT, None)))
    node = N("ZipMap", ["y"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=list(range(6)))
    outputs = [value("y", ["n", 6]), h.make_value_info("probabilities", pairs)]
    return network([node], outputs, domains={"ai.onnx.ml": 3})


def many() -> onnx.ModelProto:
    names = [f"z{i}" for i in range(256)]
    return network([N("Neg", ["y"], [k]) for k in names], [value(k, ["n", 6]) for k in names])


def sequence() -> onnx.ModelProto:
    kind = h.make_sequence_type_proto(h.make_tensor_type_proto(T.FLOAT, None))
    node = N("SplitToSequence", ["y"], ["parts"], axis=1)
    return network([node], [value("y", ["n", 6]), h.make_value_info("parts", kind)])


def optional() -> onnx.ModelProto:
    kind = h.make_optional_type_proto(h.make_tensor_type_proto(T.FLOAT, ["n", 6]))
    return network([N("Optional", ["y"], ["maybe"])], [value("y", ["n", 6]), h.make_value_info("maybe", kind)])


def float8() -> onnx.ModelProto:
    return network(*cast("z", T.FLOAT8E4M3FN), opset=19)


REFUSED = {
    "map": (
        zipmap,
        "y",
        "'probabilities' is a sequence of maps, which no reply can carry; keep the others: --outputs y",
    ),
    "sequence": (sequence, "y", "'parts' is a sequence of tensors, which no reply .* --outputs y"),
    "optional": (optional, "y", "'maybe' is an optional value, .* --outputs y"),
    "type": (float8, "y", "'z' holds float8e4m3fn values, .* --outputs y"),
    "text": (lambda: network(*cast("z", T.STRING)), "y", "'z' holds string values, .* --outputs y"),
    "name": (lambda: network(*cast("z" * 5000, T.INT8)), "y", r"'z{57}…' has a name of 5000 characters .* --outputs y"),
    "number": (many, "z7", "has 256 outputs; a reply carries up to 255: keep some: --outputs z0,z1,…"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_outputs_that_no_reply_can_carry(tmp_path, case):
    """Said before the work, with the way out, and that way is one."""
    make, kept, words = REFUSED[case]
    path = save(make(), tmp_path / "net.onnx")
    for refused in (lambda: export(path), lambda: plan(path)):
        with pytest.raises(UnsupportedModel, match=words) as e:
            refused()
        assert "\n" not in str(e.value)
    assert not (tmp_path / "pairs").exists()
    pair = export(path, outputs=[kept])
    ours = answers(pair, pictures(3))
    assert list(ours) == [kept]
    y = in_runtime(save(network(), tmp_path / "plain.onnx"), pictures(3))["y"]
    np.testing.assert_allclose(ours[kept], -y if case == "number" else y, atol=0.1)


@pytest.mark.parametrize("command", ["plan", "export"])
def test_the_commands_keep_outputs(tmp_path, command):
    path = save(zipmap(), tmp_path / "net.onnx")
    write_images(tmp_path / "images", 4)
    options = {
        "plan": ["--link", "1mbit", "--no-plot", "--images", "2"],
        "export": ["--cut", "r", "--data", str(tmp_path / "images"), "--levels", "2", "--out", str(tmp_path / "pair")],
    }[command]
    refused = CliRunner().invoke(app, [command, str(path), *options])
    assert "'probabilities' is a sequence of maps" in str(refused.exception)
    assert str(refused.exception).endswith("keep the others: --outputs y")
    done = CliRunner().invoke(app, [command, str(path), *options, "--outputs", "y"])
    assert (done.exit_code, done.exception) == (0, None)
    unknown = CliRunner().invoke(app, [command, str(path), *options, "--outputs", "y, w"])
    assert "no output 'w'; it has y, probabilities" in str(unknown.exception)


def test_outputs_are_kept_by_name(tmp_path):
    nodes = [N("Neg", ["y"], ["u"]), N("Abs", ["y"], ["v"])]
    outs = [value(k, ["n", 6]) for k in ("y", "u", "v")]
    path = save(network(nodes, outs), tmp_path / "net.onnx")
    assert list(check_pair(path, outputs=["v", "y"])) == ["y", "v"]
    assert [n.op_type for n in from_file(path, outputs=["v"]).graph][-2:] == ["Flatten", "Abs"]
    with pytest.raises(UsageError, match="has no output 'w'; it has y, u, v"):
        from_file(path, outputs=["w"])
    with pytest.raises(UsageError, match=r"^--outputs \(outputs=\) is empty; the network has y, u, v"):
        plan(path, outputs=[])
    for empty in ("", " ", "y,,u", ["y", ""], ","):
        with pytest.raises(UsageError, match=r"^--outputs \(outputs=\) holds an empty name; the network has y, u, v"):
            from_file(path, outputs=empty)
    twice = save(network(nodes, [*outs, outs[1]]), tmp_path / "twice.onnx")
    assert list(check_pair(twice)) == ["y", "u", "v"]
