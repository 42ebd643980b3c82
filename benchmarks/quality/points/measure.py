"""Measures the operating points of schemes at a cut on held-out inputs, by real frames."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from msgspec import UNSET

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.profile import CodecProfile, OperatingPoint, TensorSpec
from splitwire.codec.wire.frame import COMPACT_IDS
from splitwire.evaluation.contenders import PAPER as PAPER_FAMILIES
from splitwire.evaluation.contenders import feature_contenders
from splitwire.evaluation.contenders.protocol import FeatureContender
from splitwire.evaluation.measuring.stages import machine
from splitwire.exporter.cutting.cuts import find_cut
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.cutting.split import Halves, split
from splitwire.exporter.export import export_pair
from splitwire.exporter.network.inference import Array, Graph
from splitwire.exporter.network.source import from_file, from_module
from splitwire.exporter.options import CodecOptions, NetworkOptions
from splitwire.exporter.pair.precision_choice import milliseconds
from splitwire.exporter.points.damage import Damage, Task, judged_as
from splitwire.exporter.transform.design import DesignedTransforms, RefineOptions, design_transform
from splitwire.exporter.transform.fold import coefficients_name, fold_back, fold_front

from .records import PAPER, TODAY, TRANSFORM, Cost, Record, Row
from .subjects import Material, Subject

LEVELS: tuple[int | str, ...] = (
    2, 3, 4, 6, 8, 16, 32, "a2", "a3", "a4", "a6", "a8", "a16", "e4", "e8",
    "r0.05", "r0.1", "r0.2", "r0.4", "r0.6", "r0.8", "r1.2", "r1.6", "r2.4", "r3.2",
)  # fmt: skip
"""Points n, a and e are the paper's; points r have the paper's quantizer over ranges of splitwire, so that they are
today's only (contenders/paper.py)."""
BATCH = 20
FRAME_ID = COMPACT_IDS - 1
"""As large as an EdgeSession's."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A network in two halves, with what the whole network answers to the test inputs.

    front, back: the halves in ONNX Runtime. batches: test inputs. expected: the outputs of the whole network to each
    batch. answers: the judge's.
    """

    key: str
    layer: str
    material: Material
    halves: Halves
    front: Graph
    back: Graph
    shape: tuple[int, ...]
    batches: list[Array]
    expected: list[list[Array]]
    answers: list[Any]
    task: Task

    @classmethod
    def of(cls, key: str, subject: Subject) -> Cut:
        """Load the network and its inputs, cut it, and run the whole network. Raises UsageError for what is not
        there."""
        material = subject.open()
        network, shape = material.network, (1, *material.test.shape[1:])
        source = from_module(network, shape) if isinstance(network, torch.nn.Module) else from_file(network, shape)
        halves = split(source.model, find_cut(Names.of(source), subject.layer)[0].tensors)
        front, back = Graph.of(halves.front, what="front half"), Graph.of(halves.back, what="back half")
        whole = Graph.of(source.model, what="network")
        size = whole.batch or BATCH
        batches: list[Array] = [material.test[i : i + size] for i in range(0, len(material.test), size)]
        expected = [whole.run(x) for x in batches]
        answers = [a for y in expected for a in material.judge.answers(dict(zip(whole.outputs, y, strict=True)))]
        return cls(
            key=key, layer=subject.layer, material=material, halves=halves, front=front, back=back,
            shape=front.run(batches[0])[0].shape[1:], batches=batches, expected=expected, answers=answers,
            task=judged_as(whole.outputs, expected[0]),
        )  # fmt: skip

    def record(self, scheme: str, rows: Sequence[Row], began: float, cost: Cost | None = None) -> Record:
        """began: time.monotonic() before the design."""
        judge = self.material.judge
        return Record(
            cut=self.key, scheme=scheme, shape=self.shape, task=self.task, calibration=len(self.material.calibration),
            test=len(self.material.test), score_name=judge.score_name, whole=judge.score(self.answers),
            rows=tuple(rows), seconds=round(time.monotonic() - began, 1), machine=machine(), cost=cost,
        )  # fmt: skip


