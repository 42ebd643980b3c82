"""Sources of pictures for `EdgeSession.stream` and `splitwire edge run`.

opening.py    open_source: the source that a text or an iterable means
base.py       Captured, and what a Source is
pictures.py   Pictures, WatchedFolder, Items (any iterable)
video.py      VideoFile and Camera (RTSP, HTTP, V4L2), through PyAV
pipe.py       Pipe: JPEG or PNG files or raw frames on standard input
pacing.py     Paced: a source at a chosen rate
"""

from .base import Captured, Source
from .opening import as_source, open_source
from .pacing import Paced
from .pictures import Items, Pictures, WatchedFolder
from .pipe import Pipe
from .video import Camera, VideoFile

__all__ = [
    "Camera",
    "Captured",
    "Items",
    "Paced",
    "Pictures",
    "Pipe",
    "Source",
    "VideoFile",
    "WatchedFolder",
    "as_source",
    "open_source",
]
