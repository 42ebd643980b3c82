"""`make drift`: drift of the demo's input: how soon it is seen, and how often it is seen where there is none.

Ordinary: ORDINARY test images of Fashion-MNIST, which the calibration (256 training images) does not contain, several
times in other orders. Drifted: inverted, darkened to 20 %, replaced by noise, after STARTS ordinary images. The frames
have the lengths that the codec gives them. Writes build/control/drift.json, and with --page docs/results/drift.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from msgspec import Struct

from benchmarks.control.demo_pair import Float32Array, UInt8Array, demo_pair, front_outputs, test_images
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.profile import FRONT
from splitwire.codec.shared.files import write_atomically, write_json
from splitwire.console import progress_bar
from splitwire.runtime_edge.control import DriftMonitor
from splitwire.runtime_edge.graph import FrontGraph, open_front

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "results" / "drift.md"
ORDINARY = 5000
ORDERS = 10
STARTS = (0, 64, 500)
"""Ordinary images before the change."""
CHANGED = 400
WITHIN = 200
MOST_US = 50.0

CHANGES: dict[str, Callable[[UInt8Array], UInt8Array]] = {
    "inverted": lambda images: 255 - images,
    "darkened to 20 %": lambda images: (images * 0.2).astype(np.uint8),
    "replaced by noise": lambda images: np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8),
}


class Detection(Struct, frozen=True, kw_only=True):
    """change: of the input. before: ordinary images before it. after: images until the event; None: none in CHANGED.
    signal: the one over its limit. score: at the end, in limits."""

    change: str
    before: int
    after: int | None
    signal: str
    score: float


class Result(Struct, frozen=True, kw_only=True):
    """images, orders: ordinary images, and orders of them. alarms: in all orders. highest: largest score without a
    change, in limits. detections: of the changes. us: CPU time of a frame in the monitor, microseconds."""

    images: int
    orders: int
    alarms: int
    highest: float
    detections: list[Detection]
    us: float


def measure(front: FrontGraph, ordinary: Float32Array, changed: dict[str, Float32Array]) -> Result:
    """The figures. ordinary: outputs of the front for ordinary images; changed: for the first of them, changed."""
    codec = FeatureCodec(front.profile)
    lengths = {name: [len(codec.encode([y])) for y in np.split(rows, len(rows))] for name, rows in changed.items()}
    usual = [len(codec.encode([y])) for y in np.split(ordinary, len(ordinary))]
    alarms, highest, spent = 0, 0.0, 0.0
    rng = np.random.default_rng(0)
    for _ in range(ORDERS):
        monitor = _monitor(front)
        order = rng.permutation(len(ordinary))[:ORDINARY]
        start = time.process_time()
        for i in order:
            alarms += monitor.observe([ordinary[i : i + 1]], usual[i]) is not None
            highest = max(highest, monitor.score)
        spent += time.process_time() - start
    detections = []
    for name, rows in changed.items():
        for before in STARTS:
            monitor = _monitor(front)
            for i in range(before):
                monitor.observe([ordinary[-i - 1][None]], usual[-i - 1])
            after, signal = None, ""
            for i in range(len(rows)):
                event = monitor.observe([rows[i : i + 1]], lengths[name][i])
                if event is not None and after is None:
                    after, signal = i + 1, str(event.fields["signal"])
            detections.append(Detection(change=name, before=before, after=after, signal=signal, score=monitor.score))
    return Result(
        images=min(len(ordinary), ORDINARY),
        orders=ORDERS,
        alarms=alarms,
        highest=highest,
        detections=detections,
        us=1e6 * spent / (ORDERS * min(len(ordinary), ORDINARY)),
    )


def _monitor(front: FrontGraph) -> DriftMonitor:
    if front.drift is None:
        raise SystemExit("the pair holds no limits of drift")
    return DriftMonitor(front.profile, front.drift, op=front.profile.default_op)


def page(result: Result, source: str) -> str:
    """docs/results/drift.md."""
    lines = [
        "# Drift of the demo's input",
        "",
        f"`make drift` writes this page. Images: {source}. The pair is calibrated on 256 training images.",
        "",
        f"Ordinary images, {result.images:,} in each of {result.orders} orders: {result.alarms} alarms; the highest",
        f"score was {result.highest:.2f} of the limit. CPU time of the monitor: {result.us:.0f} µs per frame.",
        "",
        "| input | ordinary images before | seen after images | by | score in the end |",
        "|---|--:|--:|---|--:|",
    ]
    lines += [
        f"| {d.change} | {d.before} | {'not seen' if d.after is None else d.after} | {d.signal} | {d.score:.1f} |"
        for d in result.detections
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the record, and the page on request. Fails if the figures are not those that are promised."""
    with progress_bar(True) as progress:
        folder = demo_pair(progress)
    images, _, source = test_images()
    changed = {name: front_outputs(folder, change(images[:CHANGED])) for name, change in CHANGES.items()}
    result = measure(open_front(folder / FRONT), front_outputs(folder, images), changed)
    write_json(ROOT / "build" / "control" / "drift.json", result)
    text = page(result, source)
    sys.stdout.write(text)
    if "--page" in sys.argv[1:]:
        write_atomically(PAGE, text.encode())
    late = [d for d in result.detections if d.after is None or d.after > WITHIN]
    if result.alarms or late or result.us > MOST_US:
        raise SystemExit("an alarm without a change, a change that was not seen in time, or too much CPU time")


if __name__ == "__main__":
    main()
