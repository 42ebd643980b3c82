"""Options that several commands share, with the same help."""

from __future__ import annotations

from typing import Annotated

import typer

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
