"""Links, the shortlist, the quick calibration, and what is recommended where."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
import torch
from exporter_helpers import SHAPE, network
from PIL import Image
from torch import nn

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.design import FeatureStatistics, design_operating_point
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import CodecProfile, OperatingPoint, Preprocessing, TensorSpec
from splitwire.codec.shared.device import DeviceProfile, MeasuredCut
from splitwire.exporter.cutting.cuts import Cut
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.source import Source, from_module
from splitwire.exporter.planning import plan as planner
from splitwire.exporter.planning.dead_leaves import dead_leaves
from splitwire.exporter.planning.devices import ESTIMATES
from splitwire.exporter.planning.links import Link, parse_bandwidth, parse_duration
from splitwire.exporter.planning.plan import HEAD_BYTES, Latency, Placement, Plan, PlannedCut, plan_cuts, recommend
from splitwire.exporter.planning.quick import mean_jpeg_bytes, quick_bits, shortlist

SIDE = 64
UNCHANGED = Preprocessing(crop=(SIDE, SIDE), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SLOW = msgspec.structs.replace(
    ESTIMATES["raspberry-pi-4"], name="slow", conv_macs=1e8, matmul_macs=1e8, radio_joules_per_byte=1e-5
)
LEVELS = (2, 4)


class Bottleneck(nn.Sequential):
    """Four channels of 8×8 after 1 % of the work: a cut worth having."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.squeeze = nn.Sequential(nn.Conv2d(8, 4, 3, 2, 1), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(4, 128, 3, 1, 1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(128, 128, 3, 1, 1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


@pytest.fixture(scope="module")
def source() -> Source:
    torch.manual_seed(0)
    return from_module(Bottleneck(), (1, 3, SIDE, SIDE))


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return list(dead_leaves(16, (3, SIDE, SIDE)))


@pytest.fixture(scope="module")
def plan(source, pictures):
    """A function of the link: the calibration is done once, the comparison for every link."""
    names = Names.of(source)
    known: dict[tuple[str, ...], dict[str, tuple[float, ...] | str]] = {}

    def run(link: Link | None = None, device: DeviceProfile = SLOW, **options: Any) -> Plan:
        with pytest.MonkeyPatch.context() as patch:

            def once(source, cuts, *rest):
                key = tuple(c.label for c in cuts)
                if key not in known:
                    known[key] = quick_bits(source, cuts, *rest)
                return known[key]

            patch.setattr(planner, "quick_bits", once)
            return plan_cuts(
                source, names, pictures, preprocessing=UNCHANGED, device=device, link=link, levels=LEVELS, **options
            )

    return run


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("5mbit", 5e6),
        ("1gbit", 1e9),
        ("250kbit", 250e3),
        ("1.5 Mbit/s", 1.5e6),
        ("100Mbps", 100e6),
        ("9600bit", 9600.0),
    ],
)
def test_bandwidths(text, rate):
    assert parse_bandwidth(text) == rate


@pytest.mark.parametrize("text", ["none", " None "])
def test_no_link(text):
    assert parse_bandwidth(text) is None


@pytest.mark.parametrize(
    "text", ["", "5", "fast", "5MB", "5 MB/s", "5m", "-5mbit", "mbit", "1e6bit", "5tbit", "0mbit", "5mbitt"]
)
def test_wrong_bandwidths(text):
    with pytest.raises(UsageError, match=r"5mbit|carries nothing"):
        parse_bandwidth(text)


@pytest.mark.parametrize(
    ("text", "ms"), [("40ms", 40.0), ("0.1s", 100.0), ("0", 0.0), ("250 us", 0.25), ("1S", 1000.0)]
)
def test_round_trips(text, ms):
    assert parse_duration(text) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["", "40", "ms", "-1ms", "5min", "1h", "61s", "nan"])
def test_wrong_round_trips(text):
    with pytest.raises(UsageError, match="round trip"):
        parse_duration(text)


def test_time_over_the_link():
    link = Link(bits_per_second=8e6, rtt_ms=40)
    assert link.milliseconds(1000, 500) == 40 + 1.5
    assert str(link) == "8 Mbit/s, round trip 40 ms"


def cut(elements: int, position: int = 0) -> Cut:
    return Cut(tensors=(f"t{position}",), label=f"cut{position}", shapes=((elements,),), position=position)


