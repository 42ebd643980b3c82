"""`splitwire models`: the list, one network, every name; as text and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest
from typer.testing import CliRunner

from splitwire.cli import app
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.models import figures
from splitwire.models.recipes import RECIPES


def invoke(*arguments: str):
    result = CliRunner().invoke(app, ["models", *arguments])
    if result.exception is not None:
        raise result.exception
    return result


@pytest.fixture
def measured(monkeypatch):
    cut = figures.CutFigures(
        cut="layer2", tensors=("a", "b"), shapes=((128, 28, 28), (7,)), elements=100_359,
        edge_macs_share=0.514, edge_parameters_share=0.06, bits_per_element=None,
    )  # fmt: skip
    other = msgspec.structs.replace(
        cut, cut="x[0], y", tensors=("x",), shapes=((5,),), elements=5, bits_per_element=0.7
    )
    monkeypatch.setattr(figures, "read", lambda: {"resnet18": (cut, other)})


def test_list():
    text = invoke().stdout
    for name in RECIPES:
        assert name in text
    assert "maxpool, layer1" in text


def test_one_network(monkeypatch):
    monkeypatch.setattr(figures, "read", dict)
    text = invoke("deeplabv3_resnet50").stdout
    assert "520x520 pixels; shorter side resized to 520 (bilinear), centre crop, normalised" in text
    assert "39,638,869 parameters, 168.73 GMAC" in text
    assert "cuts     backbone.maxpool, backbone.layer1, " in text
    text = invoke("ssd300_vgg16").stdout
    assert "300x300 pixels; the whole image resized to 300x300 (bilinear), values in [0, 1]" in text
    assert "fashion_squeezenet1_1, classification" in invoke("demo").stdout


def test_measured_cuts(measured):
    lines = [line.split() for line in invoke("resnet18").stdout.splitlines()]
    assert ["layer1", "–", "–", "–", "–"] in lines
    assert ["layer2", "128×28×28,", "7", "100,359", "51%", "–"] in lines
    assert ["x[0],", "y", "5", "5", "51%", "0.700"] in lines
    found = json.loads(invoke("resnet18", "--json").stdout)["cuts"]
    assert [c["layer"] for c in found] == ["maxpool", "layer1", "layer2", "layer3", "layer4", "x[0], y"]
    assert found[0]["figures"] is None
    assert found[2]["figures"]["elements"] == 100_359


def test_json_holds_what_the_edge_needs():
    listed = json.loads(invoke("--json").stdout)
    assert [entry["name"] for entry in listed] == list(RECIPES)
    for entry in listed:
        p = msgspec.convert(entry["preprocessing"], Preprocessing)
        assert p == RECIPES[entry["name"]].preprocessing
        assert entry["input_shape"] == [1, 3, *p.crop]
        assert entry["parameters"] > 0


def test_a_network_without_a_recipe():
    text = invoke("densenet121").stdout
    assert "7,978,856 parameters, 2.83 GMAC" in text
    assert "none suggested" in text
    found = json.loads(invoke("fcos_resnet50_fpn", "--json").stdout)
    assert (found["task"], found["cuts"], found["macs"]) == ("detection", [], None)
    assert found["input_shape"] == [1, 3, 640, 640]


def test_every_name():
    listed = json.loads(invoke("--all", "--json").stdout)
    assert listed == invoke("--all").stdout.split()
    assert set(RECIPES) < set(listed)
    assert {"demo", "alexnet", "fcos_resnet50_fpn", "lraspp_mobilenet_v3_large"} < set(listed)


def test_wrong_use():
    with pytest.raises(UsageError, match="unknown model 'resnet19'; nearest: resnet1"):
        invoke("resnet19")
    with pytest.raises(UsageError, match="r3d_18 takes video clips"):
        invoke("r3d_18")
    with pytest.raises(UsageError, match="--all lists every network"):
        invoke("resnet18", "--all")


def test_the_list_loads_nothing_heavy():
    code = (
        "import sys; from splitwire.commands.models import models as m; m(None, False, False); m('vgg16', False, True);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'onnx', 'onnxruntime', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0
