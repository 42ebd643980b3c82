"""A TCP proxy that spoils a link: rate, delay, reset, stall, truncation, duplication and corruption, per direction.

    with Proxy(server.address, up=Link(rate=25_000, delay_s=0.02), down=Link(corrupt=5_000), seed=3) as proxy:
        transport = HttpTransport(proxy.url)
        proxy.up.rate = 2_500              # changes at once, for open connections too
        proxy.done                         # Counter({("down", "corrupt"): 4})

Up is from the client to the server. Faults lie at positions of the byte stream, drawn with the seed, the number of the
connection and the direction. So they do not depend on how TCP cuts the stream into pieces. It runs in one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

Fault = Literal["reset", "stall", "truncate", "duplicate", "repeat", "corrupt"]
FAULTS: tuple[Fault, ...] = ("reset", "stall", "truncate", "duplicate", "repeat", "corrupt")

PIECE = 1448
"""Bytes that are read at a time on a slow link: one TCP segment, so that its rate is smooth."""
SLICE_S = 0.005
"""On a fast link a piece is what passes in this time: fewer wake-ups."""
LARGEST = 1 << 16
REPEATED = 64
"""Bytes that a duplication sends twice."""


@dataclass
class Link:
    """One direction. Every field may be changed while the proxy runs; faults only for new connections.

    rate: bytes per second of all connections together; None: unlimited. delay_s, jitter_s: each piece is delayed by
    delay_s plus a uniform random time up to jitter_s; the order stays. buffer: bytes that wait for their turn before
    the proxy stops reading, as in a router. reset, stall, truncate, duplicate, repeat, corrupt: mean distance of such
    a fault from the next, in bytes; None: never. A duplication sends the last 64 bytes twice; a repetition the piece
    that was received at once, which is a whole message where messages are short and few. stall_s: how long a stall
    lasts; None: for ever. plan: faults at exact positions of the first connection's stream, as (position, fault).
    """

    rate: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    buffer: int = 1 << 16
    reset: float | None = None
    stall: float | None = None
    truncate: float | None = None
    duplicate: float | None = None
    repeat: float | None = None
    corrupt: float | None = None
    stall_s: float | None = None
    plan: tuple[tuple[int, Fault], ...] = ()
    free_at: float = field(default=0.0, repr=False)
    """When the link has sent what it was given so far, by the clock of the loop."""


class Proxy:
    """Listens on a free port of 127.0.0.1 and passes connections on to `target`. A context manager.

    done: how many faults of each kind happened, by (direction, fault). connections: accepted so far. refusing: whether
    new connections are closed at once.
    """

    def __init__(
        self, target: tuple[str, int], *, up: Link | None = None, down: Link | None = None, seed: int = 0
    ) -> None:
        self.target = target
        self.up, self.down = up or Link(), down or Link()
        self.refusing = False
        self.connections = 0
        self.done: Counter[tuple[str, str]] = Counter()
        self._seed = seed
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._loop.run_forever, name="splitwire-proxy", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    @property
    def url(self) -> str:
        """The address as http://host:port."""
        return "http://{}:{}".format(*self.address)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(asyncio.start_server(self._accepted, sock=self._listener))
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._listener.close()

    def cut(self) -> None:
        """Reset every open connection."""
        self._call(self._reset(list(self._writers)))

    def _call(self, coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)  # type: ignore[arg-type]  # both kinds

    async def _stop(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in list(self._writers):
            writer.transport.abort()

    async def _reset(self, writers: list[asyncio.StreamWriter]) -> None:
        for writer in writers:
            with contextlib.suppress(OSError):
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self.connections
        self.connections += 1
        self._writers.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            if self.refusing:
                await self._reset([writer])
                return
            answers, other = await asyncio.open_connection(*self.target)
            self._writers.add(other)
            ends = [writer, other]
            for end in ends:
                end.transport.set_write_buffer_limits(high=PIECE)
            flows = [
                _Flow(self, "up", self.up, number, reader, other, ends).run(),
                _Flow(self, "down", self.down, number, answers, writer, ends).run(),
            ]
            await asyncio.gather(*flows)
        except (OSError, asyncio.CancelledError):
            pass  # the target is away: the client sees its connection close; or the proxy stops
        finally:
            for end in filter(None, (writer, other)):
                self._writers.discard(end)
                end.close()


class _Flow:
    """One direction of one connection."""

    def __init__(
        self,
        proxy: Proxy,
        name: str,
        link: Link,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: list[asyncio.StreamWriter],
    ) -> None:
        self._proxy, self._name, self._link = proxy, name, link
        self._reader, self._writer, self._ends = reader, writer, ends
        self._chance = random.Random(f"{proxy._seed}/{number}/{name}")
        self._jitter = random.Random(f"{proxy._seed}/{number}/{name}/jitter")  # of its own: pieces vary in number
        self._faults = _positions(link, number, self._chance)
        self._next = next(self._faults, None)
        self._position = 0
        self._last = b""
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._changed = asyncio.Event()
        self._ended = False

    async def run(self) -> None:
        """Pass everything on, until one side ends or a fault ends it."""
        await asyncio.gather(self._read(), self._write())

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await self._reader.read(self._piece()):
                link, now = self._link, loop.time()
                if link.rate is not None:
                    link.free_at = max(link.free_at, now) + len(data) / link.rate
                start = max(link.free_at, now) if link.rate is not None else now
                self._waiting.append((start + link.delay_s + self._jitter.uniform(0, link.jitter_s), data))
                self._changed.set()
                # What is on its way does not fill the buffer: only what the rate holds back does.
                while link.rate is not None and (link.free_at - loop.time()) * link.rate > link.buffer:
                    await asyncio.sleep(SLICE_S)
        except ConnectionError:
            pass
        finally:
            self._ended = True
            self._changed.set()

    def _piece(self) -> int:
        rate = self._link.rate
        return LARGEST if rate is None else min(LARGEST, max(PIECE, int(rate * SLICE_S)))

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        latest = 0.0
        with contextlib.suppress(ConnectionError):
            while True:
                while not self._waiting:
                    if self._ended:
                        if self._writer.can_write_eof():
                            self._writer.write_eof()
                        return
                    self._changed.clear()
                    await self._changed.wait()
                due, data = self._waiting.popleft()
                latest = max(latest, due)  # jitter does not reorder
                await asyncio.sleep(max(0.0, latest - loop.time()))
                if not await self._pass(data):
                    return

    async def _pass(self, data: bytes) -> bool:
        """Send a piece, with the faults that lie in it. False if the connection is over."""
        piece, repetitions = data, 0
        while self._next is not None and self._next[0] < self._position + len(data):
            at, fault = self._next
            before = data[: at - self._position]
            data = data[len(before) :]
            await self._send(before)
            self._next = next(self._faults, None)
            self._proxy.done[self._name, fault] += 1
            match fault:
                case "corrupt":
                    data = bytes([data[0] ^ self._chance.randrange(1, 256)]) + data[1:]
                case "duplicate":
                    self._writer.write(self._last)
                case "repeat":
                    repetitions += 1
                case "stall":
                    if self._link.stall_s is None:
                        await asyncio.Event().wait()
                    else:
                        await asyncio.sleep(self._link.stall_s)
                case "truncate":
                    for end in self._ends:
                        end.close()
                    return False
                case "reset":
                    await self._proxy._reset(self._ends)
                    return False
        await self._send(data)
        self._writer.write(piece * repetitions)
        return True

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        self._position += len(data)
        self._last = (self._last + data)[-REPEATED:]
        await self._writer.drain()


def _positions(link: Link, number: int, chance: random.Random) -> Iterator[tuple[int, Fault]]:
    """The faults of a stream in the order of their positions."""
    if number == 0 and link.plan:
        yield from sorted(link.plan)
        return
    means = {fault: mean for fault in FAULTS if (mean := getattr(link, fault)) is not None}
    upcoming = {fault: chance.expovariate(1 / mean) for fault, mean in means.items()}
    while upcoming:
        fault = min(upcoming, key=lambda f: upcoming[f])
        yield int(upcoming[fault]), fault
        upcoming[fault] += 1 + chance.expovariate(1 / means[fault])
