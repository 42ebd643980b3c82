"""Opens a graph on an execution provider: the options of each provider, and the optimised graphs of the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnxruntime as ort

from splitwire.codec.errors import DeviceError, ProfileError
from splitwire.codec.shared.cache import cache_folder
from splitwire.codec.shared.device import int8_overflows
from splitwire.codec.shared.sessions import ProviderOptions, open_graph, open_session
from splitwire.codec.shared.telemetry import stop_events

from .optimised import OptimisedGraph
from .providers import CPU, TENSORRT, short_name

stop_events(ort)

TENSORRT_FOLDER = "tensorrt"


def open_on(path: Path, providers: Sequence[str], threads: int | None) -> Any:
    """The InferenceSession of a graph on the first provider; the others take the nodes that it does not take.

    threads: of one inference on the CPU; None lets ONNX Runtime choose.
    Raises UsageError (no such file, threads), ProfileError (not a graph), DeviceError (the first provider does not
    start, or takes no node of the graph).
    """
    if list(providers) == [CPU]:
        return _open_on_cpu(path, threads)
    wanted = [(provider, provider_options(provider)) for provider in providers]
    session = open_graph(ort, path, threads=threads, providers=wanted, exact_int8=int8_overflows(), assignment=True)
    if nodes_of(session, providers[0]) == 0:
        raise DeviceError(f"{short_name(providers[0])} takes no node of {path.name}, so the graph would run elsewhere")
    return session


def provider_options(provider: str, environment: Mapping[str, str] = os.environ) -> ProviderOptions:
    """The options of a provider; {} for those that need none.

    TensorRT keeps its engines and the times of its kernels in the cache folder: to build an engine takes minutes.
    (onnxruntime.ai, TensorRT Execution Provider, "TensorRT EP Caches")
    """
    if provider != TENSORRT:
        return {}
    try:
        folder = cache_folder(environment) / TENSORRT_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return {}
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }


def nodes_of(session: Any, provider: str) -> int | None:
    """How many nodes of the graph run on this provider; None where ONNX Runtime does not say (before 1.24)."""
    with suppress(Exception):  # not recorded, or not known to this version
        return sum(
            len(part.get_nodes()) for part in session.get_provider_graph_assignment_info() if part.ep_name == provider
        )
    return None


def _open_on_cpu(path: Path, threads: int | None) -> Any:
    """As `open_on`, from the optimised graph in the cache folder where there is one."""
    exact = int8_overflows()
    kept = OptimisedGraph(path, version=ort.__version__, options="exact int8" if exact else "")
    body = kept.read()
    if body is not None:
        with suppress(ProfileError):  # another build of ONNX Runtime wrote it
            return open_session(
                ort, body, threads=threads, providers=None, exact_int8=exact, optimise=False, refused=ProfileError
            )
    return kept.make(
        lambda saved: open_graph(ort, path, threads=threads, providers=None, exact_int8=exact, save_to=saved)
    )
