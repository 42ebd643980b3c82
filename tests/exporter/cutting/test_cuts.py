"""Names, the cut search and the split, on one small residual network."""

from __future__ import annotations

import json

import onnx
import onnx_helpers
import onnx_ir as ir
import pytest
import torch
from exporter_helpers import SHAPE, Net, inputs, network, write_images
from onnx_helpers import N, export, save, value
from torch import nn
from typer.testing import CliRunner

from splitwire.cli import app
from splitwire.codec.errors import CutNotBounded, UnsupportedModel, UsageError
from splitwire.exporter.cutting import cuts, verify
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.cutting.split import split
from splitwire.exporter.cutting.torch_check import check_torch
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.quiet import quiet
from splitwire.exporter.network.source import OPSET, Source, from_file, from_module


@pytest.fixture(scope="module")
def source() -> Source:
    return from_module(network(), (1, *SHAPE))


@pytest.fixture(scope="module")
def names(source):
    return Names.of(source)


def find(source, names, layer):
    """The one value of the cut, and the note."""
    cut, note = cuts.find_cut(names, layer)
    (tensor,) = cut.tensors
    return ir.convenience.create_value_mapping(source.graph)[tensor], note


@pytest.mark.slow
def test_export_is_as_asked(source):
    assert (source.origin, source.opset, source.input_shape, source.batch) == ("dynamo", OPSET, (1, *SHAPE), None)
    assert [v.name for v in source.graph.inputs] == ["input"]
    assert [v.name for v in source.graph.outputs] == ["output"]
    assert source.graph.inputs[0].shape[0] == ir.SymbolicDim("batch")
    assert "/" not in "".join(v for n in source.graph for v in n.metadata_props.values() if ".py" in v)


def test_training_flags_are_put_back_and_nothing_is_printed(capfd):
    net = network()
    norm = net.get_submodule("layer1.0.bn1")
    net.get_submodule("layer1").eval()
    from_module(net, (1, *SHAPE))
    assert net.training
    assert net.get_submodule("drop").training
    assert not norm.training
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("layer", ["act", "layer1", "layer1.0", "layer1.1", "layer2", "layer1.0.relu[1]", "pool"])
def test_module_paths(source, names, layer):
    """Each path gives what a forward hook on the module sees."""
    value, note = find(source, names, layer)
    assert note is None
    net = network().eval()
    path, _, call = layer.partition("[")
    seen = []
    net.get_submodule(path).register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    x = torch.from_numpy(inputs(2))
    with torch.no_grad():
        net(x)
    front = Graph.of(split(source.model, [value.name]).front, what="front", exact=True)
    assert abs(front.run(x.numpy())[0] - seen[int(call[:-1] or 0) if call else -1].numpy()).max() < 1e-5


def test_other_names(source, names):
    value, _ = find(source, names, "layer1")
    assert find(source, names, value.name) == (value, None)  # the ONNX tensor name
    assert find(source, names, value.producer().name) == (value, None)  # the ONNX node name
    assert find(source, names, "layer1.1.relu[-1]")[0] is value
    folded, note = find(source, names, "conv")
    assert folded is find(source, names, "bn")[0]
    assert "folded into 'bn'" in note


