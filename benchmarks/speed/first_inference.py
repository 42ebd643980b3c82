"""Measures an edge session in a new process: first inference, CPU time, memory, and the cost of waiting threads.

    python -m benchmarks.speed.first_inference [front.onnx …]

Default: the fronts that `make demo` and `make photos` leave. Each figure is measured in a process of its own, over HTTP
against a server that answers at once, so that front, encoder and link are in it and the back half is not. It writes
build/bench/first_inference.json and prints the same as tables. Where the machine is busy, read CPU time, not wall time.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from splitwire.codec.shared.files import write_json
from splitwire.codec.wire.frame import DecoderLimits, parse_frame
from splitwire.codec.wire.reply import REPLY_MEDIA_TYPE, encode_reply
from splitwire.evaluation.measuring.stages import machine

OUT = Path("build/bench")
FRONTS = (Path("build/demo/front.onnx"), Path("build/demo/photos/front.onnx"))
WARM_RUNS, COLD_RUNS = 7, 3
WARM_S, COLD_CPU_S, IDLE_MB, IDLE_PERCENT = 1.0, 8.0, 250, 2.0

FIRST = """
import json, sys, time
start, cpu = time.perf_counter(), time.process_time()
from splitwire import EdgeSession, HttpTransport
import numpy as np
imported = time.perf_counter()
session = EdgeSession(sys.argv[1], transport=HttpTransport(sys.argv[2]))
opened = time.perf_counter()
if sys.argv[3] == "every point":
    session.warm_up()
shape = [1 if n is None else n for n in session.input_shape]
x = np.random.default_rng(0).random(shape).astype(session.input_dtype)
session.infer(x)
done = time.perf_counter()
used = time.process_time()
time.sleep(3)
idle = (time.process_time() - used) / 3
def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
print(json.dumps({"import_s": imported - start, "open_s": opened - imported, "infer_s": done - opened,
    "wall_s": done - start, "cpu_s": used, "idle_percent": 100 * idle, "rss_mb": status("VmRSS") / 1e6,
    "peak_mb": status("VmHWM") / 1e6, "provider": session.provider}))
session.close()
"""

SPIN = """
import json, sys, time
import numpy as np
import onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level = 3
options.intra_op_num_threads = int(sys.argv[3])
options.add_session_config_entry("session.intra_op.allow_spinning", sys.argv[2])
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rng = np.random.default_rng(0)
feed = {i.name: rng.random([n if isinstance(n, int) else 1 for n in i.shape]).astype(
    np.uint8 if "uint8" in i.type else np.float32) for i in session.get_inputs()}
for _ in range(20):
    session.run(None, feed)
def measured(pause):
    walls, cpu = [], time.process_time()
    for _ in range(100):
        start = time.perf_counter()
        session.run(None, feed)
        walls.append(1e3 * (time.perf_counter() - start))
        time.sleep(pause)
    return sorted(walls)[50], min(walls), 10 * (time.process_time() - cpu)
