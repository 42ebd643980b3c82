"""Remembers answers by idempotency key: a frame that comes again is not computed again, also while the first one runs.

An edge sends a frame again when it cannot know whether the server has it (a read timeout, a connection that broke). A
remembered answer is given only for the same key *and* the same bytes, so a key that is used twice by mistake never gets
the answer to another frame. Nothing but answers is remembered: a frame that failed is computed again.

The memory is bounded, and so is the share of each device: the device that was silent for longest loses its oldest
answer first. Only the thread of the event loop may use it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import blake2b

import anyio

from splitwire.codec.errors import UsageError
from splitwire.codec.wire.batch import MAX_KEY

DEVICE_SHARE = 4
"""One device holds at most this part of the entries and of the bytes."""


@dataclass(eq=False, slots=True)
class _Entry:
    digest: bytes
    done: anyio.Event = field(default_factory=anyio.Event)
    reply: bytes | None = None


class Answers:
    """The answers of the last frames that had a key.

    entries, max_bytes: the most that is remembered, of all devices; 0 entries switch it off. computed, repeated: how
    many frames with a key were computed, and how many were answered from memory.
    """

    def __init__(self, *, entries: int, max_bytes: int) -> None:
        self._most = entries
        self._max_bytes = max_bytes
        self._devices: OrderedDict[str, OrderedDict[str, _Entry]] = OrderedDict()
        self._device_bytes: dict[str, int] = {}
        self.count = 0
        self.bytes = 0
        self.computed = 0
        self.repeated = 0

    async def answer(self, key: str, frame: bytes, compute: Callable[[], Awaitable[bytes]]) -> bytes:
        """The reply to a frame: the remembered one, that of the same frame which runs now, or a new one.

        key: as `parse_key` returns it, device first. Raises what `compute` raises.
        """
        if not self._most:
            return await compute()
        device = key.partition(":")[0]
        digest = blake2b(frame, digest_size=16).digest()
        while (entry := self._find(device, key)) is not None and entry.digest == digest:
            if entry.reply is None:
                await entry.done.wait()
            if entry.reply is not None:
                self.repeated += 1
                self._touch(device, key)
                return entry.reply
        entry = _Entry(digest)
        self._drop(device, key)
        self._devices.setdefault(device, OrderedDict())[key] = entry
        self._device_bytes.setdefault(device, 0)
        self.count += 1
        self._touch(device, key)
        try:
            entry.reply = await compute()
            self.computed += 1
        finally:
            entry.done.set()
            if self._find(device, key) is entry:
                self._settle(device, key, entry)
        return entry.reply

    def _find(self, device: str, key: str) -> _Entry | None:
        entries = self._devices.get(device)
        return None if entries is None else entries.get(key)

    def _settle(self, device: str, key: str, entry: _Entry) -> None:
        """Count the bytes of an answer and make room for it; forget one that failed or is too large."""
        size = 0 if entry.reply is None else len(entry.reply)
        if entry.reply is None or size > self._max_bytes // DEVICE_SHARE:
            self._drop(device, key, size=0)
            return
        self.bytes += size
        self._device_bytes[device] += size
        most, most_bytes = max(1, self._most // DEVICE_SHARE), self._max_bytes // DEVICE_SHARE
        while len(self._devices.get(device, ())) > most or self._device_bytes.get(device, 0) > most_bytes:
            if not self._drop_oldest(device):
                break
        while self.count > self._most or self.bytes > self._max_bytes:
            if not any(self._drop_oldest(silent) for silent in list(self._devices)):
                break

    def _touch(self, device: str, key: str) -> None:
        if key in self._devices.get(device, ()):
            self._devices.move_to_end(device)
            self._devices[device].move_to_end(key)

    def _drop_oldest(self, device: str) -> bool:
        """Forget the oldest answer of a device. What still runs stays: admission bounds that."""
        oldest = next((key for key, entry in self._devices[device].items() if entry.reply is not None), None)
        if oldest is not None:
            self._drop(device, oldest)
        return oldest is not None

    def _drop(self, device: str, key: str, size: int | None = None) -> None:
        """Forget a key. size: bytes that were counted for it; None for those of its answer."""
        entry = self._find(device, key)
        if entry is None:
            return
        del self._devices[device][key]
        counted = len(entry.reply or b"") if size is None else size
        self.count -= 1
        self.bytes -= counted
        self._device_bytes[device] -= counted
        if not self._devices[device]:
            del self._devices[device], self._device_bytes[device]


def parse_key(header: str | None) -> str:
    """The text of an Idempotency-Key header; "" without one. Raises UsageError for anything but a quoted short text."""
    if header is None:
        return ""
    key = header[1:-1]
    if (
        not (len(header) > 2 and header[0] == header[-1] == '"' and len(key) <= MAX_KEY)
        or not (key.isascii() and key.isprintable())
        or '"' in key
    ):
        raise UsageError(f'Idempotency-Key must be "device:boot:counter", of at most {MAX_KEY} ASCII characters')
    return key
