"""ServedModels: what the server asks of its models, whether they are fixed or change while it runs."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from msgspec import Struct

from splitwire.codec.errors import FingerprintMismatch, UsageError
from splitwire.runtime_cloud.session import CloudSession

FINGERPRINT = re.compile(r"[0-9a-f]{8}(?:[0-9a-f]{8})?")
"""A pair's fingerprint in hex: 8 bytes, or the first 4."""

Tell = Callable[[str, str], None]
"""Hears of an event: (kind, one sentence)."""


class ModelState(Struct, frozen=True, kw_only=True):
    """A version of a model in the repository.

    name, version: as it is asked for. fingerprint: of its pair, in hex; "" if it was never loaded. state: READY,
    LOADING, UNLOADING or UNAVAILABLE. reason: why it is not ready; or why a new file is not loaded, while the former
    one serves.
    quarantined: its files cannot be loaded, and are tried again when they change. share: of the devices of its pair
    that it answers, 0 to 1. answers: frames that it has been chosen for.
    """

    name: str
    version: str
    fingerprint: str
    state: str = "READY"
    reason: str = ""
    quarantined: bool = False
    share: float = 1.0
    answers: int = 0


class ServedModels(ABC):
    """The models of a server. Only the thread of the event loop uses it."""

    @abstractmethod
    def __len__(self) -> int:
        """How many versions are ready."""

    @abstractmethod
    def __iter__(self) -> Iterator[CloudSession]:
        """Their sessions."""

    @abstractmethod
    def find(self, fingerprint: bytes, device: str = "") -> CloudSession | None:
        """The session for a pair, or None. fingerprint: 8 bytes, or the first 4, as in a compact frame. device: who
        asks, where a pair has several versions."""

    @abstractmethod
    def named(self, name: str, version: str = "", device: str = "") -> CloudSession:
        """The session of a model, by its name or by the fingerprint of its pair in hex (16 digits, or the first 8).

        version: "" for the newest that is ready, or as the shares say for this device. Raises UnknownModel.
        """

    @abstractmethod
    def index(self) -> list[ModelState]:
        """Every version of every model, in the order of their names."""

    @abstractmethod
    async def start(self) -> None:
        """Warm the models up, in a thread beside the event loop. Raises what a model raises if none can serve."""

    def of_frame(self, fingerprint: bytes, device: str = "") -> CloudSession:
        """The session of the pair that a frame names. Raises FingerprintMismatch, with the fingerprints in hex."""
        session = self.find(fingerprint, device)
        if session is None:
            served = ", ".join(f"{s.fingerprint.hex()} ({s.profile.model})" for s in list(self)[:8])
            raise FingerprintMismatch(
                f"the frame is of pair {fingerprint.hex()}, served here: {served or 'none'}; use the front.onnx "
                "exported with the back.onnx that is served"
            )
        return session

    async def load(self, name: str, version: str = "") -> None:
        """Load what the folder has of a model, unless it is loaded. Raises UnknownModel, UsageError."""
        self.named(name, version)

    async def reload(self, name: str, version: str = "") -> None:
        """Load a model again. Raises UnknownModel, UsageError."""
        raise self._fixed(name, version)

    async def unload(self, name: str, version: str = "") -> None:
        """Take a model out of service. Raises UnknownModel, UsageError."""
        raise self._fixed(name, version)

    async def set_share(self, name: str, version: str, share: float | None) -> None:
        """Set the share of the devices, 0 to 1, that a version answers; None: none. Raises UnknownModel, UsageError."""
        raise self._fixed(name, version)

    @abstractmethod
    async def watch(self) -> None:
        """Follow what changes in the folder, until cancelled; return at once if there is nothing to follow."""

    @abstractmethod
    def listen(self, tell: Tell) -> None:
        """Tell of models that are loaded and unloaded, from now on."""

    def _fixed(self, name: str, version: str) -> UsageError:
        self.named(name, version)
        return UsageError("the models of this server are fixed; restart it to change them")