median, fastest, cpu = measured(0)
_, _, paced = measured(0.02)
print(json.dumps({"median_ms": median, "min_ms": fastest, "cpu_ms": cpu, "paced_cpu_ms": paced}))
"""


class Start(Struct, frozen=True, kw_only=True):
    """Medians of new processes. cache: warm, cold (the default point), or cold, every point of the profile.

    wall_s: from the first import to the first answer. cpu_s: CPU time of the process to then. idle_percent: of one
    core, over three seconds after it. rss_mb, peak_mb: resident memory then, and at most (10⁶ bytes).
    """

    front: str
    cache: str
    runs: int
    import_s: float
    open_s: float
    infer_s: float
    wall_s: float
    cpu_s: float
    idle_percent: float
    rss_mb: float
    peak_mb: float


class Spin(Struct, frozen=True, kw_only=True):
    """One front, 100 runs. spinning: whether waiting threads spin. cpu_ms: CPU time per run, back to back.
    paced_cpu_ms: the same with a pause of 20 ms after each run, as a camera makes."""

    front: str
    threads: int
    spinning: bool
    median_ms: float
    min_ms: float
    cpu_ms: float
    paced_cpu_ms: float


@contextmanager
def answering() -> Iterator[str]:
    """URL of a server in this process that answers every frame at once with ten numbers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            frame = parse_frame(self.rfile.read(int(self.headers["Content-Length"])), DecoderLimits())
            body = encode_reply({"y": np.zeros((1, 10), np.float32)}, frame_id=frame.frame_id, decode_ms=0, back_ms=0)
            self.send_response(200)
            self.send_header("Content-Type", REPLY_MEDIA_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


def child(code: str, *arguments: str, cache: Path) -> dict[str, float]:
    """Run the code in a new process with this cache folder, and return what it prints."""
    run = subprocess.run(  # noqa: S603 - our own code, above
        [sys.executable, "-c", code, *arguments], env={**os.environ, "SPLITWIRE_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    figures: dict[str, float] = json.loads(run.stdout)
    return figures


def starts(front: Path, url: str, folder: Path) -> list[Start]:
    """Warm; cold at the default point; cold at every point."""
    rows = []
    warm = folder / f"{time.monotonic_ns()}"
    child(FIRST, str(front), url, "every point", cache=warm)
    for name, points, runs in (
        ("warm", "default", WARM_RUNS),
        ("cold", "default", COLD_RUNS),
        ("cold, every point", "every point", COLD_RUNS),
    ):
        made = []
        for _ in range(runs):
            cache = warm if name == "warm" else folder / f"{time.monotonic_ns()}"
            made.append(child(FIRST, str(front), url, points, cache=cache))
        fields = [field for field in Start.__struct_fields__ if field in made[0]]
        medians = {field: statistics.median(run[field] for run in made) for field in fields}
        rows.append(Start(front=front.as_posix(), cache=name, runs=runs, **medians))
    return rows


def spins(front: Path, folder: Path) -> list[Spin]:
    """One thread and two, spinning and not."""
    rows = []
    for threads, on in ((1, False), (1, True), (2, False), (2, True)):
        figures = child(SPIN, str(front), str(int(on)), str(threads), cache=folder)
        rows.append(Spin(front=front.as_posix(), threads=threads, spinning=on, **figures))
    return rows


def tables(first: list[Start], spinning: list[Spin]) -> list[Table]:
    """What is written, for people."""
    times = Table(title="New process to the first answer", title_justify="left")
    for name in ("front", "cache", "import s", "open s", "infer s", "wall s", "CPU s", "idle %", "RSS MB", "peak MB"):
        times.add_column(name, justify="left" if name in {"front", "cache"} else "right")
    for row in first:
        seconds = (row.import_s, row.open_s, row.infer_s, row.wall_s, row.cpu_s, row.idle_percent)
        times.add_row(row.front, row.cache, *(f"{s:.2f}" for s in seconds), f"{row.rss_mb:.0f}", f"{row.peak_mb:.0f}")
    costs = Table(title="Waiting threads of ONNX Runtime", title_justify="left")
    for name in ("front", "threads", "spinning", "median ms", "fastest ms", "CPU ms", "CPU ms, paced"):
        costs.add_column(name, justify="right" if "ms" in name else "left")
    for spin in spinning:
        figures = (spin.median_ms, spin.min_ms, spin.cpu_ms, spin.paced_cpu_ms)
        costs.add_row(spin.front, str(spin.threads), "yes" if spin.spinning else "no", *(f"{f:.2f}" for f in figures))
    return [times, costs]


def main() -> None:
    """Measure, print, write build/bench/first_inference.json."""
    fronts = [Path(name) for name in sys.argv[1:]] or [front for front in FRONTS if front.is_file()]
    if not fronts:
        sys.exit("no front to measure: run `make demo` or `make photos` first, or name one")
    first: list[Start] = []
    spinning: list[Spin] = []
    with tempfile.TemporaryDirectory() as name, answering() as url:
        for front in fronts:
            first += starts(front, url, Path(name))
            spinning += spins(front, Path(name))
    targets = {
        "warm_wall_s": WARM_S, "cold_cpu_s": COLD_CPU_S, "idle_rss_mb": IDLE_MB, "idle_percent": IDLE_PERCENT,
    }  # fmt: skip
    OUT.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "first": first, "spinning": spinning, "targets": targets}
    write_json(OUT / "first_inference.json", result)
    for table in tables(first, spinning):
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
