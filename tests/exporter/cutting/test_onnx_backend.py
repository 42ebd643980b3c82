"""ONNX's own backend tests: every model of several nodes is cut and joined again to the bit, or refused by us.

`python tests/exporter/cutting/test_onnx_backend.py` takes all that the onnx package brings (its node tests are made by
code, which alone takes 20 seconds; the networks of data/light have made-up weights); the test takes those on disk, and
the node tests of some operators. Two ways:

* as a user: the file through the graph room, every cut that find_cuts lists, halves compared with the whole;
* the splitter alone, without the graph room's and the codec's conditions (one float32 image input, batch first): at
  every set of up to eight tensors that are alive together, whatever they are.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnx_ir.passes.common import InlinePass, ShapeInferencePass, TopologicalSortPass

from splitwire.codec.errors import SplitwireError, UnsupportedModel
from splitwire.exporter.cutting.cuts import find_cut, find_cuts
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.cutting.separation import alive_sets
from splitwire.exporter.cutting.split import Halves, split
from splitwire.exporter.network.dataflow import Flow, Kind
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.source import Source, from_file

DATA = Path(onnx.backend.test.__file__).parent / "data"

MODULES = ("affinegrid", "celu", "clip", "depthtospace", "layernormalization", "rangeop", "sequence_map", "softmax")
"""Modules of onnx's node tests that the test takes: bodies that capture, sequences, sizes, chance."""

MOST = 8
SMALL, CUTS = 40, 10
HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Case:
    name: str
    model: onnx.ModelProto
    inputs: dict[str, Any]


def on_disk() -> Iterator[Case]:
    """The models of more than one node under data/, with their first set of inputs."""
    for file in sorted(DATA.glob("*/*/model.onnx")):
        model = onnx.load(file)
        if len(model.graph.node) > 1:
            names = [v.name for v in model.graph.input]
            files = [file.parent / "test_data_set_0" / f"input_{i}.pb" for i in range(len(names))]
            yield Case(file.parent.name, model, {n: _read(f) for n, f in zip(names, files, strict=True) if f.exists()})


def _read(file: Path) -> np.ndarray:
    return numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes()))


def made_by_code(modules: tuple[str, ...] | None) -> Iterator[Case]:
    """The node tests of more than one node; of some modules of onnx's, or all."""
    from onnx.backend.test.case import node

    if modules is None:
        node.collect_testcases()
    else:
        for name in modules:
            importlib.import_module(f"onnx.backend.test.case.node.{name}")
    for case in list(node._NodeTestCases):
        if len(case.model.graph.node) > 1:
            names = [v.name for v in case.model.graph.input]
            yield Case(case.name, case.model, dict(zip(names, case.data_sets[0][0], strict=False)))


def light() -> Iterator[Case]:
    """Whole networks, their weights made by ConstantOfShape."""
    for file in sorted((DATA / "light").glob("*.onnx")):
        model = onnx.load(file)
        made = {v.name for v in model.graph.initializer}
        inputs = {}
        for entry in model.graph.input:
            if entry.name not in made:
                shape = [d.dim_value or 1 for d in entry.type.tensor_type.shape.dim]
                inputs[entry.name] = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        yield Case(file.stem, model, inputs)


def run(model: ir.Model, feeds: dict[str, Any]) -> dict[str, Any]:
    """All outputs, without any optimisation. Names that the model does not take are left out."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    taken = {i.name: feeds[i.name] for i in session.get_inputs() if i.name in feeds}
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, taken), strict=True))


def same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Equal to the bit, but for the payload of NaN; or within the tolerance."""
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if tolerance:
        return np.allclose(a.astype(np.float64), b.astype(np.float64), tolerance, tolerance, equal_nan=True)
    return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")


