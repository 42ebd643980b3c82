"""The catalogue on all of torchvision's networks: classification, segmentation, detection; recipes; image sizes."""

from __future__ import annotations

import inspect
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from splitwire.codec import preprocessing
from splitwire.codec.errors import ExportError, UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.models import catalogue, demo, figures, networks, presets
from splitwire.models.recipes import RECIPES

SMALL_DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
SMALL_SEGMENTER = "lraspp_mobilenet_v3_large"
LARGE = ("regnet_y_128gf", "regnet_y_32gf", "regnet_y_16gf", "regnet_x_32gf", "regnet_x_16gf")
"""Cannot be built without memory for their weights, up to 2.6 GB."""


def default_weights(name):
    return torchvision.models.get_model_weights(name).DEFAULT


# Every network


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.names())
def test_every_torchvision_network_has_all_we_take(name):
    task = networks.task_of(name)
    assert task is not None
    entry = default_weights(name)
    found = presets.preprocessing(name, task, entry, None)
    preset = entry.transforms()
    classes = len(entry.meta["categories"])
    if task == "detection":
        assert type(preset).__name__ == "ObjectDetection"
        assert inspect.signature(preset.forward).parameters.keys() == {"img"}
        assert found.resize == found.crop
        assert (found.mean, found.std) == ((0, 0, 0), (1, 1, 1))
    else:
        assert ([found.resize], list(found.mean), list(found.std)) == (preset.resize_size, preset.mean, preset.std)
        assert list(found.crop) == 2 * getattr(preset, "crop_size", preset.resize_size)
        assert found.interpolation == preset.interpolation.value
        assert classes == {"classification": 1000, "segmentation": 21}[task]
    if name in LARGE:
        return
    network = networks.build_empty(name, found.crop)
    kept = network.state_dict()
    assert all(n in kept for n, _ in network.named_buffers()), "a buffer that no file would fill"
    more = {k: v[:1].expand(2 * v.shape[0], *v.shape[1:]) for k, v in kept.items() if v.ndim and is_head(k, v, classes)}
    assert networks.classes_in(kept, kept | more, classes) == 2 * classes
    assert networks.classes_in(kept, kept, classes) is None


def is_head(key, value, classes):
    heads = ("fc.", "classifier.", "head.", "heads.", "cls_score.", "bbox_pred.", "cls_logits.", "AuxLogits.", "aux")
    return value.shape[0] % classes == 0 and any(h in key for h in heads) and "backbone" not in key


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("raft_small", r"raft_small takes pairs of images \(optical flow\); splitwire takes .* detection$"),
        ("r3d_18", "r3d_18 takes video clips; "),
        ("swin3d_t", "swin3d_t takes video clips; "),
        ("quantized_resnet50", "quantized_resnet50 is quantised already"),
        ("fasterrcnn_resnet50", "unknown model 'fasterrcnn_resnet50'; nearest: fasterrcnn_resnet50_fpn"),
        ("DeepLabV3_resnet50", "unknown model .*; nearest: deeplabv3_resnet50"),
    ],
)
def test_what_is_not_taken_is_one_clear_line(name, why):
    with pytest.raises(UsageError, match=why) as e:
        catalogue.load(name)
    assert "\n" not in str(e.value)


def test_every_network_of_torchvision_is_taken_or_refused_with_a_reason():
    known = set(networks.names())
    assert {n for n in torchvision.models.list_models() if n not in known and networks.refusal(n) is None} == set()
    assert not {n for n in known if networks.refusal(n)}


# Random weights


