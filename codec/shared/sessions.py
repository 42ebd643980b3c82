"""How both runtimes open an ONNX Runtime session: its options, its providers, and what is said where it fails.

The runtimes do not import each other, and the codec works without ONNX Runtime: the caller passes the module in, as to
telemetry.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from splitwire.codec.errors import DeviceError, ProfileError, SplitwireError, UsageError

from .device import check_threads
from .text import for_native_code

DEFAULT_PROVIDERS = ("CPUExecutionProvider",)

ProviderOptions = Mapping[str, str]
Provider = str | tuple[str, ProviderOptions]
"""The name of an execution provider, or (name, options)."""


def open_graph(
    runtime: ModuleType,
    path: Path,
    *,
    threads: int | None,
    providers: Sequence[Provider] | None,
    exact_int8: bool = False,
    assignment: bool = False,
    save_to: Path | None = None,
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
        assignment=assignment,
        save_to=save_to,
        refused=lambda why: ProfileError(f"{path} is not a graph that ONNX Runtime can open: {why}"),
    )


def open_session(
    runtime: ModuleType,
    model: Path | bytes,
    *,
    threads: int | None,
    providers: Sequence[Provider] | None,
    exact_int8: bool = False,
    optimise: bool = True,
    assignment: bool = False,
    save_to: Path | None = None,
    refused: Callable[[str], SplitwireError],
) -> Any:
    """An InferenceSession of `runtime`, the module onnxruntime.

    model: a file, or the bytes of a graph. threads: of one inference; None lets ONNX Runtime choose. providers: in
    order of preference; None means the CPU. exact_int8: int8 products may not overflow. optimise: off for a graph that
    is optimised already. assignment: record which provider takes which node, where this version can. save_to: where the
    optimised graph is written; a failure to write it is no error. refused: ONNX Runtime's reason → the error to raise
    for a model that it does not open.
    Raises DeviceError (a provider that is not here, or does not start), UsageError (threads).
    """
    wanted = list(DEFAULT_PROVIDERS if providers is None else providers)
    names = [provider if isinstance(provider, str) else provider[0] for provider in wanted]
    available = runtime.get_available_providers()
    for name in names:
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
    if assignment:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not optimise:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = for_native_code(model) if isinstance(model, Path) else model
    session = None
    if save_to is not None:
        with suppress(Exception):  # the disk is full, or the model itself is refused, which the next call says
            options.optimized_model_filepath = str(save_to)
            session = runtime.InferenceSession(source, options, providers=wanted)
        options.optimized_model_filepath = ""
    try:
        session = session or runtime.InferenceSession(source, options, providers=wanted)
    except Exception as e:  # ONNX Runtime's exceptions share no base class below this
        raise refused(str(e).splitlines()[0]) from e
    # A provider whose libraries fail to load is dropped by ONNX Runtime with a log line only.
    if names and names[0] not in session.get_providers():
        raise DeviceError(f"execution provider {names[0]!r} did not start; see ONNX Runtime's log for the reason")
    return session
