"""Caller: who asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct


class Caller(Struct, frozen=True, gc=False):
    """Who sends a request, as the policy has found out.

    name: of the token, or of the client's certificate; "" for nobody. id: of its entry in the file of tokens; "" for a
    certificate without an entry, and for nobody. peer: the address, for the record. until: when its certificate ends,
    as time.time() counts.
    """

    name: str = ""
    id: str = ""
    peer: str = ""
    until: float = float("inf")


NOBODY = Caller()
"""Who has shown nothing. Where authentication is configured, nobody may do anything."""

CALLER = "splitwire.caller"
"""Where the scope of a request (ASGI) holds its Caller."""


def caller_of(scope: Mapping[str, Any]) -> Caller:
    """Who sent a request; NOBODY where no authentication is configured. scope: of ASGI."""
    caller: Caller = scope.get(CALLER, NOBODY)
    return caller
