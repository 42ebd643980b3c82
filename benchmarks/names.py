"""`python -m benchmarks.names`: for how many leaf modules of the recipes' networks a module path names a cut.

A module that runs several times counts if its first run, which the message asks for (`layer1.0.relu[0]`), does. Random
weights. Writes build/bench/names.json.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from rich.console import Console
from rich.progress import track

from benchmarks.sweep import SIZES
from splitwire.codec.errors import SplitwireError
from splitwire.codec.files import write_json
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.network.source import from_module
from splitwire.models import demo
from splitwire.models.catalogue import load
from splitwire.models.recipes import RECIPES

OUT = Path("build/bench/names.json")


class Row(Struct, frozen=True, kw_only=True):
    """One network. resolved: leaf modules whose path alone names values; numbered: that need the number of the run.

    reasons: of the others, what is said, the module's own name left out.
    """

    network: str
    leaves: int
    resolved: int
    numbered: int
    reasons: dict[str, int]


def measured(name: str) -> Row:
    """Export and resolve every leaf module."""
    loaded = load(name, size=SIZES.get(name))
    source = from_module(loaded.module, loaded.input_shape)
    names = Names.of(source)
    leaves = [path for path, m in loaded.module.named_modules() if path and not list(m.children())]
    resolved = numbered = 0
    reasons: Counter[str] = Counter()
    for path in leaves:
        reason = _refused(names, path)
        if reason is None:
            resolved += 1
        elif _refused(names, f"{path}[0]") is None:
            numbered += 1
        else:
            reasons[reason.replace(path, "…")] += 1
    return Row(network=name, leaves=len(leaves), resolved=resolved, numbered=numbered, reasons=dict(reasons))


def _refused(names: Names, path: str) -> str | None:
    try:
        names.resolve(path)
    except SplitwireError as e:
        return str(e)
    return None


def main(arguments: Sequence[str]) -> None:
    """The networks named, or all recipes but the demo's."""
    console = Console()
    wanted = arguments or [name for name in RECIPES if name != demo.NAME]
    rows = [measured(name) for name in track(wanted, "Names", console=Console(stderr=True))]
    for r in rows:
        console.print(f"{r.network}: {r.resolved} + {r.numbered} by number, of {r.leaves}")
    reasons = sum((Counter(r.reasons) for r in rows), Counter[str]())
    for reason, times in reasons.most_common():
        console.print(f"  {times} × {reason}", soft_wrap=True, markup=False)
    leaves, resolved, numbered = (sum(getattr(r, n) for r in rows) for n in ("leaves", "resolved", "numbered"))
    console.print(f"{resolved} + {numbered} of {leaves}: {(resolved + numbered) / leaves:.1%}")
    write_json(OUT, {"rows": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
