"""Train, measure and ship the demo network: `python -m splitwire.models.making.train_classifier`.

It works in a separate folder (--out). If it is stopped, the same command resumes after the last complete epoch, and
ends with the same weights. `--ship` copies the result into the package, for a new release.
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
from torch import Tensor, nn

from splitwire.codec.shared.files import write_atomically
from splitwire.models import demo, fashion
from splitwire.models.making import card, command
from splitwire.models.making.classifier_training import Settings, predict, train

DEFAULT_OUT = Path("build") / demo.NAME
SHIPPED = command.Shipped(weights=demo.WEIGHTS, results=demo.RESULTS, card=Path(demo.__file__).parent / "CARD.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (command.run)."""
    options = _parser().parse_args(arguments)

    def work() -> None:
        if options.write_samples:
            _write_samples(options.data)
        elif options.evaluate:
            record = card.read(demo.RESULTS, card.Results).training
            results = measure(demo.load_network(), demo.WEIGHTS, options.data, record)
            _finish(results, demo.WEIGHTS.read_bytes(), None, options)
        else:
            _train(options)

    return command.run(work, resumes_from="the last whole epoch")


def _parser() -> argparse.ArgumentParser:
    usual = Settings()
    parser = command.make_parser(
        "splitwire.models.making.train_classifier",
        __doc__.partition("\n")[0],
        out=DEFAULT_OUT,
        seed=usual.seed,
        threads=usual.threads,
        precision=usual.precision,
    )
    parser.add_argument("--epochs", type=int, default=usual.epochs, help="[%(default)s]")
    parser.add_argument("--write-samples", action="store_true", help="only write the shipped images anew")
    return parser


def _train(options: argparse.Namespace) -> None:
    """Train or resume, measure, and write weights, figures and card."""
    settings = Settings(epochs=options.epochs, seed=options.seed, threads=options.threads, precision=options.precision)
    images, labels = fashion.read_split(options.data, "train")
    fashion.read_split(options.data, "test")  # fail now, not after half an hour
    with epoch_progress(settings.epochs) as (on_step, on_epoch):
        network, seconds = train(
            images, labels, settings, options.out / "checkpoint.pt", on_step=on_step, on_epoch=on_epoch
        )
    weights = options.out / demo.WEIGHTS.name
    data = safetensors.torch.save({k: v.contiguous() for k, v in network.state_dict().items()})
    write_atomically(weights, data)
    record = card.Training(
        settings=dataclasses.asdict(settings),
        images=len(images),
        seconds=round(seconds),
        machine=command.machine(),
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
    )
    # The measurement reads the weights from the file, as users do.
    _finish(measure(demo.load_network(weights), weights, options.data, record), data, options.out, options)


def measure(network: nn.Module, weights: Path, data: Path, record: card.Training) -> card.Results:
    """Measure `network`, read from the file `weights`: accuracy on all test images, and its features at the demo's
    cut."""
    images, labels = fashion.read_split(data, "test")
    shapes: list[tuple[int, ...]] = []
    zeros: list[float] = []

    def look(module: nn.Module, inputs: object, output: Tensor) -> None:
        shapes.append(tuple(output.shape[1:]))
        zeros.append(float((output == 0).double().mean()))

    handle = network.get_submodule(demo.CUT).register_forward_hook(look)
    right = predict(network, images) == labels
    handle.remove()
    content = weights.read_bytes()
    return card.Results(
        name=demo.NAME,
        architecture=demo.ARCHITECTURE,
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
    """Write the requested files, and print the result."""
    where = command.write_results(SHIPPED, weights, card.encode(results), card.render(results), options, out=out)
    if not options.json:
        print(f"{results.name}: {results.correct:,} of {results.images:,} test images right ({results.accuracy:.2%}), "
              f"{results.correct_sample} of the {results.images_sample:,} shipped; {where}")  # fmt: skip


def _write_samples(data: Path) -> None:
    content = fashion.sample_bytes(data)
    write_atomically(demo.SAMPLES, content)
    print(f"{demo.SAMPLES}: {len(content):,} bytes")


@contextmanager
def epoch_progress(epochs: int) -> Iterator[tuple[Callable[[int, int], None], Callable[[int, float, float], None]]]:
    """On a terminal a bar with the remaining time, otherwise a line per epoch; on stderr."""
    with command.progress(f"epoch 1 of {epochs}", None) as (bar, task):

        def on_step(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        def on_epoch(done: int, loss: float, seconds: float) -> None:
            if command.err.is_terminal:
                bar.update(task, description=f"epoch {min(done + 1, epochs)} of {epochs}, loss {loss:.3f}")
            else:
                command.err.print(f"epoch {done} of {epochs}: loss {loss:.4f}, {seconds:.0f} s")

        yield on_step, on_epoch


if __name__ == "__main__":
    sys.exit(main())
