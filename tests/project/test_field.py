"""`make field`: the options make of a picture what the packages' own code does, and answers are read right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.inputs import field_pictures
from benchmarks.networks import field
from splitwire.codec import preprocessing
from splitwire.commands.export import pictures
from splitwire.exporter.network.pictures import completed

RNG = np.random.default_rng(0)
SIZES = {"open_nsfw": (300, 400), "nudenet": (200, 320), "rapidocr detector": (736, 736)}
"""Height and width, where the pictures of `make field` are photographs."""
TOLERANCE = {"rapidocr classifier": 0.004, "rapidocr recogniser": 0.004}
"""Behind a line the package puts 0 after normalising, which lies between two pixels. Elsewhere: float32's rounding."""


def options(network: field.Network) -> dict[str, Any]:
    names = [one.removeprefix("--").replace("-", "_") for one in network.options[::2]]
    return dict(zip(names, network.options[1::2], strict=True))


@pytest.mark.parametrize("network", field.NETWORKS, ids=lambda n: n.name.replace(" ", "-"))
def test_the_options_do_what_the_code_of_the_package_does(network: field.Network, tmp_path: Path) -> None:
    if network.name in SIZES:
        Image.fromarray(RNG.integers(0, 256, (*SIZES[network.name], 3), np.uint8)).save(tmp_path / "0.png")
    else:
        said = network.write(tmp_path, 2, 7)
        assert set(said) == {p.name for p in tmp_path.iterdir()} and all(said.values())
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            expected = network.package_input(image)
            how, _ = completed(pictures._options(**options(network)), expected.shape[1:], "float32")
            ours = preprocessing.apply(image, how)
        assert ours.shape == expected.shape[1:] and np.ptp(expected) > 0.5
        assert np.abs(ours - expected[0]).max() <= TOLERANCE.get(network.name, 2e-6)


def test_pictures_are_the_same_by_the_same_seed(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        field_pictures.captchas(tmp_path / folder, 1, seed, width=80, height=32, share=0.6)
    a, b, c = ((tmp_path / folder / "00.png").read_bytes() for folder in "abc")
    assert a == b != c


def test_text_is_read_without_blanks_and_repetitions() -> None:
    steps = [0, 3, 3, 0, 3, 5, 5, 0]
    assert [ord(c) - 0x4E00 for c in field.text_of(np.eye(6, dtype=np.float32)[None, steps])] == [3, 3, 5]


def test_masks_and_boxes_are_compared() -> None:
    mask = np.array([[True, True], [False, False]])
    assert field.overlap(mask, mask.T) == pytest.approx(1 / 3)
    assert field.overlap(~mask & mask, ~mask & mask) is None
    a, b, far = np.array([0.0, 0, 10, 10]), np.array([0.0, 0, 10, 6]), np.array([90.0, 90, 99, 99])
    assert field.iou(a, b) == pytest.approx(0.6)
    assert field.found_again([(a, 1), (far, 1)], [(b, 1)]) == pytest.approx(2 / 3)
    assert field.found_again([(a, 1)], [(b, 2)]) == 0 and field.found_again([], []) is None
    assert field.found_again([(a, 1)], [(a, 1), (b, 1)]) == pytest.approx(2 / 3)


def test_boxes_of_yolox_stand_on_their_grid() -> None:
    """A cell of the second grid, of stride 16: its box is its place, in steps."""
    output = np.full((1, 3549, 6), -9, np.float32)
    output[..., 4:] = 0
    cell = 52 * 52 + 3 * 26 + 5
    output[0, cell] = [0.5, 0.25, np.log(2), np.log(4), 0.9, 0.8]
    ((box, kind),) = field.boxes_of_yolox(output)
    assert kind == 0 and box == pytest.approx([(5.5 - 1) * 16, (3.25 - 2) * 16, (5.5 + 1) * 16, (3.25 + 2) * 16])


def test_boxes_of_yolov8_leave_out_what_overlaps() -> None:
    output = np.zeros((1, 6, 3), np.float32)
    output[0, :, 0] = [50, 50, 20, 20, 0.9, 0.1]
    output[0, :, 1] = [52, 50, 20, 20, 0.8, 0.1]
    output[0, :, 2] = [150, 50, 20, 20, 0.1, 0.2]
    ((box, kind),) = field.boxes_of_yolov8(output)
    assert kind == 0 and box == pytest.approx([40, 40, 60, 60])
