"""What the children found about ONNX Runtime, the kernel cache, the golden vectors and the front, as checks."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checks import Check
from .children import Answer, Children
from .places import Places
from .system import ARM, cpu_part, writable

IMPORT_S = 60.0
COMPILE_S = 900.0
"""Longest time for a child that compiles kernels: minutes on a small device."""

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")
ANOTHER = "pip install 'onnxruntime!={version}'"


@dataclass(frozen=True, kw_only=True)
class KnownBad:
    """A version of ONNX Runtime that does not work on some processors.

    parts: the part numbers in /proc/cpuinfo; () for all. why: what happens, and where it is reported.
    """

    version: str
    machines: tuple[str, ...]
    parts: tuple[str, ...]
    why: str


KNOWN_BAD = (
    KnownBad(
        version="1.21.0", machines=ARM, parts=("0xd08", "0xd03"),
        why="it dies of an illegal instruction on a Raspberry Pi 4 (github.com/microsoft/onnxruntime/issues/24112)",
    ),
)  # fmt: skip
"""Cortex-A72 is 0xd08, Cortex-A53 0xd03: both lack the dot products that 1.21.0 takes for granted."""

OFFERED = {"TensorrtExecutionProvider": "TensorRT", "CUDAExecutionProvider": "CUDA", "CPUExecutionProvider": "CPU"}


def installed_version() -> str:
    """The version of ONNX Runtime by its metadata, which needs no import; "" if it is not installed."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def check_runtime(
    places: Places, children: Children, version: Callable[[], str] = installed_version
) -> Iterator[Check]:
    """The checks of the part "runtime"."""
    installed = version()
    if not installed:
        yield Check(
            part="runtime", name="onnxruntime", verdict="failed", text="ONNX Runtime is not installed",
            remedy="pip install 'splitwire[edge]'; on a Jetson NVIDIA's wheel for its JetPack",
        )  # fmt: skip
        return
    yield known_bad(installed, places)
    answer = children.ask("onnxruntime", seconds=IMPORT_S)
    yield _imported(installed, answer)
    if answer.found is not None:
        yield _providers(places, answer.found["providers"])


def known_bad(version: str, places: Places) -> Check:
    """Whether this version is known not to work here."""
    part = cpu_part(places)
    for bad in KNOWN_BAD:
        here = places.machine.lower() in bad.machines and (not bad.parts or part in bad.parts)
        if version == bad.version and here:
            return Check(
                part="runtime", name="version", verdict="failed", text=f"ONNX Runtime {version}: {bad.why}",
                remedy=ANOTHER.format(version=version), data={"onnxruntime": version},
            )  # fmt: skip
    return Check(
        part="runtime", name="version", verdict="ok", text=f"ONNX Runtime {version}, no known fault on this processor",
        data={"onnxruntime": version},
    )  # fmt: skip


def _imported(version: str, answer: Answer) -> Check:
    if answer.found is None:
        remedy = (
            f"this wheel is built for a newer processor; take another version: {ANOTHER.format(version=version)}"
            if answer.illegal
            else "install it again: pip install --force-reinstall onnxruntime"
        )
        return Check(
            part="runtime", name="onnxruntime", verdict="failed",
            text=f"ONNX Runtime {version} was tried in a child process: {answer.ended}", remedy=remedy,
        )  # fmt: skip
    if not answer.found["right"]:
        return Check(
            part="runtime", name="onnxruntime", verdict="failed",
            text=f"ONNX Runtime {version} adds 1 and 1 to something else than 2",
            remedy=f"take another version: {ANOTHER.format(version=version)}",
        )  # fmt: skip
    return Check(part="runtime", name="onnxruntime", verdict="ok", text="imports and runs, in a child process")


def _providers(places: Places, offered: Sequence[str]) -> Check:
    names = [OFFERED[p] for p in OFFERED if p in offered]
    text = f"offered: {', '.join(names)}"
    data: dict[str, str | int | float | bool] = {"providers": ", ".join(offered)}
    jetson = places.read("/etc/nv_tegra_release") is not None
    if jetson and "CUDAExecutionProvider" not in offered:
        return Check(
            part="runtime", name="providers", verdict="warning", text=f"{text}: the GPU of this Jetson is not used",
            remedy="install NVIDIA's wheel for this JetPack instead of PyPI's (docs/engine.md)", data=data,
        )  # fmt: skip
    return Check(part="runtime", name="providers", verdict="ok", text=text, data=data)


def check_codec(children: Children, coders: Sequence[int]) -> Iterator[Check]:
    """The checks of the part "codec". coders: of the front; () for all."""
    answer = children.ask("vectors", *map(str, coders), seconds=COMPILE_S)
    if answer.found is None:
        yield Check(
            part="codec", name="golden vectors", verdict="failed", text=f"tried in a child process: {answer.ended}",
            remedy="install them again: pip install --force-reinstall numpy numba llvmlite" if not answer.illegal
            else "NumPy, Numba or its LLVM is built for a newer processor: set NUMBA_CPU_NAME=generic, or take others",
        )  # fmt: skip
        return
    yield _vectors(answer.found)
    yield kernel_cache(answer.found)


def _vectors(found: Mapping[str, Any]) -> Check:
    if found["wrong"]:
        return Check(
            part="codec", name="golden vectors", verdict="failed",
            text=f"{len(found['wrong'])} of {found['vectors']} give other bits: {', '.join(found['wrong'])}",
            remedy="delete the cache folder and try again; then set NUMBA_CPU_NAME=generic; if that helps, report it",
            data={"wrong": ", ".join(found["wrong"])},
        )  # fmt: skip
    return Check(
        part="codec", name="golden vectors", verdict="ok",
        text=f"{found['vectors']} encoded and decoded to the bit in {found['seconds']:.1f} s",
        data={"vectors": found["vectors"], "seconds": found["seconds"]},
    )  # fmt: skip


def kernel_cache(found: Mapping[str, Any]) -> Check:
    """Whether compiled kernels were in the cache folder, or can be kept there."""
    folder, compiled, kernels = found["folder"], found["compiled"], found["kernels"]
    data: dict[str, str | int | float | bool] = {"folder": folder, "kernels": kernels, "compiled": compiled}
    if found["interpreted"]:
        return Check(
            part="codec", name="kernel cache", verdict="warning", text="NUMBA_DISABLE_JIT is set: nothing is compiled",
            remedy="unset NUMBA_DISABLE_JIT: interpreted kernels are hundreds of times slower", data=data,
        )  # fmt: skip
    if not folder or not found["kept"] or (compiled and not writable(Path(folder))):
        return Check(
            part="codec", name="kernel cache", verdict="warning",
            text=f"kernels cannot be kept in {folder or 'any folder'}: each start compiles them again",
            remedy="set SPLITWIRE_CACHE_DIR to a folder that this user can write", data=data,
        )  # fmt: skip
    if compiled:
        return Check(
            part="codec", name="kernel cache", verdict="note",
            text=f"{compiled} of {kernels} kernels were missing; they are now in {folder}",
            remedy="run `splitwire warmup --front front.onnx` before the service starts", data=data,
        )  # fmt: skip
    return Check(
        part="codec", name="kernel cache", verdict="ok", text=f"warm: {kernels} kernels in {folder}", data=data
    )
