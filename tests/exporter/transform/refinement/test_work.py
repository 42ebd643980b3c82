"""What one image costs in the back half, and how many a batch has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_ir import from_proto

from splitwire.exporter.network.differentiable.graph import TorchGraph
from splitwire.exporter.transform.refinement import work
from splitwire.exporter.transform.refinement.work import Work
from splitwire.exporter.transform.threads import FEW_BYTES, FEW_ELEMENTS, threads_for


@pytest.fixture(scope="module")
def two_layers() -> TorchGraph:
    """A convolution of 4 to 8 channels, a tanh, a sum."""
    made = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("Tanh", ["a"], ["b"]),
            helper.make_node("ReduceMean", ["b"], ["y"], axes=[2, 3], keepdims=0),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 10, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((8, 4, 1, 1), np.float32), "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return TorchGraph(from_proto(model), torch.device("cpu"))


def test_operations_and_bytes_of_an_image(two_layers: TorchGraph) -> None:
    measured = Work.of(two_layers, [torch.zeros(1, 4, 10, 10)])
    assert measured.operations == 2 * 4 * 8 * 100
    assert measured.bytes == 4 * (4 + 8) * 100  # the convolution keeps its input, the tanh its output


def test_a_batch_has_as_many_images_as_there_is_room(two_layers: TorchGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Work.of(two_layers, [torch.zeros(1, 4, 10, 10)])
    assert measured.images(16) == 16
    monkeypatch.setattr(work, "ACTIVATION_BYTES", 3 * measured.bytes)
    assert measured.images(16) == 3
    monkeypatch.setattr(work, "ACTIVATION_BYTES", 1)
    assert measured.images(16) == 1


@pytest.mark.parametrize(
    ("elements", "weights", "one"),
    [(FEW_ELEMENTS, FEW_BYTES, True), (FEW_ELEMENTS + 1, FEW_BYTES, False), (FEW_ELEMENTS, FEW_BYTES + 1, False)],
)
def test_small_work_has_one_thread(elements: int, weights: int, one: bool) -> None:
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(elements, weights):
            assert torch.get_num_threads() == (1 if one else 2)
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), threads_for(elements, weights):
            1 / 0  # noqa: B018 - an error inside
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(usual)
