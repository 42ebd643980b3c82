"""m[k] is call k: against forward hooks, for containers and leaves, by both of torch's exporters, and from files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from exporter_helpers import SHAPE, inputs, network, with_outputs
from torch import nn

from splitwire.codec.errors import UsageError
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.network.inference import serialise
from splitwire.exporter.network.source import Source, from_file, from_module

pytestmark = pytest.mark.slow


class Residual(nn.Module):
    """Makes nodes of its own beside those of its children; its ReLU runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.relu(self.conv(x) - 0.1) + x)


class Part(nn.Module):
    """Uses a linear layer without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(x, self.linear.weight, self.linear.bias).tanh()


class Repeats(nn.Module):
    """Containers in containers, in loops and side by side; convolutions that are folded into batch norms; a leaf three
    times in a row; a call whose result is used twice; calls that return what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blk = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.outer = nn.Sequential(Residual(), nn.Conv2d(4, 4, 1), nn.Dropout(), nn.Tanh())
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.used = nn.Sigmoid()
        self.part = Part()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = self.blk(x) - 0.01
        x = self.blk(self.blk(x))
        for _ in range(3):
            x = self.outer(x)
        x = self.pool(self.pool(self.pool(x)))
        y = self.used(x)
        x = self.outer(y * y.exp())
        return self.fc(self.part(self.part(x.mean((2, 3)))))


class Shared(nn.Module):
    """One activation in many places, one container under four paths, two of them a list's."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Sigmoid()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), self.act, nn.Conv2d(4, 4, 1), self.act)
        self.a = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh())
        self.b = self.a
        self.many = nn.ModuleList([self.a, self.a])
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.act(self.b(self.a(self.first(x))))
        for m in self.many:
            x = m(x)
        return self.fc(x.mean((2, 3)))


@dataclass
class Exported:
    """A module, its graph, the graph again as from a file, and what each module returned at each call; one under
    several paths has all its calls under each of them."""

    source: Source
    file: Source
    calls: Mapping[str, list[np.ndarray]]


def calls(module: nn.Module, x: np.ndarray) -> dict[str, list[np.ndarray]]:
    made: dict[nn.Module, list[np.ndarray]] = {m: [] for m in module.modules() if m is not module}
    handles = [m.register_forward_hook(lambda m, i, o: made[m].append(o.detach().clone().numpy())) for m in made]
    with torch.no_grad():
        module(torch.from_numpy(x))
    for handle in handles:
        handle.remove()
    return {path: made[m] for path, m in module.named_modules(remove_duplicate=False) if path and made[m]}


@pytest.fixture(scope="module", params=["dynamo", "legacy"])
def exporter(request) -> Iterator[str]:
    real = torch.onnx.export

    def export(*args, dynamo, **options):
        if dynamo and request.param == "legacy":
            raise RuntimeError("no")
        return real(*args, dynamo=dynamo, **options)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch.onnx, "export", export)
        yield request.param


def exported(cls: type[nn.Module], exporter: str, folder: Path) -> Exported:
    module = network(cls).eval()
    source = from_module(module, (1, *SHAPE))
    assert source.origin == exporter
    (folder / "net.onnx").write_bytes(serialise(source.model))
    file = from_file(folder / "net.onnx")
    assert b"splitwire" not in (folder / "net.onnx").read_bytes()
    return Exported(source, file, calls(module, inputs(2)))


@pytest.fixture(scope="module")
def repeats(exporter, tmp_path_factory) -> Exported:
    return exported(Repeats, exporter, tmp_path_factory.mktemp("repeats"))


@pytest.fixture(scope="module")
def shared(exporter, tmp_path_factory) -> Exported:
    return exported(Shared, exporter, tmp_path_factory.mktemp("shared"))


def compare(source: Source, wanted: Mapping[str, np.ndarray]) -> None:
    """Each spec is one tensor, and has these values."""
    names = Names.of(source)
    found = {spec: names.resolve(spec).values for spec in wanted}
    assert not {spec: values for spec, values in found.items() if len(values) != 1}
    outputs = list(source.graph.outputs)
    whole = with_outputs(source, list(dict.fromkeys(values[0] for values in found.values())))
    source.graph.outputs[:] = outputs
    have = dict(zip(whole.outputs, whole.run(inputs(2)), strict=True))
    for spec, (value,) in found.items():
        np.testing.assert_allclose(have[value.name], wanted[spec], rtol=1e-4, atol=1e-5, err_msg=spec)


def specs(made: Mapping[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Each call by its number from the start and from the end, and by its path alone where it is the only one."""
    wanted = {f"{path}[{k - n}]": y for path, ys in made.items() for n in (0, len(ys)) for k, y in enumerate(ys)}
    return wanted | {path: ys[0] for path, ys in made.items() if len(ys) == 1}


