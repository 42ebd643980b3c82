"""What the raw heads of a detector are, by their values: scores of places, and the boxes of the same places.

A place is a cell of a map or an anchor. Heads are scores where they are probabilities, or where they are ranked; boxes
where they have four numbers of each place: corners, distances to the sides, or offsets from an anchor. Anything else is
values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

SUM_TOLERANCE = 1e-3
"""Largest difference of a sum of probabilities from 1."""
ORDERED = 0.999
"""Share of the places at which corners are in order, if four numbers are corners."""

THIN = 0.05
"""Of the mean side of a box: errors of thinner boxes are relative to this."""

BoxForm = Literal["corners", "distances", "offsets"]


@dataclass(frozen=True)
class ScoreHead:
    """index: of the head. axis: over which a softmax made its probabilities; None: each is by itself. logits: whether a
    sigmoid is still to come."""

    index: int
    axis: int | None
    logits: bool

    def probabilities(self, y: Tensor) -> Tensor:
        """Of a head's values, of the same shape."""
        return y.sigmoid() if self.logits else y


@dataclass(frozen=True)
class BoxHead:
    """index: of the head. form: of four numbers. first: whether they are the first axis behind the batch, else the
    last. scores: heads of the same places."""

    index: int
    form: BoxForm
    first: bool
    scores: tuple[ScoreHead, ...]

    def boxes(self, y: Tensor) -> Tensor:
        """(B, …) → (B, places, 4)."""
        return y.flatten(2).transpose(1, 2) if self.first else y.reshape(len(y), -1, 4)

    def weights(self, reference: Sequence[Tensor]) -> Tensor:
        """(B, places) how likely each place has an object: the product of its scores, of classes the likeliest."""
        places = self.boxes(reference[self.index]).shape[1]
        total = torch.ones(len(reference[self.index]), places, device=reference[self.index].device)
        for head in self.scores:
            total = total * by_place(head.probabilities(reference[head.index]), places).amax(2)
        return total


@dataclass(frozen=True)
class Heads:
    """All heads of a detector. values: indices of those that are neither."""

    scores: tuple[ScoreHead, ...]
    boxes: tuple[BoxHead, ...]
    values: tuple[int, ...]

    @classmethod
    def of(cls, outputs: Sequence[Tensor], ranked: Sequence[bool]) -> Heads:
        """outputs: (B, …) of each head, for some inputs. ranked: whether what reads it orders it.

        Scores belong to the boxes of as many places; where there are as many heads of one as of the other, as in a
        pyramid, they are pairs.
        """
        four = {i: axis for i, y in enumerate(outputs) if (axis := _four(y)) is not None and _softmax_axis(y) is None}
        scores = [_score(i, y) for i, y in enumerate(outputs) if i not in four and (_unit(y) or ranked[i])]
        boxes = []
        for rank, (i, axis) in enumerate(four.items()):
            near = [scores[rank]] if len(scores) == len(four) else scores
            places = outputs[i][0].numel() // 4
            near = [s for s in near if outputs[s.index][0].numel() % places == 0]
            box = BoxHead(i, "offsets", axis == "first", tuple(near))
            boxes.append(replace(box, form=_form(box.boxes(outputs[i]))))
        known = {*four, *(s.index for s in scores)}
        return cls(tuple(scores), tuple(boxes), tuple(i for i in range(len(outputs)) if i not in known))


def by_place(scores: Tensor, places: int) -> Tensor:
    """(B, …) scores → (B, places, classes); the number of scores is a multiple of that of the places."""
    classes = scores[0].numel() // places
    if _classes_first(scores, classes):
        return scores.reshape(len(scores), classes, places).transpose(1, 2)
    return scores.reshape(len(scores), places, classes)


def like_scores(values: Tensor, scores: Tensor) -> Tensor:
    """(B, places) → the shape of scores: each has the value of its place."""
    classes = scores[0].numel() // values.shape[1]
    wide = values[:, None] if _classes_first(scores, classes) else values[:, :, None]
    shape = (classes, values.shape[1]) if _classes_first(scores, classes) else (values.shape[1], classes)
    return wide.expand(-1, *shape).reshape(scores.shape)


def _classes_first(scores: Tensor, classes: int) -> bool:
    return classes > 1 and scores.shape[1] == classes and scores.shape[-1] != classes


def lost_overlap(reference: Tensor, boxes: Tensor, form: BoxForm) -> Tensor:
    """(B, places) what two boxes (B, places, 4) do not share: one minus intersection over union, or of offsets an
    estimate of it, in [0, 1]."""
    if form == "offsets":
        return 1 - torch.exp(-(boxes - reference).abs().mean(2))
    if form == "distances":  # from the same point to left, top, right, bottom
        sign = torch.tensor([-1.0, -1.0, 1.0, 1.0], device=boxes.device)
        reference, boxes = reference * sign, boxes * sign
    low = torch.maximum(reference[..., :2], boxes[..., :2])
    high = torch.minimum(reference[..., 2:], boxes[..., 2:])
    common = (high - low).clamp_min(0).prod(2)
    area, other = ((z[..., 2:] - z[..., :2]).clamp_min(0).prod(2) for z in (reference, boxes))
    union = area + other - common
    return (union - common) / union.clamp_min(1e-9)  # none for two boxes without an area


def box_sizes(reference: Tensor, form: BoxForm) -> Tensor:
    """(B, places, 4) what an error of each number is relative to."""
    if form == "offsets":
        return torch.ones_like(reference)
    low, high = reference[..., :2], reference[..., 2:]
    size = high + low if form == "distances" else high - low
    return size.clamp_min(THIN * float(size.mean()) + 1e-6).repeat(1, 1, 2)


def _unit(y: Tensor) -> bool:
    return bool(((y >= 0) & (y <= 1)).all())


def _four(y: Tensor) -> Literal["first", "last"] | None:
    """Which axis has the four numbers of a box."""
    if y.dim() >= 3 and y.shape[-1] == 4:
        return "last"
    return "first" if y.dim() == 4 and y.shape[1] == 4 else None


def _score(index: int, y: Tensor) -> ScoreHead:
    if not _unit(y):
        return ScoreHead(index, None, logits=True)
    return ScoreHead(index, _softmax_axis(y), logits=False)


def _softmax_axis(y: Tensor) -> int | None:
    """The axis over which values are probabilities that sum to 1."""
    sums = [a for a in range(y.dim() - 1, 0, -1) if y.shape[a] > 1 and ((y.sum(a) - 1).abs() < SUM_TOLERANCE).all()]
    return sums[0] if sums and _unit(y) else None


def _form(boxes: Tensor) -> BoxForm:
    sides = boxes[..., 2:] - boxes[..., :2]
    if float((sides >= 0).all(2).float().mean()) >= ORDERED and bool((sides > 0).any()):
        return "corners"
    return "distances" if bool((boxes >= 0).all()) else "offsets"
