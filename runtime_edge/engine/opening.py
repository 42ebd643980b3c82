"""Opens a graph on an execution provider: the options of each provider, and the optimised graphs of the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnxruntime as ort

from splitwire.codec.errors import DeviceError, ProfileError
from splitwire.codec.shared.device import int8_overflows
from splitwire.codec.shared.providers import CPU, nodes_of, provider_options, short_name
from splitwire.codec.shared.sessions import open_graph, open_session
from splitwire.codec.shared.telemetry import stop_events

from .optimised import OptimisedGraph

stop_events(ort)


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
