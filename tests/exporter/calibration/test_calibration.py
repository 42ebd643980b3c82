"""Calibration: every kind of source, and how soon the ranges settle."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from exporter_helpers import SHAPE, Items, inputs, write_images
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import splitwire
from splitwire.codec.design import FeatureStatistics
from splitwire.codec.errors import UsageError
from splitwire.codec.preprocessing import load
from splitwire.codec.profile import Preprocessing, TensorSpec
from splitwire.exporter.calibration.calibrate import calibrate
from splitwire.exporter.calibration.convergence import Settling
from splitwire.exporter.calibration.inputs import open_inputs
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.source import from_file
from splitwire.exporter.pair import bake

PREPROCESSING = Preprocessing(crop=SHAPE[1:], resize=18)


def export(model, out, **options):
    return splitwire.export(model, out=out, **{"cut": "layer1", "calibration": inputs(12), "levels": (2, 4)} | options)


def read(calibration, limit=512, preprocessing=PREPROCESSING):
    return open_inputs(calibration, shape=SHAPE, preprocessing=preprocessing, limit=limit)


# Sources


def pictures(folder: Path, n: int) -> list[Image.Image]:
    return [Image.open(p).convert("RGB") for p in write_images(folder, n)]


def test_every_source_of_tensors_gives_the_same():
    x = inputs(12)
    tensors = torch.from_numpy(x)
    sources = [
        x,
        tensors.requires_grad_(),
        Items(tensors.detach()),
        Items(list(x), label=False),
        TensorDataset(tensors.detach(), torch.zeros(12)),
        DataLoader(TensorDataset(tensors.detach(), torch.zeros(12)), batch_size=5),
        iter(x),
    ]
    for source in sources:
        names, arrays = zip(*read(source), strict=True)
        np.testing.assert_array_equal(np.stack(arrays), x)
        assert len(set(names)) == 12


def test_datasets_and_lists_of_pictures_are_preprocessed(tmp_path):
    images = pictures(tmp_path, 6)
    expected = [load(p, PREPROCESSING) for p in sorted(tmp_path.rglob("*.png"))]
    for source in (Items(images), Items(images, label=False), images):
        np.testing.assert_array_equal([x for _, x in read(source)], expected)


def test_torchvision_image_folder_is_spread_over_its_classes(tmp_path):
    from torchvision.datasets import ImageFolder

    write_images(tmp_path, 40, classes=4)
    folder = ImageFolder(tmp_path)
    stream = read(folder, limit=8)
    taken = [int(name.split()[-1]) for name, _ in stream]
    assert [folder.targets[i] for i in taken] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_dataset_is_asked_only_for_what_is_used():
    items = Items(inputs(100))
    assert len(list(read(items, limit=5))) == 5
    assert items.asked == [10, 30, 50, 70, 90]


def test_iterable_datasets_have_no_length():
    class Stream(IterableDataset[torch.Tensor]):
        def __iter__(self):
            yield from torch.from_numpy(inputs(20))

    stream = read(Stream(), limit=7)
    assert stream.total is None
    assert len(list(stream)) == 7


class Broken(Items):
    def __getitem__(self, i):
        if i == 2:
            raise OSError("disk gone\nsecond line")
        return super().__getitem__(i)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: Broken(inputs(4)), "calibration item 2 cannot be read: OSError: disk gone"),
        (lambda: Items([{"image": 1}]), r"calibration item 0 is tuple; expected a float32 array"),
        (lambda: Items([{"image": 1}], label=False), "calibration item 0 is dict"),
        (lambda: Items(inputs(2, (1, *SHAPE))[None], label=False), "calibration item 0 has shape"),
        (lambda: Items([inputs(2)], label=False), "calibration item 0 is a batch of 2; a Dataset gives one input"),
        (lambda: {"a": 1}, "calibration is dict; expected a folder"),
        (lambda: b"abc", "calibration item 0 is int"),
        (lambda: Items([]), "holds no inputs"),
        (lambda: Items(inputs(2).astype(np.float64) * np.nan), "item 0 holds NaN or infinity"),
    ],
)
def test_bad_datasets(source, message):
    with pytest.raises(UsageError, match=message) as caught:
        stream = read(source())
        stream.peek(3)
        list(stream)
    assert "\n" not in str(caught.value)


def test_pictures_need_a_preprocessing_that_fits():
    picture = Image.new("RGB", (20, 20))
    with pytest.raises(UsageError, match="calibration images need preprocessing"):
        list(read(iter([picture]), preprocessing=None))
    with pytest.raises(UsageError, match=r"makes inputs of shape \(3, 8, 8\) from images, the network takes"):
        list(read([picture], preprocessing=Preprocessing(crop=(8, 8))))


def test_a_dataset_of_pictures_gets_the_default_preprocessing(model, tmp_path):
    result = export(model, tmp_path / "out", calibration=Items(pictures(tmp_path / "images", 6)))
    assert result.profile.preprocessing == Preprocessing(crop=(16, 16), resize=16)
    assert "no preprocessing given" in result.notes[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
def test_images_of_every_mode_are_as_in_torchvision_or_skipped(mode, tmp_path):
    """Converted to RGB, as torchvision's loaders do; deeper pixels than 8 bits would all turn out white."""
    from torchvision.transforms import functional as F

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    if mode in ("I;16", "I", "F"):
        deep = rng.integers(0, 65536, (20, 24)).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
        picture = Image.fromarray(deep)
    elif mode == "LAB":
        picture = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8), "LAB")
    else:
        picture = picture.convert(mode)
    file = tmp_path / ("a.png" if mode in ("P", "RGBA") else "a.tif")
    picture.save(file)
    stream = read([file])
    found = list(stream)
    with Image.open(file) as stored:
        if stored.mode in ("I", "F") or stored.mode.startswith("I;16"):
            assert found == []
            assert "8 bits per channel" in stream.skipped[0].reason
            return
        crop = F.center_crop(F.resize(stored.convert("RGB"), 18), SHAPE[1:])
    expected = F.normalize(F.to_tensor(crop), PREPROCESSING.mean, PREPROCESSING.std)
    np.testing.assert_allclose(found[0][1], expected.numpy(), atol=1e-6)


