"""Device profiles: the file, the probes that the edge carries, and measuring."""

from __future__ import annotations

import json
import math

import make_probes
import msgspec
import pytest
import typer
from runtime_helpers import Pair
from typer.testing import CliRunner

from splitwire.codec.errors import DeviceError, UsageError
from splitwire.codec.shared.device import DeviceProfile
from splitwire.commands.edge import command as edge
from splitwire.exporter.network.source import from_file
from splitwire.exporter.planning.costs import measure_costs
from splitwire.exporter.planning.devices import ESTIMATES, find_device
from splitwire.runtime_edge import device

MAX_PROBE_BYTES = 10_000


@pytest.fixture(scope="module")
def measured(pair: Pair) -> DeviceProfile:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "SECONDS", 0.01)
        return device.measure_device(name="here", threads=1, fronts=[pair.front])


def test_the_committed_probes_are_what_the_script_makes():
    graphs = make_probes.probes()
    assert {p.name for p in make_probes.FOLDER.glob("*.onnx")} == set(graphs)
    assert {name.removesuffix(".onnx") for name in graphs} == set(device.PROBES)
    for name, model in graphs.items():
        data = (make_probes.FOLDER / name).read_bytes()
        assert data == model.SerializeToString(deterministic=True)
        assert len(data) < MAX_PROBE_BYTES


@pytest.mark.parametrize(
    ("probe", "macs"),
    [*device.CONVOLUTIONS.items(), ("conv_depthwise", device.DEPTHWISE_MACS), ("matmul", device.MATMUL_MACS)],
)
def test_the_work_of_each_probe_is_what_the_planner_counts(probe, macs):
    costs = measure_costs(from_file(make_probes.FOLDER / f"{probe}.onnx"))
    assert costs.macs == macs
    works = {"depthwise"} if "depthwise" in probe else {"matmul"} if probe == "matmul" else {"conv"}
    assert {n.work for n in costs.nodes if n.macs} == works


def test_measuring(measured):
    assert (measured.source, measured.name) == ("measured", "here")
    rates = [getattr(measured, f) for f in measured.__struct_fields__]
    assert all(math.isfinite(r) and r > 0 for r in rates if isinstance(r, float))
    # dense work is faster than depthwise, and any machine that runs this does a hundred million a second
    assert measured.conv_macs > 1e8
    assert "ONNX Runtime" in measured.note


def test_a_front_that_is_measured(measured):
    (cut,) = measured.measured_cuts
    assert (cut.model, cut.cut, cut.input_shape, cut.shapes) == ("tiny-0", "relu", (3, 8, 8), ((4, 8, 8),))
    assert 0 < cut.front_ms < 1000
    assert cut.provider == "CPUExecutionProvider"


def test_a_profile_without_fronts_has_no_such_field():
    """A release that does not know the field reads the file."""
    assert b"cuts" not in msgspec.json.encode(ESTIMATES["x86-core"])
    assert ESTIMATES["x86-core"].measured_cuts == ()


def test_measuring_says_what_it_cannot(monkeypatch):
    with pytest.raises(UsageError, match="threads must be from 1 to"):
        device.measure_device(threads=0)
    with pytest.raises(UsageError, match="no such file"):
        device.measure_device(fronts=["/no/such/front.onnx"])
    with pytest.raises(DeviceError, match=r"'NoSuchProvider' is not here; this ONNX Runtime has .*CPU"):
        device.measure_device(providers=["NoSuchProvider"])


def test_the_file_comes_back(measured, tmp_path):
    path = tmp_path / "device.json"
    measured.save(path)
    assert DeviceProfile.load(path) == measured == find_device(path) == find_device(measured)
    assert [p.name for p in tmp_path.iterdir()] == ["device.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conv_macs": 0}, "Expected `float` > 0.0"),
        ({"conv_macs": -1.0}, "Expected `float` > 0.0"),
        ({"gpu": True}, "unknown field `gpu`"),
        ({"source": "guess"}, "Invalid enum value 'guess'"),
        ({"format": 2}, "format 2 is not 1; update splitwire"),
        ({"name": None}, "Expected `str`"),
        ({"node_overhead_us": "3"}, "Expected `float`"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, change, said):
    path = tmp_path / "device.json"
    document = msgspec.to_builtins(ESTIMATES["x86-core"]) | change
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError) as caught:
        find_device(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: not a device profile: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "[]", "no", '{"name": "x"}', "{" * 9])
def test_what_is_no_profile_at_all(tmp_path, text):
    path = tmp_path / "device.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="not a device profile"):
        DeviceProfile.load(path)


def test_missing_or_huge_file(tmp_path):
    with pytest.raises(UsageError, match="no such device profile"):
        find_device(str(tmp_path / "none.json"))
    huge = tmp_path / "huge.json"
    huge.write_bytes(b" " * (2 << 20))
    with pytest.raises(UsageError, match="too many"):
        find_device(huge)


def test_estimates_say_that_they_are():
    for name, profile in ESTIMATES.items():
        assert (profile.name, profile.source) == (name, "estimate")
        assert profile.note
        assert DeviceProfile.from_json(msgspec.json.encode(profile), name) == profile
    speeds = [ESTIMATES[n].conv_macs for n in ("raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "server-gpu")]
    assert speeds == sorted(speeds)


def test_unknown_device():
    with pytest.raises(UsageError, match=r"'raspberry-pi4' \(did you mean raspberry-pi-4\?\); there are"):
        find_device("raspberry-pi4")


app = typer.Typer(pretty_exceptions_enable=False)
app.command()(edge.profile)


@pytest.fixture
def quick(monkeypatch, measured):
    monkeypatch.setattr(device, "measure_device", lambda **options: msgspec.structs.replace(measured, name="here"))


def test_command(quick, tmp_path):
    path = tmp_path / "device.json"
    result = CliRunner().invoke(app, ["--out", str(path)])
    assert result.exit_code == 0, result.output
    assert "GMAC/s" in result.stdout
    assert "front of tiny-0 to relu" in result.stdout
    assert f"{path}  here" in result.stdout
    assert DeviceProfile.load(path).name == "here"


def test_command_json(quick, tmp_path):
    path = tmp_path / "device.json"
    result = CliRunner().invoke(app, ["--out", str(path), "--json"])
    assert DeviceProfile.from_json(result.stdout, "stdout") == DeviceProfile.load(path)


def test_command_looks_at_the_folder_first(tmp_path):
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "none/device.json")])
    assert isinstance(result.exception, UsageError)
    assert "there is no folder" in str(result.exception)
