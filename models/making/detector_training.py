"""Train the detector on scenes that are composed when they are needed: seeded, resumable, in plain torch on the CPU.

Step k learns from scenes k·batch … k·batch + batch − 1 of the seed, so the number of the step determines its scenes. A
checkpoint contains the weights, their running average, the state of the optimiser and the step.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.files import write_atomically
from splitwire.models.detector import CELLS, CLASSES, PREPROCESSING, STRIDE, Detector, boxes_of
from splitwire.models.fashion import UInt8Array
from splitwire.models.making.classifier_training import rate_at
from splitwire.models.making.scenes import MAX_GARMENTS, Composer
from splitwire.models.making.settings import check_settings
from splitwire.models.weights import torch_load

Batch = tuple[Tensor, Tensor, Tensor]
"""(B, 160, 160, 3) uint8 pictures; (B, 6, 4) float32 boxes; (B, 6) int64 labels, 0 in unused rows."""

NEAR = 0.2
"""A cell learns the class and the box of a garment if its share in the garment's centre is larger than this."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that determines the weights. The checkpoint and the model card contain it.

    learning_rate: the peak for AdamW, after a linear warm-up over `warmup` steps; then it falls to zero in a half
    cosine. average: decay of the running average of the weights; the average is the result. precision: of the
    convolutions in training; weights, losses and measurements are float32. threads: of torch; they change the order of
    additions, and so the bits of the weights.

    classifier_training.Settings repeats some of these fields, with other defaults. A shared base class would spread
    the fields of each training over two files.
    """

    steps: int = 5_500
    seed: int = 1
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 400
    clip: float = 5.0
    average: float = 0.999
    box_weight: float = 2.0
    class_smoothing: float = 0.02
    precision: str = "bfloat16"
    threads: int = 2

    def __post_init__(self) -> None:
        check_settings(self.precision, steps=self.steps, batch=self.batch, threads=self.threads)


class Batches(Dataset[Batch]):
    """Batch k of a composer's scenes."""

    def __init__(self, compose: Composer, size: int) -> None:
        self._compose, self._size = compose, size

    def __getitem__(self, k: int) -> Batch:
        scenes = [self._compose(k * self._size + i) for i in range(self._size)]
        boxes = np.zeros((self._size, MAX_GARMENTS, 4), np.float32)
        labels = np.zeros((self._size, MAX_GARMENTS), np.int64)
        for i, scene in enumerate(scenes):
            boxes[i, : len(scene.boxes)] = scene.boxes
            labels[i, : len(scene.labels)] = scene.labels
        pictures = np.stack([scene.picture for scene in scenes])
        return torch.from_numpy(pictures), torch.from_numpy(boxes), torch.from_numpy(labels)


