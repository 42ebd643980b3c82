"""`splitwire edge serve` takes pictures from a watched folder while `splitwire cloud serve` is killed and restarted.

    python tests/faults/processes/service_restarts.py --seconds 600 --every 60 [--wheel]

Both are the real commands in processes of their own. The edge runs on examples/edge/edge.toml, with the paths and the
port of this site; with --wheel it is installed from the wheel, as `splitwire[edge]`, into an environment of its own.
Every other restart is a SIGKILL, the others a SIGTERM. At the end the server is killed once more, and SIGTERM ends the
edge while it spools; a new edge delivers what is left. What the edge wrote to its outlet is compared with what the
server computed, frame by frame.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [
        str(Path(__file__).parents[2] / folder) for folder in ("faults", "helpers", "helpers/codec", "helpers/runtime")
    ]

import numpy as np
from faults_table import Row
from PIL import Image
from runtime_helpers import Pair, make_pair
from sources import ROOT, copy_sources

from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport import LoopbackTransport

COUNTING_SERVER = """
import hashlib, os, sys
from splitwire.cli import main
from splitwire.runtime_cloud.batching import Scheduler

log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
run = Scheduler.run

async def counted(self, session, call, **options):
    done = await run(self, session, call, **options)
    os.write(log, hashlib.sha256(call.frame).hexdigest().encode() + b"\\n")
    return done

