"""The folded graphs compute what the design says, and together leave the features as they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from splitwire.codec.entropy.transform import TransformRans
from splitwire.codec.transform import NOT_SENT, step_size
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.transform.bands.coding import Coding
from splitwire.exporter.transform.bands.klt import BandTransform
from splitwire.exporter.transform.bands.layout import Layout
from splitwire.exporter.transform.bands.statistics import spectrum
from splitwire.exporter.transform.design import finish
from splitwire.exporter.transform.fold import coefficients_name, fold_back, fold_front
from splitwire.exporter.transform.tensor import TransformDesign

FINE = 40
"""Index of a step at which rounding does not matter."""
SHAPES = [(6, 3, 3), (5, 14, 14), (4, 28, 28), (3, 6, 80), (7, 7, 12), (24, 8), (17, 8), (16, 8), (9,), (28, 28, 3),
          (18, 8), (3, 131, 20), (131, 4), (3, 80, 6), (5, 1, 1)]  # fmt: skip


def design(
    shape: tuple[int, ...], *, finest: int = 0, bounds: tuple[float | None, float | None] = (None, None)
) -> tuple[TransformDesign, Coding, NDArray[np.float32]]:
    """A transform with random invertible matrices; with finest = 0 every coefficient is coded. With its features."""
    rng = np.random.default_rng(4)
    layout = Layout.of(shape)
    c = layout.channels
    bands = []
    for _ in layout.bands:
        a = np.linalg.qr(rng.standard_normal((c, c)))[0] * np.geomspace(8, 0.01, c)[:, None]
        bands.append(
            BandTransform(analysis=a, synthesis=np.asarray(np.linalg.inv(a), np.float64), variances=np.ones(c))
        )
    x = (rng.standard_normal((12, *shape)) + 2).astype(np.float32)
    if bounds[0] is not None:
        x = np.maximum(x, bounds[0])
    if bounds[1] is not None:
        x = np.minimum(x, bounds[1])
    with torch.no_grad():
        y = spectrum(layout, torch.from_numpy(x))
        coding = Coding(layout, y.mean((0, 1)).double().numpy(), bands, bounds)
        coefficients = coding.analyse(y).numpy()
    return finish(coding, coefficients, [finest, finest + 8], "features"), coding, x


def half(inner: tuple[int, ...], batch: int | str, side: str, opset: int = 17) -> ir.Model:
    """Doubles its input: x → features, or features → y."""
    names = ("x", "features") if side == "front" else ("features", "y")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (batch, *inner)) for n in names]
    nodes = [helper.make_node("Add", [names[0], names[0]], [names[1]])]
    graph = helper.make_graph(nodes, side, ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return ir.from_proto(model)


def run(graph: Graph, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Its outputs, which are float32."""
    return [np.asarray(y, np.float32) for y in graph.run(x)]


