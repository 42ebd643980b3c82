"""Small networks for the exporter's tests, and the folders of images that they are calibrated on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.source import Source

SHAPE = (3, 16, 16)


class Block(nn.Module):
    """Residual, with one ReLU that runs twice, as in torchvision's resnet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        z: torch.Tensor = self.relu(self.bn2(self.conv2(y)) + x)
        return z


class Net(nn.Module):
    """stem (conv, bn, relu) → layer1, layer2 (residual) → pool → dropout → fc. `shared` is read on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.layer1 = nn.Sequential(Block(8), Block(8))
        self.layer2 = nn.Sequential(Block(8))
        self.shared = nn.Parameter(torch.linspace(0.5, 1.5, 8).reshape(1, 8, 1, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer1(self.act(self.bn(self.conv(x))) * self.shared)
        x = self.layer2(x) * self.shared
        y: torch.Tensor = self.fc(self.drop(self.pool(x).flatten(1)))
        return y


def network(cls: type[nn.Module] = Net) -> nn.Module:
    """A network with fixed random weights and batch-norm statistics, in training mode as a user may have left it."""
    torch.manual_seed(0)
    net = cls()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            nn.init.normal_(m.running_mean, std=0.1)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, std=0.1)
    return net.train()


def inputs(n: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, *shape)).astype(np.float32)


def with_outputs(source: Source, values: list[ir.Value]) -> Graph:
    """The graph with the values among its outputs."""
    for value in values:
        if value not in source.graph.outputs:
            source.graph.outputs.append(value)
    return Graph.of(source.model, what="graph with taps", exact=True)


def write_images(folder: Path, n: int, classes: int = 2) -> list[Path]:
    """Write n random PNGs in an ImageFolder layout."""
    rng = np.random.default_rng(2)
    files = []
    for i in range(n):
        place = folder / f"class{i * classes // n}"
        place.mkdir(parents=True, exist_ok=True)
        files.append(place / f"{i:03}.png")
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(files[-1])
    return files


class Items(Dataset[Any]):
    """Map-style, as users write them: (input, label) by number, no iteration."""

    def __init__(self, items, label=True):
        self.items = items
        self.label = label
        self.asked: list[int] = []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.asked.append(i)
        return (self.items[i], i) if self.label else self.items[i]


DISK_FAULTS = {"write": ("fsync", 2), "rename first": ("replace", 1), "rename second": ("replace", 2)}
"""Where a pair of files can fail to be written: which call of what."""


def disk_full(monkeypatch, fault: str) -> None:
    """Let the call that `fault` names in DISK_FAULTS fail; those before and behind it work."""
    calls = {"fsync": 0, "replace": 0}

    def failing(name, real):
        def call(*args):
            calls[name] += 1
            if (name, calls[name]) == DISK_FAULTS[fault]:
                raise OSError(28, "No space left on device")
            return real(*args)

        return call

    monkeypatch.setattr(os, "fsync", failing("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", failing("replace", Path.replace))
