"""`make versions`: tests the codec and both runtimes on the lowest and the newest versions that pyproject.toml allows.

Lowest: each requirement of the base, edge and cloud installs has its lowest version, on the oldest Python. Newest: pip
installs without constraints, on the newest Python that starts here. The tests run against the built wheel, as users
install it, and need no torch. The environments stay in build/versions; one takes about a minute to make.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "build" / "versions"
EXTRAS = ("edge", "cloud")

TESTS = (
    "tests/codec/test_codec.py",
    "tests/codec/entropy/test_coders.py",
    "tests/codec/shared/test_files.py",
    "tests/codec/test_mean_preserving.py",
    "tests/codec/entropy/test_predictive.py",
    "tests/codec/test_vectors.py",
    "tests/edge/test_edge_command.py",
    "tests/edge/test_edge_options.py",
    "tests/edge/test_edge_session.py",
    "tests/edge/transport/test_edge_transport.py",
    "tests/edge/test_findings.py",
    "tests/cloud",
)
"""The codec and the runtimes; none of these needs torch."""

TOOLS = (
    "filelock",
    "httpx",
    "hypothesis",
    "onnx",
    "packaging",
    "pytest",
    "scipy",
    "setuptools",
    "threadpoolctl",
    "trustme",
)
"""Other packages that these tests import. They make graphs and tables, and are not under test."""


def read_project() -> dict[str, Any]:
    """[project] of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def find_pythons(project: dict[str, Any]) -> list[str]:
    """Commands of the Pythons in the classifiers that start on this machine, oldest first."""
    versions = [m[1] for c in project["classifiers"] if (m := re.search(r":: (3\.\d+)$", c))]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    pythons = []
    for version in versions:
        # pyenv has a command on the path for every installed version; only the selected versions start.
        choices = [shutil.which(f"python{version}"), *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]
        pythons += [next((c for c in choices if c is not None and starts(c)), None)]
    return [python for python in pythons if python is not None]


def starts(python: str) -> bool:
    """Whether this Python runs."""
    return not subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode


def lowest(project: dict[str, Any]) -> list[str]:
    """`name==version` with the lowest version of each requirement in the base, edge and cloud installs.

    If a package has two requirements, the higher of the lowest versions counts. Markers (of other systems) are ignored.
    """
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for extra in EXTRAS for text in extras[extra])]
    pins: dict[str, str] = {}
    for text in texts:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?>=([0-9.]+)", text.partition(";")[0])
        if match is None:
            sys.exit(f"make versions: the requirement {text!r} has no lowest version; write name>=version")
        name, version = match[1], match[2]
        pins[name] = max(pins.get(name, "0"), version, key=lambda v: [int(n) for n in v.split(".")])
    return [f"{name}=={version}" for name, version in pins.items()]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def must(command: list[str]) -> str:
    """Run a command that must succeed, and return its output."""
    done = run(command)
    if done.returncode:
        sys.exit(f"make versions: {' '.join(command[:6])} … ended with {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


def make_environment(name: str, python: str, wheel: Path, pins: list[str]) -> Path:
    """The Python of a fresh environment in build/versions/`name` with the wheel, `pins` and the test tools."""
    home = HOME / name
    shutil.rmtree(home, ignore_errors=True)
    must([python, "-m", "venv", str(home)])
    pip = [str(home / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    must([*pip, f"{wheel}[{','.join(EXTRAS)}]", *pins, *TOOLS])
    return home / "bin/python"


def test(name: str, python: Path) -> bool:
    """Run the tests with the environment's own compiled kernels; print its versions and pytest's last line."""
    shown = ("numpy", "numba", "msgspec", "typer", "rich", "onnxruntime", "starlette", "uvicorn")
    code = f"from importlib.metadata import version as v; print(*(f'{{n}} {{v(n)}}' for n in {shown}), sep=', ')"
    said = must([str(python), "-c", code]).strip()
    start = time.monotonic()
    # The wheel is under test, not the sources in the working folder. Other versions have warnings of their own.
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    # It runs a script of tests/, which finds its neighbours only where the working folder is on the path.
    command += ["--deselect", "tests/codec/test_vectors.py::test_vectors_are_not_made_anew_by_accident", *TESTS]
    done = run(command, PYTHONSAFEPATH="1", SPLITWIRE_CACHE_DIR=str(HOME / name / "kernels"))
    print(f"{name}: {must([str(python), '--version']).strip()}; {said}")
    print(f"{name}: {done.stdout.strip().splitlines()[-1]}; {time.monotonic() - start:.0f} s elapsed", flush=True)
    if done.returncode:
        print(done.stdout[-8000:])
    return done.returncode == 0


def main() -> None:
    """Build the wheel, make the environments, run the tests in each; exit status 1 if one fails."""
    project = read_project()
    pythons = find_pythons(project)
    if not pythons:
        sys.exit("make versions: none of the Pythons in pyproject.toml's classifiers starts here")
    shutil.rmtree(HOME / "wheel", ignore_errors=True)
    must([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(HOME / "wheel"), str(ROOT)])
    (wheel,) = (HOME / "wheel").glob("*.whl")
    passed = [
        test("lowest", make_environment("lowest", pythons[0], wheel, lowest(project))),
        test("newest", make_environment("newest", pythons[-1], wheel, [])),
    ]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
