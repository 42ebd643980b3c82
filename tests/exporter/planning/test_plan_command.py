"""`splitwire plan` and `splitwire.plan`: the table, the plot, the JSON, and what is refused."""

from __future__ import annotations

import json
import sys

import pytest
import typer
from exporter_helpers import SHAPE, inputs, network, write_images
from PIL import Image
from typer.testing import CliRunner

import splitwire
from splitwire.codec.errors import UsageError
from splitwire.commands.plan.command import plan as command
from splitwire.exporter.planning import quick

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(command)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Plots without a name go to the working folder."""
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_table_and_plot(model, tmp_path):
    result = invoke(model, "--link", "5mbit", "--rtt", "40ms", "--device", "raspberry-pi-4", "--images", 4)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("net, input 3×16×16: 0.00 GMAC")
    assert "device: raspberry-pi-4, an estimate" in result.stdout
    assert "link: 5 Mbit/s, round trip 40 ms" in result.stdout
    assert "quick calibration on 4 synthetic pictures" in result.stdout
    assert "weights: as in the file" in result.stdout
    assert "note: the bytes are those of synthetic pictures; pass your own with --data" in result.stderr
    heads = next(line.split() for line in lines if line.split()[:2] == ["cut", "tensor"])
    assert heads == ["cut", "tensor", "MAC", "par", "front", "N=2", "N=4", "N=8", "down", "link", "back", "total", "mJ"]
    table = [line for line in lines if "8×8×8" in line or "on the device " in line or "JPEG, q" in line]
    assert max(map(len, table)) <= 100
    rows = {line.split()[0]: line.split()[1:] for line in table}
    assert len(rows["layer1"]) == len(heads) - 1
    starred = [line for line in table if " * " in line]
    assert len(starred) == 1
    assert starred[0].split()[0] in ("all", "JPEG,", "layer1", "mul")
    assert "advice: splitting does not pay here; whole network on the device" in result.stdout
    assert "by least time end to end for one image; cuts at N = 4 levels" in result.stdout
    with Image.open(tmp_path / "net-plan.png") as plot:
        assert plot.width >= 1000
    assert "plot: net-plan.png" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["net-plan.png"]


def test_json(model, tmp_path):
    result = invoke(model, "--link", "5mbit", "--images", 4, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["recommended"]["kind"] == "device"
    assert said["synthetic_pictures"] is True
    assert said["link"] == {"bits_per_second": 5e6, "rtt_ms": 20.0}
    assert (said["device"]["name"], said["device"]["source"]) == ("raspberry-pi-5", "estimate")
    assert {len(c["rates"]) for c in said["cuts"]} <= {0, 3}
    best = next(c for c in said["cuts"] if c["label"] == said["best_cut"])
    totals = [c["end_to_end"]["total_ms"] for c in said["cuts"] if c["end_to_end"]]
    assert best["end_to_end"]["total_ms"] == min(totals)
    assert said["jpeg"]["sent_bytes"] == said["jpeg"]["bytes"] + 140 == said["jpeg_bytes"] + 140
    assert list(tmp_path.iterdir()) == []  # no plot without --plot


def test_images_of_the_user_and_svg(model, tmp_path):
    write_images(tmp_path / "images", 6)
    (tmp_path / "images/class0/000.png").write_text("no image")
    result = invoke(model, "--data", tmp_path / "images", "--plot", tmp_path / "p.svg")
    assert result.exit_code == 0, result.output
    assert f"quick calibration on 5 images of {tmp_path / 'images'}" in result.stdout
    assert "note: 1 image(s) could not be read and were skipped" in result.stderr
    assert "synthetic" not in result.output
    assert "link: none" in result.stdout
    assert "no link, so nothing can be sent" in result.stdout
    assert "<svg" in (tmp_path / "p.svg").read_text()[:1000]


def test_no_plot(model, tmp_path):
    assert invoke(model, "--no-plot", "--images", 2).exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib(model, tmp_path, monkeypatch):
    """The table comes all the same; who asked for a plot by name hears of it before the work."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "splitwire.commands.plan.plot", raising=False)
    result = invoke(model, "--images", 2)
    assert result.exit_code == 0, result.output
    assert "pip install 'splitwire[demo]'" in result.stderr
    assert "advice:" in result.stdout
    named = invoke("no-such-network", "--plot", tmp_path / "p.png")
    assert isinstance(named.exception, ModuleNotFoundError)  # cli.main makes one line of it
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_random_weights_and_synthetic_pictures_are_called_so(monkeypatch):
    monkeypatch.setattr(quick, "MAX_CHANNELS", 4)  # for speed
    result = splitwire.plan(
        "squeezenet1_1", input_shape=(1, 3, 64, 64), images=2, link="1gbit", device="raspberry-pi-4"
    )
    assert (result.weights, result.synthetic) == ("random", True)
    assert any("random network" in note for note in result.notes)
    assert any("synthetic" in note for note in result.notes)
    assert result.plan.recommended.kind == "device"  # 20 ms of round trip are more than this network takes
    assert result.input_shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rtt", "40ms"], "without a link; say its bandwidth"),
        (["--link", "5MB"], "written like 250kbit, 5mbit, 1gbit"),
        (["--link", "5mbit", "--rtt", "40"], "written like 40ms"),
        (["--device", "toaster"], "unknown device 'toaster'; there are estimates for raspberry-pi-4"),
        (["--cloud", "none.json"], "no such device profile"),
        (["--plot", "plan.pdf"], "--plot writes .png or .svg, not 'plan.pdf'"),
        (["--plot", "none/plan.png"], "there is no folder none"),
        (["--data", "none"], "no such folder"),
        (["--weights", "DEFAULT"], "weights go with a network's name"),
    ],
)
def test_what_is_refused(model, tmp_path, options, said):
    result = invoke(model, *options)
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_module_takes_its_shape_from_an_array_of_data(monkeypatch):
    monkeypatch.setattr(quick, "MAX_CHANNELS", 4)  # for speed
    result = splitwire.plan(network(), data=inputs(2), images=2)
    assert result.input_shape == (1, *SHAPE)
    assert (result.pictures, result.synthetic) == ("2 images", False)


def test_a_module_needs_its_shape():
    with pytest.raises(UsageError, match="pass input_shape"):
        splitwire.plan(network())
    with pytest.raises(UsageError, match="at least 1"):
        splitwire.plan(network(), images=0)
