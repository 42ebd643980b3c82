"""Train, measure and ship the detector: `python -m splitwire.models.making.train_detector`.

It works in a separate folder (--out). If it is stopped, the same command resumes after the last checkpoint. `--ship`
copies the result into the package, for a new release.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import io
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.files import write_atomically
from splitwire.models import detector, fashion
from splitwire.models.making import card, command, detector_card, detector_training, scenes
from splitwire.models.making.card import Training

DEFAULT_OUT = Path("build") / detector.NAME
SHIPPED = command.Shipped(
    weights=detector.WEIGHTS, results=detector.RESULTS, card=Path(detector.__file__).parent / "DETECTOR.md"
)

HELD_OUT, SEED = 1000, 1
"""Number and seed of the held-out scenes."""
CHECK, CHECK_SEED = 200, 2
"""Number and seed of the scenes for measurements during the training: other scenes of the test garments."""
BATCH = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (command.run)."""
    options = _parser().parse_args(arguments)

    def work() -> None:
        if options.evaluate:
            old, content = card.read(detector.RESULTS, detector_card.Results), detector.WEIGHTS.read_bytes()
            remark = old.remark if options.remark is None else options.remark
            results = measure(detector.load_detector(), content, options.data, old.training, remark)
            _finish(results, content, None, options)
        else:
            _train(options)

    return command.run(work, resumes_from="the last checkpoint")


def _parser() -> argparse.ArgumentParser:
    usual = detector_training.Settings()
    parser = command.make_parser(
        "splitwire.models.making.train_detector",
        __doc__.partition("\n")[0],
        out=DEFAULT_OUT,
        seed=usual.seed,
        threads=usual.threads,
        precision=usual.precision,
    )
    parser.add_argument("--steps", type=int, default=usual.steps, help="of 32 scenes [%(default)s]")
    parser.add_argument("--check-every", type=int, default=500, metavar="N",
                        help="keep a checkpoint, and measure on 200 scenes, every N steps [%(default)s]")  # fmt: skip
    parser.add_argument("--remark", help="a sentence for the card: what else to know of the run")
    return parser


def _train(options: argparse.Namespace) -> None:
    """Train or resume, measure, and write weights, figures and card."""
    settings = detector_training.Settings(
        steps=options.steps, seed=options.seed, threads=options.threads, precision=options.precision
    )
    if options.check_every < 1:
        raise UsageError(f"--check-every must be at least 1; got {options.check_every}")
    _pycocotools()  # fail now, not after an hour
    compose, check = (
        scenes.composer(s, seed, options.data) for s, seed in (("train", settings.seed), ("test", CHECK_SEED))
    )
    with _progress(settings.steps) as (on_step, say):

        def on_keep(step: int, network: detector.Detector) -> None:
            measured = precision(network, check, CHECK, split="test", seed=CHECK_SEED)
            say(f"step {step}: mAP@0.5 {measured.map50:.3f} on {CHECK} scenes")

        network, seconds = detector_training.train(
            compose, settings, options.out / "checkpoint.pt", keep_every=options.check_every, on_step=on_step,
            on_keep=on_keep,
        )  # fmt: skip
    weights = options.out / detector.WEIGHTS.name
    content = safetensors.torch.save(
        {
            # Most of the file; half precision is as good. The figures are measured on the content of the file.
            k: v.contiguous().to(torch.float16 if v.ndim > 1 else v.dtype)
            for k, v in network.state_dict().items()
        }
    )
    write_atomically(weights, content)
    record = Training(
        settings=dataclasses.asdict(settings),
        images=settings.steps * settings.batch,
        seconds=round(seconds),
        machine=command.machine(),
        versions={"python": platform.python_version(), "torch": str(torch.__version__)},
    )
    # The measurement reads the weights from the file, as users do.
    results = measure(detector.load_detector(weights), content, options.data, record, options.remark or "")
    _finish(results, content, options.out, options)