def test_a_module_without_nodes(source, names):
    """Dropout returns what it is given: how the modules ran says where; without that it cannot be found."""
    assert find(source, names, "drop")[0].name == "view"  # what the dropout is given
    with pytest.raises(UsageError, match=r"'drop' \(Dropout\) leaves no trace"):
        Names(source.graph, source.modules).resolve("drop")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer9", "not in the network; nearest: layer2, layer1"),
        ("Layer1.0", "nearest: layer1.0"),
        ("conv3x", "nearest: conv"),
        ("zzzz", "it has: bn, act, layer1, layer2, pool, fc"),
        ("layer1.0.relu", r"runs 2 times; say which call: layer1.0.relu\[0\]"),
        ("layer1.0.relu[5]", "there is no call 5"),
        ("fc", "nothing comes after 'fc'.*nearest cuts:.*pool"),
        ("input", "'input' is the input: nothing would run on the edge.*nearest cuts: bn"),
    ],
)
def test_wrong_layers(source, names, layer, message):
    with pytest.raises(UsageError, match=message) as caught:
        find(source, names, layer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", ["", " ", ",", "r,,d", "r,", ",r", "r, ,d"])
def test_a_cut_with_an_empty_name(cut, tmp_path):
    """None of the file's nodes has a name, and they are nobody's cut for that."""
    path = save(onnx_helpers.network(), tmp_path / "net.onnx")
    names = Names.of(from_file(path))
    assert not any(node.name for node in names.flow.nodes)
    for wrong in (lambda: cuts.find_cut(names, cut), lambda: export(path, cut)):
        with pytest.raises(
            UsageError, match=r"^the cut \(--cut, cut=\) holds an empty name; it takes a layer, a tensor"
        ):
            wrong()
    write_images(tmp_path / "images", 4)
    refused = CliRunner().invoke(app, ["export", str(path), "--data", str(tmp_path / "images"), "--cut", cut])
    assert str(refused.exception).startswith("the cut (--cut, cut=) holds an empty name")


def test_tensors_whose_names_hold_commas(tmp_path):
    """The longest name that the graph has is taken; what `--cut` is told to take leads back to the same tensors."""
    nodes = [N("Neg", ["r"], ["a,b"]), N("Abs", ["r"], ["e"]), N("Exp", ["r"], ["c,,d"])]
    nodes += [N("Add", ["a,b", "e"], ["s"]), N("Mul", ["s", "c,,d"], ["z"])]
    path = save(onnx_helpers.network(nodes, [value("z", ["n", 6, 30, 30])]), tmp_path / "net.onnx")
    names = Names.of(from_file(path))
    for given in ("a,b,e,c,,d", "c,,d, e ,a,b"):
        cut, _ = cuts.find_cut(names, given)
        assert set(cut.tensors) == {"a,b", "e", "c,,d"}
        assert cuts.find_cut(names, cut.label)[0] == cut
    with pytest.raises(UsageError, match="layer 'zz' is not in the network"):
        cuts.find_cut(names, "zz,c,,d")
    folder = tmp_path / "images"
    write_images(folder, 4)
    options = ["--data", str(folder), "--levels", "2", "--out", str(tmp_path / "pair"), "--json"]
    cut_at = [word for name in ("c,,d", "e", "a,b") for word in ("--cut", name)]
    done = CliRunner().invoke(app, ["export", str(path), *cut_at, *options])
    assert (done.exit_code, done.exception) == (0, None)
    assert [t["name"] for t in json.loads(done.stdout)["tensors"]] == ["a,b", "e", "c,,d"]


@pytest.mark.parametrize("layer", ["layer1.1.conv1", "layer1.1.bn2", "layer1.1.relu[0]"])
def test_a_cut_inside_a_block_names_the_skip(source, names, layer):
    with pytest.raises(
        CutNotBounded,
        match=r"layer1\.0 also crosses to the back half; together they do: --cut 'layer1\.0,.*.*layer1\.0 \(8×8×8\)",
    ):
        find(source, names, layer)


def test_all_single_tensor_cuts_split_and_verify(source, names):
    found = cuts.find_cuts(source.graph, names)
    values = ir.convenience.create_value_mapping(source.graph)
    assert [c.label for c in found if names.has_path(values[c.tensors[0]])] == [
        "bn",
        "act",
        "layer1.0",
        "layer1",
        "layer2",
        "pool",
    ]
    assert {c.shapes[0] for c in found} == {(8, 8, 8), (8, 1, 1), (8,)}
    whole = Graph.of(source.model, what="whole", exact=True)
    for cut in found:
        halves = split(source.model, cut.tensors)
        assert verify.check_halves(whole, halves, inputs(3)) < 1e-6
        assert not halves.early


def test_initialisers_are_divided(source, names):
    before = ir.to_proto(source.model).SerializeToString()
    halves = split(source.model, [find(source, names, "layer1")[0].name])
    front, back = (set(h.graph.initializers) for h in (halves.front, halves.back))
    assert front & back == {"shared"}
    assert front | back == set(source.graph.initializers)
    assert ir.to_proto(source.model).SerializeToString() == before  # the whole is left as it is
    for half in (halves.front, halves.back):
        proto = ir.to_proto(half)
        onnx.checker.check_model(proto, full_check=True)
        assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
        assert proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
        assert [o.version for o in proto.opset_import if o.domain == ""] == [OPSET]
        assert all(n.name for n in proto.graph.node)
        assert any(p.key.endswith("name_scopes") for n in proto.graph.node for p in n.metadata_props)


class Branches(nn.Module):
    """Two branches that join; `head` is known before the join; a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.left = nn.Conv2d(4, 4, 1)
        self.right = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)
        self.join = nn.Conv2d(8, 4, 1)
        self.out = nn.Conv2d(4, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.join(torch.cat([self.left(x), self.right(x)], 1)).relu()
        return {"main": self.out(y), "early": self.head(x)}


def test_branches_and_early_outputs():
    source = from_module(network(Branches), (1, *SHAPE))
    names = Names.of(source)
    assert [v.name for v in source.graph.outputs] == ["main", "early"]
    with pytest.raises(CutNotBounded, match="right also crosses"):
        find(source, names, "left")
    value, _ = find(source, names, "join")
    halves = split(source.model, [value.name])
    assert halves.early == ("early",)
    assert [v.name for v in halves.front.graph.outputs] == [value.name, "early"]
    assert [v.name for v in halves.back.graph.outputs] == ["main"]
    assert verify.check_halves(Graph.of(source.model, what="whole", exact=True), halves, inputs(3)) < 1e-6


class Sizes(nn.Module):
    """The back half reshapes by the batch size, and adds a vector made for the input's batch (as a ViT's token)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.token = nn.Parameter(torch.ones(1, 4))
        self.fc = nn.Linear(64, 4)

    def forward(self, x):
        y = self.conv(x).relu()
        z = y.reshape(x.shape[0], 4, 4, 16).permute(0, 2, 1, 3).reshape(x.shape[0] * 4, 64)
        return self.fc(z).reshape(x.shape[0], 4, 4).sum(1) + self.token.expand(x.shape[0], -1)


