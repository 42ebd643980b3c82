"""The output of `splitwire edge run`: a few lines per picture, or JSON Lines, and a summary at the end."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from splitwire.codec.shared.providers import short_name
from splitwire.codec.shared.text import printable
from splitwire.console import err, out, print_json
from splitwire.runtime_edge.events import Event
from splitwire.runtime_edge.findings import Classes, Detections, Findings, Segments, Values, document

STAGES = ("front", "encode", "network", "decode", "back", "total")
MAX_WIDTH = 100
MAX_LABEL = 32
SEGMENTS = 8
"""Most classes of a segmentation to show; --json has all."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result for one picture.

    frame_bytes: bytes of one frame. bytes_sent: bytes of one request, HTTP head included. ms: milliseconds per stage,
    medians over the repeats. provider: the execution provider that ran the front. saved: path of the drawn picture.
    """

    image: Path
    findings: Findings
    op: str
    frame_bytes: int
    bytes_sent: int
    bits_per_element: float
    ms: dict[str, float]
    provider: str
    saved: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The results of a run.

    rows: one per finished picture. skipped: number of unreadable pictures. remaining: number of pictures not reached.
    stopped: why there are such pictures; None if there are none. task: that of the user or the profile, if any.
    """

    rows: Sequence[Row]
    skipped: int
    remaining: int
    stopped: str | None
    op: str
    task: str | None

    @property
    def done(self) -> int:
        return len(self.rows)

    @property
    def providers(self) -> list[str]:
        """The execution providers that ran the front, in the order of their first picture."""
        return list(dict.fromkeys(row.provider for row in self.rows))


def print_event(event: Event) -> None:
    """Print an event as one line on stderr. An EventSink."""
    with suppress(OSError):
        err.print(on_one_line(event.text), markup=False, soft_wrap=True)


class Output(Protocol):
    """Prints each result at once."""

    def row(self, row: Row) -> None: ...

    def skipped(self, image: Path, reason: str) -> None: ...

    def summary(self, summary: Summary) -> None: ...


class JsonLines:
    """One JSON object per line: {"image": …}, {"skipped": …}, and last {"summary": …}, always (docs/runtime.md)."""

    def row(self, row: Row) -> None:
        """As Output."""
        saved = {} if row.saved is None else {"saved": str(row.saved)}
        _line(
            {
                "image": str(row.image),
                **document(row.findings),
                "op": row.op,
                "frame_bytes": row.frame_bytes,
                "bytes_sent": row.bytes_sent,
                "bits_per_element": row.bits_per_element,
                "ms": row.ms,
                "provider": row.provider,
                **saved,
            }
        )

    def skipped(self, image: Path, reason: str) -> None:
        """As Output; on stderr as well."""
        _line({"skipped": str(image), "reason": on_one_line(reason)})
        _say_skipped(reason)

    def summary(self, summary: Summary) -> None:
        """As Output."""
        _line(
            {
                "summary": {
                    "images": summary.done,
                    "skipped": summary.skipped,
                    "remaining": summary.remaining,
                    "stopped": summary.stopped,
                    "op": summary.op,
                    "providers": summary.providers,
                    **means(summary.rows),
                }
            }
        )


