"""Cuts at several tensors: pyramids, skips, encoder–decoder; sizes that travel beside; bodies that capture."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from exporter_helpers import SHAPE, inputs, network
from torch import nn

from splitwire.codec.errors import CutNotBounded, SplitwireError, UnsupportedModel, UsageError
from splitwire.exporter.cutting import verify
from splitwire.exporter.cutting.cuts import find_cut, find_cuts
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.cutting.separation import separation, single_cuts
from splitwire.exporter.cutting.split import Halves, split
from splitwire.exporter.network.dataflow import Flow
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.source import Source, _source, from_module

pytestmark = pytest.mark.slow


class Stage(nn.Sequential):
    def __init__(self, before: int, after: int) -> None:
        super().__init__(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU())


class Body(nn.Module):
    """Three stages; all three leave."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = Stage(3, 4), Stage(4, 6), Stage(6, 8)

    def forward(self, x):
        c1 = self.c1(x)
        c2 = self.c2(c1)
        return {"c1": c1, "c2": c2, "c3": self.c3(c2)}


class Pyramid(nn.Module):
    """A body and a decoder that reads it from the top down, with sizes of the lower levels; one head per level."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.lateral = nn.ModuleList([nn.Conv2d(n, 4, 1) for n in (4, 6, 8)])
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        c = self.body(x)
        p3 = self.lateral[2](c["c3"])
        p2 = self.lateral[1](c["c2"]) + nn.functional.interpolate(p3, size=c["c2"].shape[-2:])
        p1 = self.lateral[0](c["c1"]) + nn.functional.interpolate(p2, size=c["c1"].shape[-2:])
        return [self.head(p).flatten(1) for p in (p1, p2, p3)]


@pytest.fixture(scope="module")
def pyramid() -> Source:
    return from_module(network(Pyramid), (1, *SHAPE))


@pytest.fixture(scope="module")
def names(pyramid) -> Names:
    return Names.of(pyramid)


def exact(source: Source) -> Graph:
    return Graph.of(source.model, what="whole", exact=True)


def test_a_pyramid_is_found_by_its_module_and_listed(pyramid, names):
    cut, note = find_cut(names, "body")
    assert note is None
    assert cut.label == "body"
    assert cut.shapes == ((4, 8, 8), (6, 4, 4), (8, 2, 2))
    assert cut.elements == 4 * 64 + 6 * 16 + 8 * 4
    assert cut.tensors == tuple(find_cut(names, "body.c3,body.c1, body.c2")[0].tensors)
    listed = find_cuts(pyramid.graph, names, max_tensors=3)
    assert cut in listed
    assert [c.tensors for c in find_cuts(pyramid.graph, names)] == [c.tensors for c in listed if len(c.tensors) == 1]
    assert len({frozenset(c.tensors) for c in listed}) == len(listed)
    assert [c.position for c in listed] == sorted(c.position for c in listed)
    for found in listed:  # the label is what find_cut takes
        assert find_cut(names, found.label)[0] == found


def test_every_listed_cut_is_exact_at_batch_1_and_3(pyramid, names):
    whole, listed = exact(pyramid), find_cuts(pyramid.graph, names, max_tensors=3)
    assert {len(c.tensors) for c in listed} == {1, 2, 3}
    for cut in listed:
        halves = split(pyramid.model, cut.tensors)
        assert tuple(v.name for v in halves.back.graph.inputs) == cut.tensors
        assert tuple(v.name for v in halves.front.graph.outputs[: len(cut.tensors)]) == cut.tensors
        shared = set(halves.front.graph.initializers) & set(halves.back.graph.initializers)
        for half in (halves.front.graph, halves.back.graph):
            assert all(half.initializers[name].uses() for name in shared)  # such as the head's, at a later level
        if cut.label == "body":
            assert not shared
        assert verify.check_halves(whole, halves, inputs(3)) == 0.0


def test_the_error_shows_the_closed_cut(pyramid, names):
    with pytest.raises(CutNotBounded) as caught:
        find_cut(names, "body.c3")
    message = str(caught.value)
    assert "lateral.1, lateral.0 also cross to the back half; together they do: --cut 'body';" in message
    with pytest.raises(CutNotBounded, match=r"the cut 'body.c2,body.c3' does not .* lateral.0 also crosses"):
        find_cut(names, "body.c2,body.c3")


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ("body.c1,body.c1.1", None, ""),  # the same tensor under two names
        (
            "body,lateral.2",
            UsageError,
            "has a tensor too many: the back half does not read body.c3; without it, cut at",
        ),
        ("body.c1,boddy.c2", UsageError, "layer 'boddy.c2' is not in the network; nearest: body.c2"),
        ("body.c1,input", UsageError, "'body.c1,input' is the input: nothing would run on the edge"),
        ("head[2],head[0],head[1]", None, ""),
        ("output_0,output_1,output_2", UsageError, "nothing comes after"),
        (",", UsageError, "holds an empty name"),
    ],
)
def test_names_with_commas(pyramid, names, layer, error, message):
    if error is None:
        assert find_cut(names, layer)[0].tensors
        return
    with pytest.raises(error, match=message) as caught:
        find_cut(names, layer)
    assert "\n" not in str(caught.value)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = Stage(3, 4), Stage(4, 6), nn.Conv2d(6, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        skip = self.down1(x)
        return self.last(torch.cat([skip, self.up(self.bottom(self.down2(skip)))], 1))


def test_skip_of_an_encoder_decoder():
    source = from_module(network(UNet), (1, *SHAPE))
    found = Names.of(source)
    with pytest.raises(CutNotBounded, match="together they do: --cut 'down1,bottom'"):
        find_cut(found, "bottom")
    cut, _ = find_cut(found, "bottom,down1")
    assert cut.label == "down1,bottom"
    assert verify.check_halves(exact(source), split(source.model, cut.tensors), inputs(3)) == 0.0


class Aux(nn.Module):
    """A second output from the middle, made last: as the auxiliary head of a segmentation network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out, self.aux = Stage(3, 4), Stage(4, 4), Stage(4, 2), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.first(x)
        y = self.second(x)
        return {"out": self.out(y), "aux": self.aux(x)}


