"""The tensors of the codec benchmark. The profile of each is designed on other images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from splitwire.codec.design import FeatureStatistics, design_operating_point, worthwhile_taps
from splitwire.codec.profile import CodecProfile, OperatingPoint, Preprocessing, TensorSpec
from splitwire.codec.tables import Taps
from splitwire.demo import photos
from splitwire.demo.fashion import to_inputs
from splitwire.models import demo
from splitwire.models.catalogue import load

Floats = NDArray[np.float32]

PROFILE_LEVELS = (2, 3, 4, 8)
CROPS = 12
"""Random crops per photograph. Every second one is for calibration; the others are coded."""
CUTS = {
    "expanded ReLU6, 576×14×14": "features.14.conv.0",
    "linear bottleneck, 96×14×14": "features.13",
    "early layer, 24×56×56": "features.2",
}
"""Name → cut of MobileNetV2 with ImageNet weights."""


class Tensor(NamedTuple):
    """One tensor of the benchmark.

    profile: with the operating points n2, n3, n4 and n8, as an export makes it. context: the same for the context
    coder. features: (B, C, H, W) float32, to be coded. statistics: of other features, on which the profiles were
    designed. taps: of the predictive coder; None if it does not pay.
    """

    name: str
    profile: CodecProfile
    context: CodecProfile
    features: Floats
    statistics: FeatureStatistics
    taps: Taps | None


def tensors() -> Iterator[Tensor]:
    """The demo network's features, then MobileNetV2's."""
    network = demo.load_network()
    calibration = activations(network, to_inputs(demo.calibration_set()), [demo.CUT])[0]
    features = activations(network, to_inputs(demo.test_set()[0][:64]), [demo.CUT])[0]
    yield tensor("demo, 384×3×3", demo.CUT, calibration, features)
    loaded = load(photos.MODEL, "DEFAULT")
    inputs = mobilenet_inputs(loaded.preprocessing)
    calibrated = activations(loaded.module, inputs[0::2], list(CUTS.values()))
    coded = activations(loaded.module, inputs[1::4], list(CUTS.values()))
    for (name, cut), calibration, features in zip(CUTS.items(), calibrated, coded, strict=True):
        yield tensor(name, cut, calibration, features)


def mobilenet_inputs(how: Preprocessing) -> Floats:
    """(n, 3, H, W): crops of all photographs."""
    return photos.crops([*photos.OTHERS, *(source.file for source in photos.TEST)], CROPS, how)


def activations(network: torch.nn.Module, inputs: Floats, layers: Sequence[str]) -> list[Floats]:
    """(n, C, H, W) outputs of the named layers, one array each."""
    kept: dict[str, list[Floats]] = {layer: [] for layer in layers}
    hooks = [
        network.get_submodule(layer).register_forward_hook(
            lambda _m, _i, output, into=kept[layer]: into.append(output.detach().clone().numpy())
        )
        for layer in layers
    ]
    with torch.inference_mode():
        for i in range(0, len(inputs), 32):
            network(torch.from_numpy(inputs[i : i + 32]))
    for hook in hooks:
        hook.remove()
    return [np.concatenate(parts) for parts in kept.values()]


def tensor(name: str, cut: str, calibration: Floats, features: Floats) -> Tensor:
    """A Tensor with profiles designed on `calibration`."""
    statistics = FeatureStatistics(channels=calibration.shape[1])
    statistics.add(calibration)
    shape = calibration.shape[1:]
    context = design(cut, shape, statistics)
    taps = worthwhile_taps(statistics)
    return Tensor(name, design(cut, shape, statistics, taps), context, features, statistics, taps)


def design(cut: str, shape: tuple[int, ...], statistics: FeatureStatistics, taps: Taps | None = None) -> CodecProfile:
    """A profile for one tensor, with an operating point for each of PROFILE_LEVELS."""
    points = []
    for n in PROFILE_LEVELS:
        point, bits = design_operating_point(levels=n, statistics=statistics, taps=taps)
        points.append(OperatingPoint(name=f"n{n}", tensors=(point,), bits_per_element=bits))
    return profile(cut, shape, points, "n4", statistics, taps)


def profile(
    cut: str,
    shape: tuple[int, ...],
    points: Sequence[OperatingPoint],
    default_op: str,
    statistics: FeatureStatistics,
    taps: Taps | None = None,
) -> CodecProfile:
    """A profile for one tensor. shape: without the batch."""
    spec = TensorSpec(name=cut, shape=shape, mean=statistics.mean, taps=taps or msgspec.UNSET)
    return CodecProfile(
        model="benchmark", cut=cut, tensors=(spec,),
        operating_points=tuple(points), default_op=default_op, front_sha256="", back_sha256="",
    )  # fmt: skip


def without_tables(profile: CodecProfile) -> CodecProfile:
    """The same quantizers, coded by the paper's adaptive binary coder. profile: of the context coder."""
    points = tuple(
        msgspec.structs.replace(p, tensors=tuple(msgspec.structs.replace(t, tables=None) for t in p.tensors))
        for p in profile.operating_points
    )
    return msgspec.structs.replace(profile, operating_points=points)
