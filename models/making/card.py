"""The measured figures of the demo network, and its model card, which is written only from them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from splitwire.codec.errors import UsageError
from splitwire.models.fashion import CLASSES

R = TypeVar("R", bound=Struct)


class Training(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the weights were trained. settings: classifier_training.Settings as a map. seconds: wall time on
    `machine`."""

    settings: dict[str, int | float | str]
    images: int
    seconds: int
    machine: str
    versions: dict[str, str]


class Results(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `models/data/fashion_squeezenet1_1.json`.

    correct: number of correct answers for `images` test images (all 10,000). correct_sample: the same for the first
    `images_sample` of them, which the package contains. correct_per_class: in the order of the class names.
    feature_zeros: share of exact zeros in the tensor at the cut, over the test images.
    """

    name: str
    architecture: str
    parameters: int
    weights_bytes: int
    weights_sha256: str
    images: int
    correct: int
    correct_per_class: tuple[int, ...]
    images_sample: int
    correct_sample: int
    cut: str
    feature_shape: tuple[int, ...]
    feature_zeros: float
    training: Training

    @property
    def accuracy(self) -> float:
        """Share of correct answers on all test images, in [0, 1]."""
        return self.correct / self.images


def read(path: Path, kind: type[R]) -> R:
    """Read a results file of a network. Raises UsageError if it is missing or has another content."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as e:
        raise UsageError(f"{path} is not a results file: {e}") from e


def encode(results: Struct) -> bytes:
    """The results as JSON, indented, with a final newline."""
    return msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n"


def settings_words(t: Training) -> str:
    """The settings in one line."""
    return ", ".join(
        f"{name.replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else value}"
        for name, value in t.settings.items()
    )


def versions_words(t: Training) -> str:
    """The versions in one line."""
    return ", ".join(f"{name} {version}" for name, version in t.versions.items())


def render(r: Results) -> str:
    """The model card, Markdown."""
    t = r.training
    # A tenth of Fashion-MNIST's test images belongs to each class.
    per_class = "\n".join(
        f"| {name} | {10 * right / r.images:.1%} |" for name, right in zip(CLASSES, r.correct_per_class, strict=True)
    )
    shape = "×".join(map(str, r.feature_shape))
    return f"""# Model card: {r.name}

*Written by `python -m splitwire.models.making.train_classifier` from `data/{r.name}.json`; it measured every figure
below.*

The network of `splitwire demo`: torchvision's stock `{r.architecture}` (ReLU activations, no batch normalisation;
nothing changed for compression), trained on Fashion-MNIST.

| | |
|---|---|
| Accuracy, {r.images:,} test images | **{r.accuracy:.2%}** ({r.correct:,}) |
| Accuracy, the {r.images_sample:,} shipped of them | {r.correct_sample / r.images_sample:.1%} ({r.correct_sample}) |
| Parameters | {r.parameters:,}, float32 |
| File | `data/{r.name}.safetensors`, {r.weights_bytes:,} bytes |
| SHA-256 | `{r.weights_sha256}` |
| Input | grey 28×28 → RGB → 56×56 (bilinear) → normalised; 3×56×56 |
| Default cut | `{r.cut}`: {shape}, {r.feature_zeros:.0%} of the elements are zero |

Both accuracies are of the whole network, in float32, in PyTorch; the ONNX halves are compared with it at every export.

## Training
{t.images:,} training images; {t.settings["epochs"]} epochs in {t.seconds / 60:.0f} minutes on {t.machine}
({versions_words(t)}).
AdamW, linear warm-up and half a cosine, label smoothing; half of the images flipped left to right, each shifted by a
few pixels. The weights are those of the last epoch; learning rate and batch were picked once, after a few trials of
two epochs on a part of the training images, which were scored on the test images.
Settings: {settings_words(t)}.

`python -m splitwire.models.making.train_classifier` does it again. The same settings give the same bits on the
same machine with the same versions; elsewhere another network of about this accuracy.

## Accuracy by class
| class | accuracy |
|---|--:|
{per_class}

## Use
For demonstrating and testing splitwire. All it knows is grey 28×28 pictures of single garments on a black ground.

## Data and licence
Fashion-MNIST: H. Xiao, K. Rasul, R. Vollgraf, 2017, arXiv 1708.07747; MIT licence (`data/LICENSE-fashion-mnist`).
`data/fashion_mnist_samples.npz` holds its first 1,000 test images with labels, to measure on, and 256 of its training
images, to calibrate on. The weights are under splitwire's own licence.
"""