def test_an_output_made_late_but_known_early():
    source = from_module(network(Aux), (1, *SHAPE))
    found = Names.of(source)
    cuts = {c.label: c for c in find_cuts(source.graph, found)}
    assert {"first", "second", "second.0"} <= set(cuts)
    nodes = list(source.graph)
    assert [nodes[t].outputs[0].name for t in cuts["second"].extra] == ["aux"]
    assert cuts["first"].extra == ()
    halves = split(source.model, cuts["second"].tensors)
    assert halves.early == ("aux",)
    assert verify.check_halves(exact(source), halves, inputs(3)) == 0.0


def hand_made(text: str) -> Source:
    """A model in ONNX's text form, as the graph room would give it."""
    model = ir.from_proto(onnx.parser.parse_model(text))
    return _source(model, "onnx", None, {}, [])


SIZES = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 2, 6] x) => (float[n, 12] y) {
    wide = Concat <axis = 2> (x, x)
    kept = Relu (wide)
    where = Constant <value = int64[1] {1}> ()
    picked = Compress <axis = 2> (kept, mask)
    summed = ReduceSum <keepdims = 0> (picked, last)
    shape = Shape (picked)
    count = Gather (shape, last)
    factor = Cast <to = 1> (count)
    body = Exp (summed)
    scaled = Mul (body, factor)
    zero = Constant <value = int64[2] {0, 1}> ()
    front = Gather (shape, zero)
    same = Reshape (scaled, front)
    y = Concat <axis = 1> (same, same, same, same, same, same)
}
"""


def test_a_size_that_only_the_front_knows_travels_beside():
    text = SIZES.replace(
        "{\n    wide", "<int64[1] last = {2}, bool[12] mask = {1,0,1,1,0,1,0,0,1,0,0,1}> {\n    wide", 1
    )
    source = hand_made(text)
    found = Names(source.graph)
    cut, _ = find_cut(found, "summed")
    assert cut.shapes == ((2,),)
    halves = split(source.model, cut.tensors)
    assert len(halves.sizes) == 1
    assert [v.name for v in halves.back.graph.inputs] == ["summed", *halves.sizes]
    assert [v.name for v in halves.front.graph.outputs] == ["summed", *halves.sizes]
    assert halves.front.graph.outputs[1].dtype == ir.DataType.INT64
    x = np.random.default_rng(0).standard_normal((3, 2, 6)).astype(np.float32)
    assert verify.check_halves(exact(source), halves, x) == 0.0
    made = Graph.of(halves.front, what="front").run(x)[1]
    assert (made.dtype, made.tolist()) == (np.dtype(np.int64), [6])  # of the six elements that the mask keeps


CAPTURES = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 4] x) => (float[n, 4] y)
<float[4] w = {1, 2, 3, 4}, float zero = {0}> {
    a = Mul (x, w)
    b = Exp (a)
    total = ReduceSum <keepdims = 0> (b)
    above = Greater (total, zero)
    y = If (above) <
        then_branch = big () => (float[n, 4] t) { t = Add (a, w) },
        else_branch = small () => (float[n, 4] e) { e = Identity (b) }
    >
}
"""


