"""Design the quantizers of the operating points, and share the bits among several tensors at the cut.

To find the sensitivity of a tensor, only this tensor is quantized, and the back half shows the damage to the outputs
(damage.py). sharing.py divides the bits accordingly. The division is found with uniform quantizers. An
entropy-constrained point takes the same rate for each tensor.
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
from splitwire.codec.shared.progress import ProgressFn
from splitwire.exporter.network.inference import Float32Array, Graph

from .budget import DesignedPoint, design_for_budget
from .measure import DamageOf, Quantizers, is_large, measure_damage, one_at_a_time, subsample
from .ranges import search_ranges
from .sharing import Cost, share_bits
from .tensors import CalibratedTensor, specs_of

FINER = (12, 16)
"""Additional numbers of levels, so that a sensitive tensor can have more levels than the others."""

INPUTS = 16
"""Inputs for the measurement of the sensitivity. Few are enough: tensors differ by factors."""

SHARE_LARGE, FEWEST_LARGE = 4, 2
"""If the tensors at the cut are large, the back half takes a second per input (measure.LARGE). Then the damage is
measured on one in SHARE_LARGE of the usual inputs, and on at least FEWEST_LARGE."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The requested kind of an operating point.

    "n": uniform quantizers with `value` levels. "a": the same, over the multiple of the range with the least output
    distortion (ranges.py). "e": entropy-constrained quantizers at the rate of "n". "r": uniform quantizers with the
    least output distortion at `value` bits per element (budget.py).
    """

    value: float
    family: Literal["n", "a", "e", "r"] = "n"

    @property
    def name(self) -> str:
        """The name of the operating point: "n4", "a4", "e4" or "r0.4"."""
        return f"{self.family}{self.value:g}"


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """One of the quantizers of a tensor that the operating points are chosen from.

    bits: expected, per image. damage: to the outputs, if only this tensor is quantized. It is None if no bits are
    shared by it: for a single tensor, and for kinds other than "n".
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
    """The operating points, and per tensor the quantizers that they were chosen from.

    kinds: of the points. With several tensors, each tensor of "n<N>" has the number of levels that gives the least
    damage in sum, for no more bits than N levels in every tensor need. "e<N>" has the bits of "n<N>" in each tensor,
    and "a<N>" has its levels. "r<bits>" has at most that many bits per element (budget.py).
    Raises ExportError if no quantizer can be made for a tensor.
    """
    specs = specs_of(tensors)

    def damage_of(choices: Sequence[Quantizers], stage: str, inputs: int) -> list[float]:
        used = subsample(kept, max(FEWEST_LARGE, inputs // SHARE_LARGE) if is_large(specs) else inputs)
        answers = len(used) * len(choices)
        damages = measure_damage(front, back, choices, used, lambda done: report(stage, done, answers))
        return [damage.total for damage in damages]

    budgets = [kind for kind in kinds if kind.family == "r"]
    shared = len(specs) > 1
    numbers_of_levels = {int(kind.value) for kind in kinds if kind not in budgets}
    if shared and numbers_of_levels:
        numbers_of_levels |= set(FINER)
    levels = sorted(numbers_of_levels)
    options: list[list[QuantizedTensor]] = []
    if levels:
        report("Design quantizers", 0, len(specs) * len(levels))
    for i, tensor in enumerate(tensors):
        options.append([])
        for k, n in enumerate(levels):
            options[i].append(_design(tensor, n))
            report("Design quantizers", i * len(levels) + k + 1, len(specs) * len(levels))
    if shared and numbers_of_levels:
        options = _with_damage(damage_of, options)
    rows: dict[Kind, list[QuantizedTensor]] = {}
    for kind in kinds:
        if kind not in budgets:
            uniform = [levels.index(int(kind.value))] * len(specs)
            chosen = share_bits(_costs(options), uniform) if shared else uniform
            rows[kind] = [of_tensor[k] for of_tensor, k in zip(options, chosen, strict=True)]
    refined = _refined({k: row for k, row in rows.items() if k.family == "e"}, tensors, report)
    rows |= refined
    searched = [kind for kind in rows if kind.family == "a"]
    if searched:
        numbers = [[int(option.kind.value) for option in rows[kind]] for kind in searched]
        rows |= _as_options(searched, search_ranges(numbers, tensors, damage_of), specs)
    if budgets:
        designed_rows = design_for_budget(tensors, [kind.value for kind in budgets], damage_of, report)
        rows |= _as_options(budgets, designed_rows, specs)
    designed = [
        OperatingPoint(
            name=kind.name,
            tensors=tuple(o.point for o in rows[kind]),
            bits_per_element=sum(o.bits for o in rows[kind]) / sum(s.elements for s in specs),
        )
        for kind in kinds
    ]
    special = [row for kind, row in rows.items() if kind.family != "n"]
    return designed, [[*of_tensor, *_distinct(row[i] for row in special)] for i, of_tensor in enumerate(options)]


def _as_options(
    kinds: Sequence[Kind], rows: Sequence[Sequence[DesignedPoint]], specs: Sequence[TensorSpec]
) -> dict[Kind, list[QuantizedTensor]]:
    """Per kind: the designed points of a row as options, one per tensor."""
    return {
        kind: [
            QuantizedTensor(kind=kind, point=p, bits=bits * spec.elements)
            for spec, (p, bits) in zip(specs, row, strict=True)
        ]
        for kind, row in zip(kinds, rows, strict=True)
    }


def _costs(options: Sequence[Sequence[QuantizedTensor]]) -> list[list[Cost]]:
    return [[Cost(o.bits, o.damage) for o in of_tensor if o.damage is not None] for of_tensor in options]


def _distinct(options: Iterable[QuantizedTensor]) -> Iterable[QuantizedTensor]:
    """One option of each kind: several points may share an entropy-constrained quantizer."""
    return {option.kind: option for option in options}.values()


def _design(tensor: CalibratedTensor, levels: int, like: QuantizedTensor | None = None) -> QuantizedTensor:
    """A uniform quantizer with N = `levels`; if `like` is given, an entropy-constrained one at the rate of `like`."""
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
    """Entropy-constrained quantizers in place of the uniform ones of `rows`; each is designed once."""
    needed = {(i, option.kind.value): option for row in rows.values() for i, option in enumerate(row)}
    designed: dict[tuple[int, float], QuantizedTensor] = {}
    for done, ((i, levels), like) in enumerate(sorted(needed.items(), key=lambda item: item[0])):
        designed[i, levels] = _design(tensors[i], int(levels), like)
        report("Design entropy-constrained", done + 1, len(needed))
    return {kind: [designed[i, option.kind.value] for i, option in enumerate(row)] for kind, row in rows.items()}


def _with_damage(damage_of: DamageOf, options: list[list[QuantizedTensor]]) -> list[list[QuantizedTensor]]:
    """The options with their damage, each measured with only its tensor quantized."""
    choices = one_at_a_time([[option.point.quantizer for option in of_tensor] for of_tensor in options])
    damages = iter(damage_of(choices, "Measure sensitivity", INPUTS))
    return [[replace(o, damage=next(damages)) for o in of_tensor] for of_tensor in options]
