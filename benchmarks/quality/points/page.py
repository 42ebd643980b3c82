"""The tables of the benchmark: for the terminal, and docs/results/transform.md from the same records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from splitwire.codec.wire.frame import SHORT_SIZE, side_information

from .equal import MAX_LOSS, Comparison, geometric_mean
from .records import PAPER, TODAY, TRANSFORM, Cost, Record
from .subjects import SUBJECTS, Subject

UNITS = {"classes": "KL, nats", "detections": "lost overlap", "values": "relative squared error"}
"""Task → its damage."""
COMPARED = (TRANSFORM, TODAY, PAPER)

Line = tuple[str, ...]


def grouped(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Cut → its records, in the order of SUBJECTS."""
    return {key: of for key in SUBJECTS if (of := [r for r in records if r.cut == key])}


def compared(records: Sequence[Record]) -> list[Comparison]:
    """A comparison of each measured cut."""
    return [Comparison.of(of, SUBJECTS[key].damages) for key, of in grouped(records).items()]


def number(value: float | None, pattern: str = ",.0f") -> str:
    """A figure, or a dash."""
    return "–" if value is None else format(value, pattern)


def point_lines(records: Sequence[Record]) -> list[Line]:
    """Cut, scheme, point, bytes, damage, agreement, score: a line for each point."""
    return [
        (r.cut, r.scheme, p.op, f"{p.bytes:,.0f}", f"{p.damage:.4f}", f"{p.agreement:.1%}", number(p.score, ".1%"))
        for of in grouped(records).values()
        for r in of
        for p in r.rows
    ]


POINT_HEADS = ("cut", "scheme", "point", "bytes", "damage", "agreement", "score")


def equal_lines(comparisons: Sequence[Comparison]) -> list[Line]:
    """Cut, scheme, bytes at each damage (which stands before them), bytes at MAX_LOSS: a line for each scheme."""
    return [
        (
            c.cut, scheme, *(f"{d:g}: {number(b)}" for d, b in zip(c.damages, sizes, strict=True)),
            number(c.within[scheme]),
        )
        for c in comparisons
        for scheme, sizes in c.bytes.items()
    ]  # fmt: skip


def ratio_lines(comparisons: Sequence[Comparison], scheme: str) -> list[Line]:
    """Cut, and the ratios of `scheme` to today's points and to the paper's: mean over the damages, and at MAX_LOSS; the
    last line has geometric means over the cuts."""
    readings: list[Callable[[Comparison], float | None]] = [
        lambda c: c.ratio(scheme, TODAY),
        lambda c: c.ratio_within(scheme, TODAY),
        lambda c: c.ratio(scheme, PAPER),
        lambda c: c.ratio_within(scheme, PAPER),
    ]
    measured = [c for c in comparisons if scheme in c.bytes and len(c.bytes) > 1]
    lines = [(c.cut, *(number(read(c), ".2f") for read in readings)) for c in measured]
    means = (number(geometric_mean(read(c) for c in measured), ".3f") for read in readings)
    return [*lines, ("geometric mean", *means)] if measured else []


RATIO_HEADS = ("cut", "of today's", f"at {MAX_LOSS:.0%}", "of the paper's", f"at {MAX_LOSS:.0%}")


def cost_lines(records: Sequence[Record]) -> list[Line]:
    """A line for each transform."""
    return [_cost_line(r, r.cost) for of in grouped(records).values() for r in of if r.cost is not None]


def _cost_line(record: Record, cost: Cost) -> Line:
    times = (_growth(cost.front_ms), _growth(cost.back_ms))
    return (
        record.cut, f"{elements(record.shape):,}", f"{cost.coefficients:,}", f"{cost.design_s:.0f}",
        f"{cost.gain:+.2f}", *times,
    )  # fmt: skip


def _growth(times: tuple[float, float] | None) -> str:
    """Milliseconds without the transform, and by how much more it takes with it."""
    return "–" if times is None else f"{times[0]:.2f}, {times[1] / times[0] - 1:+.1%}"


COST_HEADS = ("cut", "elements", "coefficients", "design, CPU s", "gain", "front, ms", "back, ms")


def elements(shape: Sequence[int]) -> int:
    """Number of elements of a tensor."""
    product = 1
    for n in shape:
        product *= n
    return product


def show(records: Sequence[Record], console: Console) -> None:
    """Print all tables."""
    comparisons = compared(records)
    schemes = [s for s in dict.fromkeys(r.scheme for r in records) if s.startswith(TRANSFORM)]
    console.print(_table("Operating points on held-out inputs, real frames", POINT_HEADS, point_lines(records)))
    heads = ("cut", "scheme", "damage: bytes", "damage: bytes", "damage: bytes", f"at {MAX_LOSS:.0%} loss")
    console.print(_table("Bytes at equal damage", heads, equal_lines(comparisons)))
    for scheme in schemes:
        lines = ratio_lines(comparisons, scheme)
        console.print(_table(f"Bytes of {scheme} over those of the others", RATIO_HEADS, lines))
    console.print(_table("Cost of the transform", COST_HEADS, cost_lines(records)))


