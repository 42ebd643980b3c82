"""Train a classifier on Fashion-MNIST, usually the demo network: seeded, resumable, in plain torch on the CPU.

Every epoch has a seed from (seed, epoch), for the order of the images, flips, shifts and dropout. So a checkpoint after
an epoch needs only the weights and the state of the optimiser. A run that is killed and resumed ends with the same
weights as an uninterrupted one, bit for bit on the same machine.
"""

from __future__ import annotations

import dataclasses
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.files import write_atomically
from splitwire.models.demo import CLASSES, PREPROCESSING, build_network
from splitwire.models.fashion import UInt8Array
from splitwire.models.making.settings import check_settings
from splitwire.models.weights import torch_load

EpochFn = Callable[[int, float, float], None]
"""report(finished epochs, mean training loss of the last one, its seconds)."""

StepFn = Callable[[int, int], None]
"""step(finished steps, steps of the whole run)."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that determines the weights. The checkpoint and the model card contain it.

    learning_rate: the peak for AdamW, after a linear warm-up over `warmup` epochs; then it falls to zero in a half
    cosine. shift: largest shift of the resized image, in pixels, in each direction. precision: of the convolutions in
    training ("bfloat16" or "float32"); weights, optimiser and measurements are float32. threads: of torch. More threads
    are faster on an idle machine, but they change the order of additions, and so the bits of the weights.

    detector_training.Settings repeats some of these fields, with other defaults. A shared base class would spread
    the fields of each training over two files.
    """

    epochs: int = 20
    seed: int = 1
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup: float = 0.5
    label_smoothing: float = 0.05
    dropout: float = 0.1
    shift: int = 2
    clip: float = 1.0
    precision: str = "bfloat16"
    threads: int = 1

    def __post_init__(self) -> None:
        check_settings(self.precision, epochs=self.epochs, batch=self.batch, threads=self.threads)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What is trained. build: dropout → a network with random weights from torch's global generator; it takes
    (n, 3, side, side) float32 and returns (n, 10) logits. side: of its input, pixels."""

    build: Callable[[float], nn.Module]
    side: int


def squeezenet(dropout: float) -> nn.Module:
    """The demo network before training."""
    network = build_network(dropout)
    for module in network.modules():
        # SqueezeNet ends in a ReLU: a class with initial logits ≤ 0 for every image would never learn.
        if isinstance(module, nn.Conv2d) and module.out_channels == len(CLASSES):
            nn.init.constant_(_bias(module), 1.0)
    return network


DEMO = Architecture(build=squeezenet, side=PREPROCESSING.crop[0])


def resize(images: UInt8Array, side: int = DEMO.side) -> Tensor:
    """(n, 28, 28) uint8 → (n, side, side) uint8, as the demo's preprocessing resizes them (PIL, bilinear)."""
    out = np.empty((len(images), side, side), np.uint8)
    for i, image in enumerate(images):
        out[i] = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    return torch.from_numpy(out)


def normalise(pixels: Tensor) -> Tensor:
    """(n, H, W) uint8 → (n, 3, H, W) float32, the network's input, with three equal channels."""
    mean = torch.tensor(PREPROCESSING.mean).view(1, 3, 1, 1)
    std = torch.tensor(PREPROCESSING.std).view(1, 3, 1, 1)
    return (pixels.unsqueeze(1).to(torch.float32) / 255 - mean) / std


