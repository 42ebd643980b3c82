"""What the user says of the preprocessing, by options or in a TOML file, and what follows from the network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from onnx import TensorProto
from picture_networks import HEIGHT, WIDTH, write_network
from typer.testing import CliRunner

import splitwire
from splitwire.codec import preprocessing
from splitwire.codec.errors import ShapeMismatch, UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.commands.export.command import export
from splitwire.commands.export.pictures import PANEL, _options
from splitwire.commands.plan.command import plan
from splitwire.exporter.network.pictures import PictureOptions, completed, form, overlaid, read_options, wanted_shape

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(export)
app.command()(plan)


def from_file(tmp_path: Path, text: str, **said: Any) -> PictureOptions | None:
    path = tmp_path / "pictures.toml"
    path.write_text(text)
    return read_options(path, said)


EVERYTHING = """
# every field there is
crop = [48, 320]
pad = [127, 127, 127]
pad_at = "end"
interpolation = "bicubic"
color = "bgr"
layout = "nhwc"
scale = "1/127.5"
mean = 1
std = [1, 1.0, "2/2"]
dtype = "float32"
exif = true
"""


def test_a_toml_file_says_all_that_a_preprocessing_holds(tmp_path: Path) -> None:
    options = from_file(tmp_path, EVERYTHING)
    how, notes = completed(options, (48, 320, 3), "float32")
    assert how == Preprocessing(
        crop=(48, 320), pad=(127, 127, 127), pad_at="end", interpolation="bicubic", color="bgr", layout="nhwc",
        scale=1 / 127.5, mean=(1.0,) * 3, std=(1.0,) * 3, dtype="float32", exif=True,
    )  # fmt: skip
    assert notes == [
        "preprocessing: turned by EXIF; fitted into 48×320, padded with (127, 127, 127) right and below;"
        " bgr, nhwc, float32; pixels × 0.00784314, mean 1 1 1, std 1 1 1"
    ]
    assert set(PictureOptions.__struct_fields__) == set(Preprocessing.__struct_fields__)


def test_the_command_comes_before_the_file(tmp_path: Path) -> None:
    options = from_file(tmp_path, 'color = "bgr"\nresize = 32', color="gray", crop=24)
    assert options == PictureOptions(color="gray", resize=32, crop=24)
    assert read_options(None, {"color": None, "exif": None}) is None


def test_the_options_of_the_command_are_those_of_the_file(tmp_path: Path) -> None:
    text = 'crop = [48, 320]\nresize = "none"\ncolor = "bgr"\nscale = "1/2"\nmean = [1, 2, 3]\nstd = 4\nexif = true'
    said = _options(crop="48x320", resize="none", color="bgr", scale="1/2", mean="1,2,3", std="4", exif=True)
    both = [completed(o, (3, 48, 320), "float32")[0] for o in (said, from_file(tmp_path, text))]
    assert both[0] == both[1] and both[0].mean == (1.0, 2.0, 3.0) and both[0].resize is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 'rgb'", "there is no field 'colour' in a preprocessing; did you mean color?"),
        ("men = 1", "did you mean mean?"),
        ("xyzzy = 1", "there are crop, resize, interpolation,"),
        ("[preprocessing]\ncolor = 'rgb'", "there is no field 'preprocessing'"),
        ("color = 'rbg'", "color: expected rgb, bgr or gray; got 'rbg'"),
        ("crop = [1, 2, 3]", r"crop: expected a side in pixels, or height and width; got [1, 2, 3]"),
        ("crop = 0", "crop: expected a side in pixels"),
        ("crop = true", "crop: expected a side in pixels"),
        ("resize = 'all'", "resize: expected a side in pixels, height and width, or none; got 'all'"),
        ("mean = 'x'\nstd = 1", "mean: expected one number, or one per channel; got 'x'"),
        ("scale = '1/0'", "scale: expected a number, or a fraction as 1/255; got '1/0'"),
        ("exif = 1", "exif: expected true or false; got 1"),
        ("pad = -1", "pad: expected a gray level from 0 to 255, or an RGB colour of three; got -1"),
        ("std = 1", "std: mean and std go together; give mean too, 0 for none"),
        ("color =", "the preprocessing is not TOML"),
        ("color = '\xff'", None),
    ],
)
def test_what_is_wrong_in_a_file(tmp_path: Path, text: str, message: str | None) -> None:
    path = tmp_path / "pictures.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=re.escape(message or "the preprocessing is not TOML")) as caught:
        read_options(path, {})
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the preprocessing cannot be read: No such file"):
        read_options(tmp_path / "none.toml", {})


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((3, 224, 224), ("nchw", 3)),
        ((1, 28, 28), ("nchw", 1)),
        ((224, 224, 3), ("nhwc", 3)),
        ((28, 28, 1), ("nhwc", 1)),
        ((None, None, 3), ("nhwc", 3)),
        ((3, None, None), ("nchw", 3)),
        ((None, None, None), ("nchw", 3)),
        ((3, 224, 3), ("nchw", 3)),  # both ends: the first
        ((4, 224, 224), ("nchw", None)),
        ((64, 64, 12), ("nchw", None)),
    ],
)
def test_layout_and_channels_are_read_off_the_sizes(sizes: Any, expected: tuple[str, int | None]) -> None:
    assert form(sizes) == expected


def said(**fields: Any) -> PictureOptions:
    return PictureOptions(**fields)


@pytest.mark.parametrize(
    ("given", "size", "sizes", "expected"),
    [
        (None, None, (3, None, None), None),
        (None, (24, 32), (3, None, None), (1, 3, 24, 32)),
        (None, (24, 32), (None, None, 3), (1, 24, 32, 3)),
        (None, (24, 32), (None, None, 1), (1, 24, 32, 1)),
        (None, (24, 32), (None, None, None), (1, 3, 24, 32)),
        (said(layout="nhwc", color="gray"), (24, 32), (None, None, None), (1, 24, 32, 1)),
        (said(crop=24), None, (1, None, None), (1, 1, 24, 24)),
        (said(crop=24), (24, 24), (1, None, None), (1, 1, 24, 24)),
        (said(resize=(24, 32)), None, (3, None, None), (1, 3, 24, 32)),
        (said(resize=(24, 32)), None, (3, 20, 20), (1, 3, 20, 20)),  # stretched, then cropped
        (said(resize=64, pad=0), None, (3, None, None), (1, 3, 64, 64)),
        (said(resize=64), None, (3, None, None), None),
        (Preprocessing(crop=(8, 9)), None, (3, None, None), (1, 3, 8, 9)),
        (Preprocessing(crop=(8, 9), layout="nhwc"), None, (None, None, 3), (1, 8, 9, 3)),
        (None, (24, 32), (10,), None),
    ],
)
def test_the_size_of_the_picture_in_the_networks_order(given: Any, size: Any, sizes: Any, expected: Any) -> None:
    assert wanted_shape(given, size)(sizes) == expected


def test_sizes_that_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="the image size is 24×32, the crop 24×24: they must be equal"):
        wanted_shape(said(crop=24), (24, 32))((3, None, None))
    with pytest.raises(UsageError, match=r"\(any, any, 3\), channels last; give the preprocessing layout='nhwc'"):
        wanted_shape(Preprocessing(crop=(8, 8)), None)((None, None, 3))
    with pytest.raises(UsageError, match=r"color rgb: the network takes inputs of \(1, any, any\), one channel: gray"):
        wanted_shape(said(color="rgb", crop=8), None)((1, None, None))


@pytest.mark.parametrize(
    ("given", "shape", "resize"),
    [
        (None, (3, 224, 224), 256),
        (None, (3, 64, 64), 64),
        (None, (48, 320, 3), (48, 320)),
        (said(resize="none"), (3, 64, 64), None),
        (said(resize=80), (3, 64, 48), 80),
        (said(pad=0), (3, 64, 64), None),
        (said(pad=0, resize=64), (3, 48, 64), None),
    ],
)
def test_how_the_picture_is_resized(given: Any, shape: Any, resize: Any) -> None:
    assert completed(given, shape, "float32")[0].resize == resize


@pytest.mark.parametrize(
    ("given", "shape", "dtype", "message"),
    [
        (
            None,
            (4, 8, 8),
            "float32",
            r"images make inputs of .*\(batch, 3, H, W\), \(batch, H, W, 3\), or with one",
        ),
        (None, (10,), "float32", r"one channel; the network takes \(batch, 10\); pass arrays of that shape"),
        (said(mean=0, std=0), (3, 8, 8), "float32", r"preprocessing: std must not be 0, is 0\.0"),
        (said(mean=(0, 0), std=(1, 1)), (3, 8, 8), "float32", "mean must have 3 entries for rgb, has 2"),
        (said(mean="nan", std=1), (3, 8, 8), "float32", "mean must be finite, is nan"),
        (said(scale=0), (3, 8, 8), "float32", "scale must not be 0"),
        (said(crop=16), (3, 8, 8), "float32", "the crop is 16×16, the network takes 8×8 pixels"),
        (said(resize=4), (3, 8, 8), "float32", "the crop of 8×8 is larger than a picture that is resized to 4"),
        (said(resize=(8, 4)), (3, 8, 8), "float32", "the crop of 8×8 is larger than a picture that is resized to 8×4"),
        (said(pad=0, resize=9), (3, 8, 8), "float32", "a resize to 9 contradicts that: leave it out"),
        (said(dtype="uint8"), (3, 8, 8), "float32", "preprocessing makes uint8 inputs, the network takes float32"),
        (said(scale=1), (3, 8, 8), "uint8", "a uint8 input is the pixels as they are"),
        (said(layout="nhwc"), (3, 8, 8), "float32", r"layout nhwc: .* inputs of \(3, 8, 8\), channels first: nchw$"),
        (said(layout="nchw"), (8, 8, 1), "float32", r"layout nchw: .* inputs of \(8, 8, 1\), channels last: nhwc$"),
        (
            said(color="gray"),
            (3, 8, 8),
            "float32",
            r"color gray: .* inputs of \(3, 8, 8\), three channels: rgb or bgr",
        ),
        (said(color="bgr"), (8, 8, 1), "float32", r"color bgr: .* inputs of \(8, 8, 1\), one channel: gray$"),
        (Preprocessing(crop=(8, 8)), (3, 8, 8), "uint8", "preprocessing makes float32 inputs, the network takes uint8"),
    ],
)
def test_what_makes_no_input_of_the_network(given: Any, shape: Any, dtype: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        completed(given, shape, dtype)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": "x", "std": 1}, "preprocessing: mean: expected one number, or one per channel; got 'x'"),
        ({"mean": 0}, "preprocessing: mean: mean and std go together; give std too, 1 for none"),
        ({"color": "rbg"}, "preprocessing: color: expected rgb, bgr or gray; got 'rbg'"),
        ({"crop": 0}, "preprocessing: crop: expected a side in pixels, or height and width; got 0"),
        ({"pad": (0, 0, 256)}, "preprocessing: pad: expected a gray level from 0 to 255, or an RGB colour of three"),
    ],
)
def test_options_made_in_python_are_looked_at(fields: Any, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        wanted_shape(said(**fields), None)
    with pytest.raises(UsageError, match=re.escape(message)):
        completed(said(**fields), (3, 8, 8), "float32")
    with pytest.raises(UsageError, match=re.escape(message)):
        overlaid(said(**fields), Preprocessing(crop=(8, 8)))


def test_lists_are_pairs() -> None:
    options = splitwire.PictureOptions(resize=[8, 9], mean=[0, 0, 0], std=[1, 1, 1])  # type: ignore[arg-type]  # lists on purpose
    assert wanted_shape(options, None)((3, None, None)) == (1, 3, 8, 9)
    assert completed(options, (3, 8, 9), "float32")[0] == splitwire.Preprocessing(
        crop=(8, 9), resize=(8, 9), mean=(0.0,) * 3, std=(1.0,) * 3
    )


def test_a_named_networks_own_preprocessing_is_what_is_not_said() -> None:
    base = Preprocessing(crop=(24, 24), resize=28, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert overlaid(said(exif=True), base) == Preprocessing(
        crop=(24, 24), resize=28, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), exif=True
    )
    assert overlaid(said(mean=0, std=1, resize=(24, 24)), base).mean == (0.0, 0.0, 0.0)
    assert overlaid(said(pad=114), base).resize is None
    with pytest.raises(UsageError, match="the crop is 32×32, the network takes 24×24 pixels"):
        overlaid(said(crop=32), base)


# The commands, and modules


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from exporter_helpers import write_images

    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 6)
    return folder


@pytest.fixture(scope="module")
def nhwc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "net.onnx"
    return write_network(path, layout="nhwc", channels=3, dtype=TensorProto.UINT8)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_export_bakes_what_the_command_says(nhwc: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    (tmp_path / "pictures.toml").write_text('color = "bgr"\nexif = true\n')
    result = invoke(
        "export", nhwc, "--cut", "features", "--data", images, "--out", tmp_path / "out", "--levels", "4", "--json",
        "--preprocessing", tmp_path / "pictures.toml", "--pad", "10,20,30", "--labels", tmp_path / "labels.txt",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)["preprocessing"]
    assert (shown["color"], shown["pad"], shown["mean"]) == ("bgr", [10, 20, 30], [])
    with splitwire.EdgeSession(tmp_path / "out" / "front.onnx", transport=_Nowhere()) as session:
        assert session.profile.preprocessing == Preprocessing(
            crop=(HEIGHT, WIDTH), color="bgr", layout="nhwc", dtype="uint8", exif=True, pad=(10, 20, 30)
        )
        assert session.profile.labels == ("a", "b", "c", "d", "e")
        assert session.input_dtype == "uint8" and session.input_shape == (None, HEIGHT, WIDTH, 3)
        with pytest.raises(UsageError, match="order='bgr' goes with an array of pixels"):
            session.preprocess(next(images.rglob("*.png")), order="bgr")
        with pytest.raises(ShapeMismatch, match=r"\(B, 12, 16, 3\) uint8 array; got"):
            session.run_front(np.zeros((1, HEIGHT, WIDTH, 3), np.float32))
        session.warm_up()


class _Nowhere:
    def send(self, frame: bytes, key: Any = None) -> Any:
        raise AssertionError("nothing is sent here")

    def close(self) -> None:
        return None


def test_labels_of_another_network_are_refused(nhwc: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(UsageError, match="there are 4 labels, and the network's output 'scores' has 5 classes; is one"):
        raise invoke(
            "export", nhwc, "--cut", "features", "--data", images, "--out", tmp_path / "out",
            "--labels", tmp_path / "labels.txt",
        ).exception  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", [True, False])
def test_plan_takes_the_same_options(nhwc: Path, images: Path, data: bool) -> None:
    given = ["--data", images] if data else []
    result = invoke("plan", nhwc, *given, "--images", 2, "--link", "1mbit", "--resize", "none", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["input_shape"] == [1, HEIGHT, WIDTH, 3]
    assert 300 < document["jpeg_bytes"] < 1500  # there is a picture to send
    assert "preprocessing: cropped to 12×16; rgb, nhwc, uint8" in document["notes"]
    assert {c["label"] for c in document["cuts"]} >= {"features"}


@pytest.mark.slow
def test_a_module_that_takes_pixels_channels_last(images: Path, tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)
            self.fc = torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x.permute(0, 3, 1, 2).float() / 255)
            z: torch.Tensor = self.fc(torch.relu(y).mean((2, 3)))
            return z

    torch.manual_seed(0)
    result = splitwire.export(
        Net(), cut="conv", calibration=images, out=tmp_path / "a", levels=(4,),
        preprocessing=Preprocessing(crop=(10, 14), layout="nhwc", dtype="uint8"),
    )  # fmt: skip
    assert result.torch_difference is not None and result.torch_difference < 1e-5
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 14, 3), dtype=np.uint8)
    again = splitwire.export(Net(), cut="conv", calibration=pixels, out=tmp_path / "b", levels=(4,))
    assert again.profile.preprocessing is None and again.profile.calibration_images == 6


# docs/pictures.md

PAGE = (Path(__file__).parents[3] / "docs" / "pictures.md").read_text(encoding="utf-8")


def test_the_page_names_every_option_and_its_file_can_be_read(tmp_path: Path) -> None:
    command = typer.main.get_command(app).commands["export"]  # type: ignore[attr-defined]  # click has a group here
    ours = {p.opts[0] for p in command.params if getattr(p, "rich_help_panel", None) == PANEL}
    assert ours == {f"--{name.replace('_', '-')}" for name in PictureOptions.__struct_fields__ if name != "dtype"} | {
        "--preprocessing"
    }
    assert all(f"`{name}" in PAGE for name in ours)
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    how, _ = completed(from_file(tmp_path, block), (3, 224, 224), "float32")
    assert how == Preprocessing(
        crop=(224, 224), resize=256, color="bgr", scale=1 / 127.5, mean=(1.0,) * 3, std=(1.0,) * 3, exif=True
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--scale 1/127.5 --mean 1 --std 1", lambda rgb: rgb / 127.5 - 1),
        (
            "--color bgr --scale 1 --mean 103.939,116.779,123.68 --std 1",
            lambda rgb: rgb[..., ::-1] - (103.939, 116.779, 123.68),
        ),
        (
            "--scale 1 --mean 123.675,116.28,103.53 --std 58.395,57.12,57.375",
            lambda rgb: (rgb / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225),  # torchvision's, in pixels
        ),
        ("--pad 114 --mean 0 --std 1", lambda rgb: rgb / 255),
        ("--color bgr --pad 114 --pad-at end --scale 1", lambda rgb: rgb[..., ::-1]),
        ("--color bgr --pad 127 --pad-at end --mean 0.5 --std 0.5", lambda rgb: (rgb[..., ::-1] / 255 - 0.5) / 0.5),
        ("--scale -1/255 --mean -1 --std 1", lambda rgb: 1 - rgb / 255),
    ],
)
def test_what_frameworks_call_it(options: str, expected: Any) -> None:
    assert f"`{options}`" in PAGE
    words = options.split()
    given: dict[str, Any] = {k[2:].replace("-", "_"): v for k, v in zip(words[::2], words[1::2], strict=True)}
    said = _options(**given)
    how, _ = completed(said, (3, 16, 16), "float32")
    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    x = preprocessing.apply(preprocessing.from_array(rgb), how)
    np.testing.assert_allclose(x.transpose(1, 2, 0), expected(rgb.astype(np.float64)), rtol=1e-5, atol=2e-5)