def test_shortlist_takes_the_pareto_front_first():
    sizes = [800, 200, 900, 400, 100, 150, 2]
    cuts = [cut(n, i) for i, n in enumerate(sizes)]
    seconds = [float(i) for i in range(len(cuts))]
    assert shortlist(cuts, seconds, list(range(1, 8)), 4) == [0, 1, 4, 6]
    assert (
        shortlist(cuts, seconds, list(range(1, 8)), 6) == [0, 1, 2, 4, 5, 6]
        or len(shortlist(cuts, seconds, list(range(1, 8)), 6)) == 6
    )
    assert shortlist(cuts, seconds, list(range(1, 8)), 99) == list(range(7))
    assert shortlist([], [], [], 12) == []


def test_shortlist_leaves_out_what_an_activation_follows():
    cuts = [cut(100, 0), cut(100, 1), cut(50, 2)]
    assert shortlist(cuts, [1.0, 1.0, 2.0], [10, 10, 20], 12) == [1, 2]
    assert shortlist(cuts, [1.0, 1.0, 2.0], [0, 0, 20], 12) == [2]
    flat = Cut(tensors=("t",), label="flattened", shapes=((100,),), position=2)
    shaped = Cut(tensors=("s",), label="shaped", shapes=((4, 5, 5),), position=1)
    assert shortlist([cut(100), shaped, flat], [1.0, 1.0, 1.0], [10, 10, 10], 12) == [1]


def option(kind: Literal["device", "jpeg", "cut"], total: float) -> Placement:
    return Placement(kind=kind, label=kind, latency=Latency(front=total))


def planned(label: str, total: float | None) -> PlannedCut:
    made = None if total is None else dataclasses.replace(option("cut", total), label=label)
    return PlannedCut(cut=cut(10), macs_share=0.5, parameters_share=0.5, front_ms=1.0, back_ms=1.0, option=made)


def test_the_fastest_is_recommended():
    cuts = [planned("a", 30.0), planned("b", None), planned("c", 20.0)]
    chosen, best, why = recommend(cuts, option("device", 100.0), option("jpeg", 40.0))
    assert chosen == cuts[2].option
    assert best == cuts[2]
    assert why == "cut after c: 20.0 ms end to end (JPEG to the cloud 40.0 ms, whole network on the device 100.0 ms)"


@pytest.mark.parametrize(
    ("device", "jpeg", "kind"), [(10.0, 40.0, "device"), (100.0, 5.0, "jpeg"), (20.0, 20.0, "device")]
)
def test_splitting_that_does_not_pay_is_called_so(device, jpeg, kind):
    chosen, best, why = recommend([planned("a", 20.0)], option("device", device), option("jpeg", jpeg))
    assert chosen.kind == kind
    assert best is not None
    assert best.option is not None
    assert best.option.label == "a"
    assert why.startswith("splitting does not pay here; ")


def test_what_is_close_is_called_close():
    assert "within the estimates' error" in recommend([planned("a", 20.0)], option("device", 22.0), None)[2]
    assert "within" not in recommend([planned("a", 20.0)], option("device", 30.0), None)[2]


def test_without_cuts():
    chosen, best, _ = recommend([], option("device", 22.0), option("jpeg", 11.0))
    assert (chosen.kind, best) == ("jpeg", None)


def test_no_link_means_the_device(plan):
    p = plan(None)
    assert p.recommended == p.on_device
    assert p.jpeg is None
    assert p.jpeg_bytes > 0
    assert all(c.option is None for c in p.cuts)
    assert any(c.rates for c in p.cuts)
    assert "no link" in p.advice


def test_a_fast_link_and_a_slow_device_mean_the_cloud(plan):
    p = plan(Link(bits_per_second=1e9, rtt_ms=1.0))
    assert p.recommended.kind == "jpeg" or p.best_cut.macs_share < 0.05
    assert p.on_device.latency.total > 50
    assert p.recommended.latency.total < 10


def test_a_slow_link_and_a_slow_device_mean_the_bottleneck(plan):
    p = plan(Link(bits_per_second=1e5, rtt_ms=10.0))
    assert (p.recommended.kind, p.recommended.label) == ("cut", "squeeze")
    assert p.recommended == p.best_cut.option
    assert p.recommended.bytes < p.jpeg.bytes


def test_a_slow_link_and_a_fast_device_mean_the_device(plan):
    assert plan(Link(bits_per_second=1e5, rtt_ms=10.0), ESTIMATES["server-gpu"]).recommended.kind == "device"


