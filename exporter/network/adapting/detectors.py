"""Make torchvision's detectors exportable by torch.export: one image tensor in, named tensors out.

The detectors take a list of images, select boxes in loops over classes and pyramid levels, and paste masks one by one.
Three changes make them exportable. None of them changes what is detected:

* `as_network` returns the module as an object of a subclass with a forward for a batch of one. This object is the root,
  so module paths have no prefix.
* The post-processing of SSD, RetinaNet and FCOS takes the best candidates first, and applies the score threshold once
  at the end instead of in a loop. It gives the same candidates in the same order, with a sixth of the nodes.
* `exportable` replaces functions of torchvision that all detectors call, while the exporter runs.
"""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet, roi_heads, transform
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import boxes as box_ops
from torchvision.ops import poolers

DETECTORS = (GeneralizedRCNN, SSD, RetinaNet, FCOS)
"""The classes of torchvision's detectors, for `source.is_torchvision_detector`."""

OUTPUTS = {"boxes": "boxes", "scores": "scores", "labels": "labels", "masks": "masks", "keypoints": "heatmaps"}
"""torchvision's name of an output → the name in the graph. boxes: (N, 4) float32 corners in pixels of the input.
scores: (N,) float32. labels: (N,) int64. masks (Mask R-CNN): (N, 1, 28, 28) float32 probabilities within each box, not
yet pasted into the image. heatmaps (Keypoint R-CNN): (N, K, 56, 56) float32 logits within each box."""

_LOCK = threading.RLock()


def as_network(detector: torch.nn.Module) -> torch.nn.Module:
    """The detector as a module of one tensor, (1, 3, H, W), that returns a dict of OUTPUTS.

    It shares all state with `detector`. Call it inside `exportable`, with one image.
    """
    kind = type(detector)
    selection = next((s for base, s in _SELECTIONS.items() if isinstance(detector, base)), None)

    def forward(self: torch.nn.Module, images: Tensor) -> dict[str, Tensor]:
        detections = kind.forward(self, [images[0]])[0]
        return {ours: detections[theirs] for theirs, ours in OUTPUTS.items() if theirs in detections}

    methods: dict[str, Any] = {"forward": forward}
    if selection is not None:
        methods["postprocess_detections"] = selection
    view: torch.nn.Module = object.__new__(type(kind.__name__, (kind,), methods))
    view.__dict__ = detector.__dict__
    return view


def notes(detector: torch.nn.Module, size: tuple[int, int]) -> list[str]:
    """Notes for the user about this detector at the input size (H, W)."""
    sentences = []
    resized = _resized(detector.transform, size)
    if resized != size:
        sentences.append(
            f"the detector itself resizes its {size[0]}×{size[1]} input to {resized[0]}×{resized[1]}, in the front"
            " half; for cuts of the input's size, build it with that as min_size and max_size"
        )
    heads = getattr(detector, "roi_heads", None)
    if getattr(heads, "mask_predictor", None) is not None:
        sentences.append(
            "masks are (N, 1, 28, 28) probabilities within each box;"
            " torchvision.models.detection.roi_heads.paste_masks_in_image makes image-sized ones of them"
        )
    if getattr(heads, "keypoint_predictor", None) is not None:
        sentences.append(
            "key points come as heat maps, (N, K, 56, 56) logits within each box;"
            " torchvision.models.detection.roi_heads.heatmaps_to_keypoints makes points of them"
        )
    return sentences


