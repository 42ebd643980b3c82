"""Streams: the frames of a source, several at a time, results in order.

stream.py      Stream, what `EdgeSession.stream` returns
pipeline.py    its threads: capture, prepare, front, lanes that encode and send
channel.py     bounded queues between them, with a policy
window.py      how many frames may be in flight
ordered.py     results in the order of the pictures
parts.py       StreamResult, and the interfaces of what plugs in: skip, rate, drift, spool
    skip/          frames that need not be sent
"""

from .channel import POLICIES, Policy
from .parts import Decision, DriftPart, Fallback, Look, RatePart, SkipPart, SpoolPart, StreamResult, StreamStats
from .stream import Stream

__all__ = [
    "POLICIES",
    "Decision",
    "DriftPart",
    "Fallback",
    "Look",
    "Policy",
    "RatePart",
    "SkipPart",
    "SpoolPart",
    "Stream",
    "StreamResult",
    "StreamStats",
]
