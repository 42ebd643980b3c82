"""The operating point follows the link: on a simulated clock, with the ladder of a tiny profile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from control_profiles import scalar_profile, transform_profile
from link_model import Model, Sent, within

from splitwire.codec.errors import ProfileError, UsageError
from splitwire.runtime_edge.control import RateController, Rung, ladder

TARGET = 0.25


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def answer(rate: RateController, clock: Clock, seconds: float, *, size: int | None = None, busy: bool = False) -> str:
    """Send one frame, which takes this long, and tell of it."""
    rung = rate.rung()
    sent = clock.now
    clock.now += seconds
    rate.delivered(round(rung.frame_bytes) if size is None else size, sent, clock.now, busy, rung=rung)
    clock.now = max(clock.now, sent + 0.1)
    return rung.op


def steps(*mbit_at: tuple[float, float]) -> Callable[[float], float]:
    return lambda now: [rate for since, rate in mbit_at if since <= now][-1] * 1e6 / 8


def segment(frames: list[Sent], start: float, end: float) -> list[Sent]:
    return [f for f in frames if start <= f.captured < end]


# ------------------------------------------------------------------ the ladder


def test_ladder_is_by_rate_without_points_that_a_cheaper_one_beats():
    rungs = ladder(scalar_profile())
    assert [r.op for r in rungs] == ["r0", "r1", "r2", "r3", "r4"]
    assert rungs[0].frame_bytes == pytest.approx(0.1 * 100_000 / 8 + 10)


def test_steps_between_the_points_of_a_transform_pair():
    rungs = ladder(transform_profile(), between=True)
    assert [(r.op, r.step_offset) for r in rungs] == [
        ("q3", 0), ("q3", -1), ("q3", -2), ("q2", 0), ("q2", -1), ("q2", -2), ("q1", 0),
    ]  # fmt: skip
    sizes = [r.frame_bytes for r in rungs]
    assert sizes == sorted(sizes)
    assert sizes[1] / sizes[0] == pytest.approx(sizes[2] / sizes[1])
    assert [r.step_offset for r in ladder(scalar_profile(), between=True)] == [0] * 5


def test_forced_and_bounded_operating_points():
    assert [r.op for r in RateController(scalar_profile(), target_s=1, op="bad").rungs] == ["bad"]
    assert [r.op for r in RateController(scalar_profile(), target_s=1, min_op="r2").rungs] == ["r2", "r3", "r4"]
    assert [r.op for r in RateController(scalar_profile(), target_s=1, max_op="bad").rungs][-2:] == ["r3", "bad"]
    rate = RateController(scalar_profile(), target_s=1, op="r4")
    rate.lost(5.0)
    assert rate.choose() == "r4"


def test_wrong_arguments():
    with pytest.raises(UsageError, match="must be positive"):
        RateController(scalar_profile(), target_s=0)
    with pytest.raises(UsageError, match="'r4' needs more bits than the highest, 'r1'"):
        RateController(scalar_profile(), target_s=1, min_op="r4", max_op="r1")
    with pytest.raises(ProfileError, match="'q9' is not in this profile"):
        RateController(scalar_profile(), target_s=1, op="q9")


# ------------------------------------------------------------------ single rules


def test_it_starts_at_the_default():
    assert RateController(scalar_profile(), target_s=TARGET).choose() == "r3"
    assert RateController(scalar_profile("bad"), target_s=TARGET).choose() in ("r3", "r4")
    assert RateController(scalar_profile(), target_s=TARGET, max_op="r1").choose() == "r1"


def test_a_late_frame_lowers_by_15_percent_and_n_good_ones_raise_by_one_step():
    clock = Clock()
    rate = RateController(scalar_profile(), target_s=TARGET, fps=10, good_frames=4, clock=clock)
    before = rate.state.allowed_bytes
    answer(rate, clock, 0.3)
    assert rate.state.allowed_bytes == pytest.approx(0.85 * before)
    assert [answer(rate, clock, 0.05) for _ in range(4)] == ["r2"] * 4
    assert rate.choose() == "r3"


def test_frames_of_before_the_step_down_do_not_lower_again():
    clock = Clock()
    rate = RateController(scalar_profile(), target_s=TARGET, fps=10, clock=clock)
    clock.now = 1.0
    rate.delivered(10_000, 0.6, 1.0, False)
    lowered = rate.state.allowed_bytes
    rate.delivered(10_000, 0.7, 1.01, False)
    assert rate.state.allowed_bytes == lowered
    rate.delivered(10_000, 1.05, 1.4, False)
    assert rate.state.allowed_bytes < lowered


def test_lost_frames_lower_and_a_burst_counts_once():
    clock = Clock()
    rate = RateController(scalar_profile(), target_s=TARGET, fps=10, clock=clock)
    before = rate.state.allowed_bytes
    for now in (1.0, 1.05, 1.1):
        rate.lost(now)
    assert rate.state.allowed_bytes == pytest.approx(0.85 * before)
    rate.lost(2.0)
    assert rate.state.allowed_bytes == pytest.approx(0.85**2 * before)


def test_idle_samples_never_lower_the_rate_and_may_raise_it():
    clock = Clock()
    rate = RateController(scalar_profile(), target_s=TARGET, fps=10, good_frames=100, clock=clock)
    answer(rate, clock, 0.02, size=100)
    for _ in range(6):
        answer(rate, clock, 0.12, busy=True)  # about 10 kB in 0.1 s
    known = rate.state.bytes_per_second
    assert known is not None
    assert known == pytest.approx(1e5, rel=0.1)
    for _ in range(20):  # 500 bytes per second, far below the rate
        answer(rate, clock, 0.1, size=50)
        assert rate.state.bytes_per_second == known
    answer(rate, clock, 0.02, size=20_000)
    assert rate.state.bytes_per_second == pytest.approx(1e6, rel=0.01)


def test_a_failed_step_up_doubles_the_patience():
    clock = Clock()
    rate = RateController(scalar_profile(), target_s=TARGET, fps=10, good_frames=4, clock=clock)
    for _ in range(4):
        assert answer(rate, clock, 0.05) == "r3"
    assert answer(rate, clock, 0.4) == "r4"
    assert rate.state.good_frames == 8


def test_sizes_are_learned_so_that_batches_fit_the_link():
    clock = Clock()
    rate = RateController(scalar_profile(), target_s=TARGET, fps=10, clock=clock)
    for _ in range(12):
        rung = rate.rung()
        size = round(8 * rung.frame_bytes)
        rate.delivered(size, clock.now, clock.now + 0.02 + size / 1e5, True, rung=rung)
        clock.now += 0.1
    assert 8 * rate.rung().frame_bytes <= 1e5 * 0.1 or rate.choose() == "r0"


# ------------------------------------------------------------------ a link that changes


LINK = ((0.0, 20.0), (15.0, 1.0), (30.0, 0.2), (45.0, 20.0))


def stream(seed: int, **options: object) -> list[Sent]:
    model = Model(rate_at=steps(*LINK), seed=seed)
    rate = RateController(scalar_profile(), target_s=TARGET, clock=model.clock, **options)  # type: ignore[arg-type]  # names
    chance = np.random.default_rng(seed)
    return model.run(rate, lambda rung: int(rung.frame_bytes * chance.uniform(0.85, 1.15)), 60)


def settled(frames: list[Sent]) -> list[Sent]:
    return [f for f in frames if all(not since <= f.captured < since + 2 for since, _ in LINK[1:])]


@pytest.mark.parametrize("seed", range(3))
def test_stepping_link_20_1_02_20(seed: int):
    frames = stream(seed)
    assert within(settled(frames), TARGET) >= 0.9
    for (since, _), end in zip(LINK, (15, 30, 45, 60), strict=True):
        assert within(segment(frames, since + 2, end), TARGET) >= 0.9
    fast = segment(frames, 5, 15)
    assert {f.op for f in fast} == {"r4"}
    slow, slowest = [f.op for f in segment(frames, 17, 30)], [f.op for f in segment(frames, 32, 45)]
    assert slow.count("r3") + slow.count("r2") > 0.7 * len(slow)  # a step up that fails takes a few frames
    assert slowest.count("r0") + slowest.count("r1") > 0.9 * len(slowest)
    assert segment(frames, 58, 60)[-1].op == "r4"


def test_the_fixed_top_rate_fails_there():
    frames = stream(0, op="r4")
    assert within(settled(frames), TARGET) < 0.6
    assert within(segment(frames, 32, 45), TARGET) == 0


def test_a_long_round_trip_is_no_slow_link():
    """Frames that overlap on the way are not held back by each other."""
    model = Model(rate_at=steps((0, 20)), rtt_s=0.4, in_flight=5)
    rate = RateController(scalar_profile(), target_s=0.6, clock=model.clock)
    frames = model.run(rate, lambda rung: int(rung.frame_bytes), 20)
    assert {f.op for f in segment(frames, 10, 20)} == {"r4"}
    assert within(frames, 0.6) > 0.98


def test_a_lossy_second_is_survived():
    model = Model(rate_at=steps((0, 20)), lost_at=lambda now: 5 <= now < 6)
    rate = RateController(scalar_profile(), target_s=TARGET, clock=model.clock)
    frames = model.run(rate, lambda rung: int(rung.frame_bytes), 20)
    assert within(segment(frames, 8, 20), TARGET) == 1
    assert "r3" in {f.op for f in segment(frames, 6, 8)}
    assert frames[-1].op == "r4"


def test_rungs_are_values():
    assert Rung(op="q1", step_offset=0, frame_bytes=3) == Rung(op="q1", step_offset=0, frame_bytes=3)
