"""What the doctor has child processes do: they die, hang and lie here, and the doctor says so and what to do."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import ship_vectors
from runtime_helpers import Pair

from splitwire.runtime_edge.doctor import probe
from splitwire.runtime_edge.doctor.checks import Check
from splitwire.runtime_edge.doctor.children import Answer, Children
from splitwire.runtime_edge.doctor.examine import Means, Questions, examine
from splitwire.runtime_edge.doctor.native import check_codec, check_runtime, installed_version, kernel_cache, known_bad
from splitwire.runtime_edge.doctor.places import Places
from splitwire.runtime_edge.doctor.speed import check_frames, check_front, predict

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals")


def children(tmp_path: Path, code: str) -> Children:
    script = tmp_path / "child.py"
    script.write_text(f"import json, os, signal, sys, time\n{code}\n")
    return Children(program=(sys.executable, str(script)))


def printing(tmp_path: Path, **found: Any) -> Children:
    return children(tmp_path, f"print({json.dumps(found)!r})")


def pi4(root: Path) -> Places:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text("CPU part\t: 0xd08\n")
    return Places(root=root, machine="aarch64")


def assert_check(check: Check, verdict: str, text: str, remedy: str) -> None:
    assert check.verdict == verdict, check
    assert re.search(text, check.text), check
    assert remedy in check.remedy, check


@POSIX
@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("os.kill(os.getpid(), signal.SIGILL)", r"it died of an illegal instruction \(SIGILL\)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "it died of the signal SIGSEGV"),
        ("print('no module named x', file=sys.stderr); sys.exit(1)", "no module named x"),
        ("sys.exit(3)", "status 3"),
        ("print('hello')", "something else than its result"),
        ("pass", "something else than its result"),
        ("time.sleep(30)", "did not end within 1 s"),
    ],
)
def test_a_child_that_gives_no_answer(tmp_path: Path, code: str, ended: str):
    answer = children(tmp_path, code).ask("onnxruntime", seconds=1)
    assert answer.found is None
    assert re.search(ended, answer.ended)
    assert answer.illegal is ("SIGILL" in code)


def test_a_child_that_cannot_be_started(tmp_path: Path):
    answer = Children(program=(str(tmp_path / "none"),)).ask("onnxruntime", seconds=5)
    assert "cannot be started" in answer.ended


@POSIX
def test_onnxruntime_that_dies_of_an_illegal_instruction(tmp_path: Path):
    dying = children(tmp_path, "os.kill(os.getpid(), signal.SIGILL)")
    version, imported = check_runtime(pi4(tmp_path), dying, lambda: "1.21.0")
    assert_check(version, "failed", r"1\.21\.0: it dies of an illegal .* Pi 4", "pip install 'onnxruntime!=1.21.0'")
    said = r"ONNX Runtime 1\.21\.0 was tried in a child process: it died of an illegal instruction"
    assert_check(imported, "failed", said, "built for a newer processor; take another version")


def test_known_bad_versions(tmp_path: Path):
    here = pi4(tmp_path)
    assert known_bad("1.21.0", here).verdict == "failed"
    assert known_bad("1.21.1", here).verdict == "ok"
    assert known_bad("1.21.0", Places(root=tmp_path, machine="x86_64")).verdict == "ok"
    (tmp_path / "proc/cpuinfo").write_text("CPU part\t: 0xd0b\n")  # the Cortex-A76 of a Pi 5
    assert known_bad("1.21.0", here).verdict == "ok"


def test_onnxruntime_that_is_not_there_broken_or_wrong(tmp_path: Path):
    (missing,) = check_runtime(Places(root=tmp_path), Children(), lambda: "")
    assert_check(missing, "failed", "not installed", "pip install 'splitwire[edge]'")
    failing = children(tmp_path, "print('libgomp.so.1: not found', file=sys.stderr); sys.exit(1)")
    _, broken = check_runtime(Places(root=tmp_path), failing, lambda: "1.32.0")
    assert_check(broken, "failed", "libgomp.so.1: not found", "--force-reinstall onnxruntime")
    lying = printing(tmp_path, version="1.32.0", providers=["CPUExecutionProvider"], right=False)
    _, wrong, _ = check_runtime(Places(root=tmp_path), lying, lambda: "1.32.0")
    assert_check(wrong, "failed", "adds 1 and 1 to something else", "take another version")


def test_providers(tmp_path: Path):
    """A Jetson with PyPI's wheel does not use its GPU."""
    cpu = printing(tmp_path, version="1.32.0", providers=["AzureExecutionProvider", "CPUExecutionProvider"], right=True)
    *_, providers = check_runtime(Places(root=tmp_path), cpu, lambda: "1.32.0")
    assert_check(providers, "ok", "^offered: CPU$", "")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36\n")
    *_, providers = check_runtime(Places(root=tmp_path), cpu, lambda: "1.32.0")
    assert_check(providers, "warning", "GPU of this Jetson is not used", "NVIDIA's wheel")


