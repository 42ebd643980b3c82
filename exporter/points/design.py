"""The quantizers of the operating points; with several tensors at the cut, how the bits are shared among them.

One tensor is quantized while the others stay exact, and the back half shows what that does to the answers (damage.py);
sharing.py divides the bits by that. The division is found with uniform quantizers; an entropy-constrained point takes
it over, with every tensor's rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from splitwire.codec.design import (
    design_entropy_constrained,
    design_operating_point,
)
from splitwire.codec.design.rate import MAX_ECSQ_LEVELS
from splitwire.codec.errors import ExportError
from splitwire.codec.profile import OperatingPoint, TensorPoint, TensorSpec
from splitwire.codec.progress import ProgressFn
from splitwire.exporter.network.inference import Float32Array, Graph

from .budget import DesignedPoint, design_for_budget
from .measure import DamageOf, Quantizers, alone, is_large, measure_damage, some
from .ranges import search_ranges
from .sharing import Cost, share_bits
from .tensors import CalibratedTensor, specs_of

FINER = (12, 16)
"""Numbers of levels tried beyond those asked for, so that a sensitive tensor can have more than the others."""

INPUTS = 16
"""Inputs that the sensitivity is measured on: tensors differ by factors, not by percents."""

SHARE_LARGE, FEWEST_LARGE = 4, 2
"""Where the tensors at the cut are so large that the back half takes a second per input (measure.LARGE), damage is
measured on one in SHARE_LARGE of the usual inputs, and on at least FEWEST_LARGE."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What an operating point is asked to be.

    "n": uniform quantizers with `value` levels. "a": those over the multiple of their range that does the least damage
    to the answers (ranges.py). "e": the entropy-constrained ones of the rate of "n". "r": the uniform ones that do the
    least damage at `value` bits per element (budget.py).
    """

    value: float
    family: Literal["n", "a", "e", "r"] = "n"

    @property
    def name(self) -> str:
        """Of the operating point, and in reports: "n4", "a4", "e4" or "r0.4"."""
        return f"{self.family}{self.value:g}"


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """One tensor with one quantizer that the operating points were chosen from.

    bits: per image, expected. damage: of the answers, if only this tensor is quantized; None where the bits
    are not shared by it: for a single tensor, and for what is not a uniform quantizer with N levels.
    """

    kind: Kind
    point: TensorPoint
    bits: float
    damage: float | None = None


def design_points(
    front: Graph,
    back: Graph,
    tensors: Sequence[CalibratedTensor],
    kept: Sequence[Float32Array],
    kinds: Sequence[Kind],
    report: ProgressFn,
) -> tuple[list[OperatingPoint], list[list[QuantizedTensor]]]:
    """The operating points, and per tensor the options that they were put together from.

    kinds: of the points. With several tensors, point "n<N>" spends no more bits than N levels in every tensor would, on
    the levels per tensor that do the least damage together; "e<N>" spends those of "n<N>", in every tensor as many,
    and "a<N>" has its levels. "r<bits>" spends at most that many bits per element (budget.py).
    Raises ExportError for a tensor that no quantizer can be made for.
    """
    specs = specs_of(tensors)

    def damage_of(choices: Sequence[Quantizers], stage: str, inputs: int) -> list[float]:
        used = some(kept, max(FEWEST_LARGE, inputs // SHARE_LARGE) if is_large(specs) else inputs)
        answers = len(used) * len(choices)
        damages = measure_damage(front, back, choices, used, lambda done: report(stage, done, answers))
        return [damage.total for damage in damages]

    budgets = [kind for kind in kinds if kind.family == "r"]
    shared = len(specs) > 1
    wanted = {int(kind.value) for kind in kinds if kind not in budgets}
    if shared and wanted:
        wanted |= set(FINER)
    levels = sorted(wanted)
    options: list[list[QuantizedTensor]] = []
    if levels:
        report("Design quantizers", 0, len(specs) * len(levels))
    for i, tensor in enumerate(tensors):
        options.append([])
        for k, n in enumerate(levels):
            options[i].append(_design(tensor, n))
            report("Design quantizers", i * len(levels) + k + 1, len(specs) * len(levels))
    if shared and wanted:
        options = _with_damage(damage_of, options)
    taken: dict[Kind, list[QuantizedTensor]] = {}
    for kind in kinds:
        if kind not in budgets:
            uniform = [levels.index(int(kind.value))] * len(specs)
            chosen = share_bits(_costs(options), uniform) if shared else uniform
            taken[kind] = [own[k] for own, k in zip(options, chosen, strict=True)]
    refined = _refined({k: row for k, row in taken.items() if k.family == "e"}, tensors, report)
    taken |= refined
    searched = [kind for kind in taken if kind.family == "a"]
    if searched:
        numbers = [[int(option.kind.value) for option in taken[kind]] for kind in searched]
        taken |= _as_options(searched, search_ranges(numbers, tensors, damage_of), specs)
    if budgets:
        designed_rows = design_for_budget(tensors, [kind.value for kind in budgets], damage_of, report)
        taken |= _as_options(budgets, designed_rows, specs)
    designed = [
        OperatingPoint(
            name=kind.name,
            tensors=tuple(o.point for o in taken[kind]),
            bits_per_element=sum(o.bits for o in taken[kind]) / sum(s.elements for s in specs),
        )
        for kind in kinds
    ]
    special = [row for kind, row in taken.items() if kind.family != "n"]
    return designed, [[*own, *_distinct(row[i] for row in special)] for i, own in enumerate(options)]


def _as_options(
    kinds: Sequence[Kind], rows: Sequence[Sequence[DesignedPoint]], specs: Sequence[TensorSpec]
) -> dict[Kind, list[QuantizedTensor]]:
    """Per kind the options of a row, one per tensor."""
    return {
        kind: [
            QuantizedTensor(kind=kind, point=p, bits=bits * spec.elements)
            for spec, (p, bits) in zip(specs, row, strict=True)
        ]
        for kind, row in zip(kinds, rows, strict=True)
    }


def _costs(options: Sequence[Sequence[QuantizedTensor]]) -> list[list[Cost]]:
    return [[Cost(o.bits, o.damage) for o in own if o.damage is not None] for own in options]


def _distinct(options: Iterable[QuantizedTensor]) -> Iterable[QuantizedTensor]:
    """One of each kind: several points may share an entropy-constrained quantizer."""
    return {option.kind: option for option in options}.values()


def _design(tensor: CalibratedTensor, levels: int, like: QuantizedTensor | None = None) -> QuantizedTensor:
    """A uniform quantizer with N = `levels`; or, with `like`, an entropy-constrained one at the rate of `like`."""
    spec, slope, taps = tensor.spec, tensor.slope, tensor.taps
    kind = Kind(value=levels, family="n" if like is None else "e")
    try:
        if like is None:
            point, bits = design_operating_point(levels=levels, statistics=tensor.statistics, slope=slope, taps=taps)
        else:
            rate, most = like.bits / spec.elements, max(MAX_ECSQ_LEVELS, levels)
            point, bits = design_entropy_constrained(
                bits=rate, statistics=tensor.statistics, slope=slope, max_levels=most, taps=taps
            )
    except ExportError as e:
        raise ExportError(f"tensor {spec.name!r}: {e}") from e
    except ValueError as e:
        raise ExportError(f"no quantizer {kind.name} can be made for tensor {spec.name!r}: {e}") from e
    return QuantizedTensor(kind=kind, point=point, bits=bits * spec.elements)


def _refined(
    rows: Mapping[Kind, Sequence[QuantizedTensor]],
    tensors: Sequence[CalibratedTensor],
    report: ProgressFn,
) -> dict[Kind, list[QuantizedTensor]]:
    """The entropy-constrained quantizers for the uniform ones of `rows`, each made once."""
    needed = {(i, option.kind.value): option for row in rows.values() for i, option in enumerate(row)}
    made: dict[tuple[int, float], QuantizedTensor] = {}
    for done, ((i, levels), like) in enumerate(sorted(needed.items(), key=lambda item: item[0])):
        made[i, levels] = _design(tensors[i], int(levels), like)
        report("Design entropy-constrained", done + 1, len(needed))
    return {kind: [made[i, option.kind.value] for i, option in enumerate(row)] for kind, row in rows.items()}


def _with_damage(damage_of: DamageOf, options: list[list[QuantizedTensor]]) -> list[list[QuantizedTensor]]:
    """The options with their damage measured, each alone."""
    choices = alone([[option.point.quantizer for option in own] for own in options])
    damages = iter(damage_of(choices, "Measure sensitivity", INPUTS))
    return [[replace(o, damage=next(damages)) for o in own] for own in options]
