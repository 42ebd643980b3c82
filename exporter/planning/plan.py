"""Estimate the latency of every cut of a network, of the device alone, and of a JPEG; and recommend the fastest.

Times are estimates from shapes (costs.py) and the rates of two device profiles. A quick calibration (quick.py) measures
the bytes of the likely cuts. A cut without calibration has no total.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from splitwire.codec.codec import planes_per_chunk
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing, TensorSpec
from splitwire.codec.shared.device import DeviceProfile
from splitwire.codec.shared.progress import ProgressFn, no_progress
from splitwire.codec.tables import MAX_LEVELS
from splitwire.codec.wire.frame import side_information
from splitwire.exporter.cutting.cuts import Cut, find_cuts
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.network.inference import Float32Array
from splitwire.exporter.network.source import Source

from .costs import Costs, measure_costs
from .devices import find_device
from .dropped import DroppedCut, dropped_cuts, in_words
from .links import Link
from .quick import cut_bits, mean_jpeg_bytes, quick_bits, shortlist
from .replies import OutputBytes, come_down, output_bytes, total

PLANNED_LEVELS = (2, 4, 8)
RANKED_BY = 4
"""The number of levels at which cuts are compared. The exporter measures the output distortion later."""

CALIBRATED_CUTS = 12
HEAD_BYTES = 140
"""Bytes of the HTTP head of a request with a frame or a JPEG (docs/runtime.md)."""

CLOSE = 0.2
"""Relative difference below which two times count as equal in the advice: the estimates are not more accurate."""

DEFAULT_DEVICE, DEFAULT_CLOUD = "raspberry-pi-5", "server-cpu"
AUTO_LINK = Link(bits_per_second=10e6, rtt_ms=30.0)
"""The link that `--cut auto` assumes if the user names none."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds per stage for one image. For a JPEG: front is 0, and back is the whole network.

    link: the round trip, and the bytes in both directions at the bandwidth of the link.
    """

    front: float
    encode: float = 0.0
    link: float = 0.0
    decode: float = 0.0
    back: float = 0.0

    @property
    def total(self) -> float:
        """End to end, ms."""
        return self.front + self.encode + self.link + self.decode + self.back


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The rate at one number of levels. bytes: of the frame of one image. bits_per_element: of the features alone."""

    levels: int
    bits_per_element: float
    bytes: float


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the network runs, and the costs. label: the cut in the form of `--cut`, or "device" or "jpeg".

    bytes: of the frame of one image, or of its JPEG. sent: the same with the HTTP head. down: bytes of the outputs that
    come back. joules: energy of the device per image; None if its profile has no power.
    """

    kind: Literal["device", "jpeg", "cut"]
    label: str
    latency: Latency
    bytes: float = 0.0
    sent: float = 0.0
    down: float = 0.0
    joules: float | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedCut:
    """One cut and its costs.

    macs_share, parameters_share: the part of the network in the front half, in [0, 1].

    front_ms, back_ms: estimated; front_ms is measured where the device's profile has this cut (`measured`). down: bytes
    of the outputs that the back half makes. rates: from the quick calibration, () if there is none. reason: why the
    calibration failed.
    option: at the plan's `ranked_by` levels; None without rates or without a link.
    """

    cut: Cut
    macs_share: float
    parameters_share: float
    front_ms: float
    back_ms: float
    measured: bool = False
    down: float = 0.0
    rates: tuple[Rate, ...] = ()
    option: Placement | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The figures of a plan: every cut, the device alone, a JPEG, and the recommendation.

    macs, parameters: of the network. images: number of inputs of the quick calibration. cuts: in execution order.

    jpeg: None without a link, or if the input is no picture. jpeg_bytes: of the picture alone.
    recommended: the option with the least end-to-end latency. best_cut: the cut with the least; None if no cut has one.
    advice: the recommendation in words. dropped: tensors that separate the network, but that the codec cannot carry.
    outputs: the sizes of the outputs for one image.
    """

    device: DeviceProfile
    cloud: DeviceProfile
    link: Link | None
    macs: int
    parameters: int
    images: int
    ranked_by: int
    cuts: tuple[PlannedCut, ...]
    on_device: Placement
    jpeg: Placement | None
    jpeg_bytes: float | None
    recommended: Placement
    best_cut: PlannedCut | None
    advice: str
    dropped: tuple[DroppedCut, ...] = ()
    outputs: tuple[OutputBytes, ...] = ()


