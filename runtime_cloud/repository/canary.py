"""Which version answers which device, where several versions answer the frames of one pair.

A device stays on its version: the choice is a hash of its name. A larger share adds devices to a version, and takes
none away from it. Frames that name no device go to the version that has the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Route(Generic[T]):
    """The versions that answer one pair.

    fingerprint: of the pair. rest: answers everything that `canaries` do not. canaries: (upper bound of the hash,
    version), in rising order of the bound, from 0 to 1.
    """

    fingerprint: bytes
    rest: T
    canaries: tuple[tuple[float, T], ...] = ()

    def pick(self, device: str) -> T:
        """The version for a device; "" if the frame names none."""
        if not self.canaries or not device:
            return self.rest
        place = position(device, self.fingerprint)
        return next((version for bound, version in self.canaries if place < bound), self.rest)

    def share(self, version: T) -> float:
        """The share of the devices that a version answers, 0 to 1."""
        low = 0.0
        total = 0.0
        for bound, canary in self.canaries:
            total += bound - low if canary is version else 0.0
            low = bound
        return total + (1.0 - low if self.rest is version else 0.0)


def position(device: str, fingerprint: bytes) -> float:
    """A device's place among all devices, 0 ≤ place < 1; for each pair another one."""
    digest = blake2b(device.encode("utf-8", "surrogatepass"), digest_size=6, key=fingerprint).digest()
    return int.from_bytes(digest, "big") / 2**48


def make_route(fingerprint: bytes, versions: Sequence[tuple[str, T]], shares: Mapping[str, float]) -> Route[T]:
    """The route of a pair.

    versions: (number, what answers) of all that can answer it, the newest first; at least one. shares: by number, 0 to
    1. The newest version without a share has the rest; if all have shares, they are scaled to 1.
    """
    plain = [answers for number, answers in versions if number not in shares]
    named = [(shares[number], answers) for number, answers in reversed(versions) if number in shares]
    if not plain:
        total = sum(share for share, _ in named)
        if total <= 0:
            return Route(fingerprint, versions[0][1])
        named = [(share / total, answers) for share, answers in named]
        plain = [named.pop()[1]]
    bound = 0.0
    canaries = []
    for share, answers in named:
        bound = min(1.0, bound + share)
        if share > 0:
            canaries.append((bound, answers))
    return Route(fingerprint, plain[0], tuple(canaries))
