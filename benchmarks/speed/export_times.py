"""`make bench-export`: the time of an export, stage by stage, of a classifier, a small detector and feature pyramids.

After each network it writes build/bench/export.json (machine, rows) and prints a table, so that an interrupted run
keeps the networks so far. It shows CPU seconds beside wall-clock seconds, because only CPU seconds are meaningful on a
busy machine. The calibration uses crops of photographs. The detectors have random weights. `ARGS=ssdlite` measures one
network.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct
from rich.console import Console
from rich.table import Table

from benchmarks.inputs.photographs import natural, write_crops
from splitwire.codec.shared.files import write_json
from splitwire.console import progress_bar
from splitwire.evaluation.measuring.stages import machine
from splitwire.exporting import export

OUT = Path("build/bench/export.json")
CROPS = 24
"""Crops of each of eleven photographs: enough for 256 images."""


class Subject(NamedTuple):
    """One export. images: most images to calibrate on. target_s: seconds that it may take on two idle cores."""

    model: str
    weights: str | None
    cut: str
    images: int
    target_s: float


SUBJECTS = {
    "mobilenet": Subject("mobilenet_v2", "DEFAULT", "features.13", 256, 120),
    "ssdlite": Subject("ssdlite320_mobilenet_v3_large", None, "backbone", 32, 180),
    "fasterrcnn": Subject("fasterrcnn_resnet50_fpn", None, "backbone", 32, 900),
    "retinanet": Subject("retinanet_resnet50_fpn", None, "backbone", 32, 900),
}


class Stage(Struct, kw_only=True):
    """One stage. seconds, cpu_s: wall and CPU time. steps: progress reports. silent_s: longest time between two."""

    stage: str
    seconds: float = 0.0
    cpu_s: float = 0.0
    steps: int = 0
    silent_s: float = 0.0


class Row(Struct, frozen=True, kw_only=True):
    """One export. seconds, cpu_s: of the whole export, with the time before and after the stages."""

    model: str
    cut: str
    tensors: int
    elements: int
    images: int
    stages: list[Stage]
    seconds: float
    cpu_s: float
    peak_mb: float
    target_s: float
    default_op: str
    points: dict[str, float]


class Stopwatch:
    """A ProgressFn that measures the time of each stage, and passes the reports on to `shown`."""

    def __init__(self, shown: Callable[[str, int, int | None], None] | None) -> None:
        self.stages: dict[str, Stage] = {}
        self._shown = shown
        self._now = Stage(stage="Load")
        self.stages["Load"] = self._now
        self._clock, self._cpu = time.perf_counter(), cpu_seconds()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Add the time since the last call to the stage that the last call named."""
        self._take()
        self._now = self.stages.setdefault(stage, Stage(stage=stage))
        self._now.steps += 1
        if self._shown is not None:
            self._shown(stage, done, total)

    def finish(self) -> None:
        """Add the time since the last report to its stage."""
        self._take()

    def _take(self) -> None:
        clock, cpu = time.perf_counter(), cpu_seconds()
        self._now.seconds += clock - self._clock
        self._now.cpu_s += cpu - self._cpu
        self._now.silent_s = max(self._now.silent_s, clock - self._clock)
        self._clock, self._cpu = clock, cpu


def cpu_seconds() -> float:
    """CPU seconds of this process, with all threads, and of its children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def measured(subject: Subject, calibration: Path, out: Path) -> Row:
    """Export once and measure it."""
    with progress_bar() as bar:
        watch = Stopwatch(bar)
        result = export(
            subject.model, weights=subject.weights, cut=subject.cut, calibration=calibration, out=out,
            images=subject.images, progress=watch,
        )  # fmt: skip
        watch.finish()
    stages = list(watch.stages.values())
    profile = result.profile
    return Row(
        model=subject.model,
        cut=subject.cut,
        tensors=len(profile.tensors),
        elements=sum(t.feature_elements for t in profile.tensors),
        images=profile.calibration_images,
        stages=stages,
        seconds=sum(s.seconds for s in stages),
        cpu_s=sum(s.cpu_s for s in stages),
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        target_s=subject.target_s,
        default_op=profile.default_op,
        points={p.name: p.bits_per_element for p in profile.operating_points},
    )


def table(row: Row) -> Table:
    """The row as a table."""
    title = (
        f"{row.model} cut after {row.cut}: {row.tensors} tensor{'s' if row.tensors > 1 else ''},"
        f" {row.elements:,} elements, {row.images} images"
    )
    shown = Table(title=title, title_justify="left")
    for name in ("stage", "seconds", "CPU s", "steps", "longest step s"):
        shown.add_column(name, justify="left" if name == "stage" else "right")
    for s in row.stages:
        shown.add_row(s.stage, f"{s.seconds:.1f}", f"{s.cpu_s:.1f}", str(s.steps), f"{s.silent_s:.1f}")
    shown.add_section()
    shown.add_row(f"all (two idle cores: {row.target_s:.0f} s)", f"{row.seconds:.1f}", f"{row.cpu_s:.1f}", "", "")
    return shown


def main(arguments: Sequence[str]) -> int:
    """Measure the named networks, or all; print; write build/bench/export.json."""
    unknown = set(arguments) - set(SUBJECTS)
    if unknown:
        Console(stderr=True).print(f"there is no export {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
        return 2
    OUT.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_crops(natural(), folder / "photographs", count=CROPS)
        for network in arguments or SUBJECTS:
            rows.append(measured(SUBJECTS[network], folder / "photographs", folder / network))
            Console(width=120).print(table(rows[-1]))
            write_json(OUT, {"machine": machine(), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
