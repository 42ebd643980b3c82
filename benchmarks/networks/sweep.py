"""`make sweep-models`: exports, cuts and verifies torchvision's networks, and sends one frame through each.

For every network it measures the ONNX export, the search for cuts and the cut (seconds, and memory in sizes of the
model). It compares back(front(x)) with the whole network at several cuts, and runs one pair through `splitwire.export`,
EdgeSession and CloudSession. The weights are random, so accuracy and rate are meaningless here and not shown. Each
network runs in its own processes. The results so far stay in build/sweep/, so that a second start continues. It writes
build/sweep/models.json and docs/results/models.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from splitwire.codec.shared.files import write_json
from splitwire.evaluation.measuring.stages import machine

OUT = Path("build/sweep")
PAGE = Path("docs/results/models.md")
CUTS = 6
"""Number of single-tensor cuts to verify per network, spread over its length."""

PYRAMID = 8
"""Most tensors of a multi-tensor cut in the search."""

NETWORKS: dict[str, tuple[str, ...]] = {
    "alexnet": (),
    "vgg16": (),
    "resnet18": (),
    "resnet50": (),
    "mobilenet_v2": (),
    "mobilenet_v3_large": (),
    "efficientnet_b0": (),
    "densenet121": (),
    "inception_v3": (),
    "googlenet": (),
    "shufflenet_v2_x1_0": (),
    "squeezenet1_1": (),
    "regnet_y_400mf": (),
    "convnext_tiny": (),
    "vit_b_16": (),
    "swin_t": (),
    "deeplabv3_resnet50": (),
    "fcn_resnet50": (),
    "ssdlite320_mobilenet_v3_large": ("backbone",),
    "ssd300_vgg16": ("backbone",),
    "retinanet_resnet50_fpn_v2": ("backbone.body", "backbone"),
    "fasterrcnn_resnet50_fpn_v2": ("backbone.body", "backbone"),
    "maskrcnn_resnet50_fpn_v2": ("backbone.body", "backbone"),
}
"""Network → layers with several output tensors, which must separate the network. For such a network the last listed cut
of three tensors or more is verified too."""


SIZES = {
    "deeplabv3_resnet50": 224,
    "fcn_resnet50": 224,
    "retinanet_resnet50_fpn_v2": 320,
    "fasterrcnn_resnet50_fpn_v2": 320,
    "maskrcnn_resnet50_fpn_v2": 320,
}
"""Side of the input in pixels, for networks that would take many minutes at the recipe's size (520 or 640)."""


class CutResult(Struct, frozen=True, kw_only=True):
    """One verified cut.

    shapes: of one image's tensors. seconds: find_cut and split. difference: back(front(x)) from whole(x), relative.
    memory: bytes taken by finding and splitting, the loaded model included.
    """

    label: str
    shapes: tuple[tuple[int, ...], ...]
    macs_share: float
    parameters_share: float
    seconds: float
    difference: float
    memory: int


class Frame(Struct, frozen=True, kw_only=True):
    """One image through front, codec, frame and back, at 4 levels."""

    label: str
    tensors: int
    elements: int
    bytes: int


class Result(Struct, frozen=True, kw_only=True):
    """One network. model_bytes: of its weights. search_seconds: names and all cuts. single, multi: numbers of cuts
    found with one tensor, and with up to PYRAMID."""

    name: str
    exporter: str
    export_seconds: float
    nodes: int
    model_bytes: int
    macs: int
    single: int
    multi: int
    search_seconds: float
    cuts: tuple[CutResult, ...]
    frame: Frame


