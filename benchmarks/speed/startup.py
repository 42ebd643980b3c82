"""Measures how fast a new process codes its first tensor, and how much memory a large tensor takes. Codec only.

It writes build/bench/startup.json (machine, first_encode, memory) and prints the same as tables. Every figure is
measured in a new process. The time is that of the whole process up to the first frame, interpreter and imports
included.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from msgspec import Struct
from rich.console import Console
from rich.table import Table

from splitwire.codec.shared.files import write_json
from splitwire.evaluation.measuring.stages import machine

OUT = Path("build/bench")
REPEATS = 7
SHAPE = (64, 28, 28)
LARGE = (256, 128, 128)  # 64 MB as four images of float32
OPERATING_POINTS = ("whole-blocks", "padded-blocks", "no-tables", "predicted")
TARGET_SECONDS = 1.0
TARGET_TENSORS = 3.0

FIRST_ENCODE = """
import json, sys, time
start = time.perf_counter()
import numpy as np
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.profile import CodecProfile
imported = time.perf_counter()
codec = FeatureCodec(CodecProfile.from_json(open(sys.argv[1]).read()))
x = np.maximum(np.random.default_rng(0).laplace(-0.6, size=(1, *codec.profile.tensors[0].shape)), 0).astype(np.float32)
begin = time.perf_counter()
codec.encode([x])
end = time.perf_counter()
print(json.dumps({"import_s": imported - start, "encode_s": end - begin, "cpu_s": time.process_time()}))
"""

# A tiny tensor loads the kernels before the baseline is measured. A large one would leave freed memory behind, which
# the next tensor would use without an effect on the peak. VmHWM is read because ru_maxrss of a child begins with its
# parent's; writing 5 to clear_refs sets VmHWM to the current size.
PEAK = """
import json, sys
import numpy as np
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.profile import CodecProfile
from splitwire.codec.warmup import example_profile
def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
small = FeatureCodec(example_profile())
small.decode(small.encode([np.zeros((1, *small.profile.tensors[0].shape), np.float32)]))
codec = FeatureCodec(CodecProfile.from_json(open(sys.argv[1]).read()))
shape = codec.profile.tensors[0].shape
open("/proc/self/clear_refs", "w").write("5")
if sys.argv[2] == "encode":
    before = status("VmRSS")
    x = np.empty((4, *shape), np.float32)
    rng = np.random.default_rng(0)
    for image in x:
        for plane in image:
            plane[:] = np.maximum(rng.laplace(-0.6, size=plane.shape), 0)
    frame = codec.encode([x], op=sys.argv[4])
else:
    frame = open(sys.argv[3], "rb").read()
    before = status("VmRSS") - len(frame)
    x = codec.decode(frame).tensors[0]
if sys.argv[2] == "encode":
    open(sys.argv[3], "wb").write(frame)
