"""cut="auto": the export takes the cut that the planner recommends, and says on what assumptions."""

from __future__ import annotations

from pathlib import Path

import pytest
from exporter_helpers import inputs, network

import splitwire
from splitwire.codec.errors import UsageError
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.export import AUTO_IMAGES
from splitwire.exporter.network.source import from_module
from splitwire.exporter.planning.links import parse_link
from splitwire.exporter.planning.plan import plan_cuts


@pytest.mark.slow
def test_auto_is_what_plan_recommends(tmp_path: Path):
    net, x = network(), inputs(40)
    result = splitwire.export(
        net, cut="auto", calibration=x, out=tmp_path, levels=(4,), link="1mbit", rtt="5ms", device="raspberry-pi-4"
    )
    source = from_module(net, (1, *x.shape[1:]))
    names = Names.of(source)
    link = parse_link("1mbit", "5ms")
    plan = plan_cuts(source, names, list(x[:AUTO_IMAGES]), link=link, device="raspberry-pi-4")
    assert plan.best_cut is not None
    assert result.profile.cut == plan.best_cut.cut.label
    note = next(n for n in result.notes if n.startswith("--cut auto chose"))
    assert "raspberry-pi-4" in note
    assert "1 Mbit/s, round trip 5 ms" in note


def test_the_link_goes_with_auto_only(tmp_path: Path):
    for link, device in (("5mbit", None), (None, "raspberry-pi-4")):
        with pytest.raises(UsageError, match="goes with cut='auto'; the cut is 'layer1'"):
            splitwire.export(
                network(), cut="layer1", calibration=inputs(4), out=tmp_path, link=link, device=device
            )  # fmt: skip
    with pytest.raises(UsageError, match="round trip of 5ms without a link"):
        splitwire.export(network(), cut="auto", calibration=inputs(4), out=tmp_path, rtt="5ms")
    assert not list(tmp_path.iterdir())