def measured(label: str, ms: float, **changed: Any) -> MeasuredCut:
    known: dict[str, Any] = {"model": "m", "cut": label, "input_shape": (3, SIDE, SIDE), "shapes": ((4, 8, 8),)}
    return MeasuredCut(**{**known, "front_ms": ms, "provider": "CPUExecutionProvider", **changed})


def test_a_measured_front_replaces_its_estimate_and_scales_the_others(plan):
    """By three; nothing else changes. A cut of another name or shape does not count."""
    link = Link(bits_per_second=1e5, rtt_ms=10.0)
    before = plan(link)
    by_label = {c.cut.label: c for c in before.cuts}
    cut = measured("squeeze", 3 * by_label["squeeze"].front_ms)
    others = (measured("squeeze", 1e6, shapes=((4, 9, 9),)), measured("squeeze", 1e6, input_shape=(3, 9, 9)))
    after = plan(link, msgspec.structs.replace(SLOW, cuts=(cut, *others, measured("none", 1e6))))
    assert [c.cut.label for c in after.cuts if c.measured] == ["squeeze"]
    for c in after.cuts:
        assert c.front_ms == pytest.approx(3 * by_label[c.cut.label].front_ms)
        assert c.back_ms == by_label[c.cut.label].back_ms
    assert after.on_device.latency.front == pytest.approx(3 * before.on_device.latency.front)
    assert not any(c.measured for c in before.cuts)


def test_the_sum_of_the_stages(plan):
    """Every stage of the best cut from the profiles and the counts, by hand."""
    link = Link(bits_per_second=1e5, rtt_ms=10.0)
    p = plan(link)
    latency, c = p.recommended.latency, p.best_cut
    assert latency.front == c.front_ms == pytest.approx(1e3 * (8 * 256 * 27 + 4 * 64 * 72) / 1e8, rel=0.1)
    assert latency.encode == pytest.approx(1e3 * 256 / SLOW.encode_elements)
    (n4,) = (r for r in c.rates if r.levels == p.ranked_by)
    assert p.recommended.bytes == n4.bytes
    assert latency.link == pytest.approx(10 + 8e3 * (n4.bytes + HEAD_BYTES + 40) / 1e5)  # 10 logits come back
    assert latency.back == c.back_ms
    assert latency.total == pytest.approx(sum(dataclasses.asdict(latency).values()))
    watts = SLOW.compute_watts or math.nan
    assert p.recommended.joules == pytest.approx(
        1e-3 * watts * (latency.front + latency.encode) + 1e-5 * (n4.bytes + HEAD_BYTES)
    )
    assert c.macs_share == pytest.approx((8 * 256 * 27 + 4 * 64 * 72) / p.macs)


def test_bytes_are_those_of_coded_frames(plan, source, pictures):
    """The estimate of the quick calibration against real frames of the same images, for every calibrated cut."""
    for c in plan(None).cuts:
        if not c.rates:
            continue
        model = source.model.clone()
        value = next(v for n in model.graph for v in n.outputs if v.name == c.cut.tensors[0])
        model.graph.outputs.clear()
        model.graph.outputs.append(value)
        features = np.asarray(Graph.of(model, what="front").run(np.stack(pictures))[0], np.float32)
        spec = TensorSpec(name="x", shape=c.cut.shapes[0])
        statistics = FeatureStatistics(channels=spec.planes[0])
        statistics.add(features.reshape(-1, *spec.planes))
        points = tuple(
            OperatingPoint(
                name=f"n{r.levels}",
                tensors=(design_operating_point(levels=r.levels, statistics=statistics)[0],),
                bits_per_element=0.0,
            )
            for r in c.rates
        )
        codec = FeatureCodec(
            CodecProfile(
                model="", cut="", tensors=(spec,), operating_points=points, default_op="n2",
                front_sha256="", back_sha256="", frames="compact",
            )
        )  # fmt: skip
        for r in c.rates:
            coded = np.mean([len(codec.encode([x[None]], op=f"n{r.levels}")) for x in features])
            assert r.bytes == pytest.approx(coded, rel=0.05, abs=8), (c.cut.label, r.levels)


def test_jpeg_bytes_are_those_of_the_picture(pictures):
    """Normalised and back: the same bytes as of the 8-bit picture itself."""
    how = Preprocessing(crop=(SIDE, SIDE))
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (how.mean, how.std))
    pixels = np.rint(pictures[0] * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "JPEG", quality=90, optimize=True)
    x = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    assert mean_jpeg_bytes([x], how) == len(buffer.getvalue())


