"""`splitwire edge capture`: a bounded sample of pictures or features for `splitwire export --recalibrate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitwire.codec.errors import NonFiniteFeatures, UsageError
from splitwire.commands.options import seconds
from splitwire.console import err, interruptible, out, print_json, progress_bar

if TYPE_CHECKING:
    from splitwire.codec.profile import Preprocessing
    from splitwire.runtime_edge.control.capture import Capture
    from splitwire.runtime_edge.graph import Input
    from splitwire.runtime_edge.sources.base import Picture, Source

WHAT = ("pictures", "features")
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def capture(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Pictures, or folders of them; or one video, one camera (rtsp://, http://, /dev/video0), - for stdin.",
        ),
    ],
    front: Annotated[Path, typer.Option(help="The front.onnx that `splitwire export` wrote.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the sample; an earlier sample there is continued.")],
    what: Annotated[
        str, typer.Option(help="pictures; or features, where pictures must not leave the device.")
    ] = "pictures",
    max_bytes: Annotated[str, typer.Option(help="Most bytes of the sample, as 64MB.")] = "64MB",
    every: Annotated[
        str, typer.Option(help="Least time from one file to the next, as 30s; the strangest do not wait.")
    ] = "0",
    images: Annotated[
        int | None, typer.Option(min=1, help="Look at this many pictures, then end.", show_default="all")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the front.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a line.")] = False,
) -> None:
    """Collect the newest and the strangest pictures, or their features, for a recalibration."""
    if what not in WHAT:
        raise UsageError(f"--what takes pictures or features; got {what!r}")
    size, pause = _bytes(max_bytes), seconds("--every", every)
    from splitwire.runtime_edge.control import Capture, DriftMonitor
    from splitwire.runtime_edge.graph import open_front

    graph = open_front(front, threads=threads)
    if graph.profile.preprocessing is None:
        raise UsageError(f"{front} was exported without preprocessing, so it takes arrays only, not pictures")
    if graph.input_shape[0] not in (None, 1):
        raise UsageError(f"{front} takes batches of {graph.input_shape[0]} images; a sample is of single ones")
    monitor = None if graph.drift is None else DriftMonitor(graph.profile, graph.drift)
    if monitor is None:
        err.print(
            "note: this pair holds no limits of drift (few calibration images, or an older export): only the newest are"
            " kept",
            soft_wrap=True,
        )
    source, total = _open(sources)
    sample = Capture(to, max_bytes=size, every_s=pause)
    done = skipped = 0
    with interruptible(f"what was captured is in {to}"), progress_bar(not as_json) as progress:
        try:
            for captured in source:
                progress("Capture", done, total if images is None else images)
                done += 1
                try:
                    features = graph.run(_input(captured.image, graph.profile.preprocessing)).features
                    score = 0.0 if monitor is None else monitor.strangeness(features)
                    if what == "features":
                        sample.features(features, score)
                    else:
                        sample.picture(captured.image, score)
                except (UsageError, NonFiniteFeatures) as e:
                    skipped += 1
                    err.print(f"skipped: {e}", markup=False, soft_wrap=True)
                if done == images:
                    break
        finally:
            source.close()
    _report(sample, skipped, done, as_json)


def _open(sources: list[str]) -> tuple[Source, int | None]:
    """The source, and how many pictures it has at most, if that is known."""
    from splitwire.runtime_edge.sources import Pictures, open_source
    from splitwire.runtime_edge.sources.opening import is_camera
    from splitwire.runtime_edge.sources.video import SUFFIXES

    from .running import find_images

    paths = [Path(text) for text in sources]
    live = [text for text in sources if text == "-" or is_camera(text) or Path(text).suffix.lower() in SUFFIXES]
    if not live:
        found = find_images(paths)
        return Pictures(found), len(found)
    if len(sources) > 1:
        raise UsageError(f"{live[0]}: a video, a camera or stdin is captured alone")
    return open_source(sources[0]), None


def _input(image: Picture, how: Preprocessing) -> Input:
    """A batch of one."""
    import numpy as np  # not above: `splitwire doctor` must start where NumPy does not

    from splitwire.codec import preprocessing

    if isinstance(image, np.ndarray):
        return preprocessing.apply(preprocessing.from_array(image), how)[np.newaxis]
    x = preprocessing.load(image, how) if isinstance(image, Path) else preprocessing.apply(image, how)
    return x[np.newaxis]


def _report(sample: Capture, skipped: int, total: int, as_json: bool) -> None:
    if skipped == total > 0:
        raise UsageError(f"none of the {total} files can be read as a picture")
    kept = sample.kept
    if not kept:
        raise UsageError(f"none of the files fits into {sample.max_bytes} bytes; raise --max-bytes")
    if as_json:
        files = [{"path": str(k.path), "captured": k.captured, "score": k.score, "bytes": k.size} for k in kept]
        print_json({"folder": str(sample.folder), "bytes": sample.total_bytes, "skipped": skipped, "files": files})
        return
    scores = sorted(k.score for k in kept)
    out.print(
        f"{sample.folder}: {len(kept)} files, {sample.total_bytes:,} bytes;"
        f" drift scores {scores[0]:.2f} to {scores[-1]:.2f}",
        markup=False,
        soft_wrap=True,
    )


def _bytes(text: str) -> int:
    """A size as 64MB, 500 kB or 1000000. Raises UsageError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg]?b?)", text.strip().lower())
    if found is None or found[2] in ("k", "m", "g") or int(float(found[1]) * UNITS[found[2]]) < 1:
        raise UsageError(f"--max-bytes takes a size, as 64MB or 500kB; got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])
