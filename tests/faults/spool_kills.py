"""Kills the process that spools, again and again, with SIGKILL: what it was told to be stored must be there.

The child prints the number of each frame once its future is done, and of each frame that it acknowledges as delivered.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from faults_table import Row
from power_cuts import content

from splitwire.runtime_edge.spool import Spool

CHILD = """
import sys
sys.path[:0] = sys.argv[4:]
from power_cuts import content
from splitwire.runtime_edge.spool import Spool

spool = Spool(sys.argv[1], tier=sys.argv[2], max_bytes=None, max_age_s=None)
number = int(sys.argv[3])
while True:
    futures = [(n, spool.put(content(n), spool.new_key(), float(n))) for n in range(number, number + 40)]
    number += 40
    for n, future in futures:
        future.result()
        sys.stdout.write(f"stored {n}\\n")
    sys.stdout.flush()
    records = spool.next(10)
    for record in records:
        sys.stdout.write(f"delivered {int(record.captured_wall)}\\n")
    sys.stdout.flush()
    spool.acknowledge([record.id for record in records])
"""


def kill_once(path: Path, tier: str, number: int, after_s: float) -> list[tuple[str, int]]:
    """Start a child, and kill it some seconds after its first line. Returns its whole lines."""
    paths = [str(Path(__file__).parent), *(p for p in sys.path if "helpers" in p or "faults" in p)]
    command = [sys.executable, "-c", CHILD, str(path), tier, str(number), *paths]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)  # readline() takes no byte of the next line
    assert child.stdout is not None
    first = child.stdout.readline()
    time.sleep(after_s)
    os.kill(child.pid, signal.SIGKILL)
    rest, _ = child.communicate(timeout=60)
    lines = (first + rest).split(b"\n")[:-1]  # what is behind the last line end was cut
    return [(word.decode(), int(n)) for word, n in (line.split() for line in lines)]


def kills(path: Path, count: int, tier: Literal["durable", "buffered"]) -> Row:
    """The row of one tier."""
    rng = random.Random(2)
    stored: set[int] = set()
    delivered: set[int] = set()
    for trial in range(count):
        for word, number in kill_once(path, tier, trial * 1_000_000, rng.uniform(0, 0.3)):
            (stored if word == "stored" else delivered).add(number)
    found: list[int] = []
    wrong, counters = 0, []
    with Spool(path, max_bytes=None, max_age_s=None) as spool:
        last = 0
        while records := spool.next(500, after=last):
            for record in records:
                number = int(record.captured_wall)
                found.append(number)
                counters.append((record.key.boot, record.key.counter))
                wrong += record.frame != content(number)
            last = records[-1].id
    return Row(
        fault=f"edge SIGKILLed while frames are spooled ({tier} tier)",
        trials=count,
        promised=len(stored),
        lost=len(stored - delivered - set(found)),
        twice=len(found) - len(set(found)) + len(counters) - len(set(counters)),
        wrong=wrong + (found != sorted(found)),
        note=f"{len(delivered):,} delivered before; {len(set(found) - stored):,} were stored and not yet confirmed",
    )


def rows(folder: Path, short: bool) -> list[Row]:
    """20 kills per tier; 3 of the durable tier in short."""
    if short:
        return [kills(folder / "durable.db", 3, "durable")]
    return [kills(folder / f"{tier}.db", 20, tier) for tier in ("durable", "buffered")]