print(json.dumps({"tensor_bytes": x.nbytes, "frame_bytes": len(frame), "peak_bytes": status("VmHWM") - before}))
"""


class FirstEncode(Struct, frozen=True, kw_only=True):
    """Medians of new processes, seconds.

    cache: warm or cold. process_s: from the start of Python to its end. import_s: import of the codec. encode_s: first
    tensor, kernels included. total_s: the sum of the two. cpu_s: CPU time of the process.
    """

    cache: str
    runs: int
    process_s: float
    import_s: float
    encode_s: float
    total_s: float
    cpu_s: float


class Memory(Struct, frozen=True, kw_only=True):
    """The memory of one call.

    peak_bytes: the largest increase during the call, with the float tensor and the frame. op: operating point of
    codec/warmup.py: whole blocks of 2×2, blocks of 1×3 with padded planes, the coder without tables, the predictive
    one.
    """

    call: str
    op: str
    tensor_bytes: int
    frame_bytes: int
    peak_bytes: int
    tensors: float


def child(code: str, *arguments: str, cache: Path) -> dict[str, float]:
    """Run the code in a new process with this kernel cache, and return what it prints."""
    environment = {**os.environ, "SPLITWIRE_CACHE_DIR": str(cache)}
    start = time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)  # noqa: S603 - our own code, above
    seconds = time.perf_counter() - start
    figures: dict[str, float] = json.loads(run.stdout)
    return {**figures, "process_s": seconds}


def first_encode(profile: Path, folder: Path) -> list[FirstEncode]:
    """Measure with a warm and with a cold cache, in turns."""
    runs: dict[str, list[dict[str, float]]] = {"warm": [], "cold": []}
    child(FIRST_ENCODE, str(profile), cache=folder / "warm")
    for i in range(REPEATS):
        runs["warm"].append(child(FIRST_ENCODE, str(profile), cache=folder / "warm"))
        runs["cold"].append(child(FIRST_ENCODE, str(profile), cache=folder / f"cold-{i}"))

    def median(cache: str, *fields: str) -> float:
        return statistics.median(sum(run[field] for field in fields) for run in runs[cache])

    return [
        FirstEncode(
            cache=cache,
            runs=REPEATS,
            process_s=median(cache, "process_s"),
            import_s=median(cache, "import_s"),
            encode_s=median(cache, "encode_s"),
            total_s=median(cache, "import_s", "encode_s"),
            cpu_s=median(cache, "cpu_s"),
        )
        for cache in runs
    ]


def memory(profile: Path, folder: Path) -> list[Memory]:
    """Peaks of encode and of decode; none where the system does not tell them (/proc)."""
    if not Path("/proc/self/clear_refs").exists():
        return []
    rows = []
    for op, call in itertools.product(OPERATING_POINTS, ("encode", "decode")):
        figures = child(PEAK, str(profile), call, str(folder / "frame"), op, cache=folder / "warm")
        sizes = {k: int(figures[k]) for k in ("tensor_bytes", "frame_bytes", "peak_bytes")}
        rows.append(Memory(call=call, op=op, tensors=sizes["peak_bytes"] / sizes["tensor_bytes"], **sizes))
    return rows


def tables(first: list[FirstEncode], peaks: list[Memory]) -> list[Table]:
    """What is written, for people."""
    times = Table(title="New process, first tensor of 64×28×28", title_justify="left")
    for name in ("kernel cache", "import s", "encode s", "both s", "CPU s", "whole process s"):
        times.add_column(name, justify="right" if name.endswith(" s") else "left")
    for row in first:
        figures = (row.import_s, row.encode_s, row.total_s, row.cpu_s, row.process_s)
        times.add_row(row.cache, *(f"{figure:.2f}" for figure in figures))
    sizes = Table(title="Peak memory of a call, tensor and frame included", title_justify="left")
    for name in ("call", "operating point", "tensor MB", "frame MB", "peak MB", "× tensor"):
        sizes.add_column(name, justify="right" if name.endswith(("MB", "tensor")) else "left")
    for peak in peaks:
        megabytes = (f"{size / 1e6:.1f}" for size in (peak.tensor_bytes, peak.frame_bytes, peak.peak_bytes))
        sizes.add_row(peak.call, peak.op, *megabytes, f"{peak.tensors:.2f}")
    return [times, sizes]


def main() -> None:
    """Measure, print, write build/bench/startup.json."""
    from splitwire.codec.warmup import example_profile

    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, large = folder / "small.json", folder / "large.json"
        small.write_text(example_profile(SHAPE).to_json())
        large.write_text(example_profile(LARGE).to_json())
        first = first_encode(small, folder)
        peaks = memory(large, folder)
    result = {
        "machine": machine(), "first_encode": first, "memory": peaks,
        "targets": {"warm_total_s": TARGET_SECONDS, "tensors": TARGET_TENSORS},
    }  # fmt: skip
    write_json(OUT / "startup.json", result)
    for table in tables(first, peaks):
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
