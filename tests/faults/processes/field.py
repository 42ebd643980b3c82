"""What the faults of processes and links share: a server in a process of its own, an edge, and what it was answered."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from faults_table import Row
from numbered import number_of, picture

from splitwire.codec.wire.reply import Outputs
from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.sources import Captured
from splitwire.runtime_edge.spool import Drain, Spool, Spooled
from splitwire.runtime_edge.transport import CircuitBreaker, HttpTransport, Reply, StreamTransport, Timeouts

Kind = Literal["HTTP", "stream"]
KINDS: tuple[Kind, ...] = ("HTTP", "stream")
IN_FLIGHT = 6
LONGEST_PAUSE_S = 0.1
"""Tests wait no longer than this before the next request, whatever the back-off."""


class Server:
    """`splitwire cloud serve` in a process of its own, on one port through all its restarts. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port = int(sock.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = 0

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    def start(self) -> None:
        """Start it; it is ready later."""
        command = [sys.executable, "-m", "splitwire", "cloud", "serve", str(self._folder), "--port", str(self.port)]
        self._process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def wait(self) -> None:
        """Wait until it is ready."""
        assert self._process is not None and self._process.stdout is not None
        assert json.loads(self._process.stdout.readline())["pid"]

    def kill(self) -> None:
        """End it with SIGKILL."""
        assert self._process is not None and self._process.stdout is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(30)
        self._process.stdout.close()
        self.kills += 1

    def __enter__(self) -> Self:
        self.start()
        self.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()


def transport_to(
    address: tuple[str, int], kind: Kind, *, read_s: float = 1.0, told: Callable[[Event], None] | None = None
) -> HttpTransport | StreamTransport:
    """A transport that loses its patience soon, and tries again soon."""
    timeouts = Timeouts(connect=1.0, read=read_s, write=read_s, total=4 * read_s)
    breaker = CircuitBreaker(first_s=0.05, longest_s=0.2)
    where = "{}:{}".format(*address)
    if kind == "HTTP":
        return HttpTransport(f"http://{where}", timeouts=timeouts, breaker=breaker, max_connections=IN_FLIGHT + 2)
    return StreamTransport(f"stream://{where}", timeouts=timeouts, breaker=breaker)


@dataclass
class Ledger:
    """What the application was told. Threads share it.

    spooled: numbers of frames that the spool has promised to keep. answers: how often each frame was answered. wrong:
    answers that are of another picture. failed: frames that were reported as failed, by the error's code.
    """

    spooled: set[int] = field(default_factory=set)
    answers: Counter[int] = field(default_factory=Counter)
    drained: int = 0
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, number: int, outputs: Outputs, *, drained: bool = False) -> None:
        """An answer to the frame with this number."""
        with self.lock:
            self.answers[number] += 1
            self.wrong += number_of(outputs) != number
            self.drained += drained

    def told(self, event: Event) -> None:
        """An EventSink."""
        with self.lock:
            self.events[event.kind] += 1

    def row(self, fault: str, trials: int, note: str) -> Row:
        """The row of the table. Every frame that was spooled or answered was promised."""
        failures = "".join(f"; {count} not taken: {code}" for code, count in sorted(self.failed.items()))
        return Row(
            fault=fault,
            trials=trials,
            promised=len(self.spooled | set(self.answers)),
            lost=len(self.spooled - set(self.answers)),
            twice=sum(count - 1 for count in self.answers.values()),
            wrong=self.wrong,
            note=f"{note}; {self.drained:,} answered out of the spool{failures}",
        )


class Numbers:
    """A source of numbered pictures. before: called with each number before its picture is given."""

    live = False

    def __init__(self, count: int, before: Callable[[int], None]) -> None:
        self._numbers = iter(range(count))
        self._before = before

    def __iter__(self) -> Iterator[Captured]:
        return self

    def __next__(self) -> Captured:
        number = next(self._numbers)
        self._before(number)
        # The time of capture is kept in the spool. Here it is the number.
        return Captured(
            image=picture(number), captured=time.monotonic(), wall=float(number), name="numbers", index=number
        )

    def close(self) -> None:
        """Nothing to close."""


class Draining:
    """Drains a spool in a thread, with short pauses. A context manager."""

    def __init__(self, drain: Drain) -> None:
        self._drain = drain
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="draining")
        self.failure: BaseException | None = None

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                wait = self._drain.step()
                self._stop.wait(0.02 if wait is None else min(wait, LONGEST_PAUSE_S))
        except BaseException as e:
            self.failure = e
            raise

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(60)
        assert self.failure is None


def run_edge(
    front: Path,
    transport: HttpTransport | StreamTransport,
    spool_path: Path,
    count: int,
    before: Callable[[int], None],
    at_end: Callable[[], None],
) -> Ledger:
    """Run `count` numbered pictures through session.stream, while a drain empties its spool; until all are answered.

    before: called before each picture. at_end: called when the source is at its end: heals the link.
    """
    ledger = Ledger()

    def on_reply(record: Spooled, reply: Reply) -> None:
        ledger.answered(int(record.captured_wall), reply.outputs, drained=True)

    with (
        Spool(spool_path, admin=False, on_event=ledger.told) as spool,
        EdgeSession(front, transport=transport) as session,
        Draining(Drain(spool, transport, share=1.0, batch=8, on_reply=on_reply, on_event=ledger.told)),
    ):
        with session.stream(Numbers(count, before), in_flight=IN_FLIGHT, spool=spool, on_event=ledger.told) as results:
            for result in results:
                if result.status == "spooled":
                    ledger.spooled.add(result.index)
                elif result.result is not None:
                    ledger.answered(result.index, result.result.outputs)
                else:
                    assert result.error is not None
                    ledger.failed[result.error.code] += 1
        at_end()
        deadline = time.monotonic() + 60
        while (waiting := spool.stats().frames) and time.monotonic() < deadline:
            time.sleep(0.05)
        ledger.failed.update({"dead in the spool": dead} if (dead := spool.stats().dead) else {})
    assert not waiting or ledger.spooled - set(ledger.answers), "frames wait that were never promised"
    return ledger


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, at most a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def child_paths() -> list[str]:
    """Folders that a child needs on its path."""
    return [str(Path(__file__).parent), *(p for p in sys.path if "helpers" in p or "faults" in p)]
