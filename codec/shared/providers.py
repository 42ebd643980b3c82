"""Which execution provider runs a graph: what the installed ONNX Runtime offers, or what the caller demands.

The wheels on PyPI for the CPU offer the CPU only, on aarch64 too: neither ACL nor XNNPACK is in them. NVIDIA's wheel
for a Jetson offers CUDA and TensorRT.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from splitwire.codec.errors import DeviceError, UsageError

from .cache import cache_folder
from .sessions import ProviderOptions

SUFFIX = "ExecutionProvider"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
PREFERRED = (TENSORRT, CUDA, CPU)
"""The providers that are chosen without being named, best first. Others, for example DirectML, must be named."""
TENSORRT_FOLDER = "tensorrt"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The providers to try, in this order; the first that starts runs the graph.

    forced: the caller named them, so only the first may run it; the others take the nodes that it does not take.
    """

    order: tuple[str, ...]
    forced: bool

    def attempts(self) -> list[tuple[str, list[str]]]:
        """Each provider to try, with the list for ONNX Runtime: itself first, then those that take what it does not."""
        if self.forced:
            return [(self.order[0], list(self.order))]
        return [(provider, list(self.order[i:])) for i, provider in enumerate(self.order)]


def choose(offered: Sequence[str], named: Sequence[str] | None, preferred: Sequence[str] = PREFERRED) -> Choice:
    """The providers to try.

    offered: what ONNX Runtime has. named: what the caller demands; None or nothing: those preferred that are offered.
    Raises DeviceError if a named provider is not offered, UsageError if one is named twice.
    """
    if not named:
        return Choice(order=tuple(p for p in preferred if p in offered) or (CPU,), forced=False)
    for provider in named:
        if provider not in offered:
            raise DeviceError(
                f"execution provider {provider!r} is not here; this ONNX Runtime has {', '.join(offered)}"
            )
    if len(set(named)) < len(named):
        raise UsageError(f"each execution provider can be named once; got {', '.join(named)}")
    return Choice(order=tuple(named), forced=True)


def short_name(provider: str) -> str:
    """The name for people and for `--provider`: CPU, CUDA, TensorRT."""
    return "TensorRT" if provider == TENSORRT else provider.removesuffix(SUFFIX)


def full_name(name: str, offered: Sequence[str]) -> str:
    """ONNX Runtime's name for what people write: CUDAExecutionProvider for cuda. An unknown name stays as it is."""
    known = {provider.removesuffix(SUFFIX).lower(): provider for provider in offered}
    return known.get(name.lower().removesuffix(SUFFIX.lower()), name)


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
