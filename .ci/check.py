"""`make check` and `make test`: lint, and beside it the tests; then how long it took.

check.py check|test [ARGUMENTS OF PYTEST]. `check` leaves out the tests that are marked slow. The tests start as soon as
the kernels that they use are compiled. Lint keeps one core busy meanwhile; where it fails, the tests are stopped.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = 4
MINUTES = {"check": 3, "test": 9}
"""Longest time of each on two idle cores."""


class Lint(threading.Thread):
    """`lint.py` in a process of its own. It prints what lint says in one piece; `stop` ends the tests if it fails."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.status: int | None = None
        self.seconds = 0.0
        self._tests: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, ".ci/lint.py"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.start()

    def run(self) -> None:
        """Wait for lint, print its output, and stop the tests if it fails."""
        said, _ = self._process.communicate()
        with self._lock:
            self.status = self._process.returncode
            self.seconds = time.monotonic() - self._start
            print(f"\n{said}lint: {'passed' if not self.status else 'FAILED'} after {self.seconds:.0f} s", flush=True)
            if self.status and self._tests is not None:
                self._tests.send_signal(signal.SIGINT)

    def beside(self, command: list[str]) -> int | None:
        """Exit status of the tests, which run beside lint; None if lint has failed before they start."""
        with self._lock:
            if self.status:
                return None
            self._tests = subprocess.Popen(command, cwd=ROOT)
        return self._tests.wait()

    def stop(self) -> None:
        """End lint if it still runs."""
        if self._process.poll() is None:
            self._process.terminate()
        self.join()


def main(which: str, arguments: list[str]) -> int:
    """Exit status: of lint if it fails, or else of pytest."""
    start = time.monotonic()
    lint = Lint()
    try:
        cold = ["--cold"] if which == "test" and not arguments else []
        # If a kernel does not compile, tests fail with a better message.
        subprocess.run([sys.executable, "tests/helpers/kernels.py", *cold], cwd=ROOT, check=False)
        warm = time.monotonic()
        selection = ["-m", "not slow"] if which == "check" else []
        spread = ["-n", "auto", "--maxprocesses", str(PROCESSES), "--dist", "worksteal"]
        tests = lint.beside([sys.executable, "-m", "pytest", *spread, *selection, *arguments])
        end = time.monotonic()
        lint.join()
    finally:
        lint.stop()
    took = f"lint {lint.seconds:.0f} s; kernels {warm - start:.0f} s, then tests {end - warm:.0f} s"
    print(f"make {which}: {took}: {end - start:.0f} s in all (on two idle cores at most {60 * MINUTES[which]} s)")
    return lint.status or tests or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
