"""How often each address may fail before it is answered shortly.

This bounds what strangers cost: lines in the record, events, kept connections. It is no defence of the tokens, which
nobody can guess, and so a valid token is accepted from an address that fails too: a proxy, or a router with many
devices behind it, is one address.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

PEERS = 4096
"""Addresses that are remembered; the one that failed least recently is forgotten first."""
BURST = 10.0
PER_SECOND = 0.2
"""Failures that one address may make at once, and per second in the long run."""


class Throttle:
    """Counts the failures of each address. clock: monotonic seconds, as an argument of each call."""

    def __init__(self) -> None:
        self._peers: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def failed(self, peer: str, now: float) -> bool:
        """Count a failure. True if the address has made too many."""
        peer = _network(peer)
        room, since = self._peers.pop(peer, (BURST, now))
        room = min(BURST, room + (now - since) * PER_SECOND) - 1.0
        self._peers[peer] = (max(room, -1.0), now)
        if len(self._peers) > PEERS:
            self._peers.popitem(last=False)
        return room < 0.0


def _network(peer: str) -> str:
    """The address; of IPv6 its first half, because a client with one address there has the whole network."""
    try:
        return peer if ":" not in peer else str(ipaddress.IPv6Network((peer.partition("%")[0], 64), strict=False))
    except ValueError:
        return peer
