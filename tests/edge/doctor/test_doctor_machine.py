"""The doctor's checks of machine and power: each is made to fail, and shows its remedy. Fake roots and programs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from splitwire.runtime_edge.doctor.checks import Check
from splitwire.runtime_edge.doctor.places import Places, free_bytes
from splitwire.runtime_edge.doctor.power import check_power
from splitwire.runtime_edge.doctor.system import check_system, sqlite_check

PI = "processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd08\n"
PC = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu ssse3 sse4_1 sse4_2 popcnt\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def places(
    root: Path,
    *,
    machine: str = "aarch64",
    bits: int = 64,
    system: str = "Linux",
    libc: tuple[str, str] = ("glibc", "2.36"),
    free: Callable[[Path], int] = lambda folder: 1 << 40,
) -> Places:
    return Places(root=root, machine=machine, bits=bits, system=system, libc=libc, free=free)


def machine(of: Places, **environment: str) -> dict[str, Check]:
    checks = {check.name: check for check in check_system(of, {"SPLITWIRE_CACHE_DIR": str(of.root), **environment})}
    assert list(checks) == ["processor", "system", "libc", "disk", "sqlite"]
    return checks


def power(of: Places) -> dict[str, Check]:
    checks = {check.name: check for check in check_power(of)}
    assert list(checks) == ["throttling", "temperature", "frequency", "power mode"]
    return checks


def test_a_healthy_pi(tmp_path: Path):
    model = {"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.5\0", "proc/cpuinfo": PI}
    checks = machine(places(write(tmp_path, {**model, "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12"\n'})))
    assert {name for name, check in checks.items() if check.verdict == "ok"} >= {"processor", "system", "libc", "disk"}
    assert checks["processor"].text.startswith("Raspberry Pi 4 Model B Rev 1.5, aarch64, ")
    assert checks["system"].text.startswith("Debian GNU/Linux 12, kernel ")


@pytest.mark.parametrize(
    ("kind", "bits", "cpuinfo", "text", "remedy"),
    [
        ("aarch64", 32, PI, "this Python has 32 bits", "install a 64-bit system"),
        ("riscv64", 64, "", "not a processor that the wheels are built for", "use x86-64 or aarch64"),
        ("x86_64", 64, PC.replace("sse4_2 ", ""), "Some CPU, x86_64, .*: it lacks sse4_2", "CPU type `host`"),
    ],
)
def test_a_processor_that_does_not_do(tmp_path: Path, kind: str, bits: int, cpuinfo: str, text: str, remedy: str):
    root = write(tmp_path, {"proc/cpuinfo": cpuinfo})
    failed(machine(places(root, machine=kind, bits=bits))["processor"], text, remedy)


def failed(check: Check, text: str, remedy: str, verdict: str = "failed") -> None:
    assert check.verdict == verdict, check
    assert re.search(text, check.text), check
    assert remedy in check.remedy, check


def test_another_system(tmp_path: Path):
    checks = machine(places(tmp_path, system="Darwin", libc=("", "")))
    failed(checks["system"], "is tested on Linux", "take Linux", "note")
    assert checks["libc"].verdict == "skipped"


def test_a_c_library_that_is_too_old_or_not_glibc(tmp_path: Path):
    failed(machine(places(tmp_path, libc=("", "")))["libc"], "not glibc", "glibc, for example Debian")
    failed(machine(places(tmp_path, libc=("glibc", "2.27")))["libc"], r"glibc 2\.27 is older than 2\.28", "upgrade")
    assert machine(places(tmp_path, libc=("glibc", "2.28")))["libc"].verdict == "ok"


def test_a_disk_that_is_nearly_full_full_or_not_there(tmp_path: Path):
    def broken(folder: Path) -> int:
        raise OSError("no such device")

    failed(machine(places(tmp_path, free=lambda f: 400 << 20))["disk"], r"0\.4 GB free", "free some space", "warning")
    failed(machine(places(tmp_path, free=lambda f: 10 << 20))["disk"], r"0\.0 GB free", "free some space")
    failed(machine(places(tmp_path, free=broken))["disk"], "no such device", "SPLITWIRE_CACHE_DIR", "warning")
    assert free_bytes(tmp_path / "not" / "there") == free_bytes(tmp_path) > 0


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        ((3, 6, 23), "ok"), ((3, 7, 0), "note"), ((3, 40, 1), "note"), ((3, 44, 5), "note"), ((3, 44, 6), "ok"),
        ((3, 50, 6), "note"), ((3, 50, 7), "ok"), ((3, 51, 2), "note"), ((3, 51, 3), "ok"), ((3, 60, 0), "ok"),
    ],
)  # fmt: skip
def test_sqlite(version: tuple[int, int, int], verdict: str):
    check = sqlite_check(version)
    assert check.verdict == verdict
    assert bool(check.remedy) is (verdict == "note")


# ------------------------------------------------------------------ power


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes a program of this name that prints this, and nothing else on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, prints: str) -> None:
        script = folder / name
        script.write_text(f"#!{sys.executable}\nprint({prints!r})\n")
        script.chmod(0o755)

    return make


@pytest.mark.skipif(os.name == "nt", reason="the fake programs are scripts")
@pytest.mark.parametrize(
    ("bits", "text", "remedy"),
    [
        ("0x50005", "now: undervoltage, throttled; since the start: undervoltage, throttled", "power supply"),
        ("0x10000", "since the start: undervoltage", "power supply"),
        (
            "0xe0008",
            "now: the soft .*; since .*: the frequency is capped, throttled, the soft temperature",
            "heat sink",
        ),
        ("0x2", "now: the frequency is capped$", "heat sink"),
    ],
)
def test_throttling_by_the_tool(tmp_path: Path, tool: Callable[[str, str], None], bits: str, text: str, remedy: str):
    tool("vcgencmd", f"throttled={bits}")
    failed(power(places(tmp_path / "root"))["throttling"], text, remedy, "warning")


@pytest.mark.skipif(os.name == "nt", reason="the fake programs are scripts")
def test_no_throttling(tmp_path: Path, tool: Callable[[str, str], None]):
    tool("vcgencmd", "throttled=0x0")
    assert power(places(tmp_path / "root"))["throttling"].verdict == "ok"
    tool("vcgencmd", "VCHI initialization failed")
    assert power(places(tmp_path / "root"))["throttling"].verdict == "skipped"


def test_throttling_by_the_kernels_files(tmp_path: Path, tool: Callable[[str, str], None]):
    root = write(tmp_path / "a", {"sys/devices/platform/soc/soc:firmware/get_throttled": "0x40004\n"})
    failed(power(places(root))["throttling"], "now: throttled; since the start: throttled", "heat sink", "warning")
    volts = {"sys/class/hwmon/hwmon1/name": "rpi_volt\n", "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1\n"}
    root = write(tmp_path / "b", {"sys/class/hwmon/hwmon0/name": "cpu_thermal\n", **volts})
    failed(power(places(root))["throttling"], "now: undervoltage$", "power supply", "warning")
    write(root, {"sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0\n"})
    assert power(places(root))["throttling"].verdict == "ok"


def test_temperature(tmp_path: Path):
    zone = "sys/class/thermal/thermal_zone{}/{}"
    files = {zone.format(0, "temp"): "54321\n", zone.format(0, "type"): "cpu-thermal\n", zone.format(1, "temp"): "no\n"}
    root = write(tmp_path, files)
    assert power(places(root))["temperature"].text == "54 °C at most (cpu-thermal)"
    write(root, {zone.format(1, "temp"): "81000\n", zone.format(1, "type"): "gpu-thermal\n"})
    failed(power(places(root))["temperature"], r"81 °C at most \(gpu-thermal\)", "fan", "warning")
    write(root, {zone.format(1, "temp"): "97000\n"})
    failed(power(places(root))["temperature"], "97 °C", "fan")


def test_frequency(tmp_path: Path):
    def root(folder: str, allowed: int, governor: str) -> Places:
        base = "sys/devices/system/cpu/cpu{}/cpufreq/"
        files = {f"{base.format(i)}cpuinfo_max_freq": "2400000\n" for i in (0, 1)}
        files |= {f"{base.format(0)}scaling_max_freq": "2400000\n", f"{base.format(1)}scaling_max_freq": f"{allowed}\n"}
        files |= {f"{base.format(i)}scaling_governor": f"{governor}\n" for i in (0, 1)}
        return places(write(tmp_path / folder, files))

    assert power(root("a", 2400000, "ondemand"))["frequency"].text == "up to 2.4 of 2.4 GHz, governor ondemand"
    failed(power(root("b", 1500000, "ondemand"))["frequency"], r"up to 1\.5 of 2\.4 GHz", "cool the device", "warning")
    failed(power(root("c", 2400000, "powersave"))["frequency"], "governor powersave", "cpupower", "note")


@pytest.mark.skipif(os.name == "nt", reason="the fake programs are scripts")
def test_power_mode_of_a_jetson(tmp_path: Path, tool: Callable[[str, str], None]):
    assert power(places(tmp_path / "root"))["power mode"].verdict == "skipped"
    tool("nvpmodel", "NV Power Mode: 15W\n2")
    failed(power(places(tmp_path / "root"))["power mode"], "15W: not the fastest mode", "nvpmodel -m 0", "note")
    tool("nvpmodel", "NV Power Mode: MAXN\n0")
    assert power(places(tmp_path / "root"))["power mode"].verdict == "ok"
