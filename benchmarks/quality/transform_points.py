"""Transform points beside today's and the paper's at the same cuts (`python -m benchmarks.quality.transform_points`).

Arguments: keys of SUBJECTS (points/subjects.py), all by default. Each scheme at each cut is kept in build/bench/points/
as soon as it is measured, and is not measured again without --again. The tables go to the terminal, the records to
build/bench/transform_points.json. --page also writes docs/results/transform.json and transform.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.quality.points import page
from benchmarks.quality.points.measure import Cut, scalar, scheme_name, transformed
from benchmarks.quality.points.records import PAPER, TODAY, TRANSFORM, Record, keep, kept
from benchmarks.quality.points.subjects import SUBJECTS
from splitwire.codec.errors import UsageError
from splitwire.codec.shared.files import write_atomically, write_json

JSON = Path("build/bench/transform_points.json")
PAGE = Path("docs/results/transform.md")
SCALAR = (TODAY, PAPER)


def measure(
    key: str, schemes: Sequence[str], steps: int | None, *, again: bool, times: bool, console: Console
) -> list[Record]:
    """The records of these schemes at a cut, in their order; only what is missing is measured."""
    names = [scheme_name(steps) if s == TRANSFORM else s for s in schemes]
    records = {name: record for name in names if not again and (record := kept(key, name)) is not None}
    missing = [name for name in names if name not in records]
    if missing:
        console.print(f"{key}: {', '.join(missing)}", highlight=False)
        cut = Cut.of(key, SUBJECTS[key])
        fresh = scalar(cut) if set(missing) & set(SCALAR) else []
        for record in fresh:
            keep(record)
        if scheme_name(steps) in missing:
            fresh.append(transformed(cut, steps, times=times))
            keep(fresh[-1])
        records |= {record.scheme: record for record in fresh}
    return [records[name] for name in names]


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write. Returns 2 for a wrong argument or what is not installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.transform_points", description=__doc__)
    parser.add_argument("cuts", nargs="*", metavar="CUT", help=f"of {', '.join(SUBJECTS)}; all by default")
    parser.add_argument("--schemes", default=f"{TODAY},{PAPER},{TRANSFORM}", help="with commas [%(default)s]")
    parser.add_argument("--refine", type=int, metavar="N", help="steps of refinement; as many as an export by default")
    parser.add_argument("--again", action="store_true", help="measure also what is kept")
    parser.add_argument("--times", action="store_true", help="time the halves too; for an idle machine")
    parser.add_argument("--json", type=Path, default=JSON, help="file for the records [%(default)s]")
    parser.add_argument("--page", action="store_true", help=f"write {PAGE} and its JSON, from all that is kept")
    options = parser.parse_args(arguments)
    schemes = options.schemes.split(",")
    if unknown := [*(set(options.cuts) - set(SUBJECTS)), *(set(schemes) - {TODAY, PAPER, TRANSFORM})]:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    console = Console(width=120)
    records: list[Record] = []
    try:
        for key in options.cuts or SUBJECTS:
            records += measure(
                key, schemes, options.refine, again=options.again, times=options.times, console=Console(stderr=True)
            )
            options.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.json, records)
    except UsageError as e:
        Console(stderr=True).print(f"error: {e}", markup=False, soft_wrap=True)
        return 2
    page.show(records, console)
    if options.page:
        everything = [r for key in SUBJECTS for s in (TRANSFORM, TODAY, PAPER) if (r := kept(key, s)) is not None]
        write_json(PAGE.with_suffix(".json"), everything)
        write_atomically(PAGE, page.page(everything).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
