"""`make check` and `make test`: lint, and meanwhile the kernels that the tests use; then the tests; then what it took.

check.py check|test [ARGUMENTS OF PYTEST]. `check` leaves out the tests that are marked slow. Nothing is tested where
lint fails, unless some tests are picked.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = 4
MINUTES = {"check": 3, "test": 9}
"""What each may take on two idle cores."""


def main(which: str, arguments: list[str]) -> int:
    """Exit status: of lint, or of pytest."""
    start = time.monotonic()
    cold = ["--cold"] if which == "test" and not arguments else []
    kernels = subprocess.Popen([sys.executable, "tests/helpers/kernels.py", *cold], cwd=ROOT)
    try:
        status = subprocess.run([sys.executable, ".ci/lint.py"], cwd=ROOT, check=False).returncode
        linted = time.monotonic()
        # A kernel that does not compile fails tests, which say more about it.
        kernels.wait()
    finally:
        kernels.kill()
        kernels.wait()
    warm = time.monotonic()
    if status == 0:
        some = ["-m", "not slow"] if which == "check" else []
        spread = ["-n", "auto", "--maxprocesses", str(PROCESSES), "--dist", "worksteal"]
        tests = [sys.executable, "-m", "pytest", *spread, *some, *arguments]
        status = subprocess.run(tests, cwd=ROOT, check=False).returncode
    end = time.monotonic()
    took = f"lint {linted - start:.0f} s, waiting for kernels {warm - linted:.0f} s, tests {end - warm:.0f} s"
    print(f"make {which}: {took}: {end - start:.0f} s in all (on two idle cores at most {60 * MINUTES[which]} s)")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
