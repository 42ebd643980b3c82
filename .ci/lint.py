"""`make lint`: ruff, mypy and the import rules between the packages. `lint.py NAME…` runs only the named checks.

In the wheel all packages are inside `splitwire` (`codec/` is `splitwire.codec`; pyproject.toml, [tool.setuptools]).
mypy and import-linter do not know that mapping. So each run copies the sources to build/lint, in the layout of the
wheel and with the tests and benchmarks beside them, and checks the copy. Paths in messages are mapped back.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "build" / "lint"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BESIDE = ("tests", "benchmarks", ".ci")
"""Folders outside the wheel whose types are checked too."""


def packages() -> dict[str, str]:
    """Package name → folder, as setuptools maps them."""
    mapping: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
    return mapping


def bases() -> list[str]:
    """The folders from which tests and tools import each other by plain names (pytest's `pythonpath`)."""
    named: list[str] = PROJECT["tool"]["pytest"]["ini_options"]["pythonpath"]
    return [*named, ".ci"]


def lay_out(copy: Path = COPY) -> None:
    """Copy the sources to `copy` in the layout of the wheel. File times stay, so that mypy's cache stays valid."""
    shutil.rmtree(copy, ignore_errors=True)
    places = [(package.replace(".", "/"), folder) for package, folder in packages().items()]
    for place, folder in [*places, *((folder, folder) for folder in BESIDE)]:
        for source in (ROOT / folder).rglob("*"):
            if source.suffix == ".py" or source.name == "py.typed":
                target = copy / place / source.relative_to(ROOT / folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)


def python(*arguments: str, cwd: Path = ROOT) -> bool:
    """Run python with these arguments, and print its output with the paths of the tree. True if its status is 0."""
    environment = {**os.environ, "PYTHONPATH": str(COPY), "NO_COLOR": "1", "COLUMNS": "200"}
    environment["MYPYPATH"] = os.pathsep.join(str(COPY / folder) for folder in (".", *bases()))
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    inside = "|".join(folder for package, folder in packages().items() if "." in package)
    print(re.sub(rf"^splitwire/({inside})/", r"\1/", run.stdout, flags=re.MULTILINE), end="", flush=True)
    return run.returncode == 0


def ruff() -> bool:
    """Style, banned imports, and the formatting."""
    clean = python("-m", "ruff", "check", "--quiet", "--output-format=concise")
    formatted = python("-m", "ruff", "format", "--check", "--output-format=concise")
    return clean and formatted


def types() -> bool:
    """Run mypy on the package, the tests, the benchmarks and the tools (pyproject.toml)."""
    options = ("--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"))
    return python("-m", "mypy", *options, "splitwire", *BESIDE, cwd=COPY)


def imports() -> bool:
    """Check the import contracts in pyproject.toml."""
    run = "import sys; from importlinter.cli import lint_imports as lint; sys.exit(lint(sys.argv[1], no_logo=True))"
    return python("-c", run, str(ROOT / "pyproject.toml"), cwd=COPY)


CHECKS = {"ruff": ruff, "types": types, "imports": imports}

if __name__ == "__main__":
    lay_out()
    passed = [CHECKS[name]() for name in sys.argv[1:] or CHECKS]
    sys.exit(0 if all(passed) else 1)
