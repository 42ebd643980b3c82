"""`splitwire export` and `splitwire.export`: the public API of the exporter."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
import torch
import typer
from exporter_helpers import inputs, network, write_images
from typer.testing import CliRunner

import splitwire
from splitwire import exporting
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.commands.export.command import export as command
from splitwire.exporter.network.inference import serialise
from splitwire.exporter.network.source import from_module
from splitwire.models.presets import resized
from splitwire.network import find_network

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(command)


@pytest.fixture
def catalogue(monkeypatch):
    """A catalogue with one small network, in place of torchvision's."""

    @dataclass(frozen=True)
    class LoadedModel:
        module: object
        name: str
        task: str
        preprocessing: Preprocessing | None
        input_shape: tuple[int, ...]
        labels: tuple[str, ...] | None
        weights: str | None
        warning: str | None

    def load(name, weights=None, *, size=None):
        if name != "small":
            raise UsageError(f"unknown network {name!r}; nearest: small")
        preprocessing = resized(Preprocessing(crop=(24, 24), resize=28), size or (24, 24))
        return LoadedModel(
            module=network(), name="small", task="classification", preprocessing=preprocessing,
            input_shape=(1, 3, *preprocessing.crop), labels=("a",) * 10, weights=weights, warning="random weights",
        )  # fmt: skip

    fake: Any = types.ModuleType("splitwire.models.catalogue")
    fake.load = load
    monkeypatch.setitem(sys.modules, "splitwire.models.catalogue", fake)


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_table(model, tmp_path):
    files = write_images(tmp_path / "images", 8)
    files[2].write_text("no image")
    out = tmp_path / "out"
    result = invoke(model, "--cut", "layer1", "--data", tmp_path / "images", "--out", out, "--levels", "2,4")
    assert result.exit_code == 0, result.output
    assert "net cut after layer1: 8×8×8 features, 2,048 bytes as float32" in result.stdout
    assert "tensor in the graph: " in result.stdout
    assert "still moved; more images would help" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    rows = [line for line in lines if line and line[0] in ("n2", "n4") and "%" in line[-1]]
    assert [[x for x in row if x != "*"][:2] for row in rows] == [["n2", "2"], ["n4", "4"]]
    assert sum("*" in row for row in rows) == 1
    assert "…" not in result.stdout.replace(" … ", "")  # nothing is cut off at 80 columns
    assert "calibrated on 7 images" in result.stdout
    assert "entropy coder: context" in result.stdout  # eight channels are one group: nothing predicts them
    assert f"skipped: {files[2]}: not an image file" in result.stderr
    assert "note: no preprocessing given" in result.stderr
    for name in ("front.onnx", "back.onnx"):
        assert str(out / name) in result.stdout
        assert (out / name).is_file()


@pytest.mark.slow
def test_wide_rows_are_not_cut_off(tmp_path):
    """A multiple of the range, the means preserved, many levels, and every answer kept."""
    write_images(tmp_path / "images", 12)
    path = tmp_path / "net.onnx"
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.LeakyReLU(0.1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    )  # fmt: skip
    path.write_bytes(serialise(from_module(net.eval(), (1, 3, 16, 16)).model))
    result = invoke(path, "--cut", "1", "--data", tmp_path / "images", "--out", tmp_path, "--levels", "64,a16,r0.15,r4")
    assert result.exit_code == 0, result.output
    assert "100.0%" in result.stdout and "×" in result.stdout
    assert "…" not in result.stdout.replace(" … ", "")


