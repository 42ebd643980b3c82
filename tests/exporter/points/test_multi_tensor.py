"""Several tensors at the cut: from the export to the answer, and how the bits are shared among them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from exporter_helpers import SHAPE, inputs, network
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import splitwire
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import Corrupt, ShapeMismatch
from splitwire.codec.profile import CodecProfile
from splitwire.codec.quantizer import dequantize, quantize
from splitwire.codec.wire.frame import parse_frame, side_information
from splitwire.exporter.network.inference import serialise
from splitwire.exporter.network.source import from_module
from splitwire.exporter.pair.result import ExportResult
from splitwire.exporter.points.sharing import Cost, share_bits, share_budget
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport import LoopbackTransport

pytestmark = pytest.mark.slow


class Skip(nn.Module):
    """Encoder and decoder with a skip connection: `early` (8×16×16) crosses beside `deep` (16×8×8)."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.LeakyReLU(0.1))
        self.up = nn.Upsample(scale_factor=2)
        self.merge = nn.Conv2d(24, 6, 3, padding=1)
        self.head = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.early(x)
        b = self.deep(a)
        # the skip matters little, so that the bits should go to the other tensor
        y = self.merge(torch.cat([0.05 * a, self.up(b)], 1))
        z: torch.Tensor = self.head(torch.relu(y).mean((2, 3)))
        return z