@pytest.fixture
def no_downloads(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something was downloaded")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def test_a_segmenter_with_random_weights(no_downloads):
    first, second = (catalogue.load(SMALL_SEGMENTER, size=(48, 64)) for _ in range(2))
    assert (first.task, first.labels, first.weights) == ("segmentation", None, "random")
    assert first.input_shape == (1, 3, 48, 64)
    assert first.preprocessing == Preprocessing(resize=48, crop=(48, 64))
    assert first.warning is not None and "random weights" in first.warning
    assert catalogue.load(SMALL_SEGMENTER).preprocessing == Preprocessing(resize=520, crop=(520, 520))
    for (key, a), b in zip(first.module.state_dict().items(), second.module.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=key)
    variances = [m.running_var for m in first.module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(v.std() > 0.1 for v in variances if v is not None and len(v) > 8)
    with torch.inference_mode():
        out = first.module(torch.rand(2, *first.input_shape[1:]))
    assert {k: tuple(v.shape) for k, v in out.items()} == {"out": (2, 21, 48, 64)}


def test_the_auxiliary_head_of_a_segmenter_is_left_out():
    module = networks.build("deeplabv3_mobilenet_v3_large", aux_loss=True)
    assert not [k for k in module.state_dict() if k.startswith("aux")]
    with torch.inference_mode():
        assert list(module(torch.rand(1, 3, 32, 32))) == ["out"]


def test_a_detector_with_random_weights(no_downloads):
    loaded = catalogue.load(SMALL_DETECTOR, size=(64, 96))
    assert (loaded.task, loaded.input_shape) == ("detection", (1, 3, 64, 96))
    assert loaded.preprocessing.resize == loaded.preprocessing.crop == (64, 96)
    (image,) = torch.rand(1, 3, 64, 96)
    transform: Any = loaded.module.transform
    scaled = transform([image])[0]
    assert scaled.image_sizes == [(64, 96)], "the network scales its input"
    torch.testing.assert_close(scaled.tensors, transform.normalize(image)[None], rtol=0, atol=1e-5)
    with torch.inference_mode():
        (found,) = loaded.module([image])
    assert set(found) == {"boxes", "labels", "scores"}


def test_a_detector_of_one_size():
    loaded = catalogue.load("ssdlite320_mobilenet_v3_large")
    assert loaded.input_shape == (1, 3, 320, 320)
    transform: Any = loaded.module.transform
    assert transform.fixed_size == (320, 320)
    with pytest.raises(UsageError, match="takes images of 320x320 only, not 640x480; leave the size out"):
        catalogue.load("ssdlite320_mobilenet_v3_large", size=(480, 640))


# torchvision's weights, by name


def test_weights_by_torchvisions_name(monkeypatch):
    """The builder gets the entry and the size; the download is replaced by a state dict of the right form."""
    detector = random_network(SMALL_DETECTOR).state_dict()
    known = torchvision.models.get_model_weights(SMALL_DETECTOR)
    monkeypatch.setattr(known, "get_state_dict", lambda self, *args, **kwargs: detector)
    for weights in ("COCO_V1", f"{known.__name__}.COCO_V1"):
        loaded = catalogue.load(SMALL_DETECTOR, weights, size=(96, 128))
        assert loaded.weights == f"{known.__name__}.COCO_V1"
        assert loaded.warning is None
        assert loaded.labels is not None and loaded.labels[18] == "dog"
        transform: Any = loaded.module.transform
        assert (transform.min_size, transform.max_size) == ((96,), 128)
        assert all(torch.equal(v, detector[k]) for k, v in loaded.module.state_dict().items())
    name = "deeplabv3_mobilenet_v3_large"
    segmenter = random_network(name, aux_loss=True).state_dict()
    monkeypatch.setattr(
        torchvision.models.get_model_weights(name), "get_state_dict", lambda self, *args, **kwargs: segmenter
    )
    loaded = catalogue.load(name, "DEFAULT")
    assert loaded.labels is not None and loaded.labels[12] == "dog"
    module: Any = loaded.module
    assert module.aux_classifier is None
    assert all(torch.equal(v, segmenter[k]) for k, v in module.state_dict().items())


def test_failed_download_names_the_address(monkeypatch, tmp_path):
    def refuse(url, *args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    for name in (SMALL_DETECTOR, SMALL_SEGMENTER):
        with pytest.raises(ExportError, match=rf"of {name} from https://\S+: Name or service not known; .*FILE") as e:
            catalogue.load(name, "DEFAULT")
        assert "\n" not in str(e.value)


# Files


def save(tmp_path: Path, network: torch.nn.Module, name: str = "w.pth") -> Path:
    path = tmp_path / name
    torch.save(network.state_dict(), path)
    return path


def random_network(name, **options):
    torch.manual_seed(1)
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, **options).eval()


def same(loaded, network):
    state = network.state_dict()
    return all(torch.equal(v, state[k]) for k, v in loaded.module.state_dict().items())


@pytest.mark.slow
def test_a_detector_from_a_file(tmp_path):
    network = random_network(SMALL_DETECTOR, num_classes=91)
    loaded = catalogue.load(SMALL_DETECTOR, save(tmp_path, network))
    assert same(loaded, network)
    assert loaded.warning is None
    assert loaded.labels is not None and loaded.labels[:3] == ("__background__", "person", "bicycle")
    own = random_network(SMALL_DETECTOR, num_classes=4)
    loaded = catalogue.load(SMALL_DETECTOR, save(tmp_path, own), size=96)
    assert loaded.labels is None
    assert same(loaded, own)
    image = torch.rand(3, 96, 96)
    own.transform.min_size, own.transform.max_size = (96,), 96
    with torch.inference_mode():
        for key, value in own([image])[0].items():
            torch.testing.assert_close(loaded.module([image])[0][key], value, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "labels"), [(21, 21), (5, None)])
def test_a_segmenter_from_a_file_with_an_auxiliary_head(tmp_path, classes, labels):
    network = random_network("deeplabv3_mobilenet_v3_large", num_classes=classes, aux_loss=True)
    loaded = catalogue.load("deeplabv3_mobilenet_v3_large", save(tmp_path, network), size=64)
    assert (None if loaded.labels is None else len(loaded.labels)) == labels
    assert same(loaded, network)
    with torch.inference_mode():
        image = torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(loaded.module(image)["out"], network(image)["out"], rtol=0, atol=0)


@pytest.mark.slow
def test_files_that_do_not_fit_are_one_clear_line(tmp_path):
    detector = random_network(SMALL_DETECTOR).state_dict()
    cases = {
        "short": (
            {k: v for k, v in detector.items() if "rpn.head" not in k},
            r"6 missing \(rpn.head.conv.0.0.w",
        ),
        "other": (random_network(SMALL_SEGMENTER).state_dict(), r"does not fit FasterRCNN: .* missing .* unexpected"),
        "shape": (
            detector | {"backbone.body.0.0.weight": torch.ones(16, 1, 3, 3)},
            r"backbone\.body\.0\.0\.weight \[16, 1, 3, 3\] instead of \[16, 3, 3, 3\]",
        ),
        "nan": (
            detector | {"rpn.head.cls_logits.bias": torch.full((15,), torch.inf)},
            "NaN or infinite values in rpn.head.cls_logits.bias",
        ),
    }
    for name, (state, message) in cases.items():
        path = tmp_path / f"{name}.pth"
        torch.save(state, path)
        with pytest.raises(UsageError, match=message) as e:
            catalogue.load(SMALL_DETECTOR, path)
        assert "\n" not in str(e.value) and path.name in str(e.value)
    for name in (SMALL_DETECTOR, SMALL_SEGMENTER):
        with pytest.raises(UsageError, match=rf"{name} has no weights 'IMAGENET1K_V1'.*there are COCO_.*, DEFAULT"):
            catalogue.load(name, "IMAGENET1K_V1")


def test_weights_of_a_backbone_are_refused():
    with pytest.raises(UsageError, match=r"_FEATURES are those of a backbone.*take VGG16_Weights\.IMAGENET1K_V1$"):
        catalogue.load("vgg16", "IMAGENET1K_FEATURES")


@pytest.mark.slow
def test_a_file_of_torchvision_is_known_by_its_name(tmp_path):
    """IMAGENET1K_V1 of resnet18's big sister is evaluated with another margin than its DEFAULT."""
    weights = torchvision.models.MobileNet_V3_Small_Weights, torchvision.models.ShuffleNet_V2_X0_5_Weights
    assert all(len(w) == 1 for w in weights), "these have one entry each, so the name makes no difference"
    known = torchvision.models.RegNet_Y_400MF_Weights
    network = networks.build_random("regnet_y_400mf")
    first = save(tmp_path, network, Path(known.IMAGENET1K_V1.url).name)
    assert catalogue.load("regnet_y_400mf", first).preprocessing.resize == 256
    assert catalogue.load("regnet_y_400mf", save(tmp_path, network, "mine.pth")).preprocessing.resize == 232


@pytest.mark.slow
def test_batch_norms_of_old_detectors_have_no_epsilon(tmp_path, monkeypatch):
    """As torchvision's builder sets it for its own file; a file of the user's keeps the usual one."""
    name = "fasterrcnn_resnet50_fpn"
    known = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights
    network = random_network(name)
    assert {m.eps for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {1e-5}
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    path = tmp_path / Path(known.COCO_V1.url).name
    torch.save(state, path)
    monkeypatch.setattr(type(known.COCO_V1), "get_state_dict", lambda self, *args, **kwargs: dict(state))
    theirs = torchvision.models.get_model(name, weights="COCO_V1").eval()
    ours: Any = catalogue.load(name, path).module
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        wanted, found, other = (network.backbone.body(image)["3"] for network in (theirs, ours, network))
    scale = float(wanted.abs().max())
    assert float((found - wanted).abs().max()) <= 1e-5 * scale < float((other - wanted).abs().max())


# Sizes


@pytest.mark.slow
def test_sizes_of_vision_transformers(tmp_path):
    loaded = catalogue.load("vit_b_32", size=64)
    assert loaded.input_shape == (1, 3, 64, 64)
    with torch.inference_mode():
        assert loaded.module(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    path = save(tmp_path, loaded.module)
    assert catalogue.load("vit_b_32", path).input_shape == (1, 3, 64, 64), "the size is read off the file"
    with pytest.raises(UsageError, match=r"does not fit VisionTransformer: 1 of another shape \(encoder.pos_embedding"):
        catalogue.load("vit_b_32", path, size=96)
    with pytest.raises(UsageError, match=r"vit_b_32 cannot be built for images of 100x100: .*divisible"):
        catalogue.load("vit_b_32", size=100)
    with pytest.raises(UsageError, match="vit_b_32 cannot be built for images of 96x64: it takes square images only"):
        catalogue.load("vit_b_32", size=(64, 96))
    with pytest.raises(UsageError, match="maxvit_t cannot be built for images of 100x100: "):
        catalogue.load("maxvit_t", size=100)
    with pytest.raises(UsageError, match=r"vit_h_14 cannot be built for images of 224x224: .*518"):
        catalogue.load("vit_h_14", "IMAGENET1K_SWAG_E2E_V1", size=224)


def test_sizes_that_are_none():
    for size in (0, -3, (1, 2, 3), (0, 5), (), 1 << 27):
        with pytest.raises(UsageError, match=r"image size must be one number of pixels or \(height, width\)"):
            catalogue.load("resnet18", size=size)


def test_the_demo_takes_a_size():
    loaded = catalogue.load("demo", size=72)
    assert (loaded.task, loaded.input_shape, loaded.preprocessing.resize) == ("classification", (1, 3, 72, 72), 72)
    assert demo.PREPROCESSING.crop == (56, 56)


def test_preprocessing_of_another_size_keeps_its_margin():
    usual = Preprocessing(resize=256, crop=(224, 224), interpolation="bicubic")
    assert presets.resized(usual, (112, 168)) == Preprocessing(resize=128, crop=(112, 168), interpolation="bicubic")
    assert presets.resized(usual, (224, 224)) is usual
    whole = Preprocessing(resize=(640, 640), crop=(640, 640))
    assert presets.resized(whole, (480, 320)) == Preprocessing(resize=(480, 320), crop=(480, 320))
    untouched = Preprocessing(crop=(28, 28))
    assert presets.resized(untouched, (14, 14)) == Preprocessing(crop=(14, 14))


@pytest.mark.parametrize("name", [SMALL_DETECTOR, "fcn_resnet50"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_edge_makes_what_the_preset_makes(name):
    """A detector's preset on the resized image, and the middle of a segmenter's preset, to the bit."""
    pixels = np.random.default_rng(5).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGB")
    task = networks.task_of(name)
    assert task is not None
    preset = default_weights(name).transforms()
    if task == "detection":
        found = preprocessing.apply(image, presets.preprocessing(name, task, default_weights(name), (40, 80)))
        wanted = preset(torchvision.transforms.functional.resize(image, [40, 80])).numpy()
    else:
        found = preprocessing.apply(image, presets.preprocessing(name, task, default_weights(name), None))
        whole = preset(image).numpy()
        assert whole.shape == (3, 520, 780)
        wanted = whole[:, :, 130:650]
    np.testing.assert_array_equal(found, wanted)


# Recipes


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_recipes_are_what_the_catalogue_builds(recipe):
    if recipe.name == demo.NAME:
        network = demo.load_network()
        assert recipe.preprocessing == demo.PREPROCESSING
    else:
        task = networks.task_of(recipe.name)
        assert task is not None and recipe.task == task
        entry = default_weights(recipe.name)
        assert recipe.preprocessing == presets.preprocessing(recipe.name, task, entry, None)
        assert f"{len(entry.meta['categories']):,} " in recipe.classes
        network = networks.build_empty(recipe.name, recipe.preprocessing.crop)
    assert recipe.parameters == sum(p.numel() for p in network.parameters())
    modules = [name for name, _ in network.named_modules()]
    assert [modules.index(layer) for layer in recipe.layers] != []
    if recipe.task == "detection" and recipe.macs is not None and recipe.name != "ssdlite320_mobilenet_v3_large":
        return  # seconds of work; SSDlite stands for the detectors of one stage
    if recipe.macs is not None:
        x = torch.zeros(recipe.input_shape, device=next(network.parameters()).device)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(list(x) if recipe.task == "detection" else x)
        assert recipe.macs == counter.get_total_flops() // 2


def test_there_is_a_recipe_for_each_network_of_the_plan():
    assert len(RECIPES) == 18
    assert all(name == recipe.name and recipe.layers for name, recipe in RECIPES.items())


def test_figures_of_cuts(monkeypatch, tmp_path):
    one = figures.CutFigures(
        cut="layer2", tensors=("relu_8",), shapes=((128, 28, 28),), elements=100_352,
        edge_macs_share=0.5, edge_parameters_share=0.06, bits_per_element=0.71,
    )  # fmt: skip
    other = msgspec.structs.replace(one, cut="relu_18, relu_19", tensors=("a", "b"), shapes=((1,), (2,)))
    path = tmp_path / "cuts.json"
    monkeypatch.setattr(figures, "read", lambda: figures.read_file(path))
    assert [c.figures for c in RECIPES["resnet18"].cuts] == [None] * 5, "no file"
    path.write_bytes(figures.encode({"resnet18": (one, other)}))
    cuts = RECIPES["resnet18"].cuts
    assert [c.layer for c in cuts] == [*RECIPES["resnet18"].layers, "relu_18, relu_19"]
    assert [c.figures for c in cuts] == [None, None, one, None, None, other]
    for damaged in (b"{", b"[]", b'{"a": [{"cut": "x"}]}', path.read_bytes().replace(b'"relu_8"', b"")):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"cuts\.json holds no figures of cuts") as e:
            figures.read()
        assert "\n" not in str(e.value)


def test_shipped_figures_belong_to_recipes():
    for name, cuts in figures.read().items():
        assert name in RECIPES
        for cut in cuts:
            assert cut.elements == sum(int(np.prod(shape)) for shape in cut.shapes)
            assert 0 <= cut.edge_macs_share <= 1
            assert 0 <= cut.edge_parameters_share <= 1


def test_recipes_need_no_torch():
    code = (
        "import sys; from splitwire.models import recipes, catalogue; [r.cuts for r in recipes.RECIPES.values()];"
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'onnx', 'onnxruntime')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