def plan_cuts(
    source: Source,
    names: Names,
    inputs: Sequence[Float32Array],
    *,
    preprocessing: Preprocessing | None = None,
    device: str | DeviceProfile = DEFAULT_DEVICE,
    cloud: str | DeviceProfile = DEFAULT_CLOUD,
    link: Link | None = None,
    max_tensors: int = 1,
    levels: Sequence[int] = PLANNED_LEVELS,
    ranked_by: int = RANKED_BY,
    calibrated_cuts: int = CALIBRATED_CUTS,
    progress: ProgressFn | None = None,
) -> Plan:
    """Compare every cut of `source` with up to `max_tensors` tensors, the whole network on the device, and a JPEG.

    inputs: network inputs, (C, H, W) float32 each; 32 are enough. preprocessing: how they were made from pictures; None
    if they are no pictures, and then there is no JPEG. device, cloud: profiles, names of estimates, or files. link:
    None if there is none. levels: to calibrate; ranked_by: the one that decides. calibrated_cuts: the number of cuts to
    calibrate.

    Raises UsageError (levels, device), UnsupportedModel (ONNX Runtime does not run the network).
    """
    report = progress or no_progress
    if ranked_by not in levels or not all(2 <= n <= MAX_LEVELS for n in levels):
        raise UsageError(f"levels must be from 2 to {MAX_LEVELS}, and hold {ranked_by}; they are {list(levels)}")
    near, far = find_device(device), find_device(cloud)
    report("Find cuts", 0, None)
    costs = measure_costs(source)
    cuts = [c for c in find_cuts(source.graph, names, max_tensors=max_tensors) if all(c.shapes)]
    dropped = dropped_cuts(source.graph, names)
    report("Find cuts", 1, 1)
    seconds = [costs.seconds_before(c.position, near) for c in cuts]
    macs = [costs.macs_before(c.position) for c in cuts]
    chosen = shortlist(cuts, seconds, macs, calibrated_cuts)
    bits = quick_bits(source, [cuts[i] for i in chosen], inputs, levels, report)
    outputs = output_bytes(source)
    fronts = _Fronts.of(costs, near, cuts, source.input_shape[1:])
    machines = _Machines(costs=costs, device=near, cloud=far, link=link, outputs=outputs, fronts=fronts)
    planned = tuple(
        machines.cut(c, cut_bits(c, bits) if i in chosen else None, levels, ranked_by) for i, c in enumerate(cuts)
    )
    jpeg_bytes = None
    pixels = 0
    if preprocessing is not None and preprocessing.input_shape == source.input_shape[1:] and len(inputs):
        jpeg_bytes = mean_jpeg_bytes(inputs, preprocessing)
        pixels = math.prod(preprocessing.crop)
    jpeg = machines.jpeg(jpeg_bytes, pixels, link) if jpeg_bytes is not None and link is not None else None
    on_device = machines.whole()
    recommended, best, advice = recommend(planned, on_device, jpeg)
    if best is None and (link is not None or not any(c.rates for c in planned)):
        remaining = advice if jpeg is not None else "the whole network on the device"
        advice = f"{_nothing_to_compare(planned, dropped, max_tensors)}; what is left: {remaining}"
    elif recommended.down > recommended.sent:
        down = come_down(outputs, None if recommended.kind != "cut" or best is None else best.cut)
        advice += (
            f"; more comes down the link than goes up, {recommended.down / 1e3:,.1f} KB against"
            f" {recommended.sent / 1e3:,.1f}: output {max(down, key=lambda o: o.bytes or 0)} costs most"
        )
    return Plan(
        device=near, cloud=far, link=link, macs=costs.macs, parameters=costs.parameters, images=len(inputs),
        ranked_by=ranked_by, cuts=planned, on_device=on_device, jpeg=jpeg, jpeg_bytes=jpeg_bytes,
        recommended=recommended, best_cut=best, advice=advice, dropped=tuple(dropped), outputs=tuple(outputs),
    )  # fmt: skip


