"""What every source gives: pictures with the time at which they were captured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    Picture = Path | Image | NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Captured:
    """One picture of a source.

    image: the path of a picture file; a PIL image; an (H, W, 3) uint8 RGB array or an (H, W) gray one; or an array of
    the network's input as `EdgeSession.infer` takes it, with as many axes as that has. captured: time.monotonic() when
    the picture was captured. wall: time.time() then. name: a file's path, or the source's name. index: counts the
    pictures of the source from 0, those included that are dropped later.
    """

    image: Picture
    captured: float
    wall: float
    name: str
    index: int

    @classmethod
    def now(cls, image: Picture, *, name: str, index: int) -> Self:
        """A picture captured now."""
        return cls(image=image, captured=time.monotonic(), wall=time.time(), name=name, index=index)


class Source(Protocol):
    """An iterator of pictures. `next` blocks until there is one; `close` may be called from another thread.

    live: whether pictures come at the source's own pace, as a camera's do. A stored source waits until it is asked.
    """

    @property
    def live(self) -> bool: ...

    def __iter__(self) -> Iterator[Captured]: ...

    def __next__(self) -> Captured: ...

    def close(self) -> None:
        """Free what the source holds, and end a `next` that waits. A second call has no effect."""
        ...