def main(arguments: Sequence[str]) -> int:
    """Run the named networks, or all. Returns the number of failures."""
    if arguments[:1] == ["--export"]:
        return _export(arguments[1], Path(arguments[2]))
    if arguments[:1] == ["--cut"]:
        return _cut(arguments[1], Path(arguments[2]), Path(arguments[3]))
    console = Console(stderr=True)
    unknown = set(arguments) - set(NETWORKS)
    if unknown:
        console.print(f"not in the sweep: {', '.join(sorted(unknown))}; it has {', '.join(NETWORKS)}")
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in track(arguments or list(NETWORKS), "Sweep", console=console):
        kept = OUT / f"{name}.json"
        if kept.exists() and not arguments:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            model = str(Path(scratch) / f"{name}.onnx")
            for step in (["--export", name, model], ["--cut", name, model, str(kept)]):
                command = [sys.executable, "-m", "benchmarks.networks.sweep", *step]
                done = subprocess.run(command, check=False)  # noqa: S603 - this very module
                if done.returncode:
                    failed.append(name)
                    console.print(f"{name}: {step[0]} failed")
                    break
    results = [msgspec.json.decode(p.read_bytes(), type=Result) for n in NETWORKS if (p := OUT / f"{n}.json").exists()]
    write_json(OUT / "models.json", {"machine": machine(), "rows": results})
    if not arguments and not failed:
        PAGE.write_text(page(results), encoding="utf-8")
        console.print(f"wrote {PAGE}")
    return len(failed)


