"""`make rate`: rate control on real sockets, through a proxy that steps from 20 to 1 to 0.2 to 20 Mbit/s.

A camera over a sorting line: CAMERA_FPS frames per second of GARMENTS garments each, test images of Fashion-MNIST. The
server runs in a second process. The front's outputs are computed before, because the link is what is measured. Two
runs: with RateController, and with the top operating point. A frame fails if it was dropped, or its answer came later
than TARGET_S after its capture. Writes build/control/rate.json, and with --page docs/results/rate.md.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import Struct

from benchmarks.control.demo_pair import Float32Array, UInt8Array, demo_pair, front_outputs, test_images
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import TransportError
from splitwire.codec.profile import FRONT
from splitwire.codec.shared.files import write_atomically, write_json
from splitwire.console import err, progress_bar
from splitwire.demo.server import cloud_process
from splitwire.runtime_edge.control import RateController
from splitwire.runtime_edge.graph import open_front
from splitwire.runtime_edge.transport.http import HttpTransport

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers" / "runtime"))

from proxy import Link, Proxy  # noqa: E402 - lies with the tests

MBIT = (20.0, 1.0, 0.2, 20.0)
SEGMENT_S = 15.0
SETTLE_S = 2.0
"""Time after a step that does not count."""
TARGET_S = 0.25
DELAY_S = 0.01
"""Each way."""
CAMERA_FPS = 10
GARMENTS = 96
IN_FLIGHT = 3
SENT = 4 * int(SEGMENT_S * CAMERA_FPS)
PAGE = ROOT / "docs" / "results" / "rate.md"


@dataclass(kw_only=True)
class Frame:
    """captured: seconds since the start. op: "" if it was dropped. latency: seconds; None if it was dropped or lost.
    right: right answers. size: bytes of the frame."""

    captured: float
    op: str = ""
    latency: float | None = None
    right: int = 0
    size: int = 0


class Segment(Struct, frozen=True, kw_only=True):
    """A time with one rate of the link, without SETTLE_S after a step.

    within: share of frames with an answer within the target. p50_ms, p95_ms: of those with an answer. accuracy: share
    of right answers among these. bytes: mean of their frames. ops: frames by operating point.
    """

    mbit: float
    frames: int
    dropped: int
    within: float
    p50_ms: float
    p95_ms: float
    accuracy: float
    bytes: float
    ops: dict[str, int]


class Run(Struct, frozen=True, kw_only=True):
    """within: over all segments."""

    name: str
    within: float
    segments: list[Segment]


class Camera:
    """Takes a frame in each interval, and holds the last one until a sender takes it."""

    def __init__(self, frames: list[Frame]) -> None:
        self._frames = frames
        self._waiting: int | None = None
        self._ready = threading.Condition()
        self._ended = False

    def run(self, start: float, at: dict[int, float], proxy: Proxy) -> None:
        """Capture all frames at their times. at: number of a frame → Mbit/s of the link from then on."""
        for i, frame in enumerate(self._frames):
            time.sleep(max(0.0, start + frame.captured - time.monotonic()))
            if i in at:
                proxy.up.rate = at[i] * 1e6 / 8
            with self._ready:
                self._waiting = i  # one that still waits is dropped
                self._ready.notify()
        with self._ready:
            self._ended = True
            self._ready.notify_all()

    def take(self) -> tuple[int, bool] | None:
        """The number of the next frame, and whether it waited for a sender; None at the end."""
        with self._ready:
            busy = self._waiting is not None
            while self._waiting is None:
                if self._ended:
                    return None
                self._ready.wait()
            number, self._waiting = self._waiting, None
            return number, busy


def stream(name: str, url: str, coefficients: Float32Array, labels: UInt8Array, op: str | None) -> Run:
    """One run over all segments."""
    front = open_front(demo_folder() / FRONT)
    codec = FeatureCodec(front.profile)
    rate = RateController(front.profile, target_s=TARGET_S, fps=CAMERA_FPS, op=op)
    frames = [Frame(captured=i / CAMERA_FPS) for i in range(SENT)]
    host, port = url.removeprefix("http://").split(":")
    per_segment = int(SEGMENT_S * CAMERA_FPS)
    at = {i * per_segment: mbit for i, mbit in enumerate(MBIT)}
    with Proxy(
        (host, int(port)), up=Link(rate=MBIT[0] * 1e6 / 8, delay_s=DELAY_S), down=Link(delay_s=DELAY_S)
    ) as proxy:
        transport = HttpTransport(proxy.url, lean=True)
        camera = Camera(frames)
        start = time.monotonic() + 0.5

        def send() -> None:
            while (taken := camera.take()) is not None:
                number, busy = taken
                frame = frames[number]
                rows = [(number * GARMENTS + i) % len(coefficients) for i in range(GARMENTS)]
                rung = rate.rung()
                data = codec.encode([coefficients[rows]], op=rung.op, frame_id=number)
                sent = time.monotonic()
                try:
                    reply = transport.send(data)
                except TransportError:
                    rate.lost(time.monotonic())
                    continue
                now = time.monotonic()
                rate.delivered(reply.bytes_sent, sent, now, busy, rung=rung)
                scores = next(iter(reply.outputs.values()))
                frame.op, frame.latency, frame.size = rung.op, now - start - frame.captured, len(data)
                frame.right = int((scores.argmax(axis=1) == labels[rows]).sum())

        senders = [threading.Thread(target=send) for _ in range(IN_FLIGHT)]
        for sender in senders:
            sender.start()
        camera.run(start, at, proxy)
        for sender in senders:
            sender.join()
        transport.close()
    segments = [_segment(frames[i : i + per_segment], MBIT[i // per_segment], first=i == 0) for i in at]
    counted = sum(s.frames for s in segments)
    return Run(name=name, within=sum(s.within * s.frames for s in segments) / counted, segments=segments)


def _segment(frames: list[Frame], mbit: float, *, first: bool) -> Segment:
    counted = frames if first else [f for f in frames if f.captured >= frames[0].captured + SETTLE_S]
    answered = [f for f in counted if f.latency is not None]
    latencies = [f.latency for f in answered if f.latency is not None]
    return Segment(
        mbit=mbit,
        frames=len(counted),
        dropped=len(counted) - len(answered),
        within=sum(latency <= TARGET_S for latency in latencies) / len(counted),
        p50_ms=1e3 * float(np.median(latencies)),
        p95_ms=1e3 * float(np.percentile(latencies, 95)),
        accuracy=sum(f.right for f in answered) / (len(answered) * GARMENTS),
        bytes=float(np.mean([f.size for f in answered])),
        ops=dict(sorted(Counter(f.op for f in answered).items())),
    )


def demo_folder() -> Path:
    """The pair, exported on the first call."""
    with progress_bar(True) as progress:
        return demo_pair(progress)


def page(runs: list[Run], source: str, load: float, nice: int) -> str:
    """docs/results/rate.md. load: average number of processes that wanted to run, before the first run. nice: of this
    process; negative: it goes before others."""
    lines = [
        "# Rate control on a link that changes",
        "",
        "`make rate` writes this page. The demo's pair, over real sockets: edge, proxy and server on one machine. The",
        f"proxy shapes the link upwards to {', '.join(f'{m:g}' for m in MBIT)} Mbit/s for {SEGMENT_S:g} s each, with"
        f" {2 * DELAY_S * 1e3:g} ms of round trip. A camera takes",
        f"{CAMERA_FPS} frames per second of {GARMENTS} garments each ({source}); at most {IN_FLIGHT} frames",
        f"are on their way, one waits, an older one is dropped. Target: {TARGET_S * 1e3:g} ms from capture to answer.",
        f"The {SETTLE_S:g} s after a step do not count. A dropped frame is not within the target.",
        f"Before the run, {load:.1f} processes wanted to run on the machine's {os.cpu_count()} cores: where they are",
        f"more, and the benchmark does not go before them (its nice value is {nice}), frames wait for a core, and the",
        "controller cannot tell that from a slow link.",
    ]
    for run in runs:
        lines += ["", f"## {run.name}: {run.within:.1%} of the frames within the target", ""]
        lines += ["| Mbit/s | frames | dropped | within | p50 ms | p95 ms | accuracy | bytes | operating points |"]
        lines += ["|--:|--:|--:|--:|--:|--:|--:|--:|---|"]
        for s in run.segments:
            shares = f"{s.within:.1%} | {s.p50_ms:.0f} | {s.p95_ms:.0f} | {s.accuracy:.1%}"
            ops = ", ".join(f"{op} {n}" for op, n in s.ops.items())
            lines.append(f"| {s.mbit:g} | {s.frames} | {s.dropped} | {shares} | {s.bytes:,.0f} | {ops} |")
    lines += [
        "",
        "Accuracy: share of garments with the right class, among frames with an answer. Bytes: mean length of these.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Both runs, the record, and the page on request."""
    folder = demo_folder()
    images, labels, source = test_images()
    coefficients = front_outputs(folder, images)
    profile = open_front(folder / FRONT).profile
    top = max(profile.operating_points, key=lambda p: p.bits_per_element).name
    runs, load = [], os.getloadavg()[0]
    with cloud_process(folder) as url:
        for name, op in (("With rate control", None), (f"Always the top rate, {top}", top)):
            err.print(f"{name}: {len(MBIT) * SEGMENT_S:g} s", markup=False)
            runs.append(stream(name, url, coefficients, labels, op))
            err.print(f"  {runs[-1].within:.1%} within the target", markup=False)
    write_json(ROOT / "build" / "control" / "rate.json", runs)
    text = page(runs, source, load, os.nice(0))
    sys.stdout.write(text)
    if "--page" in sys.argv[1:]:
        write_atomically(PAGE, text.encode())
    if runs[0].within < 0.9 or runs[1].within >= 0.9:
        raise SystemExit("rate control must keep the target on 90 % of the frames, where the top rate does not")


if __name__ == "__main__":
    main()