def ask_which(source: Source, made: Mapping[str, list[np.ndarray]]) -> None:
    names = Names.of(source)
    several = {path: len(ys) for path, ys in made.items() if len(ys) > 1}
    for path, n in several.items():
        with pytest.raises(UsageError) as e:
            names.resolve(path)
        assert str(e.value).endswith(f" runs {n} times; say which call: {path}[0] … {path}[{n - 1}]")
        with pytest.raises(UsageError, match=f"layer {path!r} runs {n} time.s.; there is no call {n}"):
            names.resolve(f"{path}[{n}]")
    assert several


def labels(source: Source) -> None:
    """What the names say of a tensor leads back to it."""
    names = Names.of(source)
    values = [v for node in names.flow.nodes for v in node.outputs if names.has_path(v)]
    assert [names.resolve(names.label(v)).values for v in values] == [(v,) for v in values]
    assert len(values) > 5


def test_every_call_of_every_module(repeats, exporter):
    made = dict(repeats.calls)
    if exporter == "legacy":
        made["blk.0"] = made.pop("blk.1")  # the batch norm is folded into the convolution, and leaves no node
    compare(repeats.source, specs(made))
    ask_which(repeats.source, made)
    labels(repeats.source)


def test_folded_and_lent_weights_by_call(repeats, exporter):
    names = Names.of(repeats.source)
    tanh = [names.resolve(f"part[{k}]").values[0].producer() for k in range(2)]
    read = [n.inputs[0] for n in tanh if n is not None]
    assert [names.resolve(f"part.linear[{k}]").values for k in range(2)] == [(v,) for v in read]
    note = names.resolve("part.linear[0]").note
    assert note is not None and "not called: 'part' uses its weights" in note
    with pytest.raises(UsageError, match=r"'part.linear' runs 2 times; say which call: part.linear\[0\]"):
        names.resolve("part.linear")
    with pytest.raises(UsageError, match="there is no call 2"):
        names.resolve("part.linear[2]")


def test_every_call_from_a_file(repeats, exporter):
    made = dict(repeats.calls)
    del made["outer.2"]  # what leaves no node has no name
    if exporter == "legacy":
        made["blk.0"] = made.pop("blk.1")
    compare(repeats.file, specs(made))
    ask_which(repeats.file, made)
    labels(repeats.file)


def test_a_module_under_several_paths(shared):
    compare(shared.source, specs(shared.calls))
    ask_which(shared.source, shared.calls)
    labels(shared.source)
    with pytest.raises(UsageError, match=r"layer 'first.1' \(it is the module 'act'\) runs 3 times"):
        Names.of(shared.source).resolve("first.1")


def test_a_module_under_several_paths_in_a_file(shared, exporter):
    """What the file has: dynamo's each path, TorchScript's the path under which the module was first met."""
    made = shared.calls
    under = {path: [made[path][k]] for k, path in enumerate(["a", "b", "many.0", "many.1"])}
    under |= {"first.1": [made["act"][0]], "first.3": [made["act"][1]], "act": [made["act"][2]]}
    if exporter == "legacy":
        under = {"a": made["a"], "first.act": made["act"][:2], "act": [made["act"][2]]}
    compare(shared.file, specs(under))
    labels(shared.file)


def test_a_call_that_the_exporter_drops(exporter):
    """The second call's result is not used: nobody may be sold the third for it, or for the first."""

    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blk = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh())
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            x = self.blk(x)
            self.blk(x * 2)
            return self.fc(self.blk(x + 1).mean((2, 3)))

    module = network(Drops).eval()
    source = from_module(module, (1, *SHAPE))
    made = calls(module, inputs(2))
    if exporter == "dynamo":
        compare(source, {"blk[0]": made["blk"][0], "blk[-1]": made["blk"][2], "blk.1[2]": made["blk.1"][2]})
    names = Names.of(source)
    for spec in ("blk[1]", "blk.1[1]", *(("blk[0]", "blk[2]") if exporter == "legacy" else ())):
        with pytest.raises(UsageError, match=r"leaves no node of its own in the ONNX graph, or none that can be told"):
            names.resolve(spec)