def _some(cuts: list[Any], case: Case) -> list[Any]:
    """All cuts; of the networks with more nodes, about CUTS evenly spread ones."""
    return cuts if len(case.model.graph.node) <= SMALL else cuts[:: max(1, len(cuts) // CUTS)]


def check(halves: Halves, inputs: dict[str, Any], expected: dict[str, Any], tolerance: float = 0.0) -> None:
    made = run(halves.front, inputs)
    joined = {**made, **run(halves.back, made)}
    for name, value in expected.items():
        assert same(joined[name], value, tolerance), name


def _refusal(source: Source, names: Names) -> str:
    """Why no tensor of the graph can be cut at: one of the reasons, about data if there is one."""
    reasons = []
    for value in (v for node in source.graph for v in node.outputs if v.name):
        with pytest.raises(SplitwireError) as caught:
            find_cut(names, str(value.name))
        assert "\n" not in str(caught.value)
        reasons.append(f"{type(caught.value).__name__}: {caught.value}")
    return max(reasons, key=lambda reason: "constant or a size" not in reason)


def as_user(case: Case, folder: Path) -> str:
    """What became of it: "cut", or our reason."""
    path = folder / "model.onnx"
    onnx.save(case.model, path)
    shape = getattr(next(iter(case.inputs.values()), None), "shape", ())
    try:
        try:
            source = from_file(path)
        except SplitwireError as e:
            if "any size" not in str(e):
                raise
            source = from_file(path, (1, *shape[1:]))
        names = Names.of(source)
        cuts = find_cuts(source.graph, names, max_tensors=MOST)
        Graph.of(source.model, what="network")
        if not cuts:
            return _refusal(source, names)
    except SplitwireError as e:
        return f"{type(e).__name__}: {e}"
    expected = run(source.model, case.inputs)
    for cut in _some(cuts, case):
        check(split(source.model, cut.tensors), case.inputs, expected)
    return "cut"


def by_splitter(case: Case) -> str:
    """What became of it: "cut", or why there was nothing to cut."""
    model = ir.from_proto(case.model)
    for normalise in (InlinePass(), TopologicalSortPass()):
        model = normalise(model).model
    ShapeInferencePass(strict_mode=False)(model)
    try:
        expected = run(model, case.inputs)
        again = run(model, case.inputs)
    except Exception as e:  # ONNX Runtime's own kinds
        return f"ONNX Runtime does not take the whole: {type(e).__name__}"
    if not all(map(same, expected.values(), again.values())):
        return "left to chance"
    flow = Flow(model.graph)
    cuts = [v for v in alive_sets(flow, MOST) if all(x.name for x in v)]
    if not cuts:
        depends = any(flow.kind(v) == Kind.ACTIVATION for v in model.graph.outputs)
        return "no set of tensors without an input separates it" if depends else "the output is a constant or a size"
    # ONNX Runtime runs float16 through float32 on the CPU and leaves out the rounding between two nodes of the whole.
    half = any(v.dtype in HALF for node in model.graph.all_nodes() for v in node.outputs)
    unknown = 0
    for values in _some(cuts, case):
        try:
            halves = split(model, [str(v.name) for v in values])
        except UnsupportedModel:
            unknown += 1
            continue
        check(halves, case.inputs, expected, 1e-2 if half else 0.0)
    return ("cut, float16 within 1e-2" if half else "cut") if unknown < len(cuts) else "no cut has a known rank"


def few() -> list[Case]:
    return [*on_disk(), *made_by_code(MODULES)]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return few()


def test_as_user(cases, tmp_path):
    found = Counter(as_user(case, tmp_path).partition(":")[0] for case in cases)
    assert len(cases) > 100
    assert found["cut"] >= 5


@pytest.mark.slow
def test_by_splitter(cases):
    found = Counter(by_splitter(case) for case in cases)
    assert found["cut"] >= 50


def main() -> int:
    """Every model; a table of what became of them; 1 if something came that is neither a cut nor our refusal."""
    import tempfile
    import time
    import traceback

    bad = 0
    start = time.perf_counter()
    everything = [*on_disk(), *made_by_code(None), *(light() if "light" in sys.argv else ())]
    print(f"{len(everything)} models of several nodes, {time.perf_counter() - start:.0f} s to make")
    with tempfile.TemporaryDirectory() as folder:
        ways = {"as user": lambda c: as_user(c, Path(folder)), "splitter alone": by_splitter}
        for way, do in ways.items():
            start = time.perf_counter()
            found: Counter[str] = Counter()
            for case in everything:
                try:
                    found[do(case)[:100]] += 1
                except Exception:
                    bad += 1
                    print(f"{way}: {case.name}: {traceback.format_exc(limit=-3)}", flush=True)
            print(f"\n{way}, {time.perf_counter() - start:.0f} s")
            for what, n in found.most_common():
                print(f"{n:5} {what}")
    print(f"{bad} neither cut nor refused")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