# Video


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames, each of one grey: frame i is 6·i."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 6 * i, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_frames_of_a_video_spread_evenly(clip):
    stream = read(clip, limit=5)
    assert stream.total == 5
    names, arrays = zip(*stream, strict=True)
    assert [int(n.split()[-1]) for n in names] == [4, 12, 20, 28, 36]
    assert names[0] == f"{clip} frame 4"
    grey = [255 * (x.mean() * PREPROCESSING.std[0] + PREPROCESSING.mean[0]) for x in np.array(arrays)[:, 0]]
    np.testing.assert_allclose(grey, [24, 72, 120, 168, 216], atol=6)


def test_a_video_calibrates(clip, model, tmp_path):
    result = export(model, tmp_path / "out", calibration=str(clip), images=16)
    assert result.profile.calibration_images == 16
    assert "no preprocessing given" in result.notes[0]


def test_a_video_that_is_none(clip, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(UsageError, match=r"a\.mp4: the video cannot be read") as caught:
        read(tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"b\.mp4: no such video"):
        read(tmp_path / "b.mp4")


def test_a_damaged_video_ends_early_or_is_refused(clip, tmp_path):
    data = clip.read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=r"cannot be read|no inputs"):
        read(tmp_path / "a.mp4").peek(3)


def test_a_video_without_pyav(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError, match=r"PyAV, which is not installed: pip install splitwire\[video\]$"):
        read(tmp_path / "a.mp4")


