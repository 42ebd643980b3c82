"""Options that several commands share, with the same help."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from splitwire.codec.errors import UsageError

Weights = Annotated[str | None, typer.Option(help="Weights of the named network: a file, or torchvision's.")]
ImageSize = Annotated[
    str | None, typer.Option(help="Size of the input, pixels: 224, or HEIGHTxWIDTH.", show_default="the network's")
]
Constants = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Value of an input of an ONNX file other than the image; repeatable."),
]
OutputNames = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Keep these outputs only: a name, or several as a,b; repeatable.", show_default="all"
    ),
]

UNITS = {"ms": 1e-3, "s": 1.0, "": 1.0, "min": 60.0, "h": 3600.0}


def seconds(option: str, text: str) -> float:
    """The seconds in 60s, 500ms, 2min, 1h or a bare number. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,6}(?:[.][0-9]{1,6})?) *(ms|s|min|h|)", text.strip())
    if match is None:
        shown = "".join(c if c.isprintable() else "?" for c in text)
        raise UsageError(f"{option} takes a time, as in 60s, 500ms or 2min; got {shown!r}")
    return float(match[1]) * UNITS[match[2]]