class Lines:
    """Text for a person, as wide as the terminal but at most MAX_WIDTH columns."""

    def row(self, row: Row) -> None:
        """As Output."""
        width = min(out.width, MAX_WIDTH)
        name = on_one_line(row.image.name)
        figures = f"{row.frame_bytes:,} bytes  {row.bytes_sent:,} sent  {_ms(row.ms['total'])} ms"
        if len(name) + 2 + len(figures) <= width:
            _say(f"{name}{figures:>{width - len(name)}}")
        else:
            _say(name)
            _wrapped(figures, width)
        for line in described(row.findings):
            _wrapped(line, width)
        out.file.flush()  # a pipe is buffered

    def skipped(self, image: Path, reason: str) -> None:
        """As Output."""
        _say_skipped(reason)

    def summary(self, summary: Summary) -> None:
        """As Output."""
        width = min(out.width, MAX_WIDTH)
        total = summary.done + summary.skipped + summary.remaining
        counts = [f"{summary.done} of {total} picture{'' if total == 1 else 's'} done at operating point {summary.op}"]
        counts += [f"{summary.skipped} skipped"] if summary.skipped else []
        counts += [f"{summary.remaining} not reached"] if summary.remaining else []
        _say("")
        _wrapped(", ".join(counts), width, "")
        if not summary.rows:
            return
        m = means(summary.rows)
        frame = f"{m['frame_bytes']:,.0f} bytes, {m['bits_per_element']:.3f} bits per element"
        _wrapped(f"per picture: {frame}; {m['bytes_sent']:,.0f} sent (with HTTP head)", width, "")
        ran = {"front": f" on {', then '.join(map(short_name, summary.providers))}"}
        stages = ", ".join(f"{stage} {_ms(m['ms'][stage])}{ran.get(stage, '')}" for stage in STAGES[:-1])
        _wrapped(f"median: {_ms(m['ms']['total'])} ms; {stages}", width, "")
        if isinstance(summary.rows[0].findings, Values) and summary.task is None:
            text = "the pair does not say what its outputs are; give --task classification, detection or segmentation"
            err.print(f"note: {text}", markup=False, soft_wrap=True)


def described(findings: Findings) -> list[str]:
    """The findings as lines of text."""
    match findings:
        case Classes():
            return [", ".join(f"{c.label} {c.probability:.1%}" for c in findings.top)]
        case Detections():
            return _detections(findings)
        case Segments():
            shown = [f"{s.label} {s.share:.1%}" for s in findings.classes[:SEGMENTS]]
            more = len(findings.classes) - SEGMENTS
            return [", ".join(shown + ([f"{more} more"] if more > 0 else []))]
    return [f"{v.name} {v.shape} {v.dtype}: {_range(v.low, v.high)}" for v in findings.outputs]


def _detections(findings: Detections) -> list[str]:
    wide = min(max((len(d.label) for d in findings.boxes), default=0), MAX_LABEL)
    lines = []
    for d in findings.boxes:
        left, top, right, bottom = (round(v) for v in d.box)
        lines.append(f"{d.label:<{wide}} {d.score:>4.0%}  {left},{top} to {right},{bottom}")
    if findings.below:
        lines.append(f"{findings.below} {'more ' if lines else ''}below the score {findings.min_score:g}")
    return lines or ["nothing found"]


def means(rows: Sequence[Row]) -> dict[str, Any]:
    """Means of the bytes and medians of the times over the pictures; {} for no picture."""
    if not rows:
        return {}
    return {
        "frame_bytes": statistics.fmean(r.frame_bytes for r in rows),
        "bytes_sent": statistics.fmean(r.bytes_sent for r in rows),
        "bits_per_element": statistics.fmean(r.bits_per_element for r in rows),
        "ms": {stage: statistics.median(r.ms[stage] for r in rows) for stage in STAGES},
    }


def on_one_line(text: str) -> str:
    """The text with `?` for control characters, so that a file name cannot move the cursor."""
    return "".join(c if c.isprintable() else "?" for c in printable(text))


def _line(value: object) -> None:
    print_json(value, indent=None)


def _range(low: float | None, high: float | None) -> str:
    return "no finite values" if low is None else f"from {low:.4g} to {high:.4g}"


def _ms(ms: float) -> str:
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"


def _wrapped(text: str, width: int, indent: str = "  ") -> None:
    later = indent + "  "
    for line in textwrap.wrap(
        on_one_line(text), max(width, 16), initial_indent=indent, subsequent_indent=later, drop_whitespace=True
    ):
        _say(line)


def _say(text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)


def _say_skipped(reason: str) -> None:
    err.print(f"skipped: {on_one_line(reason)}", markup=False, soft_wrap=True)
