"""Flipped bytes, files cut short, lost pages: a damaged record loses itself only."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from spool_helpers import Told, everything, flip, frame, put

from splitwire.codec.errors import UsageError
from splitwire.runtime_edge.spool import Spool
from splitwire.runtime_edge.spool.disk.salvage import side
from splitwire.runtime_edge.spool.records import Damaged, unpack, unpack_dead, unpack_state


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def crashed(path: Path, numbers: range, size: int = 200) -> None:
    """A spool whose process died: everything committed, the log not copied into the database."""
    code = (
        "import os, sys\nsys.path.insert(0, sys.argv[4])\nfrom pathlib import Path\nfrom spool_helpers import put\n"
        "from splitwire.runtime_edge.spool import Spool\ns = Spool(Path(sys.argv[1]))\n"
        "a, b, size = map(int, sys.argv[2].split())\nput(s, range(a, b), size)\nos._exit(0)"
    )
    helpers = str(Path(__file__).parents[2] / "faults")
    arguments = [str(path), f"{numbers.start} {numbers.stop} {size}", "", helpers]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=60)


def place(path: Path, data: bytes) -> int:
    """Where some bytes are in a file, once."""
    content = path.read_bytes()
    assert content.count(data) == 1
    return content.index(data)


@pytest.mark.parametrize("size", [200, 9000], ids=["in a page", "in overflow pages"])
def test_a_damaged_record_loses_itself_only(path: Path, size: int):
    with Spool(path) as spool:
        put(spool, range(50), size)
    flip(path, place(path, frame(20, size)[50:90]))
    told = Told()
    with Spool(path, on_event=told) as spool:
        assert [r.frame for r in everything(spool)] == [frame(n, size) for n in range(50) if n != 20]
        assert (spool.stats().frames, spool.stats().dead, spool.stats().counts.damaged) == (49, 1, 1)
    assert told.text("spool_record") == "record 21 of the spool is damaged (its checksum is wrong); the others are not"
    assert not list(path.parent.glob("*.damaged*"))


def test_a_flip_in_the_log_hides_no_later_commit(path: Path):
    """SQLite stops at the first page with a wrong checksum: the rest of the log is read by its records."""
    crashed(path, range(200))
    wal = side(path, "-wal")
    flip(wal, place(wal, frame(3)[20:60]) if wal.read_bytes().count(frame(3)[20:60]) == 1 else 40_000)
    shutil.copytree(path.parent, path.parent.parent / "plain", ignore=shutil.ignore_patterns("*.sock"))
    plain = sqlite3.connect(path.parent.parent / "plain" / "spool.db")
    (seen,) = plain.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (alone,) = plain.execute("SELECT count(*) FROM records").fetchone() if seen else (0,)
    plain.close()
    assert alone < 150  # what SQLite alone would find
    told = Told()
    with Spool(path, on_event=told) as spool:
        found = [r.frame for r in everything(spool)]
        assert set(found) >= {frame(n) for n in range(200)} - {frame(3)}
        assert len(found) == len(set(found))
        assert put(spool, range(500, 501)) == [201]
    assert "spool_log" in told.kinds


@pytest.mark.parametrize("at", [0, 18, 68, 100, 104], ids=["magic", "version", "application", "page type", "cells"])
def test_a_damaged_first_page(path: Path, at: int):
    """The file is set aside; everything in it is in the new one, with ids, keys and dead frames as they were."""
    with Spool(path, device="cam") as spool:
        ids = put(spool, range(100), size=300)
        put(spool, range(100, 105), size=20_000)
        spool.acknowledge([n for n in ids[:30] if n])
        spool.bury(50, "corrupt", "the server says no")
        keys = [r.key for r in everything(spool)]
    flip(path, at)
    told = Told()
    with Spool(path, on_event=told) as spool:
        records = everything(spool)
        assert [r.key for r in records] == keys
        wanted = [*(frame(n, 300) for n in range(30, 100) if n != 49), *(frame(n, 20_000) for n in range(100, 105))]
        assert [r.frame for r in records] == wanted
        assert spool.device == "cam"
        assert spool.stats().dead == 1
        (row,) = spool.run(lambda store: store.oldest_dead(10, 10**6))
        dead = unpack_dead(row[1])
        assert (dead.id, dead.code, dead.reason) == (50, "corrupt", "the server says no")
        record = dead.record()
        assert record is not None
        assert record.frame == frame(49, 300)
        assert put(spool, range(1)) == [106]
    assert side(path, ".damaged-1").exists()
    assert "74 frames were saved; the old file is" in told.text("spool_damaged")


def test_no_file_at_all_but_noise(path: Path):
    path.write_bytes(random.Random(1).randbytes(50_000))
    told = Told()
    with Spool(path, on_event=told) as spool:
        assert everything(spool) == []
        assert put(spool, range(1)) == [1]
    assert told.kinds == ["spool_damaged"]


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_a_file_cut_short(path: Path, keep: float):
    with Spool(path) as spool:
        put(spool, range(500))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(int(size * keep))
    told = Told()
    with Spool(path, on_event=told) as spool:
        found = {r.frame for r in everything(spool)}
    assert found <= {frame(n) for n in range(500)}
    assert 500 * (keep - 0.1) < len(found) < 500 * (keep + 0.1)
    assert "spool_damaged" in told.kinds


def test_another_database_is_left_alone(path: Path):
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE precious (x)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="is an SQLite database, but no spool"):
        Spool(path)
    assert path.read_bytes() == before


def test_a_spool_of_a_newer_version_is_left_alone(path: Path):
    Spool(path).close()
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version=2")
    newer.close()
    with pytest.raises(UsageError, match=r"is a spool of version 2, this splitwire reads 1; update it"):
        Spool(path)


def test_lost_totals_are_counted_again(path: Path):
    with Spool(path) as spool:
        put(spool, range(40))
        before = spool.stats()
    at = place(path, b'"generation"')
    flip(path, at)
    told = Told()
    with Spool(path, on_event=told) as spool:
        after = spool.stats()
        assert (after.frames, after.bytes) == (before.frames, before.bytes)
        assert [r.frame for r in everything(spool)] == [frame(n) for n in range(40)]
    assert "spool_state" in told.kinds


@pytest.mark.parametrize("moment", ["log moved", "database moved"])
def test_a_salvage_that_a_power_cut_interrupts_is_completed(path: Path, moment: str):
    """The new database is complete; of the damaged files only the log was moved, or both."""
    with Spool(path) as spool:
        put(spool, range(10))
    shutil.copy(path, side(path, ".salvaged"))
    side(path, ".damaged-1-wal").write_bytes(b"old log")
    if moment == "database moved":
        path.replace(side(path, ".damaged-1"))
    else:
        flip(path, 0)
    told = Told()
    with Spool(path, on_event=told) as spool:
        assert len(everything(spool)) == 10
    assert "spool_damaged" in told.kinds
    assert side(path, ".damaged-1").exists()
    assert not side(path, ".salvaged").exists()


def test_a_row_that_sqlite_does_not_find_any_more(path: Path):
    """A page whose count of cells is 0: SQLite sees an empty table and no damage."""
    with Spool(path) as spool:
        put(spool, range(5))
    content = path.read_bytes()
    page = place(path, frame(0)[:50]) // 4096
    assert content[page * 4096] == 0x0D
    flip(path, page * 4096 + 4, content[page * 4096 + 4])
    with path.open("r+b") as file:
        file.seek(page * 4096 + 3)
        file.write(bytes(2))
    told = Told()
    with Spool(path, on_event=told) as spool:
        assert [r.frame for r in everything(spool)] == [frame(n) for n in range(5)]
    assert "5 of 5 frames were saved" in told.text("spool_damaged")


def test_flips_anywhere_lose_little(path: Path):
    """40 files with three flipped bytes each. A flip may take the record it hits, and no more than its page."""
    master = path.parent / "master.db"
    with Spool(master) as spool:
        put(spool, range(300))
    lost = []
    for seed in range(40):
        rng = random.Random(seed)
        shutil.copy(master, path)
        for _ in range(3):
            flip(path, rng.randrange(path.stat().st_size), 1 << rng.randrange(8))
        with Spool(path, tier="buffered") as spool:
            records = everything(spool)
        found = [r.frame for r in records]
        assert set(found) <= {frame(n) for n in range(300)}
        assert len(found) == len(set(found))
        lost.append(300 - len(found))
        for leftover in path.parent.glob("spool.db*"):
            leftover.unlink()
    assert max(lost) <= 3, lost
    assert sum(lost) >= 40  # the flips did hit records


@pytest.mark.parametrize("read", [unpack, unpack_dead, unpack_state])
@pytest.mark.parametrize("body", [None, b"", b"\xf5SpR", bytes(100), b"\xf5SpR" + bytes(8)])
def test_readers_of_bodies_are_total(read, body: bytes | None):
    with pytest.raises(Damaged):
        read(body)
