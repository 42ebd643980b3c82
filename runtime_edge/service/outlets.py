"""Outlets: where a service writes results and events, as JSON lines.

    stdout   standard output
    file     a file, rotated by size
    socket   a Unix stream socket that another process listens on; connected again when it goes away
    mqtt     a topic of a broker (needs splitwire[mqtt])
    hook     a Python function `module:function`, called with each line as a dict

An outlet never stops the frames: a Pump writes to it in a thread of its own. What cannot be written is counted and
reported once.
"""

from __future__ import annotations

import importlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import SplitResult, urlsplit

import msgspec

from splitwire.codec.errors import UsageError
from splitwire.runtime_edge.events import Event, EventSink

WAITING_LINES = 2000
"""Lines that wait for a slow outlet; more are lost."""
SOCKET_TIMEOUT_S = 1.0
MQTT_PORT = 1883

Line = dict[str, Any]
"""One result or event: what JSON can hold."""


class Outlet(Protocol):
    """Takes lines. `write` raises OSError if a line cannot be written; the next may again."""

    def write(self, line: Line) -> None:
        """Write one line."""
        ...

    def close(self) -> None:
        """Flush and close. A second call has no effect."""
        ...


class StreamOutlet:
    """Standard output, or the file descriptor `fd`. Each line goes to the system at once.

    There is no buffer in between, because a thread that is stuck in one would hold up the end of the process.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._fd = 1 if fd is None else fd

    def write(self, line: Line) -> None:
        """Write one line."""
        left = memoryview(encode(line))
        while left:
            left = left[os.write(self._fd, left) :]

    def close(self) -> None:
        """Leave the stream open: it is not ours."""


class FileOutlet:
    """A file of JSON lines. At `max_bytes` it becomes path.1, and what was path.1 path.2, up to `keep` of them.

    Raises UsageError if it cannot be opened.
    """

    def __init__(self, path: str | Path, *, max_bytes: int, keep: int) -> None:
        self._path = Path(path)
        self._max_bytes = max_bytes
        self._keep = keep
        self._fd = -1
        self._size = 0
        try:
            self._open()
        except OSError as e:
            raise UsageError(f"[[outlet]] file {path}: {(e.strerror or str(e)).lower()}") from e

    def write(self, line: Line) -> None:
        """Append one line, in one write; rotate first if the file would pass its bound."""
        data = encode(line)
        if self._size and self._size + len(data) > self._max_bytes:
            self._rotate()
        os.write(self._fd, data)
        self._size += len(data)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{i}") for i in range(1, self._keep + 1))]
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            with suppress(FileNotFoundError):
                newer.replace(older)
        if not self._keep:
            self._path.unlink(missing_ok=True)
        self._open()


class SocketOutlet:
    """A Unix stream socket that another process listens on. A reader that is not there, or is slow, loses lines."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def write(self, line: Line) -> None:
        """Send one line; connects first if there is no connection."""
        data = encode(line)
        if self._socket is None:
            self._socket = self._connect()
        try:
            self._socket.sendall(data)
        except OSError:
            self.close()  # half a line may have gone: the reader sees the end of the connection, and the line is lost
            raise

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        s.settimeout(SOCKET_TIMEOUT_S)
        try:
            s.connect(self._path)
        except OSError:
            s.close()
            raise
        return s


class HookOutlet:
    """A Python function, called with each line in the thread of the outlets."""

    def __init__(self, target: str) -> None:
        self._function = load_hook(target)

    def write(self, line: Line) -> None:
        """Call the function. What it raises becomes an OSError, so that the frames go on."""
        try:
            self._function(line)
        except Exception as e:
            raise OSError(f"hook raised {type(e).__name__}: {e}") from e

    def close(self) -> None:
        """Nothing to close."""


class MqttOutlet:
    """A topic of an MQTT broker, QoS 1. target: mqtt://host[:port]/topic. Needs paho-mqtt (splitwire[mqtt])."""

    def __init__(self, target: str) -> None:
        url, host, self._topic = self.check(target)
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.reconnect_delay_set(min_delay=1, max_delay=30)
        if url.username:
            self._client.username_pw_set(url.username, url.password)
        self._client.max_queued_messages_set(1000)
        # Connects in its own thread, and again when the broker goes away.
        self._client.connect_async(host, url.port or MQTT_PORT)
        self._client.loop_start()

    def write(self, line: Line) -> None:
        """Queue one line for the broker. Raises OSError if the queue is full."""
        done = self._client.publish(self._topic, encode(line).rstrip(b"\n"), qos=1)
        if done.rc not in (0, 4):  # 4: not connected; the line is queued
            raise OSError(f"mqtt: the line was not taken ({done.rc}); is the broker there?")

    def close(self) -> None:
        """Disconnect and end the thread."""
        self._client.disconnect()
        self._client.loop_stop()

    @staticmethod
    def check(target: str) -> tuple[SplitResult, str, str]:
        """The parts of the address, the host, and the topic. Raises UsageError, also without paho-mqtt."""
        url = urlsplit(target)
        topic = url.path.lstrip("/")
        if url.scheme != "mqtt" or not url.hostname or not topic:
            raise UsageError(f"[[outlet]] mqtt target is {target!r}; expected mqtt://host:1883/topic")
        if find_spec("paho") is None:
            raise UsageError("[[outlet]] of kind mqtt needs paho-mqtt; pip install 'splitwire[mqtt]'")
        return url, url.hostname, topic


