"""LoopbackTransport joins edge and cloud in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from splitwire.codec.errors import SplitwireError
from splitwire.codec.wire.reply import decode_reply

from .base import Key, Reply, make_reply


class LoopbackTransport:
    """Joins edge and cloud in one process. The bytes are the same as over a network.

    handler: frame bytes → reply bytes, for example `CloudSession(back).handle`. Its errors reach the caller unchanged.
    """

    def __init__(self, handler: Callable[[bytes], bytes]) -> None:
        self._handler = handler

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        """Call the handler with a frame. Raises what the handler raises; BadResponse if it returns no valid reply.

        key: not used. Nothing is lost on the way, so no frame is sent again.
        """
        answer = self._handler(frame)
        return make_reply(decode_reply(answer), sent=len(frame), received=len(answer))

    def send_many(self, frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]:
        """Call the handler with one frame after the other. Returns the reply or the splitwire error of each."""
        results: list[Reply | SplitwireError] = []
        for frame, key in zip(frames, keys, strict=True):
            try:
                results.append(self.send(frame, key))
            except SplitwireError as e:
                results.append(e)
        return results

    def close(self) -> None:
        """Do nothing: there is no connection."""
