"""The devices that a server has heard of lately: bounded, whatever names clients think of.

Prometheus gets the busiest `SERIES` of them by name, the others together as "other". A counter of Prometheus must not
fall: a device that gets a series of its own begins it at zero, and what it sent before stays with the others.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator

from splitwire.codec.wire.report import DeviceReport

KNOWN = 1000
"""Devices that are remembered; the one that was silent for longest is forgotten first."""
SERIES = 50
"""Devices with a series of their own."""
BUSIER = 1.5
"""A device takes the place of another when its rate is this factor higher."""
FRESH_S = 60.0
"""A report counts for this many seconds."""
MAX_NAME = 64
SMOOTHING = 0.3
"""Weight of the last second in the frames per second of a device."""


class Total:
    """A counter that goes up."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Device:
    """What one device has sent. bytes: of its frames and their replies. rate, byte_rate: frames and bytes per second,
    smoothed.

    heard, reported: when it was last heard of, and when it last reported, as time.monotonic() counts.
    """

    __slots__ = (
        "answers", "before", "byte_rate", "bytes", "bytes_before", "heard", "model", "name", "protocol", "rate",
        "refused", "remembered", "report", "reported", "series",
    )  # fmt: skip

    def __init__(self, name: str, series: Total) -> None:
        self.name = name
        self.series = series
        self.model = self.protocol = ""
        self.answers = self.bytes = self.refused = self.remembered = 0
        self.before = self.bytes_before = 0
        self.heard = self.reported = self.rate = self.byte_rate = 0.0
        self.report: DeviceReport | None = None


class Devices:
    """The devices that were heard of last."""

    def __init__(self, *, known: int = KNOWN, series: int = SERIES) -> None:
        self._known, self._series = known, series
        self._devices: OrderedDict[str, Device] = OrderedDict()
        self._own: dict[str, Device] = {}
        self.other = Total()

    def __len__(self) -> int:
        """Number of devices that are remembered."""
        return len(self._devices)

    def __iter__(self) -> Iterator[Device]:
        return iter(self._devices.values())

    def find(self, name: str) -> Device | None:
        """A device that is remembered."""
        return self._devices.get(name)

    def heard(self, name: str, now: float) -> Device:
        """The device of this name, which has just been heard of."""
        device = self._devices.get(name)
        if device is None:
            if len(self._devices) >= self._known:
                _, forgotten = self._devices.popitem(last=False)
                self._own.pop(forgotten.name, None)
            device = Device(name, self.other)
            self._devices[name] = device
        else:
            self._devices.move_to_end(name)
        device.heard = now
        return device

    def tick(self, elapsed: float) -> None:
        """Renew the rates. elapsed: seconds since the last call."""
        for device in self._devices.values():
            sent, device.before = device.answers - device.before, device.answers
            device.rate += SMOOTHING * (sent / elapsed - device.rate)
            moved, device.bytes_before = device.bytes - device.bytes_before, device.bytes
            device.byte_rate += SMOOTHING * (moved / elapsed - device.byte_rate)

    def choose(self) -> None:
        """Decide anew which devices have a series of their own."""
        waiting = heapq.nlargest(
            self._series, (d for d in self._devices.values() if d.name not in self._own), key=lambda d: d.rate
        )
        for device in waiting:
            if device.answers == 0:
                break
            if len(self._own) >= self._series:
                least = min(self._own.values(), key=lambda d: d.rate)
                if device.rate <= BUSIER * least.rate:
                    break
                least.series = self.other
                del self._own[least.name]
            device.series = Total()
            self._own[device.name] = device

    def own(self) -> list[Device]:
        """The devices that have a series of their own."""
        return list(self._own.values())

    def busiest(self, most: int) -> list[Device]:
        """The devices that send most now; of those that send equally, the ones heard of last."""
        return heapq.nlargest(most, self._devices.values(), key=lambda d: (round(d.rate, 1), d.heard))
