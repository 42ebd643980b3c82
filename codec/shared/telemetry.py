"""Switches ONNX Runtime's telemetry off. The packages that open sessions call it.

Since 1.32 ONNX Runtime on Linux and macOS writes `deviceid` and `onnxruntime.db` below the user's cache folder
(`Microsoft/DeveloperTools/.onnxruntime`) and sends events about the process and its sessions. Its Windows builds did so
before. It reads the variable once, during `import onnxruntime`. `splitwire/__init__.py`, which Python runs before our
other modules, sets it. The function `disable_telemetry_events` stops events only, after the files are written: it is
for Windows, and for a process that imported onnxruntime before splitwire.
"""

from __future__ import annotations

import os
from types import ModuleType

VARIABLE = "ORT_DISABLE_TELEMETRY"


def set_variable() -> None:
    """Set the variable for this process and its children, before onnxruntime is imported. An existing value stays."""
    os.environ.setdefault(VARIABLE, "1")


def stop_events(runtime: ModuleType) -> None:
    """Stop the events of `runtime`, the module onnxruntime of any version, unless the user chose telemetry."""
    if os.environ.get(VARIABLE, "1") != "0" and hasattr(runtime, "disable_telemetry_events"):
        runtime.disable_telemetry_events()
