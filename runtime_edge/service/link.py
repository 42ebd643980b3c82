"""Link: a transport whose server can be replaced while frames are on their way, and that tells when it is down."""

from __future__ import annotations

import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from splitwire.codec.errors import ServerBusy, SplitwireError, TransportError
from splitwire.runtime_edge.events import Event, EventSink, ignore
from splitwire.runtime_edge.transport import Key, Reply
from splitwire.runtime_edge.waiting import may_pass


class Carrier(Protocol):
    """A transport for one frame or several."""

    def send(self, frame: bytes, key: Key | None = None) -> Reply: ...

    def send_many(self, frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]: ...

    def close(self) -> None: ...


def host_id() -> str:
    """An id of this device: the host's name, with `-` for what a key may not hold."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:64] or "edge"


class Link:
    """A transport whose server can be replaced while frames are on their way, and that tells when it is down.

    device: id in the keys of frames that come without one. patient: every failure of the link counts as one that may
    pass, so that the frame is sent again or spooled: in the field a name that does not resolve, or a token that is
    refused, is put right by somebody later. on_event: gets `link_down` with the reason, and `link_up`.
    """

    def __init__(self, carrier: Carrier, *, device: str, patient: bool, on_event: EventSink = ignore) -> None:
        self._carrier, self._patient, self._on_event = carrier, patient, on_event
        self._device, self._boot = device, secrets.token_hex(8)
        self._lock = threading.Lock()
        self._counter = 0
        self._users: dict[Carrier, int] = {carrier: 0}
        self._last_start: float | None = None
        self.up: bool | None = None
        """Whether the last frame reached the server; None before the first."""

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        """As Transport.send. A frame without a key gets one."""
        with self._carrying() as carrier:
            try:
                reply = carrier.send(frame, self._key() if key is None else key)
            except TransportError as e:
                self._failed(e)
                if not self._patient or may_pass(e):
                    raise  # as it is: its cause says that it may pass
                raise TransportError(str(e)) from e
            self._reached()
            return reply

    def send_many(self, frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]:
        """As BatchTransport.send_many."""
        with self._carrying() as carrier:
            answers = carrier.send_many(frames, [self._key() if key is None else key for key in keys])
            failed = next((a for a in answers if isinstance(a, TransportError)), None)
            if failed is not None:
                self._failed(failed)
            elif answers:
                self._reached()
            return answers

    def replace(self, carrier: Carrier) -> None:
        """Send from now on through another transport. The old one is closed when its last frame is answered."""
        with self._lock:
            old, self._carrier = self._carrier, carrier
            self._users[carrier] = 0
            unused = not self._users[old]
            if unused:
                del self._users[old]
        if unused:
            old.close()

    def finish(self, seconds: float) -> None:
        """Frames that are not on their way after this time are refused at once, and so are spooled."""
        self._last_start = time.monotonic() + seconds

    def close(self) -> None:
        """Close the transports."""
        with self._lock:
            carriers = list(self._users)
        for carrier in carriers:
            carrier.close()

    def _key(self) -> Key:
        with self._lock:
            self._counter += 1
            return Key(self._device, self._boot, self._counter - 1)

    @contextmanager
    def _carrying(self) -> Iterator[Carrier]:
        if self._last_start is not None and time.monotonic() > self._last_start:
            raise TransportError("the service ends: the frame is not sent any more") from TimeoutError()
        with self._lock:
            carrier = self._carrier
            self._users[carrier] += 1
        try:
            yield carrier
        finally:
            with self._lock:
                self._users[carrier] -= 1
                done = carrier is not self._carrier and not self._users[carrier]
                if done:
                    del self._users[carrier]
            if done:
                carrier.close()

    def _reached(self) -> None:
        if self.up:
            return
        with self._lock:
            before, self.up = self.up, True
        if not before:
            self._on_event(Event(kind="link_up", text="the server answers"))

    def _failed(self, e: TransportError) -> None:
        """Tell of the failure if it is news."""
        if isinstance(e, ServerBusy):  # it is there, and says when to come again
            return
        with self._lock:
            before, self.up = self.up, False
        if before is not False:
            self._on_event(Event(kind="link_down", text=f"frames do not get through: {e}", fields={"code": e.code}))
