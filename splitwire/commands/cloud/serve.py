"""`splitwire cloud serve`: serves the back halves of a directory over HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from splitwire.codec.errors import UsageError
from splitwire.console import err, out

MAX_BODY = 4096
"""MiB."""
WATCH_S = 1.0


def serve(
    directory: Annotated[
        Path,
        typer.Argument(help="Folder with back.onnx, with NAME/back.onnx, or with NAME/VERSION/back.onnx; or one file."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 lets the system choose.")] = 8500,
    grpc_port: Annotated[
        int | None,
        typer.Option(help="Port for gRPC too (the Open Inference Protocol)."),
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ask for a token of this file (splitwire cloud token).")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write here who was refused and who was allowed what.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Serve https with this certificate and chain (PEM).")
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its private key (PEM).", show_default="in the certificate's file"),
    ] = None,
    client_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ask clients for a certificate of these authorities (PEM).")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on a public address without asking who uses the models.")
    ] = False,
    max_body: Annotated[float, typer.Option(help="Largest frame that is accepted, MiB.")] = 16.0,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Inferences at a time.", show_default="2; 1 on a single core")
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="Frames that may wait; further frames are refused.")] = 32,
    max_batch: Annotated[
        int, typer.Option(min=1, max=32, help="Most images of an inference that frames share; 1: none do.")
    ] = 8,
    max_delay_ms: Annotated[
        float, typer.Option(min=0, max=999, help="How long a frame waits for others while its model is busy.")
    ] = 0.0,
    threads: Annotated[int | None, typer.Option(help="Threads of one inference.")] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="What runs the models: CPU, CUDA, TensorRT; fails if it does not start. Again: who takes what the"
            " first does not take.",
            show_default="CUDA if it starts, else the CPU",
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(help="Follow the folder: load what is new or has changed, unload what is gone."),
    ] = False,
    max_models: Annotated[int, typer.Option(min=1, help="Most versions of models that are loaded.")] = 64,
    max_model_mib: Annotated[
        int | None, typer.Option(min=1, help="Most MiB of their files together.", show_default="no limit")
    ] = None,
    grace: Annotated[int, typer.Option(min=0, help="Seconds that running requests get to finish at shutdown.")] = 30,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds before shutdown in which it serves, but says that it is not ready.")
    ] = 0.0,
    as_json: Annotated[
        bool, typer.Option("--json", help='Print one line {"url": ..., "pid": ...} when ready, and nothing else.')
    ] = False,
) -> None:
    """Serve the back halves of exported models until SIGTERM or Ctrl-C."""
    import msgspec
    import onnxruntime as ort

    from splitwire.codec.shared.device import usable_cores
    from splitwire.codec.shared.providers import full_name, short_name
    from splitwire.runtime_cloud.admission import ServerLimits
    from splitwire.runtime_cloud.engines.process import log_to_stderr
    from splitwire.runtime_cloud.engines.process import serve as run_server
    from splitwire.runtime_cloud.oip import GrpcOptions
    from splitwire.runtime_cloud.repository import Repository, RepositoryLimits
    from splitwire.runtime_cloud.security import Security

    if not 0 < max_body <= MAX_BODY:  # also refuses NaN
        raise UsageError(f"--max-body must be more than 0 and up to {MAX_BODY:,} MiB, is {max_body:g}")
    body = max(1, int(max_body * (1 << 20)))
    buffered = max(ServerLimits.max_buffered, body)
    limits = ServerLimits(
        max_body=body,
        max_buffered=buffered,
        concurrency=min(2, usable_cores()) if concurrency is None else concurrency,
        queue=queue,
        max_batch=max_batch,
        max_delay=max_delay_ms / 1e3,
    )
    security = Security(
        tokens=tokens, audit=audit, tls_cert=tls_cert, tls_key=tls_key, client_ca=client_ca, insecure=insecure
    )
    names = None if not provider else [full_name(name, ort.get_available_providers()) for name in provider]
    log_to_stderr()
    models = Repository(
        directory,
        threads=threads,
        providers=names,
        limits=RepositoryLimits(models=max_models, file_bytes=None if max_model_mib is None else max_model_mib << 20),
        watch=WATCH_S if watch else None,
    )

    grpc: GrpcOptions | None = None
    targets: list[str] = []
    if grpc_port is not None:
        grpc = GrpcOptions(
            host=host,
            port=grpc_port,
            grace_s=grace,
            certificate=tls_cert,
            key=tls_key or tls_cert,
            client_ca=client_ca,
            on_listen=targets.append,
        )

    def ready(url: str) -> None:
        if as_json:
            # Flushed at once: a parent process waits for this line, and reads the URL from it.
            sys.stdout.write(
                msgspec.json.encode(
                    {"url": url, "pid": os.getpid(), **({"grpc": targets[0]} if targets else {})}
                ).decode()
                + "\n"
            )
            sys.stdout.flush()
            return
        for session in models:
            profile = session.profile
            points = ", ".join(p.name for p in profile.operating_points)
            line = f"{profile.model} after {profile.cut}, pair {session.fingerprint.hex()}, operating points {points}"
            out.print(f"{line}, on {short_name(session.provider)}", markup=False, soft_wrap=True)
            for reason in session.passed_over:
                err.print(reason, markup=False, soft_wrap=True)
        for target in targets:
            out.print(f"gRPC at {target}", markup=False, soft_wrap=True)
        out.print(f"Serving at {url} (Ctrl-C stops)", markup=False, soft_wrap=True)

    unfinished = run_server(
        models,
        host=host,
        port=port,
        limits=limits,
        grace_s=grace,
        drain_s=drain,
        security=security,
        grpc=grpc,
        on_ready=ready,
    )
    if unfinished:
        err.print(f"{unfinished} inferences did not finish within {grace} s and were cut off")
        # Their threads cannot be stopped, and the interpreter would wait for them without limit.
        sys.stdout.flush()
        os._exit(1)
