"""A spool of 1 GB opens in under a second, and memory does not grow with what is in it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from splitwire.runtime_edge.spool import Spool
from splitwire.runtime_edge.spool.disk.database import sync
from splitwire.runtime_edge.spool.disk.salvage import count_again
from splitwire.runtime_edge.spool.records import Spooled, State, pack, pack_state
from splitwire.runtime_edge.transport.base import Key

OPEN = """
import json, resource, sys, time

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

from splitwire.runtime_edge.spool import Spool
before = peak()
start = time.perf_counter()
spool = Spool(sys.argv[1], max_bytes=None, max_age_s=None, tier="buffered")
opened = time.perf_counter() - start
frames = spool.stats().frames
done = 0
while done < 60_000 and (records := spool.next(64)):
    spool.acknowledge([r.id for r in records])
    done += len(records)
print(json.dumps({"seconds": opened, "frames": frames, "done": done, "grown": peak() - before}))
spool.close()
"""


def fill(path: Path, frames: int, size: int) -> None:
    """Write a spool of many frames in one transaction, as the spool would."""
    Spool(path).close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA journal_mode=OFF")
    connection.execute("BEGIN")
    frame = bytes(range(256)) * (size // 256 + 1)
    connection.executemany(
        "INSERT INTO records VALUES (?, ?)",
        ((seq, pack(Spooled(seq, Key("device", "boot", seq), frame[:size], 1.0, 1.0))) for seq in range(1, frames + 1)),
    )
    state = count_again(connection, State(device="device", wall=1.0))
    connection.execute("INSERT OR REPLACE INTO state VALUES (1, ?)", (pack_state(state),))
    connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    sync(path)  # or the first sync of the spool writes the gigabyte


@pytest.mark.slow
def test_a_spool_of_a_gigabyte_opens_at_once_with_flat_memory(tmp_path: Path):
    path = tmp_path / "spool.db"
    fill(path, 520_000, 2000)
    assert path.stat().st_size > 1 << 30
    run = subprocess.run([sys.executable, "-c", OPEN, path], capture_output=True, text=True, check=True, timeout=300)
    measured = json.loads(run.stdout)
    print(measured)
    assert measured["frames"] == 520_000
    assert measured["done"] >= 60_000
    assert measured["seconds"] < 1.0
    assert measured["grown"] < 40  # MB; among them the page cache of 2 MB and what `next` returns
