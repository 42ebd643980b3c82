"""`splitwire warmup`: compiles the kernels once, so that later processes load them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from splitwire.codec.shared.cache import VARIABLE
from splitwire.codec.shared.text import printable
from splitwire.console import err, interruptible, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from splitwire.codec.warmup import WarmUp

KEPT = "the kernels compiled so far are kept; the same command goes on"
"""The message at Ctrl-C."""


def warmup(
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="Cache folder [default: SPLITWIRE_CACHE_DIR, NUMBA_CACHE_DIR, or the user's cache]."),
    ] = None,
    front: Annotated[
        Path | None,
        typer.Option(help="Compile only what an edge device with this front.onnx needs; keep its optimised graph too."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON instead of a table.")] = False,
) -> None:
    """Compile every kernel that is not in the cache folder yet, so that later processes start at once."""
    with interruptible(KEPT), progress_bar(not as_json) as progress:
        from splitwire.codec.warmup import warm_up

        steps = None if front is None else _steps_of(front, cache_dir)
        done = warm_up(cache_dir, progress, steps)
    if as_json:
        print_json(done)
        return
    _print(done)


def _steps_of(front: Path, cache_dir: Path | None) -> list[tuple[str, Callable[[], object]]]:
    """The steps of a warm-up for an edge device: open the front, and encode at every operating point."""
    if cache_dir is not None:  # the optimised graph goes into the same folder
        os.environ[VARIABLE] = str(cache_dir)

    def warm() -> None:
        from splitwire.runtime_edge.session import EdgeSession
        from splitwire.runtime_edge.transport import LoopbackTransport

        with EdgeSession(front, transport=LoopbackTransport(lambda frame: frame)) as session:
            session.warm_up()
            session.wait_until_ready()

    return [(f"Front {printable(front.name)}", warm)]


def _print(done: WarmUp) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("kernel", no_wrap=True)
    table.add_column("argument types")
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in done.kernels:
        # array(uint8, 1d, C) → uint8[:]; all arrays of the kernels have layout C
        types = re.sub(r"array\((\w+), (\d)d, C\)", lambda m: f"{m[1]}[{', '.join(':' * int(m[2]))}]", one.signature)
        table.add_row(one.kernel, escape(types), f"{one.milliseconds:,.0f}", "cached" if one.cached else "compiled")
    print_table(table, ("argument types", "ms"))
    compiled = sum(not one.cached for one in done.kernels)
    err.print(
        f"{compiled} compiled, {len(done.kernels) - compiled} cached already, in {done.seconds:.1f} s; "
        f"{done.bytes / 1e6:.1f} MB in {done.folder}",
        markup=False,
        soft_wrap=True,
    )
