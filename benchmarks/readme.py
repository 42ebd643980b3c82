"""`make readme`: writes the measured figures between the markers of README.md, and the demo's plot into docs/results/.

It reads what `make demo`, `make bench` and `make reports` wrote. No figure in these parts is typed by hand.
"""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.quality.points.equal import geometric_mean
from benchmarks.quality.points.page import UNITS, compared, number
from benchmarks.quality.points.records import PAPER as PAPER_CODEC
from benchmarks.quality.points.records import TODAY, TRANSFORM, Record
from benchmarks.quality.points.subjects import SUBJECTS
from benchmarks.reports import PAGES
from benchmarks.speed.codec import OURS, Row
from splitwire.demo import report
from splitwire.demo.fashion import Summary
from splitwire.evaluation.answer.compare import compare
from splitwire.evaluation.answer.results import read_results
from splitwire.evaluation.answer.standings import USUAL_LOSS, Standing
from splitwire.evaluation.answer.wording import milliseconds
from splitwire.evaluation.contenders import PAPER, SPLITWIRE, ZSTD
from splitwire.evaluation.contenders.ladders import HEVC, HEVC_SCREEN

README = Path("README.md")
PLOT = Path("docs/results/demo.png")
TRANSFORM_POINTS = Path("docs/results/transform.json")
WIDTH = 110
SHOWN_LEVELS = 4
EVALUATED = {
    "demo": "demo classifier, 1,000 garments",
    "detector": "leaky-ReLU detector, 1,000 scenes",
    "mobilenet_v2": "MobileNetV2, crops of photographs",
}


def as_text(grid: Table) -> str:
    """What the command prints, as a code block."""
    console = Console(file=io.StringIO(), width=WIDTH)
    console.print(grid)
    assert isinstance(console.file, io.StringIO)
    lines = (line.rstrip() for line in console.file.getvalue().splitlines())
    return "```text\n" + "\n".join(lines) + "\n```"


def as_markdown(rows: list[Row]) -> str:
    """The codec rows as a Markdown table, ours in bold."""
    ours = {r.tensor: r.bytes for r in rows if r.coder == OURS}
    lines = [
        "| tensor | coder | bits/element | bytes, ours = 1 | encode, M el/s | decode, M el/s |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for r in rows:
        first = r.coder == OURS
        cells = [
            f"{8 * r.bytes / r.elements:.3f}",
            f"{r.bytes / ours[r.tensor]:.2f}",
            f"{r.encode_melem_s:,.0f}",
            f"{r.decode_melem_s:,.0f}",
        ]
        coder = f"**{r.coder}**" if first else r.coder
        lines.append(f"| {r.tensor if first else ''} | {coder} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def answers() -> str:
    """The bytes of each evaluation under docs/results/ at the usual loss, as a Markdown table."""
    lines = [
        "| network, data | splitwire | paper's codec | zstd 19 | HEVC of features | smallest picture |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, data in EVALUATED.items():
        for upper in (False, True):
            comparison = compare(read_results(PAGES / name), USUAL_LOSS, upper=upper)
            picture = next((s for s in comparison.standings if s.sends == "image"), None)
            groups = [(SPLITWIRE,), PAPER, (ZSTD[19],), (HEVC, HEVC_SCREEN)]
            best = [next((s for s in comparison.standings if s.family in group), None) for group in groups]
            cells = [_cell(s) for s in best] + [_cell(picture, named=True)]
            what = "by the upper bound" if upper else f"[{data}](docs/results/{name}/report.html)"
            lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def transform_points() -> str:
    """Bytes of the schemes at each cut in docs/results/transform.json, at its middle damage, as a Markdown table."""
    records = msgspec.json.decode(TRANSFORM_POINTS.read_bytes(), type=list[Record])
    comparisons, tasks = compared(records), {r.cut: r.task for r in records}
    lines = ["| cut | damage | transform | scalar | paper's codec |", "|---|---|--:|--:|--:|"]
    for c in comparisons:
        subject, middle = SUBJECTS[c.cut], len(c.damages) // 2
        sizes = (number(c.bytes[s][middle]) if s in c.bytes else "–" for s in (TRANSFORM, TODAY, PAPER_CODEC))
        damage = f"{c.damages[middle]:g} {UNITS[tasks[c.cut]]}"
        lines.append(f"| {subject.network}, `{subject.layer}` | {damage} | {' | '.join(sizes)} |")
    ratios = (geometric_mean(c.ratio(TRANSFORM, s) for c in comparisons) for s in (TODAY, PAPER_CODEC))
    means = " | ".join(number(r, ".2f") for r in ratios)
    return "\n".join([*lines, f"| **transform over the others**, geometric mean of all damages | | | {means} |"])


def _cell(standing: Standing | None, *, named: bool = False) -> str:
    if standing is None:
        return "none"
    what = f"{standing.family} {standing.setting}, " if named else f"{standing.setting}, "
    return f"{what}{standing.bytes:,.0f} bytes, {milliseconds(standing.encode_ms)} ms"


def fill(text: str, marker: str, content: str) -> str:
    """Replace the text between `<!-- marker: … -->` and `<!-- /marker -->`."""
    pattern = re.compile(rf"(<!-- {marker}:[^>]*-->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{README} has no part marked {marker!r}")
    return pattern.sub(lambda m: f"{m[1]}{content}\n{m[2]}", text)


class Bench(msgspec.Struct):
    """build/bench/codec.json."""

    machine: dict[str, str]
    rows: list[Row]


def main() -> None:
    """Fill all parts."""
    summary = msgspec.json.decode(Path("build/demo/summary.json").read_bytes(), type=Summary)
    bench = msgspec.json.decode(Path("build/bench/codec.json").read_bytes(), type=Bench)
    text = README.read_text(encoding="utf-8")
    text = fill(text, "demo", as_text(report.table(summary)))
    text = fill(text, "bench", as_markdown([r for r in bench.rows if r.levels == SHOWN_LEVELS]))
    text = fill(text, "answers", answers())
    text = fill(text, "transform", transform_points())
    README.write_text(text, encoding="utf-8")
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile("build/demo/accuracy_vs_rate.png", PLOT)


if __name__ == "__main__":
    main()
