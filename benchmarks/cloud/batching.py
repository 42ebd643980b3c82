"""Measures batching, the order of requests and overload of `splitwire cloud serve`. Writes docs/results/batching.md.

The server has one core and the clients another one; on a machine with one core they share it. Contenders take turns,
so that a busy moment affects all of them. Capacity is what 16 clients get that send as soon as they have an answer.
The unloaded server gets a tenth of that at fixed times. Overload is five times the capacity.
"""

from __future__ import annotations

import base64
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from rich.console import Console

from benchmarks.cloud.http_load import Group, Plan, Samples
from benchmarks.control.demo_pair import demo_pair
from splitwire.codec.profile import BACK
from splitwire.codec.shared.device import usable_cores
from splitwire.codec.shared.files import write_json
from splitwire.evaluation.measuring.stages import machine
from splitwire.exporter.export import export_pair
from splitwire.exporter.options import NetworkOptions
from splitwire.runtime_cloud.session import CloudSession

OUT = Path("build/bench/batching.json")
PAGE = Path("docs/results/batching.md")
MOBILENET = Path("build/bench/mobilenet_v2")
SECONDS, TURNS = 3.0, 3
CLIENTS, CROWD = 16, 64
OVERLOAD = 5.0

SERVER = """
import json, os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[3])})
from pathlib import Path
from splitwire.commands.cloud.serve import serve
serve(Path(sys.argv[1]), port=0, as_json=True, threads=1, **json.loads(sys.argv[2]))
"""