class Pyramid(nn.Module):
    """Three maps of three sizes, a head on each; `p2` leaves as an output, known before the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.down = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()) for _ in range(2))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = [self.stem(x)]
        for down in self.down:
            maps.append(down(maps[-1]))
        return {"brightness": x.mean((1, 2, 3)), **{f"p{i}": self.head(m) for i, m in enumerate(maps)}}


def export(module: nn.Module | Path, out: Path, cut: str, **options) -> ExportResult:
    return splitwire.export(module, cut=cut, calibration=inputs(24), out=out, codec="scalar", **options)


def looped(result: ExportResult) -> EdgeSession:
    return EdgeSession(result.front, transport=LoopbackTransport(CloudSession(result.back).handle))


def quantized_by_hand(result: ExportResult, op: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """What the pair must answer: both halves in ONNX Runtime, and each tensor quantized by its own quantizer."""
    front, back = (ort.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (result.front, result.back))
    profile = result.profile
    point = profile.operating_points[profile.point_index(op)]
    made = dict(
        zip([o.name for o in front.get_outputs()], front.run(None, {front.get_inputs()[0].name: x}), strict=True)
    )
    feeds = {spec.name: made[spec.name] for spec in profile.size_specs} | {
        spec.name: dequantize(quantize(made[spec.name], t.quantizer), t.quantizer)
        for spec, t in zip(profile.tensors, point.tensors, strict=True)
    }
    return made | dict(zip([o.name for o in back.get_outputs()], back.run(None, feeds), strict=True))


@pytest.fixture(scope="module")
def skip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "skip.onnx"
    path.write_bytes(serialise(from_module(network(Skip), (1, *SHAPE)).model))
    return path


@pytest.fixture(scope="module")
def skip(skip_file, tmp_path_factory) -> ExportResult:
    return export(skip_file, tmp_path_factory.mktemp("skip"), "early,deep")


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory) -> ExportResult:
    return export(network(Pyramid), tmp_path_factory.mktemp("pyramid"), "stem,down.0,down.1", levels=(2, 4))


@pytest.fixture(scope="module")
def sized(tmp_path_factory) -> ExportResult:
    """Behind the cut the features are scaled by how many inputs were positive: a size that no tensor shows.

    The count is over the whole batch: images influence each other, so that the batch is fixed at 1."""
    folder = tmp_path_factory.mktemp("sized")
    nodes = [
        helper.make_node("Relu", ["x"], ["features"]),
        helper.make_node("Greater", ["x", "zero"], ["positive"]),
        helper.make_node("NonZero", ["positive"], ["places"]),
        helper.make_node("Shape", ["places"], ["count"], start=1),
        helper.make_node("Cast", ["count"], ["scale"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["scale", "thousand"], ["factor"]),
        helper.make_node("ReduceMean", ["features"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["means", "factor"], ["answer"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes, "sized",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *SHAPE])],
            [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 3])],
            [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("zero", 0.0), ("thousand", 1000.0))],
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=9,
    )  # fmt: skip
    onnx.save(model, str(folder / "sized.onnx"))
    return export(folder / "sized.onnx", folder / "out", "features", levels=(4,))


def test_sizes_cross_beside_the_tensors(sized):
    assert [t.name for t in sized.profile.tensors] == ["features"]
    (spec,) = sized.profile.size_specs
    assert spec.length == 1
    assert CodecProfile.from_json(sized.profile.to_json()) == sized.profile
    x = inputs(1)
    with looped(sized) as session:
        made = session.run_front(x)
        assert [s.tolist() for s in made.sizes] == [[int((x > 0).sum())]]
        frame = session.encode(made.features, sizes=made.sizes)
        with pytest.raises(ShapeMismatch, match="expected 1 vectors of sizes, got 0"):
            session.encode(made.features)
    cloud = CloudSession(sized.back)
    assert [s.tolist() for s in cloud.decode(frame).sizes] == [s.tolist() for s in made.sizes]
    cloud.warm_up()


@pytest.mark.parametrize("wrong", [np.array([-1]), np.array([2**26 + 1]), np.array([1, 2]), np.array([1], np.int32)])
def test_sizes_that_are_none_are_not_sent(sized, wrong):
    with pytest.raises(ShapeMismatch, match="must be 1 int64 from 0 to 67108864"):
        FeatureCodec(sized.profile).encode([np.zeros((1, *SHAPE), np.float32)], sizes=[wrong])


def test_damaged_sizes_are_never_concealed(sized):
    codec = FeatureCodec(sized.profile)
    frame = bytearray(codec.encode([np.zeros((1, *SHAPE), np.float32)], sizes=[np.array([5])]))
    frame[-8] ^= 1
    with pytest.raises(Corrupt, match="checksum"):
        codec.decode(bytes(frame))
    with pytest.raises(Corrupt, match="damaged"):
        codec.decode(bytes(frame), conceal=True)


@pytest.mark.parametrize(("pair", "batch"), [("skip", 1), ("skip", 3), ("pyramid", 1), ("pyramid", 3), ("sized", 1)])
def test_end_to_end(pair, batch, request):
    result = request.getfixturevalue(pair)
    x = inputs(batch)
    with looped(result) as session:
        for point in result.profile.operating_points:
            answer = session.infer(x, op=point.name)
            expected = quantized_by_hand(result, point.name, x)
            for name, y in answer.outputs.items():
                np.testing.assert_allclose(y, expected[name], atol=1e-5)


def test_each_tensor_has_its_own_quantizer_and_tables(skip):
    profile = skip.profile
    assert [t.shape for t in profile.tensors] == [(8, 16, 16), (16, 8, 8)]
    for point in profile.operating_points:
        a, b = point.tensors
        assert a.quantizer != b.quantizer
        assert (len(a.tables.context_map), len(b.tables.context_map)) == (8 * 49, 16 * 49)
    methods = {t.clipping.method for p in profile.operating_points for t in p.tensors[1:]}
    assert methods <= {"leaky_relu_model", "histogram"}
    assert all(t.clipping.reason != "the features are not of a ReLU or leaky ReLU" for p in
               profile.operating_points for t in p.tensors)  # fmt: skip


def test_outputs_known_before_the_cut_come_back_in_order(pyramid):
    assert pyramid.profile.outputs == ("brightness", "p0", "p1", "p2")
    x = inputs(2)
    with looped(pyramid) as session:
        outputs = session.infer(x).outputs
    assert list(outputs) == ["brightness", "p0", "p1", "p2"]
    np.testing.assert_allclose(outputs["brightness"], x.mean((1, 2, 3)), atol=1e-6)


class Embedding(nn.Module):
    """The tensor at the cut is an output too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(x)
        return {"logits": self.head(features.mean((2, 3))), "features": features}


def test_a_tensor_at_the_cut_that_is_an_output_comes_back_exact(tmp_path):
    module = network(Embedding)
    result = export(module, tmp_path, "body", levels=(2,))
    x = inputs(2)
    with looped(result) as session, torch.no_grad():
        outputs = session.infer(x).outputs
        expected = module.eval()(torch.from_numpy(x))
    assert list(outputs) == ["logits", "features"]
    np.testing.assert_allclose(outputs["features"], expected["features"].numpy(), atol=1e-5)


def test_no_point_spends_more_than_its_uniform_levels_would(skip):
    elements = sum(t.elements for t in skip.profile.tensors)
    for point in skip.profile.operating_points[:5]:
        uniform = sum(o.bits for own in skip.options for o in own if o.kind.name == point.name)
        assert point.bits_per_element * elements <= uniform * (1 + 1e-9)
    assert [p.name for p in skip.profile.operating_points[:5]] == ["n2", "n3", "n4", "n6", "n8"]


