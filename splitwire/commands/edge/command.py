"""The options of `splitwire edge run` and `splitwire edge profile`. running.py does the work of `run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitwire.codec.errors import UsageError
from splitwire.commands.options import seconds
from splitwire.console import interruptible, out, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from splitwire.codec.shared.device import DeviceProfile

    Places = Sequence[str | Path]
else:
    Places = list[str]  # a Path would take a slash from rtsp://

TOKEN_VARIABLE = "SPLITWIRE_TOKEN"  # noqa: S105 - the name of a variable, not a token


def run(
    images: Annotated[
        Places,
        typer.Argument(
            metavar="SOURCE...",
            help="Pictures, or folders of them; or a video, a camera (rtsp://, http://, /dev/video0), or - for standard"
            " input.",
        ),
    ],
    front: Annotated[Path, typer.Option(help="The front.onnx that `splitwire export` wrote.")],
    url: Annotated[
        str, typer.Option(help="Where `splitwire cloud serve` listens, http://host:port or stream://host:port.")
    ],
    op: Annotated[str | None, typer.Option(help="Operating point, as n4.", show_default="the model's")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="What the outputs are: classification, detection or segmentation.", show_default="as the model says"
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to show per picture.")] = 3,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Detections with a smaller score are counted, not shown.")
    ] = 0.5,
    save: Annotated[Path | None, typer.Option(help="Folder for copies of the pictures with the results drawn.")] = None,
    repeat: Annotated[
        int, typer.Option(min=1, help="Run each picture this many times, and show the median times.")
    ] = 1,
    wait: Annotated[
        str, typer.Option(help="How long to wait for a server that starts, restarts or is out of reach; 0: no wait.")
    ] = "60s",
    timeout: Annotated[str, typer.Option(help="Longest wait for the next bytes of an answer.")] = "30s",
    deadline: Annotated[str, typer.Option(help="Longest time for one picture on the link, retries included.")] = "60s",
    token: Annotated[
        str | None,
        typer.Option(help=f"Token to send to the server; better in the variable {TOKEN_VARIABLE} or in a file."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File that holds the token; read again when it changes.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="Certificates (PEM) to trust, for an https:// server.")] = None,
    cert: Annotated[
        Path | None, typer.Option(help="Certificate (PEM) of this device, where the server asks for one.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Its private key (PEM, no password).", show_default="in --cert")
    ] = None,
    lean: Annotated[
        bool, typer.Option("--lean", help="Send 57 bytes less per request; some proxies refuse that.")
    ] = False,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="Execution provider that must run the front, as CPU, CUDA or TensorRT; repeat for the nodes that it"
            " does not take.",
            show_default="the best that starts",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the front.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Run the pictures that appear in the folder from now on.")
    ] = False,
    fps: Annotated[float | None, typer.Option(help="Pictures per second.", show_default="as they come")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="What happens to a picture that comes too soon: block, drop-oldest or drop-newest.",
            show_default="drop-oldest for cameras, else block",
        ),
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option(min=1, max=256, help="Most frames in flight.", show_default="by the round trip")
    ] = None,
    skip_unchanged: Annotated[
        bool,
        typer.Option("--skip-unchanged", help="Do not send frames like the last one sent (`edge calibrate-skip`)."),
    ] = False,
    max_changed: Annotated[
        float, typer.Option(help="Share of the frames not sent that may have another answer.")
    ] = 0.01,
    refresh: Annotated[str, typer.Option(help="Send a frame at least this often; 0: not by time.")] = "10s",
    skip_table: Annotated[
        Path | None,
        typer.Option(help="File of `edge calibrate-skip`.", show_default="front.skip.json beside front.onnx"),
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Send only frames for which this function returns True."),
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(
            help="Choose the operating point of each frame so that its answer comes within this time, as 200ms.",
            show_default="no rate control",
        ),
    ] = None,
    min_op: Annotated[
        str | None, typer.Option(help="The coarsest operating point that the rate control takes.")
    ] = None,
    drift: Annotated[
        bool, typer.Option("--drift", help="Tell when the input no longer looks like the calibration's.")
    ] = False,
    spool: Annotated[
        Path | None,
        typer.Option(
            help="File that keeps the frames that do not get through, and sends them when the server is back."
        ),
    ] = None,
    spool_tier: Annotated[
        str, typer.Option(help="durable survives a power cut; buffered may lose what was last stored.")
    ] = "durable",
    fallback: Annotated[
        Path | None,
        typer.Option(help="The back.onnx of the pair: answers on this device the frames that do not get through."),
    ] = None,
    spool_fallback: Annotated[
        bool, typer.Option("--spool-fallback", help="Spool also the frames that the fallback answered.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON Lines: one per picture, then a summary.")] = False,
) -> None:
    """Run pictures, a video or a camera through a network split between this machine and a server."""
    from splitwire.codec.shared.tasks import TASKS
    from splitwire.commands.edge.link import find_token, full_names, open_transport
    from splitwire.runtime_edge.service.link import Link, host_id
    from splitwire.runtime_edge.session import EdgeSession

    from .controls import ControlOptions, open_controls
    from .output import JsonLines, Lines, print_event
    from .running import Job, Saver, find_images
    from .streaming import StreamJob, StreamOptions, chosen_policy, is_stream, make_skip, open_places, print_json_event

    if task is not None and task not in TASKS:
        raise UsageError(f"a task is {', '.join(TASKS)}; got {task!r}")
    wait_s = seconds("--wait", wait)
    places = [str(image) for image in images]
    options = StreamOptions(
        watch=watch,
        fps=fps,
        policy=policy,
        in_flight=in_flight,
        skip_unchanged=skip_unchanged,
        skip_table=skip_table,
        max_changed=max_changed,
        refresh_s=seconds("--refresh", refresh),
        gate=gate,
        controls=ControlOptions(
            latency_s=None if latency is None else seconds("--latency", latency),
            min_op=min_op,
            drift=drift,
            spool=spool,
            tier=spool_tier,
            fallback=fallback,
            spool_fallback=spool_fallback,
        ),
    )
    streams = is_stream(places, options)
    if streams and (save is not None or repeat > 1):
        raise UsageError("--save and --repeat are for pictures and folders, without the options of a stream")
    paths = [] if streams else find_images([Path(place) for place in places])
    opened = open_transport(
        url,
        timeout_s=seconds("--timeout", timeout),
        deadline_s=seconds("--deadline", deadline),
        token=find_token(token, token_file, TOKEN_VARIABLE),
        ca=ca,
        cert=cert,
        key=key,
        lean=lean,
        connections=in_flight or 0,
    )
    tell = print_json_event if as_json and streams else print_event
    patient = options.controls.outlasts_link
    transport = Link(opened, device=host_id(), patient=True, on_event=tell) if patient else opened
    providers = full_names(provider)
    with EdgeSession(
        front, transport=transport, op=op, threads=threads, providers=providers, on_event=print_event
    ) as session:
        if session.profile.preprocessing is None:
            raise UsageError(f"{front} was exported without preprocessing, so it takes arrays only, not pictures")
        if streams:
            stream_job = StreamJob(
                session=session,
                source=(source := open_places(places, options, tell)),
                policy=chosen_policy(source, policy),
                options=options,
                skip=make_skip(session.profile, front, options, task, min_score),
                wait_s=wait_s,
                task=task,
                top=top,
                min_score=min_score,
                as_json=as_json,
            )
            with (
                interruptible("no picture was done"),
                open_controls(
                    options.controls,
                    session,
                    transport,
                    op=op,
                    fps=fps,
                    threads=threads,
                    on_event=tell,
                    on_reply=stream_job.late,
                ) as controls,
            ):
                stream_job.run(controls)
            return
        saver = None if save is None else Saver(save, paths, session.profile.preprocessing)
        output = JsonLines() if as_json else Lines()
        job = Job(
            session=session,
            how=session.profile.preprocessing,
            output=output,
            wait_s=wait_s,
            repeat=repeat,
            task=task,
            top=top,
            min_score=min_score,
            saver=saver,
            op=session.profile.operating_points[session.profile.point_index(op)].name,
            progress=not (as_json or out.is_terminal),  # results on the screen show the progress
        )
        with interruptible("no picture was done"):
            job.run(paths)


def profile(
    to: Annotated[Path, typer.Option("--out", help="File to write, for --device of `splitwire plan`.")],
    name: Annotated[str | None, typer.Option(help="Name in the file.", show_default="architecture and threads")] = None,
    front: Annotated[
        list[Path] | None,
        typer.Option(help="A front.onnx to time: `splitwire plan` takes its time for that cut; repeatable."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the front.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON instead of a table.")] = False,
) -> None:
    """Measure how fast this machine is, for `splitwire plan`. It takes about ten seconds; keep the machine idle."""
    if not to.resolve().parent.is_dir():
        raise UsageError(f"--out: there is no folder {to.parent}")
    from splitwire.runtime_edge.device import measure_device

    with progress_bar(not as_json) as progress:
        measured = measure_device(name=name, threads=threads, fronts=front or (), progress=progress)
    measured.save(to)
    if as_json:
        print_json(measured)
    else:
        _print_profile(measured, to)


def _print_profile(measured: DeviceProfile, to: Path) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for what, value in (
        ("convolutions", f"{measured.conv_macs / 1e9:.1f} GMAC/s"),
        ("matrix products", f"{measured.matmul_macs / 1e9:.1f} GMAC/s"),
        ("depthwise convolutions", f"{measured.depthwise_macs / 1e9:.1f} GMAC/s"),
        ("elementwise nodes", f"{measured.elementwise_bytes / 1e9:.1f} GB/s"),
        ("weights", f"{measured.weight_bytes / 1e9:.1f} GB/s"),
        ("each node", f"{measured.node_overhead_us:.2f} µs"),
        (
            "features encoded, decoded",
            f"{measured.encode_elements / 1e6:.0f}, {measured.decode_elements / 1e6:.0f} M/s",
        ),
        (
            "JPEG encoded, decoded",
            f"{measured.jpeg_encode_pixels / 1e6:.0f}, {measured.jpeg_decode_pixels / 1e6:.0f} Mpixel/s",
        ),
        *((f"front of {cut.model} to {cut.cut}", f"{cut.front_ms:.2f} ms") for cut in measured.measured_cuts),
    ):
        table.add_row(what, value)
    print_table(table)
    out.print(f"{to}  {measured.name}", markup=False, soft_wrap=True)
    out.print(f"{measured.note}", markup=False, soft_wrap=True)
