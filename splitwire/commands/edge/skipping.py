"""`splitwire edge calibrate-skip`: finds the threshold of `edge run --skip-unchanged` on a clip of the camera."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitwire.codec.errors import UsageError
from splitwire.commands.options import seconds
from splitwire.console import interruptible, out, print_json, progress_bar


def calibrate_skip(
    source: Annotated[str, typer.Argument(help="Clip of the camera: a video, a folder of pictures, or the camera.")],
    front: Annotated[Path, typer.Option(help="The front.onnx that `splitwire export` wrote.")],
    url: Annotated[str, typer.Option(help="Where `splitwire cloud serve` listens, http://host:port.")],
    to: Annotated[
        Path | None, typer.Option("--out", help="File to write.", show_default="front.skip.json beside front.onnx")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=2, help="Frames of the clip.", show_default="all; 5000 of a camera")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second, as `edge run` will take them.")] = None,
    max_changed: Annotated[
        float, typer.Option(help="Share of the frames not sent that may have another answer, for the result shown.")
    ] = 0.01,
    task: Annotated[
        str | None, typer.Option(help="What the outputs are, as for `edge run`.", show_default="as the model says")
    ] = None,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Detections with a smaller score do not count.")] = 0.5,
    wait: Annotated[str, typer.Option(help="How long to wait for a server that is out of reach.")] = "60s",
    token_file: Annotated[Path | None, typer.Option(help="File that holds the token.")] = None,
    ca: Annotated[Path | None, typer.Option(help="Certificates (PEM) to trust, for an https:// server.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Find out on a clip which frames need not be sent. Every frame is sent for it."""
    from itertools import islice

    from splitwire.runtime_edge.session import EdgeSession
    from splitwire.runtime_edge.sources import open_source
    from splitwire.runtime_edge.stream.skip import Sameness, SkipTable, Trial

    from .command import TOKEN_VARIABLE
    from .link import find_token, open_transport
    from .output import print_event

    if not 0 < max_changed < 1:
        raise UsageError(f"--max-changed is a share between 0 and 1, got {max_changed:g}")
    wait_s = seconds("--wait", wait)
    opened = open_source(source, fps=fps, on_event=print_event)
    most = frames if frames is not None else 5000 if opened.live else None
    token = find_token(None, token_file, TOKEN_VARIABLE)
    transport = open_transport(url, timeout_s=30.0, deadline_s=60.0, token=token, ca=ca)
    with EdgeSession(front, transport=transport, on_event=print_event) as session:
        trial = Trial(session.profile, Sameness(session.profile, task=task, min_score=min_score))
        with (
            interruptible("no file was written"),
            progress_bar(not as_json) as progress,
            session.stream(opened, skip=trial, wait_s=wait_s, on_event=print_event) as stream,
        ):
            for done, result in enumerate(islice(stream, most)):
                trial.add(result)
                progress("Frames", done + 1, most)
    table = trial.table()
    target = SkipTable.path_beside(front) if to is None else to
    threshold = table.threshold(max_changed)
    tried = table.at(threshold)
    table.save(target)
    if as_json:
        print_json({"file": str(target), "frames": table.frames, "op": table.op, "chosen": tried})
        return
    sent = 1 - tried.skipped / table.frames
    changed = tried.changed / max(tried.skipped, 1)
    out.print(f"{target}", markup=False, soft_wrap=True)
    text = f"{table.frames:,} frames: {sent:.1%} would be sent, and {changed:.2%} of the others had another answer"
    out.print(text, markup=False, soft_wrap=True)