def test_no_point_spends_more_than_its_budget(skip):
    budgets = skip.profile.operating_points[5:]
    assert [p.name for p in budgets] == ["r0.1", "r0.2", "r0.3", "r0.4", "r0.6", "r0.8"]
    for point in budgets:
        assert 0.8 * float(point.name[1:]) < point.bits_per_element <= float(point.name[1:])
        early, deep = (o.bits / s.elements for own, s in zip(skip.options, skip.profile.tensors, strict=True)
                       for o in own if o.kind.name == point.name)  # fmt: skip
        assert early < deep  # the skip matters little


def test_the_tensor_that_matters_gets_the_bits(skip):
    """The skip is scaled down to a twentieth: its damage is small at any N, and it never gets more levels."""
    by_tensor = [[o.damage for o in own if o.kind.family == "n"] for own in skip.options]
    assert all(a < b for a, b in zip(*by_tensor, strict=True))
    levels = [[len(t.quantizer.levels) for t in p.tensors] for p in skip.profile.operating_points[:5]]
    assert all(a <= b for a, b in levels)
    assert any(a < b for a, b in levels)


def test_rates_are_those_of_the_frames(skip):
    front = ort.InferenceSession(skip.front, providers=["CPUExecutionProvider"])
    features = front.run([t.name for t in skip.profile.tensors], {"input": inputs(24)})
    codec = FeatureCodec(skip.profile)
    elements = sum(t.elements for t in skip.profile.tensors) * 24
    for point in skip.profile.operating_points:
        frame = codec.encode(features, op=point.name)
        bits = 8 * (len(frame) - side_information(len(parse_frame(frame).chunks))) / elements
        assert bits == pytest.approx(point.bits_per_element, rel=0.05)


def test_the_same_twice(skip, skip_file, tmp_path):
    export(skip_file, tmp_path, "early,deep")
    for file in ("front.onnx", "back.onnx"):
        assert (tmp_path / file).read_bytes() == (skip.front.parent / file).read_bytes()


# Sharing the bits


def costs(*pairs: tuple[float, float]) -> list[Cost]:
    return [Cost(*pair) for pair in pairs]


def test_bits_go_where_they_save_most():
    a = costs((10, 1.0), (20, 0.9), (30, 0.85))
    b = costs((10, 8.0), (20, 4.0), (30, 1.0))
    assert share_bits([a, b], [1, 1]) == [0, 2]


def test_a_budget_is_spent_where_it_saves_most():
    a, b = costs((10, 1.0), (20, 0.9)), costs((10, 8.0), (20, 4.0), (30, 1.0))
    assert share_budget([a, b], 45) == [0, 2]
    assert share_budget([a, b], 50) == [1, 2]
    assert share_budget([a, b], 5) == [0, 0]  # not even that is affordable: the fewest


def test_options_off_the_hull_are_left_out():
    a = costs((10, 5.0), (20, 4.9), (30, 1.0), (40, 1.2))
    assert share_bits([a, costs((10, 0.0))], [1, 0]) == [1, 0]  # the hull has 10 bits only: uniform is better
    assert share_bits([a, costs((10, 0.0))], [3, 0]) == [2, 0]


def test_sharing_is_near_the_best_and_never_worse_than_uniform():
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(200):
        tensors = [
            costs(*zip(np.cumsum(rng.uniform(1, 9, 6)), np.sort(rng.exponential(rng.uniform(0.1, 5), 6))[::-1],
                         strict=True))
            for _ in range(3)
        ]  # fmt: skip
        start = [int(rng.integers(6))] * 3
        budget = sum(t[k].bits for t, k in zip(tensors, start, strict=True))

        def damage(chosen, tensors=tensors):
            return sum(t[k].damage for t, k in zip(tensors, chosen, strict=True))

        found = share_bits(tensors, start)
        assert sum(t[k].bits for t, k in zip(tensors, found, strict=True)) <= budget + 1e-9
        assert damage(found) <= damage(start)
        every = itertools.product(range(6), repeat=3)
        best = min(damage(c) for c in every if sum(t[k].bits for t, k in zip(tensors, c, strict=True)) <= budget)
        ratios.append(damage(found) / best)
    assert np.mean(ratios) < 1.15
