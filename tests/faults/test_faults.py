"""The faults of `make faults` in a short form, and that the simulated power cut does lose what is not synced."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from faults_run import FAULTS
from power_cuts import cut_power

PROCESSES = ("spool_disk", "server_kills", "edge_kills", "link_faults", "service_restarts")
"""These start processes, and wait for them."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in PROCESSES else ()) for name in FAULTS]
)
def test_nothing_that_was_promised_is_lost(name: str, tmp_path: Path):
    rows = importlib.import_module(name).rows(tmp_path, short=True)
    assert rows
    assert [row for row in rows if not row.good] == []
    assert all(row.promised >= 100 for row in rows)


@pytest.mark.slow
def test_the_simulated_cut_takes_what_was_not_synced(tmp_path: Path):
    """The buffered tier syncs no commit: of it, and only of it, a cut takes acknowledged frames."""
    outcome = cut_power(25, tmp_path, tier="buffered")
    assert outcome.lost > 100
    assert (outcome.twice, outcome.wrong) == (0, 0)
