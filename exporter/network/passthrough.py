"""What the modules that leave no node in the ONNX graph do, seen while the torch module runs once.

Dropout, Identity and StochasticDepth in evaluation mode return the very tensor that they are given. The graph does not
know them; but it knows the module that made this tensor, or one that reads it.
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
"""How many modules that read the passed tensor are kept, innermost last."""

Call = tuple[str, int]
"""(module path, call): the path is the module's first in named_modules(), calls count from 0."""

_UNKNOWN = itertools.count(-1, -1)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor is found. how: "leaves" or "enters" the call `call` of the module `path`, or is made "inside"
    `path` by its own code, between the calls of its children. shape: of one row of the batch."""

    how: str
    path: str
    call: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """runs: module path → number of its calls. passed: call → places of the tensor that the call returned as it came,
    the surest first; calls that compute something are absent. parents: call → the call of another module that it
    happens in; absent where that is the network's own. aliases: each path that leads to a module → the module's own,
    the first: mostly itself.
    """

    runs: dict[str, int] = field(default_factory=dict)
    passed: dict[Call, tuple[Place, ...]] = field(default_factory=dict)
    parents: dict[Call, Call] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


@contextmanager
def watching(module: torch.nn.Module) -> Iterator[Seen]:
    """Record into what is yielded how the submodules of `module` run; it is complete after the block."""
    watch = _Watch()
    handles = []
    own = {child: path for path, child in module.named_modules()}
    watch.seen.aliases.update({path: own[m] for path, m in module.named_modules(remove_duplicate=False) if path})
    for path, child in module.named_modules():
        if path:
            watch.seen.runs[path] = 0
            handles.append(child.register_forward_pre_hook(watch.before(path)))
            handles.append(child.register_forward_hook(watch.after(path)))
    try:
        yield watch.seen
    finally:
        for handle in handles:
            handle.remove()
        watch.record_places()


class _Tensor:
    """What is known of one tensor as it was between two changes in place."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.alive = weakref.ref(tensor)
        self.version = _version(tensor)
        self.maker: Place | None = None
        self.readers: list[Place] = []


def _version(tensor: torch.Tensor) -> int:
    """Counts the changes in place. Tensors of inference mode do not count them: nothing is known of these."""
    return next(_UNKNOWN) if tensor.is_inference() else tensor._version


class _Watch:
    def __init__(self) -> None:
        self.seen = Seen()
        self._tensors: dict[int, _Tensor] = {}
        self._running: list[tuple[str, int, list[_Tensor]]] = []
        self._passed: dict[Call, tuple[_Tensor, list[Place]]] = {}

    def before(self, path: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            call = self.seen.runs[path]
            self.seen.runs[path] += 1
            if self._running:
                self.seen.parents[path, call] = self._running[-1][:2]
            given = []
            for tensor in (t for t in inputs if isinstance(t, torch.Tensor)):
                given.append(self._known(tensor))
                given[-1].readers.append(Place(how="enters", path=path, call=call, shape=tuple(tensor.shape[1:])))
            self._running.append((path, call, given))

        return hook

    def after(self, path: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            _, call, given = self._running.pop()
            if isinstance(output, torch.Tensor) and self._known(output) in given:
                made = self._known(output)
                around = [(p, c) for p, c, g in self._running if made not in g]  # the others got it from outside
                inside = [Place(how="inside", path=p, call=c, shape=tuple(output.shape[1:])) for p, c in around[-1:]]
                self._passed[path, call] = (made, inside)
                return
            for tensor in pytree.tree_leaves(output):
                if isinstance(tensor, torch.Tensor) and self._known(tensor).maker is None:
                    shape = tuple(tensor.shape[1:])
                    self._known(tensor).maker = Place(how="leaves", path=path, call=call, shape=shape)

        return hook

    def _known(self, tensor: torch.Tensor) -> _Tensor:
        """The record of the tensor in its present state; a new one if it was changed in place, or is another."""
        known = self._tensors.get(id(tensor))
        if known is None or known.alive() is not tensor or known.version != _version(tensor):
            known = self._tensors[id(tensor)] = _Tensor(tensor)
        return known

    def record_places(self) -> None:
        """Write down the places; readers come to light only after the call."""
        for (path, call), (tensor, inside) in self._passed.items():
            readers = [p for p in tensor.readers if (p.path, p.call) != (path, call)][:CANDIDATES]
            makers = [tensor.maker] if tensor.maker is not None else []
            self.seen.passed[path, call] = (*makers, *reversed(readers), *([] if makers else inside))
