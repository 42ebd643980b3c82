"""Optimised graphs in the cache folder: the same outputs, found again, written anew where they are damaged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from splitwire.codec.errors import ProfileError
from splitwire.codec.shared.cache import write_checked
from splitwire.runtime_edge.engine import CPU, optimised
from splitwire.runtime_edge.engine.opening import open_on
from splitwire.runtime_edge.engine.optimised import OptimisedGraph, processor

SHAPE = (1, 8, 12, 12)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITWIRE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "graphs"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Two convolutions with normalisation, 295 kB: the optimiser fuses them. With metadata."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(0, 0.2, (64, 8, 3, 3)), "v": rng.normal(0, 0.05, (120, 64, 3, 3)),
        **{name: np.abs(rng.normal(1, 0.1, 64)) for name in ("scale", "bias", "mean", "var")},
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "v"], ["y"], pads=[1] * 4),
    ]
    values = [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 120, 12, 12))]
    made = helper.make_graph(nodes, "g", inputs, outputs, values)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"who": "ours"})
    path = tmp_path / "graph.onnx"
    onnx.save(model, str(path))
    assert path.stat().st_size > optimised.MIN_BYTES
    return path


def run(session: ort.InferenceSession) -> bytes:
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    (y,) = session.run(None, {"x": x})
    return bytes(y.tobytes())


def opened(graph: Path) -> ort.InferenceSession:
    return open_on(graph, [CPU], 1)


def nodes(session: ort.InferenceSession) -> int:
    return int(session.get_session_options().graph_optimization_level.value)


def test_the_second_time_nothing_is_optimised(graph: Path, cache: Path):
    """The same bits and metadata; the level of the second session shows where it came from."""
    plain = ort.InferenceSession(str(graph), providers=[CPU])
    first = opened(graph)
    (kept,) = cache.iterdir()
    second = opened(graph)
    off, full = ort.GraphOptimizationLevel.ORT_DISABLE_ALL.value, ort.GraphOptimizationLevel.ORT_ENABLE_ALL.value
    assert (nodes(first), nodes(second)) == (full, off)
    assert run(first) == run(second) == run(plain)
    assert second.get_modelmeta().custom_metadata_map == {"who": "ours"}
    assert [p.name for p in cache.iterdir()] == [kept.name]
    fused = onnx.load_model_from_string(kept.read_bytes()[32:])
    assert len(fused.graph.node) < 4


@pytest.mark.parametrize("how", ["cut short", "a changed byte", "empty", "whole, but no graph", "written by all"])
def test_a_damaged_file_is_written_anew(graph: Path, cache: Path, how: str):
    expected = run(opened(graph))
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    middle = len(whole) // 2
    if how == "written by all":
        if os.name == "nt":
            pytest.skip("no such permissions")
        kept.chmod(0o666)
    elif how == "whole, but no graph":
        write_checked(kept, b"no graph")
    else:
        changed = {"cut short": whole[:middle], "empty": b""}
        kept.write_bytes(changed.get(how, whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]))
    assert run(opened(graph)) == expected
    assert kept.read_bytes() == whole
    assert not kept.stat().st_mode & 0o002
    assert [p.name for p in cache.iterdir()] == [kept.name]


def test_another_file_version_option_or_processor_is_another_graph(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def name(version: str = "1.32.0", options: str = "") -> str:
        file = OptimisedGraph(graph, version=version, options=options, root=tmp_path).file
        assert file is not None
        return file.name

    names = [name(), name(version="1.31.0"), name(options="exact int8")]
    monkeypatch.setattr(optimised, "processor", lambda: "another")
    names.append(name())
    graph.write_bytes(graph.read_bytes() + b"\0")
    names.append(name())
    assert len(set(names)) == 5


def test_the_processor_by_its_instruction_sets(tmp_path: Path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nBogoMIPS\t: 1\nFeatures\t: fp asimd\nCPU part\t: 0xd0b\n")
    slow = processor(info)
    info.write_text("processor\t: 1\nBogoMIPS\t: 2\nFeatures\t: fp asimd\nCPU part\t: 0xd0b\n")
    assert processor(info) == slow
    info.write_text("processor\t: 0\nFeatures\t: fp asimd sve\nCPU part\t: 0xd0b\n")
    assert processor(info) != slow
    assert processor(tmp_path / "none")


def test_a_folder_that_cannot_be_written_is_no_error(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPLITWIRE_CACHE_DIR", str(tmp_path / "file"))
    assert run(opened(graph))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_no_error(graph: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, body: bytes) -> None:
        with Path("/dev/full").open("wb") as file:
            file.write(body)

    monkeypatch.setattr(optimised, "write_checked", full)
    assert run(opened(graph))
    assert list(cache.iterdir()) == []


def test_a_small_or_huge_graph_is_not_kept(graph: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optimised, "MAX_BYTES", 1000)
    opened(graph)
    monkeypatch.setattr(optimised, "MIN_BYTES", 1 << 30)
    opened(graph)
    assert not cache.exists()


def test_the_newest_graphs_stay(graph: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optimised, "KEPT", 2)
    cache.mkdir(parents=True)
    for i in range(3):
        (cache / f"{i}.onnx").touch()
        os.utime(cache / f"{i}.onnx", (i, i))
    opened(graph)
    names = {p.name for p in cache.iterdir()}
    assert len(names) == 2
    assert "2.onnx" in names


def test_a_file_that_is_no_graph_is_still_said_so(tmp_path: Path, cache: Path):
    path = tmp_path / "no.onnx"
    path.write_bytes(bytes(optimised.MIN_BYTES))
    with pytest.raises(ProfileError, match=r"no\.onnx is not a graph that ONNX Runtime can open"):
        opened(path)
    assert not cache.exists() or list(cache.iterdir()) == []
