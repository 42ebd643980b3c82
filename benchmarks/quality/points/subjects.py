"""The cuts that schemes are compared at: a network, a layer, inputs to calibrate with and others to measure on.

demo            SqueezeNet on Fashion-MNIST: 256 inputs calibrate, 1,000 labelled ones test
features.*      MobileNetV2 with ImageNet weights, on random crops of photographs: every other photograph calibrates,
the others test; no labels
small networks  of benchmarks/networks/small.py, on the inputs of the demo
rapidocr        two ONNX files, on lines of text; the words of the test lines are not in those that calibrate
detector        the detector in the package, on scenes; test scenes have other garments and other photographs
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.inputs import photographs
from benchmarks.inputs.lines import Line, lines
from benchmarks.networks import small
from benchmarks.networks.field import PACKAGES, RAPID, rapid_line
from splitwire.codec import preprocessing
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.demo import photos
from splitwire.demo.fashion import to_inputs
from splitwire.evaluation.data.coco import Truth
from splitwire.models import demo, detector
from splitwire.models.catalogue import load
from splitwire.models.making import scenes

from .judges import Boxes, Classes, Judge, Text

DAMAGES = (0.02, 0.05, 0.12)
"""Kullback–Leibler divergences at which bytes are compared, nats."""
CALIBRATION_CROPS, TEST_CROPS = 8, 4
"""Of each photograph."""
CALIBRATION_LINES, TEST_LINES = 256, 200
CALIBRATION_SCENES, TEST_SCENES = 256, 300
CLASSIFIER_WIDTH, RECOGNISER_WIDTH = 192, 320
"""Of a line, pixels."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Material:
    """network: a module or an ONNX file. calibration, test: (n, C, H, W) float32 inputs. judge: of the test inputs."""

    network: torch.nn.Module | Path
    calibration: Floats
    test: Floats
    judge: Judge


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A cut. network, what: for the reader; what is at the cut. open: loads the network and its inputs; cuts of one
    network share them. damages: the damages at which bytes are compared, smallest first."""

    network: str
    layer: str
    what: str
    open: Callable[[], Material]
    damages: tuple[float, float, float] = DAMAGES


@functools.cache
def _demo() -> Material:
    pictures, labels = demo.test_set()
    return Material(
        network=demo.load_network(), calibration=to_inputs(demo.calibration_set()), test=to_inputs(pictures),
        judge=Classes(labels),
    )  # fmt: skip


@functools.cache
def _photographs() -> Material:
    loaded = load(photos.MODEL, "DEFAULT")
    files = [*photographs.natural(), *photographs.imagenet(), *photographs.scenes()]
    return Material(
        network=loaded.module,
        calibration=_crops(files[0::2], CALIBRATION_CROPS, loaded.preprocessing),
        test=_crops(files[1::2], TEST_CROPS, loaded.preprocessing),
        judge=Classes(),
    )


def _crops(files: Sequence[Path], count: int, how: Preprocessing) -> Floats:
    """(n, 3, H, W): `count` seeded random crops of each photograph."""
    with tempfile.TemporaryDirectory() as folder:
        photographs.write_crops(files, Path(folder), count=count)
        written = sorted(Path(folder).iterdir())
        return np.stack([preprocessing.apply(Image.open(file).convert("RGB"), how) for file in written])


@functools.cache
def _small(name: str) -> Material:
    pictures, labels = demo.test_set()
    return Material(
        network=small.load(name), calibration=small.inputs(name, demo.calibration_set()),
        test=small.inputs(name, pictures), judge=Classes(labels),
    )  # fmt: skip


def _classifier() -> Material:
    drawn = functools.partial(lines, longest=12, widest=CLASSIFIER_WIDTH, turned=True)
    calibration, test = drawn("calibration", CALIBRATION_LINES), drawn("test", TEST_LINES)
    return Material(
        network=_file("ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        calibration=_line_inputs(calibration, CLASSIFIER_WIDTH),
        test=_line_inputs(test, CLASSIFIER_WIDTH),
        judge=Classes(np.array([line.turned for line in test], np.uint8)),
    )


def _recogniser() -> Material:
    drawn = functools.partial(lines, longest=16, widest=RECOGNISER_WIDTH)
    calibration, test = drawn("calibration", CALIBRATION_LINES), drawn("test", TEST_LINES)
    return Material(
        network=_file("ch_PP-OCRv4_rec_infer.onnx"),
        calibration=_line_inputs(calibration, RECOGNISER_WIDTH),
        test=_line_inputs(test, RECOGNISER_WIDTH),
        judge=Text(),
    )


def _file(name: str) -> Path:
    path = PACKAGES / RAPID / name
    if not path.is_file():
        raise UsageError(f"{path} not found; `make build/field/.installed` downloads it")
    return path


def _line_inputs(drawn: Sequence[Line], width: int) -> Floats:
    return np.concatenate([rapid_line(line.picture, width=width) for line in drawn])


def _detector() -> Material:
    calibrate, compose = scenes.composer("train", 2), scenes.composer("test", 1)
    test = [compose(i) for i in range(TEST_SCENES)]
    truths = [Truth(boxes=s.boxes, labels=s.labels, ignored=np.zeros(len(s.labels), np.bool_)) for s in test]
    return Material(
        network=detector.load_detector(),
        calibration=_scene_inputs([calibrate(i) for i in range(CALIBRATION_SCENES)]),
        test=_scene_inputs(test),
        judge=Boxes(truths),
    )


def _scene_inputs(composed: Sequence[scenes.Scene]) -> Floats:
    how = detector.PREPROCESSING
    return np.stack([preprocessing.apply(Image.fromarray(scene.picture), how) for scene in composed])


def _of_mobilenet_v2(layer: str, what: str) -> Subject:
    return Subject(network="MobileNetV2, ImageNet", layer=layer, what=what, open=_photographs)


def _of_small(name: str, title: str, layer: str, what: str) -> Subject:
    return Subject(
        network=f"{title}, Fashion-MNIST", layer=layer, what=what, open=functools.partial(_small, name)
    )  # fmt: skip


SUBJECTS = {
    "demo": Subject(network="SqueezeNet 1.1, Fashion-MNIST", layer=demo.CUT, what="ReLU", open=_demo),
    "features.3": _of_mobilenet_v2("features.3", "linear bottleneck, sum"),
    "features.6": _of_mobilenet_v2("features.6", "linear bottleneck, sum"),
    "features.10": _of_mobilenet_v2("features.10", "linear bottleneck, sum"),
    "features.13": _of_mobilenet_v2("features.13", "linear bottleneck, sum"),
    "features.14.conv.0": _of_mobilenet_v2("features.14.conv.0", "ReLU6"),
    "features.18": _of_mobilenet_v2("features.18", "ReLU6, pooled next"),
    "mobilenet_v3": _of_small("mobilenet_v3", "MobileNetV3 small", "features.4.block.0", "hard-swish"),
    "mobilenet_v3.3": _of_small("mobilenet_v3", "MobileNetV3 small", "features.3", "linear bottleneck, sum"),
    "efficientnet": _of_small("efficientnet", "EfficientNet, small", "features.4.0.block.0", "SiLU"),
    "efficientnet.2": _of_small("efficientnet", "EfficientNet, small", "features.2", "linear bottleneck"),
    "convnext": _of_small("convnext", "ConvNeXt, small", "features.1", "stage, sum"),
    "vit": _of_small("vit", "ViT, small", "encoder.layers.encoder_layer_1", "tokens"),
    "classifier": Subject(
        network="rapidocr classifier", layer="hardswish_12.tmp_0", what="hard-swish, ONNX file", open=_classifier
    ),
    "recogniser": Subject(
        network="rapidocr recogniser", layer="p2o.Add.167", what="sum, ONNX file", open=_recogniser,
        damages=(0.02, 0.03, 0.05),
    ),
    "detector": Subject(
        network="detector of garments", layer=detector.CUT, what="leaky ReLU", open=_detector,
        damages=(0.03, 0.05, 0.1),
    ),
}  # fmt: skip
"""Key → cut."""
