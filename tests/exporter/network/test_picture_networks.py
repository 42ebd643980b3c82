"""From pictures to answers with networks that are NHWC, gray, uint8, BGR or scaled in another way: the pair, through a
loopback session, against ONNX Runtime on the whole network, fed by arithmetic that is written out here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from picture_networks import HEIGHT, WIDTH, write_network
from PIL import Image

import splitwire
from splitwire.codec.profile import CodecProfile
from splitwire.evaluation.data.opening import open_data
from splitwire.evaluation.measuring.pair import Pair
from splitwire.exporter.calibration.inputs import open_inputs
from splitwire.exporter.network.pictures import PictureOptions
from splitwire.runtime_edge.transport import LoopbackTransport

Array = NDArray[Any]
F = np.float32


def pixels(image: Image.Image) -> Array:
    """Stretched to the network's size, (H, W, 3)."""
    return np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


def luma(image: Image.Image) -> Array:
    return np.asarray(image.convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))[..., None]


def imagenet(x: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    return (x.astype(F) / F(255) - np.array(mean, F)) / np.array(std, F)


@dataclass(frozen=True)
class Case:
    """reference: picture → one input, by hand. said: of the preprocessing; the rest is read off the network."""

    reference: Callable[[Image.Image], Array]
    said: dict[str, Any] = field(default_factory=dict)
    layout: str = "nchw"
    channels: int = 3
    dtype: int = TensorProto.FLOAT
    notes: str = "preprocessing: "


STRETCH = {"resize": (HEIGHT, WIDTH)}
CASES = {
    "nhwc": Case(
        lambda i: imagenet(pixels(i), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        STRETCH, layout="nhwc", notes=r"read off the network's input, \(12, 16, 3\) float32: layout nhwc",
    ),
    "gray": Case(
        lambda i: ((luma(i).astype(F) / F(255) - F(0.5)) / F(0.25)).transpose(2, 0, 1),
        {**STRETCH, "mean": 0.5, "std": "1/4"}, channels=1, notes=r"\(1, 12, 16\) float32: color gray",
    ),
    "uint8": Case(
        lambda i: pixels(i), STRETCH, layout="nhwc", dtype=TensorProto.UINT8,
        notes=r"\(12, 16, 3\) uint8: layout nhwc, dtype uint8",
    ),
    "uint8 gray": Case(
        lambda i: luma(i), STRETCH, layout="nhwc", channels=1, dtype=TensorProto.UINT8,
        notes=r"\(12, 16, 1\) uint8: layout nhwc, color gray, dtype uint8",
    ),
    "uint8 nchw bgr": Case(
        lambda i: pixels(i)[..., ::-1].transpose(2, 0, 1), {**STRETCH, "color": "bgr"}, dtype=TensorProto.UINT8,
    ),
    "caffe": Case(  # BGR, minus the mean pixel
        lambda i: (pixels(i)[..., ::-1].astype(F) - np.array([104, 117, 123], F)).transpose(2, 0, 1) / F(64),
        {**STRETCH, "color": "bgr", "scale": 1, "mean": (104, 117, 123), "std": 64},
        notes="bgr, nchw, float32; pixels × 1, mean 104 117 123, std 64 64 64",
    ),
    "tensorflow": Case(  # −1 … 1
        lambda i: pixels(i).astype(F) * F(1 / 127.5) - F(1),
        {**STRETCH, "scale": "1/127.5", "mean": 1, "std": 1}, layout="nhwc",
    ),
    "no normalisation": Case(
        lambda i: (pixels(i).astype(F) / F(255)).transpose(2, 0, 1), {**STRETCH, "mean": 0, "std": 1},
    ),
    "letterbox": Case(
        lambda i: (letterboxed(i).astype(F) / F(255)).transpose(2, 0, 1), {"pad": 114, "mean": 0, "std": 1},
        notes="fitted into 12×16, padded with 114 on both sides",
    ),
}  # fmt: skip


def letterboxed(image: Image.Image) -> Array:
    """The pictures here are 20 × 20: 12 × 12 in the middle of 16 columns."""
    canvas = np.full((HEIGHT, WIDTH, 3), 114, np.uint8)
    canvas[:, 2:14] = np.asarray(image.resize((12, 12), Image.Resampling.BILINEAR))
    return canvas


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    for i in range(6):
        small = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize((20, 20), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@dataclass(frozen=True)
class Made:
    case: Case
    folder: Path
    profile: CodecProfile
    notes: tuple[str, ...]
    whole: ort.InferenceSession


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    case, folder = CASES[request.param], tmp_path_factory.mktemp("pair")
    kind: dict[str, Any] = {"layout": case.layout, "channels": case.channels, "dtype": case.dtype}
    path = write_network(folder / "net.onnx", **kind)
    result = splitwire.export(
        path, cut="features", calibration=pictures, out=folder / "pair", levels=(64,), coder="context",
        preprocessing=PictureOptions(**case.said),
    )  # fmt: skip
    whole = ort.InferenceSession(write_network(folder / "whole.onnx", **kind, features=True))
    return Made(case, folder / "pair", result.profile, result.notes, whole)


def test_the_answers_are_the_whole_networks(made: Made, pictures: Path) -> None:
    cloud = splitwire.CloudSession(made.folder / "back.onnx")
    with splitwire.EdgeSession(made.folder / "front.onnx", transport=LoopbackTransport(cloud.handle)) as session:
        for path in sorted(pictures.iterdir()):
            with Image.open(path) as image:
                reference = np.ascontiguousarray(made.case.reference(image))
                array = np.asarray(image)
            x = session.preprocess(path)
            assert x.dtype == reference.dtype
            np.testing.assert_array_equal(x[0], reference)
            scores, features = made.whole.run(None, {"picture": reference[None]})
            np.testing.assert_allclose(session.run_front(x).features[0], features, rtol=1e-6, atol=1e-6)
            found = session.infer_image(path).outputs["scores"]
            step = float(features.max()) / 63
            assert np.abs(found - scores).max() < 4 * step
            # OpenCV's array of the same picture
            bgr = session.infer_image(np.ascontiguousarray(array[..., ::-1]), order="bgr").outputs["scores"]
            np.testing.assert_array_equal(bgr, found)


def test_the_calibration_saw_what_the_edge_makes(made: Made, pictures: Path) -> None:
    how = made.profile.preprocessing
    assert how is not None
    dtype: Any = how.input_dtype
    stream = open_inputs(pictures, shape=how.input_shape, dtype=dtype, preprocessing=how, limit=6)
    with splitwire.EdgeSession(made.folder / "front.onnx", transport=LoopbackTransport(lambda f: f)) as session:
        for name, x in stream:
            np.testing.assert_array_equal(session.preprocess(name)[0], x)


def test_what_was_read_off_the_network_is_said(made: Made) -> None:
    assert re.search(made.case.notes, "\n".join(made.notes)), made.notes


def test_evaluation_feeds_the_network_the_same(made: Made, pictures: Path) -> None:
    pair = Pair(made.folder)
    data = open_data(pictures, pair.profile, pair.input_shape, dtype=pair.input_dtype, detections=False)
    with Image.open(pictures / "0.png") as image:
        reference = made.case.reference(image)
    item = data.item(0)
    np.testing.assert_array_equal(item.x, reference)
    assert item.picture is not None and item.picture.mode == ("L" if made.case.channels == 1 else "RGB")
    np.testing.assert_array_equal(data.input_of(item.picture), reference)  # a codec without loss changes nothing
    assert pair.front([item.x])[0].features[0].shape == (1, 8, HEIGHT // 2, WIDTH // 2)
