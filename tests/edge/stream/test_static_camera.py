"""--skip-unchanged on the composed clip of a static camera: few frames sent, few answers changed, a wrong threshold
caught. The long form is benchmarks/quality/skip.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import splitwire
from benchmarks.inputs.static_camera import clip
from benchmarks.quality import skip as bench
from splitwire.models import detector
from splitwire.models.making import detector_training, scenes
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.stream.skip import Sameness, Skip
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
    """Two clips of 500 frames of one scene; the audit of a threshold that is a hundred times too large."""
    compose = scenes.composer("samples", 11)
    splitwire.export(
        detector.load_detector(),
        cut=detector.CUT,
        calibration=detector_training.inputs_of(np.stack([compose(i).picture for i in range(100, 108)])).numpy(),
        out=tmp_path,
        preprocessing=detector.PREPROCESSING,
        labels=detector.LABELS,
        levels=(16,),
        coder="context",
    )
    transport = LoopbackTransport(CloudSession(tmp_path / "back.onnx").handle)
    with EdgeSession(tmp_path / "front.onnx", transport=transport) as session:
        same = Sameness(session.profile)
        threshold = bench.calibrate(session, 0, 2, 500).table().threshold(0.01)
        seen = bench.see(session, 500, 1, 2)
        right = Skip(session.profile, threshold=threshold, same=same)
        sent, changed, caught = bench.play(right, seen, same, audited=True)
        assert sent <= 0.25
        assert changed <= 0.01
        assert caught is None
        wrong = {
            audited: bench.play(
                Skip(session.profile, threshold=100 * threshold, same=same, audit_every=4), seen, same, audited=audited
            )
            for audited in (False, True)
        }
    assert wrong[False][1] > 0.01
    assert wrong[True][2] is not None
    assert wrong[True][1] < wrong[False][1]
