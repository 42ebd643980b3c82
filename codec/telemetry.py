"""ONNX Runtime's telemetry, off. The one place that knows how; the rooms that open sessions call it.

Since 1.32 ONNX Runtime on Linux and macOS writes `deviceid` and `onnxruntime.db` below the user's cache folder
(`Microsoft/DeveloperTools/.onnxruntime`) and sends events about the process and its sessions, as its Windows builds
have long done. It reads the variable once, while `import onnxruntime` runs: `splitwire/__init__.py`, which Python runs
before any module of ours, sets it. The function `disable_telemetry_events` comes after the files, and stops events
only: it is for Windows, and for a process that imported onnxruntime before splitwire.
"""

from __future__ import annotations

import os
from types import ModuleType

VARIABLE = "ORT_DISABLE_TELEMETRY"


def set_variable() -> None:
    """Before onnxruntime is imported, for this process and those that it starts. A value that is there stays."""
    os.environ.setdefault(VARIABLE, "1")


def stop_events(runtime: ModuleType) -> None:
    """runtime: the module onnxruntime, of any version. Does nothing where the user chose telemetry."""
    if os.environ.get(VARIABLE, "1") != "0" and hasattr(runtime, "disable_telemetry_events"):
        runtime.disable_telemetry_events()
