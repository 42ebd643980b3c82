"""Fixtures that tests of several packages share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import kernels
import pytest
from filelock import FileLock
from hypothesis import settings
from PIL import Image
from typer.testing import CliRunner

from splitwire.codec.shared import telemetry

if TYPE_CHECKING:
    from runtime_helpers import Pair

telemetry.set_variable()  # before a test file imports onnxruntime
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command; the processes of the tests share the cores
os.environ.setdefault("SPLITWIRE_CACHE_DIR", str(kernels.FOLDER))  # also for the processes that tests start

# xdist tells its workers a width; the tables of the tests are those of a pipe.
os.environ.pop("COLUMNS", None)

# Times vary on a busy machine, and the first example may compile a kernel. What failed is printed, to be tried again.
settings.register_profile("splitwire", deadline=None, print_blob=True)
settings.load_profile("splitwire")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes a minute comes first, so that no process is left alone with it at the end; the demo is slow."""
    for item in items:
        if "demo_pair" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
    items.sort(key=lambda item: "system" not in item.path.parts)


@pytest.fixture(scope="session")
def demo_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `splitwire demo --json` leaves, front.onnx and back.onnx among it, and in printed.json what it printed.

    It takes minutes: one of the processes does it for all.
    """
    from splitwire.cli import app

    alone = "PYTEST_XDIST_WORKER" not in os.environ
    folder = tmp_path_factory.getbasetemp() if alone else tmp_path_factory.getbasetemp().parent
    with FileLock(folder / "demo.lock"):
        if not (folder / "demo" / "printed.json").exists():
            command = ["demo", "--json", "--out", str(folder / "demo")]
            result = CliRunner().invoke(app, command, catch_exceptions=False)
            assert result.exit_code == 0, result.output
            (folder / "demo" / "printed.json").write_text(result.stdout, encoding="utf-8")
    return folder / "demo"


@pytest.fixture(scope="session")
def demo_images(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, int]:
    """The first 20 of the demo's test images as PNG files, and their labels."""
    from splitwire.models import demo

    folder = tmp_path_factory.mktemp("demo_images")
    images, labels = demo.test_set()
    found = {folder / f"{i:02d}.png": int(label) for i, label in enumerate(labels[:20])}
    for path, image in zip(found, images, strict=False):
        Image.fromarray(image).save(path)
    return found


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The runtimes' small pair, made without the exporter. Tests read it; one that changes a pair makes its own."""
    from runtime_helpers import make_pair

    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exporter's small network as an ONNX file: exporting from it takes a fraction of a second."""
    from exporter_helpers import SHAPE, network

    from splitwire.exporter.network.inference import serialise
    from splitwire.exporter.network.source import from_module

    path = tmp_path_factory.mktemp("model") / "net.onnx"
    path.write_bytes(serialise(from_module(network(), (1, *SHAPE)).model))
    return path
