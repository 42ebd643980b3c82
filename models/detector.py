"""A small detector of the YOLO kind with leaky ReLUs, trained on scenes of garments (making/scenes.py).

    backbone   3×160×160 → 64×10×10, strided convolutions and residual blocks; ends in a leaky ReLU: the cut
    neck       residual blocks, then upsampling to 20×20
    head       per cell of 8 pixels: the probability of a garment's centre, its class, the distances to its box's sides

The detector is anchor-free. Of neighbouring cells with a centre, and of overlapping boxes, only the one with the
highest score stays. All steps are tensor operations on a batch, so the exported network takes batches of any size.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitwire.codec.profile import Preprocessing
from splitwire.models.fashion import CLASSES as GARMENTS

__all__ = ["CUT", "LABELS", "NAME", "PREPROCESSING", "Detector", "load_detector"]

NAME = "fashion_detector"
CUT = "backbone"
"""The layer to cut after: 64×10×10 from a leaky ReLU; a third of the work follows it."""

SIDE = 160
"""Height and width of the input, pixels."""

LABELS = ("__background__", *GARMENTS)
"""Names of the labels 0…10. A COCO category has the number of its label. No garment has label 0."""

PREPROCESSING = Preprocessing(
    resize=(SIDE, SIDE), crop=(SIDE, SIDE), interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)

DATA = Path(__file__).parent / "data"
WEIGHTS = DATA / f"{NAME}.safetensors"
RESULTS = DATA / f"{NAME}.json"

SLOPE = 0.1
"""Slope of every leaky ReLU, as in YOLO."""
STRIDE = 8
"""Pixels per cell of the head."""
CELLS = SIDE // STRIDE
CLASSES = len(LABELS) - 1
PEAKS = 16
"""Largest number of centres per picture; a scene has at most six garments."""
DETECTIONS = 50
"""Number of rows in the outputs. A centre may have several rows, one per likely class."""
MAX_OVERLAP = 0.6
"""Intersection over union above which the box with the lower score is removed."""
MIN_SCORE = 0.01
"""Smallest score of a detection."""


class Block(nn.Sequential):
    """Convolution, batch normalisation, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(SLOPE),
        )


class Residual(nn.Module):
    """x plus the output of a 1×1 and a 3×3 block, as in Darknet-53."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(channels, channels // 2, 1), Block(channels // 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in and out."""
        y: Tensor = x + self.body(x)
        return y


class Detector(nn.Module):
    """(B, 3, 160, 160) float32, normalised as PREPROCESSING says.

    In training it returns (B, 15, 20, 20) float32: a logit of the centre, ten logits of the classes, and logarithms of
    the distances to the left, upper, right and lower side in cells.
    In eval mode it returns boxes (B, 50, 4) float32, x0 y0 x1 y1 in pixels in [0, 160]; scores (B, 50) float32 in
    [0, 1], descending; labels (B, 50) int64 in 1…10. Rows without a detection come last, with score 0, label 1 and a
    box of zeros.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            Block(3, 24, stride=2),
            Block(24, 48, stride=2),
            Residual(48),
            Block(48, 96, stride=2),
            Residual(96),
            Residual(96),
            Block(96, 192, stride=2),
            Residual(192),
            Block(192, 64),
        )
        self.neck = nn.Sequential(
            Block(64, 192),
            Residual(192),
            Residual(192),
            nn.ConvTranspose2d(192, 96, 2, stride=2, bias=False),
            nn.BatchNorm2d(96),
            nn.LeakyReLU(SLOPE),
            Residual(96),
        )
        self.head = nn.Conv2d(96, 1 + CLASSES + 4, 1)
        nn.init.zeros_(self.head.weight[1 + CLASSES :])
        bias = torch.zeros(1 + CLASSES + 4)
        bias[0] = -4.0  # few cells have a centre
        bias[1 + CLASSES :] = 0.9  # boxes of about 40 pixels
        self.head.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """See the class."""
        raw: Tensor = self.head(self.neck(self.backbone(x)))
        return raw if self.training else detections(raw)


def boxes_of(distances: Tensor) -> Tensor:
    """(B, 4, 20, 20) logarithms of distances in cells → (B, 20, 20, 4) boxes in pixels, not clipped."""
    centres = (torch.arange(CELLS, dtype=distances.dtype) + 0.5) * STRIDE
    left, top, right, bottom = (distances.clamp(max=3.5).exp() * STRIDE).unbind(1)
    x, y = centres.view(1, 1, CELLS), centres.view(1, CELLS, 1)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-1)


def detections(raw: Tensor) -> dict[str, Tensor]:
    """The output in training → the output in eval mode (`Detector`)."""
    centre = raw[:, 0].sigmoid()
    surest = F.max_pool2d(centre.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
    sure, cells = torch.where(centre >= surest, centre, 0.0).flatten(1).topk(PEAKS)
    rows = cells.unsqueeze(-1)
    boxes = boxes_of(raw[:, 1 + CLASSES :]).flatten(1, 2).gather(1, rows.expand(-1, -1, 4)).clamp(0, SIDE)
    named = raw[:, 1 : 1 + CLASSES].softmax(1).flatten(2).transpose(1, 2).gather(1, rows.expand(-1, -1, CLASSES))
    # [i, j]: how much box i overlaps box j; only a box with a higher score (j < i) suppresses.
    doubled = (overlaps(boxes) > MAX_OVERLAP).float().tril(-1).amax(2)
    scores, best = ((sure * (1 - doubled)).unsqueeze(-1) * named).flatten(1).topk(DETECTIONS)
    used = scores >= MIN_SCORE
    chosen_boxes = boxes.gather(1, (best // CLASSES).unsqueeze(-1).expand(-1, -1, 4))
    return {
        "boxes": torch.where(used.unsqueeze(-1), chosen_boxes, 0.0),
        "scores": torch.where(used, scores, 0.0),
        "labels": torch.where(used, best % CLASSES + 1, 1),
    }


def overlaps(boxes: Tensor) -> Tensor:
    """(B, N, 4) → (B, N, N) intersections over unions, in [0, 1]."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return common / (area[:, :, None] + area[:, None, :] - common).clamp(min=1e-6)


def load_detector(path: Path = WEIGHTS) -> Detector:
    """The trained detector, in eval mode, float32. Raises UsageError if the file is missing, damaged or does not
    fit."""
    from splitwire.models.weights import load_state, read_state

    with torch.device("meta"):  # all values come from the file
        network = Detector()
    load_state(network, read_state(path), str(path))
    return network.eval()