def test_levels_are_checked(source, pictures):
    names = Names.of(source)
    for levels in ((2, 8), (4, 1), (4, 10_000)):
        with pytest.raises(UsageError, match="levels must be from 2 to 256, and hold 4"):
            plan_cuts(source, names, pictures, levels=levels)


@pytest.mark.slow
def test_two_tensors_at_a_cut():
    source = from_module(network(), (1, *SHAPE))
    pictures = list(dead_leaves(8, SHAPE))
    p = plan_cuts(
        source, Names.of(source), pictures, max_tensors=2, levels=(4,), calibrated_cuts=40,
        link=Link(bits_per_second=1e6, rtt_ms=1.0),
    )  # fmt: skip
    both = [c for c in p.cuts if len(c.cut.tensors) == 2]
    assert both
    alone = {c.cut.tensors[0]: c for c in p.cuts if len(c.cut.tensors) == 1 and c.rates}
    checked = 0
    for c in both:
        if c.rates and all(t in alone for t in c.cut.tensors):
            heads = [alone[t].rates[0].bytes for t in c.cut.tensors]
            assert c.rates[0].bytes == pytest.approx(sum(heads), abs=40)
            checked += 1
    assert p.jpeg is None  # no preprocessing was given, so the inputs are no pictures
    assert any(c.rates for c in both)


def test_constant_features_have_no_bytes_and_a_reason():
    class Dead(nn.Sequential):
        def __init__(self) -> None:
            super().__init__()
            convolution = nn.Conv2d(3, 4, 3)
            self.dead = nn.Sequential(convolution, nn.ReLU())
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
            assert convolution.bias is not None
            nn.init.constant_(convolution.bias, -1e6)

    source = from_module(Dead(), (1, *SHAPE))
    names = Names.of(source)
    p = plan_cuts(source, names, list(dead_leaves(4, SHAPE)), link=Link(bits_per_second=1e6, rtt_ms=1.0))
    assert p.recommended.kind == "device"
    reason = next(c for c in p.cuts if c.cut.label == "dead").reason
    assert reason is not None and "nothing to send" in reason


def test_infinite_features_have_no_bytes_and_a_reason():
    class Huge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.tail = nn.Conv2d(4, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.tail(torch.exp(1000 * (self.stem(x) + 1)))
            return y.mean((2, 3))

    source = from_module(Huge(), (1, *SHAPE))
    names = Names.of(source)
    p = plan_cuts(source, names, list(dead_leaves(4, SHAPE)), link=Link(bits_per_second=1e6, rtt_ms=1.0))
    assert p.recommended.kind == "device"
    assert {c.reason for c in p.cuts} - {None} == {"its features are NaN or infinite on some image"}
    assert not any(c.option for c in p.cuts if c.reason)


def test_dead_leaves():
    a, b = dead_leaves(3, (3, 32, 48)), dead_leaves(3, (3, 32, 48))
    assert (a == b).all()
    assert (a.shape, a.dtype) == ((3, 3, 32, 48), np.dtype(np.float32))
    assert a.min() >= 0
    assert a.max() <= 1
    assert a.std() > 0.1
    assert not (a[0] == a[1]).all()
    assert not (a == dead_leaves(3, (3, 32, 48), seed=1)).all()
    # neighbours are alike, as in pictures
    assert np.corrcoef(a[..., :-1].ravel(), a[..., 1:].ravel())[0, 1] > 0.8


@pytest.mark.slow
def test_the_cut_of_auto(source, pictures):
    names = Names.of(source)
    slow = Link(bits_per_second=1e5, rtt_ms=10.0)
    found, note = planner.recommend_cut(source, names, pictures, link=slow, device=SLOW, preprocessing=UNCHANGED)
    assert found.label == "squeeze"
    assert note == "--cut auto chose 'squeeze' for slow, server-cpu, 100 kbit/s, round trip 10 ms"
    found, note = planner.recommend_cut(source, names, pictures, link=slow, preprocessing=UNCHANGED)
    assert "; but splitting does not pay here; whole network on the device" in note


@pytest.mark.slow
def test_auto_without_any_cut():
    class Flat(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = super().forward(x)
            return y + x.mean()

    source = from_module(Flat(), (1, *SHAPE))
    with pytest.raises(UsageError, match="no cut can be chosen automatically"):
        planner.recommend_cut(source, Names.of(source), list(dead_leaves(4, SHAPE)))
