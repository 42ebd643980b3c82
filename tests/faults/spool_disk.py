"""What a disk and a clock do to a spool: flipped bytes, a file system that is full, a clock that is set back."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

from faults_table import Row
from power_cuts import content
from spool_helpers import Hands, Told, everything, flip

from splitwire.runtime_edge.spool import Spool
from splitwire.runtime_edge.transport.base import Key


def store(spool: Spool, numbers: range) -> int:
    """Put frames; returns how many were promised."""
    futures = [spool.put(content(n), Key("device", "boot", n), float(n)) for n in numbers]
    return sum(future.result() is not None for future in futures)


def numbers_in(spool: Spool) -> tuple[list[int], int]:
    """The numbers of the frames that wait, and how many of the frames are wrong."""
    records = everything(spool)
    found = [record.key.counter for record in records]
    return found, sum(record.frame != content(record.key.counter) for record in records)


def flipped_bytes(folder: Path, files: int) -> Row:
    """Flip 1 to 5 bytes anywhere in the database or the log of a process that was killed."""
    rng = random.Random(5)
    folder.mkdir()
    master, path = folder / "master" / "spool.db", folder / "copy" / "spool.db"
    master.parent.mkdir()
    with Spool(master) as spool:
        promised = store(spool, range(400))
        spool.run(lambda s: s.checkpoint())
        promised += store(spool, range(400, 800))
        for suffix in ("", "-wal"):  # as a crash leaves them: half in the database, half in the log
            (folder / f"crashed{suffix}").write_bytes((master.parent / f"spool.db{suffix}").read_bytes())
    lost = twice = wrong = damaged = salvaged = flips = 0
    for _ in range(files):
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(folder / f"crashed{suffix}", path.with_name(path.name + suffix))
        here = rng.randint(1, 5)
        for _ in range(here):
            target = path if rng.random() < 0.5 else path.with_name(path.name + "-wal")
            flip(target, rng.randrange(target.stat().st_size), 1 << rng.randrange(8))
        told = Told()
        with Spool(path, tier="buffered", on_event=told) as spool:
            found, bad = numbers_in(spool)
        missing = promised - len(set(found))
        flips += here
        damaged += min(missing, here)
        lost += max(0, missing - here)  # a flip can take the record that it hits
        twice += len(found) - len(set(found))
        wrong += bad
        salvaged += "spool_damaged" in told.kinds
    return Row(
        fault="flipped bits in the database and its log",
        trials=files,
        promised=promised * files,
        lost=lost,
        twice=twice,
        wrong=wrong,
        allowed=damaged,
        note=f"{flips} flips; {salvaged} files were set aside and salvaged",
    )


FULL = """
import json, sys
sys.path[:0] = json.loads(sys.argv[4])
from spool_disk import fill_disk
print(json.dumps(fill_disk(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
"""


def fill_disk(folder: str, policy: str, count: int) -> dict[str, int | str]:
    """Runs in a child, on a small file system: put frames until long after it is full."""
    path, told = Path(folder) / "spool.db", Told()
    promised: list[int] = []
    refused = 0
    with Spool(path, max_bytes=None, when_full=policy, on_event=told) as spool:  # type: ignore[arg-type]  # one of two
        for start in range(0, count, 64):
            futures = [(n, spool.put(content(n), Key("device", "boot", n), float(n))) for n in range(start, start + 64)]
            for n, future in futures:
                if future.exception() is None:
                    promised.append(n)
                else:
                    refused += 1
        dropped = spool.stats().counts.dropped
        found, wrong = numbers_in(spool)
        spool.acknowledge([record.id for record in everything(spool)])
        again = store(spool, range(40_000, 40_100))  # there is room again
    with Spool(path, max_bytes=None) as spool:
        after, more_wrong = numbers_in(spool)
    # Those that the policy dropped are the oldest; the others must be there.
    kept = promised[dropped:]
    return {
        "promised": len(promised) + again,
        "lost": len(set(kept) - set(found)) + (after != list(range(40_000, 40_100))),
        "twice": len(found) - len(set(found)),
        "wrong": wrong + more_wrong + (found != sorted(found)),
        "dropped": dropped,
        "refused": refused,
        "event": next((text for text in (e.text for e in told.events) if "is full" in text), ""),
    }


def full_file_system(folder: Path, policy: str, megabytes: int) -> Row:
    """A small tmpfs in a mount namespace of its own; where that is not allowed, a limit on the size of files."""
    folder.mkdir()
    paths = json.dumps([str(Path(__file__).parent), *(p for p in sys.path if "helpers" in p or "faults" in p)])
    python = [sys.executable, "-c", FULL, str(folder), policy, str(2_000 * megabytes), paths]
    script = 'mount -t tmpfs -o size="$0"m tmpfs "$1" && shift && exec "$@"'
    mount = ["unshare", "-rm", "sh", "-c", script, str(megabytes), str(folder)]
    how = f"tmpfs of {megabytes} MB"
    try:
        subprocess.run([*mount, "true"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        how, mount = "limit of 8 MB on the size of a file", ["sh", "-c", 'ulimit -f 8000 && exec "$@"', "sh"]
    run = subprocess.run([*mount, *python], check=True, capture_output=True, text=True, timeout=600)
    counts = json.loads(run.stdout)
    assert counts["event"], "no event says that the disk is full"
    return Row(
        fault=f"full file system (policy {policy})",
        trials=1,
        promised=counts["promised"],
        lost=counts["lost"],
        twice=counts["twice"],
        wrong=counts["wrong"],
        note=f"{how}; {counts['refused']:,} frames refused, {counts['dropped']:,} dropped by the policy, as reported",
    )


def clock_set_back(folder: Path, trials: int) -> Row:
    """Set the clock back an hour and forward a day while frames wait, with an age limit of an hour and a half."""
    rng, hands = random.Random(3), Hands()
    folder.mkdir()
    path = folder / "spool.db"
    stored: dict[int, float] = {}
    true_time, lost, late, next_number = 0.0, 0, 0, 0
    for _ in range(trials):
        with Spool(path, tier="buffered", max_age_s=5400, clocks=hands.clocks()) as spool:
            for _ in range(4):
                store(spool, range(next_number, next_number + 10))
                stored |= dict.fromkeys(range(next_number, next_number + 10), true_time)
                next_number += 10
                hands.wall += rng.choice((-3600.0, 86400.0, 0.0))
                seconds = rng.uniform(10, 2000)
                hands.pass_by(seconds)
                true_time += seconds
                spool.stats()
                there = set(numbers_in(spool)[0])
                young = {n for n, at in stored.items() if true_time - at < 5399}
                lost += len(young - there)
                late += len({n for n in there if true_time - stored[n] > 5401})
    return Row(
        fault="clock set back an hour, forward a day, at random",
        trials=trials * 4,
        promised=next_number,
        lost=lost,
        twice=0,
        wrong=late,
        note="lost: dropped before the age limit; wrong: kept after it; the process restarts after every fourth",
    )


def rows(folder: Path, short: bool) -> list[Row]:
    """The rows of the disk and the clock."""
    megabytes = 11 if short else 16
    return [
        flipped_bytes(folder / "flips", 20 if short else 500),
        *(full_file_system(folder / policy, policy, megabytes) for policy in ("drop-oldest", "refuse")[: 2 - short]),
        clock_set_back(folder / "clock", 3 if short else 50),
    ]
