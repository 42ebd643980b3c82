"""How both runtimes open an ONNX Runtime session: its options, its providers, and what is said where it fails.

The runtimes do not import each other, and the codec works without ONNX Runtime: the caller passes the module in, as to
telemetry.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from splitwire.codec.errors import DeviceError, ProfileError, SplitwireError, UsageError

from .device import check_threads
from .text import for_native_code

DEFAULT_PROVIDERS = ("CPUExecutionProvider",)


def open_graph(
    runtime: ModuleType,
    path: Path,
    *,
    threads: int | None,
    providers: Sequence[str] | None,
    exact_int8: bool = False,
) -> Any:
    """The InferenceSession of a file that `splitwire export` wrote; arguments as for `open_session`.

    Raises UsageError (a folder, no such file), ProfileError (not a graph), DeviceError (a provider that is not here).
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name the file in it, front.onnx for the edge or back.onnx for the cloud")
    if not path.is_file():
        raise UsageError(f"{path}: no such file; make it with `splitwire export`")
    return open_session(
        runtime,
        path,
        threads=threads,
        providers=providers,
        exact_int8=exact_int8,
        refused=lambda why: ProfileError(f"{path} is not a graph that ONNX Runtime can open: {why}"),
    )


def open_session(
    runtime: ModuleType,
    model: Path | bytes,
    *,
    threads: int | None,
    providers: Sequence[str] | None,
    exact_int8: bool = False,
    refused: Callable[[str], SplitwireError],
) -> Any:
    """An InferenceSession of `runtime`, the module onnxruntime.

    model: a file, or the bytes of a graph. threads: of one inference; None lets ONNX Runtime choose. providers: in
    order of preference; None means the CPU. exact_int8: int8 products may not overflow. refused: ONNX Runtime's
    reason → the error to raise for a model that it does not open.
    Raises DeviceError (a provider that is not here, or does not start), UsageError (threads).
    """
    wanted = list(DEFAULT_PROVIDERS if providers is None else providers)
    available = runtime.get_available_providers()
    for name in wanted:
        if name not in available:
            raise DeviceError(f"execution provider {name!r} is not here; this ONNX Runtime has {', '.join(available)}")
    check_threads(threads)
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only, and those come back as exceptions too
    options.intra_op_num_threads = threads or 0
    # Threads that wait must not spin. On a device it costs the battery, and other programs their cores; in the
    # cloud the models, and the decoders beside them, share the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exact_int8:
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        source = for_native_code(model) if isinstance(model, Path) else model
        session = runtime.InferenceSession(source, options, providers=wanted)
    except Exception as e:  # ONNX Runtime's exceptions share no base class below this
        raise refused(str(e).splitlines()[0]) from e
    # A provider whose libraries fail to load is dropped by ONNX Runtime with a log line only.
    if wanted and wanted[0] not in session.get_providers():
        raise DeviceError(f"execution provider {wanted[0]!r} did not start; see ONNX Runtime's log for the reason")
    return session
