"""Send or not: symbols, sameness, the threshold's calibration, the decision, its audit, the gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from coefficients import make_transform, transform_profile
from runtime_helpers import CLASSES, Pair, images, make_pair

from splitwire.codec.errors import UsageError
from splitwire.codec.wire.reply import Outputs
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.results import SplitResult, Timings
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.sources import Captured
from splitwire.runtime_edge.stream import Decision, Look
from splitwire.runtime_edge.stream.skip import Sameness, Skip, SkipTable, Trial
from splitwire.runtime_edge.stream.skip.calibrating import Tried
from splitwire.runtime_edge.stream.skip.deciding import at_least
from splitwire.runtime_edge.stream.skip.symbols import Symbols
from splitwire.runtime_edge.transport import LoopbackTransport


def answer(**outputs: Sequence[object] | np.ndarray) -> SplitResult:
    found: Outputs = {name: np.asarray(y) for name, y in outputs.items()}
    times = Timings(front=0, encode=0, network=0, decode=0, back=0)
    return SplitResult(
        outputs=found, op="n4", bytes_sent=0, frame_bytes=0, bits_per_element=0, timings=times, attempts=1
    )


def scores(best: int) -> SplitResult:
    return answer(logits=np.eye(CLASSES, dtype=np.float32)[[best]] * 9)


def look(value: float, index: int = 0) -> Look:
    x = np.full((1, 4, 8, 8), value, np.float32)
    captured = Captured(image=x, captured=0.0, wall=0.0, name="x", index=index)
    return Look(captured=captured, input=x, features=[x])


# ------------------------------------------------------------------ symbols


def test_distance_of_maps_is_that_of_the_cell_that_changes_most(pair: Pair):
    """n4: the levels 0, ⅔, 4/3, 2; a cell of 2×2 in four channels has 16 elements."""
    symbols = Symbols(pair.profile)
    assert symbols.op == "n4"
    x = np.array([0.2, 0.9, 1.1, 5.0] * 64, np.float32).reshape(1, 4, 8, 8)
    (indices,) = symbols.of([x])
    np.testing.assert_array_equal(indices.reshape(-1), [0, 1, 2, 3] * 64)
    y = x.copy()
    y[0, 2, 4, 4] = 5  # from 0 to 3
    y[0, 0, 5, 5] = 0  # from 1 to 0, in the same cell
    y[0, :, 0, 0] = 0.9  # from 0 to 1 in all channels
    assert symbols.distance(symbols.of([x]), symbols.of([y])) == (9 + 1) / 16
    assert symbols.distance(symbols.of([x]), symbols.of([np.concatenate([x, x])])) == math.inf


def test_the_largest_tensor_decides(tmp_path: Path):
    """(6,) beside the map: the mean of a vector."""
    symbols = Symbols(make_pair(tmp_path, two_tensors=True).profile)
    x = [np.zeros((1, 4, 8, 8), np.float32), np.zeros((1, 6), np.float32)]
    y = [x[0].copy(), np.array([[0, 0, 0, 0, 1, 2]], np.float32)]
    y[0][0, 0, 7, 7] = 1
    assert symbols.distance(symbols.of(x), symbols.of(y)) == pytest.approx((4 + 9) / 6)


def test_symbols_of_a_transform_pair_are_steps():
    rng = np.random.default_rng(0)
    transform = make_transform(rng, (2, 16), 8, unsent=0.25)
    profile = transform_profile([(2, 16)], [transform], {"q2": (68,), "q1": (60,)})
    symbols = Symbols(profile)
    assert symbols.op == "q2"  # the first of two that have the same bits
    x = rng.normal(0, 20, (1, 2, 16)).astype(np.float32)
    ours = symbols.of([x])
    np.testing.assert_array_equal(ours[0], np.rint(x[..., transform.order()] / 2))  # index 68 is the step 2
    x[..., np.setdiff1d(np.arange(16), transform.order())] = np.inf  # what is not sent does not count
    assert symbols.distance(symbols.of([x]), ours) == 0
    x[0, 1, transform.order()[:2]] += [2, 6]  # one step and three, in one tile of twelve
    assert symbols.distance(symbols.of([x]), ours) == pytest.approx((1 + 9) / 12)


# ------------------------------------------------------------------ sameness


def test_same_classes(pair: Pair):
    same = Sameness(pair.profile)
    assert same(scores(2), scores(2))
    assert not same(scores(2), scores(3))


BOX = [[10.0, 10.0, 50.0, 50.0]]


@pytest.mark.parametrize(
    ("boxes", "score", "label", "same"),
    [
        (BOX, [0.9], [1], True),
        ([[12.0, 12.0, 52.0, 52.0]], [0.6], [1], True),
        ([[40.0, 40.0, 80.0, 80.0]], [0.9], [1], False),
        (BOX, [0.9], [2], False),
        (BOX, [0.42], [1], True),
        (BOX, [0.3], [1], False),
        (BOX * 2, [0.9, 0.9], [1, 1], False),
        (BOX * 2, [0.9, 0.45], [1, 1], True),
    ],
)
def test_same_boxes(pair: Pair, boxes: list[list[float]], score: list[float], label: list[int], same: bool):
    def detections(b: list[list[float]], s: list[float], k: list[int]) -> SplitResult:
        return answer(boxes=np.array(b, np.float32), scores=np.array(s, np.float32), labels=np.array(k, np.int64))

    compare = Sameness(pair.profile, task="detection")
    first, second = detections(BOX, [0.8], [1]), detections(boxes, score, label)
    assert compare(first, second) is compare(second, first) is same


def test_same_segments_and_values(tmp_path: Path):
    profile = make_pair(tmp_path, segments=True).profile
    mask = np.zeros((1, CLASSES, 8, 8), np.float32)
    mask[0, 1] = 1
    other = mask.copy()
    other[0, 2, 0, 0] = 2  # one pixel of 64 is 1.6 %
    assert Sameness(profile)(answer(out=mask), answer(out=mask + 1))
    assert not Sameness(profile)(answer(out=mask), answer(out=other))
    unknown = make_pair(tmp_path, labels=False, pictures=False).profile
    values = np.linspace(0, 1, 9, dtype=np.float32).reshape(1, 9)
    assert Sameness(unknown)(answer(y=values), answer(y=values + 0.04))
    assert not Sameness(unknown)(answer(y=values), answer(y=values + 0.06))
    assert not Sameness(unknown)(answer(y=values), answer(z=values))


# ------------------------------------------------------------------ the threshold


def table(pair: Pair, *rows: tuple[float, int, int]) -> SkipTable:
    tried = tuple(Tried(threshold=t, skipped=s, changed=c) for t, s, c in rows)
    return SkipTable(fingerprint=pair.profile.fingerprint.hex(), op="n4", frames=1000, tried=tried)


def test_the_threshold_is_a_quarter_of_the_largest_that_keeps_the_share(pair: Pair):
    found = table(pair, (0.0, 300, 0), (0.1, 500, 0), (0.2, 700, 5), (0.3, 800, 20), (0.4, 900, 3))
    assert found.threshold(0.01) == 0.0  # a quarter of 0.2; 0.4 is beyond one that does not
    assert found.threshold(0.03) == 0.1  # of 0.4
    assert found.threshold(0.003) == 0.0  # of 0.1
    with pytest.raises(UsageError, match=r"at most 0\.10% of the answers: of 1000 frames at most 500 .*999 are needed"):
        found.threshold(0.001)


def test_the_file(pair: Pair, tmp_path: Path):
    path = SkipTable.path_beside(tmp_path / "front.onnx")
    assert path.name == "front.skip.json"
    with pytest.raises(UsageError, match="not there; `splitwire edge calibrate-skip` makes it"):
        SkipTable.load(path, pair.profile)
    saved = table(pair, (0.0, 1, 0))
    saved.save(path)
    assert SkipTable.load(path, pair.profile) == saved
    with pytest.raises(UsageError, match="of another pair"):
        SkipTable.load(path, make_pair(tmp_path / "other", seed=3).profile)
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"no table of thresholds: .*calibrate again"):
        SkipTable.load(path, pair.profile)


def test_a_trial_counts_what_each_threshold_does(pair: Pair):
    """Against a slow count of one threshold at a time."""
    steps = np.random.default_rng(0).normal(0, 0.05, (60, 1, 3, 8, 8)).cumsum(axis=0).astype(np.float32)
    batches = [images() + step for step in steps]
    with EdgeSession(pair.front, transport=LoopbackTransport(CloudSession(pair.back).handle)) as session:
        same = Sameness(pair.profile)
        trial = Trial(pair.profile, same)
        answers = []
        for result in session.stream(batches, skip=trial):
            trial.add(result)
            assert result.result is not None
            answers.append(result.result)
        compare = Symbols(pair.profile)
        symbols = [compare.of(session.run_front(x).features) for x in batches]
    found = trial.table()
    assert found.frames == 60
    for tried in found.tried:
        skipped = changed = last = 0
        for i in range(1, 60):
            if compare.distance(symbols[i], symbols[last]) > tried.threshold:
                last = i
                continue
            skipped += 1
            changed += not same(answers[last], answers[i])
        assert (tried.skipped, tried.changed) == (skipped, changed)
    assert len({t.skipped for t in found.tried}) > 7


# ------------------------------------------------------------------ the decision


def make(pair: Pair, threshold: float | None = 0.1, **options: object) -> Skip:
    return Skip(pair.profile, threshold=threshold, same=Sameness(pair.profile), **options)  # type: ignore[arg-type]  # as given


def test_unchanged_frames_are_not_sent(pair: Pair):
    skip = make(pair, audit_every=10**6)
    now = 100.0
    assert skip.decide(look(0), now) is Decision.SEND
    assert [skip.decide(look(0.3), now + i) for i in range(1, 10)] == [Decision.REPEAT] * 9
    assert skip.decide(look(2), now + 9) is Decision.SEND
    assert skip.decide(look(2), now + 18.9) is Decision.REPEAT
    assert skip.decide(look(2), now + 19) is Decision.SEND  # the refresh, ten seconds after the last one sent
    skip.forget()
    assert skip.decide(look(2), now + 19.1) is Decision.SEND
    assert make(pair, refresh_s=None, audit_every=10**6).decide(look(0), 0) is Decision.SEND


def test_one_skipped_frame_in_k_is_audited(pair: Pair):
    skip = make(pair, refresh_s=None, audit_every=10)
    decisions = [skip.decide(look(0), i) for i in range(5001)]
    audits = np.flatnonzero([d is Decision.AUDIT for d in decisions])
    assert 400 < len(audits) < 600
    assert len(set(np.diff(audits))) > 10  # not regular


def test_the_audit_catches_a_wrong_threshold(pair: Pair):
    skip = make(pair, threshold=0.9, share=0.01)
    assert all(skip.audit(scores(1), scores(1)) is None for _ in range(20))
    events = [skip.audit(scores(1), scores(i % 4)) for i in range(8)]
    (event,) = [e for e in events if e is not None][:1]
    assert event.kind == "skip_audit"
    assert "audited frames have another answer" in event.text
    assert "lowered from 0.9 to 0.45; calibrate again with `splitwire edge calibrate-skip`" in event.text
    assert skip.threshold is not None
    assert skip.threshold <= 0.45


def test_the_threshold_falls_below_what_differed(pair: Pair):
    skip = make(pair, threshold=20.0, audit_every=2, refresh_s=None)
    skip.decide(look(0), 0)
    event = None
    for i in range(1, 200):
        if skip.decide(look(i % 2 * 2.0), i) is Decision.AUDIT:
            event = event or skip.audit(scores(0), scores(1))
    assert event is not None
    assert skip.threshold is not None
    assert skip.threshold <= 4.5  # half of the distance 9 of the two kinds of frames


def test_a_right_threshold_is_left_alone(pair: Pair):
    """One audit in two hundred differs, where one in a hundred may: 5,000 audits."""
    skip = make(pair)
    events = [skip.audit(scores(1), scores(2 if i % 200 == 100 else 1)) for i in range(5000)]
    assert not any(events)
    assert skip.audits == (2000, 10)


@pytest.mark.parametrize(("changed", "count", "share"), [(0, 10, 0.1), (1, 10, 0.1), (3, 40, 0.01), (7, 900, 0.01)])
def test_probability_of_so_many(changed: int, count: int, share: float):
    expected = sum(math.comb(count, i) * share**i * (1 - share) ** (count - i) for i in range(changed, count + 1))
    assert at_least(changed, count, share) == pytest.approx(expected, abs=1e-9)


def test_a_gate_decides_first(pair: Pair):
    seen = []

    def gate(look: Look) -> bool:
        seen.append(look.captured.index)
        return look.captured.index % 3 == 0

    skip = make(pair, threshold=None, gate=gate)
    decisions = [skip.decide(look(i, i), 0.1 * i) for i in range(7)]
    assert seen == list(range(7))
    assert decisions == [Decision.SEND if i % 3 == 0 else Decision.REPEAT for i in range(7)]
    both = make(pair, gate=gate, audit_every=10**6)
    assert [both.decide(look(0, i), 0.1 * i) for i in (0, 3, 6)] == [Decision.SEND, Decision.REPEAT, Decision.REPEAT]
    closed = make(pair, gate=lambda _: False, refresh_s=None)
    assert {closed.decide(look(0), i) for i in range(9)} == {Decision.REPEAT}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1.0}, "a threshold is 0 or more, got -1"),
        ({"share": 1.0}, "must be between 0 and 1, got 1"),
        ({"audit_every": 1}, "audit_every must be 2 or more"),
        ({"refresh_s": 0.0}, "refresh_s more than 0"),
    ],
)
def test_wrong_options(pair: Pair, options: dict[str, float], message: str):
    with pytest.raises(UsageError, match=message):
        make(pair, **options)