def _resized(transform: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the image that the backbone gets, without the padding. transform: that of the detector."""
    if transform.fixed_size is not None:
        return int(transform.fixed_size[1]), int(transform.fixed_size[0])
    scale = min(transform.min_size[-1] / min(size), transform.max_size / max(size))
    return int(size[0] * scale), int(size[1] * scale)


@contextmanager
def exportable() -> Iterator[None]:
    """Inside the block, replace the functions of torchvision that torch.export cannot follow, in this thread only.

    Other threads keep torchvision's functions. Of two exports at the same time, one waits. Afterwards the functions are
    restored, also after an error.
    """
    with _LOCK, ExitStack() as stack:
        for place, name, ours in _REPLACED:
            theirs = getattr(place, name, None) or getattr(builtins, name)
            stack.enter_context(mock.patch.object(place, name, _in_this_thread(ours, theirs), create=True))
        yield


def _in_this_thread(ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    owner = threading.get_ident()

    def call(*args: Any, **options: Any) -> Any:
        return (ours if threading.get_ident() == owner else theirs)(*args, **options)

    return call


def batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression within each class. An offset separates the boxes of different classes first.

    boxes: (N, 4) float32. scores: (N,) float32. classes: (N,) int64. Returns the indices kept, best score first.
    torchvision's function has a branch on N, with another implementation for N > 1000. Both give the same indices.
    """
    extent = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1  # the zero: N may be 0
    apart = boxes + (classes.to(boxes) * extent)[:, None]
    kept: Tensor = box_ops.nms(apart, scores, threshold)
    return kept


def _length(x: Any) -> Any:
    """len(), but symbolic for tensors, since their length may depend on the data."""
    return x.shape[0] if isinstance(x, Tensor) else len(x)


def _unpasted(masks: Tensor, boxes: Tensor, shape: Any) -> Tensor:
    """Leave the masks unpasted: pasting is a loop over detections, and can follow the back half."""
    return masks


def _heatmaps(maps: Tensor, proposals: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Leave the heat maps unresized: torchvision resizes them in a loop. Nothing reads the second list."""
    return [maps], [maps]


def _unscaled(heatmaps: Tensor, old: Any, new: Any) -> Tensor:
    return heatmaps


def _resize(self: GeneralizedRCNNTransform, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
    """Torchvision's resize in evaluation mode, without an interpolation if the image already has the size."""
    height, width = int(image.shape[-2]), int(image.shape[-1])
    size = _resized(self, (height, width))
    if size == (height, width):
        return image, target
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0], target


def _batch_of_one(self: GeneralizedRCNNTransform, images: list[Tensor], size_divisible: int = 32) -> Tensor:
    """Pad one image. (torchvision copies it into zeros, which becomes a scatter of every pixel in the export.)"""
    height, width = images[0].shape[-2:]
    padding = (0, -width % size_divisible, 0, -height % size_divisible)
    return F.pad(images[0][None], padding) if any(padding) else images[0][None]


_REPLACED: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (box_ops, "batched_nms", batched_nms),
    (poolers, "len", _length),
    (transform, "paste_masks_in_image", _unpasted),
    (transform, "resize_keypoints", _unscaled),
    (roi_heads, "keypointrcnn_inference", _heatmaps),
    (GeneralizedRCNNTransform, "resize", _resize),
    (GeneralizedRCNNTransform, "batch_images", _batch_of_one),
)


# The selection of boxes: these replace methods of the detectors, with torchvision's parameters.


def _select_ssd(
    self: Any, head: dict[str, Tensor], anchors: list[Tensor], shapes: list[tuple[int, int]]
) -> list[dict[str, Tensor]]:
    """SSD: select the best candidates of each class."""
    scores = F.softmax(head["cls_logits"][0], dim=-1)[:, 1:]  # (anchors, classes) without the background
    boxes = box_ops.clip_boxes_to_image(self.box_coder.decode_single(head["bbox_regression"][0], anchors[0]), shapes[0])
    best, index = scores.t().topk(min(self.topk_candidates, scores.shape[0]), dim=1)
    labels = torch.arange(1, scores.shape[1] + 1, device=scores.device)[:, None].expand_as(index)
    return [_keep_best(self, boxes[index.flatten()], best.flatten(), labels.flatten())]


def _select_retinanet(
    self: Any, head: dict[str, list[Tensor]], anchors: list[list[Tensor]], shapes: list[tuple[int, int]]
) -> list[dict[str, Tensor]]:
    """RetinaNet: select the best candidates of each pyramid level."""
    scores = [torch.sigmoid(logits[0]) for logits in head["cls_logits"]]
    return _select_by_level(self, scores, self.box_coder.decode_single, head, anchors, shapes)


def _select_fcos(
    self: Any, head: dict[str, list[Tensor]], anchors: list[list[Tensor]], shapes: list[tuple[int, int]]
) -> list[dict[str, Tensor]]:
    """FCOS: like RetinaNet, but the score is the geometric mean of class score and centredness."""
    both = zip(head["cls_logits"], head["bbox_ctrness"], strict=True)
    scores = [torch.sqrt(torch.sigmoid(logits[0]) * torch.sigmoid(centred[0])) for logits, centred in both]
    return _select_by_level(self, scores, self.box_coder.decode, head, anchors, shapes)


def _select_by_level(
    self: Any,
    scores: list[Tensor],
    decode: Callable[[Tensor, Tensor], Tensor],
    head: dict[str, list[Tensor]],
    anchors: list[list[Tensor]],
    shapes: list[tuple[int, int]],
) -> list[dict[str, Tensor]]:
    """Select the best candidates of each level. scores: (anchors, classes) per level."""
    candidates = []
    for level, deltas, places in zip(scores, head["bbox_regression"], anchors[0], strict=True):
        best, index = level.flatten().topk(min(self.topk_candidates, level.numel()))
        anchor = torch.div(index, level.shape[1], rounding_mode="floor")
        boxes = box_ops.clip_boxes_to_image(decode(deltas[0][anchor], places[anchor]), shapes[0])
        candidates.append((boxes, best, index % level.shape[1]))
    return [_keep_best(self, *(torch.cat(parts) for parts in zip(*candidates, strict=True)))]


def _keep_best(self: Any, boxes: Tensor, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Apply the score threshold, non-maximum suppression and the limit on the number of detections."""
    passing = torch.where(scores > self.score_thresh)[0]
    boxes, scores, labels = boxes[passing], scores[passing], labels[passing]
    keep = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}


_SELECTIONS: dict[type, Callable[..., Any]] = {SSD: _select_ssd, RetinaNet: _select_retinanet, FCOS: _select_fcos}
