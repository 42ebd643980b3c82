"""The cloud half as a process of its own, on 127.0.0.1."""

from __future__ import annotations

import io
import subprocess
import sys
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
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # A timer rather than a read with a timeout: pipes have none on every platform.
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    log = process.stderr or io.StringIO()
    try:
        line = (process.stdout or io.StringIO()).readline()
        timer.cancel()
        if not line:
            said = log.read().strip() or f"nothing within {START_S} s"
            raise DeviceError(f"the cloud server did not start; it said: {said.splitlines()[-1]}")
        # Nobody reads its log from here on; without this a full pipe would stop it.
        threading.Thread(target=log.read, daemon=True).start()
        yield str(msgspec.json.decode(line)["url"])
    finally:
        timer.cancel()
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
