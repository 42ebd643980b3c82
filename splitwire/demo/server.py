"""The cloud half as a process of its own, on 127.0.0.1."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from splitwire.codec.errors import DeviceError

START_S = 60
STOP_S = 15


@contextmanager
def cloud_process(directory: Path) -> Iterator[str]:
    """Run `splitwire cloud serve directory` on a free port and yield its URL; the process is ended on leaving.

    Raises DeviceError, with what the server said, if it is not ready within a minute.
    """
    command = [sys.executable, "-m", "splitwire", "cloud", "serve", str(directory), "--port", "0", "--json"]
    # The log goes to a file: nobody reads it while the server runs, and a full pipe would stop it.
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,  # noqa: S603 - our own
    ):
        # A timer rather than a read with a timeout: pipes have none on every platform.
        timer = threading.Timer(START_S, process.kill)
        timer.start()
        try:
            line = process.stdout.readline() if process.stdout else ""
            timer.cancel()
            if not line:
                process.wait(STOP_S)
                log.seek(0)
                said = log.read().strip() or f"nothing within {START_S} s"
                raise DeviceError(f"the cloud server did not start; it said: {said.splitlines()[-1]}")
            yield str(msgspec.json.decode(line)["url"])
        finally:
            timer.cancel()
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