class Pump:
    """Writes lines to an outlet, in a thread of its own.

    name: for events. what: which lines `offer` takes. waiting: most lines that wait. on_event: gets `outlet_lost` when
    lines begin to be lost, and `outlet_back` with their number when the outlet takes lines again. on_lost: called for
    each line that is lost.
    """

    def __init__(
        self,
        name: str,
        outlet: Outlet,
        *,
        on_event: EventSink,
        on_lost: Callable[[], object],
        what: Literal["all", "results", "events"] = "all",
        waiting: int = WAITING_LINES,
    ) -> None:
        self.name, self.what = name, what
        self.lost = 0
        self._outlet, self._on_event, self._on_lost, self._waiting = outlet, on_event, on_lost, waiting
        self._lines: deque[Line] = deque()
        self._changed = threading.Condition()
        self._closing = self._writing = False
        self._lost_now = 0
        self._thread = threading.Thread(target=self._run, name=f"splitwire-outlet-{name}", daemon=True)
        self._thread.start()

    def offer(self, line: Line, kind: Literal["results", "events"]) -> None:
        """Take a line, or count it as lost. Never waits for the outlet."""
        if self.what not in ("all", kind):
            return
        with self._changed:
            if len(self._lines) < self._waiting:
                self._lines.append(line)
                self._changed.notify()
                return
        self._lose("it is too slow")

    def close(self, seconds: float) -> int:
        """Write what waits, for at most `seconds`, and close the outlet. Returns how many lines are left."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        left = len(self._lines) + self._writing
        if not self._thread.is_alive():
            self._outlet.close()
        return left

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    if self._closing:
                        return
                    self._changed.wait()
                line = self._lines.popleft()
                self._writing = True
            try:
                self._outlet.write(line)
            except (OSError, ValueError, TypeError) as e:  # TypeError: a line that JSON cannot hold
                self._lose((e.strerror if isinstance(e, OSError) else None) or str(e))
            else:
                self._recover()
            self._writing = False

    def _lose(self, why: str) -> None:
        with self._changed:
            first, self._lost_now = not self._lost_now, self._lost_now + 1
            self.lost += 1
        self._on_lost()
        if first:
            text = f"outlet {self.name} takes no lines: {why}; those that are lost are counted"
            self._on_event(Event(kind="outlet_lost", text=text, fields={"outlet": self.name, "reason": why}))

    def _recover(self) -> None:
        if not self._lost_now or len(self._lines) >= self._waiting // 2:
            return
        with self._changed:
            lost, self._lost_now = self._lost_now, 0
        text = f"outlet {self.name} takes lines again; {lost:,} were lost"
        self._on_event(Event(kind="outlet_back", text=text, fields={"outlet": self.name, "lost": lost}))


def load_hook(target: str) -> Callable[[Line], object]:
    """The function `module:function`. Raises UsageError if it is not there or cannot be called."""
    module, _, name = target.partition(":")
    if not module or not name:
        raise UsageError(f"hook {target!r}: expected module:function")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as e:  # the module is the user's: its import may raise anything
        raise UsageError(f"hook {target!r}: {type(e).__name__}: {e}") from e
    if not callable(function):
        raise UsageError(f"hook {target!r} is no function")
    loaded: Callable[[Line], object] = function
    return loaded


def open_outlet(kind: str, target: str, *, max_bytes: int, keep: int) -> Outlet:
    """The outlet of a section of the configuration. Raises UsageError."""
    match kind:
        case "file":
            return FileOutlet(target, max_bytes=max_bytes, keep=keep)
        case "socket":
            return SocketOutlet(target)
        case "hook":
            return HookOutlet(target)
        case "mqtt":
            return MqttOutlet(target)
    return StreamOutlet()


def encode(line: Line) -> bytes:
    """A line as JSON with its line end."""
    return msgspec.json.encode(line) + b"\n"