def page(results: Sequence[Result]) -> str:
    """The table for docs/results/."""
    lines = [
        "# torchvision's networks, exported, cut and verified",
        "",
        f"Written by `make sweep-models` on one machine ({machine()['processor']}), so times are indicative. Random",
        "weights: this shows that the cut is right, not what it costs in accuracy. *Cuts* are the single tensors that",
        f"separate the network, and with multi-tensor cuts of up to {PYRAMID} tensors. *Verified* are those for which",
        "back(front(x)) was compared with the whole network, at batch 1 and 3 where the batch is free; the largest",
        "difference is relative, 0 is the same to the bit. *Memory* is what finding and cutting took, in sizes of the",
        "model, which is counted in; what the libraries load once, for any network, is not. *Frame*: one image through",
        "EdgeSession and CloudSession at 4 levels.",
        "",
        "| network | export, s | nodes | cuts | search, s | verified | cut, s | largest difference | memory | frame: cut, tensors, bytes |",  # noqa: E501 - one row
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for r in results:
        several = sum(len(c.shapes) > 1 for c in r.cuts)
        verified = f"{len(r.cuts)}" + (f", {several} of several tensors" if several else "")
        lines.append(
            f"| {r.name} | {r.export_seconds:.0f} ({r.exporter}) | {r.nodes:,} | {r.single} / {r.multi} |"
            f" {r.search_seconds:.2f} | {verified} | {max(c.seconds for c in r.cuts):.2f} |"
            f" {max(c.difference for c in r.cuts):.1e} | {max(c.memory for c in r.cuts) / r.model_bytes:.1f}× |"
            f" `{r.frame.label}`, {r.frame.tensors}, {r.frame.bytes:,} |"
        )
    return "\n".join(lines) + "\n"


def _export(name: str, path: Path) -> int:
    import onnx_ir as ir

    from splitwire.exporter.network.source import from_module
    from splitwire.models.catalogue import load

    loaded = load(name, size=SIZES.get(name))
    start = time.perf_counter()
    source = from_module(loaded.module, loaded.input_shape)
    seconds = time.perf_counter() - start
    ir.save(source.model, path)
    about = {"exporter": source.origin, "seconds": seconds, "modules": dict(source.modules)}
    path.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
    return 0


def _cut(name: str, path: Path, to: Path) -> int:
    from splitwire.exporter.cutting import verify
    from splitwire.exporter.cutting.cuts import find_cut, find_cuts
    from splitwire.exporter.cutting.names import Names
    from splitwire.exporter.cutting.split import split
    from splitwire.exporter.network.inference import Graph
    from splitwire.exporter.network.source import from_file
    from splitwire.exporter.planning.costs import measure_costs

    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        tiny = from_file(_tiny_network(Path(scratch) / "tiny.onnx"))
        names = Names(tiny.graph, {})
        measure_costs(tiny)
        split(tiny.model, find_cut(names, find_cuts(tiny.graph, names, max_tensors=2)[0].label)[0].tensors)
    before = _memory(peak=False)
    source = from_file(path)
    start = time.perf_counter()
    names = Names(source.graph, about["modules"])  # a file: no module was watched
    singles = find_cuts(source.graph, names)
    search = time.perf_counter() - start
    several = find_cuts(source.graph, names, max_tensors=PYRAMID)
    costs = measure_costs(source)
    size = sum(v.const_value.nbytes for v in source.graph.initializers.values() if v.const_value is not None)
    spread = np.unique(np.linspace(0, len(singles) - 1, CUTS).round().astype(int)).tolist() if singles else []
    pyramids = [c.label for c in several if len(c.tensors) > 2] if NETWORKS[name] else []
    labels = dict.fromkeys([*(singles[i].label for i in spread), *NETWORKS[name], *pyramids[-1:]])
    seconds, memory = {}, {}
    for label in labels:  # all of them before ONNX Runtime takes memory for the checks
        _forget_peak()
        start = time.perf_counter()
        split(source.model, find_cut(names, label)[0].tensors)
        seconds[label] = time.perf_counter() - start
        memory[label] = _memory(peak=True) - before
    inputs = verify.fill_up([], source.input_shape[1:])
    if NETWORKS.get(name):
        inputs = np.clip(np.abs(inputs), 0, 1)  # detectors take values in [0, 1]
    whole = Graph.of(source.model, what="whole network", exact=True)
    results = []
    for label in labels:
        cut, _ = find_cut(names, label)
        results.append(
            CutResult(
                label=label,
                shapes=cut.shapes,
                macs_share=costs.macs_before(cut.position) / max(1, costs.macs),
                parameters_share=costs.parameters_before(cut.position) / max(1, costs.parameters),
                seconds=seconds[label],
                difference=verify.check_halves(whole, split(source.model, cut.tensors), inputs),
                memory=memory[label],
            )
        )
    label = (NETWORKS[name] or (results[len(results) // 2].label,))[-1]
    result = Result(
        name=name,
        exporter=about["exporter"],
        export_seconds=about["seconds"],
        nodes=len(source.graph),
        model_bytes=size,
        macs=costs.macs,
        single=len(singles),
        multi=len(several),
        search_seconds=search,
        cuts=tuple(results),
        frame=_frame(path, label, np.concatenate([inputs, inputs[:, :, ::-1]])),
    )
    write_json(to, result)
    return 0


def _frame(model: Path, label: str, inputs: NDArray[np.float32]) -> Frame:
    """Export a pair at `label`, calibrated on `inputs`, and send one of them through both sessions."""
    import splitwire
    from splitwire.runtime_cloud.session import CloudSession
    from splitwire.runtime_edge.session import EdgeSession
    from splitwire.runtime_edge.transport import LoopbackTransport

    with tempfile.TemporaryDirectory() as folder:
        pair = splitwire.export(model, cut=label, calibration=inputs, out=folder, levels=(4,))
        cloud = CloudSession(pair.back)
        with EdgeSession(pair.front, transport=LoopbackTransport(cloud.handle)) as edge:
            front = edge.run_front(inputs[:1])
            frame = edge.encode(front.features, sizes=front.sizes)
            decoded = cloud.decode(frame)
            again = edge.encode(decoded.tensors, sizes=decoded.sizes)
            if again != frame:
                raise SystemExit(f"{model.stem}: decoding and encoding again gives another frame")
            edge.infer(inputs[:1])
        specs = pair.profile.tensors
        return Frame(label=label, tensors=len(specs), elements=sum(s.elements for s in specs), bytes=len(frame))


def _tiny_network(path: Path) -> Path:
    """Two nodes: reading and cutting it once brings in what the libraries keep for all networks (ONNX's operators alone
    take 8 MB), which is no memory of a model's."""
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    ends = [value(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in ("x", "y")]
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 1, 1], [1.0])
    graph = helper.make_graph(nodes, "tiny", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def _memory(*, peak: bool) -> int:
    """Bytes of this process in memory: now, or at most since `_forget_peak`. Linux."""
    key = "VmHWM" if peak else "VmRSS"
    with Path("/proc/self/status").open() as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(key))


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    sys.exit(main(sys.argv[1:]))
