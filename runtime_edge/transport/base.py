"""What a transport is: the protocol, its reply, the idempotency key of a frame, and the time-outs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from splitwire.codec.errors import ServerBusy, SplitwireError, TransportError, UsageError
from splitwire.codec.wire.reply import DecodedReply, Outputs

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What a device id and a boot id may be."""
MAX_COUNTER = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The reply to one frame.

    decode_ms, back_ms: time in the cloud. bytes_sent, bytes_received: bytes on the link for this frame, heads and
    retries included. attempts: 1, unless a failed attempt was repeated.
    """

    outputs: Outputs
    frame_id: int
    decode_ms: float
    back_ms: float
    bytes_sent: int
    bytes_received: int
    attempts: int = 1


@dataclass(frozen=True)
class Key:
    """The idempotency key of a frame: a server that gets a frame again with the same key does not compute it again.

    device: id of the device. boot: id of the run of the program that captured the frame. counter: counts the frames of
    that run, 0 to 2^64 - 1. No two frames may have the same key. device and boot have 1 to 64 letters, digits, `_`,
    `-` and `.`. Raises UsageError for anything else.
    """

    device: str
    boot: str
    counter: int

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.device) or not NAME.fullmatch(self.boot):
            raise UsageError(
                f"device {self.device[:80]!r} and boot {self.boot[:80]!r} must be 1 to 64 letters, digits, _ - or ."
            )
        if not 0 <= self.counter <= MAX_COUNTER:
            raise UsageError(f"the counter of a key is 0 to {MAX_COUNTER}; got {self.counter}")

    def __str__(self) -> str:
        """device:boot:counter, as it is sent."""
        return f"{self.device}:{self.boot}:{self.counter}"


class Transport(Protocol):
    """What an EdgeSession needs to reach the cloud. Several threads can share a transport."""

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        """Deliver a frame and wait for its reply. Raises TransportError, or the error that the server names.

        key: makes it safe to send the frame again when nobody knows whether the server has it.
        """
        ...

    def close(self) -> None:
        """Close the connections. A second call has no effect."""
        ...


@runtime_checkable
class BatchTransport(Transport, Protocol):
    """A transport that delivers several frames at a time, for frames that wait (a spool that drains)."""

    def send_many(self, frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]:
        """Deliver frames and wait for all replies.

        keys: one per frame. Returns, in the order of the frames, the reply or the error of each. Raises UsageError.
        """
        ...


DEADLINE_S = 60.0
"""Timeouts.total, unless the caller chooses."""


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long an HttpTransport waits, in seconds.

    connect: until the connection is open. read: until the next bytes of the answer. write: until the next bytes are
    accepted. pool: until a connection is free, if several threads share the transport. total: for one frame in all,
    retries and pauses between them included, however the answer arrives; None for no limit. Only the look-up of a host
    name can take longer. A total that is shorter than the default is told to the server, which does not begin an
    inference after it. Raises UsageError for a time that is not more than 0.
    """

    connect: float = 5.0
    read: float = 30.0
    write: float = 30.0
    pool: float = 5.0
    total: float | None = DEADLINE_S

    @property
    def told(self) -> float | None:
        """The deadline that the server is told, in seconds. None for the default or more: to tell it costs 30 bytes."""
        return self.total if self.total is not None and self.total < DEADLINE_S else None

    def __post_init__(self) -> None:
        times = (self.connect, self.read, self.write, self.pool, *(() if self.total is None else (self.total,)))
        if not all(time > 0 for time in times):
            raise UsageError(f"a time-out must be more than 0 seconds; got {', '.join(map(str, times))}")


def send_each(
    send: Callable[[bytes, Key | None], Reply], frames: Sequence[bytes], keys: Sequence[Key | None]
) -> list[Reply | SplitwireError]:
    """BatchTransport.send_many over a protocol in which a request holds one frame.

    A failure of the link is the error of its frame and of those behind it, which are not sent. Raises UsageError if
    there is not one key per frame.
    """
    if len(frames) != len(keys):
        raise UsageError(f"send_many takes one key (or None) per frame; got {len(frames)} frames, {len(keys)} keys")
    results: list[Reply | SplitwireError] = []
    for frame, key in zip(frames, keys, strict=True):
        try:
            results.append(send(frame, key))
        except TransportError as e:
            if not isinstance(e, ServerBusy):
                return results + [e] * (len(frames) - len(results))
            results.append(e)
        except SplitwireError as e:
            results.append(e)
    return results


def make_reply(decoded: DecodedReply, *, sent: int, received: int, attempts: int = 1) -> Reply:
    """The Reply of what a server answered, with what it cost on the link in bytes."""
    return Reply(
        outputs=decoded.outputs,
        frame_id=decoded.frame_id,
        decode_ms=decoded.decode_ms,
        back_ms=decoded.back_ms,
        bytes_sent=sent,
        bytes_received=received,
        attempts=attempts,
    )
