"""ONNX's operators in torch's operations, for those that networks of pictures and tokens are made of.

Each takes a Call, with float tensors on the graph's device and integer tensors (sizes, axes, indices) on the CPU, and
returns its output or a tuple of them. What is not here, or not in this form, raises NotInTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class NotInTorch(Exception):
    """A graph, or one operator of it, that has no counterpart here; the message names it."""


@dataclass(frozen=True)
class Call:
    """One node as it runs. inputs: None where an optional one is left out. outputs: how many there are."""

    inputs: Sequence[Tensor | None]
    attributes: Mapping[str, Any]
    outputs: int
    opset: int

    def __getitem__(self, index: int) -> Tensor:
        """An input that must be there."""
        value = self.get(index)
        if value is None:
            raise NotInTorch(f"input {index} is missing")
        return value

    def get(self, index: int) -> Tensor | None:
        """An input, None if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value."""
        return self.attributes.get(name, default)

    def integers(self, index: int, name: str | None = None) -> list[int] | None:
        """A list of integers from an input, or from the attribute `name`, where older operator sets have it."""
        value = self.get(index)
        if value is not None:
            return [int(n) for n in value.reshape(-1).tolist()]
        given = self.attribute(name) if name else None
        return [int(n) for n in given] if given is not None else None


Operator = Callable[[Call], Any]


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda c: function(c[0])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda c: function(*_on_one_device(c[0], c[1]))


def _on_one_device(*tensors: Tensor) -> list[Tensor]:
    """Integers stay on the CPU; where they meet floats of another device they follow."""
    device = next((t.device for t in tensors if t.device.type != "cpu"), tensors[0].device)
    return [t.to(device) for t in tensors]


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _many(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def call(c: Call) -> Tensor:
        result = c[0]
        for i in range(1, len(c.inputs)):
            result = function(*_on_one_device(result, c[i]))
        return result

    return call


def _clip(c: Call) -> Tensor:
    low, high = c.get(1), c.get(2)
    if low is None and high is None and c.opset < 11:
        return c[0].clamp(c.attribute("min", -3.4e38), c.attribute("max", 3.4e38))
    return (
        c[0].clamp(None if low is None else float(low), None if high is None else float(high))
        if low is not None or high is not None
        else c[0]
    )


def _gelu(c: Call) -> Tensor:
    return F.gelu(c[0], approximate=c.attribute("approximate", "none"))


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def call(c: Call) -> Tensor:
        if c.opset >= 13:
            return function(c[0], dim=c.attribute("axis", -1))
        axis = c.attribute("axis", 1) % c[0].dim()  # before: over all axes from this one on
        return function(c[0].flatten(axis), dim=-1).reshape(c[0].shape)

    return call


def _convolution(c: Call) -> Tensor:
    x, w = c[0], c[1]
    rank = x.dim() - 2
    stride, dilation = c.attribute("strides", [1] * rank), c.attribute("dilations", [1] * rank)
    x, pads = _padded(c, x, list(w.shape[2:]), stride, dilation, 0.0)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    return convolve(
        x,
        w,
        c.get(2),
        stride=tuple(stride),
        padding=tuple(pads),
        dilation=tuple(dilation),
        groups=c.attribute("group", 1),
    )


def _padded(
    c: Call, x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], fill: float
) -> tuple[Tensor, list[int]]:
    """(x, padding that is the same on both sides of each axis); x is padded itself where it is not."""
    rank = len(kernel)
    pads = list(c.attribute("pads", [0] * 2 * rank))
    mode = c.attribute("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * 2 * rank
        for i in range(rank):
            size, span = x.shape[2 + i], dilation[i] * (kernel[i] - 1) + 1
            total = max(0, (-(-size // stride[i]) - 1) * stride[i] + span - size)
            pads[i], pads[rank + i] = total // 2, total - total // 2
            if mode == "SAME_LOWER":
                pads[i], pads[rank + i] = pads[rank + i], pads[i]
    if pads[:rank] == pads[rank:]:
        return x, pads[:rank]
    around = [p for i in reversed(range(rank)) for p in (pads[i], pads[rank + i])]
    return F.pad(x, around, value=fill), [0] * rank


def _transposed_convolution(c: Call) -> Tensor:
    x, w = c[0], c[1]
    rank = x.dim() - 2
    pads = c.attribute("pads", [0] * 2 * rank)
    if c.attribute("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in c.attributes or pads[:rank] != pads[rank:]:
        raise NotInTorch("ConvTranspose with padding on one side")
    convolve = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
    return convolve(
        x,
        w,
        c.get(2),
        stride=tuple(c.attribute("strides", [1] * rank)),
        padding=tuple(pads[:rank]),
        output_padding=tuple(c.attribute("output_padding", [0] * rank)),
        groups=c.attribute("group", 1),
        dilation=tuple(c.attribute("dilations", [1] * rank)),
    )


def _pool(c: Call) -> Tensor:
    x, kernel = c[0], list(c.attribute("kernel_shape"))
    rank = len(kernel)
    stride, dilation = c.attribute("strides", [1] * rank), c.attribute("dilations", [1] * rank)
    largest = c.attribute("_kind") == "MaxPool"
    if c.outputs > 1:
        raise NotInTorch("MaxPool with indices")
    inside = bool(c.attribute("count_include_pad", 0)) or largest
    before = x.shape
    x, pads = _padded(c, x, kernel, stride, dilation, float("-inf") if largest else 0.0)
    if x.shape != before and not inside:
        raise NotInTorch("AveragePool with padding on one side")
    ceil = bool(c.attribute("ceil_mode", 0))
    if largest:
        pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[rank]
        return pool(x, kernel, stride=stride, padding=pads, dilation=dilation, ceil_mode=ceil)
    if list(dilation) != [1] * rank:
        raise NotInTorch("AveragePool with dilation")
    average = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[rank]
    return average(x, kernel, stride=stride, padding=pads, ceil_mode=ceil, count_include_pad=inside)


def _batch_norm(c: Call) -> Tensor:
    if c.attribute("training_mode", 0):
        raise NotInTorch("BatchNormalization in training mode")
    return F.batch_norm(c[0], c[3], c[4], c[1], c[2], False, 0.0, c.attribute("epsilon", 1e-5))


def _layer_norm(c: Call) -> Tensor:
    axis = c.attribute("axis", -1) % c[0].dim()
    if c.outputs > 1:
        raise NotInTorch("LayerNormalization with statistics")
    return F.layer_norm(c[0], c[0].shape[axis:], c[1], c.get(2), c.attribute("epsilon", 1e-5))


def _group_norm(c: Call) -> Tensor:
    if c.opset < 21:
        raise NotInTorch("GroupNormalization before operator set 21")
    return F.group_norm(c[0], c.attribute("num_groups"), c[1], c[2], c.attribute("epsilon", 1e-5))


def _instance_norm(c: Call) -> Tensor:
    return F.instance_norm(c[0], weight=c[1], bias=c[2], eps=c.attribute("epsilon", 1e-5))


def _gemm(c: Call) -> Tensor:
    a = c[0].T if c.attribute("transA", 0) else c[0]
    b = c[1].T if c.attribute("transB", 0) else c[1]
    product: Tensor = c.attribute("alpha", 1.0) * (a @ b)
    bias = c.get(2)
    return product if bias is None else product + c.attribute("beta", 1.0) * bias


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def call(c: Call) -> Tensor:
        axes = c.integers(1, "axes")
        if not axes:
            if axes is not None and c.attribute("noop_with_empty_axes", 0):
                return c[0]
            axes = list(range(c[0].dim()))
        return function(c[0], axes, bool(c.attribute("keepdims", 1)))

    return call


def _reshape(c: Call) -> Tensor:
    shape = c.integers(1, "shape") or []
    if not c.attribute("allowzero", 0):
        shape = [c[0].shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return c[0].reshape(shape)


def _flatten(c: Call) -> Tensor:
    axis = c.attribute("axis", 1)
    axis = axis + c[0].dim() if axis < 0 else axis
    rows = 1
    for n in c[0].shape[:axis]:
        rows *= n
    return c[0].reshape(rows, -1)


def _transpose(c: Call) -> Tensor:
    return c[0].permute(*c.attribute("perm", list(reversed(range(c[0].dim())))))


def _squeeze(c: Call) -> Tensor:
    axes = c.integers(1, "axes")
    if axes is None:
        return c[0].squeeze()
    return c[0].squeeze(tuple(axes))


def _unsqueeze(c: Call) -> Tensor:
    axes = c.integers(1, "axes") or []
    rank = c[0].dim() + len(axes)
    out = c[0]
    for axis in sorted(a % rank for a in axes):
        out = out.unsqueeze(axis)
    return out


def _slice(c: Call) -> Tensor:
    x = c[0]
    starts, ends = c.integers(1, "starts") or [], c.integers(2, "ends") or []
    axes = c.integers(3, "axes") or list(range(len(starts)))
    steps = c.integers(4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        chosen = range(x.shape[axis])[start:end:step]
        if step > 0:
            x = x.narrow(axis, chosen.start, max(0, chosen.stop - chosen.start))
            x = x if step == 1 else x[(slice(None),) * (axis % x.dim()) + (slice(None, None, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.long, device=x.device))
    return x


def _split(c: Call) -> tuple[Tensor, ...]:
    axis = c.attribute("axis", 0)
    sizes = c.integers(1, "split")
    if sizes is None:
        whole = c[0].shape[axis]
        each = -(-whole // c.outputs)
        sizes = [min(each, whole - i * each) for i in range(c.outputs)]
    return torch.split(c[0], sizes, dim=axis)


def _gather(c: Call) -> Tensor:
    x, indices, axis = c[0], c[1].long().to(c[0].device), c.attribute("axis", 0)
    axis %= x.dim()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    if indices.dim() == 0:
        return x.select(axis, int(indices))
    return x.index_select(axis, indices.reshape(-1)).reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def _expand(c: Call) -> Tensor:
    return c[0].expand(np.broadcast_shapes(tuple(c[0].shape), tuple(c.integers(1) or ())))


def _concat(c: Call) -> Tensor:
    return torch.cat(_on_one_device(*(c[i] for i in range(len(c.inputs)))), dim=c.attribute("axis"))


def _pad(c: Call) -> Tensor:
    mode = c.attribute("mode", "constant")
    pads, axes = c.integers(1, "pads") or [], c.integers(3)
    rank = c[0].dim()
    axes = [a % rank for a in axes] if axes is not None else list(range(rank))
    around = [0] * 2 * rank
    for i, axis in enumerate(axes):
        around[2 * (rank - 1 - axis)], around[2 * (rank - 1 - axis) + 1] = pads[i], pads[len(axes) + i]
    while len(around) > 2 and around[-2:] == [0, 0]:
        around = around[:-2]
    if mode == "constant":
        fill = c.get(2)
        return F.pad(c[0], around, value=float(fill) if fill is not None else c.attribute("value", 0.0))
    return F.pad(c[0], around, mode={"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode])


def _resize(c: Call) -> Tensor:
    x = c[0]
    mode, how = c.attribute("mode", "nearest"), c.attribute("coordinate_transformation_mode", "half_pixel")
    sizes, scales = c.integers(3), c.get(2)
    if c.attribute("axes") is not None or c.attribute("antialias", 0) or x.dim() < 3:
        raise NotInTorch("Resize of some axes, or antialiased")
    if sizes is None:
        if scales is None or not scales.numel():
            raise NotInTorch("Resize without sizes")
        sizes = [int(n * s) for n, s in zip(x.shape, scales.reshape(-1).tolist(), strict=True)]
    if sizes[:2] != list(x.shape[:2]):
        raise NotInTorch("Resize of channels")
    if mode == "nearest":
        whole = all(n % m == 0 for n, m in zip(sizes[2:], x.shape[2:], strict=True))
        floor = c.attribute("nearest_mode", "round_prefer_floor") == "floor" and how == "asymmetric"
        if not whole and not floor:
            raise NotInTorch("Resize to the nearest, by a fraction")
        return F.interpolate(x, sizes[2:], mode="nearest")
    if mode == "linear" and x.dim() == 4 and how in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return F.interpolate(x, sizes[2:], mode="bilinear", align_corners=how == "align_corners")
    raise NotInTorch(f"Resize with {mode} {how}")


def _cast(c: Call) -> Tensor:
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}
    to = c.attribute("to")
    if to not in kinds:
        raise NotInTorch(f"Cast to ONNX type {to}")
    return c[0].to(kinds[to])


def _constant_of_shape(c: Call) -> Tensor:
    value = c.attribute("value")
    fill = torch.zeros(1) if value is None else value
    return fill.reshape(()).expand(tuple(c.integers(0) or ())).clone()


def _shape(c: Call) -> Tensor:
    return torch.tensor(list(c[0].shape)[c.attribute("start", 0) : c.attribute("end")], dtype=torch.long)


def _depth_to_space(c: Call) -> Tensor:
    n = c.attribute("blocksize")
    if c.attribute("mode", "DCR") == "CRD":
        return F.pixel_shuffle(c[0], n)
    b, channels, h, w = c[0].shape
    x = c[0].reshape(b, n, n, channels // n**2, h, w)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(b, channels // n**2, h * n, w * n)


def _lrn(c: Call) -> Tensor:
    return F.local_response_norm(
        c[0], c.attribute("size"), c.attribute("alpha", 1e-4), c.attribute("beta", 0.75), c.attribute("bias", 1.0)
    )


def _hard_sigmoid(c: Call) -> Tensor:
    line: Tensor = c.attribute("alpha", 0.2) * c[0] + c.attribute("beta", 0.5)
    return line.clamp(0, 1)


def _prelu(c: Call) -> Tensor:
    return torch.where(c[0] < 0, c[0] * c[1], c[0])


def _where(c: Call) -> Tensor:
    condition, a, b = _on_one_device(c[0], c[1], c[2])
    return torch.where(condition, a, b)


def _range(c: Call) -> Tensor:
    return torch.arange(*(c[i].item() for i in range(3)), dtype=c[0].dtype)


def _tile(c: Call) -> Tensor:
    return c[0].repeat(*(c.integers(1) or ()))


OPERATORS: dict[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "CastLike": lambda c: c[0].to(c[1].dtype),
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Cos": _unary(torch.cos),
    "DepthToSpace": _depth_to_space,
    "Div": _binary(_divide),
    "Dropout": lambda c: c[0],
    "Einsum": lambda c: torch.einsum(c.attribute("equation"), *(c[i] for i in range(len(c.inputs)))),
    "Elu": lambda c: F.elu(c[0], c.attribute("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda c: c[0].mean(tuple(range(2, c[0].dim())), keepdim=True),
    "GlobalMaxPool": lambda c: c[0].amax(tuple(range(2, c[0].dim())), keepdim=True),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "GroupNormalization": _group_norm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Identity": lambda c: c[0],
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda c: F.leaky_relu(c[0], c.attribute("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(F.log_softmax),
    "MatMul": _binary(torch.matmul),
    "Max": _many(torch.maximum),
    "MaxPool": lambda c: _pool(Call(c.inputs, {**c.attributes, "_kind": "MaxPool"}, c.outputs, c.opset)),
    "Min": _many(torch.minimum),
    "Mish": _unary(F.mish),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _binary(torch.pow),
    "Range": _range,
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL2": _reduce(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Relu": _unary(F.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Selu": _unary(F.selu),
    "Shape": _shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Sin": _unary(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax(F.softmax),
    "Softplus": _unary(F.softplus),
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Sum": _many(torch.add),
    "Tanh": _unary(torch.tanh),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
"""By op_type, in ONNX's own domain. "Constant" is read by the graph itself."""

DIFFERENTIABLE = frozenset(OPERATORS) - {
    "Cast", "CastLike", "Ceil", "ConstantOfShape", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Range", "Shape",
}  # fmt: skip
"""Those through which gradients flow."""