Scheduler.run = counted
main()
"""
"""The real server; each frame that it has computed is a line of a file, which a SIGKILL does not take."""
EXAMPLE = ROOT / "examples" / "edge" / "edge.toml"
PACE_S = 0.05
KEPT = 200
"""Pictures that stay in the folder: it is looked through again and again."""
LAST = 20
"""Pictures that come after the last kill."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of the pictures.

    restarts: of the server. taken: pictures that have a line. spooled: those that waited. answered: pictures with an
    answer. twice: further answers. wrong: answers that are of another picture. computed: different frames that the
    server has computed; again: those that it computed a second time, because it was killed before its answer arrived.
    exits: exit statuses of the edge.
    """

    restarts: int
    put: int
    taken: int
    spooled: int
    answered: int
    twice: int
    wrong: int
    computed: int
    again: int
    exits: tuple[int, ...]


class Site:
    """A server and an edge with all their files in one folder."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self.pictures, self.python = folder, folder / "pictures", python
        self.pictures.mkdir()
        self.pair: Pair = make_pair(folder / "pair", exact=True)
        self.lines, self.computed = folder / "lines.jsonl", folder / "computed"
        self.port, self.health = _free_port(), _free_port()
        self.put = 0
        self.server: subprocess.Popen[bytes] | None = None
        (folder / "edge.toml").write_text(self._configuration(), encoding="utf-8")

    def _configuration(self) -> str:
        """The example, with the paths and the port of this site."""
        text = EXAMPLE.read_text(encoding="utf-8")
        for old, new in (
            ("/etc/splitwire/front.onnx", self.pair.front),
            ("http://127.0.0.1:8500", f"http://127.0.0.1:{self.port}"),
            ("/var/lib/splitwire/pictures", self.pictures),
            ("/var/lib/splitwire/spool.db", self.folder / "spool.db"),
            ("/var/log/splitwire/results.jsonl", self.lines),
        ):
            assert text.count(f'"{old}"') == 1, f"{EXAMPLE.name} does not name {old}"
            text = text.replace(f'"{old}"', json.dumps(str(new)))
        return f'{text}\n[metrics]\nlisten = "127.0.0.1:{self.health}"\n'

    def start_server(self) -> None:
        """Start the server, and wait until it is ready."""
        command = [sys.executable, "-c", COUNTING_SERVER, str(self.computed), "cloud", "serve"]
        options = [str(self.pair.back), "--port", str(self.port), "--json"]
        self.server = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.server.stdout is not None
        assert self.server.stdout.readline(), "the server does not start"

    def end_server(self, how: signal.Signals) -> None:
        """End the server."""
        if self.server is not None:
            self.server.send_signal(how)
            self.server.communicate(timeout=60)
            self.server = None

    def start_edge(self) -> subprocess.Popen[bytes]:
        """Start the edge, and wait until it is ready."""
        options = ["edge", "serve", "--config", str(self.folder / "edge.toml")]
        with (self.folder / "edge.log").open("ab") as log:
            edge = subprocess.Popen([self.python, "-m", "splitwire", *options], stderr=log, cwd=self.folder)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and edge.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.health}/readyz", timeout=5):
                return edge
            time.sleep(0.05)
        raise AssertionError((self.folder / "edge.log").read_text())

    def picture(self) -> None:
        """Put one more picture into the folder. It appears whole."""
        file = self.pictures / f"{self.put:08}.png"
        Image.fromarray(pixels(self.put)).save(file.with_name(f".{self.put}"), "PNG")
        file.with_name(f".{self.put}").rename(file)
        self.put += 1

    def results(self) -> list[dict[str, Any]]:
        """The lines of results."""
        if not self.lines.exists():
            return []
        files = sorted(self.folder.glob("lines.jsonl*"), key=lambda path: -len(path.name))
        lines = [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
        return [line for line in lines if "status" in line]

    def wait_for(self, pictures: int, seconds: float = 60) -> None:
        """Wait until this number of pictures has an answer."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if len({row["key"] for row in self.results() if "classes" in row}) >= pictures:
                return
            time.sleep(0.2)

    def forget_old(self) -> None:
        """Remove the oldest pictures; those that are still to be taken are newer."""
        for number in range(max(0, self.put - 2 * KEPT), self.put - KEPT):
            (self.pictures / f"{number:08}.png").unlink(missing_ok=True)


def pixels(number: int) -> np.ndarray:
    """An (8, 8, 3) picture of its own for each number."""
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def restarts(
    folder: Path, *, seconds: float, every_s: float, down_s: float = 1.0, python: Path = Path(sys.executable)
) -> Counts:
    """Run for `seconds`; every `every_s` seconds the server is away for `down_s`, and as long as it takes to start.

    python: runs the edge.
    """
    site = Site(folder, python)
    done, exits = 0, []
    site.start_server()
    edge = site.start_edge()
    try:
        begin = time.monotonic()
        while (now := time.monotonic() - begin) < seconds:
            if now > (done + 0.5) * every_s:
                site.end_server(signal.SIGTERM if done % 2 else signal.SIGKILL)
                for _ in range(int(down_s / PACE_S)):
                    site.picture()
                    time.sleep(PACE_S)
                site.start_server()
                done += 1
            site.picture()
            time.sleep(PACE_S)
            if site.put % KEPT == 0:
                site.forget_old()
        site.wait_for(site.put)
        site.end_server(signal.SIGKILL)
        for _ in range(LAST):
            site.picture()
            time.sleep(PACE_S)
        edge.send_signal(signal.SIGTERM)
        exits.append(edge.wait(60))
        site.start_server()
        edge = site.start_edge()
        site.wait_for(len({row["key"] for row in site.results()}))
        edge.send_signal(signal.SIGTERM)
        exits.append(edge.wait(60))
    finally:
        edge.kill()
        edge.wait()
        site.end_server(signal.SIGTERM)
    return _counted(site, done + 1, tuple(exits))


def _counted(site: Site, done: int, exits: tuple[int, ...]) -> Counts:
    rows = site.results()
    image_of = {row["key"]: int(Path(row["image"]).stem) for row in rows if "image" in row and "key" in row}
    answers = [(row["key"], row["classes"]) for row in rows if "classes" in row]
    times = Counter(key for key, _ in answers)
    wrong = 0
    with EdgeSession(site.pair.front, transport=LoopbackTransport(CloudSession(site.pair.back).handle)) as session:
        points = [point.name for point in session.profile.operating_points]
        for key, classes in answers:  # a result does not say at which point its frame was spooled
            image = session.preprocess(Image.fromarray(pixels(image_of[key])))
            wrong += not any(_same(classes[0], session.find(session.infer(image, op=op))) for op in points)
    frames = Counter(site.computed.read_text().split())
    return Counts(
        restarts=done,
        put=site.put,
        taken=len({row["image"] for row in rows if "image" in row}),
        spooled=sum(row["status"] == "spooled" for row in rows),
        answered=len(times),
        twice=sum(times.values()) - len(times),
        wrong=wrong,
        computed=len(frames),
        again=sum(frames.values()) - len(frames),
        exits=exits,
    )


def _same(line: dict[str, Any], findings: Any) -> bool:
    best = findings.top[0]
    return bool(line["index"] == best.index and abs(line["probability"] - best.probability) <= 1e-5)


def row(counts: Counts, seconds: float) -> Row:
    """The row of the table. Counts that differ between the sides, and an exit status, are errors."""
    return Row(
        fault=f"`cloud serve` killed and restarted beside `edge serve`, {seconds:.0f} s",
        trials=counts.restarts,
        promised=counts.taken,
        lost=counts.taken - counts.answered,
        twice=counts.twice,
        wrong=counts.wrong + abs(counts.computed - counts.answered) + sum(status != 0 for status in counts.exits),
        note=f"{counts.put:,} pictures, {counts.spooled:,} of them spooled; the server computed {counts.computed:,}"
        f" different frames, {counts.again:,} of them again after a kill",
    )


def rows(folder: Path, short: bool) -> list[Row]:
    """Ten minutes with a restart every minute, the edge from the wheel; 8 s with two in short."""
    if short:
        return [row(restarts(folder, seconds=8.0, every_s=4.0), 8.0)]
    python, site = installed(folder), folder / "site"
    site.mkdir()
    return [row(restarts(site, seconds=600.0, every_s=60.0, python=python), 600.0)]


def installed(folder: Path) -> Path:
    """The interpreter of an environment with nothing but `splitwire[edge]`, from the wheel of this tree."""
    tree = copy_sources(folder / "tree")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(tree)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "edge", with_pip=True)
    python = folder / "edge" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{wheel}[edge]"], check=True)
    return python


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def main() -> None:
    """Run it once, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds from one restart to the next")
    parser.add_argument("--wheel", action="store_true", help="install the edge from the wheel, alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = installed(folder) if arguments.wheel else Path(sys.executable)
        site = folder / "site"
        site.mkdir()
        counts = restarts(site, seconds=arguments.seconds, every_s=arguments.every, python=python)
    print(counts)
    sys.exit(not row(counts, arguments.seconds).good)


if __name__ == "__main__":
    main()
