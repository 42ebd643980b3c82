"""`splitwire edge capture`: a bounded sample of pictures or features for `splitwire export --recalibrate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitwire.codec.errors import NonFiniteFeatures, UsageError
from splitwire.console import err, interruptible, out, print_json, progress_bar

if TYPE_CHECKING:
    from splitwire.runtime_edge.control.capture import Capture

WHAT = ("pictures", "features")
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def capture(
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    front: Annotated[Path, typer.Option(help="The front.onnx that `splitwire export` wrote.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the sample; an earlier sample there is continued.")],
    what: Annotated[
        str, typer.Option(help="pictures; or features, where pictures must not leave the device.")
    ] = "pictures",
    max_bytes: Annotated[str, typer.Option(help="Most bytes of the sample, as 64MB.")] = "64MB",
    threads: Annotated[int | None, typer.Option(help="Threads of the front.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a line.")] = False,
) -> None:
    """Collect the newest and the strangest pictures, or their features, for a recalibration."""
    if what not in WHAT:
        raise UsageError(f"--what takes pictures or features; got {what!r}")
    size = _bytes(max_bytes)
    from splitwire.codec.preprocessing import load
    from splitwire.runtime_edge.control import Capture, DriftMonitor
    from splitwire.runtime_edge.graph import open_front

    from .running import find_images

    paths = find_images(images)
    graph = open_front(front, threads=threads)
    how = graph.profile.preprocessing
    if how is None:
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
    sample = Capture(to, max_bytes=size)
    skipped = 0
    with interruptible(f"what was captured is in {to}"), progress_bar(not as_json) as progress:
        for done, path in enumerate(paths):
            progress("Capture", done, len(paths))
            try:
                features = graph.run(load(path, how)[None]).features
                score = 0.0 if monitor is None else monitor.strangeness(features)
                if what == "features":
                    sample.features(features, score)
                else:
                    sample.picture(path, score)
            except (UsageError, NonFiniteFeatures) as e:
                skipped += 1
                err.print(f"skipped: {e}", markup=False, soft_wrap=True)
    _report(sample, skipped, len(paths), as_json)


def _report(sample: Capture, skipped: int, total: int, as_json: bool) -> None:
    if skipped == total:
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
