"""The spool: order, keys, group commit, bounds, age; one process at a time; what it says when the disk refuses."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from runtime_helpers import until
from spool_helpers import Hands, Told, everything, frame, put

from splitwire.codec.errors import SpoolError, SpoolFull, UsageError
from splitwire.runtime_edge.spool import Spool
from splitwire.runtime_edge.spool.disk.database import explain
from splitwire.runtime_edge.spool.options import WhenFull
from splitwire.runtime_edge.spool.writer import GROUP_FRAMES, GROUP_S


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def test_frames_come_back_in_order_until_they_are_acknowledged(path: Path):
    with Spool(path, device="cam-1") as spool:
        keys = [spool.new_key() for _ in range(5)]
        done = [spool.put(frame(n), key, 50.0 + n) for n, key in enumerate(keys)]
        assert [future.result() for future in done] == [1, 2, 3, 4, 5]
        first = spool.next(2)
        assert [(r.id, r.key, r.frame, r.captured_wall) for r in first] == [
            (1, keys[0], frame(0), 50.0),
            (2, keys[1], frame(1), 51.0),
        ]
        spool.acknowledge([2, 1])
        assert [r.id for r in spool.next(10)] == [3, 4, 5]
        assert [r.id for r in spool.next(10, after=4)] == [5]
    with Spool(path) as spool:
        assert [r.key for r in everything(spool)] == keys[2:]
        assert put(spool, range(1)) == [6]
        assert spool.device == "cam-1"


def test_next_returns_at_most_so_many_bytes_but_always_one(path: Path):
    with Spool(path) as spool:
        put(spool, range(6), size=10_000)
        assert [len(spool.next(6, max_bytes=n)) for n in (1, 25_000, 10**6)] == [1, 2, 6]


def test_the_counter_of_the_keys_goes_on_and_no_key_comes_twice(path: Path):
    with Spool(path) as spool:
        before = [spool.new_key() for _ in range(3)]
    with Spool(path) as spool:
        after = spool.new_key()
    assert [key.counter for key in before] == [0, 1, 2]
    assert after.counter == 3
    assert after.device == before[0].device
    assert after.boot != before[0].boot


def test_a_crash_skips_counters_and_repeats_none(path: Path):
    """The child ends without closing."""
    code = (
        "import os, sys\nfrom splitwire.runtime_edge.spool import Spool\n"
        "s = Spool(sys.argv[1])\nprint(max(s.new_key().counter for _ in range(70_000)), flush=True)\nos._exit(9)"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 9
    with Spool(path) as spool:
        assert spool.new_key().counter > int(run.stdout)


def test_one_commit_takes_up_to_32_frames(path: Path):
    with Spool(path) as spool:
        futures = [spool.put(frame(n), spool.new_key(), 0.0) for n in range(3 * GROUP_FRAMES)]
        start = time.monotonic()
        futures[-1].result()
        assert time.monotonic() - start < 5
        assert 3 <= spool.stats().counts.commits <= 6


def test_a_lone_frame_is_committed_after_50_ms(path: Path):
    with Spool(path) as spool:
        start = time.monotonic()
        spool.put(frame(0), spool.new_key(), 0.0).result()
        assert GROUP_S <= time.monotonic() - start < 5


@pytest.mark.parametrize("tier", ["durable", "buffered"])
def test_only_the_durable_tier_syncs_each_commit(path: Path, tier):
    with Spool(path, tier=tier) as spool:
        (level,) = spool.run(lambda store: store._connection.execute("PRAGMA synchronous").fetchall()[0])
        assert level == {"durable": 2, "buffered": 1}[tier]


def test_the_oldest_frames_make_room(path: Path):
    told = Told()
    with Spool(path, max_bytes=5_000, on_event=told) as spool:
        put(spool, range(30))
        records = everything(spool)
        assert [r.frame for r in records] == [frame(n) for n in range(30 - len(records), 30)]
        stats = spool.stats()
        assert 4_000 < stats.bytes <= 5_000
        assert stats.counts.dropped == 30 - len(records)
    assert told.text("spool_full") == "the spool is full (5000 bytes), and frames are lost: drop-oldest"
    assert told.kinds.count("spool_full") == 1  # not one for every frame


@pytest.mark.parametrize("policy", ["drop-newest", "refuse"])
def test_the_newest_frames_are_dropped_or_refused(path: Path, policy: WhenFull):
    with Spool(path, max_bytes=5_000, when_full=policy) as spool:
        futures = [spool.put(frame(n), spool.new_key(), 0.0) for n in range(30)]
        records = everything(spool)
        assert [r.frame for r in records] == [frame(n) for n in range(len(records))]
        assert 10 < len(records) < 20
        late = futures[-1]
        if policy == "drop-newest":
            assert late.result() is None
        else:
            with pytest.raises(SpoolFull, match=r"the spool is full: [\d,]+ bytes wait for the server, of 5,000 bytes"):
                late.result()
        spool.acknowledge([r.id for r in records])
        assert put(spool, range(1)) == [len(records) + 1]


def test_dead_frames_make_room_first(path: Path):
    with Spool(path, max_bytes=5_000) as spool:
        ids = put(spool, range(10))
        for seq in ids[5:]:
            assert seq is not None
            spool.bury(seq, "corrupt", "no")
        assert (spool.stats().frames, spool.stats().dead) == (5, 5)
        put(spool, range(100, 108))
        assert [r.frame for r in everything(spool)] == [frame(n) for n in (*range(5), *range(100, 108))]
        assert spool.stats().dead < 5


def test_a_frame_over_the_limit_is_refused_alone(path: Path):
    with Spool(path, max_bytes=5_000) as spool:
        put(spool, range(3))
        big = spool.put(frame(9, 6_000), spool.new_key(), 0.0)
        with pytest.raises(SpoolFull, match="which holds at most 5,000"):
            big.result()
        assert len(everything(spool)) == 3


def test_old_frames_are_dropped_and_the_wall_clock_does_not_decide(path: Path):
    hands, told = Hands(), Told()
    with Spool(path, max_age_s=3600, clocks=hands.clocks(), on_event=told) as spool:
        put(spool, range(2))
        hands.pass_by(3000)
        put(spool, range(2, 4))
        hands.wall -= 3600  # the clock is set back an hour
        hands.pass_by(500)
        spool.stats()
        assert len(everything(spool)) == 4
        assert spool.stats().oldest_s == pytest.approx(3500)
        hands.wall += 10 * 86400  # and ten days forward
        spool.stats()
        assert len(everything(spool)) == 4
        hands.pass_by(101)
        spool.stats()
        assert [r.frame for r in everything(spool)] == [frame(2), frame(3)]
        assert spool.stats().counts.expired == 2
    assert told.text("clock_jump") == ("the clock was set back by 3,600 s; the ages of spooled frames do not follow it")
    assert told.kinds.count("clock_jump") == 2


@pytest.mark.parametrize(
    ("off_s", "battery", "age"),
    [(1000.0, True, 1010.0), (1000.0, False, 15.0), (-3600.0, True, 15.0)],
    ids=["off", "no battery", "set back while off"],
)
def test_age_over_a_reboot(path: Path, off_s: float, battery: bool, age: float):
    """At least the time since the boot (5 s) counts; more if the wall clock went forward."""
    hands = Hands()
    with Spool(path, clocks=hands.clocks()) as spool:
        put(spool, range(1))
        hands.pass_by(10)
    hands.reboot(off_s, battery=battery)
    with Spool(path, clocks=hands.clocks()) as spool:
        assert spool.stats().oldest_s == pytest.approx(age)
        (record,) = everything(spool)
        assert spool.age(record) == pytest.approx(age)


def test_age_over_a_restart_counts_exactly(path: Path):
    hands = Hands()
    with Spool(path, clocks=hands.clocks()) as spool:
        put(spool, range(1))
    hands.pass_by(77)
    hands.wall -= 3600
    with Spool(path, clocks=hands.clocks()) as spool:
        assert spool.stats().oldest_s == pytest.approx(77)


def test_files_are_the_owners_alone(path: Path):
    with Spool(path) as spool:
        put(spool, range(3))
        modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in path.parent.iterdir()}
    assert set(modes) >= {"spool.db", "spool.db-wal", "spool.db.lock"}
    assert set(modes.values()) == {0o600}
    assert "spool.db-shm" not in modes  # one connection, whose index is in memory


def test_a_second_process_is_told_who_has_the_spool(path: Path):
    code = (
        "import sys\nfrom splitwire.codec.errors import SpoolError\nfrom splitwire.runtime_edge.spool import Spool\n"
        "try: Spool(sys.argv[1])\nexcept SpoolError as e: print(e)"
    )
    with Spool(path):
        said = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
        with pytest.raises(SpoolError, match="is open in this process already"):
            Spool(path)
    assert said.strip() == (
        f"the spool {path} is in use by process {os.getpid()}; only one may open it. While a runtime runs,"
        " `splitwire edge spool` asks it"
    )
    Spool(path).close()


def test_another_program_holds_the_database(path: Path):
    Spool(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(SpoolError, match="is in use by another process"):
            Spool(path)
    finally:
        other.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_refused_and_changes_nothing(path: Path):
    with Spool(path) as spool:
        put(spool, range(2))
        child = os.fork()
        if not child:
            try:
                spool.next(1)
            except SpoolError as e:
                spool.close()
                os._exit(7 if "before fork()" in str(e) else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        put(spool, range(2, 4))
        assert [r.frame for r in everything(spool)] == [frame(n) for n in range(4)]


def test_a_closed_spool_says_so(path: Path):
    spool = Spool(path)
    future = spool.put(frame(1), spool.new_key(), 0.0)
    spool.close()
    spool.close()
    assert future.result() == 1
    with pytest.raises(SpoolError, match="is closed"):
        spool.put(frame(1), future_key(), 0.0)
    with pytest.raises(SpoolError, match="is closed"):
        spool.next(1)


def future_key():
    from splitwire.runtime_edge.transport.base import Key

    return Key("d", "b", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tier": "fast"}, "a tier is 'durable' or 'buffered'; got 'fast'"),
        ({"when_full": "panic"}, "when_full is 'drop-oldest', 'drop-newest' or 'refuse'; got 'panic'"),
        ({"max_bytes": 0}, "must be greater than 0; got 0"),
        ({"max_age_s": -1.0}, "must be greater than 0"),
        ({"device": "a b"}, "must be 1 to 64 letters"),
    ],
)
def test_wrong_options(path: Path, options: dict[str, object], message: str):
    with pytest.raises(UsageError, match=message):
        Spool(path, **options)  # type: ignore[arg-type]  # wrong on purpose
    assert not path.exists()


@pytest.mark.parametrize("size", [0, (256 << 20) + 1])
def test_frames_of_no_or_too_many_bytes(path: Path, size: int):
    with Spool(path) as spool, pytest.raises(UsageError, match="1 to 268,435,456 bytes"):
        spool.put(bytes(size), spool.new_key(), 0.0)


def test_a_folder_that_does_not_exist(path: Path):
    with pytest.raises(SpoolError, match=r"cannot be read or written \(No such file or directory\)"):
        Spool(path.parent / "none" / "spool.db")


def sqlite(code: int) -> sqlite3.Error:
    e = sqlite3.OperationalError("as SQLite says")
    e.sqlite_errorcode = code
    return e


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (sqlite(sqlite3.SQLITE_FULL), "the disk of the spool x is full (as SQLite says); free space"),
        (OSError(errno.ENOSPC, "No space"), "the disk of the spool x is full (No space); free space"),
        (sqlite(sqlite3.SQLITE_READONLY), "the spool x cannot be written (as SQLite says); make the folder writable"),
        (OSError(errno.EROFS, "Read-only"), "the spool x cannot be written (Read-only); make the folder writable"),
        (sqlite(sqlite3.SQLITE_BUSY), "the spool x is in use by another process; only one may open it."),
        (sqlite(sqlite3.SQLITE_CORRUPT), "the spool x is damaged (as SQLite says); run: splitwire edge spool repair x"),
        (sqlite(sqlite3.SQLITE_IOERR_FSYNC), "the spool x cannot be read or written (as SQLite says); check the disk"),
        (OSError(errno.EIO, "I/O error"), "the spool x cannot be read or written (I/O error); check the disk"),
    ],
)
def test_one_clear_line_for_each_trouble(error: Exception, message: str):
    assert str(explain(error, Path("x"))).startswith(message)


class Refusing:
    """A connection whose next commits fail."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.error: sqlite3.Error | None = None

    def execute(self, sql: str, parameters=(), /):
        if self.error is not None and sql == "COMMIT":
            raise self.error
        return self.connection.execute(sql, parameters)

    def close(self) -> None:
        self.connection.close()


