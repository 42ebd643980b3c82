"""`make small-networks`: trains small networks of torchvision's classes on Fashion-MNIST, to measure codecs on.

MobileNetV3 (hard-swish), EfficientNet (SiLU, linear bottlenecks), ConvNeXt (sums of GELU blocks) and ViT (tokens): the
activations of today's networks, at sizes that one core trains in three to four minutes. The training is that of the
demo network (models/making/classifier_training.py), seeded. The weights go to build/small-networks/ and are not
shipped. A network that is there is not trained again; ARGS='vit' names some.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import safetensors.torch
import torch
import torchvision
from msgspec import Struct
from numpy.typing import NDArray
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from splitwire.codec.errors import UsageError
from splitwire.codec.shared.files import write_atomically, write_json
from splitwire.models import fashion
from splitwire.models.fashion import CLASSES, UInt8Array
from splitwire.models.making import command
from splitwire.models.making.classifier_training import Architecture, Settings, normalise, predict, resize, train
from splitwire.models.making.train_classifier import epoch_progress
from splitwire.models.weights import load_state, read_state

OUT = Path("build/small-networks")


class Small(NamedTuple):
    """A network and how it is trained."""

    architecture: Architecture
    settings: Settings


class Trained(Struct, frozen=True, kw_only=True):
    """What is known of a trained network. accuracy: on all 10,000 test images, in [0, 1]. seconds: of training."""

    name: str
    parameters: int
    accuracy: float
    epochs: int
    seconds: int
    weights_sha256: str
    machine: str
    versions: dict[str, str]


def mobilenet_v3(dropout: float) -> nn.Module:
    """The class mobilenet_v3_small as it is, 1.5 million parameters."""
    network: nn.Module = torchvision.models.mobilenet_v3_small(num_classes=len(CLASSES), dropout=dropout)
    return network


def efficientnet(dropout: float) -> nn.Module:
    """The first stages of EfficientNet-B0 with fewer blocks, 0.2 million parameters."""
    stages = [
        MBConvConfig(1, 3, 1, 32, 16, 1),
        MBConvConfig(4, 3, 2, 16, 24, 2),
        MBConvConfig(4, 5, 2, 24, 40, 2),
        MBConvConfig(4, 3, 2, 40, 80, 2),
    ]
    network: nn.Module = EfficientNet(stages, dropout=dropout, num_classes=len(CLASSES), last_channel=320)
    return network


def convnext(dropout: float) -> nn.Module:
    """Two stages of two blocks, 0.4 million parameters. dropout: the share of blocks that are left out, at the end."""
    stages = [CNBlockConfig(64, 128, 2), CNBlockConfig(128, None, 2)]
    network: nn.Module = ConvNeXt(
        stages, stochastic_depth_prob=dropout, layer_scale=1.0, num_classes=len(CLASSES)
    )  # fmt: skip
    return network


def vit(dropout: float) -> nn.Module:
    """Four encoder layers, 64 wide, on 8×8 tokens of two convolutions and a class token; 0.16 million parameters."""
    stem = [ConvStemConfig(32, 3, 2), ConvStemConfig(64, 3, 2)]
    network: nn.Module = VisionTransformer(
        image_size=32, patch_size=4, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128, dropout=dropout,
        num_classes=len(CLASSES), conv_stem_configs=stem,
    )  # fmt: skip
    return network


def _settings(epochs: int, **changes: float) -> Settings:
    # Without AMX bfloat16 is slower than float32 on small depthwise convolutions.
    return Settings(epochs=epochs, precision="float32", **changes)  # type: ignore[arg-type]  # int and float fields


NETWORKS = {
    "mobilenet_v3": Small(Architecture(build=mobilenet_v3, side=56), _settings(3, learning_rate=2e-3)),
    "efficientnet": Small(Architecture(build=efficientnet, side=56), _settings(2, learning_rate=2e-3)),
    "convnext": Small(Architecture(build=convnext, side=32), _settings(4, shift=1, dropout=0.0, learning_rate=2e-3)),
    "vit": Small(Architecture(build=vit, side=32), _settings(3, shift=1, dropout=0.0, learning_rate=2e-3)),
}


def weights(name: str) -> Path:
    """Where the weights of a network are."""
    return OUT / f"{name}.safetensors"


def load(name: str) -> nn.Module:
    """A trained network in eval mode. Raises UsageError where it was not trained."""
    path = weights(name)
    if not path.is_file():
        raise UsageError(f"{path} not found; `make small-networks` trains it")
    network = NETWORKS[name].architecture.build(0.0)
    load_state(network, read_state(path), str(path))
    return network.eval()


def inputs(name: str, images: UInt8Array) -> NDArray[np.float32]:
    """(n, 28, 28) uint8 → the inputs of a network, (n, 3, side, side) float32."""
    pixels: NDArray[np.float32] = normalise(resize(images, NETWORKS[name].architecture.side)).numpy()
    return np.ascontiguousarray(pixels)


def train_one(name: str, data: Path) -> Trained:
    """Train a network, or go on from its last whole epoch; write weights and figures."""
    small = NETWORKS[name]
    images, labels = fashion.read_split(data, "train")
    test, expected = fashion.read_split(data, "test")
    with epoch_progress(small.settings.epochs) as (on_step, on_epoch):
        network, seconds = train(
            images, labels, small.settings, OUT / f"{name}.pt", architecture=small.architecture, on_step=on_step,
            on_epoch=on_epoch,
        )  # fmt: skip
    content = safetensors.torch.save({k: v.contiguous() for k, v in network.state_dict().items()})
    right = predict(network, test, small.architecture.side) == expected
    trained = Trained(
        name=name, parameters=sum(p.numel() for p in network.parameters()), accuracy=float(right.mean()),
        epochs=small.settings.epochs, seconds=round(seconds), weights_sha256=hashlib.sha256(content).hexdigest(),
        machine=command.machine(),
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
    )  # fmt: skip
    write_json(weights(name).with_suffix(".json"), trained)
    write_atomically(weights(name), content)
    return trained


def figures(name: str) -> Trained:
    """The figures of a trained network. Raises UsageError where it was not trained."""
    path = weights(name).with_suffix(".json")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Trained)
    except (OSError, msgspec.DecodeError) as e:
        raise UsageError(f"{path} cannot be read ({e}); `make small-networks` trains the network") from e


def main(arguments: Sequence[str]) -> int:
    """Train the named networks, or all that are missing."""
    if unknown := set(arguments) - set(NETWORKS):
        command.err.print(f"there is no network {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
        return 2

    def work() -> None:
        OUT.mkdir(parents=True, exist_ok=True)
        for name in arguments or NETWORKS:
            trained = figures(name) if weights(name).is_file() else train_one(name, fashion.DEFAULT_FOLDER)
            command.err.print(
                f"{name}: {trained.accuracy:.2%} of the test images right, {trained.epochs} epochs in"
                f" {trained.seconds} s"
            )

    return command.run(work, resumes_from="the last whole epoch")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
