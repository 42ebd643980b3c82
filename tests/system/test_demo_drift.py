"""Drift of the demo's input, on the pair that the demo exports: the short form of `make drift`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from splitwire.codec.codec import FeatureCodec
from splitwire.demo.fashion import to_inputs
from splitwire.models import demo
from splitwire.runtime_edge.control import DriftMonitor
from splitwire.runtime_edge.graph import FrontGraph, open_front

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def front(demo_pair: Path) -> FrontGraph:
    return open_front(demo_pair / "front.onnx")


def events(front: FrontGraph, *parts: np.ndarray) -> list[int]:
    """The numbers of the images after which an event came."""
    assert front.drift is not None
    monitor = DriftMonitor(front.profile, front.drift, op=front.profile.default_op)
    codec = FeatureCodec(front.profile)
    images = np.concatenate(parts)
    found = []
    for start in range(0, len(images), 100):
        features = front.run(to_inputs(images[start : start + 100])).features[0]
        for i in range(len(features)):
            frame = [features[i : i + 1]]
            if monitor.observe(frame, len(codec.encode(frame))) is not None:
                found.append(start + i)
    return found


def test_ordinary_images_raise_no_alarm(front: FrontGraph):
    assert events(front, demo.test_set()[0]) == []


@pytest.mark.parametrize("change", ["inverted", "dark", "noise"])
def test_a_change_is_seen_within_200_images(front: FrontGraph, change: str):
    images, _ = demo.test_set()
    changed = {
        "inverted": 255 - images[300:500],
        "dark": (images[300:500] * 0.2).astype(np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, (200, 28, 28), dtype=np.uint8),
    }
    found = events(front, images[:300], changed[change])
    assert len(found) == 1
    assert 300 <= found[0] < 500