def recommend(
    cuts: Sequence[PlannedCut], on_device: Placement, jpeg: Placement | None
) -> tuple[Placement, PlannedCut | None, str]:
    """(the option with the least latency, the best cut, the reason). If times are equal: the device, then the JPEG."""
    best = min((c for c in cuts if c.option), key=lambda c: c.option.latency.total if c.option else 0.0, default=None)
    options = [on_device, *([jpeg] if jpeg else []), *([best.option] if best and best.option else [])]
    first, *others = sorted(options, key=lambda o: o.latency.total)
    if not others:
        return first, best, "no link, so nothing can be sent: run the whole network on the device"
    alternatives = ", ".join(f"{_DOING[o.kind].format(o.label)} {o.latency.total:.1f} ms" for o in others)
    text = f"{_DOING[first.kind].format(first.label)}: {first.latency.total:.1f} ms end to end ({alternatives})"
    if first.kind != "cut" and best is not None:
        text = f"splitting does not pay here; {text}"
    second = others[0]
    if second.latency.total < (1 + CLOSE) * first.latency.total:
        text += f"; {_DOING[second.kind].format(second.label)} is within the estimates' error"
    return first, best, text


def _nothing_to_compare(planned: Sequence[PlannedCut], dropped: Sequence[DroppedCut], max_tensors: int) -> str:
    """In words: why splitting cannot be judged."""
    if planned:
        reasons = sorted({c.reason for c in planned if c.reason})
        why = f"none of {len(planned)} cuts could be calibrated ({'; '.join(reasons)})"
    elif dropped:
        why = f"every tensor that separates the network was dropped: {'; '.join(in_words(dropped))}"
    else:
        tensors = "single tensor separates" if max_tensors == 1 else f"set of up to {max_tensors} tensors separates"
        why = f"no {tensors} this network (--max-tensors {max_tensors + 1} looks at larger sets)"
    return f"splitting could not be judged, since {why}"


_DOING = {"device": "whole network on the device", "jpeg": "JPEG to the cloud", "cut": "cut after {}"}


def recommend_cut(
    source: Source, names: Names, inputs: Sequence[Float32Array], *, link: Link = AUTO_LINK, **options: object
) -> tuple[Cut, str]:
    """The cut of `--cut auto`, with the least end-to-end latency, and a note on the assumptions.

    The note also says if the network without a cut is faster. options: those of `plan_cuts`.
    Raises UsageError if no cut can be recommended, and what `plan_cuts` raises.
    """
    plan = plan_cuts(source, names, inputs, link=link, **options)  # type: ignore[arg-type]  # plan_cuts names and checks them
    if plan.best_cut is None:
        raise UsageError(f"no cut can be chosen automatically: {plan.advice.partition('; what is left')[0]}")
    note = f"--cut auto chose {plan.best_cut.cut.label!r} for {plan.device.name}, {plan.cloud.name}, {link}"
    if plan.recommended.kind != "cut":
        note += f"; but {plan.advice}"
    return plan.best_cut.cut, note


@dataclass(frozen=True, kw_only=True)
class _Fronts:
    """Times on the device. measured: milliseconds of the cuts that were measured, by position. scale: the median of
    measured over estimated time, 1 if nothing was measured: it multiplies the estimates of the same network, which are
    too short where its layers are small."""

    measured: Mapping[int, float]
    scale: float

    @classmethod
    def of(cls, costs: Costs, device: DeviceProfile, cuts: Sequence[Cut], input_shape: tuple[int, ...]) -> Self:
        """The measured cuts that are cuts of this network, by name and shapes."""
        known = {(m.cut, m.shapes): m.front_ms for m in device.measured_cuts if m.input_shape == input_shape}
        measured = {c.position: known[c.label, c.shapes] for c in cuts if (c.label, c.shapes) in known}
        estimates = {position: 1e3 * costs.seconds_before(position, device) for position in measured}
        ratios = [measured[position] / ms for position, ms in estimates.items() if ms > 0]
        return cls(measured=measured, scale=statistics.median(ratios) if ratios else 1.0)