def scalar(cut: Cut) -> list[Record]:
    """Today's points and the paper's. The same points share the features that the back half receives."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        profile = export_pair(
            cut.material.network, cut=cut.layer, calibration=cut.material.calibration, out=out,
            network=NetworkOptions(input_shape=(1, *cut.material.test.shape[1:])),
            codec=CodecOptions(levels=LEVELS),
        ).profile  # fmt: skip
    # Today's points are those of version 0.1, which sends short frames.
    profile = msgspec.structs.replace(profile, frames=UNSET)
    papers = {
        c.setting: c
        for c in feature_contenders(profile, families=PAPER_FAMILIES, detections=cut.task == "detections")
    }  # fmt: skip
    today, paper = [], []
    for row, size in measured(cut, cut.front, cut.back, profile, papers):
        today.append(row)
        if size is not None:
            paper.append(Row(op=row.op, bytes=size, damage=row.damage, agreement=row.agreement, score=row.score))
    return [cut.record(TODAY, today, began), cut.record(PAPER, paper, began)]


def designed_transform(cut: Cut, steps: int | None) -> DesignedTransforms:
    """The transform of a cut's only tensor. steps: of refinement; None for as many as an export makes."""
    tensor = cut.halves.back.graph.inputs[0].name or ""
    return design_transform(
        cut.front, cut.back, cut.halves.back, [TensorSpec(name=tensor, shape=cut.shape)],
        list(cut.material.calibration), RefineOptions(steps=steps), lambda *_: None,
    )  # fmt: skip


def transformed(cut: Cut, steps: int | None, *, times: bool = False) -> Record:
    """The ladder of a transform. steps: of refinement; None for as many as an export makes."""
    began, processor = time.monotonic(), time.process_time()
    designed = designed_transform(cut, steps)
    (design,) = designed.designs
    seconds = time.process_time() - processor
    spec = TensorSpec(
        name=coefficients_name(design.transform.features), shape=design.shape, mean=0.0, transform=design.transform
    )
    profile = CodecProfile(
        model=cut.key, cut=cut.key, tensors=(spec,), default_op=designed.points[0].name, front_sha256="",
        back_sha256="", frames="compact",
        operating_points=tuple(
            OperatingPoint(
                name=p.name, tensors=(), steps=(p.step,), bits_per_element=p.bits / design.layout.elements
            ) for p in designed.points
        ),
    )  # fmt: skip
    halves = fold_front(cut.halves.front, designed.designs), fold_back(cut.halves.back, designed.designs)
    front, back = Graph.of(halves[0], what="front half"), Graph.of(halves[1], what="back half")
    rows = [row for row, _ in measured(cut, front, back, profile, {})]
    return cut.record(scheme_name(steps), rows, began, _cost(cut, (front, back) if times else None, designed, seconds))


def scheme_name(steps: int | None) -> str:
    """The scheme of a transform with this many steps of refinement."""
    return TRANSFORM if steps is None else f"{TRANSFORM}, {steps} steps"


def _cost(cut: Cut, folded: tuple[Graph, Graph] | None, designed: DesignedTransforms, seconds: float) -> Cost:
    """folded: the halves with the transform, to be timed."""
    (design,) = designed.designs
    cost = Cost(
        coefficients=design.sent, design_s=round(seconds, 1), gain=designed.refined.gain if designed.refined else 0.0
    )
    if folded is None:
        return cost
    front, back = folded
    x = cut.batches[0][:1]
    fronts = milliseconds([cut.front, front], [x])
    backs = [milliseconds([graph], sender.run(x)[:1])[0] for graph, sender in ((cut.back, cut.front), (back, front))]
    return msgspec.structs.replace(cost, front_ms=(fronts[0], fronts[1]), back_ms=(backs[0], backs[1]))


def measured(
    cut: Cut, front: Graph, back: Graph, profile: CodecProfile, others: Mapping[str, FeatureContender]
) -> list[tuple[Row, float | None]]:
    """Every operating point of a pair. others: by the name of a point, a coder that decodes to the same features; its
    mean bytes stand beside the row."""
    codec, judge = FeatureCodec(profile), cut.material.judge
    sent = [np.ascontiguousarray(front.run(x)[0], np.float32) for x in cut.batches]
    count, found = len(cut.material.test), []
    for point in profile.operating_points:
        damage, size, other_size, answers = Damage(back.outputs), 0, 0, []
        other = others.get(point.name)
        for features, expected in zip(sent, cut.expected, strict=True):
            frames = [codec.encode([z[None]], op=point.name, frame_id=FRAME_ID) for z in features]
            size += sum(map(len, frames))
            if other is not None:
                other_size += sum(other.encode((z[None],)).bytes for z in features)
            outputs = back.run(np.concatenate([codec.decode(frame).tensors[0] for frame in frames]))
            damage.add(expected, outputs, len(features))
            answers += judge.answers(dict(zip(back.outputs, outputs, strict=True)))
        agreement = judge.agreement(cut.answers, answers)
        row = Row(
            op=point.name, bytes=size / count, damage=damage.total,
            agreement=(damage.agreement or 0.0) if agreement is None else agreement, score=judge.score(answers),
        )  # fmt: skip
        found.append((row, None if other is None else other_size / count))
    return found
