"""A load generator for the benchmarks of the server: many keep-alive connections, one request in flight on each.

It parses no more of an answer than its status, its length and Retry-After, because it shares a machine with the server
that it measures: about 15 µs of CPU per request. A process of its own runs it (`python -m benchmarks.cloud.http_load`),
with a Plan as JSON on standard input, and Samples as JSON on standard output.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import os
import random
import re
import sys
import time
from collections.abc import Callable

import msgspec
from msgspec import Struct

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
RETRY = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)


class Group(Struct, kw_only=True):
    """Clients of one kind: devices with a connection each.

    device: of the X-Splitwire-Device header, numbered; "" for none. rate: frames per second of all of them together, at
    fixed times that are spread over the clients; 0: each sends as soon as it has its answer. back_off: a client that is
    refused waits as it is told. frame: base64.
    """

    clients: int
    rate: float = 0.0
    back_off: bool = False
    device: str = ""
    frame: str = ""


class Plan(Struct, kw_only=True):
    """What to send, and for how long. core: of this process, None for any. skip: seconds before that."""

    port: int
    groups: list[Group]
    seconds: float
    skip: float = 0.5
    core: int | None = None


class Samples(Struct, kw_only=True):
    """What came back to one group. Times are in milliseconds, from when a frame was due; offered: frames that were due,
    those that found their client busy among them."""

    answered_ms: list[float] = []
    refused_ms: list[float] = []
    offered: int = 0
    failed: int = 0
    seconds: float = 0.0


class Connection(asyncio.Protocol):
    """One connection; `done(status, retry_after)` is called for each answer, status 0 when it breaks."""

    def __init__(self) -> None:
        self.done: Callable[[int, float], None] = lambda status, after: None
        self._data = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # TCP

    def send(self, request: bytes) -> None:
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data = data = self._data + data if self._data else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        length = LENGTH.search(data, 0, end + 2)
        if length is None or len(data) < end + 4 + int(length[1]):
            return
        self._data = b""
        status = int(data[9:12])
        retry = RETRY.search(data, 0, end + 2) if status == 503 else None
        self.done(status, float(retry[1]) if retry else 0.0)

    def connection_lost(self, exc: Exception | None) -> None:
        self.done(0, 0.0)


class Client:
    """One device."""

    def __init__(self, plan: Plan, group: Group, samples: Samples, number: int, begin: float) -> None:
        loop = asyncio.get_running_loop()
        self._loop, self._plan, self._group, self._samples = loop, plan, group, samples
        device = f"X-Splitwire-Device: {group.device}{number}\r\n" if group.device else ""
        body = base64.b64decode(group.frame)
        head = f"POST /v1/infer HTTP/1.1\r\nHost: 127.0.0.1:{plan.port}\r\n{device}Content-Length: {len(body)}\r\n\r\n"
        self._request = head.encode("ascii") + body
        self._every = group.clients / group.rate if group.rate else 0.0
        self._due = begin + self._every * number / group.clients
        self._counts_from = begin + plan.skip
        self._end = begin + plan.skip + plan.seconds
        self._sent = 0.0
        self.finished: asyncio.Future[None] = loop.create_future()

    async def start(self) -> None:
        _, self._connection = await self._loop.create_connection(Connection, "127.0.0.1", self._plan.port)
        self._connection.done = self._done
        self._loop.call_later(max(0.0, self._due - time.perf_counter()), self._send)

    def _send(self) -> None:
        now = time.perf_counter()
        if now >= self._end:
            self._finish()
            return
        self._sent = self._due if self._every else now
        if self._sent >= self._counts_from:
            self._samples.offered += 1
        self._connection.send(self._request)

    def _done(self, status: int, after: float) -> None:
        now = time.perf_counter()
        if self.finished.done():
            return
        if status == 0:
            self._samples.failed += 1
            self._finish()
            return
        if self._counts_from <= self._sent and now < self._end:
            took = 1e3 * (now - self._sent)
            if status == 200:
                self._samples.answered_ms.append(took)
            elif status == 503:
                self._samples.refused_ms.append(took)
            else:
                self._samples.failed += 1
        earliest = now
        if status == 503 and self._group.back_off:
            earliest += after * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        if not self._every:
            if earliest > now:
                self._loop.call_later(earliest - now, self._send)
            else:
                self._send()
            return
        self._due += self._every
        while self._due < earliest - self._every:  # frames that the client did not send: it was busy, or backs off
            self._due += self._every
            if self._due >= self._counts_from and not (status == 503 and self._group.back_off):
                self._samples.offered += 1
        self._loop.call_later(max(0.0, self._due - now), self._send)

    def _finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)


async def load(plan: Plan) -> list[Samples]:
    """Run a plan; the samples of each group."""
    everything = [Samples(seconds=plan.seconds) for _ in plan.groups]
    begin = time.perf_counter() + 0.2
    clients = [
        Client(plan, group, samples, number, begin)
        for group, samples in zip(plan.groups, everything, strict=True)
        for number in range(group.clients)
    ]
    for client in clients:
        await client.start()
    await asyncio.wait([client.finished for client in clients], timeout=plan.skip + plan.seconds + 5)
    return everything


def main() -> None:
    """Read a Plan, run it, write the Samples."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    if plan.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {plan.core})
    try:
        run = importlib.import_module("uvloop").run
    except ImportError:  # then the server has none either
        run = asyncio.run
    samples = run(load(plan))
    os.set_blocking(sys.stdout.fileno(), True)  # the event loop has changed that, and a write would be cut off
    sys.stdout.buffer.write(msgspec.json.encode(samples))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