def test_this_onnxruntime():
    checks = list(check_runtime(Places(), Children()))
    assert [c.verdict for c in checks] == ["ok"] * 3, checks
    assert installed_version()


# ------------------------------------------------------------------ codec


def test_the_committed_vectors_are_what_the_script_makes():
    assert ship_vectors.FILE.read_bytes() == ship_vectors.document()
    assert set(ship_vectors.SHIPPED.values()) == {1, 2, 3, 4, 5, 6}


@pytest.fixture(scope="module")
def shipped() -> dict[str, dict[str, Any]]:
    return {v["name"]: v for v in msgspec.json.decode(ship_vectors.FILE.read_bytes())}


@pytest.mark.parametrize("name", ship_vectors.SHIPPED)
def test_the_vectors_are_right(shipped: dict[str, dict[str, Any]], name: str):
    assert probe.is_right(shipped[name])


def test_vectors_that_give_other_bits_are_found(shipped: dict[str, dict[str, Any]]):
    """Another feature, another frame, other decoded features, and a frame that is refused."""
    vector, other = shipped["transform-escapes"], shipped["short-n2"]
    changed = {**vector["features"][0], "data": "A" * 8 + vector["features"][0]["data"][8:]}
    assert not probe.is_right({**vector, "features": [changed]})
    assert not probe.is_right({**vector, "frame": other["frame"]})
    assert not probe.is_right({**vector, "frame": "AAAA"})
    assert not probe.is_right({**vector, "decoded": other["decoded"]})


def test_the_child_checks_the_vectors_of_a_front():
    """Those of one coder only; with warm kernels it is quick."""
    vectors, cache = check_codec(Children(), [5])
    assert_check(vectors, "ok", "^1 encoded and decoded to the bit", "")
    assert cache.name == "kernel cache"


def found(**changed: Any) -> dict[str, Any]:
    state = {
        "vectors": 6,
        "wrong": [],
        "folder": "/x",
        "kernels": 50,
        "compiled": 0,
        "kept": True,
        "interpreted": False,
    }
    return {**state, "seconds": 1.0, **changed}


@POSIX
def test_a_codec_that_computes_other_bits_or_dies(tmp_path: Path):
    vectors, _ = check_codec(printing(tmp_path, **found(wrong=["sizes"])), [])
    assert_check(vectors, "failed", "1 of 6 give other bits: sizes", "NUMBA_CPU_NAME=generic")
    (dead,) = check_codec(children(tmp_path, "os.kill(os.getpid(), signal.SIGILL)"), [])
    assert_check(dead, "failed", "illegal instruction", "NUMBA_CPU_NAME=generic")
    (dead,) = check_codec(children(tmp_path, "sys.exit('no llvmlite')"), [])
    assert_check(dead, "failed", "no llvmlite", "--force-reinstall numpy numba llvmlite")


def test_kernel_cache(tmp_path: Path):
    assert_check(kernel_cache(found()), "ok", "^warm: 50 kernels in /x", "")
    cold = kernel_cache(found(compiled=9, folder=str(tmp_path)))
    assert_check(cold, "note", "9 of 50 kernels were missing", "splitwire warmup --front")
    (tmp_path / "file").touch()
    remedy = "set SPLITWIRE_CACHE_DIR"
    assert_check(kernel_cache(found(compiled=9, folder=str(tmp_path / "file"))), "warning", "cannot be kept", remedy)
    assert_check(kernel_cache(found(kept=False)), "warning", "cannot be kept in /x", remedy)
    assert_check(kernel_cache(found(folder="")), "warning", "cannot be kept in any folder", remedy)
    assert_check(
        kernel_cache(found(interpreted=True)), "warning", "NUMBA_DISABLE_JIT is set", "unset NUMBA_DISABLE_JIT"
    )


