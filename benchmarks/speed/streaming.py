"""`make bench-streaming`: frames per second of a stream beside the sequential loop, ages, and what the pipeline costs.

real: the detector's pair, its front on one thread. A frame is a batch of eight pictures, so that the front takes longer
than a busy machine delays a thread. The link has a delay equal to the median time of the front, in all; the answers
were computed before, because a server has cores of its own. Both loops get the same batches, in turns. On a busy
machine the figures say little: several threads get more of it than one.

slept: stages that sleep instead of computing, which other processes hardly disturb. Front and network take 20 ms each.
Ages: of `drop-oldest`, from a camera with an interval of 30 ms, with 4 ms to prepare, and 20 ms each for front and
network.

The pipeline's own cost is CPU time per frame of a stream whose stages do nothing. It writes build/bench/streaming.json
and prints the same.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct
from rich.console import Console

from benchmarks.inputs.static_camera import clip
from benchmarks.quality.skip import PAIR, export_detector
from splitwire.codec.shared.files import write_json
from splitwire.codec.wire.frame import parse_frame
from splitwire.evaluation.measuring.stages import machine
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.graph import FrontOutputs
from splitwire.runtime_edge.results import SplitResult, Timings
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.sources import as_source
from splitwire.runtime_edge.stream import Policy, Stream
from splitwire.runtime_edge.transport import Key, LoopbackTransport, Reply

OUT = Path("build/bench")
BATCH = 8
FRAMES = 60
ROUNDS = 5
EMPTY_FRAMES = 4000
SLEPT_S = 0.02
SLEPT_FRAMES = 200
INTERVAL_S = 0.03
TARGET = 1.7


class Delayed:
    """Answers each frame after `delay_s`, with the answer that the handler gave to the first one."""

    def __init__(self, handler: Callable[[bytes], bytes]) -> None:
        self._inner = LoopbackTransport(handler)
        self._answer: Reply | None = None
        self.delay_s = 0.0

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        if self._answer is None:
            self._answer = self._inner.send(frame, key)
        time.sleep(self.delay_s)
        return dataclasses.replace(self._answer, frame_id=parse_frame(frame).frame_id)

    def close(self) -> None:
        """Nothing is open."""


class Streaming(Struct, frozen=True, kw_only=True):
    """What was measured.

    front_ms: median, and the delay of the link. sequential, streamed: frames per second, medians of ROUNDS. ratio: of
    the two in the same round, the median. slept_ratio: the same of stages that sleep. p99_age_ms: with `drop-oldest`,
    of INTERVAL_S. own_cpu_us: CPU time per frame of the pipeline alone: threads, channels and results.
    """

    front_ms: float
    sequential: float
    streamed: float
    ratio: float
    slept_ratio: float
    interval_ms: float
    median_age_ms: float
    p99_age_ms: float
    own_cpu_us: float


def main() -> None:
    """Measure, write, print."""
    export_detector(PAIR)
    pictures = [frame.picture for frame in clip(BATCH * FRAMES, seed=0)]
    transport = Delayed(CloudSession(PAIR / "back.onnx").handle)
    with EdgeSession(PAIR / "front.onnx", transport=transport, threads=1) as session:
        inputs = np.concatenate([session.preprocess(picture) for picture in pictures])
        batches = np.split(inputs, FRAMES)
        fronts = [session.infer(x).timings.front for x in batches[:30]]
        transport.delay_s = float(np.median(fronts)) / 1e3
        rates: list[tuple[float, float]] = []
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            for x in batches:
                session.infer(x)
            middle = time.perf_counter()
            list(session.stream(batches))
            rates.append((FRAMES / (middle - begin), FRAMES / (time.perf_counter() - middle)))
    ages = slept_ages()
    found = Streaming(
        front_ms=float(np.median(fronts)),
        sequential=float(np.median([a for a, _ in rates])),
        streamed=float(np.median([b for _, b in rates])),
        ratio=float(np.median([b / a for a, b in rates])),
        slept_ratio=slept_ratio(),
        interval_ms=INTERVAL_S * 1e3,
        median_age_ms=float(np.median(ages)),
        p99_age_ms=float(np.quantile(ages, 0.99)),
        own_cpu_us=own_cost() * 1e6,
    )
    write_json(OUT / "streaming.json", {"machine": machine(), "target": TARGET, "streaming": found})
    Console().print(found)


class Sleeping:
    """Stages that sleep for their times."""

    def __init__(self, prepare_s: float = 0.0, front_s: float = 0.0, send_s: float = 0.0) -> None:
        self._times = prepare_s, front_s, send_s
        x = np.zeros((1, 4), np.float32)
        self._x = x
        self._front = FrontOutputs(features=[x], sizes=[], early={}, provider="")
        self._reply = Reply(outputs={}, frame_id=0, decode_ms=0, back_ms=0, bytes_sent=0, bytes_received=0)
        self._result = SplitResult(
            outputs={}, op="", bytes_sent=0, frame_bytes=0, bits_per_element=0, attempts=1,
            timings=Timings(front=0, encode=0, network=0, decode=0, back=0),
        )  # fmt: skip

    def prepared(self, image: object) -> tuple[np.ndarray, None]:
        _sleep(self._times[0])
        return self._x, None

    def run_front(self, x: object) -> FrontOutputs:
        _sleep(self._times[1])
        return self._front

    def encode(self, *arguments: object, **options: object) -> bytes:
        return b""

    def send(self, *arguments: object, **options: object) -> Reply:
        _sleep(self._times[2])
        return self._reply

    def next_frame_id(self) -> int:
        return 0

    def assemble(self, *arguments: object, **options: object) -> SplitResult:
        return self._result


def _sleep(seconds: float) -> None:
    if seconds:
        time.sleep(seconds)


def stream_of(stages: Sleeping, frames: int, interval_s: float, policy: Policy) -> Stream:
    """A stream of `frames` pictures, one every `interval_s` seconds by the clock."""

    def arrays() -> Iterator[np.ndarray]:
        begin = time.monotonic()
        for i in range(frames):
            time.sleep(max(0.0, begin + i * interval_s - time.monotonic()))
            yield np.zeros((1, 4), np.float32)

    return Stream.start(
        stages, as_source(arrays()), policy=policy, in_flight=None, rate=None, drift=None, skip=None, spool=None,
        wait_s=0.0, fallback=None, on_event=None,
    )  # fmt: skip


def slept_ratio() -> float:
    """Frames per second of a stream, of those of a loop, where front and network sleep."""
    stages = Sleeping(front_s=SLEPT_S, send_s=SLEPT_S)
    begin = time.perf_counter()
    for _ in range(SLEPT_FRAMES):
        stages.run_front(stages.prepared(None)[0])
        stages.send()
    middle = time.perf_counter()
    list(stream_of(stages, SLEPT_FRAMES, 0.0, "block"))
    return (middle - begin) / (time.perf_counter() - middle)


def slept_ages() -> list[float]:
    """Ages of the results of a camera, ms."""
    stages = Sleeping(prepare_s=0.004, front_s=SLEPT_S, send_s=SLEPT_S)
    return [result.age_ms for result in stream_of(stages, SLEPT_FRAMES * 3, INTERVAL_S, "drop-oldest")]


def own_cost() -> float:
    """CPU seconds per frame of a pipeline whose stages do nothing, at the pace of a fast camera."""
    begin = time.process_time()
    count = sum(1 for _ in stream_of(Sleeping(), EMPTY_FRAMES, 1e-3, "block"))
    return (time.process_time() - begin) / count


if __name__ == "__main__":
    main()
