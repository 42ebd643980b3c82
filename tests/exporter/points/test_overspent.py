"""An operating point that cannot keep its budget of bits is named, and never the default beside others."""

from __future__ import annotations

import json
import sys

import msgspec
import numpy as np
import pytest
import torch
from evaluations import interval_point
from exporter_helpers import inputs
from torch import nn

import splitwire
from splitwire import cli
from splitwire.codec.overspent import budget_of, is_overspent, overspent_note
from splitwire.codec.profile import CodecProfile, OperatingPoint
from splitwire.commands.export import report as export_report
from splitwire.evaluation.answer.choose import choose
from splitwire.exporter.pair.result import ExportResult
from splitwire.exporter.points.measure import PointMeasure, choose_default

pytestmark = pytest.mark.slow


class Coins(nn.Module):
    """Features of −1 and 1, the signs of noise: no quantizer has them for less than a bit."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(torch.sign(x).mean((2, 3)))
        return y


@pytest.fixture(scope="module")
def coins(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    torch.manual_seed(0)
    levels = ("r0.4", "r0.8", 2)
    return splitwire.export(
        Coins().eval(), out=tmp_path_factory.mktemp("coins"), cut="sign", calibration=inputs(12), levels=levels,
        input_shape=(1, *inputs(1)[0].shape),
    )  # fmt: skip


def test_a_budget_that_cannot_be_kept_is_named_and_not_chosen(coins: ExportResult, capsys) -> None:
    rates = {p.name: p.bits_per_element for p in coins.profile.operating_points}
    assert 0.9 < rates["r0.4"] < 1.1  # a coin is worth one bit
    assert coins.profile.default_op == "n2"
    export_report.show(coins, compared=True)
    said = capsys.readouterr()
    assert "r0.4 !" in said.out
    assert "n2 *" in said.out
    assert f"! over budget, and never the default beside others: r0.4 takes {rates['r0.4']:.3f}" in said.out
    marks = {p["op"]: p["over_budget"] for p in export_report.document(coins)["points"]}
    assert marks == {"r0.4": True, "r0.8": True, "n2": False}


def test_evaluate_names_it_too_and_does_not_choose_it(coins: ExportResult, tmp_path, capsys, monkeypatch) -> None:
    np.savez(tmp_path / "data.npz", inputs=inputs(8))
    arguments = ["--data", tmp_path / "data.npz", "--contenders", "", "--max-loss", "99%", "--json"]
    monkeypatch.setattr("splitwire.evaluation.run.write_report", lambda evaluation, out: None)
    monkeypatch.setattr(sys, "argv", ["splitwire", "evaluate", str(coins.front.parent), *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    document = json.loads(capsys.readouterr().out)
    assert not stopped.value.code
    assert document["over_budget"] == ["r0.4", "r0.8"]
    assert document["chosen"] == "n2"
    assert any(n.startswith("over budget, and never the default beside others: r0.4 takes ") for n in document["notes"])


def of(profile: CodecProfile, rates: dict[str, float]) -> list[OperatingPoint]:

    (first, *_) = profile.operating_points
    return [msgspec.structs.replace(first, name=name, bits_per_element=bits) for name, bits in rates.items()]


def test_only_where_all_are_over_their_budgets_one_of_them_is_taken(coins: ExportResult) -> None:
    def default(agreement: float, **rates: float) -> str:
        names = {name.replace("_", "."): bits for name, bits in rates.items()}
        measures = [PointMeasure(op=name, inputs=9, agreement=agreement) for name in names]
        return choose_default(of(coins.profile, names), measures)

    assert default(1.0, r0_4=0.999, n4=1.9) == "n4"
    assert default(0.5, r0_4=0.999, n4=1.9) == "n4"  # also where nothing is good enough
    assert default(1.0, r0_4=0.41, n4=1.9) == "r0.4"
    assert default(1.0, r0_4=0.999, r0_6=0.998) == "r0.6"


def test_budgets_and_what_is_over_them(coins: ExportResult) -> None:
    assert [budget_of(name) for name in ("r0.4", "r2", "n4", "e4", "a4", "reader")] == [
        0.4,
        2.0,
        None,
        None,
        None,
        None,
    ]
    kept, over, uniform = of(coins.profile, {"r0.4": 0.419, "r0.2": 0.3, "n2": 1.0})
    assert [is_overspent(p) for p in (kept, over, uniform)] == [False, True, False]
    assert overspent_note([kept, uniform]) is None
    assert "r0.2 takes 0.300 bits per element" in str(overspent_note([kept, over]))


def test_a_point_over_its_budget_is_not_chosen_by_loss() -> None:
    points = [interval_point("r0.4", 100, 0.0, 0.001), interval_point("n4", 200, 0.0, 0.001)]
    chosen = choose(points, 0.01, over_budget=["r0.4"]).chosen
    assert chosen is not None
    assert chosen.setting == "n4"
    alone = choose(points[:1], 0.01, over_budget=["r0.4"]).chosen
    assert alone is not None
    assert alone.setting == "r0.4"
