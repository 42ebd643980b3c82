r"""Pipe: pictures from a stream of bytes, as standard input.

The first bytes decide the format:

    JPEG or PNG files one behind the other, without anything between them (`ffmpeg … -f image2pipe -c:v mjpeg -`)
    raw frames: one line of ASCII, `splitwire-raw WIDTH HEIGHT FORMAT\n` with FORMAT rgb24, bgr24 or gray, then frames
    of WIDTH·HEIGHT·3 (gray: ·1) bytes each, row by row, without anything between them
"""

from __future__ import annotations

import io
import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, TYPE_CHECKING

import numpy as np

from splitwire.codec.errors import UsageError

from .base import Captured

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

MAGIC = b"splitwire-raw "
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
READ = 1 << 16
MAX_PICTURE = 256 << 20
"""Most bytes of one picture."""
MAX_HEADER = 100
CHANNELS = {"rgb24": 3, "bgr24": 3, "gray": 1}


class Pipe:
    """The pictures in a stream of bytes. It ends with the stream.

    stream: None for standard input. Raises UsageError for another format, and for a stream that ends in a picture.
    """

    live = True

    def __init__(self, stream: IO[bytes] | None = None, *, name: str = "stdin") -> None:
        self._bytes = _Bytes(sys.stdin.buffer if stream is None else stream)
        self._name = name
        self._index = 0
        self._raw: tuple[int, int, str] | None = None

    def __iter__(self) -> Iterator[Captured]:
        return self

    def __next__(self) -> Captured:
        if self._index == 0 and self._bytes.starts(MAGIC):
            self._raw = self._header()
        image = self._next_raw(*self._raw) if self._raw is not None else self._next_file()
        self._index += 1
        return Captured.now(image, name=self._name, index=self._index - 1)

    def close(self) -> None:
        """Stop reading; a `next` that waits for bytes ends. The stream itself is left open."""
        self._bytes.stop()

    def _header(self) -> tuple[int, int, str]:
        line = self._bytes.until(b"\n", MAX_HEADER)
        words = line.decode("ascii", "replace").split()
        try:
            _, width, height, form = words
            size = int(width), int(height)
            if form not in CHANNELS or min(size) < 1 or size[0] * size[1] * CHANNELS[form] > MAX_PICTURE:
                raise ValueError
        except ValueError:
            raise UsageError(
                f"{self._name}: {line!r} is no header of raw frames; expected b'splitwire-raw WIDTH HEIGHT FORMAT\\n'"
                f" with FORMAT {', '.join(CHANNELS)}"
            ) from None
        return (*size, form)

    def _next_raw(self, width: int, height: int, form: str) -> NDArray[np.uint8]:
        channels = CHANNELS[form]
        data = self._bytes.take(width * height * channels)
        if not data:
            raise StopIteration
        if len(data) < width * height * channels:
            raise UsageError(f"{self._name}: the stream ends in frame {self._index}")
        pixels = np.frombuffer(data, np.uint8)
        if channels == 1:
            return pixels.reshape(height, width)
        pixels = pixels.reshape(height, width, 3)
        return np.ascontiguousarray(pixels[..., ::-1]) if form == "bgr24" else pixels

    def _next_file(self) -> Image:
        if self._bytes.starts(JPEG):
            data = self._jpeg()
        elif self._bytes.starts(PNG):
            data = self._png()
        elif self._bytes.is_at_end():
            raise StopIteration
        else:
            raise UsageError(
                f"{self._name}: picture {self._index} is neither JPEG nor PNG, and the stream does not begin with"
                " 'splitwire-raw '"
            )
        from PIL import Image, UnidentifiedImageError

        try:
            return Image.open(io.BytesIO(data))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as e:
            raise UsageError(f"{self._name}: picture {self._index} cannot be read: {e}") from e

    def _jpeg(self) -> bytes:
        """A JPEG file: its segments by their lengths, so that a thumbnail in one is no end; then to the EOI marker."""
        data = bytearray(self._part(2))
        while True:
            marker = self._part(2)
            while marker[0] == 0xFF and marker[1] == 0xFF:  # fill bytes
                marker = marker[1:] + self._part(1)
            data += marker
            if marker[0] != 0xFF:
                raise UsageError(f"{self._name}: picture {self._index} is damaged: no JPEG marker at byte {len(data)}")
            if marker[1] == 0xD9:
                return bytes(data)
            if marker[1] == 0x01 or 0xD0 <= marker[1] <= 0xD7:
                continue
            length = self._part(2)
            data += length
            data += self._part(int.from_bytes(length, "big") - 2)
            if marker[1] == 0xDA:  # a scan follows: up to the next marker that is neither stuffed nor a restart
                data += self._scan()
            self._check(len(data))

    def _scan(self) -> bytes:
        found = bytearray()
        while True:
            found += self._bytes.until(b"\xff", MAX_PICTURE)
            following = self._bytes.peek(1)
            if not found or found[-1] != 0xFF or not following:
                raise UsageError(f"{self._name}: the stream ends in picture {self._index}")
            if following[0] != 0 and not 0xD0 <= following[0] <= 0xD7:
                self._bytes.give_back(1)
                return bytes(found[:-1])
            self._check(len(found))

    def _png(self) -> bytes:
        data = bytearray(self._part(8))
        while True:
            head = self._part(8)
            data += head
            data += self._part(int.from_bytes(head[:4], "big") + 4)
            self._check(len(data))
            if head[4:] == b"IEND":
                return bytes(data)

    def _part(self, size: int) -> bytes:
        self._check(size)
        data = self._bytes.take(size) if size > 0 else b""
        if len(data) < size:
            raise UsageError(f"{self._name}: the stream ends in picture {self._index}")
        return data

    def _check(self, size: int) -> None:
        if not 0 <= size <= MAX_PICTURE:
            raise UsageError(f"{self._name}: picture {self._index} is damaged or has more than {MAX_PICTURE} bytes")


