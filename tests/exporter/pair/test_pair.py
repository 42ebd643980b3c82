"""An export from end to end on a small network: what it makes, what it refuses, what it leaves on the disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from exporter_helpers import DISK_FAULTS, SHAPE, Net, disk_full, inputs, network, write_images
from torch import nn

import splitwire
from splitwire.codec.errors import CutNotBounded, ExportError, NonFiniteFeatures, UnsupportedModel, UsageError
from splitwire.codec.profile import METADATA_KEY, CodecProfile, OperatingPoint, Preprocessing
from splitwire.exporter.calibration.inputs import open_inputs
from splitwire.exporter.cutting import verify
from splitwire.exporter.network import source as graph
from splitwire.exporter.network.inference import Graph, largest_difference, serialise
from splitwire.exporter.pair import bake
from splitwire.exporter.points import measure

PREPROCESSING = Preprocessing(crop=SHAPE[1:], resize=18)


def export(model, out, **options):
    options = {"cut": "layer1", "calibration": inputs(12), "levels": (2, 4)} | options
    return splitwire.export(model, out=out, **options)


def session(path):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_pair(model, tmp_path):
    stages = []
    result = export(
        model, tmp_path / "a" / "b", levels=(2, 3, 4, 6, 8), labels=[f"c{i}" for i in range(10)],
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )  # fmt: skip
    assert sorted(files(tmp_path)) == ["back.onnx", "front.onnx"]
    front, back = session(result.front), session(result.back)
    profiles = [CodecProfile.from_metadata(s.get_modelmeta().custom_metadata_map, "file") for s in (front, back)]
    assert profiles == [result.profile, result.profile]

    profile = result.profile
    assert (profile.model, profile.cut, profile.calibration_images) == ("net", "layer1", 12)
    assert [p.name for p in profile.operating_points] == ["n2", "n3", "n4", "n6", "n8"]
    assert profile.tensors[0].shape == (8, 8, 8)
    assert profile.max_difference is not None
    assert profile.max_difference < 1e-6
    assert profile.labels == tuple(f"c{i}" for i in range(10))
    rates = [p.bits_per_element for p in profile.operating_points]
    assert rates == sorted(rates)
    assert [m.op for m in result.measures] == ["n2", "n3", "n4", "n6", "n8"]
    assert all(m.inputs == 12 and m.agreement is not None for m in result.measures)

    whole = session(model)
    for n in (1, 3, 5):  # the batch is dynamic in both halves
        x = inputs(n)
        (features,) = front.run(None, {"input": x})
        assert features.shape == (n, *profile.tensors[0].shape)
        (output,) = back.run(None, {profile.tensors[0].name: features})
        np.testing.assert_allclose(output, whole.run(None, {"input": x})[0], atol=1e-5)

    for path, digest in ((result.front, profile.front_sha256), (result.back, profile.back_sha256)):
        proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=True)
        kept = [p for p in proto.metadata_props if p.key != METADATA_KEY]
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)
        assert hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest() == digest
    assert ("Calibrate", 12, 12) in stages
    assert stages[-1] == ("Measure operating points", 12 * 5, 12 * 5)


def test_the_same_twice(model, tmp_path):
    export(model, tmp_path / "a")
    export(model, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.slow
def test_a_module_gives_what_its_file_gives(model, tmp_path):
    a, b = export(network(), tmp_path / "a"), export(model, tmp_path / "b")
    assert a.torch_difference is not None
    assert a.torch_difference < 1e-5
    assert b.torch_difference is None
    assert (a.origin, b.origin) == ("dynamo", "onnx")
    assert a.profile.model == "Net"
    assert a.profile.tensors == b.profile.tensors
    assert a.profile.operating_points == b.profile.operating_points
    for left, right, feed in ((a.front, b.front, inputs(2)), (a.back, b.back, inputs(2, (8, 8, 8)))):
        outputs = [s.run(None, {s.get_inputs()[0].name: feed})[0] for s in (session(left), session(right))]
        np.testing.assert_array_equal(*outputs)


@pytest.mark.slow
def test_resnet18(tmp_path):
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.resnet18()
    result = splitwire.export(net, cut="layer2", calibration=inputs(6, (3, 64, 64)), out=tmp_path, levels=(4,))
    assert result.profile.tensors[0].shape == (128, 8, 8)
    assert result.profile.max_difference is not None and result.profile.max_difference < 1e-5
    agreement = result.measures[0].agreement
    assert agreement is not None
    assert result.notes == () or agreement < measure.MIN_AGREEMENT


# Where the images come from


def test_image_folder_list_array_and_loader_are_one(model, tmp_path):
    paths = write_images(tmp_path / "images", 10)
    (tmp_path / "images" / "labels.txt").write_text("0 1 2")
    (tmp_path / "images" / ".hidden.png").write_text("no image")
    stream = open_inputs(tmp_path / "images", shape=SHAPE, preprocessing=PREPROCESSING)
    array = np.stack([x for _, x in stream])
    sources = [
        tmp_path / "images",
        str(tmp_path / "images"),
        paths,
        [str(p) for p in paths],
        array,
        torch.from_numpy(array),
        list(array),
        (array[i : i + 4] for i in range(0, 10, 4)),
        [(torch.from_numpy(array[i : i + 4]), torch.zeros(4)) for i in range(0, 10, 4)],
    ]
    profiles = [
        export(model, tmp_path / "out", calibration=c, preprocessing=PREPROCESSING, levels=(4,)).profile
        for c in sources
    ]
    assert profiles[0].calibration_images == 10
    assert all(p == profiles[0] for p in profiles)


def test_limit_takes_images_of_every_class(tmp_path):
    write_images(tmp_path, 40, classes=4)
    stream = open_inputs(tmp_path, shape=SHAPE, preprocessing=PREPROCESSING, limit=8)
    taken = [Path(name).parent.name for name, _ in stream]
    assert stream.total == 8
    assert taken == ["class0", "class0", "class1", "class1", "class2", "class2", "class3", "class3"]


def test_imagenet_preprocessing_is_the_default_and_said(model, tmp_path):
    write_images(tmp_path / "images", 4)
    result = export(model, tmp_path / "out", calibration=tmp_path / "images")
    assert result.profile.preprocessing == Preprocessing(crop=(16, 16), resize=16)
    assert "no preprocessing given" in result.notes[0]


def test_unreadable_images_are_listed_and_skipped(model, tmp_path):
    paths = write_images(tmp_path / "images", 6)
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    paths[4].write_text("no image")
    result = export(model, tmp_path / "out", calibration=tmp_path / "images", preprocessing=PREPROCESSING)
    assert [s.path for s in result.skipped] == [str(paths[1]), str(paths[4])]
    assert "not an image file" in result.skipped[1].reason
    assert result.profile.calibration_images == 4
    assert any("2 calibration image(s) could not be read and were skipped; 4 were used" in n for n in result.notes)


def test_fewer_inputs_than_verification_wants(model, tmp_path):
    assert export(model, tmp_path, calibration=inputs(1)).profile.calibration_images == 1


# What is refused, in one line, with nothing written


def empty(folder):
    (folder / "images").mkdir()
    (folder / "images" / "notes.txt").write_text("nothing here")
    return folder / "images"


def unreadable(folder):
    for path in write_images(folder / "images", 3):
        path.write_text("no image")
    return folder / "images"


def one_nan(_):
    x = inputs(5)
    x[3, 0, 0, 0] = np.nan
    return x


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (empty, "no images in .*images or below it; looked for .png"),
        (unreadable, "none of the 3 calibration images can be read; the first: .*000.png: not an image"),
        (lambda p: p / "missing", "missing: no such folder"),
        (lambda p: [p / "a.png"], "none of the 1 calibration images can be read; the first: .*a.png: no such file"),
        (lambda _: inputs(4, (3, 17, 16)), r"input.* shape \('?batch'?, 3, 16, 16\), not \(1, 3, 17, 16\)"),
        (
            lambda _: [inputs(1)[0], inputs(1, (3, 9, 9))[0]],
            r"item 1 has shape \(3, 9, 9\); the network takes \(3, 16, 16\)",
        ),
        (lambda _: [], "holds no inputs"),
        (lambda _: inputs(0), "holds no inputs"),
        (lambda _: (inputs(3) * 50).astype(np.uint8), "uint8; calibration arrays must be network inputs, float32"),
        (lambda _: 7, "calibration is int; expected a folder"),
        (lambda _: [3.0, 4.0], "item 0 is float; expected a float32 array"),
        (one_nan, "item 3 holds NaN or infinity"),
    ],
)
def test_bad_calibration(model, tmp_path, calibration, message):
    calibration = calibration(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        export(model, tmp_path / "out", calibration=calibration)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cut": "layer9"}, UsageError, "nearest: layer2, layer1"),
        ({"cut": "layer1.1.bn1"}, CutNotBounded, r"layer1\.0 also crosses"),
        ({"cut": "fc"}, UsageError, "nothing comes after"),
        ({"levels": ()}, UsageError, "levels must be different numbers"),
        ({"levels": (1, 4)}, UsageError, "levels must be different numbers"),
        ({"levels": (4, 4)}, UsageError, "levels must be different numbers"),
        ({"levels": ("e4", 4, "e4")}, UsageError, "levels must be different numbers"),
        ({"levels": (4, "e1")}, UsageError, "e2 to e256 for entropy-constrained"),
        ({"levels": (4, "4")}, UsageError, "levels must be different numbers"),
        ({"levels": (4, "e4"), "default_op": "e3"}, UsageError, "'e3' is not among n4, e4"),
        ({"default_op": "n7"}, UsageError, "'n7' is not among n2, n4"),
        ({"images": 0}, UsageError, "must be at least 1"),
        ({"input_shape": (1, 3, 32, 32)}, UsageError, r"not \(1, 3, 32, 32\)"),
        ({"calibration": ".", "preprocessing": Preprocessing(crop=(8, 8))}, UsageError, r"not \(1, 3, 8, 8\)"),
    ],
)
def test_bad_options(model, tmp_path, options, error, message):
    with pytest.raises(error, match=message) as caught:
        export(model, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bad_output_folder(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        export(model, tmp_path / "file")
    with pytest.raises(UsageError, match="cannot write to"):
        export(model, tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "content", [b"", b"not an ONNX file", b"\x00" * 100, bytes(range(256)) * 40, b"PK\x03\x04zip", None]
)
def test_files_that_are_not_onnx(tmp_path, content):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="not an ONNX file" if content is not None else "no such ONNX file") as caught:
        export(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_truncated_onnx_file(model, tmp_path):
    for part in (0.1, 0.5, 0.9):
        data = model.read_bytes()
        (tmp_path / "cut.onnx").write_bytes(data[: int(len(data) * part)])
        with pytest.raises(UsageError, match="not an ONNX file"):
            export(tmp_path / "cut.onnx", tmp_path / "out")


def test_onnx_file_with_an_unknown_operator(model, tmp_path):
    proto = onnx.load(model)
    next(n for n in proto.graph.node if n.op_type == "Relu").op_type = "Relux"
    onnx.save(proto, tmp_path / "odd.onnx")
    with pytest.raises(UnsupportedModel, match="Relux"):
        export(tmp_path / "odd.onnx", tmp_path / "out")


def test_wrong_input_shape_of_a_module(tmp_path):
    with pytest.raises(UsageError, match=r"does not take an input of shape \(1, 4, 16, 16\)") as caught:
        export(network(), tmp_path / "out", calibration=inputs(3, (4, 16, 16)))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="pass input_shape"):
        export(network(), tmp_path / "out", calibration=[inputs(3)])
    with pytest.raises(UnsupportedModel, match=r"float64 weights; call module.float"):
        export(network().double(), tmp_path / "out")


class Overflowing(Net):
    """Gives infinity for large inputs."""

    def forward(self, x):
        return super().forward(torch.exp(x))


def test_nan_in_the_features_names_the_input(tmp_path):
    x = inputs(9)
    x[7] = 300
    with pytest.raises(
        NonFiniteFeatures, match=r"calibration item 7: \d+ of 512 features at the cut are NaN or infinite"
    ):
        export(network(Overflowing), tmp_path / "out", calibration=x)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_constant_features(tmp_path):
    net = network()
    last = net.get_submodule("layer1.1.bn2")
    assert isinstance(last, nn.BatchNorm2d)
    nn.init.constant_(last.weight, 0)
    nn.init.constant_(last.bias, -100)
    with pytest.raises(ExportError, match="nothing to send"):
        export(net, tmp_path / "out")


class OneAtATime(Net):
    def forward(self, x):
        return super().forward(x.reshape(1, *SHAPE))


class InPairs(Net):
    def forward(self, x):
        return super().forward(x.reshape(2, *SHAPE))


@pytest.mark.slow
def test_modules_that_fix_their_batch(tmp_path):
    result = export(network(OneAtATime), tmp_path)
    assert "the batch is fixed at 1" in result.notes[0]
    assert session(result.back).get_inputs()[0].shape == [1, 8, 8, 8]
    with pytest.raises(UsageError, match="does not take an input of shape"):
        export(network(InPairs), tmp_path / "out")


# ONNX files of other shapes


def test_open_image_size(model, tmp_path):
    proto = onnx.load(model)
    for i, name in ((2, "height"), (3, "width")):
        proto.graph.input[0].type.tensor_type.shape.dim[i].dim_param = name
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "open.onnx")
    with pytest.raises(UsageError, match=r"inputs of any size, \(batch, 3, height, width\); say which: --image-size"):
        export(tmp_path / "open.onnx", tmp_path / "out", calibration=[inputs(4)])
    result = export(tmp_path / "open.onnx", tmp_path / "out")
    assert result.profile.tensors[0].shape == (8, 8, 8)


def test_fixed_batch_and_initialisers_among_the_inputs(model, tmp_path):
    proto = onnx.load(model)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    del proto.graph.value_info[:]
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(proto, tmp_path / "fixed.onnx")
    result = export(tmp_path / "fixed.onnx", tmp_path / "out")
    assert "the batch is fixed at 1" in result.notes[0]
    assert result.profile.calibration_images == 12
    assert [i.name for i in session(result.front).get_inputs()] == ["input"]


def test_external_data(model, tmp_path):
    onnx.save(onnx.load(model), tmp_path / "ext.onnx", save_as_external_data=True, size_threshold=0, location="ext.bin")
    result = export(tmp_path / "ext.onnx", tmp_path / "out")
    assert result.profile.front_sha256 == export(model, tmp_path / "other").profile.front_sha256
    (tmp_path / "ext.bin").unlink()
    with pytest.raises((UsageError, UnsupportedModel), match=r"ext\.bin|external"):
        export(tmp_path / "ext.onnx", tmp_path / "out")


def test_two_inputs_are_refused(tmp_path):
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    program = torch.onnx.export(Two().eval(), (torch.ones(1, 3), torch.ones(1, 3)), verbose=False)
    assert program is not None
    program.save(tmp_path / "two.onnx")
    with pytest.raises(UnsupportedModel, match=r"one input, and takes 'x' \(float 1×3\), 'y' .* --constant 'y=VALUE'"):
        export(tmp_path / "two.onnx", tmp_path / "out")


# Verification and the choice of the default


def test_a_wrong_split_is_caught(model):
    source = graph.from_file(model)
    from splitwire.exporter.cutting.split import split

    halves = split(source.model, ["relu_2" if "relu_2" in serialise(source.model).decode("latin1") else "relu_1"])
    weight = next(v for v in halves.back.graph.initializers.values() if v.name == "fc.bias")
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() + np.float32(0.01), name=weight.name)
    with pytest.raises(ExportError, match=r"do not give what the whole network gives: they differ by 0\.0"):
        verify.check_halves(Graph.of(source.model, what="whole", exact=True), halves, inputs(3))


def test_differences():
    nan, inf = np.nan, np.inf
    for a, b, elementwise, by_output in (
        ([1.0, 100.0], [1.5, 100.0], 0.5 / 1.5, 0.005),
        ([0.25], [0.0], 0.25, 0.25),
        ([200.0], [100.0], 1.0, 1.0),
        ([nan, inf, -inf], [nan, inf, -inf], 0.0, 0.0),
        ([nan], [1.0], inf, inf),
        ([1.0], [inf], inf, inf),
        ([], [], 0.0, 0.0),
        ([1.0, 2.0], [1.0], inf, inf),
    ):
        x, y = np.array(a, np.float32), np.array(b, np.float32)
        assert largest_difference([x], [y]) == pytest.approx(elementwise)
        assert largest_difference([x], [y], by_output=True) == pytest.approx(by_output)


def points(*rates: float) -> list[OperatingPoint]:
    return [OperatingPoint(name=f"n{i + 2}", tensors=(), bits_per_element=r) for i, r in enumerate(rates)]


@pytest.mark.parametrize(
    ("agreements", "chosen"),
    [((0.9, 0.99, 1.0), "n3"), ((0.9, 0.984, 0.97), "n3"), ((1.0, 1.0, 1.0), "n2"), ((0.5, 0.5, 0.5), "n2")],
)
def test_the_default_is_the_cheapest_good_one_else_the_best(agreements, chosen):
    measures = [measure.PointMeasure(op=f"n{i + 2}", inputs=200, agreement=a) for i, a in enumerate(agreements)]
    assert measure.choose_default(points(0.3, 0.5, 0.7), measures) == chosen


@pytest.mark.slow
def test_outputs_that_are_no_logits_are_measured_by_their_error(tmp_path):
    class Dense(Net):
        def forward(self, x):
            return self.layer2(self.layer1(self.act(self.bn(self.conv(x)))))

    result = export(network(Dense), tmp_path, cut="layer1.0")
    errors = [m.relative_error for m in result.measures]
    assert errors[0] > errors[1] > 0
    assert all(m.agreement is None for m in result.measures)


def test_default_op_may_be_said(model, tmp_path):
    assert export(model, tmp_path, default_op="n4").profile.default_op == "n4"


# Both files or neither


@pytest.fixture
def other(model, tmp_path: Path) -> tuple[ir.Model, ir.Model, CodecProfile]:
    """A pair of another cut, and what it takes to write it."""
    result = export(model, tmp_path / "other", cut="layer2")
    return ir.load(result.front), ir.load(result.back), result.profile


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("fault", DISK_FAULTS)
def test_a_fault_leaves_the_old_pair_or_nothing(model, tmp_path, other, monkeypatch, before, fault):
    out, (front, back, profile) = tmp_path / "deep" / "out", other
    if before:
        export(model, out)
    old = files(tmp_path / "deep")
    disk_full(monkeypatch, fault)
    with pytest.raises(
        ExportError, match=r"cannot write the pair to .*out: No space left on device; nothing was changed"
    ):
        bake.write_pair(front, back, profile, out)
    assert files(tmp_path / "deep") == old
    assert before or not (tmp_path / "deep").exists()
    monkeypatch.undo()
    bake.write_pair(front, back, profile, out)
    assert sorted(files(out)) == ["back.onnx", "front.onnx"]


def test_a_new_pair_replaces_the_old(model, tmp_path):
    first, second = export(model, tmp_path), export(model, tmp_path, cut="layer2", overwrite=True)
    assert first.front == second.front
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.onnx", "front.onnx"]
    metadata = session(second.front).get_modelmeta().custom_metadata_map
    assert CodecProfile.from_metadata(metadata, "front").cut == "layer2"