def test_what_a_body_captures_crosses():
    source = hand_made(CAPTURES)
    found = Names(source.graph)
    with pytest.raises(CutNotBounded, match="a also crosses to the back half; together they do: --cut 'a,b'"):
        find_cut(found, "b")
    assert find_cut(found, "a")[0].shapes == ((4,),)
    assert [c.tensors for c in find_cuts(source.graph, found, max_tensors=2)] == [("a",), ("a", "b")]
    whole, x = exact(source), np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    for tensors in (["a"], ["a", "b"]):
        halves = split(source.model, tensors)
        assert verify.check_halves(whole, halves, x) == 0.0
        assert "w" in halves.back.graph.initializers  # the body reads it


WRONG = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 4] x) => (float[k, 4] y) <float zero = {0}, int64[1] axis = {0}> {
    a = Relu (x)
    positive = Greater (a, zero)
    number = Cast <to = 7> (positive)
    row = ReduceMax <axes = [1], keepdims = 0> (number)
    which = NonZero (row)
    flat = Squeeze (which, axis)
    taken = Gather <axis = 0> (a, flat)
    b = Exp (taken)
    y = Relu (b)
}
"""


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ("b", UnsupportedModel, "has the shape .*batch first, one row for each image"),
        ("flat,a", UnsupportedModel, "holds int64; the codec carries float32"),
        ("y", UsageError, "nothing comes after 'y'"),
        ("x", UsageError, "'x' is the input"),
        ("axis", UsageError, "'axis' holds a constant or a size"),
        ("b,a", UsageError, "the back half does not read a; without it, cut at b"),
    ],
)
def test_what_cannot_be_cut(layer, error, message):
    source = hand_made(WRONG)
    with pytest.raises(error, match=message) as caught:
        find_cut(Names(source.graph), layer)
    assert "\n" not in str(caught.value)


def test_single_cuts_are_complete():
    """The sweep on bit sets finds what the definition, tried at every tensor of random graphs, finds."""
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(60):
        size = int(rng.integers(4, 14))
        values = [ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 4]))]
        nodes = []
        for i in range(size):
            reads = [values[-1 - min(len(values) - 1, int(rng.geometric(0.6)) - 1)] for _ in range(rng.integers(1, 3))]
            nodes.append(ir.node("Relu" if len(reads) == 1 else "Add", reads))
            nodes[-1].outputs[0].name = f"v{i}"
            values.append(nodes[-1].outputs[0])
        outputs = [values[-1], *([values[-2]] if rng.random() < 0.5 else [])]
        flow = Flow(ir.Graph(values[:1], outputs, nodes=nodes, opset_imports={"": 17}, name="random"))
        wanted = {}
        for value in values[1:]:
            parts = separation(flow, [value])
            if parts.late and not parts.crossing:
                wanted[value] = frozenset(flow.position[node] for node in parts.after)
        assert dict(single_cuts(flow)) == wanted
        found += len(wanted)
    assert found > 100


def test_wrong_halves_are_caught(pyramid, names):
    """check_halves sees a wrong weight behind the second of three tensors."""
    halves = split(pyramid.model, find_cut(names, "body")[0].tensors)
    bias = next(v for v in halves.back.graph.initializers.values() if v.name == "lateral.1.bias")
    assert bias.const_value is not None
    bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(0.5), name=bias.name)
    with pytest.raises(SplitwireError, match="do not give what the whole network gives"):
        verify.check_halves(exact(pyramid), halves, inputs(3))
    assert isinstance(halves, Halves)
