"""A session whose stages take as long as a test says, and sources that a test drives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from splitwire.runtime_edge.graph import FrontOutputs
from splitwire.runtime_edge.results import SplitResult, Timings, Where
from splitwire.runtime_edge.sources import Captured
from splitwire.runtime_edge.transport import Reply


def array(value: float = 0.0) -> np.ndarray:
    return np.full((1, 4), value, np.float32)


class Staged:
    """Stages for a pipeline: each sleeps for its time, and the answer of a frame is its input.

    fails: called with the input's first value in `send`; what it returns is raised there.
    """

    def __init__(
        self,
        *,
        prepare_s: float = 0.0,
        front_s: float = 0.0,
        send_s: float = 0.0,
        fails: Callable[[float], Exception | None] = lambda value: None,
    ) -> None:
        self.times = {"prepare": prepare_s, "front": front_s, "send": send_s}
        self.fails = fails
        self.sent: list[float] = []
        self.in_flight = 0
        self.most = 0
        self._ids = 0
        self._lock = threading.Lock()

    def prepared(self, image: Any) -> tuple[np.ndarray, None]:
        time.sleep(self.times["prepare"])
        return image, None

    def run_front(self, x: np.ndarray) -> FrontOutputs:
        time.sleep(self.times["front"])
        return FrontOutputs(features=[x], sizes=[], early={}, provider="CPUExecutionProvider")

    def encode(self, features: Sequence[np.ndarray], *, op: str | None, frame_id: int, sizes: Sequence[Any]) -> bytes:
        return features[0].tobytes()

    def send(self, frame: bytes, *, frame_id: int, key: Any = None) -> Reply:
        value = float(np.frombuffer(frame, np.float32)[0])
        with self._lock:
            self.sent.append(value)
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
        try:
            if error := self.fails(value):
                raise error
            time.sleep(self.times["send"])
        finally:
            with self._lock:
                self.in_flight -= 1
        return Reply(
            outputs={"y": np.frombuffer(frame, np.float32)},
            frame_id=frame_id,
            decode_ms=0,
            back_ms=0,
            bytes_sent=len(frame),
            bytes_received=0,
        )

    def next_frame_id(self) -> int:
        with self._lock:
            self._ids += 1
            return self._ids

    def assemble(
        self,
        front: FrontOutputs,
        reply: Reply,
        *,
        op: str | None,
        images: int,
        frame_bytes: int,
        ms: Sequence[float],
        where: Where,
    ) -> SplitResult:
        return SplitResult(
            outputs=reply.outputs,
            op=op or "n4",
            bytes_sent=reply.bytes_sent,
            frame_bytes=frame_bytes,
            bits_per_element=1.0,
            timings=Timings(front=ms[0], encode=ms[1], network=ms[2], decode=0, back=0),
            attempts=1,
            where=where,
        )


class Clocked:
    """A live source: `count` arrays with the values 0, 1, …, one every `interval_s` seconds by the clock."""

    live = True

    def __init__(self, count: int, interval_s: float) -> None:
        self._count, self._interval = count, interval_s
        self._index = 0
        self._start = time.monotonic()
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[Captured]:
        return self

    def __next__(self) -> Captured:
        if self._index == self._count or self.closed.wait(
            max(0.0, self._start + self._index * self._interval - time.monotonic())
        ):
            raise StopIteration
        self._index += 1
        return Captured.now(array(self._index - 1), name="clock", index=self._index - 1)

    def close(self) -> None:
        self.closed.set()