def augment(pixels: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Flip half of the images left to right and move each by up to `shift` pixels; (n, H, W) uint8 in and out."""
    n, height, width = pixels.shape
    flip = torch.rand(n, generator=generator) < 0.5
    pixels = torch.where(flip.view(n, 1, 1), pixels.flip(2), pixels)
    padded = nn.functional.pad(pixels, (shift, shift, shift, shift))
    offset = torch.randint(0, 2 * shift + 1, (2, n, 1), generator=generator)
    rows = (offset[0] + torch.arange(height)).view(n, height, 1)
    columns = (offset[1] + torch.arange(width)).view(n, 1, width)
    return padded[torch.arange(n).view(n, 1, 1), rows, columns]


def rate_at(progress: float, warmup: float) -> float:
    """Factor of the peak learning rate; progress and warmup as fractions of the whole run, in [0, 1]."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1e-9, 1 - warmup)))


def train(
    images: UInt8Array,
    labels: UInt8Array,
    settings: Settings,
    checkpoint: Path,
    *,
    architecture: Architecture = DEMO,
    stop_after: int | None = None,
    on_step: StepFn | None = None,
    on_epoch: EpochFn | None = None,
) -> tuple[nn.Module, float]:
    """Train from `checkpoint` if it exists, otherwise from the seed. Write a checkpoint after every epoch.

    images: (n, 28, 28) uint8; labels: (n,) uint8. stop_after: return after this number of epochs, as if killed.
    Returns the network in eval mode, and the seconds of training in all sessions.
    Raises UsageError if the checkpoint is damaged or was made with other settings.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    network = architecture.build(settings.dropout)
    network = network.to(memory_format=torch.channels_last)  # 1.8 times as fast: max pooling in bfloat16
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    first, seconds = _restore(checkpoint, settings, network, optimizer) if checkpoint.exists() else (0, 0.0)
    pixels, targets = resize(images, architecture.side), torch.from_numpy(labels.astype(np.int64))
    last = settings.epochs if stop_after is None else min(stop_after, settings.epochs)
    for epoch in range(first, last):
        begun = time.monotonic()
        loss = _epoch(network, optimizer, pixels, targets, settings, epoch, on_step)
        seconds += time.monotonic() - begun
        _save(checkpoint, settings, network, optimizer, epoch + 1, seconds)
        if on_epoch is not None:
            on_epoch(epoch + 1, loss, time.monotonic() - begun)
    return network.to(memory_format=torch.contiguous_format).eval(), seconds


def _epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    targets: Tensor,
    settings: Settings,
    epoch: int,
    on_step: StepFn | None,
) -> float:
    """One pass over the images; returns the mean loss. All random numbers come from (seed, epoch)."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    torch.manual_seed(settings.seed * 1_000_003 + epoch)  # dropout
    network.train()
    order = torch.randperm(len(pixels), generator=generator)
    batches = order.split(settings.batch)  # type: ignore[no-untyped-call]  # torch has no types there
    steps, total = len(batches), 0.0
    for i, chosen in enumerate(batches):
        progress = (epoch * steps + i) / (settings.epochs * steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_at(progress, settings.warmup / settings.epochs)
        inputs = normalise(augment(pixels[chosen], settings.shift, generator))
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"):
            logits = network(inputs)
        loss = nn.functional.cross_entropy(logits.float(), targets[chosen], label_smoothing=settings.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        optimizer.step()
        total += float(loss.detach()) * len(chosen)
        if on_step is not None:
            on_step(epoch * steps + i + 1, settings.epochs * steps)
    return total / len(pixels)


def predict(network: nn.Module, images: UInt8Array, side: int = DEMO.side, batch: int = 250) -> UInt8Array:
    """(n, 28, 28) uint8 → (n,) uint8 class indices, in float32. side: of the network's input, pixels."""
    parts = resize(images, side).split(batch)  # type: ignore[no-untyped-call]  # torch has no types there
    with torch.inference_mode():
        classes = [network(normalise(part)).argmax(1) for part in parts]
    predicted: UInt8Array = torch.cat(classes).numpy().astype(np.uint8)
    return predicted


def _bias(module: nn.Conv2d) -> Tensor:
    if module.bias is None:
        raise TypeError("stock SqueezeNet's convolutions all have a bias")
    return module.bias


def _save(
    path: Path, settings: Settings, network: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, seconds: float
) -> None:
    state = {
        "settings": dataclasses.asdict(settings),
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": epoch,
        "seconds": seconds,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def _restore(path: Path, settings: Settings, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Load a checkpoint into network and optimizer; returns (finished epochs, seconds so far)."""
    state: Any = torch_load(path)
    try:
        made_with = state["settings"]
        if made_with != dataclasses.asdict(settings):
            current = dataclasses.asdict(settings)
            differing = ", ".join(k for k in sorted(current) if made_with.get(k) != current[k])
            raise UsageError(f"{path} was made with other settings ({differing}); delete it or use another --out")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["epoch"]), float(state["seconds"])
    except (RuntimeError, AttributeError, KeyError, TypeError, ValueError) as e:
        raise UsageError(f"{path} is not a checkpoint of this training; delete it to start anew") from e
