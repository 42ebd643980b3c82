"""Runs `splitwire cloud serve` in a second process, on 127.0.0.1."""

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

START_S = 300
"""Compiling the kernels for the first time takes more than a minute on a slow or busy machine."""
STOP_S = 15


@contextmanager
def cloud_process(directory: Path) -> Iterator[str]:
    """Run `splitwire cloud serve directory` on a free port and yield its URL; the block's end stops the process.

    Raises DeviceError, with the server's last line, if it ends or is not ready within START_S seconds.
    """
    command = [sys.executable, "-m", "splitwire", "cloud", "serve", str(directory), "--port", "0", "--json"]
    # The log goes to a file. Nobody reads it while the server runs, and a full pipe would block the server.
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,  # noqa: S603 - our own command
    ):
        # A timer ends the process, because reading a pipe has no timeout on some platforms.
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(START_S, give_up)
        timer.start()
        try:
            line = process.stdout.readline() if process.stdout else ""
            timer.cancel()
            if not line:
                process.wait(STOP_S)
                log.seek(0)
                last_line = (log.read().strip() or "nothing").splitlines()[-1]
                if late.is_set():
                    hint = "run `splitwire warmup` once, then try again"
                    raise DeviceError(f"the cloud server was not ready within {START_S} s ({last_line}); {hint}")
                raise DeviceError(f"the cloud server did not start; it said: {last_line}")
            yield str(msgspec.json.decode(line)["url"])
        finally:
            timer.cancel()
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
