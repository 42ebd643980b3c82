"""Kills the edge with SIGKILL while it sends, spools and drains, and starts it again on the same spool.

The child says in lines what its application was told: `spooled N`, `answered N NUMBER` for a frame that was sent at
once, `drained N NUMBER KEY` for one out of the spool; NUMBER is what the answer says. An answer that was handed on just
before a kill, and whose frame was not yet removed from the spool, comes again with the same key. That is what at least
once means. It is told apart from a frame that is answered twice within a run, or under two keys.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from faults_table import Row
from field import KINDS, Draining, Kind, child_paths, transport_to
from numbered import number_of, numbered_pair, picture
from runtime_helpers import serving

from splitwire.codec.errors import TransportError
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.spool import Drain, Spool, Spooled
from splitwire.runtime_edge.transport import Reply

RUN = 10_000
"""Numbers that one run of the edge may use."""
BATCH = 8

CHILD = """
import json, sys
sys.path[:0] = json.loads(sys.argv[7])
from edge_kills import edge
edge(sys.argv[1], sys.argv[2], (sys.argv[3], int(sys.argv[4])), sys.argv[5], int(sys.argv[6]))
"""


def say(*words: object) -> None:
    """Write a line at once and whole."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def edge(front: str, spool_path: str, address: tuple[str, int], kind: Kind, first: int) -> None:
    """Runs in the child, until it is killed; with first < 0 it only drains what is there.

    Of 32 frames, 16 are sent at once and 16 are spooled, as if the link were down.
    """

    def on_reply(record: Spooled, reply: Reply) -> None:
        say("drained", int(record.captured_wall), number_of(reply.outputs), record.key)

    transport = transport_to(address, kind, read_s=5.0)
    with (
        Spool(spool_path, admin=False) as spool,
        EdgeSession(front, transport=transport) as session,
        Draining(Drain(spool, transport, share=1.0, batch=BATCH, on_reply=on_reply)),
    ):
        if first < 0:
            while spool.stats().frames:
                time.sleep(0.02)
            say("dead", spool.stats().dead)
            return
        for start in itertools.count(first, 32):
            waiting = []
            for n in range(start, start + 32):
                frame_id, key = session.next_frame_id(), spool.new_key()
                frame = session.encode(session.run_front(picture(n)).features, frame_id=frame_id)
                if n % 32 < 16:
                    with contextlib.suppress(TransportError):
                        say("answered", n, number_of(session.send(frame, frame_id=frame_id, key=key).outputs))
                else:
                    waiting.append((n, spool.put(frame, key, float(n))))
            for n, future in waiting:
                future.result()
                say("spooled", n)


def run_child(arguments: list[str], kill_after_s: float | None) -> list[list[str]]:
    """Run an edge, and kill it `kill_after_s` seconds after its first line. Returns the words of its whole lines."""
    command = [sys.executable, "-c", CHILD, *arguments, json.dumps(child_paths())]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)  # readline() takes no byte of the next line
    assert child.stdout is not None
    first = child.stdout.readline()
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child.pid, signal.SIGKILL)
    rest, _ = child.communicate(timeout=120)
    assert child.returncode == (0 if kill_after_s is None else -signal.SIGKILL)
    return [line.split() for line in (first + rest).decode().split("\n")[:-1]]  # what is behind the last line was cut


def kill_edge(folder: Path, kind: Kind, kills: int) -> Row:
    """Kill the edge `kills` times, then let it drain."""
    rng = random.Random(3)
    pair = numbered_pair(folder / "pair")
    spooled: set[int] = set()
    answers: Counter[int] = Counter()
    keys: dict[int, set[str]] = {}
    wrong = again = twice = dead = 0
    with serving(pair) as served:  # a process of its own beside the edge: this one
        for run in range(kills + 1):
            is_last = run == kills
            host, port = served.address
            first = "-1" if is_last else str(run * RUN)
            arguments = [str(pair.front), str(folder / "spool.db"), host, str(port), kind, first]
            here: Counter[int] = Counter()
            for word, n, *rest in run_child(arguments, None if is_last else rng.uniform(0.02, 0.5)):
                number = int(n)
                if word == "spooled":
                    spooled.add(number)
                elif word == "dead":
                    dead = number
                else:
                    here[number] += 1
                    wrong += rest[0] != n
                    if word == "drained":
                        keys.setdefault(number, set()).add(rest[1])
            twice += sum(count - 1 for count in here.values())
            again += len(here.keys() & answers.keys())
            answers += here
        remembered = served.api.service.answers.repeated
    twice += sum(len(of_one) - 1 for of_one in keys.values()) + max(0, again - BATCH * kills)
    return Row(
        fault=f"edge SIGKILLed while it sends, spools and drains, {kind}",
        trials=kills,
        promised=len(spooled | answers.keys()),
        lost=len(spooled - answers.keys()) + dead,
        twice=twice,
        wrong=wrong,
        note=f"{len(keys):,} answered out of the spool; {again} answers came again after a kill, with their keys;"
        f" the server answered {remembered} from memory",
    )


def rows(folder: Path, short: bool) -> list[Row]:
    """20 kills with each transport; 2 with the stream in short."""
    if short:
        return [kill_edge(folder, "stream", 2)]
    return [kill_edge(folder / kind, kind, 20) for kind in KINDS]