def test_sizes_of_the_front_do_not_cross():
    source = from_module(network(Sizes), (1, *SHAPE))
    assert any(n.op_type == "Shape" for n in source.graph)
    names = Names.of(source)
    found = cuts.find_cuts(source.graph, names)
    assert "conv" in [c.label for c in found]
    whole = Graph.of(source.model, what="whole", exact=True)
    for cut in found:
        halves = split(source.model, cut.tensors)
        assert [v.name for v in halves.back.graph.inputs] == list(cut.tensors)
        assert verify.check_halves(whole, halves, inputs(3)) < 1e-6


def test_a_tensor_that_the_codec_cannot_carry():
    source = from_module(network(Sizes), (1, *SHAPE))
    names = Names.of(source)
    merged = [v.name for n in source.graph for v in n.outputs if v.shape is not None and "4*batch" in str(v.shape)]
    with pytest.raises(UnsupportedModel, match="batch first"):
        find(source, names, merged[0])


def test_torchscript_scopes(tmp_path):
    """ONNX files of torch's older exporter carry the module paths in their node names."""
    path = tmp_path / "old.onnx"
    with quiet():
        torch.onnx.export(
            network().eval(), (torch.zeros(2, *SHAPE),), path, dynamo=False, input_names=["image"],
            dynamic_axes={"image": {0: "n"}}, opset_version=17,
        )  # fmt: skip
    source = from_file(path)
    assert (source.origin, source.batch, source.opset) == ("onnx", None, 17)
    names = Names.of(source)
    value, _ = find(source, names, "layer1")
    assert value is find(source, names, "layer1.1")[0]
    assert cuts.carried_shape(value) == (8, 8, 8)
    whole = Graph.of(source.model, what="whole", exact=True)
    assert verify.check_halves(whole, split(source.model, [value.name]), inputs(3)) < 1e-6
    assert check_torch(network(Net), source, whole, inputs(3)) < 1e-4


def test_fallback_to_the_torchscript_exporter(monkeypatch):
    real = torch.onnx.export

    def export(*args, dynamo, **options):
        if dynamo:
            raise RuntimeError("data-dependent shape")
        return real(*args, dynamo=dynamo, **options)

    monkeypatch.setattr(torch.onnx, "export", export)
    source = from_module(network(), (1, *SHAPE))
    assert source.origin == "legacy"
    assert "TorchScript" in source.notes[0]
    names = Names.of(source)
    halves = split(source.model, [find(source, names, "layer1.0")[0].name])
    assert verify.check_halves(Graph.of(source.model, what="whole", exact=True), halves, inputs(3)) < 1e-6
    with pytest.raises(UsageError, match=r"'bn' \(BatchNorm2d\) leaves no trace"):
        find(source, names, "bn")

    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: 1 / 0)
    with pytest.raises(UnsupportedModel, match="torch cannot export this network to ONNX: division by zero"):
        from_module(network(), (1, *SHAPE))
