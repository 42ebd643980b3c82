"""torchvision's detectors as graphs: names, numbers, and nothing left behind in torchvision."""

from __future__ import annotations

import builtins
import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import transform
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, boxes, poolers

from splitwire.codec.errors import ExportError, UsageError
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.cutting.torch_check import check_torch, found_again
from splitwire.exporter.network.adapting import detectors
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.source import from_module

pytestmark = pytest.mark.slow

SIZE = 64
CLASSES = 4


class Levels(nn.Module):
    """A pyramid of two feature maps."""

    out_channels: int | list[int] = 32

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3, stride=4, padding=1), nn.ReLU())
        self.down = nn.Conv2d(32, 32, 3, stride=2, padding=1)

    def forward(self, x):
        x = self.body(x)
        return {"0": x, "1": self.down(x).relu()}


def build(kind: str, size: int = SIZE) -> Any:
    """A detector with random weights whose scores are spread out."""
    torch.manual_seed(0)
    sizes = {"min_size": size, "max_size": size}
    anchors = AnchorGenerator(((8,), (16,)), ((0.5, 1.0, 2.0),) * 2)
    if kind == "ssd":
        backbone = Levels()
        backbone.out_channels = [32, 32]
        net = SSD(backbone, DefaultBoxGenerator([[2], [2]]), (size, size), CLASSES)
    elif kind == "retinanet":
        net = detection.RetinaNet(Levels(), CLASSES, anchor_generator=anchors, **sizes)
    elif kind == "fcos":
        plain = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
        net = detection.FCOS(Levels(), CLASSES, anchor_generator=plain, **sizes)
    else:
        pools = [MultiScaleRoIAlign(["0", "1"], n, 2) for n in (7, 14)]
        net = detection.MaskRCNN(
            Levels(), CLASSES, rpn_anchor_generator=anchors, box_roi_pool=pools[0], mask_roi_pool=pools[1],
            rpn_post_nms_top_n_test=30, box_detections_per_img=10, **sizes,
        )  # fmt: skip
    for name, weight in net.named_parameters():
        if name.endswith("weight") and weight.dim() > 1:
            nn.init.normal_(weight, std=1.5 / weight[0].numel() ** 0.5)
    net.eval()
    return net


def images(n: int) -> np.ndarray:
    return np.random.default_rng(1).random((n, 3, SIZE, SIZE), dtype=np.float32)


def state() -> list[object]:
    transforms = (GeneralizedRCNNTransform.resize, GeneralizedRCNNTransform.batch_images)
    return [boxes.batched_nms, transform.paste_masks_in_image, *transforms, vars(poolers).get("len")]


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("ssd", {"backbone": 2, "backbone.body": 1, "head": 2}),
        ("retinanet", {"backbone": 2, "head": 2}),
        ("mask", {"backbone": 2, "rpn.head": 4, "roi_heads.box_head": 1}),
    ],
)
def test_export(kind, parts):
    net, before = build(kind).train(), state()
    source = from_module(net, (1, 3, SIZE, SIZE))
    assert state() == before
    assert net.training
    assert (source.origin, source.batch) == ("dynamo", 1)
    shape = source.graph.inputs[0].shape
    assert shape is not None and list(shape) == [1, 3, SIZE, SIZE]
    outputs = [o.name for o in source.graph.outputs]
    assert outputs == ["boxes", "scores", "labels", *(["masks"] if kind == "mask" else [])]
    assert any("batch is fixed at 1" in n for n in source.notes)
    assert any("(N, 1, 28, 28)" in n for n in source.notes) == (kind == "mask")
    assert not any("resizes" in n for n in source.notes)
    in_transform = {n.op_type for n in source.graph if n.name is not None and "transform" in n.name}
    assert not {"Resize", "ScatterElements", "ScatterND"} & in_transform

    kept = [n.inputs[2] for n in source.graph if n.op_type == "NonMaxSuppression"]
    limits = [v.const_value.numpy().item() for v in kept if v is not None and v.const_value is not None]
    if kind != "mask":  # where the number of survivors is read as well
        assert limits == [{"ssd": 200, "retinanet": 300}[kind]]  # what torchvision keeps (suppression.py)

    names = Names.of(source)
    assert {path: len(names.resolve(path).values) for path in parts} == parts

    whole = Graph.of(source.model, what="whole", exact=True)
    assert check_torch(net, source, whole, images(3)) < 1e-5
    answer = dict(zip(whole.outputs, whole.run(images(1)), strict=True))
    expected = run(net, images(1)[0])
    assert len(expected["boxes"]) > 5  # or nothing was compared
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_allclose(answer[name], expected[name], atol=1e-3)
    assert whole.run(np.zeros((1, 3, SIZE, SIZE), np.float32))[0].shape[1:] == (4,)


def test_fewer_detections_than_survive_are_the_best_ones():
    net, kept = build("ssd"), 5
    net.detections_per_img = kept
    whole = Graph.of(from_module(net, (1, 3, SIZE, SIZE)).model, what="whole", exact=True)
    answer = dict(zip(whole.outputs, whole.run(images(1)), strict=True))
    expected = run(net, images(1)[0])
    assert len(expected["boxes"]) == kept
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_allclose(answer[name], expected[name], atol=1e-3)