def _table(title: str, heads: Sequence[str], lines: Sequence[Line]) -> str | Table:
    if not lines:
        return ""
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="left" if head in ("cut", "scheme", "point") else "right")
    for line in lines:
        table.add_row(*line)
    return table


def page(records: Sequence[Record]) -> str:
    """docs/results/transform.md."""
    groups, comparisons = grouped(records), compared(records)
    machine = records[0].machine
    text = [
        "# Transform points, today's points and the paper's codec", "",
        "Written by `make transform-points`. At each cut three schemes code the same tensor: the transform, the scalar",
        "points that splitwire has beside it (*today*), and the codec of Cohen et al. 2021 as published (*paper*: its",
        "quantizers and its coder, with the side information that the paper counts). Bytes are real frames of single",
        "inputs with all headers: 28 bytes of a short frame for today's points, as version 0.1 sends them, and 10 of",
        "a compact frame for the transform. No input that was measured on was calibrated with.", "",
        f"Measured on {machine['processor']}, {machine['cores']} cores.", "",
        "## Bytes at equal damage", "",
        "Damage is of the outputs, from those of the whole network: for classes the Kullback–Leibler divergence in",
        "nats, for detections the share of the overlap that is lost, weighted by score, for other outputs the relative",
        "squared error. Bytes between two points are interpolated in logarithms. Each cell has transform / today /",
        f"paper. {MAX_LOSS:.0%}: the smallest measured point that loses at most so much accuracy or mAP, absolute;",
        "without labels, agreement of the answers. The ratios are geometric means over the three damages, those of the",
        "last line over the cuts; below 1 % it has the ratios at that loss, of today's and of the paper's bytes.", "",
        "| cut | tensor | damage | lowest | middle | highest | 1 % | of today's | of the paper's |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    text += [_comparison_line(groups[c.cut][0], SUBJECTS[c.cut], c) for c in comparisons]
    means = [number(geometric_mean(c.ratio(TRANSFORM, o) for c in comparisons), ".3f") for o in (TODAY, PAPER)]
    within = [number(geometric_mean(c.ratio_within(TRANSFORM, o) for c in comparisons), ".3f") for o in (TODAY, PAPER)]
    bold = (f"**{figure}**" for figure in (" / ".join(within), *means))
    text += [f"| **geometric mean** | | | | | | {' | '.join(bold)} |", ""]
    alike = geometric_mean(c.ratio(TRANSFORM, TODAY) for c in compared([_in_compact_frames(r) for r in records]))
    text += [f"With compact frames for today's points too, the geometric mean would be {number(alike, '.3f')}.", ""]
    text += ["## Networks", "", "| cut | network | layer | at the cut | calibrated, tested on | whole network |"]
    text += ["|---|---|---|---|---|--:|"]
    for key, (record, *_) in groups.items():
        subject = SUBJECTS[key]
        whole = "–" if record.whole is None else f"{record.whole:.1%} {record.score_name}"
        text.append(
            f"| {key} | {subject.network} | `{subject.layer}` | {subject.what} |"
            f" {record.calibration:,}, {record.test:,} | {whole} |"
        )
    text += ["", "## Cost of the transform", "", *_markdown(COST_HEADS, cost_lines(records)), ""]
    text += [
        "Coefficients of one input that are sent; processor seconds of the design; gain: the logarithm of the damage",
        "by refinement, at equal bytes, on held-out calibration inputs, 0 where it was not kept. Front and back: the",
        "median time of the half for one input without the transform, and how much longer it takes with it; measured",
        "by `--times`, on an idle machine.", "",
        "## All points", "", *_markdown(POINT_HEADS, point_lines(records)),
    ]  # fmt: skip
    return "\n".join(text) + "\n"


def _in_compact_frames(record: Record) -> Record:
    """A record of today's points as if they were sent in compact frames; any other as it is."""
    if record.scheme != TODAY:
        return record
    saved = SHORT_SIZE - side_information(1, compact=True)
    return msgspec.structs.replace(
        record, rows=tuple(msgspec.structs.replace(row, bytes=row.bytes - saved) for row in record.rows)
    )


def _comparison_line(record: Record, subject: Subject, c: Comparison) -> str:
    shape = "×".join(map(str, record.shape))
    cells = [
        f"{d:g}: {' / '.join(number(size) for size in _sizes(c.bytes, i))}" for i, d in enumerate(c.damages)
    ]  # fmt: skip
    within = " / ".join(number(c.within.get(s)) for s in COMPARED)
    ratios = (number(c.ratio(TRANSFORM, other), ".2f") for other in (TODAY, PAPER))
    return (
        f"| {c.cut} | {shape}, {subject.what} | {UNITS[record.task]} | {' | '.join(cells)} | {within} |"
        f" {' | '.join(ratios)} |"
    )


def _sizes(sizes: Mapping[str, tuple[float | None, ...]], i: int) -> list[float | None]:
    return [sizes[s][i] if s in sizes else None for s in COMPARED]


def _markdown(heads: Sequence[str], lines: Sequence[Line]) -> list[str]:
    aligned = ("---" if head in ("cut", "scheme", "point") else "--:" for head in heads)
    rows = [heads, tuple(aligned), *lines]
    return [f"| {' | '.join(row)} |" for row in rows]