# Statistics and settling


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_statistics_do_not_depend_on_the_threads(model):
    whole = from_file(model)
    from splitwire.exporter.cutting.split import split

    halves = split(whole.model, [_layer(whole, "layer1")])
    front = Graph.of(halves.front, what="front")
    x = inputs(20)
    (features,) = front.run(x)
    spec = TensorSpec(name="y", shape=features.shape[1:])
    found = calibrate(
        front, read(x), [spec], settling=Settling([2], [None]), progress=lambda *_: None
    ).statistics[0]  # fmt: skip
    expected = FeatureStatistics(channels=8)
    for start in range(0, 20, 8):
        expected.add(front.run(x[start : start + 8])[0].astype(np.float32, copy=False))
    assert found.count == 20
    assert (found.mean, found.variance) == (expected.mean, expected.variance)
    np.testing.assert_array_equal(found.histogram.weights, expected.histogram.weights)
    np.testing.assert_array_equal(found.sample, expected.sample)


def _layer(source, layer: str) -> str:
    from splitwire.exporter.cutting.cuts import find_cut
    from splitwire.exporter.cutting.names import Names

    return find_cut(Names.of(source), layer)[0].tensors[0]


def feed(chunks) -> Settling:
    settling = Settling([2, 4], [None])
    statistics = FeatureStatistics(channels=2)
    for chunk in chunks:
        statistics.add(chunk)
        settling.look([statistics])
    settling.finish([statistics])
    return settling


def relu_noise(n: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(size=(n, 2, 64, 64)) * scale, 0).astype(np.float32)


def test_alike_images_settle_at_once():
    assert feed(np.array_split(relu_noise(64), 8)).settled == 8


def test_a_change_in_the_middle_settles_after_it():
    chunks = [*np.array_split(relu_noise(24), 3), *np.array_split(relu_noise(232, scale=2.0), 29)]
    assert feed(chunks).settled in (128, None)
    drifting = [relu_noise(8, scale=1 + i) for i in range(32)]
    assert feed(drifting).settled is None


def test_one_look_says_nothing():
    assert feed([relu_noise(8)]).settled is None
    assert feed([relu_noise(3)]).settled is None


def test_export_says_when_it_settled(model, tmp_path):
    result = export(model, tmp_path, calibration=np.tile(inputs(8), (8, 1, 1, 1)))
    assert result.settled == 8
    assert export(model, tmp_path, calibration=inputs(8)).settled is None


def test_a_single_tensor_has_no_new_fields_in_its_profile(model, tmp_path):
    """Old decoders, and the golden vectors, do not know them."""
    text = export(model, tmp_path).profile.to_json()
    assert '"sizes"' not in text
    assert '"outputs"' not in text


def test_a_pair_too_large_for_one_file_keeps_its_weights_beside(model, tmp_path):
    """The limit is that of ONNX, 2 GB; here it is 100 bytes."""
    result = export(model, tmp_path / "small")
    front, back = ir.load(result.front), ir.load(result.back)
    bake.write_pair(front, back, result.profile, tmp_path / "large", limit=100)
    assert sorted(files(tmp_path / "large")) == ["back.onnx", "back.onnx.data", "front.onnx", "front.onnx.data"]
    x = inputs(2)
    for name, feed in (("front.onnx", x), ("back.onnx", inputs(2, (8, 8, 8)))):
        both = [
            ort.InferenceSession(tmp_path / size / name, providers=["CPUExecutionProvider"])
            for size in ("small", "large")
        ]
        outputs = [s.run(None, {s.get_inputs()[0].name: feed})[0] for s in both]
        np.testing.assert_array_equal(*outputs)
    bake.write_pair(front, back, result.profile, tmp_path / "large")
    assert files(tmp_path / "large") == files(tmp_path / "small")


def test_networks_of_a_fixed_batch_are_measured_on_fewer_inputs(model, tmp_path):
    proto = onnx.load(model)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "fixed.onnx")
    result = export(tmp_path / "fixed.onnx", tmp_path / "out", calibration=inputs(80), levels=(2,))
    assert (result.profile.calibration_images, result.measures[0].inputs) == (80, 64)
    assert export(model, tmp_path / "free", calibration=inputs(80), levels=(2,)).measures[0].inputs == 80
