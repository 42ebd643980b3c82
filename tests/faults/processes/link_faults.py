"""Puts a proxy that spoils the bytes between edge and server: each fault, in each direction, by each transport."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from faults_table import Row
from field import KINDS, Kind, Server, run_edge, transport_to
from numbered import numbered_pair
from proxy import Link, Proxy

Direction = Literal["up", "down"]
FAULTS = ("delay", "reset", "stall", "truncate", "duplicate", "repeat", "corrupt")
NAMES = {"duplicate": "duplicate (64 bytes)", "repeat": "duplicate (whole messages)"}
READ_S = 0.25
"""Longest wait for a reply. A stalled link costs this long each time."""
FRAME_BYTES = {("HTTP", "up"): 350, ("HTTP", "down"): 280, ("stream", "up"): 70, ("stream", "down"): 150}
"""About what one frame puts on the link; a fault comes about every EVERY frames."""
EVERY = 6


def spoiled(fault: str, kind: Kind, direction: Direction) -> Link:
    """The direction of the link that has the fault."""
    if fault == "delay":  # some replies come after the edge has lost its patience
        return Link(delay_s=0.01, jitter_s=1.3 * READ_S)
    mean = EVERY * FRAME_BYTES[kind, direction] * (3 if fault == "stall" else 1)
    link = Link()
    setattr(link, fault, float(mean))
    return link


def spoil(folder: Path, server: Server, fault: str, kind: Kind, direction: Direction, frames: int) -> Row:
    """Send frames through one fault, then let the link heal and the spool drain."""
    folder.mkdir()
    link = spoiled(fault, kind, direction)
    links = {"up": Link(), "down": Link(), direction: link}
    with Proxy(server.address, up=links["up"], down=links["down"], seed=11) as proxy:

        def heal() -> None:
            for name in FAULTS[1:]:
                setattr(link, name, None)
            link.delay_s = link.jitter_s = 0.0
            proxy.cut()

        transport = transport_to(proxy.address, kind, read_s=READ_S)
        front = folder.parent / "pair" / "front.onnx"
        ledger = run_edge(front, transport, folder / "spool.db", frames, lambda number: None, heal)
        trials = frames if fault == "delay" else sum(proxy.done.values())
        connections = proxy.connections
    arrow = "edge → server" if direction == "up" else "server → edge"
    return ledger.row(f"{NAMES.get(fault, fault)}, {arrow}, {kind}", trials, f"{connections:,} connections")


def rows(folder: Path, short: bool) -> list[Row]:
    """All faults with 400 frames each; in short changed bytes, with 110."""
    numbered_pair(folder / "pair")
    faults, frames = (("corrupt",), 110) if short else (FAULTS, 400)
    directions: tuple[Direction, ...] = ("up", "down")
    with Server(folder / "pair") as server:
        return [
            spoil(folder / f"{fault}-{direction}-{kind}", server, fault, kind, direction, frames)
            for fault in faults
            for direction in directions
            for kind in KINDS
        ]