def normalise(pictures: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 in memory order B, H, W, 3: the detector's input."""
    mean, std = torch.tensor(PREPROCESSING.mean), torch.tensor(PREPROCESSING.std)
    return ((pictures.to(torch.float32) / 255 - mean) / std).permute(0, 3, 1, 2)


def inputs_of(pictures: UInt8Array) -> Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32, contiguous."""
    return normalise(torch.from_numpy(pictures)).contiguous()


def centres_of(boxes: Tensor, labels: Tensor) -> Tensor:
    """(B, G, 4), (B, G) → (B, G, 20, 20): share of each cell in each garment's centre; 1 at one cell, then falling."""
    cells = torch.arange(CELLS)

    def along(low: Tensor, high: Tensor) -> Tensor:
        middle = ((low + high) / (2 * STRIDE)).floor()
        spread = ((high - low) / (10 * STRIDE)).clamp(min=0.5)
        return (-0.5 * ((cells - middle[..., None]) / spread[..., None]).square()).exp()

    x0, y0, x1, y1 = boxes.unbind(-1)
    both = along(y0, y1)[..., :, None] * along(x0, x1)[..., None, :]
    return both * (labels > 0)[..., None, None]


def loss_of(raw: Tensor, boxes: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    """The loss to minimise: for centres (penalty-reduced focal loss), for classes, and for boxes (1 − GIoU).

    Sources: Zhou et al., "Objects as Points", 2019 (centres); Rezatofighi et al., 2019 (boxes).
    """
    shares, owner = centres_of(boxes, labels).max(1)  # (B, 20, 20) each
    sure, unsure = F.logsigmoid(raw[:, 0]), F.logsigmoid(-raw[:, 0])
    centre = -torch.where(
        shares == 1, unsure.exp().square() * sure, (1 - shares) ** 4 * sure.exp().square() * unsure
    ).sum() / (labels > 0).sum().clamp(min=1)

    weight = torch.where(shares > NEAR, shares, 0.0)
    total = weight.sum().clamp(min=1e-6)
    flat = owner.flatten(1)
    classes = (labels.gather(1, flat).view(owner.shape) - 1).clamp(min=0)
    named = F.cross_entropy(
        raw[:, 1 : 1 + CLASSES], classes, reduction="none", label_smoothing=settings.class_smoothing
    )
    target = boxes.gather(1, flat.unsqueeze(-1).expand(-1, -1, 4)).view(*owner.shape, 4)
    placed = 1 - giou(boxes_of(raw[:, 1 + CLASSES :]), target)
    return centre + ((named + settings.box_weight * placed) * weight).sum() / total


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of boxes (..., 4) in pixels, in [-1, 1]."""
    common = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - common
    return common / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


def train(
    compose: Composer,
    settings: Settings,
    checkpoint: Path,
    *,
    keep_every: int = 250,
    workers: int = 1,
    on_step: Callable[[int, float], None] | None = None,
    on_keep: Callable[[int, Detector], None] | None = None,
) -> tuple[Detector, float]:
    """Train from `checkpoint` if it exists, otherwise from the seed. Write a checkpoint every `keep_every` steps.

    workers: number of processes that compose scenes; 0: this process composes them.
    on_step: called with the number of finished steps and the last loss. on_keep: called after a checkpoint, with the
    averaged network.
    Returns the averaged network in eval mode, and the seconds of training in all sessions.
    Raises UsageError if the checkpoint is damaged or was made with other settings. Only `steps` may differ: then the
    learning rate follows the new schedule.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    network = Detector().to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(network).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    first, seconds = _restore(checkpoint, settings, network, averaged, optimizer) if checkpoint.exists() else (0, 0.0)
    order = range(first, settings.steps)
    side = {"prefetch_factor": 8, "multiprocessing_context": "spawn"} if workers else {}
    loader = DataLoader(
        Batches(compose, settings.batch),
        batch_size=None,
        sampler=order,
        num_workers=workers,
        **side,  # type: ignore[arg-type]  # values of two types
    )
    begun = time.monotonic()
    network.train()
    for k, batch in zip(order, loader, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_at(k / settings.steps, settings.warmup / settings.steps)
        loss = _step(network, optimizer, batch, settings)
        _average(averaged, network, min(settings.average, (1 + k) / (10 + k)))
        if on_step is not None:
            on_step(k + 1, loss)
        if (k + 1) % keep_every == 0 or k + 1 == settings.steps:
            spent = seconds + time.monotonic() - begun
            _save(checkpoint, settings, network, averaged, optimizer, k + 1, spent)
            if on_keep is not None:
                on_keep(k + 1, averaged)
    seconds += time.monotonic() - begun
    return averaged.to(memory_format=torch.contiguous_format), seconds


def _step(network: Detector, optimizer: torch.optim.Optimizer, batch: Batch, settings: Settings) -> float:
    pictures, boxes, labels = batch
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"):
        raw = network(normalise(pictures))
    loss = loss_of(raw.float(), boxes, labels, settings)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
    nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def _average(averaged: Detector, network: Detector, decay: float) -> None:
    """Set averaged to decay · averaged + (1 − decay) · network; counters are copied."""
    for old, new in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)


def _save(
    path: Path,
    settings: Settings,
    network: Detector,
    averaged: Detector,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> None:
    state = {
        "settings": dataclasses.asdict(settings),
        "network": network.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def _restore(
    path: Path, settings: Settings, network: Detector, averaged: Detector, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Load a checkpoint into both networks and the optimizer; returns (finished steps, seconds so far)."""
    state: Any = torch_load(path)
    try:
        current, made_with = dataclasses.asdict(settings), state["settings"]
        differing = ", ".join(k for k in sorted(current) if k != "steps" and made_with.get(k) != current[k])
        if differing:
            raise UsageError(f"{path} was made with other settings ({differing}); delete it or use another --out")
        network.load_state_dict(state["network"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), float(state["seconds"])
    except (RuntimeError, AttributeError, KeyError, TypeError, ValueError) as e:
        raise UsageError(f"{path} is not a checkpoint of this training; delete it to start anew") from e
