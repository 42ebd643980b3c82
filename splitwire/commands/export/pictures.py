"""The options of `splitwire export` and `splitwire plan` that say how a picture becomes the network's input."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from splitwire.codec.errors import UsageError

PANEL = "Pictures: an option that is left out follows from the network, or is as for ImageNet"

PARAMETER = "pictures"
"""The parameter of a command that receives the PictureOptions."""


def _option(*names: str, help: str, default: str | None = None) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=PANEL, show_default=default or False)


def _options(
    preprocessing: Annotated[
        Path | None,
        _option(help="FILE.toml with these options, by the same names; options of the command override it."),
    ] = None,
    resize: Annotated[
        str | None,
        _option(help="Shorter side, pixels; or HEIGHTxWIDTH, to which the whole picture is stretched; or none."),
    ] = None,
    crop: Annotated[str | None, _option(help="Centre crop: a side, or HEIGHTxWIDTH.", default="the network's")] = None,
    pad: Annotated[
        str | None,
        _option(help="Keep the shape of the picture, and fill the rest with this gray level or R,G,B (a letterbox)."),
    ] = None,
    pad_at: Annotated[str | None, _option(help="Where to fill: both (sides), or end.", default="both")] = None,
    color: Annotated[str | None, _option(help="rgb, bgr or gray.", default="rgb")] = None,
    layout: Annotated[str | None, _option(help="nchw or nhwc.", default="the network's")] = None,
    scale: Annotated[
        str | None, _option(help="Factor for pixel values of 0 to 255, as 1 or 1/127.5.", default="1/255")
    ] = None,
    mean: Annotated[
        str | None, _option(help="Subtracted after scaling: one number, or one per channel, as 0.5,0.5,0.5.")
    ] = None,
    std: Annotated[
        str | None, _option(help="Divisor after the mean is subtracted; --mean 0 --std 1 for neither.")
    ] = None,
    interpolation: Annotated[str | None, _option(help="nearest, bilinear or bicubic.", default="bilinear")] = None,
    exif: Annotated[
        bool, _option("--exif", help="Turn photographs by their EXIF orientation; else they stay as stored.")
    ] = False,
) -> Any:
    """The PictureOptions of these options; None if all are left out. Raises UsageError."""
    from splitwire.exporter.network.pictures import read_options

    options = {
        "resize": _size("resize", resize),
        "crop": _size("crop", crop),
        "pad": _listed("pad", pad, int),
        "pad_at": pad_at,
        "color": color,
        "layout": layout,
        "scale": scale,
        "mean": _listed("mean", mean, str),
        "std": _listed("std", std, str),
        "interpolation": interpolation,
        "exif": exif or None,
    }
    return read_options(preprocessing, options)


def with_pictures(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with these options in place of its parameter `pictures`, which gets their PictureOptions."""
    signature = inspect.signature(command, eval_str=True)
    added = inspect.signature(_options, eval_str=True).parameters
    kept = [p for name, p in signature.parameters.items() if name != PARAMETER]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        command(
            **{name: values[name] for name in values if name not in added},
            **{PARAMETER: _options(**{name: values[name] for name in added})},
        )

    del run.__wrapped__  # typer would read the parameters of the wrapped function
    vars(run)["__signature__"] = signature.replace(parameters=[*kept, *added.values()])
    run.__annotations__ = {p.name: p.annotation for p in (*kept, *added.values())}
    return run


def _size(name: str, text: str | None) -> int | str | tuple[int, ...] | None:
    """224, (384, 512) or "none"."""
    if text is None or (name == "resize" and text.lower() == "none"):
        return text if text is None else "none"
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(s.isdecimal() and int(s) for s in sides):
        extra = ", or none" if name == "resize" else ""
        raise UsageError(f"--{name} takes one side or HEIGHTxWIDTH, as in 224 or 384x512{extra}; got {text!r}")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _listed(name: str, text: str | None, kind: Callable[[str], Any]) -> Any:
    """One value, or a tuple of the values between commas."""
    if text is None:
        return None
    try:
        values = tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--{name} takes whole numbers with commas between, as in 114 or 0,0,0; got {text!r}"
        ) from None
    return values[0] if len(values) == 1 else values
