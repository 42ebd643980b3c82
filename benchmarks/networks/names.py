"""`python -m benchmarks.networks.names`: counts the leaf modules of the recipes' networks whose path names a cut.

A module that runs several times counts if its first call names a cut (`layer1.0.relu[0]`). The weights are random. It
writes build/bench/names.json.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from rich.console import Console
from rich.progress import track

from benchmarks.networks.sweep import SIZES
from splitwire.codec.errors import SplitwireError
from splitwire.codec.shared.files import write_json
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.network.source import from_module
from splitwire.models import demo
from splitwire.models.catalogue import load
from splitwire.models.recipes import RECIPES

OUT = Path("build/bench/names.json")


class Row(Struct, frozen=True, kw_only=True):
    """One network. resolved: leaf modules whose path names values; numbered: those that need the number of the call.

    reasons: message → number of the other modules; "…" replaces the name of the module.
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
    """Measure the named networks, or all recipes except the demo's."""
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
