"""What tests of several rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image

# Times vary on a busy machine, and the first example may compile a kernel. What failed is printed, to be tried again.
settings.register_profile("splitwire", deadline=None, print_blob=True)
settings.load_profile("splitwire")

FIRST = ("test_readme", "test_startup", "test_demo", "test_exporter_precision", "test_packaging")
"""Files that take minutes. Files are handed to the processes in order: none is left alone with one of these."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first."""
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def demo_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with front.onnx and back.onnx of the demo network, exported as `splitwire demo` does it."""
    import splitwire
    from splitwire.demo.fashion import to_inputs
    from splitwire.models import demo

    folder = tmp_path_factory.mktemp("demo_pair")
    splitwire.export(
        demo.load_network(),
        cut=demo.CUT,
        calibration=to_inputs(demo.calibration_set()),
        preprocessing=demo.PREPROCESSING,
        labels=demo.CLASSES,
        out=folder,
    )
    return folder


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