class Server:
    """A server process, and the frame that its clients send."""

    def __init__(self, pair: Path, core: int, **options: object) -> None:
        command = [sys.executable, "-c", SERVER, str(pair), json.dumps(options), str(core)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603 - this file's own text
        assert self._process.stdout is not None
        self.port = int(json.loads(self._process.stdout.readline())["url"].rpartition(":")[2])
        self.frame = base64.b64encode(CloudSession(pair / BACK).random_frame(0)).decode("ascii")

    def load(self, *groups: Group, seconds: float = SECONDS, skip: float = 0.5) -> list[Samples]:
        """What the clients of some groups get."""
        for group in groups:
            group.frame = self.frame
        core = 1 if usable_cores() > 1 else 0
        plan = Plan(port=self.port, groups=list(groups), seconds=seconds, skip=skip, core=core)
        command = [sys.executable, "-m", "benchmarks.cloud.http_load"]
        run = subprocess.run(command, input=msgspec.json.encode(plan), stdout=subprocess.PIPE, check=True)  # noqa: S603 - as above
        return msgspec.json.decode(run.stdout, type=list[Samples])

    def close(self) -> None:
        """End the process."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


class Load(Struct, kw_only=True):
    """What one group of clients got. rates: per second. Times: milliseconds, 0 if there are none."""

    offered: float
    answered: float
    p50_ms: float
    p99_ms: float
    refused: float
    refused_p99_ms: float
    failed: int


class Overload(Struct, kw_only=True):
    """One network under overload. after: the load of `unloaded` again, from half a second behind the last overload."""

    network: str
    capacity: float
    unloaded: Load
    fixed_times: Load
    back_off: Load
    at_once: Load
    after: Load


class Figures(Struct, kw_only=True):
    """All figures. rates: answers per second by the largest batch. lone_ms: p50 of one client, by the options.
    fair, unfair: p50 and rate of eight devices beside one with 24 requests at a time; those without a device share one
    queue. alone: the eight without the ninth."""

    machine: object
    rates: dict[str, float]
    lone_ms: dict[str, float]
    alone: Load
    fair: list[Load]
    unfair: list[Load]
    overload: list[Overload]


def summary(samples: Samples) -> Load:
    """The figures of one group."""

    def at(values: Sequence[float], percent: float) -> float:
        return float(np.percentile(values, percent)) if values else 0.0

    seconds = samples.seconds
    return Load(
        offered=samples.offered / seconds,
        answered=len(samples.answered_ms) / seconds,
        p50_ms=at(samples.answered_ms, 50),
        p99_ms=at(samples.answered_ms, 99),
        refused=len(samples.refused_ms) / seconds,
        refused_p99_ms=at(samples.refused_ms, 99),
        failed=samples.failed,
    )


@contextmanager
def servers(pair: Path, contenders: dict[str, dict[str, object]]) -> Iterator[dict[str, Server]]:
    """A server per contender, all on one core: those that get no requests take no CPU."""
    with ExitStack() as stack:
        running = {name: Server(pair, 0, **options) for name, options in contenders.items()}
        for server in running.values():
            stack.callback(server.close)
        yield running


def in_turns(running: dict[str, Server], measure: Callable[[Server], float]) -> dict[str, float]:
    """The median of what is measured at each server, in turns."""
    values: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(TURNS):
        for name, server in running.items():
            values[name].append(measure(server))
    return {name: statistics.median(v) for name, v in values.items()}


def measure_overload(name: str, pair: Path) -> Overload:
    """Capacity, no load, and three kinds of overload of one network."""
    with servers(pair, {"": {}}) as running:
        server = running[""]
        (closed,) = server.load(Group(clients=CLIENTS))
        capacity = summary(closed).answered
        low, high = 0.1 * capacity, OVERLOAD * capacity
        loads = [
            summary(server.load(group, seconds=seconds, skip=skip)[0])
            for group, seconds, skip in (
                (Group(clients=CLIENTS, rate=low), 2 * SECONDS, 0.5),
                (Group(clients=CROWD, rate=high), 2 * SECONDS, 1.0),
                (Group(clients=CROWD, rate=high, back_off=True), 2 * SECONDS, 1.0),
                (Group(clients=2 * CROWD), 2 * SECONDS, 1.0),
                (Group(clients=CLIENTS, rate=low), SECONDS, 0.3),
            )
        ]
    return Overload(
        network=name,
        capacity=capacity,
        unloaded=loads[0],
        fixed_times=loads[1],
        back_off=loads[2],
        at_once=loads[3],
        after=loads[4],
    )


def mobilenet() -> Path:
    """MobileNetV2 cut at features.13, with random weights: the time does not depend on them."""
    if not (MOBILENET / BACK).is_file():
        import torch  # the exporter has it
        import torchvision

        torch.manual_seed(0)
        network = torchvision.models.mobilenet_v2(weights=None).eval()
        data = np.random.default_rng(0).normal(size=(16, 3, 224, 224)).astype(np.float32)
        named = NetworkOptions(name="mobilenet_v2")
        export_pair(network, cut="features.13", calibration=data, out=MOBILENET, network=named, replace=True)
    return MOBILENET


def main() -> None:
    """Measure everything, write the JSON file and the page."""
    demo = demo_pair(lambda *_: None)
    sizes: dict[str, dict[str, object]] = {str(n): {"max_batch": n} for n in (1, 2, 4, 8)}
    with servers(demo, sizes) as running:
        rates = in_turns(running, lambda s: summary(s.load(Group(clients=CLIENTS))[0]).answered)
    lone: dict[str, dict[str, object]] = {
        "no batches": {"max_batch": 1},
        "batches of up to 8": {},
        "and a delay of 5 ms": {"max_delay_ms": 5.0},
    }
    with servers(demo, lone) as running:
        lone_ms = in_turns(running, lambda s: summary(s.load(Group(clients=1))[0]).p50_ms)
    with servers(demo, {"": {"queue": 64}}) as running:
        eight = [Group(clients=8, device="device-"), Group(clients=24, device="")]
        (alone,) = running[""].load(Group(clients=8, device="device-"))
        fair = running[""].load(*eight)
        unfair = running[""].load(Group(clients=8), Group(clients=24))
    figures = Figures(
        machine=machine(),
        rates=rates,
        lone_ms=lone_ms,
        alone=summary(alone),
        fair=[summary(s) for s in fair],
        unfair=[summary(s) for s in unfair],
        overload=[measure_overload(*n) for n in (("demo", demo), ("MobileNetV2 at features.13", mobilenet()))],
    )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_json(OUT, figures)
    PAGE.write_text(page(figures), encoding="utf-8")
    Console().print(PAGE.read_text(encoding="utf-8"), markup=False)


def page(figures: Figures) -> str:
    """The page of the figures, in Markdown."""
    base = figures.rates["1"]
    lone = figures.lone_ms["no batches"]
    lines = [
        "# Batching and overload",
        "",
        "Written by `make bench-batching`. The server has one core, its clients another one. Read ratios, not rates.",
        "",
        "## Throughput by the largest batch",
        "",
        f"The demo's network, {CLIENTS} clients that send as soon as they have an answer.",
        "",
        "| largest batch | answers/s | ratio |",
        "| --: | --: | --: |",
        *(f"| {size} | {rate:,.0f} | {rate / base:.2f} |" for size, rate in figures.rates.items()),
        "",
        "## A lone client",
        "",
        "| server | p50, ms | ratio |",
        "| --- | --: | --: |",
        *(f"| {name} | {ms:.3f} | {ms / lone:.3f} |" for name, ms in figures.lone_ms.items()),
        "",
        "## Fairness",
        "",
        "Eight devices with one request at a time, beside a client with 24 at a time. *In one queue*: the server",
        "cannot tell the devices apart.",
        "",
        "| | p50 of the eight, ms | p99, ms | answers/s of the eight | of the ninth |",
        "| --- | --: | --: | --: | --: |",
        _fairness("alone", [figures.alone]),
        _fairness("fair by device", figures.fair),
        _fairness("in one queue", figures.unfair),
        "",
        "## Overload",
        "",
        f"Five times the capacity. *At fixed times*: {CROWD} clients send frames at fixed times, whatever became of",
        "the last one. *With back-off*: the same, but a client that is refused waits as it is told.",
        f"*At once*: {2 * CROWD} clients send again as soon as they have an answer or a refusal. *After*: no overload",
        "any more, from 0.3 s behind it. The last column is the p99 of refusals.",
        "",
        "| network | load | offered/s | answers/s | of capacity | p50, ms | p99, ms | of unloaded | refused/s | ms |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for o in figures.overload:
        loads = {
            "unloaded": o.unloaded,
            "at fixed times": o.fixed_times,
            "with back-off": o.back_off,
            "at once": o.at_once,
            "after": o.after,
        }
        lines += [
            f"| {o.network} | {name} | {x.offered:,.0f} | {x.answered:,.0f} | {x.answered / o.capacity:.2f}"
            f" | {x.p50_ms:.2f} | {x.p99_ms:.2f} | {x.p99_ms / o.unloaded.p99_ms:.2f}"
            f" | {x.refused:,.0f} | {x.refused_p99_ms:.1f} |"
            for name, x in loads.items()
        ]
    return "\n".join(lines) + "\n"


def _fairness(name: str, loads: Sequence[Load]) -> str:
    ninth = f"{loads[1].answered:,.0f}" if len(loads) > 1 else ""
    eight = loads[0]
    return f"| {name} | {eight.p50_ms:.2f} | {eight.p99_ms:.2f} | {eight.answered:,.0f} | {ninth} |"


if __name__ == "__main__":
    main()
