"""A loss of the user's as the objective: any torch function of the outputs before and after."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from splitwire.codec.errors import UsageError

LossFunction = Callable[[list[Tensor], list[Tensor]], Tensor]
"""loss(reference, outputs) of one input: (1, …) float32 tensors, in the order of the network's outputs. Returns a
tensor of one number, least where they are equal."""

KRYLOV = 8
"""Directions in which the curvature of the loss is measured for one draw."""
NO_DIRECTION = 1e-4
"""Share of the curvature below which no further direction has any."""
SHIFT = 0.02
"""How far outputs are moved for that, in their root mean squares."""


def load_loss(name: str) -> LossFunction:
    """The function of "module:function", from the working folder or what is installed. Raises UsageError."""
    module, _, function = name.partition(":")
    if not module or not function.isidentifier():
        raise UsageError(f"a task loss is named as module:function; got {name!r}")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as e:  # an import runs the user's code
        raise UsageError(f"the task loss {name!r} cannot be imported: {_in_one_line(e)}") from e
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise UsageError(f"the task loss {name!r} is not there: {module} has no function {function!r}")
    loss: LossFunction = found
    return loss


@dataclass(frozen=True)
class TaskLoss:
    """The objective (objective.Objective) of a loss function."""

    loss: LossFunction

    @classmethod
    def of(cls, loss: LossFunction, outputs: Sequence[Tensor]) -> TaskLoss:
        """Checked on some outputs, (B, …) each. Raises UsageError where the function fails, or its result is not one
        finite number with gradients."""
        made = cls(loss)
        one = [y[:1].detach() for y in outputs]
        moved = [(y + SHIFT * _size(y)).requires_grad_(True) for y in one]
        with torch.enable_grad():
            result = made._of_image(one, moved)
        if not result.requires_grad:
            raise UsageError(f"{made._name} returned a number without gradients: it has to compute it from the outputs")
        try:
            torch.autograd.grad(result, moved, allow_unused=True)
        except RuntimeError as e:
            raise UsageError(f"{made._name} has no gradients: {_in_one_line(e)}") from e
        return made

    def damage(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """(B,) the loss of each image."""
        rows = range(len(outputs[0]))
        return torch.stack([
            self._of_image([y[i : i + 1] for y in reference], [y[i : i + 1] for y in outputs]) for i in rows
        ])  # fmt: skip

    def draw(self, outputs: Sequence[Tensor], chance: torch.Generator) -> Tensor:
        """A random figure of the outputs (Objective.draw): w · outputs with w = √H v, H the loss's curvature where
        outputs are equal, and v random.

        Source of the square root: Lanczos' method, as in Higham 2008, Functions of Matrices, ch. 13.
        """
        known = [y.detach() for y in outputs]
        sizes = [_size(y) for y in known]
        count = len(known[0])
        v = torch.cat([torch.randn(y.shape, generator=chance).to(y.device).flatten(1) for y in known], 1)
        norm = v.norm(dim=1, keepdim=True)
        basis = [v / norm]
        diagonal, beside = [], []
        for j in range(min(KRYLOV, v.shape[1])):
            w = self._curvature(known, sizes, basis[j])
            diagonal.append((w * basis[j]).sum(1))
            for q in basis:  # all of them: rounding makes them lean towards each other
                w = w - (w * q).sum(1, keepdim=True) * q
            length = w.norm(dim=1)
            beside.append(length)
            scale = torch.stack(diagonal).abs().amax(0)
            rest = length > NO_DIRECTION * scale  # else what is left of w is rounding
            basis.append(torch.where(rest[:, None], w / length.clamp_min(1e-30)[:, None], 0.0))
        steps = len(diagonal)
        t = torch.zeros(count, steps, steps, dtype=torch.float64)
        for j in range(steps):
            t[:, j, j] = diagonal[j].cpu()
            if j + 1 < steps:
                t[:, j, j + 1] = t[:, j + 1, j] = beside[j].cpu()
        values, vectors = torch.linalg.eigh(t)
        root = (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors[:, :1].transpose(1, 2)
        first = root[:, :, 0].to(v)
        w = norm * sum((first[:, j : j + 1] * basis[j] for j in range(steps)), torch.zeros_like(v))
        flat = torch.cat([(y / s).flatten(1) for y, s in zip(outputs, sizes, strict=True)], 1)
        figure: Tensor = (w.nan_to_num() * flat).sum()
        return figure

    def _curvature(self, known: Sequence[Tensor], sizes: Sequence[float], direction: Tensor) -> Tensor:
        """(B, n) the curvature of the loss, over outputs in units of their sizes, times directions (B, n)."""
        parts = torch.split(direction, [y[0].numel() for y in known], 1)
        steps = [s * d.reshape(y.shape) for y, s, d in zip(known, sizes, parts, strict=True)]
        # every element moves by about SHIFT of its size
        reach = SHIFT * direction.shape[1] ** 0.5
        ahead, behind = (self._slopes(known, sizes, [sign * reach * d for d in steps]) for sign in (1, -1))
        change: Tensor = (ahead - behind) / (2 * reach)
        return change

    def _slopes(self, known: Sequence[Tensor], sizes: Sequence[float], by: Sequence[Tensor]) -> Tensor:
        """(B, n) gradients of the loss over outputs in units of their sizes, at outputs that are moved."""
        with torch.enable_grad():
            moved = [(y + d).requires_grad_(True) for y, d in zip(known, by, strict=True)]
            total = self.damage(known, moved).sum()
        slopes = torch.autograd.grad(total, moved, materialize_grads=True)
        return torch.cat([(g * s).flatten(1) for g, s in zip(slopes, sizes, strict=True)], 1)

    @property
    def _name(self) -> str:
        return f"the task loss {getattr(self.loss, '__name__', 'given')!r}"

    def _of_image(self, reference: list[Tensor], outputs: list[Tensor]) -> Tensor:
        try:
            result: object = self.loss(reference, outputs)
        except Exception as e:  # the user's code
            raise UsageError(f"{self._name} failed: {_in_one_line(e)}") from e
        if not isinstance(result, Tensor) or result.numel() != 1:
            shown = f"a tensor {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise UsageError(f"{self._name} returned {shown}; it has to return a tensor of one number")
        if not bool(result.isfinite().all()):
            raise UsageError(f"{self._name} returned {float(result.detach())}")
        return result.reshape(())


def _size(y: Tensor) -> float:
    return float(y.square().mean().sqrt()) or 1.0


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
