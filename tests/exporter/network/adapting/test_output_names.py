"""`--outputs` and the names that outputs have."""

from __future__ import annotations

import json

import pytest
from exporter_helpers import write_images
from onnx_helpers import N, network, save, value
from typer.testing import CliRunner

from splitwire.cli import app
from splitwire.codec.errors import UsageError
from splitwire.exporter.network.source import from_file


@pytest.mark.parametrize("command", ["plan", "export"])
def test_outputs_whose_names_hold_commas(tmp_path, command):
    """Each is first tried as one whole name, and the option may be repeated."""
    kinds = {"u,v": "Neg", "v": "Abs", "w": "Exp", "boxes,,all": "Sqrt"}
    nodes = [N(kind, ["y"], [name]) for name, kind in kinds.items()]
    path = save(network(nodes, [value(k, ["n", 6]) for k in ("y", *kinds)]), tmp_path / "net.onnx")
    for given, kept in {
        ("u,v",): ["u,v"], ("v,u,v",): ["u,v", "v"], ("boxes,,all,w",): ["w", "boxes,,all"], ("w", "u,v"): ["u,v", "w"],
    }.items():  # fmt: skip
        assert [v.name for v in from_file(path, outputs=given).graph.outputs] == kept
    with pytest.raises(UsageError, match="has no output 'u'; it has y, u,v, v"):
        from_file(path, outputs="u")
    write_images(tmp_path / "images", 4)
    options = {
        "plan": ["--link", "1mbit", "--no-plot", "--images", "2"],
        "export": ["--cut", "r", "--data", str(tmp_path / "images"), "--levels", "2", "--out", str(tmp_path / "pair")],
    }[command]
    done = CliRunner().invoke(app, [command, str(path), *options, "--outputs", "u,v", "--outputs", "w", "--json"])
    assert (done.exit_code, done.exception) == (0, None)
    if command == "plan":
        assert [o["name"] for o in json.loads(done.stdout)["outputs"]] == ["u,v", "w"]
