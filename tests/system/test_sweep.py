"""A subset of `make sweep-models`: the sweep itself, on a small network of torchvision."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.sweep import CUTS, NETWORKS, Result, page

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    folder = tmp_path_factory.mktemp("sweep")
    names = ["squeezenet1_1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sweep", *names],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [msgspec.json.decode((folder / f"build/sweep/{n}.json").read_bytes(), type=Result) for n in names]


def test_cuts_are_found_made_and_exact(results: list[Result]):
    for r in results:
        assert len(r.cuts) == CUTS < r.single < r.multi
        for cut in r.cuts:
            assert cut.difference <= 1e-6
            assert 0 < cut.macs_share <= 1
        assert 0 < 8 * r.frame.bytes / r.frame.elements < 4


def test_the_page_has_a_row_for_each(results: list[Result]):
    text = page(results)
    assert all(f"\n| {r.name} | " in text for r in results)
    assert {r.name for r in results} < set(NETWORKS)


def test_unknown_networks_are_refused():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sweep", "resnet"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "not in the sweep: resnet; it has alexnet" in done.stderr
