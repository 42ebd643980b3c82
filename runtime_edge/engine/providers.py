"""Which execution provider runs the front: what the installed ONNX Runtime offers, or what the caller demands.

The wheels on PyPI for the CPU offer the CPU only, on aarch64 too: neither ACL nor XNNPACK is in them. NVIDIA's wheel
for a Jetson offers CUDA and TensorRT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from splitwire.codec.errors import DeviceError, UsageError

SUFFIX = "ExecutionProvider"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
PREFERRED = (TENSORRT, CUDA, CPU)
"""The providers that are chosen without being named, best first. Others, for example DirectML, must be named."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The providers to try, in this order; the first that starts runs the graph.

    forced: the caller named them, so only the first may run it; the others take the nodes that it does not take.
    """

    order: tuple[str, ...]
    forced: bool


def choose(offered: Sequence[str], named: Sequence[str] | None) -> Choice:
    """The providers to try.

    offered: what ONNX Runtime has. named: what the caller demands; None or nothing: the best of what is offered.
    Raises DeviceError if a named provider is not offered, UsageError if one is named twice.
    """
    if not named:
        return Choice(order=tuple(p for p in PREFERRED if p in offered) or (CPU,), forced=False)
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
