"""The link between device and cloud, parsed from the user's bandwidth and round trip."""

from __future__ import annotations

import re
from dataclasses import dataclass

from splitwire.codec.errors import UsageError

BITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
MAX_SECONDS = 60.0
DEFAULT_RTT = "20ms"


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link between edge and cloud.

    bits_per_second: in each direction. rtt_ms: milliseconds of one round trip.
    """

    bits_per_second: float
    rtt_ms: float

    def milliseconds(self, sent: float, received: float = 0.0) -> float:
        """Time of one request and its reply over an open connection: the round trip, and the bytes in both
        directions."""
        return self.rtt_ms + 8e3 * (sent + received) / self.bits_per_second

    def __str__(self) -> str:
        for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if self.bits_per_second >= factor:
                return f"{self.bits_per_second / factor:g} {prefix}bit/s, round trip {self.rtt_ms:g} ms"
        return f"{self.bits_per_second:g} bit/s, round trip {self.rtt_ms:g} ms"


def parse_bandwidth(text: str) -> float | None:
    """Bits per second from "5mbit", "1.5 Gbit/s", "250kbps"; None from "none". Raises UsageError."""
    if text.strip().lower() == "none":
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)(?:bits?(?:/s|ps)?|bps)\s*", text.lower())
    if match is None or re.search(r"B(?!it)", text):  # a capital B means bytes
        raise UsageError(f"a link is written like 250kbit, 5mbit, 1gbit (bits per second) or none; got {text!r}")
    rate = float(match[1]) * BITS[match[2]]
    if rate <= 0:
        raise UsageError(f"a link of {text!r} carries nothing; write none for no link")
    return rate


def parse_duration(text: str) -> float:
    """Milliseconds from "40ms", "0.1s", "0". Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(us|µs|ms|s)?\s*", text.lower())
    if match is None or (match[2] is None and float(match[1]) != 0):
        raise UsageError(f"a round trip is written like 40ms or 0.1s; got {text!r}")
    seconds = float(match[1]) * SECONDS[match[2] or "s"]
    if seconds > MAX_SECONDS:
        raise UsageError(f"a round trip of {text!r} is over {MAX_SECONDS:g} s")
    return 1e3 * seconds


def parse_link(bandwidth: str | None, rtt: str | None) -> Link | None:
    """A link from "5mbit" and "40ms" (DEFAULT_RTT if None); None without a bandwidth. Raises UsageError."""
    bits = None if bandwidth is None else parse_bandwidth(bandwidth)
    if bits is None:
        if rtt is not None:
            raise UsageError(f"a round trip of {rtt} without a link; say its bandwidth too, as in --link 5mbit")
        return None
    return Link(bits_per_second=bits, rtt_ms=parse_duration(DEFAULT_RTT if rtt is None else rtt))
