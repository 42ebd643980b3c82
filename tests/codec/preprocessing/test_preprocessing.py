"""codec.preprocessing gives torchvision's result to the bit, and one clear line for what is not an image."""

from __future__ import annotations

import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from splitwire.codec import preprocessing
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing

MODES = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


def torchvision_apply(image: Image.Image, p: Preprocessing) -> np.ndarray:
    x = image.convert("RGB")
    if p.resize is not None:
        size = list(p.resize) if isinstance(p.resize, tuple) else [p.resize]
        x = F.resize(x, size, interpolation=MODES[p.interpolation], antialias=True)
    x = F.center_crop(x, list(p.crop))
    expected: np.ndarray = F.normalize(F.convert_image_dtype(F.pil_to_tensor(x)), mean=p.mean, std=p.std).numpy()
    return expected


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), "RGB").convert(mode)


@pytest.mark.parametrize("size", [(37, 53), (53, 37), (64, 64), (300, 301), (255, 500), (33, 200), (7, 5), (1, 9)])
@pytest.mark.parametrize(
    ("resize", "crop", "interpolation"),
    [
        (None, (32, 32), "bilinear"),
        (None, (31, 44), "bilinear"),
        (64, (56, 56), "bilinear"),
        (65, (56, 57), "bicubic"),
        (40, (48, 33), "nearest"),
        (64, (64, 64), "bilinear"),
        ((53, 37), (53, 37), "bilinear"),
        ((40, 64), (40, 64), "bicubic"),
        ((64, 40), (56, 41), "nearest"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_equals_torchvision(
    size: tuple[int, int], resize: int | tuple[int, int] | None, crop: tuple[int, int], interpolation: str
) -> None:
    p = Preprocessing(resize=resize, crop=crop, interpolation=interpolation)  # type: ignore[arg-type]  # one of the Literal
    image = noise(*size)
    ours = preprocessing.apply(image, p)
    assert ours.shape == (3, *crop) and ours.dtype == np.float32 and ours.flags.c_contiguous
    np.testing.assert_array_equal(ours, torchvision_apply(image, p))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_modes(mode: str) -> None:
    p = Preprocessing(resize=20, crop=(16, 16))
    image = noise(31, 23, mode)
    np.testing.assert_array_equal(preprocessing.apply(image, p), torchvision_apply(image, p))


def test_load_equals_apply(tmp_path: Path) -> None:
    p = Preprocessing(resize=20, crop=(16, 16), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    noise(40, 30).save(tmp_path / "a.png")
    np.testing.assert_array_equal(preprocessing.load(tmp_path / "a.png", p), preprocessing.apply(noise(40, 30), p))


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = Preprocessing(resize=20, crop=(16, 16))
    noise(40, 30).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.png", "text.jpg", "empty.png", "missing.png"):
        with pytest.raises(UsageError, match=name):
            preprocessing.load(tmp_path / name, p)
    with pytest.raises(UsageError):
        preprocessing.load(tmp_path, p)

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with warnings.catch_warnings(), pytest.raises(UsageError, match="too many pixels"):
        warnings.simplefilter("ignore")
        preprocessing.load(tmp_path / "whole.png", p)


def test_thin_image_does_not_explode(monkeypatch: pytest.MonkeyPatch) -> None:
    thin = Image.new("RGB", (1, 60000))
    with pytest.raises(UsageError, match="limit"):
        preprocessing.apply(thin, Preprocessing(resize=256, crop=(224, 224)))
    both = Preprocessing(resize=(32, 48), crop=(32, 48))
    assert preprocessing.apply(thin, both).shape == (3, 32, 48)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UsageError, match="48x32 pixels, over Pillow's limit of 1000"):
        preprocessing.apply(thin, both)


@pytest.mark.parametrize("resize", [None, 64, (48, 64)])
def test_every_form_of_resize_survives_json(resize: int | tuple[int, int] | None) -> None:
    p = Preprocessing(resize=resize, crop=(48, 64), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert msgspec.json.decode(msgspec.json.encode(p), type=Preprocessing) == p


@pytest.mark.parametrize("resize", ["0", "100000000", "[0,64]", "[64]", "[64,64,3]", '"64"', "[64,100000000]"])
def test_other_forms_of_resize_are_refused(resize: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="resize"):
        msgspec.json.decode(f'{{"crop": [48, 64], "resize": {resize}}}', type=Preprocessing)
