"""A loss of the user's: found by its name, checked in one line, and used for gradients and training."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from splitwire.codec.errors import UsageError
from splitwire.exporter.transform.refinement.objective import Classes
from splitwire.exporter.transform.refinement.task_loss import TaskLoss, load_loss

B, K = 6, 12


def scores(seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(B, K, generator=torch.Generator().manual_seed(seed))


def divergence(reference: list[Tensor], outputs: list[Tensor]) -> Tensor:
    old, new = reference[0].log_softmax(1), outputs[0].log_softmax(1)
    return (old.exp() * (old - new)).sum()


def one_class(reference: list[Tensor], outputs: list[Tensor]) -> Tensor:
    return 3 * (outputs[0][:, 4] - reference[0][:, 4]).square().sum()


def expected(objective: TaskLoss | Classes, outputs: Tensor, error: Tensor, draws: int = 300) -> float:
    """E[½ (gᵀδ)²], mean over images."""
    chance = torch.Generator().manual_seed(0)
    leaf = outputs.clone().requires_grad_(True)
    total = 0.0
    for _ in range(draws):
        (g,) = torch.autograd.grad(objective.draw([leaf], chance), leaf)
        total += 0.5 * float((g * error).sum(1).square().mean())
    return total / draws


@pytest.mark.slow
def test_it_is_the_built_in_objective_where_the_function_is() -> None:
    outputs, error = scores(1, 2.0), scores(2, 0.1)
    ours, theirs = Classes(probabilities=False), TaskLoss.of(divergence, [outputs])
    torch.testing.assert_close(
        theirs.damage([outputs], [outputs + error]), ours.damage([outputs], [outputs + error]), rtol=1e-4, atol=1e-7
    )
    measured = float(theirs.damage([outputs], [outputs + error]).mean())
    assert expected(theirs, outputs, error) == pytest.approx(measured, rel=0.15)
    assert expected(ours, outputs, error) == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
def test_only_what_the_loss_looks_at_has_gradients() -> None:
    outputs, error = scores(3), scores(4, 0.1)
    objective = TaskLoss.of(one_class, [outputs])
    assert expected(objective, outputs, error) == pytest.approx(3 * float(error[:, 4].square().mean()), rel=0.15)
    error[:, 4] = 0
    assert expected(objective, outputs, error, draws=20) < 1e-6


def test_several_outputs_have_their_own_scale() -> None:
    def loss(reference: list[Tensor], outputs: list[Tensor]) -> Tensor:
        errors = [((a - b) / s).square().sum() for a, b, s in zip(reference, outputs, (100, 0.1), strict=True)]
        return torch.stack(errors).sum()

    wide, narrow = scores(5, 100), scores(6, 0.1)
    objective = TaskLoss.of(loss, [wide, narrow])
    leaves = [y.clone().requires_grad_(True) for y in (wide, narrow)]
    chance = torch.Generator().manual_seed(0)
    squares = torch.zeros(2)
    for _ in range(100):
        for i, g in enumerate(torch.autograd.grad(objective.draw(leaves, chance), leaves)):
            squares[i] += 0.5 * g.square().mean() / 100
    torch.testing.assert_close(squares, torch.tensor([1e-4, 1e2]), rtol=0.15, atol=0)


def raises(reference: list[Tensor], outputs: list[Tensor]) -> Tensor:
    return reference[0] @ outputs[0]


WRONG: dict[str, tuple[Callable[..., object], str]] = {
    "it fails": (raises, r"the task loss 'raises' failed: RuntimeError: mat1 and mat2 .*"),
    "no number": (lambda a, b: (b[0] - a[0]).abs(), r".* returned a tensor \(1, 12\); it has to return a tensor of .*"),
    "no tensor": (lambda a, b: 3.0, r".* returned float; it has to return a tensor of one number"),
    "not finite": (lambda a, b: (b[0] * 0).log().sum(), r".* returned -inf"),
    "no gradients": (lambda a, b: (a[0] - b[0].detach()).sum(), r".* returned a number without gradients: .*"),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_it_is_said_in_one_line(loss: Callable[..., Tensor], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        TaskLoss.of(loss, [scores(7)])
    assert "\n" not in str(raised.value)
    assert re.fullmatch(said, str(raised.value))


def test_it_is_found_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_mine.py").write_text("def loss(reference, outputs):\n    return 7\nthree = 3\n")
    (tmp_path / "broken_of_mine.py").write_text("import no_such_thing\n")
    monkeypatch.chdir(tmp_path)
    assert load_loss("of_mine:loss")([], []) == 7
    for name, said in {
        "of_mine": "named as module:function; got 'of_mine'",
        "of_mine:": "named as module:function; got 'of_mine:'",
        "of_mine:less": "of_mine has no function 'less'",
        "of_mine:three": "of_mine has no function 'three'",
        "nothing_of_mine:loss": "cannot be imported: ModuleNotFoundError: No module named 'nothing_of_mine'",
        "broken_of_mine:loss": "cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'",
    }.items():
        with pytest.raises(UsageError, match=said):
            load_loss(name)
