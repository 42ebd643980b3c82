"""Events: what the runtime tells its owner beside results, as one line of text and of JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

Field = str | int | float
"""The value of a field of an event. A float is finite."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that the owner of a device may want to know: a link that is down, a camera that stalls.

    kind: a stable name for programs, lower case with underscores. text: one sentence for a person: what happened, and
    what to do if there is anything to do. wall: when, in seconds since 1970. fields: the figures in the text.
    """

    kind: str
    text: str
    wall: float = field(default_factory=time.time)
    fields: Mapping[str, Field] = field(default_factory=dict)


EventSink = Callable[[Event], None]
"""Takes events. It is called in the thread in which the event happens, so it must return at once and never raise."""


def ignore(event: Event) -> None:
    """The EventSink that does nothing."""


def to_json(event: Event) -> bytes:
    """The event as one line of JSON, with the line end: {"kind", "text", "wall", "fields"}."""
    return (
        msgspec.json.encode({"kind": event.kind, "text": event.text, "wall": event.wall, "fields": dict(event.fields)})
        + b"\n"
    )
