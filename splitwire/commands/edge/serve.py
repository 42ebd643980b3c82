"""`splitwire edge serve`: the long-running form of the edge, by one configuration file."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitwire.codec.errors import UsageError
from splitwire.console import err, out, print_json

if TYPE_CHECKING:
    from splitwire.codec.profile import CodecProfile
    from splitwire.runtime_edge.service.config import EdgeConfig

    from .link import LocalBack


def serve(
    config: Annotated[Path, typer.Option(help="Configuration file (TOML): docs/deploy/configuration.md.")],
    check: Annotated[
        bool, typer.Option("--check", help="Try the configuration, print it as it is understood, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --check: print it as JSON.")] = False,
) -> None:
    """Run the edge as a service: camera, spool, outlets, metrics; until SIGTERM. SIGHUP reads the file again."""
    from .output import on_one_line  # imports NumPy, without which `splitwire doctor` must start

    if as_json and not check:
        raise UsageError("--json goes with --check: what a running service prints is up to its outlets")
    from splitwire.runtime_edge.service.config import load_config
    from splitwire.runtime_edge.service.parts import Problems, prepare

    read = load_config(config)
    try:
        if check:
            parts = prepare(read, on_event=lambda _: None, open_fallback=open_fallback)
            parts.source.close()
            parts.session.close()
        else:
            _run(read, config)
    except Problems as e:
        for line in e.lines:
            err.print(f"{config}: {on_one_line(line)}", markup=False, soft_wrap=True)
        count = len(e.lines)
        raise UsageError(f"{count} mistake{'' if count == 1 else 's'} in the configuration; nothing was started") from e
    if check:
        _print(read, as_json=as_json)


def open_fallback(back: str, profile: CodecProfile) -> LocalBack:
    """The back half on this device. Raises what LocalBack raises."""
    from .link import LocalBack

    return LocalBack(Path(back), profile)


def _run(read: EdgeConfig, path: Path) -> None:
    from splitwire.runtime_edge.service.config import load_config
    from splitwire.runtime_edge.service.service import Service

    service = Service(read, reread=lambda: load_config(path), open_fallback=open_fallback)
    stopping = False

    def stop(number: int, _: object) -> None:
        nonlocal stopping
        if stopping:
            os._exit(128 + number)  # asked twice: do not wait for frames or outlets; the spool has what it promised
        stopping = True
        service.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: service.reload())
    service.run()


def _print(config: EdgeConfig, *, as_json: bool) -> None:
    """The whole configuration, defaults and environment included: as JSON, or as TOML that can be used as a file."""
    import msgspec

    content = msgspec.to_builtins(config)
    if as_json:
        print_json(content)
        return
    lines = []
    for section, value in content.items():
        for table in value if isinstance(value, (list, tuple)) else [value]:
            lines.append(f"[[{section}]]" if table is not value else f"[{section}]")
            lines += [f"{key} = {msgspec.json.encode(item).decode()}" for key, item in table.items()]
            lines.append("")
    out.print("\n".join(lines).rstrip(), markup=False, soft_wrap=True, highlight=False)