def test_a_commit_that_fails_fails_its_frames_and_no_others(path: Path):
    made: list[Refusing] = []

    def connect(path: Path) -> Refusing:
        made.append(Refusing(path))
        return made[-1]

    told = Told()
    with Spool(path, connect=connect, on_event=told) as spool:
        put(spool, range(3))
        made[0].error = sqlite(sqlite3.SQLITE_IOERR_FSYNC)
        failed: list[Future[int | None]] = [spool.put(frame(n), spool.new_key(), 0.0) for n in (7, 8)]
        for future in failed:
            with pytest.raises(SpoolError, match="cannot be read or written"):
                future.result()
        made[0].error = None
        assert put(spool, range(3, 5)) == [4, 5]
        assert [r.frame for r in everything(spool)] == [frame(n) for n in range(5)]
        assert spool.stats().counts.refused == 2
    assert "spool_failed" in told.kinds


def test_a_frame_whose_removal_fails_does_not_come_again(path: Path):
    """It is removed when the disk takes it; a frame that is delivered twice within a run would be the spool's fault."""
    made: list[Refusing] = []

    def connect(path: Path) -> Refusing:
        made.append(Refusing(path))
        return made[-1]

    with Spool(path, connect=connect) as spool:
        ids = [n for n in put(spool, range(5)) if n is not None]
        made[0].error = sqlite(sqlite3.SQLITE_READONLY)
        spool.acknowledge(ids[:3])
        assert [r.id for r in spool.next(2)] == ids[3:4]  # of the third and fourth
        assert [r.id for r in spool.next(10)] == ids[3:]
        assert spool.stats().frames == 5
        made[0].error = None
        spool.acknowledge(ids[3:4])
        assert [r.id for r in spool.next(10)] == ids[4:]
        until(lambda: spool.stats().frames == 1)
        assert spool.stats().counts.acknowledged == 4


def test_a_drained_spool_gives_its_space_back(path: Path):
    with Spool(path, tier="buffered") as spool:
        put(spool, range(300), size=100_000)
        spool.acknowledge([r.id for r in everything(spool)])
        assert spool.stats().frames == 0
        spool.stats()
        assert spool.stats().file_bytes < 18 << 20
    assert path.stat().st_size < 18 << 20
