"""An interrupted calibration goes on where it was, with the same result to the bit. Two exports show it end to end;
the rest is shown on `calibrate()`, which reads and writes the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporter_helpers import SHAPE, Items, Net, inputs, network, write_images

import splitwire
from splitwire.codec.errors import NonFiniteFeatures
from splitwire.codec.profile import Preprocessing, TensorSpec
from splitwire.exporter.calibration import checkpoint
from splitwire.exporter.calibration.calibrate import BATCH, Calibrated, calibrate
from splitwire.exporter.calibration.checkpoint import Checkpoint
from splitwire.exporter.calibration.convergence import Settling
from splitwire.exporter.calibration.inputs import CalibrationInputs, open_inputs
from splitwire.exporter.cutting.cuts import find_cut
from splitwire.exporter.cutting.names import Names
from splitwire.exporter.cutting.split import split
from splitwire.exporter.network.inference import Graph
from splitwire.exporter.network.source import from_file

PREPROCESSING = Preprocessing(crop=SHAPE[1:], resize=18)


class Interrupted(Exception):
    """Not one of ours: as a kill would end the run."""


def quiet(*_: object) -> None:
    pass


def interrupted(at: int):
    def progress(stage, done, total):
        if stage == "Calibrate" and done >= at:
            raise Interrupted

    return progress


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every batch."""
    monkeypatch.setattr(checkpoint, "INTERVAL_S", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)


def sources(folder: Path) -> dict[str, Any]:
    """50 inputs of each kind; two of the files are no images."""
    paths = write_images(folder / "images", 50)
    paths[3].write_text("no image")
    paths[33].write_text("no image")
    return {"folder": folder / "images", "array": inputs(50), "dataset": Items(inputs(50))}


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# From export to export


def export(model, out, **options):
    return splitwire.export(model, out=out, **{"cut": "layer1", "calibration": inputs(12), "levels": (2, 4)} | options)


@pytest.mark.slow
@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(("kind", "at"), [("folder", 24), ("array", 8)])
def test_an_interrupted_export_goes_on_to_the_same_bytes(model, tmp_path, kind, at):
    options = {"calibration": sources(tmp_path)[kind], "preprocessing": PREPROCESSING}
    export(model, tmp_path / "whole", **options)
    out = tmp_path / "new" / "out"
    with pytest.raises(Interrupted):
        export(model, out, progress=interrupted(at), **options)
    assert list(files(out)) == [checkpoint.NAME]
    calls: list[tuple[str, int, int | None]] = []
    result = export(model, out, progress=lambda *step: calls.append(step), **options)
    assert any(f"interrupted run had left it, after {at} inputs" in n for n in result.notes)
    assert next(done for stage, done, _ in calls if stage == "Calibrate") == at + BATCH
    assert files(out) == files(tmp_path / "whole")
    assert [Path(s.path).name for s in result.skipped] == (["003.png", "033.png"] if kind == "folder" else [])


@pytest.mark.slow
@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({}, 2 * BATCH),
        ({"calibration": inputs(24) + np.float32(1)}, BATCH),
        ({"images": 20}, BATCH),
        ({"levels": (2, 3)}, BATCH),
        ({"cut": "layer2"}, BATCH),
        ({"preprocessing": PREPROCESSING}, BATCH),
    ],
)
def test_another_export_does_not_go_on_with_it(model, tmp_path, change, first):
    """first: the inputs done when progress is told for the first time; a run that goes on begins behind the others."""
    with pytest.raises(Interrupted):
        export(model, tmp_path, progress=interrupted(BATCH), calibration=inputs(24))
    began: list[int] = []

    def note(stage, done, total):
        if stage == "Calibrate":
            began.append(done)
            raise Interrupted

    with pytest.raises(Interrupted):
        export(model, tmp_path, progress=note, **{"calibration": inputs(24)} | change)
    assert began == [first]


@pytest.mark.usefixtures("often")
def test_a_generator_is_never_resumed(model, tmp_path):
    with pytest.raises(Interrupted):
        export(model, tmp_path / "out", progress=interrupted(8), calibration=iter(inputs(20)), input_shape=(1, *SHAPE))
    assert not (tmp_path / "out").exists()


class Overflowing(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.exp(x))


@pytest.mark.usefixtures("often")
def test_an_error_of_ours_leaves_no_checkpoint(tmp_path):
    x = inputs(20)
    x[17] = 300
    with pytest.raises(NonFiniteFeatures, match="calibration item 17: "):
        export(network(Overflowing), tmp_path / "a" / "b", calibration=x)
    assert not (tmp_path / "a").exists()


