"""A pair whose answer is the number in the pixels, so that an answer proves which picture it is of.

The front passes pixels of 0 and 2 through unchanged, the quantizer of two levels keeps them, and the back adds them up
with powers of two. Channel 0 has the bits of the number and channel 1 their complement; the rest is noise of the
number, so that frames differ in all their bytes.
"""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from runtime_helpers import INPUT, Pair, make_point

from splitwire.codec.profile import METADATA_KEY, CodecProfile, TensorSpec
from splitwire.codec.wire.reply import Outputs

BITS = 20
"""A number is less than 2^20: sums of its bits are exact in float32."""
FEATURE = (4, 8, 8)


def numbered_pair(folder: Path) -> Pair:
    """Write front.onnx and back.onnx; the back's output `numbers` is (1, 2): the number and its complement."""
    through = np.zeros((FEATURE[0], INPUT[0], 1, 1), np.float32)
    for channel in range(INPUT[0]):
        through[channel, channel] = 1
    sums = np.zeros((FEATURE[0], FEATURE[1] * FEATURE[2], 2), np.float32)
    for bit in range(BITS):  # a pixel that is set is 2
        sums[0, bit, 0] = sums[1, bit, 1] = 2.0 ** (bit - 1)
    front = _model(
        [
            helper.make_node("Conv", ["x", "through"], ["same"]),
            helper.make_node("Relu", ["same"], ["feature"]),
        ],
        {"through": through},
        ("x", INPUT),
        ("feature", FEATURE),
    )
    back = _model(
        [
            helper.make_node("Flatten", ["feature"], ["flat"]),
            helper.make_node("MatMul", ["flat", "sums"], ["numbers"]),
        ],
        {"sums": sums.reshape(-1, 2)},
        ("feature", FEATURE),
        ("numbers", (2,)),
    )
    specs = [TensorSpec(name="feature", shape=FEATURE)]
    profile = CodecProfile(
        model="numbered",
        cut="same",
        tensors=tuple(specs),
        operating_points=(make_point(2, specs),),
        default_op="n2",
        front_sha256=f"{zlib.crc32(front.SerializeToString()):064x}",
        back_sha256=f"{zlib.crc32(back.SerializeToString()):064x}",
    )
    folder.mkdir(parents=True, exist_ok=True)
    for model, name in ((front, "front.onnx"), (back, "back.onnx")):
        helper.set_model_props(model, {METADATA_KEY: profile.to_json()})
        onnx.checker.check_model(model)
        onnx.save(model, str(folder / name))
    return Pair(front=folder / "front.onnx", back=folder / "back.onnx", profile=profile)


def _model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, NDArray[np.float32]],
    source: tuple[str, tuple[int, ...]],
    sink: tuple[str, tuple[int, ...]],
) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", *shape)) for name, shape in (source, sink)]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "half", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def picture(number: int) -> NDArray[np.float32]:
    """The network's input, (1, 3, 8, 8), with a number of at most BITS bits in its pixels."""
    rng = random.Random(number)
    x = np.array([2 * rng.getrandbits(1) for _ in range(INPUT[0] * 64)], np.float32).reshape(INPUT[0], 64)
    bits = np.array([number >> bit & 1 for bit in range(BITS)], np.float32)
    x[0, :BITS], x[1, :BITS] = 2 * bits, 2 * (1 - bits)
    return x.reshape(1, *INPUT)


def number_of(outputs: Outputs) -> int | None:
    """The number that an answer is of; None if it is of no number."""
    numbers = outputs.get("numbers")
    if numbers is None or numbers.shape != (1, 2):
        return None
    number, complement = numbers[0].tolist()
    return int(number) if number + complement == (1 << BITS) - 1 and number == int(number) else None
