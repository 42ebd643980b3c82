"""Record one run of a torch module, to find the tensors of modules that leave no node in the ONNX graph.

In evaluation mode, Dropout, Identity and StochasticDepth return their argument itself. The graph does not contain them.
But it contains the module that computed this tensor, or a module that reads it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

CANDIDATES = 4
"""Largest number of modules to keep that read such a tensor, innermost last."""

Call = tuple[str, int]
"""(module path, call): the path is the module's first in named_modules(), calls count from 0."""

_UNKNOWN = itertools.count(-1, -1)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place where a tensor appears.

    how: it "leaves" or "enters" the call `call` of the module `path`, or the code of `path` computes it "inside" this
    call, between the calls of child modules. shape: of one row of the batch.
    """

    how: str
    path: str
    call: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CallRecord:
    """How the modules ran.

    runs: module path → number of calls. passed: call → places of the tensor that the call returned unchanged, the most
    certain first; a call that computes something is not in it. parents: call → the module call around it; without an
    entry if that is the call of the network. aliases: each path of a module → its first path.
    """

    runs: dict[str, int] = field(default_factory=dict)
    passed: dict[Call, tuple[Place, ...]] = field(default_factory=dict)
    parents: dict[Call, Call] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


@contextmanager
def watching(module: torch.nn.Module) -> Iterator[CallRecord]:
    """Record how the submodules of `module` run. The record is complete after the block."""
    watch = _Watch()
    handles = []
    first_paths = {child: path for path, child in module.named_modules()}
    every_path = module.named_modules(remove_duplicate=False)
    watch.record.aliases.update({path: first_paths[m] for path, m in every_path if path})
    for path, child in module.named_modules():
        if path:
            watch.record.runs[path] = 0
            handles.append(child.register_forward_pre_hook(watch.before(path)))
            handles.append(child.register_forward_hook(watch.after(path)))
    try:
        yield watch.record
    finally:
        for handle in handles:
            handle.remove()
        watch.record_places()


class _Tensor:
    """What is known about one tensor, in one state between two changes in place."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.alive = weakref.ref(tensor)
        self.version = _version(tensor)
        self.maker: Place | None = None
        self.readers: list[Place] = []


def _version(tensor: torch.Tensor) -> int:
    """The number of changes in place. Tensors in inference mode do not count them, and always get a new number."""
    return next(_UNKNOWN) if tensor.is_inference() else tensor._version


class _Watch:
    def __init__(self) -> None:
        self.record = CallRecord()
        self._tensors: dict[int, _Tensor] = {}
        self._running: list[tuple[str, int, list[_Tensor]]] = []
        self._passed: dict[Call, tuple[_Tensor, list[Place]]] = {}

    def before(self, path: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            call = self.record.runs[path]
            self.record.runs[path] += 1
            if self._running:
                self.record.parents[path, call] = self._running[-1][:2]
            arguments = []
            for tensor in (t for t in inputs if isinstance(t, torch.Tensor)):
                arguments.append(self._known(tensor))
                arguments[-1].readers.append(Place(how="enters", path=path, call=call, shape=tuple(tensor.shape[1:])))
            self._running.append((path, call, arguments))

        return hook

    def after(self, path: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            _, call, arguments = self._running.pop()
            if isinstance(output, torch.Tensor) and self._known(output) in arguments:
                result = self._known(output)
                around = [
                    (p, c) for p, c, g in self._running if result not in g
                ]  # other calls got the tensor from outside
                inside = [Place(how="inside", path=p, call=c, shape=tuple(output.shape[1:])) for p, c in around[-1:]]
                self._passed[path, call] = (result, inside)
                return
            for tensor in pytree.tree_leaves(output):
                if isinstance(tensor, torch.Tensor) and self._known(tensor).maker is None:
                    shape = tuple(tensor.shape[1:])
                    self._known(tensor).maker = Place(how="leaves", path=path, call=call, shape=shape)

        return hook

    def _known(self, tensor: torch.Tensor) -> _Tensor:
        """The entry of the tensor in its present state; a new entry for a new tensor and after a change in place."""
        known = self._tensors.get(id(tensor))
        if known is None or known.alive() is not tensor or known.version != _version(tensor):
            known = self._tensors[id(tensor)] = _Tensor(tensor)
        return known

    def record_places(self) -> None:
        """Fill `passed`, at the end: modules may read the tensor long after the call."""
        for (path, call), (tensor, inside) in self._passed.items():
            readers = [p for p in tensor.readers if (p.path, p.call) != (path, call)][:CANDIDATES]
            makers = [tensor.maker] if tensor.maker is not None else []
            self.record.passed[path, call] = (*makers, *reversed(readers), *([] if makers else inside))
