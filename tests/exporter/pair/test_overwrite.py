"""A pair of another network in the output folder stays, unless replacing it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import splitwire
from splitwire.codec.errors import UsageError
from splitwire.exporter.pair.result import ExportResult

INPUTS = np.random.default_rng(1).standard_normal((6, 3, 8, 8)).astype(np.float32)


def network(path: Path, *, seed: int = 0) -> Path:
    """Conv → a → relu → b → mean → y."""
    weights = np.random.default_rng(seed).standard_normal((4, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def export(model: Path, out: Path, **options: Any) -> ExportResult:
    defaults: dict[str, Any] = {"cut": "b", "calibration": INPUTS, "out": out, "levels": (2,)}
    return splitwire.export(model, **defaults | options)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pair of net.onnx at b, and the network beside it."""
    folder = tmp_path_factory.mktemp("held")
    export(network(folder / "net.onnx"), folder / "pair")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "cut", "message"),
    [
        (
            "other.onnx",
            "b",
            r"pair holds net cut after b, not other cut after b; name another folder with --out, or",
        ),
        ("net.onnx", "a", r"pair holds net cut after b, not net cut after a; "),
    ],
)
def test_another_pair_stays(held: Path, tmp_path: Path, name: str, cut: str, message: str) -> None:
    before = files(held / "pair")
    with pytest.raises(UsageError, match=message):
        export(network(tmp_path / name), held / "pair", cut=cut)
    assert files(held / "pair") == before


def test_the_same_network_replaces_its_own(held: Path) -> None:
    """With other levels, images and labels, at reduced precision and back."""
    for options in ({"levels": (4,), "calibration": INPUTS[:5], "labels": list("abcd")}, {"back": "float16"}, {}):
        made = export(held / "net.onnx", held / "pair", **options)
        assert made.profile.default_op == ("n4" if "levels" in options else "n2")


def test_the_next_version_of_a_network_replaces_the_last(held: Path, tmp_path: Path) -> None:
    """Its weights changed, its name and the cut did not: as after a further training."""
    out = tmp_path / "pair"
    first = export(held / "net.onnx", out)
    second = export(network(tmp_path / "net.onnx", seed=1), out)
    assert second.profile.front_sha256 != first.profile.front_sha256
    assert splitwire.CloudSession(out / "back.onnx").fingerprint == second.profile.fingerprint


def test_asked_for_it_is_replaced(held: Path, tmp_path: Path) -> None:
    out = tmp_path / "pair"
    export(held / "net.onnx", out)
    assert export(network(tmp_path / "other.onnx"), out, overwrite=True).profile.model == "other"


@pytest.mark.parametrize("name", ["front.onnx", "back.onnx"])
def test_a_file_that_is_not_ours_stays(held: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match=rf"{name} was not written by splitwire, or is damaged; name another folder"):
        export(held / "net.onnx", tmp_path)
    assert files(tmp_path) == {name: b"mine"}
