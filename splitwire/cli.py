"""The `splitwire` command: one function per subcommand, one line per error.

Exit status: 0 success; 2 wrong use of the command; 3 `evaluate` found no operating point within --max-loss; 130 Ctrl-C;
141 the reader of the output has closed the pipe (`| head`); 1 any other error. `--debug` shows the traceback.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Annotated, cast

import typer
from rich.markup import escape

from splitwire import __version__, closing
from splitwire.codec.errors import SplitwireError
from splitwire.commands import compare, demo, doctor, evaluate, models, warmup
from splitwire.commands.cloud import token as cloud_token
from splitwire.commands.cloud.serve import serve as serve_cloud
from splitwire.commands.edge import spool
from splitwire.commands.edge.capture import capture
from splitwire.commands.edge.command import profile, run
from splitwire.commands.edge.serve import serve
from splitwire.commands.edge.skipping import calibrate_skip
from splitwire.commands.export import command as export
from splitwire.commands.plan import command as plan
from splitwire.console import err

MODULES = {
    "edge": ("onnxruntime", "PIL"),
    "cloud": ("starlette", "uvicorn", "anyio"),
    "export": ("torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "scipy", "safetensors"),
    "demo": ("matplotlib", "zstandard", "skimage"),
    "report": ("bjontegaard", "jinja2", "pycocotools", "sklearn", "av"),
}
"""Extra of the distribution → modules that it installs and that commands import."""

INTERRUPTED = "interrupted; nothing was written"
"""The message of a command that has no message of its own about what it keeps."""

QUIET_THREADS = ("OMP_WAIT_POLICY", "PASSIVE")
"""Variable and value: the threads of torch wait for work without spinning. Spinning, an export took twice the CPU time,
and on a busy machine several times the time."""

BOXED = 80
"""Least number of columns for help in boxes. In fewer columns the boxes leave too little space for the text."""

app = typer.Typer(
    name="splitwire",
    help="Cut a trained network in two, and send the features between the halves in under one bit per element.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
edge_app = typer.Typer(help="The device side: run the front, send frames.", no_args_is_help=True)
cloud_app = typer.Typer(help="The server side: take frames, run the back.", no_args_is_help=True)
app.add_typer(edge_app, name="edge")
app.add_typer(cloud_app, name="cloud")

app.command()(export.export)
app.command()(plan.plan)
app.command()(evaluate.evaluate)
app.command()(compare.compare)
app.command()(models.models)
app.command()(demo.demo)
app.command()(warmup.warmup)
app.command()(doctor.doctor)
edge_app.command()(run)
edge_app.command()(profile)
edge_app.command()(serve)
edge_app.command()(capture)
edge_app.command()(calibrate_skip)
edge_app.add_typer(spool.app, name="spool")
cloud_app.command("serve")(serve_cloud)
cloud_app.add_typer(cloud_token.app, name="token")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"splitwire {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="SPLITWIRE_DEBUG", help="Show tracebacks.")] = False,
) -> None:
    """Options before the subcommand."""
    if debug:
        os.environ["SPLITWIRE_DEBUG"] = "1"


def main() -> None:
    """Entry point: run the command, and turn any error into one line and an exit status."""
    sys.exit(closing.finish(_run()))


def _run() -> int:
    closing.prepare()
    os.environ.setdefault(*QUIET_THREADS)  # before a command imports torch
    narrow = err.width < BOXED
    app.rich_markup_mode = None if narrow else "rich"
    settings = cast("dict[str, object]", app.info.context_settings)
    settings["terminal_width"] = err.width if narrow else None  # click's default is never less than 50 columns
    try:
        app(prog_name="splitwire")
    except SystemExit as e:
        return _ended(e)
    except SplitwireError as e:
        return _fail(str(e), e.exit_status)
    except BrokenPipeError:
        return closing.CLOSED_PIPE
    except OSError as e:
        return _fail(closing.reason(closing.close_if_broken(sys.stdout) or e), 1)
    except ModuleNotFoundError as e:
        missing = (e.name or "").partition(".")[0]
        extra = next((extra for extra, modules in MODULES.items() if missing in modules), None)
        if extra is None:
            raise
        return _fail(f"this command needs {missing}, which is not installed; run: pip install 'splitwire[{extra}]'", 2)
    except BaseException:
        # an import that Ctrl-C interrupts can raise another error than KeyboardInterrupt
        if not closing.interrupts:
            raise
        return _fail(INTERRUPTED, closing.INTERRUPTED, None)
    return 0


def _ended(e: SystemExit) -> int:
    """The exit status of a command that click ended. click turns a closed pipe into 1, and Ctrl-C into 130 without a
    message."""
    cause = e.__context__
    if isinstance(cause, BrokenPipeError):
        return closing.CLOSED_PIPE
    if e.code == closing.INTERRUPTED and cause is not None and isinstance(cause.__cause__, KeyboardInterrupt):
        return _fail(INTERRUPTED, closing.INTERRUPTED, None)
    return e.code if isinstance(e.code, int) else 0 if e.code is None else 1


def _fail(message: str, status: int, head: str | None = "error:") -> int:
    """Print one line on stderr; with --debug raise the error again instead. Called from an except block."""
    if os.environ.get("SPLITWIRE_DEBUG", "0") not in ("", "0"):
        raise  # noqa: PLE0704 - always called from an except block
    closing.close_if_broken(sys.stdout)
    # escaped: a path or a server's message can contain what rich reads as markup
    line = escape(message) if head is None else f"[bold red]{head}[/] {escape(message)}"
    with suppress(OSError):
        err.print(line, soft_wrap=True)
    return status


if __name__ == "__main__":
    main()