def measure(
    network: detector.Detector, content: bytes, data: Path, record: Training, remark: str
) -> detector_card.Results:
    """Measure the precision on the held-out scenes and on scenes of the shipped garments, the costs, and the features.

    content: of the weights file. Raises the errors of `scenes.composer`.
    """
    held_out = precision(network, scenes.composer("test", SEED, data), HELD_OUT, split="test", seed=SEED)
    compose = scenes.composer("samples", SEED)
    x = detector_training.inputs_of(np.stack([compose(i).picture for i in range(BATCH)]))
    with torch.inference_mode():
        features = network.get_submodule(detector.CUT)(x)
    return detector_card.Results(
        name=detector.NAME,
        parameters=sum(p.numel() for p in network.parameters()),
        macs=_macs(network, x[:1]),
        macs_front=_macs(network.get_submodule(detector.CUT), x[:1]),
        weights_bytes=len(content),
        weights_sha256=hashlib.sha256(content).hexdigest(),
        cut=detector.CUT,
        feature_shape=tuple(features.shape[1:]),
        feature_negative=round(float((features < 0).double().mean()), 4),
        held_out=held_out,
        samples=precision(network, compose, CHECK, split="samples", seed=SEED),
        training=record,
        remark=remark,
    )


def precision(
    network: nn.Module, compose: scenes.Composer, count: int, *, split: str, seed: int
) -> detector_card.Precision:
    """COCO's average precision of the network on scenes 0…count−1, from pycocotools. split, seed: to record.

    Raises UsageError if pycocotools is not installed.
    """
    coco, evaluator = _pycocotools()
    truth, rows = [], []
    for start in range(0, count, BATCH):
        batch = [compose(i) for i in range(start, min(start + BATCH, count))]
        rows += found_rows(network, [scene.picture for scene in batch], first_id=start + 1)
        truth += batch
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth_index = coco()
        truth_index.dataset = scenes.coco_document(truth, [str(i) for i in range(count)])
        truth_index.createIndex()
        # pycocotools cannot load an empty list; a row that matches nothing changes no figure.
        nothing = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 0, 0], "score": 0.0}]
        judge = evaluator(truth_index, truth_index.loadRes(rows or nothing), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    curves = judge.eval["precision"][0, :, :, 0, -1]  # 101 recalls × classes at IoU 0.5, all sizes, 100 detections
    return detector_card.Precision(
        split=split,
        seed=seed,
        scenes=count,
        garments=sum(len(scene.labels) for scene in truth),
        map50=round(float(judge.stats[1]), 5),
        map=round(float(judge.stats[0]), 5),
        map50_per_class=tuple(round(float(v), 5) for v in curves.mean(axis=0)),
    )


def found_rows(network: nn.Module, pictures: Sequence[fashion.UInt8Array], first_id: int) -> list[dict[str, Any]]:
    """The detections in pictures (160, 160, 3) uint8, as COCO results: one map per detection."""
    with torch.inference_mode():
        outputs = network(detector_training.inputs_of(np.stack(pictures)))
    rows = []
    for i, scores in enumerate(outputs["scores"].tolist()):
        boxes, labels = outputs["boxes"][i].tolist(), outputs["labels"][i].tolist()
        rows += [
            {"image_id": first_id + i, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
            for (x0, y0, x1, y1), label, score in zip(boxes, labels, scores, strict=True)
            if score > 0
        ]
    return rows


def _pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as e:
        raise UsageError("measuring a detector needs pycocotools; `pip install splitwire[report]`") from e
    return COCO, COCOeval


def _macs(network: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of the convolutions for input x (1, C, H, W)."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        weight = module.get_parameter("weight")
        # Each weight is used at every place of the output; in a transposed convolution, of the input.
        places = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        total += weight.numel() * places[0, 0].numel()

    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    handles = [m.register_forward_hook(count) for m in convolutions]
    with torch.inference_mode():
        network(x)
    for handle in handles:
        handle.remove()
    return total


def _finish(results: detector_card.Results, weights: bytes, out: Path | None, options: argparse.Namespace) -> None:
    """Write the requested files, and print the result."""
    where = command.write_results(
        SHIPPED, weights, card.encode(results), detector_card.render(results), options, out=out
    )
    if not options.json:
        held = results.held_out
        print(
            f"{results.name}: mAP@0.5 {held.map50:.3f}, mAP@[.5:.95] {held.map:.3f} on {held.scenes:,} scenes; {where}"
        )


@contextmanager
def _progress(steps: int) -> Iterator[tuple[Callable[[int, float], None], Callable[[str], None]]]:
    """On a terminal a bar with the remaining time; and a line per check; both on stderr."""
    with command.progress("training", steps) as (bar, task):

        def on_step(done: int, loss: float) -> None:
            bar.update(task, completed=done, description=f"loss {loss:.2f}")

        yield on_step, bar.console.print


if __name__ == "__main__":
    sys.exit(main())
