"""Kills the server with SIGKILL in the middle of frames, and starts it again: the edge must get every answer, once."""

from __future__ import annotations

import random
import time
from pathlib import Path

from faults_table import Row
from field import KINDS, Kind, Server, run_edge, transport_to, wait_for
from numbered import numbered_pair

PACE_S = 0.01
"""Between two pictures."""
AWAY = 0.3
"""How many pictures of those between two kills come after the kill at once; then the source waits for the server."""


def kill_server(folder: Path, kind: Kind, frames: int, kills: int) -> Row:
    """Kill the server `kills` times while `frames` pictures go by."""
    rng = random.Random(7)
    pair = numbered_pair(folder / "pair")
    between = frames // kills
    away = int(AWAY * between)
    moments = {i * between + rng.randrange(between // 10, between - away) for i in range(kills)}
    with Server(folder / "pair") as server:

        def before(number: int) -> None:
            time.sleep(PACE_S)
            if number in moments:
                server.kill()
                server.start()
            elif number - away in moments:
                server.wait()
                wait_for(lambda: transport.breaker.state == "closed")  # it obeys the Retry-After of the warming server

        transport = transport_to(server.address, kind)
        ledger = run_edge(pair.front, transport, folder / "spool.db", frames, before, lambda: None)
        done = server.kills
    return ledger.row(f"server SIGKILLed and restarted, {kind}", done, f"{frames:,} frames")


def rows(folder: Path, short: bool) -> list[Row]:
    """20 kills in 2,000 frames with each transport; 1 in 150 in short."""
    frames, kills = (150, 1) if short else (2000, 20)
    return [kill_server(folder / kind, kind, frames, kills) for kind in KINDS]
