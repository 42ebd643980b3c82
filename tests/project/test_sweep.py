"""A subset of `make sweep-models`: the sweep itself, on a small network of torchvision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.networks import sweep
from benchmarks.networks.sweep import CUTS, NETWORKS, Result, page

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """On small pictures, and in this process instead of two of its own."""
    name = "squeezenet1_1"

    def here(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, sweep.main(command[3:]))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sweep"))
        patch.setitem(sweep.SIZES, name, 96)
        patch.setattr(subprocess, "run", here)
        assert sweep.main([name]) == 0
        return [msgspec.json.decode(Path(f"build/sweep/{name}.json").read_bytes(), type=Result)]


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
        [sys.executable, "-m", "benchmarks.networks.sweep", "resnet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "not in the sweep: resnet; it has alexnet" in done.stderr
