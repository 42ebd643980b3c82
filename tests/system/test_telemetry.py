"""ONNX Runtime's telemetry is off: no machine id below an empty home folder, whichever package opens sessions."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import onnxruntime as ort
import pytest

from splitwire.codec.shared import telemetry

PROBE = Path(__file__).parents[2] / "runtime_edge" / "data" / "add.onnx"
OPEN = "onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
PACKAGES = {
    "edge": "import sys, splitwire.runtime_edge.session, onnxruntime",
    "cloud": "import sys, splitwire.runtime_cloud.session, onnxruntime",
    "exporter": "import sys, splitwire.exporter.network.inference, onnxruntime",
}
"""What a package imports. Its own way into ONNX Runtime is the import: that is where the files are written."""


def written(code: str, home: Path) -> list[str]:
    """Files below `home` after the code ran there as the first program of a new user, outside any CI."""
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "SPLITWIRE_CACHE_DIR": str(home / "kernels")}
    run = [sys.executable, "-c", f"{code}; {OPEN}", str(PROBE)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return sorted(
        str(path.relative_to(home)) for path in home.rglob("*") if path.is_file() and "kernels" not in str(path)
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_below_an_empty_home(package: str, tmp_path: Path) -> None:
    assert written(PACKAGES[package], tmp_path) == []


@pytest.mark.skipif(
    sys.platform != "linux" or tuple(map(int, ort.__version__.split(".")[:2])) < (1, 32),
    reason="ONNX Runtime writes its id since 1.32",
)
def test_onnx_runtime_alone_writes_them(tmp_path: Path) -> None:
    """What the test above looks for: without it, an ONNX Runtime that renames the variable would go unnoticed."""
    left = written("import sys, onnxruntime; onnxruntime.disable_telemetry_events()", tmp_path)
    assert [name.rpartition("/")[2] for name in left] == ["deviceid", "onnxruntime.db"]


def test_who_wants_telemetry_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    runtime = types.ModuleType("onnxruntime")
    telemetry.stop_events(runtime)  # a version without the function
    runtime.disable_telemetry_events = lambda: calls.append("off")  # type: ignore[attr-defined]  # added to the module
    monkeypatch.setenv(telemetry.VARIABLE, "0")
    telemetry.set_variable()
    telemetry.stop_events(runtime)
    assert (os.environ[telemetry.VARIABLE], calls) == ("0", [])
    monkeypatch.delenv(telemetry.VARIABLE)
    telemetry.set_variable()
    telemetry.stop_events(runtime)
    assert (os.environ[telemetry.VARIABLE], calls) == ("1", ["off"])
