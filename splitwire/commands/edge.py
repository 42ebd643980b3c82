"""`splitwire edge run`: pictures through the front here and the back over there."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitwire.codec.errors import UsageError
from splitwire.console import err, out, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from splitwire.codec.device import DeviceProfile
    from splitwire.runtime_edge.classes import Guess
    from splitwire.runtime_edge.session import EdgeSession, SplitResult

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
STAGES = {"front": "front", "encode": "enc", "network": "net", "decode": "dec", "back": "back", "total": "total"}
"""Stage → head of its column; short, so that the table fits 80 columns with room for the labels."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture's line. bytes_sent: of one request, head included. ms: per stage, the median over the repeats."""

    image: str
    top: list[Guess]
    op: str
    bytes_sent: int
    frame_bytes: int
    bits_per_element: float
    ms: dict[str, float]


def run(
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    front: Annotated[Path, typer.Option(help="The front.onnx that `splitwire export` wrote.")],
    url: Annotated[str, typer.Option(help="Where `splitwire cloud serve` listens, http://host:port.")],
    op: Annotated[str | None, typer.Option(help="Operating point, e.g. n4; the model's default otherwise.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Labels to show per picture.")] = 3,
    repeat: Annotated[int, typer.Option(min=1, help="Run each picture so often, and show the median times.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Threads of the front.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the table.")] = False,
) -> None:
    """Run pictures through a network split between this machine and a server."""
    from splitwire.runtime_edge.session import EdgeSession
    from splitwire.runtime_edge.transport import HttpTransport

    paths = find_images(images)
    rows: list[Row] = []
    skipped: list[dict[str, str]] = []
    with EdgeSession(front, transport=HttpTransport(url), op=op, threads=threads) as session:
        if session.profile.preprocessing is None:
            raise UsageError(f"{front} was exported without preprocessing, so it takes arrays only, not pictures")
        session.warm_up()
        with progress_bar(not as_json) as progress:
            for done, path in enumerate(paths):
                progress("Images", done, len(paths))
                try:
                    x = session.preprocess(path)
                except UsageError as e:
                    skipped.append({"image": str(path), "reason": str(e)})
                    continue
                rows.append(_row(path, [session.infer(x) for _ in range(repeat)], session, top))
    for entry in skipped:
        err.print(f"skipped: {entry['reason']}", markup=False, soft_wrap=True)
    if not rows:
        raise UsageError(f"none of the {len(paths)} files can be read as a picture")
    summary = _summary(rows, len(skipped))
    if as_json:
        print_json({"images": [asdict(r) for r in rows], "skipped": skipped, "summary": summary})
    else:
        _print_table(rows, summary)


def profile(
    to: Annotated[Path, typer.Option("--out", help="The file, for --device of `splitwire plan`.")],
    name: Annotated[str | None, typer.Option(help="Name in the file.", show_default="architecture and threads")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the front.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON instead of a table.")] = False,
) -> None:
    """Measure how fast this machine is, for `splitwire plan`. Takes about ten seconds; let it do nothing else."""
    if not to.resolve().parent.is_dir():
        raise UsageError(f"--out: there is no folder {to.parent}")
    from splitwire.runtime_edge.device import measure_device

    with progress_bar(not as_json) as progress:
        measured = measure_device(name=name, threads=threads, progress=progress)
    measured.save(to)
    if as_json:
        print_json(measured)
    else:
        _print_profile(measured, to)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the picture files in and under the folders named, in order. Raises UsageError for none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        else:
            found.append(path)  # unreadable or missing: reported with its reason when its turn comes
    if not found:
        raise UsageError(f"no pictures in {', '.join(map(str, paths))}; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def _row(path: Path, results: Sequence[SplitResult], session: EdgeSession, top: int) -> Row:
    from splitwire.runtime_edge.classes import top_classes

    last = results[-1]
    return Row(
        image=str(path),
        top=top_classes(last.outputs, session.profile.labels, top),
        op=last.op,
        bytes_sent=last.bytes_sent,
        frame_bytes=last.frame_bytes,
        bits_per_element=last.bits_per_element,
        ms={stage: statistics.median(getattr(r.timings, stage) for r in results) for stage in STAGES},
    )


def _summary(rows: Sequence[Row], skipped: int) -> dict[str, Any]:
    """Means of the bytes, medians of the times, over the pictures."""
    return {
        "images": len(rows),
        "skipped": skipped,
        "op": rows[0].op,
        "bytes_sent": statistics.fmean(r.bytes_sent for r in rows),
        "bits_per_element": statistics.fmean(r.bits_per_element for r in rows),
        "ms": {stage: statistics.median(r.ms[stage] for r in rows) for stage in STAGES},
    }


def _print_table(rows: Sequence[Row], summary: dict[str, Any]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    caption = "bytes: as sent, HTTP head included · b/el: bits per element · front … total: ms"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    table.add_column("image", overflow="fold")
    table.add_column("labels", overflow="fold")
    for name in ("bytes", "b/el", *STAGES.values()):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        labels = "\n".join(f"{g.label} {g.probability:.1%}" for g in row.top)
        table.add_row(
            escape(Path(row.image).name),
            escape(labels) or "no classes",
            f"{row.bytes_sent:,}",
            f"{row.bits_per_element:.3f}",
            *(f"{ms:.2f}" if (ms := row.ms[stage]) < 100 else f"{ms:.0f}" for stage in STAGES),
        )
    print_table(table, ("front", "enc", "dec", "back", "b/el", "net"))
    images = f"{summary['images']} image{'' if summary['images'] == 1 else 's'}"
    skipped = f", {summary['skipped']} skipped" if summary["skipped"] else ""
    out.print(
        f"{images}{skipped} at operating point {summary['op']}: {summary['bytes_sent']:,.0f} bytes and "
        f"{summary['bits_per_element']:.3f} bits per element sent, {summary['ms']['total']:.2f} ms (median)",
        markup=False,
        soft_wrap=True,
    )


def _print_profile(measured: DeviceProfile, to: Path) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for what, value in (
        ("convolutions", f"{measured.conv_macs / 1e9:.1f} GMAC/s"),
        ("matrix products", f"{measured.matmul_macs / 1e9:.1f} GMAC/s"),
        ("depthwise convolutions", f"{measured.depthwise_macs / 1e9:.1f} GMAC/s"),
        ("elementwise nodes", f"{measured.elementwise_bytes / 1e9:.1f} GB/s"),
        ("weights", f"{measured.weight_bytes / 1e9:.1f} GB/s"),
        ("each node", f"{measured.node_overhead_us:.2f} µs"),
        (
            "features encoded, decoded",
            f"{measured.encode_elements / 1e6:.0f}, {measured.decode_elements / 1e6:.0f} M/s",
        ),
        (
            "JPEG encoded, decoded",
            f"{measured.jpeg_encode_pixels / 1e6:.0f}, {measured.jpeg_decode_pixels / 1e6:.0f} Mpixel/s",
        ),
    ):
        table.add_row(what, value)
    print_table(table)
    out.print(f"{to}  {measured.name}", markup=False, soft_wrap=True)
    out.print(f"{measured.note}", markup=False, soft_wrap=True)