class _Bytes:
    """A stream of bytes that can be looked into, and stopped from another thread."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._at = 0
        self._ended = False
        self._fd: int | None = None
        with suppress(OSError, ValueError, AttributeError):  # a BytesIO has none
            self._fd = stream.fileno()
        self._stopped = threading.Event()
        self._wake = os.pipe() if self._fd is not None and sys.platform != "win32" else None

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, or what is left."""
        while len(self._buffer) - self._at < size and self._more():
            pass
        return bytes(self._buffer[self._at : self._at + size])

    def starts(self, magic: bytes) -> bool:
        """Whether these bytes come next."""
        return self.peek(1) == magic[:1] and self.peek(len(magic)) == magic

    def is_at_end(self) -> bool:
        """Whether nothing is left."""
        return not self.peek(1)

    def take(self, size: int) -> bytes:
        """Remove and return the next `size` bytes, or what is left."""
        data = self.peek(size)
        self._at += len(data)
        if self._at > READ:
            del self._buffer[: self._at]
            self._at = 0
        return data

    def give_back(self, size: int) -> None:
        """Undo the removal of the last bytes of `until`."""
        self._at -= size

    def until(self, mark: bytes, limit: int) -> bytes:
        """Remove and return everything up to and with `mark`, at most about `limit` bytes of it, or what is left."""
        start = self._at
        while (found := self._buffer.find(mark, start)) < 0:
            start = max(self._at, len(self._buffer) - len(mark) + 1)
            if len(self._buffer) - self._at > limit or not self._more():
                found = len(self._buffer) - len(mark)
                break
        data = bytes(self._buffer[self._at : found + len(mark)])
        self._at += len(data)
        return data

    def stop(self) -> None:
        """End a read that waits."""
        self._stopped.set()
        if self._wake is not None:
            with suppress(OSError):
                os.write(self._wake[1], b"x")

    def _more(self) -> bool:
        """Read what there is, after waiting for it. False at the end."""
        if self._ended or self._stopped.is_set():
            return False
        if self._fd is None or self._wake is None:
            data = self._stream.read(READ)
        else:
            select.select([self._fd, self._wake[0]], [], [])
            data = b"" if self._stopped.is_set() else os.read(self._fd, READ)
        self._ended = not data
        self._buffer += data
        return bool(data)

    def __del__(self) -> None:
        for end in getattr(self, "_wake", None) or ():
            with suppress(OSError):
                os.close(end)
