"""Train, measure and ship the demo network: `python -m splitwire.models.train`.

Works in a folder of its own (--out). Stop it at any time; the same command goes on after the last whole epoch, and ends
with the same weights. `--ship` copies what came out into the package, for a new release.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torchvision
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from splitwire.codec.errors import SplitwireError
from splitwire.codec.files import write_atomically
from splitwire.models import card, demo, fashion, training

DEFAULT_OUT = Path("build") / demo.NAME
CARD = Path(demo.__file__).parent / "CARD.md"

err = Console(stderr=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 or 2 as the error says, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    try:
        if options.write_samples:
            _write_samples(options.data)
        elif options.evaluate:
            results = measure(
                demo.load_network(), demo.WEIGHTS, options.data, card.read(demo.RESULTS, card.Results).training
            )
            _finish(results, demo.WEIGHTS.read_bytes(), None, options)
        else:
            _train(options)
    except SplitwireError as e:
        err.print(f"error: {e}", markup=False, soft_wrap=True)
        return e.exit_status
    except KeyboardInterrupt:
        err.print("stopped; the same command goes on from the last whole epoch")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    usual = training.Settings()
    parser = argparse.ArgumentParser(prog="python -m splitwire.models.train", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=fashion.DEFAULT_FOLDER, help="folder of the Fashion-MNIST files")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="working folder [%(default)s]")
    parser.add_argument("--epochs", type=int, default=usual.epochs, help="[%(default)s]")
    parser.add_argument("--seed", type=int, default=usual.seed, help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=usual.threads, help="of torch; changes the bits [%(default)s]")
    parser.add_argument("--precision", default=usual.precision, help="bfloat16 or float32 [%(default)s]")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--ship", action="store_true", help="also replace weights, figures and card in the package")
    parser.add_argument("--evaluate", action="store_true", help="train nothing; measure the shipped weights again")
    parser.add_argument("--write-samples", action="store_true", help="only write the shipped images anew")
    return parser


def _train(options: argparse.Namespace) -> None:
    """Train or go on, measure, and write weights, figures and card."""
    settings = training.Settings(
        epochs=options.epochs, seed=options.seed, threads=options.threads, precision=options.precision
    )
    images, labels = fashion.read_split(options.data, "train")
    fashion.read_split(options.data, "test")  # rather now than after half an hour
    with _progress(settings.epochs) as (on_step, on_epoch):
        network, seconds = training.train(
            images, labels, settings, options.out / "checkpoint.pt", on_step=on_step, on_epoch=on_epoch
        )
    weights = options.out / demo.WEIGHTS.name
    data = safetensors.torch.save({k: v.contiguous() for k, v in network.state_dict().items()})
    write_atomically(weights, data)
    record = card.Training(
        settings=dataclasses.asdict(settings),
        images=len(images),
        seconds=round(seconds),
        machine=machine(),
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
    )
    # Measured as users run it: read back from the file.
    _finish(measure(demo.load_network(weights), weights, options.data, record), data, options.out, options)


def measure(network: nn.Module, weights: Path, data: Path, record: card.Training) -> card.Results:
    """Accuracy of `network`, read from the file `weights`, on all test images; and its features at the demo's cut."""
    images, labels = fashion.read_split(data, "test")
    shapes: list[tuple[int, ...]] = []
    zeros: list[float] = []

    def look(module: nn.Module, inputs: object, output: Tensor) -> None:
        shapes.append(tuple(output.shape[1:]))
        zeros.append(float((output == 0).double().mean()))

    handle = network.get_submodule(demo.CUT).register_forward_hook(look)
    right = training.predict(network, images) == labels
    handle.remove()
    content = weights.read_bytes()
    return card.Results(
        name=demo.NAME,
        architecture=training.ARCHITECTURE,
        parameters=sum(p.numel() for p in network.parameters()),
        weights_bytes=len(content),
        weights_sha256=hashlib.sha256(content).hexdigest(),
        images=len(images),
        correct=int(right.sum()),
        correct_per_class=tuple(int(right[labels == c].sum()) for c in range(len(fashion.CLASSES))),
        images_sample=fashion.TEST_SAMPLES,
        correct_sample=int(right[: fashion.TEST_SAMPLES].sum()),
        cut=demo.CUT,
        feature_shape=shapes[0],
        feature_zeros=round(float(np.mean(zeros)), 4),
        training=record,
    )


def _finish(results: card.Results, weights: bytes, out: Path | None, options: argparse.Namespace) -> None:
    """Write figures and card, into the package too if that is asked for, and print the result."""
    figures, text = card.encode(results), card.render(results).encode()
    if out is not None:
        write_atomically(out / demo.RESULTS.name, figures)
        write_atomically(out / CARD.name, text)
    if options.ship:
        write_atomically(demo.WEIGHTS, weights)
        write_atomically(demo.RESULTS, figures)
        write_atomically(CARD, text)
    if options.json:
        sys.stdout.write(figures.decode())
    else:
        where = out if out is not None else demo.DATA
        print(f"{results.name}: {results.correct:,} of {results.images:,} test images right ({results.accuracy:.2%}), "
              f"{results.correct_sample} of the {results.images_sample:,} shipped; {where}")  # fmt: skip


def _write_samples(data: Path) -> None:
    content = fashion.sample_bytes(data)
    write_atomically(demo.SAMPLES, content)
    print(f"{demo.SAMPLES}: {len(content):,} bytes")


@contextmanager
def _progress(epochs: int) -> Iterator[tuple[Callable[[int, int], None], Callable[[int, float, float], None]]]:
    """A bar with the time left on a terminal; elsewhere a line per epoch. Both on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, speed_estimate_period=300) as bar:
        task = bar.add_task(f"epoch 1 of {epochs}", total=None)

        def on_step(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        def on_epoch(done: int, loss: float, seconds: float) -> None:
            if err.is_terminal:
                bar.update(task, description=f"epoch {min(done + 1, epochs)} of {epochs}, loss {loss:.3f}")
            else:
                err.print(f"epoch {done} of {epochs}: loss {loss:.4f}, {seconds:.0f} s")

        yield on_step, on_epoch


def machine() -> str:
    """Processor and threads, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''} of {model}"


if __name__ == "__main__":
    sys.exit(main())