def test_json(model, tmp_path):
    write_images(tmp_path / "images", 8)
    result = invoke(
        model, "--cut", "layer1", "--data", tmp_path / "images", "--out", tmp_path / "out", "--images", 6, "--json"
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert result.stderr == ""
    assert document["calibration_images"] == 6
    assert [t["shape"] for t in document["tensors"]] == [[8, 8, 8]]
    assert [[t["levels"] for t in p["tensors"]] for p in document["points"]][:5] == [[2], [3], [4], [6], [8]]
    assert {t["coder"] for p in document["points"] for t in p["tensors"]} == {"context"}
    assert document["task"] == "classes"
    assert document["settled_after"] is None
    budgets = ["r0.1", "r0.2", "r0.3", "r0.4", "r0.6", "r0.8"]
    assert [p["op"] for p in document["points"]] == ["n2", "n3", "n4", "n6", "n8", *budgets]
    scales = [p["tensors"][0]["scale"] for p in document["points"]]
    assert scales[:5] == [1.0] * 5 and all(scale != 1.0 for scale in scales[5:])
    assert document["default_op"] in {p["op"] for p in document["points"]}
    assert Path(document["front"]).is_file()
    assert len(document["fingerprint"]) == 16


def test_no_such_coder(model, tmp_path):
    write_images(tmp_path / "images", 2)
    result = invoke(model, "--cut", "layer1", "--data", tmp_path / "images", "--out", tmp_path, "--coder", "zip")
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == "the coder can be predictive or context, not 'zip'"


@pytest.mark.slow
def test_several_tensors(model, tmp_path):
    write_images(tmp_path / "images", 8)
    arguments = ("--cut", "layer1.1.bn2,layer1.0", "--data", tmp_path / "images", "--out", tmp_path / "out")
    result = invoke(model, *arguments, "--levels", "2,4,e4")
    assert result.exit_code == 0, result.output
    assert "8×8×8 + 8×8×8 features, 4,096 bytes as float32" in result.stdout
    assert "tensors in the graph: " in result.stdout
    assert "…" not in result.stdout.replace(" … ", "")  # nothing is cut off at 80 columns
    document = json.loads(invoke(model, *arguments, "--levels", "2, 4, e4", "--json").stdout)
    assert [p["op"] for p in document["points"]] == ["n2", "n4", "e4"]
    assert [len(p["tensors"]) for p in document["points"]] == [2, 2, 2]
    for point in document["points"]:
        bits = sum(t["bits_per_element"] * 512 for t in point["tensors"])
        assert bits == pytest.approx(point["bits_per_element"] * 1024)
        assert point["bytes_per_image"] == pytest.approx(bits / 8)
    for i, own in enumerate(document["sensitivity"]):
        assert [o["quantizer"] for o in own[:4]] == ["n2", "n4", "n12", "n16"]
        assert [o["levels"] for o in own[:4]] == [2, 4, 12, 16]
        assert all(o["damage"] >= 0 for o in own[:4])
        (refined,) = own[4:]  # of the quantizer that n4 has here
        uniform, constrained = (point["tensors"][i] for point in document["points"][1:])
        assert refined["quantizer"] == f"e{uniform['levels']}"
        assert refined["levels"] == constrained["levels"]
        assert refined["bits_per_image"] == pytest.approx(constrained["bits_per_element"] * 512)
        assert constrained["bits_per_element"] <= uniform["bits_per_element"]


def test_errors_pass_through(model, tmp_path):
    write_images(tmp_path / "images", 2)
    for arguments, message in (
        ((), "--cut is missing.* auto .*`splitwire plan"),
        (("--cut", "layer7"), "nearest: layer2, layer1"),
        (("--cut", "layer1", "--levels", "2;4"), "--levels takes numbers"),
        (("--cut", "layer1", "--levels", "2,e1"), r"levels must be different numbers .* are \[2, 'e1'\]"),
        (("--cut", "layer1", "--levels", "2,a1"), r"levels must be different numbers .* are \[2, 'a1'\]"),
        (("--cut", "layer1", "--image-size", "99"), r"not \(1, 3, 99, 99\)"),
    ):
        result = invoke(model, "--data", tmp_path / "images", "--out", tmp_path / "out", *arguments)
        with pytest.raises(UsageError, match=message):
            raise result.exception
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_name_from_the_catalogue(catalogue, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", 4)
    result = splitwire.export("small", cut="layer1.0", calibration="images", levels=(4,))
    assert result.front == Path("small-layer1.0") / "front.onnx"
    assert result.profile.model == "small"
    assert result.profile.labels == ("a",) * 10
    assert result.profile.preprocessing == Preprocessing(crop=(24, 24), resize=28)
    assert result.profile.tensors[0].shape == (8, 12, 12)
    assert "random weights" in result.notes
    smaller = splitwire.export("small", cut="layer1", calibration="images", levels=(4,), input_shape=(1, 3, 12, 12))
    assert smaller.profile.preprocessing == Preprocessing(crop=(12, 12), resize=14)
    with pytest.raises(UsageError, match="nearest: small"):
        splitwire.export("smaal", cut="layer1", calibration="images")


def test_weights_go_with_a_name(model):
    with pytest.raises(UsageError, match="weights go with a network's name"):
        splitwire.export(model, cut="layer1", calibration=inputs(2), weights="w.pth")


def test_a_path_is_not_a_name(tmp_path):
    with pytest.raises(UsageError, match="no such ONNX file"):
        splitwire.export(str(tmp_path / "net"), cut="layer1", calibration=inputs(2))
    with pytest.raises(UsageError, match="no such ONNX file"):
        splitwire.export("resnet18.onnx", cut="layer1", calibration=inputs(2))


LONG = [f"Stateful/block{i}/expand_activation/Relu6;Stateful/efficientnet_lite0/block{i}/bn" for i in range(4)]


def test_a_folder_that_nobody_named_is_short_and_its_own():
    short = exporting._default_folder("resnet18", "layer1.0.relu[1]")
    assert short == "resnet18-layer1.0.relu_1"
    cuts = [",".join(LONG), ",".join([*LONG[:3], "other"]), ",".join(LONG).replace(";", "/"), "é" * 300, ";" * 300]
    folders = [exporting._default_folder("net", cut) for cut in cuts]
    assert len(set(folders)) == len(cuts)
    assert folders == [exporting._default_folder("net", cut) for cut in cuts]
    assert all(len(folder.encode()) <= 100 for folder in folders)
    assert folders[0].startswith("net-Stateful_block0_expand_activation_Relu6_")


def test_long_names_without_out(tmp_path, monkeypatch, model):
    """The names of the cut's tensors together are longer than a folder's name may be."""
    monkeypatch.chdir(tmp_path)
    whole = onnx.load(model)
    old = next(n.output[0] for n in whole.graph.node if n.op_type == "Relu")
    for node in whole.graph.node:
        for names in (node.input, node.output):
            names[:] = ["x/" * 150 + "relu" if name == old else name for name in names]
    del whole.graph.value_info[:]
    onnx.save(whole, "long.onnx")
    result = splitwire.export("long.onnx", cut="x/" * 150 + "relu", calibration=inputs(4), levels=(2,))
    assert result.front.is_file() and result.front.parent.parent == Path()
    assert len(result.front.parent.name) <= 100


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("o" * 300, f"'{'o' * 60}…' has a name of 300 bytes, the file system takes 255"),
        (f"new/{'é' * 150}/deeper", "has a name of 300 bytes, the file system takes 255"),
        ("a/" * 3000, "is a path of"),
        ("zero\0byte", "has a zero byte in its name"),
    ],
)
def test_a_folder_that_cannot_be(tmp_path, monkeypatch, model, out, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as e:
        splitwire.export(model, cut="layer1", calibration=inputs(4), levels=(2,), out=out)
    assert said in str(e.value) and "name another folder for front.onnx and back.onnx" in str(e.value)
    assert len(str(e.value)) < 250
    assert not list(tmp_path.iterdir())


def test_what_is_said_of_pictures_lies_over_a_named_networks_own(catalogue):
    own = resized(Preprocessing(crop=(24, 24), resize=28), (16, 16))
    given = find_network("small", None, preprocessing=splitwire.PictureOptions(exif=True, crop=16), input_shape=None)
    assert given.preprocessing == msgspec.structs.replace(own, exif=True)
    assert given.input_shape == (1, 3, 16, 16)
    sized = find_network("small", None, preprocessing=None, input_shape=None, image_size=(20, 24))
    assert sized.input_shape == (1, 3, 20, 24)
    with pytest.raises(UsageError, match="the crop is 16×16, the network takes 24×24 pixels"):
        options = splitwire.PictureOptions(crop=16)
        find_network("small", None, preprocessing=options, input_shape=None, image_size=(24, 24))
