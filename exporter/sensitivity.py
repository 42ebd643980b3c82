"""The quantizers of the operating points; with several tensors at the cut, how many levels each one gets.

One tensor is quantized while the others stay exact, and the back half shows what that does to the answers (damage.py).
Damages of small independent changes nearly add up, so the best division of a number of bits is where every tensor
would buy the same with its next bit: steps along the lower convex hulls of (bits, damage), the steepest first.
Source: Shoham and Gersho 1988, bit allocation for an arbitrary set of quantizers.

The division is found with uniform quantizers; an entropy-constrained point takes it over, with every tensor's rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from splitwire.codec.design import FeatureStatistics, design_entropy_constrained, design_operating_point
from splitwire.codec.design.point import MAX_LEVELS
from splitwire.codec.errors import ExportError
from splitwire.codec.profile import OperatingPoint, TensorPoint, TensorSpec

from .calibrate import Progress
from .inference import Float32Array, Graph
from .measure import Quantizers, measure_damage

FINER = (12, 16)
"""Numbers of levels tried beyond those asked for, so that a sensitive tensor can have more than the others."""

INPUTS = 16
"""Inputs that the sensitivity is measured on: tensors differ by factors, not by percents."""


@dataclass(frozen=True, kw_only=True, order=True)
class Kind:
    """Of quantizer: uniform with `levels` levels; or, if `constrained`, the entropy-constrained one of its rate."""

    levels: int
    constrained: bool = False

    @property
    def name(self) -> str:
        """Of the operating point, and in reports: "n4" or "e4"."""
        return f"{'e' if self.constrained else 'n'}{self.levels}"


@dataclass(frozen=True, kw_only=True)
class Option:
    """One tensor with a quantizer of this kind.

    bits: per image, expected. damage: of the answers, if only this tensor is quantized (damage.py); None for a single
    tensor, where there is nothing to share, and for an entropy-constrained quantizer, which comes after the sharing.
    """

    kind: Kind
    point: TensorPoint
    bits: float
    damage: float | None = None


def design_points(
    front: Graph,
    back: Graph,
    specs: Sequence[TensorSpec],
    statistics: Sequence[FeatureStatistics],
    slopes: Sequence[float | None],
    kept: Sequence[Float32Array],
    kinds: Sequence[Kind],
    report: Progress,
) -> tuple[list[OperatingPoint], list[list[Option]]]:
    """The operating points, and per tensor the options that they were put together from.

    kinds: of the points. With several tensors, point "n<N>" spends no more bits than N levels in every tensor would, on
    the levels per tensor that do the least damage together; "e<N>" spends those of "n<N>", in every tensor as many.
    Raises ExportError for a tensor that no quantizer can be made for.
    """
    wanted = sorted({*(kind.levels for kind in kinds), *(FINER if len(specs) > 1 else ())})
    options: list[list[Option]] = []
    for i, (spec, values, slope) in enumerate(zip(specs, statistics, slopes, strict=True)):
        options.append([])
        for k, n in enumerate(wanted):
            options[i].append(_design(spec, values, slope, n))
            report("Design quantizers", i * len(wanted) + k + 1, len(specs) * len(wanted))
    if len(specs) > 1:
        options = _with_damage(front, back, options, kept, report)
    chosen: list[list[Option]] = []
    for kind in kinds:
        uniform = [wanted.index(kind.levels)] * len(specs)
        shared = share_bits(options, uniform) if len(specs) > 1 else uniform
        chosen.append([own[k] for own, k in zip(options, shared, strict=True)])
    constrained = [kind.constrained for kind in kinds]
    refined = _refined(
        [row for row, c in zip(chosen, constrained, strict=True) if c], specs, statistics, slopes, report
    )
    designed = []
    for kind, row in zip(kinds, chosen, strict=True):
        taken = [found[o.kind.levels] for found, o in zip(refined, row, strict=True)] if kind.constrained else row
        designed.append(
            OperatingPoint(
                name=kind.name,
                tensors=tuple(o.point for o in taken),
                bits_per_element=sum(o.bits for o in taken) / sum(s.elements for s in specs),
            )
        )
    return designed, [[*own, *found.values()] for own, found in zip(options, refined, strict=True)]


def share_bits(options: Sequence[Sequence[Option]], start: Sequence[int]) -> list[int]:
    """Which option each tensor gets: the least damage in sum that costs no more bits than the options `start` do.

    Greedy along the convex hulls, so at most one step short of the best; where that is worse than `start` itself, it is
    `start`. Every option has a damage.
    """
    budget = sum(own[k].bits for own, k in zip(options, start, strict=True))
    hulls = [_hull(own) for own in options]
    chosen = [hull[0] for hull in hulls]
    spent = sum(own[k].bits for own, k in zip(options, chosen, strict=True))
    if spent > budget:
        return list(start)
    steps = [(_slope(options[i][a], options[i][b]), i, b) for i, hull in enumerate(hulls) for a, b in pairwise(hull)]
    blocked: set[int] = set()
    for _, i, b in sorted(steps, key=lambda step: -step[0]):
        extra = options[i][b].bits - options[i][chosen[i]].bits
        if i in blocked or spent + extra > budget:
            blocked.add(i)  # its later steps build on this one
            continue
        chosen[i], spent = b, spent + extra
    return chosen if _total(options, chosen) < _total(options, start) else list(start)


def _hull(own: Sequence[Option]) -> list[int]:
    """Indices of the options on the lower convex hull of (bits, damage), from the cheapest to the least damage."""
    hull: list[int] = []
    for k in sorted(range(len(own)), key=lambda k: (own[k].bits, own[k].damage)):
        if hull and _damage(own[k]) >= _damage(own[hull[-1]]):
            continue
        while len(hull) > 1 and _slope(own[hull[-1]], own[k]) >= _slope(own[hull[-2]], own[hull[-1]]):
            hull.pop()
        hull.append(k)
    return hull


def _slope(a: Option, b: Option) -> float:
    """Damage that is saved per bit on the way from a to b."""
    return (_damage(a) - _damage(b)) / max(b.bits - a.bits, 1e-9)


def _total(options: Sequence[Sequence[Option]], chosen: Sequence[int]) -> float:
    return sum(_damage(own[k]) for own, k in zip(options, chosen, strict=True))


def _damage(option: Option) -> float:
    if option.damage is None:
        raise ValueError("the option's damage was not measured")
    return option.damage


def _design(
    spec: TensorSpec, values: FeatureStatistics, slope: float | None, levels: int, like: Option | None = None
) -> Option:
    """Uniform; or entropy-constrained, at the rate of `like`, the uniform one with so many levels."""
    kind = Kind(levels=levels, constrained=like is not None)
    try:
        if like is None:
            point, bits = design_operating_point(levels=levels, statistics=values, slope=slope)
        else:
            rate, most = like.bits / spec.elements, max(MAX_LEVELS, levels)
            point, bits = design_entropy_constrained(bits=rate, statistics=values, slope=slope, max_levels=most)
    except ExportError as e:
        raise ExportError(f"tensor {spec.name!r}: {e}") from e
    except ValueError as e:
        raise ExportError(f"no quantizer {kind.name} can be made for tensor {spec.name!r}: {e}") from e
    return Option(kind=kind, point=point, bits=bits * spec.elements)


def _refined(
    rows: Sequence[Sequence[Option]],
    specs: Sequence[TensorSpec],
    statistics: Sequence[FeatureStatistics],
    slopes: Sequence[float | None],
    report: Progress,
) -> list[dict[int, Option]]:
    """Per tensor, by the levels of the uniform quantizer: the entropy-constrained ones for the points `rows`."""
    refined: list[dict[int, Option]] = [{} for _ in specs]
    needed = {(i, option.kind.levels): option for row in rows for i, option in enumerate(row)}
    for done, ((i, levels), like) in enumerate(sorted(needed.items(), key=lambda item: item[0])):
        refined[i][levels] = _design(specs[i], statistics[i], slopes[i], levels, like)
        report("Design entropy-constrained", done + 1, len(needed))
    return refined


def _with_damage(
    front: Graph, back: Graph, options: list[list[Option]], kept: Sequence[Float32Array], report: Progress
) -> list[list[Option]]:
    """The options with their damage measured, each alone."""
    choices: list[Quantizers] = [
        [option.point.quantizer if i == j else None for j in range(len(options))]
        for i, own in enumerate(options)
        for option in own
    ]
    some = kept[:INPUTS]
    damages = iter(
        measure_damage(front, back, choices, some, lambda done: report("Measure sensitivity", done, len(some)))
    )
    return [[replace(o, damage=next(damages).total) for o in own] for own in options]