# In calibrate()


@pytest.fixture
def front(model: Path) -> Graph:
    whole = from_file(model)
    found, _ = find_cut(Names.of(whole), "layer1")
    return Graph.of(split(whole.model, found.tensors).front, what="front")


def one_pass(
    front: Graph, source: Any, kept_at: Checkpoint | None = None, progress: Any = quiet
) -> tuple[Calibrated, list[Any], CalibrationInputs]:
    """What was found, all the state it was found in, and what was read."""
    stream = open_inputs(source, shape=SHAPE, preprocessing=PREPROCESSING, limit=512)
    settling = Settling([2, 4], [None])
    spec = TensorSpec(name="y", shape=(8, 8, 8))
    found = calibrate(front, stream, [spec], settling=settling, progress=progress, checkpoint=kept_at)
    return found, [*(contents(vars(s)) for s in (*found.statistics, settling)), contents(found.kept)], stream


def contents(value: Any) -> Any:
    """Comparable with ==, to the bit."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, dict):
        return {k: contents(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [contents(v) for v in value]
    assert value is None or isinstance(value, (bool, int, float, str, np.generic)), type(value)
    return value


@pytest.fixture
def left(front: Graph, tmp_path: Path, often: None) -> Iterator[Path]:
    """The file of a pass over `inputs(24)` that was interrupted after its first batch."""
    interrupt(front, inputs(24), tmp_path, BATCH)
    yield tmp_path / checkpoint.NAME
    assert not (tmp_path / checkpoint.NAME).exists(), "what ended well leaves none"


def interrupt(front: Graph, source: Any, folder: Path, at: int) -> None:
    with pytest.raises(Interrupted), Checkpoint(folder, "key") as kept_at:
        one_pass(front, source, kept_at, interrupted(at))


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("kind", ["folder", "array", "dataset"])
@pytest.mark.parametrize("at", [8, 24])
def test_an_interrupted_pass_goes_on_to_the_same_state(front, tmp_path, kind, at):
    source = sources(tmp_path)[kind]
    _, whole, first = one_pass(front, source)
    interrupt(front, source, tmp_path, at)
    with Checkpoint(tmp_path, "key") as kept_at:
        found, state, second = one_pass(front, source, kept_at)
    assert found.resumed == at
    assert state == whole
    assert [s.path for s in second.skipped] == [s.path for s in first.skipped]
    assert [Path(s.path).name for s in second.skipped] == (["003.png", "033.png"] if kind == "folder" else [])


@pytest.mark.usefixtures("often")
def test_a_skipped_part_is_not_read_again(front, tmp_path):
    source = Items(inputs(40))
    interrupt(front, source, tmp_path, 24)
    source.asked.clear()
    with Checkpoint(tmp_path, "key") as kept_at:
        one_pass(front, source, kept_at)
    assert not {i for i in source.asked if i < 24}
    assert set(range(24, 40)) <= set(source.asked)


def test_a_pass_with_another_key_begins_again(front, left):
    with Checkpoint(left.parent, "another") as kept_at:
        found, state, _ = one_pass(front, inputs(24), kept_at)
    assert found.resumed == 0
    assert state == one_pass(front, inputs(24))[1]


@pytest.mark.parametrize(
    "damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: d[:200] + b"\xff" * 100 + d[300:]]
)
def test_a_damaged_checkpoint_is_ignored(front, left, damage):
    left.write_bytes(damage(left.read_bytes()))
    with Checkpoint(left.parent, "key") as kept_at:
        found, state, _ = one_pass(front, inputs(24), kept_at)
    assert found.resumed == 0
    assert state == one_pass(front, inputs(24))[1]


def test_a_short_calibration_writes_no_checkpoint(front, tmp_path):
    interrupt(front, inputs(12), tmp_path / "out", 8)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("often")
def test_a_full_disk_stops_no_calibration(front, tmp_path, monkeypatch):
    calls = []

    def full(*_args, **_options):
        calls.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with Checkpoint(tmp_path, "key") as kept_at:
        _, state, _ = one_pass(front, inputs(24), kept_at)
    assert calls == [1] * 3
    assert state == one_pass(front, inputs(24))[1]
    assert files(tmp_path) == {}


def test_a_checkpoint_holds_no_pickle(front, left):
    with np.load(left, allow_pickle=False) as arrays:
        assert arrays.files
        assert all(arrays[name].dtype != object for name in arrays.files)
    with Checkpoint(left.parent, "key") as kept_at:
        assert one_pass(front, inputs(24), kept_at)[0].resumed == BATCH
