"""`make faults`: causes every fault at full length, and prints what was lost, doubled or wrong in a table.

    python tests/faults/faults_run.py [NAME…] [--short] [--page]

--page writes docs/results/faults.md. Exit status 1 if a frame was lost, doubled or wrong. A module of faults has
`rows(folder, short) -> list[Row]`, and its name is in FAULTS.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAULTS = ("power_cuts", "spool_kills", "spool_disk", "server_kills", "edge_kills", "link_faults", "service_restarts")
PAGE = ROOT / "docs" / "results" / "faults.md"

HEAD = """# Faults

Written by `make faults ARGS=--page`. *Promised* are the frames whose storing or delivery was confirmed to the caller.
*Lost*, *twice* and *wrong* count those of them that were not there afterwards, there more than once, or with other
bytes or in another order. *Hit by the fault itself* are frames whose own bytes were damaged; they are reported.

"""


def main() -> None:
    """Run the faults that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FAULTS)}; all if none is named")
    parser.add_argument("--short", action="store_true", help="as `make test` runs them")
    parser.add_argument("--page", action="store_true", help="write docs/results/faults.md")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(FAULTS):
        parser.error(f"no such faults: {', '.join(sorted(unknown))}")
    sys.path[:0] = [
        str(ROOT / "tests" / folder)
        for folder in ("faults", "faults/processes", "helpers", "helpers/codec", "helpers/runtime")
    ]
    from faults_table import cells, markdown

    rows = []
    for name in arguments.names or FAULTS:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = importlib.import_module(name).rows(Path(folder), arguments.short)
        for row in found:
            print(" | ".join(cells(row)), flush=True)
        print(f"  {name}: {time.monotonic() - start:.0f} s", flush=True)
        rows += found
    if arguments.page:
        machine = (
            f"\n{platform.system()} {platform.machine()}, Python {platform.python_version()}, SQLite"
            f" {sqlite3.sqlite_version}.\n"
        )
        PAGE.write_text(HEAD + markdown(rows) + machine, encoding="utf-8")
    sys.exit(not all(row.good for row in rows))


if __name__ == "__main__":
    main()