@pytest.mark.parametrize("opset", [8, 11, 12, 13])
def test_graphs_of_older_operator_sets(opset):
    made, _, x = design((5, 14, 14), bounds=(0.0, 3.0))
    halves = [half((5, 14, 14), "n", side, opset) for side in ("front", "back")]
    front, back = (
        Graph.of(fold_front(halves[0], [made]), what="front"),
        Graph.of(fold_back(halves[1], [made]), what="back"),
    )
    np.testing.assert_allclose(run(back, run(front, x / np.float32(2))[0])[0], x + x, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", ["n", 12])
def test_graphs_equal_numpy_and_restore_the_features(shape, batch):
    made, _, x = design(shape)
    front, back = fold_front(half(shape, batch, "front"), [made]), fold_back(half(shape, batch, "back"), [made])
    assert [v.name for v in front.graph.outputs] == [coefficients_name("features")]
    assert [v.name for v in back.graph.inputs] == [coefficients_name("features")]
    first, second = Graph.of(front, what="front"), Graph.of(back, what="back")
    assert first.batch == second.batch == (None if batch == "n" else batch)
    (coefficients,) = run(first, x / np.float32(2))
    assert coefficients.shape == (12, *made.shape)
    scale = np.abs(coefficients).max()
    np.testing.assert_allclose(coefficients, made.analyse(x), atol=1e-5 * scale)
    (restored,) = run(second, coefficients)
    np.testing.assert_allclose(restored, 2 * x, rtol=1e-4, atol=1e-4 * np.abs(x).max())
    np.testing.assert_allclose(restored, 2 * made.synthesise(coefficients), atol=1e-4 * np.abs(x).max())


def test_the_features_keep_their_name_in_both_graphs():
    made, _, x = design((5, 14, 14))
    front, back = fold_front(half((5, 14, 14), "n", "front"), [made]), fold_back(half((5, 14, 14), "n", "back"), [made])
    for model in (front, back):
        values = ir.convenience.create_value_mapping(model.graph)
        model.graph.outputs.append(values["features"])
    coefficients, features = run(Graph.of(front, what="front"), x / np.float32(2))
    np.testing.assert_array_equal(features, x)
    _, features = run(Graph.of(back, what="back"), coefficients)
    np.testing.assert_allclose(features, x, atol=1e-4 * np.abs(x).max())


@pytest.mark.parametrize("shape", [(6, 3, 3), (4, 28, 28), (17, 8)])
def test_coefficients_that_are_never_coded_are_dropped_from_both_graphs(shape):
    made, coding, x = design(shape, finest=68)
    assert 0 < made.sent < coding.size * made.layout.tiles
    assert made.shape[1] < coding.size  # whole components, too
    sent = np.frombuffer(made.transform.classes, np.uint8) != NOT_SENT
    assert sent.size == made.shape[1] and np.count_nonzero(sent) * made.layout.tiles == made.sent
    front, back = fold_front(half(shape, "n", "front"), [made]), fold_back(half(shape, "n", "back"), [made])
    (coefficients,) = run(Graph.of(front, what="front"), x / np.float32(2))
    np.testing.assert_allclose(coefficients, made.analyse(x), atol=1e-5 * np.abs(coefficients).max())
    coder, decoded = TransformRans(made.transform, made.shape), np.empty(coefficients.shape, np.float32)
    coder.decode(*coder.encode(coefficients, FINE, FINE), decoded.reshape(-1), FINE)
    np.testing.assert_allclose(decoded, np.where(sent, coefficients, 0), atol=float(step_size(FINE)))
    (restored,) = run(Graph.of(back, what="back"), decoded)
    np.testing.assert_allclose(restored, 2 * made.synthesise(decoded), atol=1e-4 * np.abs(x).max())
    assert 0.01 < np.abs(restored - 2 * x).max() < 2 * np.abs(x).max()  # what was dropped is missing


def test_kept_coefficients_are_those_of_the_coding():
    made, coding, x = design((6, 3, 3), finest=68)
    with torch.no_grad():
        whole = coding.analyse(spectrum(coding.layout, torch.from_numpy(x))).numpy()
    for column in made.analyse(x).reshape(-1, made.shape[1]).T:
        assert min(np.abs(column - other).max() for other in whole.reshape(-1, coding.size).T) < 1e-4


@pytest.mark.parametrize("bounds", [(0.0, None), (0.0, 3.0)])
def test_features_are_clipped_as_their_activation_does(bounds):
    made, _, x = design((6, 3, 3), bounds=bounds)
    back = Graph.of(fold_back(half((6, 3, 3), "n", "back"), [made]), what="back")
    noisy = made.analyse(x) + 1.0
    (restored,) = run(back, noisy)
    assert restored.min() == 0
    assert bounds[1] is None or restored.max() == 2 * bounds[1]
    np.testing.assert_allclose(restored, 2 * made.synthesise(noisy), atol=1e-4)


def test_gain_and_threshold_are_in_the_synthesis():
    _, coding, x = design((6, 3, 3))
    with torch.no_grad():
        coding.gain.copy_(torch.linspace(0.5, 1.5, 6))
        coding.threshold.copy_(torch.linspace(-1, 1, 6))
        spectra = spectrum(coding.layout, torch.from_numpy(x))
        coefficients = coding.analyse(spectra)
        expected = coding.synthesise(coefficients).numpy()
    made = finish(coding, coefficients.numpy(), [0, 8], "features")
    np.testing.assert_allclose(made.synthesise(made.analyse(x)), expected, atol=1e-4)
    gain, threshold = (np.linspace(a, b, 6).reshape(6, 1, 1) for a, b in ((0.5, 1.5), (-1, 1)))
    np.testing.assert_allclose(expected, gain * x - threshold, atol=1e-3)


@pytest.mark.parametrize("shape", [(6, 3, 3), (28, 28, 3), (24, 6), (9,)])
@pytest.mark.parametrize("high", [None, 3.0])
def test_thresholds_of_features_that_are_clipped_at_zero(shape, high):
    _, coding, x = design(shape, bounds=(0.0, high))
    c = coding.layout.channels
    with torch.no_grad():
        coding.threshold.copy_(torch.linspace(-0.5, 1, c))
        coefficients = coding.analyse(spectrum(coding.layout, torch.from_numpy(x)))
        expected = coding.synthesise(coefficients).numpy()
    t = coding.layout.by_channel(np.linspace(-0.5, 1, c))
    np.testing.assert_allclose(expected, np.clip(np.minimum(x, 2 * (x - t.clip(0))), 0, high), atol=1e-3)
    made = finish(coding, coefficients.numpy(), [0, 8], "features")
    np.testing.assert_allclose(made.synthesise(made.analyse(x)), expected, atol=1e-4)
    back = Graph.of(fold_back(half(shape, "n", "back"), [made]), what="back")
    np.testing.assert_allclose(run(back, made.analyse(x))[0], expected + expected, atol=1e-3)


def test_a_tensor_without_a_transform_stays():
    made = design((6, 3, 3))[0]
    front = half((6, 3, 3), "n", "front")
    assert [v.name for v in fold_front(front, [None]).graph.outputs] == ["features"]
    assert len(front.graph) == 1
    fold_front(front, [made])
    assert len(front.graph) == 1  # a copy was folded
