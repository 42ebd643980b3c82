"""Module path → tensors, against forward hooks; the modules that leave nothing in the graph, and why."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from exporter_helpers import SHAPE, inputs, network, with_outputs
from torch import nn

from splitwire.codec.errors import UsageError
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.network.modules.passthrough import watching
from splitwire.exporter.network.source import from_module


def leaves(module: nn.Module) -> list[str]:
    return [p for p, m in module.named_modules() if p and not list(m.children()) and not isinstance(m, Pair)]


def hooked(module: nn.Module, x: torch.Tensor) -> dict[str, list[np.ndarray]]:
    """What each leaf module returned at each call, before anything changed it in place."""
    seen: dict[str, list[np.ndarray]] = {path: [] for path in leaves(module)}
    handles = [
        module.get_submodule(path).register_forward_hook(lambda m, i, o, p=path: seen[p].append(o.clone().numpy()))
        for path in seen
    ]
    with torch.no_grad():
        module(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_against_forward_hooks(name):
    torch.manual_seed(0)
    module = torchvision.models.get_model(name, weights=None).eval()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
    source = from_module(module, (1, 3, 64, 64))
    names = Names.of(source)
    x = inputs(1, (3, 64, 64))
    wanted = hooked(module, torch.from_numpy(x))
    found = {}
    for path, calls in wanted.items():
        for k in range(len(calls)):
            spec = path if len(calls) == 1 else f"{path}[{k}]"
            found[path, k] = names.resolve(spec)
            assert len(found[path, k].values) == 1, spec
    whole = with_outputs(source, list(dict.fromkeys(r.values[0] for r in found.values())))
    have = dict(zip(whole.outputs, whole.run(x), strict=True))
    compared = 0
    for (path, k), resolved in found.items():
        if "folded" in (resolved.note or ""):  # a convolution that is no longer there; its batch norm's output
            assert isinstance(module.get_submodule(path), nn.Conv2d)
            continue
        np.testing.assert_allclose(have[resolved.values[0].name], wanted[path][k], rtol=1e-3, atol=1e-4, err_msg=path)
        compared += 1
    assert compared > 0.6 * len(leaves(module))


class Drops(nn.Module):
    """Modules that return what they are given, in every place: after a module, before one, inside, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Dropout(0.5)
        )
        self.scale = nn.Parameter(torch.full((4, 1, 1), 0.5))
        self.own = nn.Identity()
        self.twice = nn.Dropout(0.5)
        self.pair = Pair()
        self.flat = nn.Sequential(nn.Identity(), nn.Linear(4 * 16 * 16, 5))
        self.aux = nn.Linear(4, 2)
        self.lent = nn.Linear(5, 5)

    def forward(self, x):
        x = self.first(x)
        y = self.own(x * self.scale)
        y = self.twice(y.exp())
        y, z = self.pair(y)
        y = self.twice(y + z)
        return nn.functional.linear(self.flat(y.flatten(1)), self.lent.weight, self.lent.bias).tanh()


class Pair(nn.Module):
    def forward(self, x):
        return x.sin(), x.cos()


def test_modules_that_return_what_they_are_given():
    module = network(Drops).eval()
    source = from_module(module, (1, *SHAPE))
    names = Names.of(source)
    x = inputs(1)
    wanted = hooked(module, torch.from_numpy(x)) | {"lent": []}
    specs = {"first.3": 0, "twice[0]": 0, "flat.0": 0, "first.2": 0}
    found = {spec: names.resolve(spec) for spec in (*specs, "lent")}
    whole = with_outputs(source, list(dict.fromkeys(r.values[0] for r in found.values())))
    have = dict(zip(whole.outputs, whole.run(x), strict=True))
    for spec, k in specs.items():
        (value,) = found[spec].values
        np.testing.assert_allclose(have[value.name], wanted[spec.partition("[")[0]][k], rtol=1e-4, atol=1e-5)
    assert found["first.3"].values == found["first.2"].values
    assert found["first.3"].note == "'first.3' (Dropout) returns what it is given; the cut is at that tensor, first"
    note = found["lent"].note
    assert note is not None and "'lent' is not called: 'the network' uses its weights" in note
    with pytest.raises(UsageError, match=r"layer 'twice' runs 2 times; say which call: twice\[0\]"):
        names.resolve("twice")
    with pytest.raises(UsageError, match="there is no call 2"):
        names.resolve("twice[2]")
    with pytest.raises(UsageError, match=r"layer 'own' \(Identity\) leaves no trace"):  # between two of forward()'s own
        names.resolve("own")
    with pytest.raises(UsageError, match=r"layer 'twice' \(Dropout\) leaves no trace"):
        names.resolve("twice[-1]")
    with pytest.raises(UsageError, match=r"layer 'aux' \(Linear\) is never called in evaluation mode"):
        names.resolve("aux")


def test_watching_leaves_no_trace():
    module = network(Drops).eval()
    x = torch.from_numpy(inputs(1))
    with torch.no_grad(), watching(module) as seen:
        module(x)
    assert seen.runs["twice"] == 2
    assert seen.runs["aux"] == 0
    assert {path for path, _ in seen.passed} == {"first.0", "first.3", "own", "twice", "flat.0"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    with torch.inference_mode(), watching(module) as blind:  # changes in place cannot be seen there
        module(x)
    assert blind.runs == seen.runs
    assert set(blind.passed) == {("first.0", 0)}  # the input was made outside
    with pytest.raises(ValueError, match="broken"), watching(module):
        raise ValueError("broken")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
