"""A cut named after a module is what it returns, by a forward hook, whatever the exporter merged; or it is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from exporter_helpers import inputs, network
from torch import nn

import splitwire
from splitwire.codec.errors import UsageError
from splitwire.exporter.cutting.cuts import find_cut
from splitwire.exporter.cutting.layer_check import true_layer
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.cutting.split import split
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.source import Source, from_module

SHAPE = (3, 24, 24)


class Merged(nn.Module):
    """The exporter merges the end of each container with what follows it, or part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.relus = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.drop = nn.Dropout(0.5)  # returns what `relus` does
        self.again = nn.ReLU()
        self.clip = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU6())
        self.after = nn.ReLU(inplace=True)
        self.fold = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))
        self.norm = nn.BatchNorm2d(4)
        self.pad = nn.Sequential(nn.ReLU(), nn.ZeroPad2d(1))
        self.conv = nn.Conv2d(4, 5, 3)
        self.flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.twice = nn.Sequential(nn.Linear(5, 5), nn.ReLU())
        self.last = nn.Linear(5, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.after(self.clip(self.again(self.drop(self.relus(x)))))
        x = self.flat(self.conv(self.pad(self.norm(self.fold(x))))).view(-1, 5)
        y: torch.Tensor = self.last(self.twice(torch.relu(self.twice(x))))
        return y


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return network(Merged).eval()


@pytest.fixture(scope="module")
def source(module: nn.Module) -> Source:
    return from_module(module, (1, *SHAPE))


def returned(module: nn.Module, layer: str, x: np.ndarray) -> np.ndarray:
    """By a forward hook, before anything changes it."""
    path, _, call = layer.partition("[")
    calls: list[np.ndarray] = []
    hook = module.get_submodule(path).register_forward_hook(lambda _m, _i, o: calls.append(o.clone().numpy()))
    with torch.no_grad():
        module(torch.from_numpy(x))
    hook.remove()
    return calls[int(call.rstrip("]") or 0)]


def at_the_cut(source: Source, spec: str, x: np.ndarray) -> np.ndarray:
    cut, _ = find_cut(Names.of(source), spec)
    return Graph.of(split(source.model, cut.tensors).front, what="front", exact=True).run(x)[0]


@pytest.mark.parametrize(
    ("layer", "note"),
    [
        ("relus", "merged the end of 'relus' with what follows; what it returns is at again"),
        ("relus.0", None),
        ("drop", "merged the end of 'drop' with what follows; what it returns is at again"),
        ("again", None),
        ("clip", "merged the end of 'clip' with what follows; what it returns is at after"),
        ("after", None),
        ("fold.0", None),
        ("norm", None),
        ("pad.0", None),
        ("conv", None),
        ("flat", None),
        ("twice[0]", "merged the end of 'twice[0]' with what follows; what it returns is at "),
        ("twice[1]", None),
    ],
)
def test_the_cut_is_what_the_module_returns(module, source, layer, note):
    x = inputs(3, SHAPE)
    spec, said = true_layer(module, source, Names.of(source), layer, x)
    assert (said is None) == (note is None) and (note or "") in (said or "")
    ours, wanted = at_the_cut(source, spec, x), returned(module, layer, x)
    np.testing.assert_allclose(ours.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layer", "tensor"), [("fold", "fold.0"), ("pad", "pad.0")])
def test_what_the_graph_does_not_compute_is_refused(module, source, layer, tensor, tmp_path):
    """A convolution that became part of the batch norm, a padding that became part of the convolution."""
    names = Names.of(source)
    (left,) = names.resolve(tensor).values
    message = rf"^what layer '{layer}' returns is not in the ONNX graph: .* --cut '{left.name}'$"
    with pytest.raises(UsageError, match=message):
        true_layer(module, source, names, layer, inputs(1, SHAPE))
    with pytest.raises(UsageError, match=message):
        splitwire.export(module, cut=layer, calibration=inputs(4, SHAPE), levels=(2,), out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_small_values_are_told_apart_too(source, module):
    """The comparison goes by the tensor's own scale."""
    small = network(Merged).eval()
    with torch.no_grad():
        for p in small.get_submodule("relus").parameters():
            p.mul_(1e-6)
    spec, said = true_layer(small, from_module(small, (1, *SHAPE)), Names.of(source), "relus", inputs(1, SHAPE))
    assert spec == Names.of(source).resolve("again").values[0].name
    assert said is not None


def test_of_several_names_each_is_looked_at(module, source):
    x = inputs(1, SHAPE)
    (again,) = Names.of(source).resolve("again").values
    assert true_layer(module, source, Names.of(source), "conv, relus", x)[0] == f"conv,{again.name}"
    assert true_layer(module, source, Names.of(source), str(again.name), x) == (again.name, None)  # no module's name


def test_the_other_exporter(module, monkeypatch):
    """It folds a batch norm under the name of the convolution; the note says where the cut is."""
    real = torch.onnx.export

    def only_old(*args: object, dynamo: bool, **options: object) -> object:
        if dynamo:
            raise RuntimeError("not today")
        return real(*args, dynamo=False, **options)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(torch.onnx, "export", only_old)
    source = from_module(module, (1, *SHAPE))
    assert source.origin == "legacy"
    x = inputs(2, SHAPE)
    for layer, note in (("fold", "'fold' was merged with 'norm' by the ONNX export; the cut is after 'norm'"),
                        ("relus", None)):  # fmt: skip
        spec, said = true_layer(module, source, Names.of(source), layer, x)
        assert (spec, said) == (layer, note)
        wanted = returned(module, "norm" if note else layer, x)
        np.testing.assert_allclose(at_the_cut(source, spec, x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cut", ["relus", "auto"])
def test_an_export(module, cut, tmp_path: Path, monkeypatch):
    """The front gives what the layer returns. A cut that was found in the graph stays, under a name that is true."""
    monkeypatch.setattr(
        "splitwire.exporter.export.recommend_cut", lambda _source, names, *_, **__: find_cut(names, "relus")
    )
    x = inputs(4, SHAPE)
    pair = splitwire.export(module, cut=cut, calibration=x, levels=(2,), out=tmp_path)
    front = ort.InferenceSession(str(pair.front))
    ours = front.run(None, {front.get_inputs()[0].name: x})[0]
    layer = "relus.0" if cut == "auto" else "relus"
    np.testing.assert_allclose(ours, returned(module, layer, x), rtol=1e-4, atol=1e-5)
    assert pair.profile.cut == ("relus" if cut == "relus" else pair.profile.tensors[0].name)
    assert any("merged the end of 'relus'" in note for note in pair.notes) == (cut == "relus")
