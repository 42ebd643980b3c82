"""The shared parts of the two training commands: options, errors in one line, progress, output files."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from splitwire.codec.errors import SplitwireError
from splitwire.codec.shared.files import write_atomically
from splitwire.models import fashion

err = Console(stderr=True, highlight=False)


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """The files of one network in the package: weights, figures (JSON), model card."""

    weights: Path
    results: Path
    card: Path


def make_parser(
    module: str, description: str, *, out: Path, seed: int, threads: int, precision: str
) -> argparse.ArgumentParser:
    """A parser with the options of both commands. The arguments give the defaults."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--data", type=Path, default=fashion.DEFAULT_FOLDER, help="folder of the Fashion-MNIST files")
    parser.add_argument("--out", type=Path, default=out, help="working folder [%(default)s]")
    parser.add_argument("--seed", type=int, default=seed, help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=threads, help="of torch; changes the bits [%(default)s]")
    parser.add_argument("--precision", default=precision, help="bfloat16 or float32 [%(default)s]")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--ship", action="store_true", help="also replace weights, figures and card in the package")
    parser.add_argument("--evaluate", action="store_true", help="train nothing; measure the shipped weights again")
    return parser


def run(work: Callable[[], None], *, resumes_from: str) -> int:
    """Call `work`; returns the exit status: 0, the status of the error (1 or 2), or 130 if interrupted."""
    try:
        work()
    except SplitwireError as e:
        err.print(f"error: {e}", markup=False, soft_wrap=True)
        return e.exit_status
    except KeyboardInterrupt:
        err.print(f"stopped; the same command goes on from {resumes_from}")
        return 130
    return 0


@contextmanager
def progress(description: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on stderr with the elapsed and the remaining time; without a terminal there is none."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, speed_estimate_period=300) as bar:
        yield bar, bar.add_task(description, total=total)


def write_results(
    shipped: Shipped, weights: bytes, figures: bytes, card: str, options: argparse.Namespace, *, out: Path | None
) -> Path:
    """Write figures and card to `out`. With --ship, write all three files into the package. With --json, print figures.

    out: the working folder; None without a training. Returns the folder for the last line of the output.
    """
    text = card.encode()
    if out is not None:
        write_atomically(out / shipped.results.name, figures)
        write_atomically(out / shipped.card.name, text)
    if options.ship:
        write_atomically(shipped.weights, weights)
        write_atomically(shipped.results, figures)
        write_atomically(shipped.card, text)
    if options.json:
        sys.stdout.write(figures.decode())
    return out if out is not None else shipped.results.parent


def machine() -> str:
    """A description of the processor, with the number of threads."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''} of {model}"
