"""`splitwire edge spool`, on the file and through the socket of a process that has it; the limits of the socket."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from spool_helpers import Hands, Told, everything, flip, frame, put
from typer.testing import CliRunner

from splitwire import cli
from splitwire.codec.errors import SpoolError, UsageError
from splitwire.runtime_edge.spool import Spool
from splitwire.runtime_edge.spool.admin import MOST_CLIENTS, MOST_LINE, Remote
from splitwire.runtime_edge.spool.maintenance import Counted, Failed, List, Stats


@pytest.fixture(params=["file", "running"])
def spool(request: pytest.FixtureRequest, tmp_path: Path):
    """A spool with 8 frames, of which 2 are dead; open while the command asks, or closed before."""
    spool = Spool(tmp_path / "spool.db", device="cam")
    ids = put(spool, range(8))
    for seq in (2, 5):
        assert seq in ids
        spool.bury(seq, "corrupt", "a checksum is wrong")
    if request.param == "file":
        spool.close()
    yield spool
    spool.close()


def run(spool: Spool, *arguments: str) -> str:
    """The output of a command that works."""
    command, *options = arguments
    result = CliRunner().invoke(cli.app, ["edge", "spool", command, str(spool.path), *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def waiting(spool: Spool) -> list[int]:
    return [json.loads(line)["id"] for line in run(spool, "list", "--json").splitlines()]


def test_list(spool: Spool):
    lines = [json.loads(line) for line in run(spool, "list", "--limit", "3", "--json").splitlines()]
    assert [line["id"] for line in lines] == [1, 3, 4]
    assert lines[0].keys() == {"id", "key", "bytes", "captured", "age_s"}
    assert lines[0]["key"].startswith("cam:")
    assert (lines[1]["bytes"], lines[1]["captured"]) == (200, 1002.0)
    text = run(spool, "list")
    assert "1970-01-01 00:16:42" in text
    assert len(text.splitlines()) == 7


def test_list_of_the_dead(spool: Spool):
    lines = [json.loads(line) for line in run(spool, "list", "--dead", "--json").splitlines()]
    assert [(line["id"], line["code"], line["reason"]) for line in lines] == [
        (2, "corrupt", "a checksum is wrong"),
        (5, "corrupt", "a checksum is wrong"),
    ]
    assert "corrupt: a checksum is wrong" in run(spool, "list", "--dead")


def test_export(spool: Spool, tmp_path: Path):
    out = tmp_path / "out"
    assert json.loads(run(spool, "export", "--out", str(out), "--json")) == {
        "folder": str(out),
        "frames": 6,
        "bytes": 1200,
    }
    index = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert [line["id"] for line in index] == [1, 3, 4, 6, 7, 8]
    assert (out / index[1]["file"]).read_bytes() == frame(2)
    assert len(waiting(spool)) == 6
    with pytest.raises(UsageError, match="has an export already"):
        run(spool, "export", "--out", str(out))


def test_drop(spool: Spool):
    assert run(spool, "drop", "--id", "1", "--id", "4", "--id", "99") == "2 frames dropped\n"
    assert waiting(spool) == [3, 6, 7, 8]
    assert json.loads(run(spool, "drop", "--older-than", "1h", "--json")) == {"dropped": 0}
    assert json.loads(run(spool, "drop", "--all", "--dead", "--json")) == {"dropped": 2}
    assert json.loads(run(spool, "drop", "--all", "--json")) == {"dropped": 4}
    assert waiting(spool) == []
    assert run(spool, "list") == "no frames\n"


@pytest.mark.parametrize("options", [(), ("--all", "--id", "1"), ("--all", "--older-than", "1h")])
def test_drop_wants_one_choice(spool: Spool, options: tuple[str, ...]):
    with pytest.raises(UsageError, match="one of --id, --older-than and --all"):
        run(spool, "drop", *options)


def test_check_and_stats(spool: Spool):
    assert json.loads(run(spool, "check", "--json")) == {"frames": 8, "damaged": [], "problems": []}
    assert run(spool, "check") == "8 frames read, 0 damaged\n"
    stats = json.loads(run(spool, "stats", "--json"))
    assert (stats["frames"], stats["dead"], stats["device"]) == (6, 2, "cam")
    assert "frames: 6\n" in run(spool, "stats")


def test_repair(spool: Spool):
    document = json.loads(run(spool, "repair", "--json"))
    assert document["frames"] == 6
    assert Path(document["aside"]).exists()
    assert waiting(spool) == [1, 3, 4, 6, 7, 8]
    assert json.loads(run(spool, "stats", "--json"))["dead"] == 2


@pytest.mark.parametrize("running", [False, True])
def test_check_finds_a_damaged_record(tmp_path: Path, running: bool):
    path = tmp_path / "spool.db"
    with Spool(path) as spool:
        put(spool, range(5))
    flip(path, path.read_bytes().index(frame(3)) + 7)
    with Spool(path) if running else open(os.devnull):  # noqa: PTH123 - nothing to open
        result = CliRunner().invoke(cli.app, ["edge", "spool", "check", str(path), "--json"])
    assert json.loads(result.stdout) == {"frames": 5, "damaged": [4], "problems": []}
    assert isinstance(result.exception, SpoolError)
    assert str(result.exception) == f"the spool {path} is damaged; run: splitwire edge spool repair {path}"


def test_many_frames_are_dropped_in_steps(tmp_path: Path):
    with Spool(tmp_path / "spool.db", tier="buffered") as spool:
        ids = put(spool, range(1203))
        arguments = [text for seq in ids[:601] for text in ("--id", str(seq))]
        assert run(spool, "drop", *arguments) == "601 frames dropped\n"
        assert len(run(spool, "list", "--limit", "5000", "--json").splitlines()) == 602
        assert run(spool, "drop", "--all") == "602 frames dropped\n"


def test_old_frames_are_dropped_by_their_age(tmp_path: Path):
    hands = Hands()
    with Spool(tmp_path / "spool.db", clocks=hands.clocks()) as spool:
        put(spool, range(3))
        hands.pass_by(7200)
        put(spool, range(3, 5))
        assert run(spool, "drop", "--older-than", "1h") == "3 frames dropped\n"
        assert [r.frame for r in everything(spool)] == [frame(3), frame(4)]


def test_the_socket_of_another_process(tmp_path: Path):
    path = tmp_path / "spool.db"
    code = (
        "import sys, time\nfrom splitwire.runtime_edge.spool import Spool\ns = Spool(sys.argv[1])\n"
        "s.put(b'x' * 100, s.new_key(), 5.0).result()\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            with pytest.raises(SpoolError, match=f"is in use by process {child.pid}"):
                Spool(path)
            remote = Remote(path.with_name("spool.db.sock"))
            answer = remote.ask(Stats())
            remote.close()
            assert isinstance(answer, Counted)
            assert (answer.stats.frames, answer.stats.tier) == (1, "durable")
        finally:
            child.kill()
    # The socket of a process that was killed is no obstacle.
    assert path.with_name("spool.db.sock").exists()
    with Spool(path) as spool:
        assert waiting(spool) == [1]


def test_no_spool(tmp_path: Path):
    result = CliRunner().invoke(cli.app, ["edge", "spool", "list", str(tmp_path / "none.db")])
    assert str(result.exception) == f"there is no spool {tmp_path / 'none.db'}"
    assert list(tmp_path.iterdir()) == []


def connect(spool: Spool) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(spool.path) + ".sock")
    return client


def test_the_socket_is_the_owners_and_goes_with_the_spool(tmp_path: Path):
    with Spool(tmp_path / "spool.db") as spool:
        place = tmp_path / "spool.db.sock"
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert not place.exists()
    with Spool(spool.path, admin=False):
        assert not place.exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[]\n", "no such request"),
        (b'{"type":"format-disk"}\n', "no such request: Invalid value"),
        (b'{"type":"list","after":"x"}\n', "no such request: Expected `int`"),
        (b"x" * (MOST_LINE + 10), "a request is one line of at most 65,536 bytes"),
    ],
)
def test_wrong_requests(tmp_path: Path, line: bytes, message: str):
    with Spool(tmp_path / "spool.db") as spool, connect(spool) as client, client.makefile("rb") as lines:
        client.sendall(line)
        answer = json.loads(lines.readline())
        assert (answer["type"], answer["code"]) == ("failed", "usage")
        assert answer["message"].startswith(message)
        assert put(spool, range(1)) == [1]


def test_an_answer_is_bounded(tmp_path: Path):
    with Spool(tmp_path / "spool.db", tier="buffered") as spool:
        put(spool, range(12), size=1 << 20)
        put(spool, range(600), size=20)
        remote = Remote(tmp_path / "spool.db.sock")
        few, many = remote.ask(List(frames=True)), remote.ask(List(after=12, limit=10**9))
        remote.close()
        assert not isinstance(few, Failed)
        assert [len(answer.entries) for answer in (few, many)] == [3, 500]  # type: ignore[union-attr]  # both are Listed


def test_a_fifth_client_is_turned_away(tmp_path: Path):
    with Spool(tmp_path / "spool.db") as spool:
        remotes = [Remote(tmp_path / "spool.db.sock") for _ in range(MOST_CLIENTS)]
        assert all(isinstance(remote.ask(Stats()), Counted) for remote in remotes)
        fifth = Remote(tmp_path / "spool.db.sock")
        with pytest.raises(SpoolError, match=r"closed the connection|does not answer"):
            fifth.ask(Stats())
        fifth.close()
        remotes.pop().close()
        for _ in range(100):  # the place is free as soon as the server has seen it
            last = Remote(tmp_path / "spool.db.sock")
            try:
                assert isinstance(last.ask(Stats()), Counted)
                break
            except SpoolError:
                time.sleep(0.02)
            finally:
                last.close()
        else:
            raise AssertionError("the place is not free again")
        for remote in remotes:
            remote.close()
        assert spool.stats().frames == 0


def test_a_long_path(tmp_path: Path):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    told = Told()
    with Spool(folder / "spool.db", on_event=told) as spool:
        put(spool, range(2))
        assert waiting(spool) == [1, 2]
    assert told.kinds == []