def run(net: nn.Module, image: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {k: v.numpy() for k, v in net.eval()([torch.from_numpy(image)])[0].items()}


@pytest.mark.parametrize("anchors", [300, 3000])  # torchvision's own suppression has two ways
@pytest.mark.parametrize("kind", ["ssd", "retinanet", "fcos"])
def test_the_selection_is_torchvisions(kind, anchors):
    """Distinct scores: the same boxes in the same order, to the bit."""
    net = build(kind)
    view: Any = detectors.as_network(net)
    g = torch.Generator().manual_seed(0)
    sizes = [anchors] if kind == "ssd" else [anchors, anchors // 4, 50]
    head = {
        "cls_logits": [torch.randn(1, n, CLASSES, generator=g) * 3 for n in sizes],
        "bbox_regression": [torch.randn(1, n, 4, generator=g) for n in sizes],
        "bbox_ctrness": [torch.randn(1, n, 1, generator=g) for n in sizes],
    }
    corners = [torch.rand(n, 2, generator=g) * SIZE for n in sizes]
    places = [torch.cat([c, c + 4 + 20 * torch.rand(len(c), 2, generator=g)], 1) for c in corners]
    arguments: tuple[object, ...]
    if kind == "ssd":
        arguments = ({k: v[0] for k, v in head.items()}, places, [(SIZE, SIZE)])
    else:
        arguments = (head, [places], [(SIZE, SIZE)])
    (theirs,), (ours,) = net.postprocess_detections(*arguments), view.postprocess_detections(*arguments)
    assert len(theirs["boxes"]) > 50
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_suppression_without_boxes():
    kept = detectors.batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5)
    assert kept.shape == (0,)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 64), (64, 100), (40, 40)])
def test_the_replaced_functions_give_what_torchvisions_give(height, width):
    own = build("retinanet").transform
    image = torch.rand(3, height, width)
    theirs, _ = own([image])
    with detectors.exportable():
        ours, _ = own([image])
    assert ours.image_sizes == theirs.image_sizes
    assert torch.equal(ours.tensors, theirs.tensors)


def test_key_points_come_as_heat_maps():
    net = detection.KeypointRCNN(
        Levels(), 2, rpn_anchor_generator=AnchorGenerator(((8,), (16,)), ((1.0,),) * 2), min_size=SIZE, max_size=SIZE,
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2), keypoint_roi_pool=MultiScaleRoIAlign(["0", "1"], 14, 2),
        rpn_post_nms_top_n_test=10, box_detections_per_img=3,
    ).eval()  # fmt: skip
    with detectors.exportable(), torch.no_grad():
        found = detectors.as_network(net)(torch.from_numpy(images(1)))
    assert found["heatmaps"].shape == (len(found["boxes"]), 17, 56, 56)
    assert "heatmaps_to_keypoints" in detectors.notes(net, (SIZE, SIZE))[0]


def test_a_detector_that_resizes_says_so():
    assert detectors.notes(build("ssd"), (SIZE, SIZE)) == []
    assert "resizes its 64×64 input to 96×96" in detectors.notes(build("ssd", 96), (SIZE, SIZE))[0]
    assert "resizes its 64×48 input to 85×63" in detectors.notes(build("retinanet", 85), (64, 48))[0]


def test_everything_is_put_back():
    before = state()
    with pytest.raises(RuntimeError, match="boom"), detectors.exportable():
        assert state() != before
        raise RuntimeError("boom")
    assert state() == before
    assert builtins.len is len

    with pytest.raises(UsageError, match="does not take an input of shape"):
        from_module(build("ssd"), (1, 4, SIZE, SIZE))
    assert state() == before


def test_other_threads_keep_torchvisions_functions():
    mask, box = torch.ones(1, 1, 28, 28), torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    shapes = []
    with detectors.exportable():
        shapes.append(transform.paste_masks_in_image(mask, box, (SIZE, SIZE)).shape)
        other = threading.Thread(
            target=lambda: shapes.append(transform.paste_masks_in_image(mask, box, (SIZE, SIZE)).shape)
        )
        other.start()
        other.join()
    assert shapes == [(1, 1, 28, 28), (1, 1, SIZE, SIZE)]


# Comparing detections


def answers(n: int = 20) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    corner = rng.random((n, 2)) * 50
    return {
        "boxes": np.concatenate([corner, corner + 10], 1).astype(np.float32),
        "scores": np.linspace(0.9, 0.1, n, dtype=np.float32),
        "labels": rng.integers(1, 5, n),
    }


def test_detections_are_compared_as_sets():
    a = answers()
    order = np.random.default_rng(1).permutation(20)
    shuffled = {k: v[order] for k, v in a.items()}
    assert found_again(a, shuffled) == 1
    assert found_again(a, {k: v[:15] for k, v in a.items()}) == 0.75
    assert found_again(a, a | {"labels": a["labels"] + 1}) == 0
    assert found_again(a, a | {"boxes": a["boxes"] * 2}) < 0.2
    assert found_again(a, a | {"scores": a["scores"] + 0.1}) < 1
    nothing = {k: v[:0] for k, v in a.items()}
    assert found_again(nothing, nothing) == 1
    assert found_again(a, nothing) == 0


def test_ties_are_not_judged():
    a = answers()
    tied = a | {"scores": np.full(20, 0.5, np.float32)}
    assert found_again(tied, tied | {"boxes": tied["boxes"][::-1] + 30}) == 1


def test_a_wrong_graph_is_noticed():
    net = build("ssd")
    source = from_module(net, (1, 3, SIZE, SIZE))
    whole = Graph.of(source.model, what="whole", exact=True)
    other = copy.deepcopy(net)
    nn.init.normal_(other.backbone.down.weight)
    with pytest.raises(ExportError, match=r"they differ by \S+ at 'backbone'"):
        check_torch(other, source, whole, images(3))
    other = copy.deepcopy(net)
    other.detections_per_img = 10  # the selection alone is another
    with pytest.raises(ExportError, match=r"agree on only \d+% of the boxes"):
        check_torch(other, source, whole, images(3))
