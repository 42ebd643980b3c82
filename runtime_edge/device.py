"""Measures how fast this machine is, and writes it into a DeviceProfile for `splitwire plan`.

It times small probe graphs, the codec and JPEG.
"""

from __future__ import annotations

import importlib.resources
import io
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
from msgspec import UNSET
from PIL import Image

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import DeviceError
from splitwire.codec.shared.device import DeviceProfile, MeasuredCut, check_threads
from splitwire.codec.shared.progress import ProgressFn
from splitwire.codec.shared.sessions import DEFAULT_PROVIDERS, open_session
from splitwire.codec.warmup import example_profile

from .graph import FrontGraph, open_front

WARM_UP_RUNS = 3
MIN_RUNS = 7
SECONDS = 0.4
"""Each probe runs at least MIN_RUNS times and at least SECONDS in all; the median counts."""

FEATURES = (64, 56, 56)
PICTURE = (480, 640)
JPEG_QUALITY = 90

CONVOLUTIONS = {
    "conv_3x3_large_maps": 3 * 64 * 64 * 9 * 56 * 56,
    "conv_3x3_small_maps": 3 * 256 * 256 * 9 * 14 * 14,
    "conv_1x1": 3 * 256 * 256 * 28 * 28,
}
"""Name of a probe → its multiply–accumulates. tests/helpers/runtime/make_probes.py makes the graphs."""
DEPTHWISE_MACS = 3 * 192 * 9 * 56 * 56
MATMUL_MACS = 197 * 768 * 768
MATVEC_BYTES = 4 * 4096 * 4096
ADD_BYTES = 3 * 4 * 64 * 112 * 112
TINY_NODES = 200
PROBES = (*CONVOLUTIONS, "conv_depthwise", "matmul", "matvec", "add", "tiny_nodes")

UNREST = 1.5
"""If a median is more than this many times the fastest run, the machine was busy, and the profile's note says so."""


def measure_device(
    *,
    name: str | None = None,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
    fronts: Sequence[str | Path] = (),
    progress: ProgressFn | None = None,
) -> DeviceProfile:
    """Measure the speed of this machine. It takes about 6 seconds, more on a slow machine; keep the machine idle.

    name: name of the profile; None for the architecture and the number of threads. threads, providers: as for
    EdgeSession; the profile is valid for these settings. fronts: files front.onnx, whose times replace the estimates of
    `splitwire plan` for their cuts. progress: called as progress(stage, done, total).

    Power is not measured. If you know compute_watts and radio_joules_per_byte, add them to the file.
    Raises UsageError (threads, no such front), ProfileError (not a front), DeviceError (a provider is missing, or a
    probe fails).
    """
    check_threads(threads)
    graphs = [open_front(front, threads=threads, providers=providers or DEFAULT_PROVIDERS) for front in fronts]
    seconds: dict[str, float] = {}
    unrest = 1.0
    codec, jpeg = _codec(), _jpeg()
    calls = {probe: _probe(probe, threads, providers) for probe in PROBES}
    calls |= {f"front {i}": partial(graph.run, graph.zeros()) for i, graph in enumerate(graphs)}
    calls |= {"encode": codec[0], "decode": codec[1], "save": jpeg[0], "load": jpeg[1]}
    for done, (what, call) in enumerate(calls.items()):
        if progress is not None:
            progress("Time probes", done, len(calls))
        taken = timed(call)
        seconds[what] = statistics.median(taken)
        unrest = max(unrest, seconds[what] / min(taken))
    if progress is not None:
        progress("Time probes", len(calls), len(calls))
    used = threads or os.cpu_count()
    elements, pixels = float(np.prod(FEATURES)), float(np.prod(PICTURE))
    note = f"ONNX Runtime {ort.__version__}, {', '.join(providers or DEFAULT_PROVIDERS)}; medians"
    if unrest > UNREST:
        note += f"; the machine was busy, medians up to {unrest:.1f} times the fastest run"
    return DeviceProfile(
        name=name or f"{platform.machine()}, {used} thread{'' if used == 1 else 's'}",
        source="measured",
        conv_macs=sum(CONVOLUTIONS.values()) / sum(seconds[probe] for probe in CONVOLUTIONS),
        matmul_macs=MATMUL_MACS / seconds["matmul"],
        depthwise_macs=DEPTHWISE_MACS / seconds["conv_depthwise"],
        elementwise_bytes=ADD_BYTES / seconds["add"],
        weight_bytes=MATVEC_BYTES / seconds["matvec"],
        node_overhead_us=1e6 * seconds["tiny_nodes"] / TINY_NODES,
        encode_elements=elements / seconds["encode"],
        decode_elements=elements / seconds["decode"],
        jpeg_encode_pixels=pixels / seconds["save"],
        jpeg_decode_pixels=pixels / seconds["load"],
        note=note,
        cuts=tuple(_measured(graph, seconds[f"front {i}"]) for i, graph in enumerate(graphs)) or UNSET,
    )


def _measured(graph: FrontGraph, seconds: float) -> MeasuredCut:
    """seconds: of one run on the smallest batch."""
    x = graph.zeros()
    return MeasuredCut(
        model=graph.profile.model,
        cut=graph.profile.cut,
        input_shape=x.shape[1:],
        shapes=tuple(spec.feature_shape for spec in graph.profile.tensors),
        front_ms=1e3 * seconds / len(x),
        provider=graph.engine.provider,
    )


def timed(call: Callable[[], object]) -> list[float]:
    """Seconds of each run of `call` after the warm-up runs: at least MIN_RUNS values, and SECONDS in all."""
    for _ in range(WARM_UP_RUNS):
        call()
    taken: list[float] = []
    until = time.perf_counter() + SECONDS
    while len(taken) < MIN_RUNS or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def _probe(name: str, threads: int | None, providers: Sequence[str] | None) -> Callable[[], object]:
    """A call that runs a probe graph on random input, with the session options of an edge session."""
    data = importlib.resources.files(__package__).joinpath(f"data/{name}.onnx").read_bytes()
    session: ort.InferenceSession = open_session(
        ort,
        data,
        threads=threads,
        providers=providers or None,
        refused=lambda why: DeviceError(f"ONNX Runtime does not take the probe {name}: {why}"),
    )
    rng = np.random.default_rng(0)
    feed = {i.name: rng.standard_normal(i.shape, dtype=np.float32) for i in session.get_inputs()}
    return lambda: session.run(None, feed)


def _codec() -> tuple[Callable[[], object], Callable[[], object]]:
    """Two calls: encode and decode one feature tensor with the context coder.

    The tables of the example profile do not compress. So this is a slow case: real features give fewer bytes.
    """
    codec = FeatureCodec(example_profile(FEATURES))
    x = np.random.default_rng(0).random((1, *FEATURES), dtype=np.float32)
    frame = codec.encode([x])
    return lambda: codec.encode([x]), lambda: codec.decode(frame)


def _jpeg() -> tuple[Callable[[], object], Callable[[], object]]:
    """Two calls: encode and decode a picture as JPEG. The picture has smooth areas with some noise."""
    height, width = PICTURE
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse, np.int16) + rng.integers(-6, 7, (height, width, 3), dtype=np.int16)
    picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))

    def save() -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()

    data = save()
    return save, lambda: Image.open(io.BytesIO(data)).load()
