"""Processor, operating system, C library, disk and SQLite."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from splitwire.codec.shared.cache import cache_folder

from .checks import Check, Verdict
from .places import Places

X86 = ("x86_64", "amd64")
ARM = ("aarch64", "arm64")
NEEDED_X86 = ("ssse3", "sse4_1", "sse4_2", "popcnt")
"""What the x86-64-v2 wheels of NumPy take for granted."""
LEAST_GLIBC = (2, 28)
"""The wheels of onnxruntime, numpy and numba are manylinux_2_28 (constraints.txt)."""
LOW_BYTES, FULL_BYTES = 500 << 20, 50 << 20

SPOTTY_SQLITE = ((3, 7, 0), (3, 51, 3))
"""From the first, before the second version, SQLite can lose commits in WAL mode with two or more connections."""
FIXED_SQLITE = {(3, 50): 7, (3, 44): 6}
"""Older lines with the fix: first two numbers → the third number from which on they have it."""


def check_system(places: Places, environment: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """The checks of the part "machine"."""
    yield _processor(places)
    yield _system(places)
    yield _libc(places)
    yield _disk(places, environment)
    yield sqlite_check(sqlite3.sqlite_version_info)


def cpu_part(places: Places) -> str:
    """The part number of an ARM processor, as 0xd08; "" where /proc/cpuinfo has none."""
    return _field(places, "CPU part")


def _field(places: Places, name: str) -> str:
    for line in (places.read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _processor(places: Places) -> Check:
    model = (places.read("/proc/device-tree/model") or _field(places, "model name") or places.machine).strip("\0 ")
    cores = os.cpu_count() or 1
    text = f"{model}, {places.machine}, {cores} core{'' if cores == 1 else 's'}"
    data: dict[str, str | int | float | bool] = {"model": model, "machine": places.machine, "cores": cores}

    def failed(why: str, remedy: str) -> Check:
        return Check(part="machine", name="processor", verdict="failed", text=why, remedy=remedy, data=data)

    if places.bits != 64:
        return failed(
            f"{text}: this Python has {places.bits} bits",
            "install a 64-bit system (Raspberry Pi OS 64-bit): onnxruntime and numba have no 32-bit wheels",
        )
    if places.machine.lower() not in (*X86, *ARM):
        return failed(f"{text}: not a processor that the wheels are built for", "use x86-64 or aarch64")
    flags = _field(places, "flags").split()
    missing = [flag for flag in NEEDED_X86 if flags and flag not in flags] if places.machine.lower() in X86 else []
    if missing:
        return failed(
            f"{text}: it lacks {', '.join(missing)}",
            "use a processor from 2009 or later; in a virtual machine choose the CPU type `host`",
        )
    return Check(part="machine", name="processor", verdict="ok", text=text, data=data)


def _system(places: Places) -> Check:
    release = dict(line.partition("=")[::2] for line in (places.read("/etc/os-release") or "").splitlines())
    name = release.get("PRETTY_NAME", "").strip('"') or places.system
    text = f"{name}, kernel {platform.release()}, Python {platform.python_version()}"
    if places.system != "Linux":
        return Check(
            part="machine", name="system", verdict="note", text=f"{text}: the edge runtime is tested on Linux",
            remedy="for a device that runs for months take Linux",
        )  # fmt: skip
    return Check(part="machine", name="system", verdict="ok", text=text)


def _libc(places: Places) -> Check:
    name, version = places.libc
    if places.system != "Linux":
        return Check(part="machine", name="libc", verdict="skipped", text="the C library matters on Linux only")
    needed = ".".join(map(str, LEAST_GLIBC))
    if name != "glibc":
        return Check(
            part="machine", name="libc", verdict="failed", text="the C library is not glibc (musl?)",
            remedy="use a distribution with glibc, for example Debian: onnxruntime has no wheels for Alpine",
        )  # fmt: skip
    if tuple(int(n) for n in version.split(".")[:2]) < LEAST_GLIBC:
        return Check(
            part="machine", name="libc", verdict="failed", text=f"glibc {version} is older than {needed}",
            remedy="upgrade the system: the wheels of onnxruntime need Debian 10, Ubuntu 20.04 or later",
            data={"glibc": version},
        )  # fmt: skip
    return Check(part="machine", name="libc", verdict="ok", text=f"glibc {version}", data={"glibc": version})


def _disk(places: Places, environment: Mapping[str, str]) -> Check:
    try:
        folder = cache_folder(environment)
        free = places.free(folder)
    except (OSError, RuntimeError) as e:
        return Check(
            part="machine", name="disk", verdict="warning", text=f"the cache folder's disk cannot be looked at: {e}",
            remedy="set SPLITWIRE_CACHE_DIR to a folder that exists",
        )  # fmt: skip
    text = f"{free / 1e9:.1f} GB free for {folder}"
    verdict: Verdict = "failed" if free < FULL_BYTES else "warning" if free < LOW_BYTES else "ok"
    remedy = "" if verdict == "ok" else "free some space: kernels, TensorRT's engines and the spool need it"
    return Check(part="machine", name="disk", verdict=verdict, text=text, remedy=remedy, data={"free_bytes": free})


def sqlite_check(version: tuple[int, int, int]) -> Check:
    """The check of an SQLite version."""
    shown = ".".join(map(str, version))
    first, fixed = SPOTTY_SQLITE
    has_fix = version[2] >= FIXED_SQLITE.get(version[:2], version[2] + 1)
    if not first <= version < fixed or has_fix:
        return Check(part="machine", name="sqlite", verdict="ok", text=f"SQLite {shown}", data={"sqlite": shown})
    return Check(
        part="machine", name="sqlite", verdict="note",
        text=f"SQLite {shown} can lose commits when two connections write one file; the spool uses one",
        remedy="do not open the spool with another program while the runtime runs: use `splitwire edge spool`",
        data={"sqlite": shown},
    )  # fmt: skip


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder can be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)
