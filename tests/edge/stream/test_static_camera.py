"""--skip-unchanged on the composed clip of a static camera: few frames sent, few answers changed, a wrong threshold
caught. The long form is benchmarks/quality/skip.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.inputs.static_camera import clip
from benchmarks.quality import skip as bench
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport import LoopbackTransport


def test_the_clip_is_mostly_still_and_always_the_same():
    frames = list(clip(400, seed=3))
    again = list(clip(400, seed=3))
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(frames, again, strict=True))
    assert 0.02 < np.mean([f.moves for f in frames]) < 0.4
    still = np.abs(frames[1].picture.astype(int) - frames[2].picture).mean()
    assert 1 < still < 4  # noise


@pytest.mark.slow
def test_few_frames_are_sent_and_few_answers_change(tmp_path: Path):
    bench.export_detector(tmp_path)
    transport = LoopbackTransport(CloudSession(tmp_path / "back.onnx").handle)
    with EdgeSession(tmp_path / "front.onnx", transport=transport) as session:
        row = bench.measure(session, 0, 800)
    assert row.sent <= 0.25
    assert row.changed <= 0.01
    assert row.wrong_changed > 0.03
    assert row.caught_after is not None
    assert row.audited_changed < row.wrong_changed
