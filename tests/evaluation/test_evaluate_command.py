"""`splitwire evaluate`: what it prints, and one clear line for every mistake."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runtime_helpers import CLASSES, make_pair

from splitwire import cli
from splitwire.evaluation import run
from splitwire.evaluation.measuring.store import Store

METRIC = """
def share_of_ones(outputs, target):
    return float(outputs["best"] == 1)

def picky(outputs, target):
    if target == 3:
        raise ValueError("no threes,\\nplease")
    return 1.0
"""


@pytest.fixture
def pair(tmp_path, monkeypatch) -> Path:
    """A pair, as the working folder's `pair`; no report is drawn."""
    monkeypatch.setattr(run, "write_report", lambda evaluation, out: (out / "report.html").write_text(evaluation.model))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "scores_of_mine.py").write_text(METRIC)
    make_pair(Path("pair"))
    return Path("pair")


@pytest.fixture
def data(pair) -> Path:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 8, 8), dtype=np.uint8), np.arange(20) % CLASSES
    np.savez("data.npz", images=images, labels=labels)
    np.savez("plain.npz", images=images)
    return Path("data.npz")


def folders(name: str, *classes: str, damaged: int = 0) -> Path:
    """Four pictures in each class; the first ones of all are damaged."""
    rng = np.random.default_rng(1)
    for label in classes:
        Path(name, label).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(Path(name, label, f"{i}.png"))
    for path in sorted(Path(name).rglob("*.png"))[:damaged]:
        path.write_bytes(path.read_bytes()[:50])
    return Path(name)


def invoke(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout, stderr of the command."""
    before = sys.argv
    sys.argv = ["splitwire", "evaluate", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        sys.argv = before
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out, said.err


def test_table(pair, data, capsys):
    status, shown, said = invoke(capsys, pair, "--data", data, "--contenders", "raw,jpeg", "--max-loss", "90%")
    assert status == 0, said
    lines = shown.splitlines()
    assert lines[0] == "tiny-0 cut after relu: 20 images, 256 elements at the cut"
    assert lines[1].startswith("whole network: ")
    assert "Top-1 accuracy (" in lines[1]
    head = lines[2].split()
    if "encode" in head:  # it goes first where the times are too wide for the terminal
        del head[3:5]
    assert head == ["point", "bytes", "bits/el", "Top-1,", "%", "loss,", "%"]
    rows = {line.partition("  ")[0].strip(): line.split() for line in lines[3:] if " (" in line and " … " in line}
    assert list(rows)[:5] == ["splitwire n2 *", "splitwire n4", "float32", "float16", "int8"]
    assert rows["float32"][1:3] == ["1,024", "32.000"]
    assert rows["float32"][-4:] == ["0.00", "(0.00", "…", "15.00)"]
    assert max(len(line) for line in lines[2:13]) <= 110
    (choice,) = (line for line in lines if line.startswith("chosen for a loss of at most 90 %: n2, "))
    assert choice.endswith("now the default in both graphs")
    assert lines[-1] == "report: pair/evaluation/report.html"


def test_json(pair, data, capsys):
    status, shown, _ = invoke(capsys, pair, "--data", "plain.npz", "--contenders", "raw", "--max-loss", "0", "--json")
    document = json.loads(shown)
    assert status == 3  # nothing is within it
    assert document["results"] == "pair/evaluation/results.json"
    assert document["command"] == ("splitwire evaluate pair --data plain.npz --max-loss 0.0 --contenders raw")
    assert [p["setting"] for p in document["points"]] == ["n2", "n4", "", "", ""]
    assert document["chosen"] is None
    assert "tensors" not in document


def test_no_point_is_good_enough(pair, data, capsys):
    status, shown, _ = invoke(capsys, pair, "--data", "plain.npz", "--contenders", "", "--max-loss", "0")
    assert status == 3
    (choice,) = (line for line in shown.splitlines() if line.startswith("no operating point loses at most 0 % for"))
    assert "for sure; nearest: n" in choice
    assert "the default stays n4" in choice


def test_without_labels_it_is_agreement(pair, capsys):
    status, shown, said = invoke(capsys, pair, "--data", folders("flat", ".", damaged=1), "--contenders", "")
    assert status == 0
    assert "100.00 % agreement with the whole network" in shown
    assert "note: no labels: what is measured is agreement" in said
    assert "skipped: flat/0.png: " in said
    assert "note: 1 image could not be read, left out" in said


def test_a_metric_of_ones_own(pair, data, capsys):
    arguments = (pair, "--data", data, "--contenders", "", "--metric", "scores_of_mine:share_of_ones", "--json")
    status, shown, _ = invoke(capsys, *arguments)
    document = json.loads(shown)
    assert (status, document["task"], document["figure"]) == (0, "custom", "share_of_ones")
    assert set(document["whole"]) == {"share_of_ones"}


WRONG = [
    (["nowhere", "--data", "data.npz"], "nowhere: no such folder; give the one that `splitwire export --out` wrote"),
    (["pair", "--data", "nowhere"], "nowhere: no such file or folder"),
    (["pair", "--data", "data.npz", "--max-loss", "one"], "a loss is such as 1% or 0.01, not 'one'"),
    (["pair", "--data", "data.npz", "--max-loss", "1"], "a loss of 1 is out of range for top1; write it as 1% or 0.01"),
    (
        ["pair", "--data", "data.npz", "--contenders", "png"],
        "there is no contender 'png'; choose from splitwire, paper",
    ),
    (["pair", "--data", "three"], "three"),
    (["pair", "--data", "damaged"], "none of the 20 images can be read; the first: damaged/label 0/0.png: "),
    (["pair", "--data", "empty.json", "--metric", "scores_of_mine:share_of_ones"], "empty.json"),
    (["pair", "--data", "data.npz", "--annotations", "empty.json"], "--annotations goes with a folder of pictures"),
    (
        ["pair", "--data", "data.npz", "--metric", "scores_of_mine:picky"],
        "the metric scores_of_mine:picky raises on data.npz[3]: ValueError: no threes, please",
    ),
    (["pair", "--data", "data.npz", "--metric", "scores_of_mine:none"], "the metric scores_of_mine:none cannot be"),
    (["pair", "--data", "data.npz", "--out", "data.npz"], "cannot write to data.npz: "),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_one_clear_line(pair, data, capsys, arguments, message):
    folders("three", "ant", "bee", "cat")
    folders("damaged", *(f"label {i}" for i in range(CLASSES)), damaged=20)
    Path("empty.json").write_text('{"images": [], "annotations": [], "categories": []}')
    before = sorted(p for p in Path().rglob("*") if "__pycache__" not in p.parts)
    status, shown, said = invoke(capsys, *arguments)
    assert (status, shown) == (2, "")
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1
    after = sorted(p for p in Path().rglob("*") if "__pycache__" not in p.parts)
    assert after == before  # nothing half-written


def test_ctrl_c_says_how_to_go_on(pair, data, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "save", interrupt)
    status, _, said = invoke(capsys, pair, "--data", data, "--contenders", "")
    assert status == 130
    assert said == "interrupted; the same command goes on after the last finished batch\n"
    assert not Path("pair", "evaluation").exists()
