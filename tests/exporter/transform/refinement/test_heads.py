"""Raw heads of detectors: which are scores, which are boxes of which form, and the places that they share."""

from __future__ import annotations

import pytest
import torch

from splitwire.exporter.transform.refinement.heads import Heads, box_sizes, by_place, like_scores, lost_overlap

B, N, K = 3, 50, 7


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def corners(places: int = N) -> torch.Tensor:
    low = 50 * random(B, places, 2)
    return torch.cat([low, low + 1 + 20 * random(B, places, 2).abs()], 2)


def test_a_map_of_centres_with_classes_and_boxes() -> None:
    heads = Heads.of([random(B, 5, 10).sigmoid(), corners(), random(B, N, K).softmax(2)], [True, False, False])
    assert [(s.index, s.axis, s.logits) for s in heads.scores] == [(0, None, False), (2, 2, False)]
    (box,) = heads.boxes
    assert (box.index, box.form, box.scores) == (1, "corners", heads.scores)
    assert heads.values == ()


def test_classes_before_anchors() -> None:
    """As in SSD: the background is cut off, so that the probabilities do not sum to 1."""
    scores = random(B, K + 1, N).softmax(1)[:, 1:]
    heads = Heads.of([scores, corners()], [True, False])
    assert heads.scores[0].axis is None
    weights = heads.boxes[0].weights([scores, corners()])
    torch.testing.assert_close(weights, scores.amax(1))


def test_a_pyramid_has_pairs() -> None:
    """As in RetinaNet: scores of all anchors and classes in one row, offsets from the anchors."""
    outputs = [random(B, 48 * K).sigmoid(), random(B, 48, 4), random(B, 12 * K).sigmoid(), random(B, 12, 4)]
    heads = Heads.of(outputs, [True, False, True, False])
    assert [(b.index, b.form, [s.index for s in b.scores]) for b in heads.boxes] == [
        (1, "offsets", [0]), (3, "offsets", [2]),
    ]  # fmt: skip
    torch.testing.assert_close(heads.boxes[1].weights(outputs), outputs[2].reshape(B, 12, K).amax(2))


def test_distances_to_the_sides_may_be_small() -> None:
    """As in FCOS, where no distance is negative."""
    heads = Heads.of([random(B, N * K).sigmoid(), 0.2 * random(B, N, 4).abs()], [True, False])
    assert [b.form for b in heads.boxes] == ["distances"]


def test_what_is_ranked_is_a_score_before_its_sigmoid() -> None:
    """As in Faster R-CNN's proposals, beside features that are pooled within the boxes."""
    heads = Heads.of([5 * random(B, N), corners(), random(B, 16, 8, 8)], [True, False, False])
    assert [(s.index, s.logits) for s in heads.scores] == [(0, True)]
    assert heads.boxes[0].scores == heads.scores
    assert heads.values == (2,)


def test_four_classes_are_no_box() -> None:
    heads = Heads.of([random(B, N, 4).softmax(2), corners()], [False, False])
    assert [s.index for s in heads.scores] == [0]
    assert [b.index for b in heads.boxes] == [1]


def test_boxes_before_a_map() -> None:
    y = random(B, 4, 6, 8)
    (box,) = Heads.of([y], [False]).boxes
    torch.testing.assert_close(box.boxes(y)[:, 13], y[:, :, 1, 5])


@pytest.mark.parametrize("shape", [(B, N), (B, N, K), (B, K, N), (B, N * K), (B, 5, 10)])
def test_scores_by_place_and_back(shape: tuple[int, ...]) -> None:
    scores = random(*shape)
    places = by_place(scores, N)
    assert places.shape == (B, N, scores[0].numel() // N)
    values = random(B, N)
    torch.testing.assert_close(by_place(like_scores(values, scores), N), values[:, :, None].expand_as(places))


def test_lost_overlap_of_corners_and_distances() -> None:
    a, b = torch.tensor([[[0.0, 0.0, 4.0, 2.0]]]), torch.tensor([[[2.0, 0.0, 6.0, 2.0]]])
    assert lost_overlap(a, b, "corners").item() == pytest.approx(1 - 4 / 12)
    assert lost_overlap(a, a + 100, "corners").item() == 1
    centre = torch.tensor([3.0, 1.0])
    from_a, from_b = (torch.cat([centre - z[..., :2], z[..., 2:] - centre], 2) for z in (a, b))
    assert lost_overlap(from_a, from_b, "distances").item() == pytest.approx(1 - 4 / 12)
    torch.testing.assert_close(box_sizes(a, "corners"), box_sizes(from_a, "distances"))
    assert lost_overlap(a, a, "offsets").item() == 0
    nothing = torch.zeros(1, 1, 4)
    assert lost_overlap(nothing, nothing, "distances").item() == 0
