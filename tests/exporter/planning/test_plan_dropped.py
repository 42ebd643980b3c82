"""Plan says which cuts it could not look at and why, and what comes down the link."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from splitwire.cli import app
from splitwire.codec.errors import UsageError
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.network.source import from_file
from splitwire.exporter.planning.devices import ESTIMATES
from splitwire.exporter.planning.links import Link
from splitwire.exporter.planning.plan import plan_cuts, recommend_cut
from splitwire.exporter.planning.replies import come_down, output_bytes

SIDE = 16
INPUT = helper.make_tensor_value_info("x", T.FLOAT, ["n", 3, SIDE, SIDE])


def weights(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.random.default_rng(0).normal(size=shape).astype(np.float32), name)


def save(
    path: Path, nodes: list[onnx.NodeProto], outputs: dict[str, tuple[int, list[str | int]]], *inits: onnx.TensorProto
) -> Path:
    infos = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()]
    graph = helper.make_graph(nodes, "g", [INPUT], infos, list(inits))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def integers(folder: Path) -> Path:
    """Every tensor between input and output holds int32."""
    nodes = [node("Cast", "x", "xi", to=T.INT32), node("Abs", "xi", "a"), node("Neg", "a", "b")]
    nodes += [node("Cast", "b", "y", to=T.FLOAT)]
    return save(folder / "integers.onnx", nodes, {"y": (T.FLOAT, ["n", 3, SIDE, SIDE])})


def some(folder: Path) -> Path:
    """One cut that the codec can carry, one of four axes after the batch, one of integers."""
    nodes = [node("Conv", "x w", "f"), node("Relu", "f", "r"), node("Unsqueeze", "r axes", "five")]
    nodes += [node("Cast", "five", "whole", to=T.INT32), node("Cast", "whole", "back", to=T.FLOAT)]
    nodes += [node("Squeeze", "back axes", "four"), node("GlobalAveragePool", "four", "m"), node("Flatten", "m", "y")]
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    return save(folder / "some.onnx", nodes, {"y": (T.FLOAT, ["n", 6])}, weights("w", 6, 3, 3, 3), axes)


def dense(folder: Path, *, classes: bool = True) -> Path:
    """A small classification made early, and a dense output made late: 21 × 16 × 16, of int64 the classes too."""
    nodes = [node("Conv", "x w", "f", strides=[4, 4], pads=[1, 1, 1, 1]), node("Relu", "f", "r")]
    nodes += [node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "classes")]
    nodes += [node("Resize", "r  scales", "u"), node("Conv", "u v", "map"), node("ArgMax", "map", "best", axis=1)]
    nodes[4].input[:] = ["r", "", "scales"]
    outputs: dict[str, tuple[int, list[str | int]]] = {
        "classes": (T.FLOAT, ["n", 6]), "map": (T.FLOAT, ["n", 21, SIDE, SIDE]), "best": (T.INT64, ["n", 1, SIDE, SIDE])
    }  # fmt: skip
    if not classes:
        del outputs["classes"], nodes[2:4]
    scales = numpy_helper.from_array(np.array([1, 1, 4, 4], np.float32), "scales")
    return save(folder / "dense.onnx", nodes, outputs, weights("w", 6, 3, 3, 3), weights("v", 21, 6, 1, 1), scales)


def nothing(folder: Path) -> Path:
    """No single tensor separates: the input is read at the end too."""
    nodes = [node("GlobalAveragePool", "x", "m"), node("Mul", "m x", "y")]
    return save(folder / "nothing.onnx", nodes, {"y": (T.FLOAT, ["n", 3, SIDE, SIDE])})


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments), "--images", "2", "--no-plot"])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_where_every_cut_was_dropped_it_says_so_and_why(tmp_path: Path) -> None:
    shown = invoke(integers(tmp_path), "--link", "5mbit")
    (advice,) = (line for line in shown.splitlines() if line.startswith("advice: "))
    assert "splitting does not pay" not in shown
    assert advice.startswith(
        "advice: splitting could not be judged, since every tensor that separates the network was dropped: 3 cuts not"
        " looked at (xi, a, b): holds int32; the codec carries float32; what is left: whole network on the device: "
    )
    rows = [line.split() for line in shown.splitlines() if line.startswith((" cut", " JPEG"))]
    head, jpeg = rows[0], rows[1]
    assert head[5:8] == ["up", "down", "link"]
    assert jpeg[7] == "3.1"  # down: 4 · 3 · 16 · 16 bytes, after the JPEG's own


@pytest.mark.parametrize(("make", "why"), [
    (integers, "every tensor that separates the network was dropped: 3 cuts not looked at (xi, a, b): holds int32"),
    (nothing, "no single tensor separates this network"),
])  # fmt: skip
def test_without_a_link_it_says_so_too(tmp_path: Path, make: Callable[[Path], Path], why: str) -> None:
    path = make(tmp_path)
    (advice,) = (line for line in invoke(path).splitlines() if line.startswith("advice: "))
    assert advice.startswith(f"advice: splitting could not be judged, since {why}")
    assert advice.endswith("; what is left: the whole network on the device")
    said = json.loads(invoke(path, "--json"))
    assert f"advice: {said['advice']}" == advice
    assert [c["label"] for g in said["dropped"] for c in g["cuts"]] == (["xi", "a", "b"] if make is integers else [])
    assert "no link, so nothing can be sent" in json.loads(invoke(some(tmp_path), "--json"))["advice"]


def test_json_has_the_reason_of_each(tmp_path: Path) -> None:
    said = json.loads(invoke(some(tmp_path), "--link", "5mbit", "--json"))
    assert {c["label"] for c in said["cuts"]} >= {"f", "r"}
    reasons = {g["reason"]: {c["label"]: c["reason"] for c in g["cuts"]} for g in said["dropped"]}
    types, many = "holds int32; the codec carries float32", "the codec carries the batch and 1 to 3 axes after it"
    assert set(reasons) == {types, many}
    assert set(reasons[types]) == {"whole"}
    axes = reasons[many]
    assert set(axes) == {"five", "back"}
    assert axes["five"].startswith("has the shape [n,1,6,14,14]; ")
    assert f"2 cuts not looked at (five, back): {many}" in said["notes"]
    assert "could not be judged" not in said["advice"]


def test_where_no_single_tensor_separates(tmp_path: Path) -> None:
    said = json.loads(invoke(nothing(tmp_path), "--link", "5mbit", "--json"))
    assert said["dropped"] == said["cuts"] == []
    assert said["advice"].startswith(
        "splitting could not be judged, since no single tensor separates this network (--max-tensors 2 looks at larger"
    )


def test_auto_says_why_there_is_none(tmp_path: Path) -> None:
    source = from_file(integers(tmp_path), None)
    inputs = [np.zeros((3, SIDE, SIDE), np.float32)]
    with pytest.raises(UsageError, match=r"no cut can be chosen automatically: .*\(xi, a, b\): holds int32") as raised:
        recommend_cut(source, Names.of(source), inputs)
    assert "what is left" not in str(raised.value)


def test_what_comes_down_is_counted_by_output(tmp_path: Path) -> None:
    source = from_file(dense(tmp_path), None)
    outputs = {o.name: o for o in output_bytes(source)}
    assert {name: o.bytes for name, o in outputs.items()} == {
        "classes": 4 * 6, "map": 4 * 21 * SIDE * SIDE, "best": 8 * SIDE * SIDE
    }  # fmt: skip
    assert str(outputs["map"]) == "'map' (21×16×16, float32)"
    assert [o.name for o in come_down(list(outputs.values()))] == ["classes", "map", "best"]


def test_the_table_shows_what_comes_down_and_names_the_output_that_costs_most(tmp_path: Path) -> None:
    path = dense(tmp_path)
    shown = invoke(path, "--link", "5mbit", "--rtt", "10ms")
    assert "down the link: 23.6 KB per image where the back makes all outputs; output 'map' (21×16×16, f" in shown
    said = json.loads(invoke(path, "--link", "5mbit", "--rtt", "10ms", "--json"))
    everything = 4 * 6 + 4 * 21 * SIDE * SIDE + 8 * SIDE * SIDE
    cuts = {c["label"]: c for c in said["cuts"]}
    assert cuts["r"]["down_bytes"] == everything
    assert cuts["u"]["down_bytes"] == everything - 4 * 6  # the front makes the classes
    end = cuts["r"]["end_to_end"]
    assert end["link_ms"] == pytest.approx(10 + 8e3 * (end["sent_bytes"] + everything) / 5e6)
    assert said["jpeg"]["down_bytes"] == everything
    assert [o["bytes"] for o in said["outputs"]] == [24, 21504, 2048]


def test_where_the_reply_is_larger_than_the_frame_the_advice_says_so(tmp_path: Path) -> None:
    source = from_file(dense(tmp_path, classes=False), None)
    slow = msgspec.structs.replace(ESTIMATES["raspberry-pi-4"], conv_macs=1e4)
    inputs = list(np.random.default_rng(0).normal(size=(4, 3, SIDE, SIDE)).astype(np.float32))
    p = plan_cuts(
        source, Names.of(source), inputs,
        link=Link(bits_per_second=1e9, rtt_ms=1.0), device=slow,
    )  # fmt: skip
    assert p.recommended.kind == "cut"
    assert p.recommended.down > 20_000 > p.recommended.sent > p.recommended.bytes
    assert "; more comes down the link than goes up, 2" in p.advice
    assert p.advice.endswith("output 'map' (21×16×16, float32) costs most")
