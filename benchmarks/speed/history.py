"""`make bench-history`: compares this tree's ratios with those of the last release in benchmarks/history/.

It reads build/bench/codec.json, which `make bench-codec` writes. Each figure is a ratio to zstd 3, measured in the same
run: the bytes divided by its bytes, and the speed divided by its speed. So two files may come from two machines.
`python -m benchmarks.speed.history record 0.2.0` writes the file of a release.
The exit status is 1 if a frame grew, because bytes do not depend on the machine. Changes of speed are only reported.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.speed.codec import CONTEXT, OURS, Row
from splitwire.codec.shared.files import write_json

HISTORY = Path(__file__).parents[1] / "history"
MEASURED = Path("build/bench/codec.json")
VERSION = r"\d+(?:\.\d+)+"
PEER = "bit-pack + zstd 3"
BYTES_MOVED, SPEED_MOVED = 0.005, 0.25
"""A ratio counts as moved if its relative change is larger: bytes are exact, speeds vary from run to run."""


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the history. bytes, encode, decode: "tensor, N = 4, coder" → ratio to PEER."""

    release: str
    machine: dict[str, str | int]
    bytes: dict[str, float]
    encode: dict[str, float]
    decode: dict[str, float]


class _Measured(msgspec.Struct):
    machine: dict[str, str | int]
    rows: list[Row]


def summarise(release: str, path: Path = MEASURED) -> Release:
    """The ratios in a codec.json. Exits with one line if the file is missing."""
    if not path.is_file():
        sys.exit(f"{path} is missing; run `make bench-codec` first")
    measured = msgspec.json.decode(path.read_bytes(), type=_Measured)
    peers = {(r.tensor, r.levels): r for r in measured.rows if r.coder == PEER}
    ours = {f"{r.tensor}, N = {r.levels}, {r.coder}": r for r in measured.rows if r.coder in (OURS, CONTEXT)}
    peer = {name: peers[r.tensor, r.levels] for name, r in ours.items()}
    return Release(
        release=release,
        machine=measured.machine,
        bytes={name: round(r.bytes / peer[name].bytes, 4) for name, r in ours.items()},
        encode={name: round(r.encode_melem_s / peer[name].encode_melem_s, 3) for name, r in ours.items()},
        decode={name: round(r.decode_melem_s / peer[name].decode_melem_s, 3) for name, r in ours.items()},
    )


def last_release(folder: Path = HISTORY) -> Release:
    """The newest release in the history, by version number."""
    files = sorted(folder.glob("*.json"), key=lambda p: [int(n) for n in p.stem.split(".")])
    if not files:
        sys.exit(f"{folder} holds no release; write one with `python -m benchmarks.speed.history record VERSION`")
    return msgspec.json.decode(files[-1].read_bytes(), type=Release)


def moved(before: Release, now: Release) -> list[tuple[str, str, float, float]]:
    """(what, name, ratio before, ratio now) of each ratio that moved; NaN if one of the releases does not have it."""
    changes = []
    for what, limit in (("bytes", BYTES_MOVED), ("encode", SPEED_MOVED), ("decode", SPEED_MOVED)):
        old, new = getattr(before, what), getattr(now, what)
        for name in {**old, **new}:
            a, b = old.get(name, float("nan")), new.get(name, float("nan"))
            if not abs(b - a) <= limit * a:
                changes.append((what, name, a, b))
    return changes


def grew(changes: list[tuple[str, str, float, float]]) -> bool:
    """Whether a frame needs more bytes than before, or is no longer measured."""
    return any(what == "bytes" and not now <= before for what, _, before, now in changes if not math.isnan(before))


def main(arguments: list[str]) -> int:
    """`record VERSION` writes the file of a release; no argument compares. Returns the exit status."""
    if arguments and not (len(arguments) == 2 and arguments[0] == "record" and re.fullmatch(VERSION, arguments[1])):
        sys.exit(f"expected nothing, or `record VERSION` as in `record 0.2.0`; got {' '.join(arguments)!r}")
    if arguments:
        HISTORY.mkdir(exist_ok=True)
        write_json(HISTORY / f"{arguments[1]}.json", summarise(arguments[1]))
        return 0
    before, now = last_release(), summarise("this tree")
    changes = moved(before, now)
    table = Table(title=f"This tree against {before.release}, ratios to {PEER}", title_justify="left")
    for heading in ("figure", "tensor, levels, coder"):
        table.add_column(heading)
    for heading in (before.release, "now", "change"):
        table.add_column(heading, justify="right")
    for what, name, a, b in changes:
        table.add_row(what, name, f"{a:.3f}", f"{b:.3f}", f"{b / a - 1:+.1%}")
    Console().print(table if changes else f"nothing moved since {before.release}")
    return 1 if grew(changes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