# ------------------------------------------------------------------ speed


def timed(**changed: Any) -> dict[str, Any]:
    points = [
        {"op": "n4", "bits_per_element": 2.0, "frame_bytes": 1000, "encode_ms": 5.0},
        {"op": "n2", "bits_per_element": 1.0, "frame_bytes": 360, "encode_ms": 5.0},
    ]
    state = {
        "model": "m", "cut": "c", "fingerprint": "ab", "provider": "CPUExecutionProvider", "passed_over": [],
        "batch": 1, "open_s": 0.1, "warm_s": 0.2, "front_ms": 15.0, "points": points,
    }  # fmt: skip
    return {**state, **changed}


def test_frames_per_second():
    """The smaller of what the device makes, 1000 / (15 + 5), and what the link carries."""
    n4, n2 = predict(timed(), 80_000.0)
    assert (n4.device_fps, n2.device_fps) == (50.0, 50.0)
    assert n4.link_fps == pytest.approx(80_000 / (8 * 1140))
    assert n4.fps == n4.link_fps
    assert n2.fps == pytest.approx(20.0)
    assert [p.fps for p in predict(timed(), None)] == [50.0, 50.0]
    assert_check(check_frames([n4, n2]), "ok", r"up to 20\.0 per second, at operating point n2", "")


def test_too_few_frames_per_second():
    by_link = predict(timed(), 1_000.0)
    assert_check(check_frames(by_link), "warning", r"up to 0\.2 per second", "the link limits it")
    by_device = predict(timed(front_ms=5_000.0), None)
    assert_check(check_frames(by_device), "warning", r"up to 0\.2 per second", "the device limits it")


def test_a_front_that_does_not_open_or_runs_elsewhere():
    assert_check(check_front(Answer(found=None, ended="f is not a graph")), "failed", "f is not a graph", "export")
    elsewhere = check_front(Answer(found=timed(passed_over=["CUDA does not run the front: libcudnn"])))
    assert_check(elsewhere, "warning", r"15\.00 ms on CPU, .*; CUDA does not run .* libcudnn", "--provider CPU")


def test_the_whole_examination(pair: Pair, tmp_path: Path):
    """With real children: ONNX Runtime, the vectors of the front's coder, and the front."""
    stages: list[str] = []
    report = examine(
        Questions(front=pair.front, bits_per_second=1e6, threads=1, provider="cpu"),
        lambda stage, done, total: stages.append(stage),
        Means(places=Places(root=tmp_path), environment={"SPLITWIRE_CACHE_DIR": str(tmp_path)}),
    )
    assert [c.name for c in report.checks if c.part in {"runtime", "codec", "speed"}] == [
        "version", "onnxruntime", "providers", "golden vectors", "kernel cache", "front", "frames per second",
    ]  # fmt: skip
    assert report.find("front").data["fingerprint"] == pair.profile.fingerprint.hex()
    assert [p.op for p in report.predictions] == ["n2", "n4"]
    assert report.predictions[0].frame_bytes < report.predictions[1].frame_bytes
    assert report.find("address").verdict == "skipped"
    assert report.exit_status == 0
    assert stages == ["Device", "ONNX Runtime", "Front", "Codec", "Server", "Server"]


@POSIX
def test_the_page_ends_where_onnxruntime_dies(pair: Pair, tmp_path: Path):
    """The front is not tried any more, the rest is, and the status is 1."""
    dying = children(tmp_path, "os.kill(os.getpid(), signal.SIGILL)")
    report = examine(Questions(front=pair.front), None, Means(places=Places(root=tmp_path), children=dying))
    assert report.find("onnxruntime").verdict == "failed"
    assert report.find("front").text == "ONNX Runtime does not run"
    assert report.exit_status == 1