@dataclass(frozen=True, kw_only=True)
class _Machines:
    """Both ends and the link. outputs: of the network, for one image."""

    costs: Costs
    device: DeviceProfile
    cloud: DeviceProfile
    link: Link | None
    outputs: Sequence[OutputBytes]
    fronts: _Fronts

    def whole(self) -> Placement:
        latency = Latency(front=1e3 * self.fronts.scale * self.costs.seconds(self.device))
        return Placement(kind="device", label="device", latency=latency, joules=self._joules(latency, 0.0))

    def jpeg(self, jpeg_bytes: float, pixels: int, link: Link) -> Placement:
        sent, down = jpeg_bytes + HEAD_BYTES, float(total(self.outputs))
        latency = Latency(
            front=0.0,
            encode=1e3 * pixels / self.device.jpeg_encode_pixels,
            link=link.milliseconds(sent, down),
            decode=1e3 * pixels / self.cloud.jpeg_decode_pixels,
            back=1e3 * self.costs.seconds(self.cloud),
        )
        joules = self._joules(latency, sent)
        return Placement(
            kind="jpeg", label="jpeg", latency=latency, bytes=jpeg_bytes, sent=sent, down=down, joules=joules
        )

    def cut(self, cut: Cut, bits: tuple[float, ...] | str | None, levels: Sequence[int], ranked_by: int) -> PlannedCut:
        estimated = 1e3 * self.fronts.scale * self.costs.seconds_before(cut.position, self.device)
        front = self.fronts.measured.get(cut.position, estimated)
        back = 1e3 * self.costs.seconds_after(cut.position, self.cloud)
        rates: tuple[Rate, ...] = ()
        option = None
        down = float(total(come_down(self.outputs, cut)))
        if isinstance(bits, tuple):
            specs = [TensorSpec(name="x", shape=shape) for shape in cut.shapes]
            chunks = sum(-(-s.planes[0] // planes_per_chunk(s, whole_images=True)) for s in specs)
            heads = side_information(chunks, compact=len(specs) == 1)
            rates = tuple(
                Rate(levels=n, bits_per_element=b / cut.elements, bytes=heads + b / 8)
                for n, b in zip(levels, bits, strict=True)
            )
            if self.link is not None:
                frame = next(r.bytes for r in rates if r.levels == ranked_by)
                sent = frame + HEAD_BYTES
                latency = Latency(
                    front=front,
                    encode=1e3 * cut.elements / self.device.encode_elements,
                    link=self.link.milliseconds(sent, down),
                    decode=1e3 * cut.elements / self.cloud.decode_elements,
                    back=back,
                )
                joules = self._joules(latency, sent)
                option = Placement(
                    kind="cut", label=cut.label, latency=latency, bytes=frame, sent=sent, down=down, joules=joules
                )
        return PlannedCut(
            cut=cut,
            macs_share=self.costs.macs_before(cut.position) / max(self.costs.macs, 1),
            parameters_share=self.costs.parameters_before(cut.position) / max(self.costs.parameters, 1),
            front_ms=front,
            back_ms=back,
            measured=cut.position in self.fronts.measured,
            down=down,
            rates=rates,
            option=option,
            reason=bits if isinstance(bits, str) else None,
        )

    def _joules(self, latency: Latency, sent: float) -> float | None:
        """Energy for computing and sending; None if the profile has no power. Waiting does not count."""
        if self.device.compute_watts is None:
            return None
        radio = (self.device.radio_joules_per_byte or 0.0) * sent
        return self.device.compute_watts * 1e-3 * (latency.front + latency.encode) + radio
