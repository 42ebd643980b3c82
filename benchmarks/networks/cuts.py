"""`make cuts`: measures the cuts that the recipes suggest, and writes models/data/cuts.json, a part of the package.

Shares of work and weights come from the exported graph at the recipe's input shape. Bits per element are measured only
if weights are available without a download (the demo network; mobilenet_v2 from its package). They are those of the
default operating point of an export on the demo's calibration images, or on crops of scikit-image's photographs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

import splitwire
from splitwire.demo import photos
from splitwire.demo.fashion import to_inputs
from splitwire.exporter.cutting.cuts import find_cut
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.network.source import from_module
from splitwire.exporter.planning.costs import measure_costs
from splitwire.models import demo, figures
from splitwire.models.catalogue import load
from splitwire.models.recipes import RECIPES, Recipe


def main(arguments: Sequence[str]) -> None:
    """Measure the named recipes, or all. The figures of the others stay."""
    known = dict(figures.read())
    for name in track(arguments or list(RECIPES), "Cuts", console=Console(stderr=True)):
        known[name] = measured(RECIPES[name])
        scratch = figures.CUTS.with_name(figures.CUTS.name + ".part")
        scratch.write_bytes(figures.encode(known))
        scratch.replace(figures.CUTS)


def measured(recipe: Recipe) -> tuple[figures.CutFigures, ...]:
    """The figures of every suggested layer."""
    inputs = calibration(recipe)
    loaded = load(recipe.name, None if inputs is None else "DEFAULT")
    source = from_module(loaded.module, loaded.input_shape)
    names = Names.of(source)
    costs = measure_costs(source)
    rows = []
    for layer in recipe.layers:
        cut, _ = find_cut(names, layer)
        bits = None
        if inputs is not None:
            with tempfile.TemporaryDirectory() as out:
                profile = splitwire.export(loaded.module, cut=layer, calibration=inputs, out=out).profile
            bits = profile.operating_points[profile.point_index()].bits_per_element
        rows.append(
            figures.CutFigures(
                cut=layer,
                tensors=cut.tensors,
                shapes=cut.shapes,
                elements=cut.elements,
                edge_macs_share=costs.macs_before(cut.position) / costs.macs,
                edge_parameters_share=costs.parameters_before(cut.position) / costs.parameters,
                bits_per_element=bits,
            )
        )
    return tuple(rows)


def calibration(recipe: Recipe) -> NDArray[np.float32] | None:
    """Network inputs for the recipes with available weights; None for the others."""
    if recipe.name == demo.NAME:
        return to_inputs(demo.calibration_set())
    if recipe.name == photos.MODEL:
        return photos.calibration_inputs(recipe.preprocessing)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
