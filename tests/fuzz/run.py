"""`make fuzz`: every target of targets.py for its share of FUZZ_SECONDS (600), from the golden vectors as seeds.

`run.py NAME …` runs some of them, `run.py NAME FILE` an input that a target has failed on. What the fuzzer finds worth
keeping stays in build/fuzz/corpus for the next time; an input that fails goes to build/fuzz/failed, and the run fails.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
HOME = ROOT / "build" / "fuzz"
sys.path.insert(0, str(TESTS))
sys.path.insert(0, str(TESTS / "helpers" / "codec"))

import vectors  # noqa: E402 - lies beside this folder

from splitwire.codec.wire.batch import (  # noqa: E402 - the order is isort's
    FrameRecord,
    ReplyRecord,
    build_frames,
    build_replies,
)
from splitwire.codec.wire.reply import encode_reply  # noqa: E402 - as well

RUNS = {
    "frame": {},
    "decode": {"NUMBA_DISABLE_JIT": "1"},
    "forged": {"NUMBA_DISABLE_JIT": "1"},
    "forged, compiled": {},
    "profile": {"NUMBA_DISABLE_JIT": "1"},
    "reply": {},
    "batch": {},
    "stream": {},
}
"""Name of the target, and how it runs besides → environment."""
OPTIONS = ("-max_len=8192", "-timeout=30", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=1")


def seeds(target: str) -> list[bytes]:
    """Inputs to begin with."""
    found = [vectors.load(name) for name in vectors.names()]
    if target == "profile":
        return [v.profile.encode() for v in found if len(v.profile) < 8192]
    if target == "frame":
        return [v.frame for v in found]
    if target == "reply":
        types: tuple[type[np.generic], ...] = (np.float32, np.int64, np.uint8, np.bool_, np.float16)
        outputs = {f"o{i}": np.ones((1, 2 + i), t) for i, t in enumerate(types)}
        return [
            encode_reply(dict(list(outputs.items())[:n]), frame_id=n, decode_ms=0.5, back_ms=1.0)
            for n in range(1, len(outputs) + 1)
        ]
    if target == "batch":
        records = [FrameRecord(frame=b"frame", key="cam:boot:1"), FrameRecord(frame=b"")]
        return [
            build_frames(records),
            build_replies([ReplyRecord(body=b"reply"), ReplyRecord(body=b"{}", is_error=True)]),
        ]
    if target == "stream":
        stored = json.loads((TESTS / "vectors/stream/conversation.json").read_text(encoding="utf-8"))
        return [b"\x40" + bytes.fromhex(side["bytes"]) for side in stored.values()]
    return [bytes([i]) + v.frame for i, v in enumerate(found)]


def lay_out() -> None:
    """The sources as the wheel has them: Atheris instruments only what Python's own path finder finds."""
    shutil.rmtree(HOME / "src", ignore_errors=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package, folder in project["tool"]["setuptools"]["package-dir"].items():
        shutil.copytree(
            ROOT / folder, HOME / "src" / package.replace(".", "/"), dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "*.npz", "*.onnx"),
        )  # fmt: skip


def fuzz(run: str, arguments: list[str], seconds: float) -> tuple[int, str]:
    """Exit status and everything it said."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(TESTS / "fuzz/targets.py"), run.partition(",")[0], *OPTIONS, *arguments],
        env={**os.environ, "PYTHONPATH": str(HOME / "src"), **RUNS[run]}, cwd=HOME,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
        timeout=seconds + 300,
    )  # fmt: skip
    return done.returncode, done.stdout


def main(arguments: list[str]) -> int:
    lay_out()
    if len(arguments) == 2 and arguments[1] not in RUNS:
        status, output = fuzz(arguments[0], [str(Path(arguments[1]).resolve())], 60)
        print(output)
        return status
    runs = arguments or list(RUNS)
    share = int(float(os.environ.get("FUZZ_SECONDS", "600")) / len(runs))
    (HOME / "failed").mkdir(parents=True, exist_ok=True)
    rows = []
    for run in runs:
        corpus = HOME / "corpus" / run.partition(",")[0]
        corpus.mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate(seeds(corpus.name)):
            (corpus / f"seed-{i}").write_bytes(seed)
        artifacts = f"-artifact_prefix={HOME}/failed/{corpus.name}-"
        status, output = fuzz(run, [str(corpus), f"-max_total_time={share}", artifacts], share)
        executed = re.search(r"number_of_executed_units:\s*(\d+)", output)
        rate = re.search(r"average_exec_per_sec:\s*(\d+)", output)
        covered = re.findall(r"cov: (\d+) ft: (\d+)", output)
        row = {
            "target": run, "seconds": share, "executions": int(executed[1]) if executed else 0,
            "per_second": int(rate[1]) if rate else 0, "edges": int(covered[-1][0]) if covered else 0,
            "inputs": len(list(corpus.iterdir())), "failed": status != 0,
        }  # fmt: skip
        rows.append(row)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if status:
            print(output[-6000:])
    (HOME / "fuzz.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(row["failed"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
