"""Server-sent events: one JSON text per second to every page that watches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

WATCHERS = 16
"""Pages that may watch at a time."""
WRITE_S = 20.0
"""A page that takes nothing for this time is cut off."""
LIFE_S = 3600.0
"""After this time a page must connect again, so that a right to watch that was taken away ends."""
RETRY_MS = 1000
"""How soon a page connects again."""


class Channel:
    """Carries the newest message to all watchers. A slow watcher misses messages; it never gets an old one.

    Only the thread of the event loop uses it.
    """

    def __init__(self) -> None:
        self._message = ""
        self._closed = False
        self._changed: anyio.Event | None = None  # made by a watcher: an old anyio makes none without an event loop

    def publish(self, message: str) -> None:
        """Replace the newest message."""
        self._message = message
        self._wake()

    def close(self) -> None:
        """End all watchers."""
        self._closed = True
        self._wake()

    async def next_message(self) -> str | None:
        """The next message that is published; None at the end."""
        if not self._closed:
            self._changed = self._changed or anyio.Event()
            await self._changed.wait()
        return None if self._closed else self._message

    def _wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()


class EventStream(Response):
    """The response to one watcher.

    first: messages to begin with, as (event, data). count: called with 1 when it begins, and with -1 when it ends.
    """

    def __init__(self, channel: Channel, first: list[tuple[str, str]], count: Callable[[int], None]) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        del self.headers["content-length"]
        self._channel, self._first, self._count = channel, first, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client goes, the server stops, or LIFE_S are over."""
        self._count(1)
        try:
            async with anyio.create_task_group() as tasks:

                async def until_gone() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    tasks.cancel_scope.cancel()

                tasks.start_soon(until_gone)
                with anyio.move_on_after(LIFE_S):
                    await self._send_events(send)
                tasks.cancel_scope.cancel()
        finally:
            self._count(-1)

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        lines = [f"retry: {RETRY_MS}\n\n", *(_event(*pair) for pair in self._first)]
        if not await _write(send, "".join(lines)):
            return
        while (message := await self._channel.next_message()) is not None:
            if not await _write(send, _event("state", message)):
                return
        await _write(send, "", more=False)


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"


async def _write(send: Send, text: str, *, more: bool = True) -> bool:
    """Whether the client took it in time."""
    message: dict[str, Any] = {"type": "http.response.body", "body": text.encode(), "more_body": more}
    with anyio.move_on_after(WRITE_S):
        await send(message)
        return True
    return False
