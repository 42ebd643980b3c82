"""`make arm`: the built wheel on aarch64, emulated, beside the same wheel here. Their streams must be the same bytes.

Makes in build/arm, without root and without touching the system: an aarch64 CPython 3.11 of Debian 12, qemu's user-mode
emulator, and the wheel of this tree with the extra `edge` (constraints.txt) for both machines; what a small device can
do without is removed from that of aarch64 (edge_size.py). Then arm_suite.py runs once on each, against a server here,
and what the two print is compared. Needs x86-64 with apt-get and Debian's archive keyring.
From nothing about two minutes and 1 GB; later only the wheel and the suite. `rm -r build/arm` starts afresh.
"""

from __future__ import annotations

import difflib
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import edge_size

from splitwire.demo.server import cloud_process

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "build" / "arm"
SYSROOT = HOME / "sysroot"
CPU = "cortex-a76"
PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "libgomp1")
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
GUEST_PYTHON = "311"
ARM, HERE = "site-arm", "site-here"
"""Folders of the two installs."""

APT = f"""\
APT {{ Architecture "arm64"; Architectures {{ "arm64"; "amd64"; }}; Install-Recommends "false"; }};
APT::Sandbox::User "root";
Dir {{ State "{HOME}/apt"; State::status "{HOME}/apt/status"; Cache "{HOME}/apt"; }};
"""

# llvmlite and others read the CPU's features here; they must agree with -cpu.
CPUINFO = """\
processor\t: {}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""


def run(*command: str | Path, cwd: Path = HOME, seconds: float = 900, **environment: str) -> str:
    """Its stdout; ends with what it said if it fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=seconds, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}make arm: {Path(command[0]).name} ended with {done.returncode}")
    return done.stdout


def make_sysroot() -> None:
    """aarch64 Python's files, and qemu."""
    if (HOME / "qemu").exists():
        return
    if not shutil.which("apt-get"):
        sys.exit("make arm needs apt-get: the guest's Python comes from this machine's own Debian sources")
    apt = HOME / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    (apt / "conf").write_text(APT)
    config = str(apt / "conf")
    run("apt-get", "-qq", "update", APT_CONFIG=config)
    run("apt-get", "-qq", "install", "-y", "--download-only", *PACKAGES, APT_CONFIG=config)
    for package in (apt / "archives").glob("*.deb"):
        run("dpkg", "-x", package, SYSROOT)
    (SYSROOT / "proc").mkdir(exist_ok=True)
    (SYSROOT / "proc/cpuinfo").write_text("".join(CPUINFO.format(i) for i in range(2)))
    run("apt-get", "-qq", "download", "qemu-user-static:amd64", cwd=apt, APT_CONFIG=config)
    run("dpkg", "-x", next(apt.glob("qemu-user-static_*.deb")), apt / "qemu")
    qemu = HOME / "qemu.part"
    shutil.copy(apt / "qemu/usr/bin/qemu-aarch64-static", qemu)
    qemu.chmod(qemu.stat().st_mode | stat.S_IXUSR)
    shutil.rmtree(apt)
    qemu.rename(HOME / "qemu")  # last: its presence says that all of this is done


def install(sites: Sequence[str] = (ARM, HERE)) -> None:
    """The wheel of this tree, made from its sdist, and what its extra `edge` requires, into these folders."""
    shutil.rmtree(HOME / "dist", ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", HOME / "dist", ROOT)
    (wheel,) = (HOME / "dist").glob("*.whl")
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--quiet",
        "install",
        "--upgrade",
        "--no-compile",
    )
    pins = (ROOT / "constraints.txt").read_text() + (ROOT / "pyproject.toml").read_text()
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    guest = ("--python-version", GUEST_PYTHON, "--implementation", "cp", "--only-binary=:all:", *platforms)
    for name in sites:
        site, options = HOME / name, guest if name == ARM else ()
        stamp = site / "installed.txt"
        if not stamp.exists() or stamp.read_text() != pins:
            shutil.rmtree(site, ignore_errors=True)
            run(*pip, "--target", site, *options, f"{wheel}[edge]", "--constraint", ROOT / "constraints.txt")
            stamp.write_text(pins)
        run(*pip, "--target", site, "--no-deps", *options, wheel)


def make_pair() -> Path:
    """The folder of a tiny pair whose front gives the same bits in every order of its sums. Needs onnx."""
    sys.path[:0] = [str(ROOT / "tests/helpers/runtime"), str(ROOT / "tests/helpers/codec")]
    from runtime_helpers import make_pair

    make_pair(HOME / "pair", exact=True)
    return HOME / "pair"


def suite(name: str, python: tuple[str | Path, ...], site: Path, url: str, environment: Mapping[str, str]) -> str:
    """What arm_suite.py prints there, in one process. url: of a server that serves the pair."""
    start = time.monotonic()
    output = run(
        *python, "-P", ROOT / ".ci/arm_suite.py", ROOT / "tests", HOME / "pair", url, cwd=HOME, seconds=1800,
        PYTHONPATH=str(site), PYTHONDONTWRITEBYTECODE="1", NUMBA_CACHE_DIR=str(HOME / "kernels"), **environment,
    )  # fmt: skip
    print(f"{name}: {len(output.splitlines())} lines in {time.monotonic() - start:.0f} s")
    return output


def main() -> int:
    """0 if both machines printed the same; with --size, if the edge install is small enough."""
    start = time.monotonic()
    HOME.mkdir(parents=True, exist_ok=True)
    if sys.argv[1:] == ["--size"]:
        install((ARM,))
        return edge_size.report(HOME / ARM)
    make_sysroot()
    print(f"sysroot: {time.monotonic() - start:.0f} s", flush=True)
    install()
    print(f"wheel installed for both: {time.monotonic() - start:.0f} s", flush=True)
    if edge_size.report(HOME / ARM):
        return 1
    emulator = (HOME / "qemu", "-cpu", CPU, "-L", SYSROOT, SYSROOT / "usr/bin/python3.11")
    with cloud_process(make_pair()) as url:
        here = suite("here", (sys.executable,), HOME / HERE, url, {})
        interpreted = suite("here, interpreted", (sys.executable,), HOME / HERE, url, {"NUMBA_DISABLE_JIT": "1"})
        arm = suite("aarch64", emulator, HOME / ARM, url, {})
    print(here.splitlines()[-1])
    (HOME / "streams.txt").write_text(here)
    for name, other in (("interpreted", interpreted), ("aarch64", arm)):
        if other != here:
            print(
                *difflib.unified_diff(here.splitlines(), other.splitlines(), "here", name, n=0, lineterm=""), sep="\n"
            )
            print(f"make arm: FAILED, the streams of {name} differ")
            return 1
    print(f"make arm: the same bytes, compiled, interpreted and on aarch64; {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
