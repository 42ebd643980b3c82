"""Pictures for networks that take something else than NCHW RGB float: compared with plain NumPy and Pillow arithmetic,
written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from splitwire.codec import preprocessing
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Preprocessing

ORIENTATION = 0x0112


def noise(width: int, height: int) -> Image.Image:
    """Smooth enough to survive a JPEG, with colours that differ."""
    rng = np.random.default_rng(width * 1000 + height)
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def f32(value: float) -> np.float32:
    return np.float32(value)


def test_bgr_reverses_the_channels_and_mean_and_std_are_in_that_order() -> None:
    p = Preprocessing(crop=(9, 7), color="bgr", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    image = noise(7, 9)
    rgb = np.asarray(image)
    expected = np.empty((3, 9, 7), np.float32)
    for channel, (of_rgb, mean, std) in enumerate([(2, 0.1, 0.5), (1, 0.2, 0.6), (0, 0.3, 0.7)]):
        expected[channel] = (rgb[:, :, of_rgb].astype(np.float32) / f32(255) - f32(mean)) / f32(std)
    np.testing.assert_array_equal(preprocessing.apply(image, p), expected)
    assert np.array_equal(np.asarray(preprocessing.view(image, p)), rgb)  # still a picture, as a codec takes it


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_nhwc_is_the_same_with_the_channels_last(color: Any) -> None:
    first = preprocessing.apply(noise(40, 30), Preprocessing(crop=(16, 24), resize=24, color=color))
    last = preprocessing.apply(noise(40, 30), Preprocessing(crop=(16, 24), resize=24, color=color, layout="nhwc"))
    assert last.shape == (16, 24, 1 if color == "gray" else 3) and last.flags.c_contiguous
    np.testing.assert_array_equal(last, first.transpose(1, 2, 0))


def test_gray_is_pillows_luma() -> None:
    image = noise(8, 6)
    r, g, b = (np.asarray(image)[:, :, i].astype(np.int64) for i in range(3))
    luma = (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16  # ITU-R 601 in 16 bits
    p = Preprocessing(crop=(6, 8), color="gray", mean=(0.5,), std=(0.25,))
    expected = ((luma.astype(np.float32) / f32(255)) - f32(0.5)) / f32(0.25)
    np.testing.assert_array_equal(preprocessing.apply(image, p), expected[None])
    assert preprocessing.view(image, p).mode == "L"


def test_scale_multiplies_the_pixel() -> None:
    image = noise(5, 5)
    p = Preprocessing(crop=(5, 5), scale=1 / 127.5, mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0), layout="nhwc")
    expected = np.asarray(image).astype(np.float32) * f32(1 / 127.5) - f32(1)
    np.testing.assert_array_equal(preprocessing.apply(image, p), expected)
    caffe = Preprocessing(crop=(5, 5), scale=1, mean=(104, 117, 123), std=(1, 1, 1), color="bgr")
    bgr = np.asarray(image)[:, :, ::-1].transpose(2, 0, 1).astype(np.float32)
    expected = bgr - np.array([104, 117, 123], np.float32)[:, None, None]
    np.testing.assert_array_equal(preprocessing.apply(image, caffe), expected)


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_uint8_is_the_pixels(color: Any) -> None:
    image = noise(6, 4)
    x = preprocessing.apply(image, Preprocessing(crop=(4, 6), color=color, dtype="uint8", layout="nhwc"))
    rgb = np.asarray(image)
    expected = {"rgb": rgb, "bgr": rgb[:, :, ::-1], "gray": np.asarray(image.convert("L"))[:, :, None]}[color]
    assert x.dtype == np.uint8 and x.flags.c_contiguous
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"color": "bgr", "layout": "nhwc"},
        {"color": "gray"},
        {"color": "gray", "dtype": "uint8", "layout": "nhwc"},
        {"dtype": "uint8"},
        {"scale": 1.0, "mean": (104.0, 117.0, 123.0), "std": (58.0, 57.0, 59.0)},
        {"scale": -1 / 255, "mean": (-1.0, -1.0, -1.0), "std": (1.0, 1.0, 1.0)},
    ],
)
def test_an_input_becomes_its_picture_again(own: dict[str, Any]) -> None:
    p = Preprocessing(crop=(12, 10), **own)
    image = noise(10, 12)
    again = preprocessing.picture(preprocessing.apply(image, p), p)
    seen = preprocessing.view(image, p)
    assert again.mode == seen.mode
    np.testing.assert_array_equal(np.asarray(again), np.asarray(seen))


@pytest.mark.parametrize(
    ("size", "crop", "inside", "at"),
    [
        ((80, 40), (32, 32), (32, 16), (0, 8)),
        ((40, 80), (32, 32), (16, 32), (8, 0)),
        ((10, 10), (32, 48), (32, 32), (8, 0)),
        ((100, 33), (32, 64), (64, 21), (0, 5)),
        ((320, 48), (48, 320), (320, 48), (0, 0)),
        ((1, 900), (32, 32), (1, 32), (15, 0)),
    ],
)
def test_a_letterbox_keeps_the_shape(
    size: tuple[int, int], crop: tuple[int, int], inside: tuple[int, int], at: tuple[int, int]
) -> None:
    """size, inside: (width, height). at: (left, top) of the picture."""
    p = Preprocessing(crop=crop, pad=114, dtype="uint8", layout="nhwc")
    image = noise(*size)
    expected = np.full((*crop, 3), 114, np.uint8)
    resized = np.asarray(image.resize(inside, Image.Resampling.BILINEAR))
    expected[at[1] : at[1] + inside[1], at[0] : at[0] + inside[0]] = resized
    np.testing.assert_array_equal(preprocessing.apply(image, p), expected)
    ratios = (inside[0] / size[0], inside[1] / size[1])
    assert preprocessing.placement(size, p) == (*ratios, float(at[0]), float(at[1]))

    end = msgspec.structs.replace(p, pad=(1, 2, 3), pad_at="end")
    expected[:] = (1, 2, 3)
    expected[: inside[1], : inside[0]] = resized
    np.testing.assert_array_equal(preprocessing.apply(image, end), expected)
    assert preprocessing.placement(size, end) == (*ratios, 0.0, 0.0)


def test_pad_of_a_gray_and_of_a_bgr_network() -> None:
    gray = Preprocessing(crop=(4, 8), pad=200, color="gray", dtype="uint8")
    assert preprocessing.apply(Image.new("RGB", (4, 4)), gray)[0, :, 0].tolist() == [200] * 4
    bgr = Preprocessing(crop=(4, 8), pad=(1, 2, 3), color="bgr", dtype="uint8")  # the colour is RGB
    assert preprocessing.apply(Image.new("RGB", (4, 4)), bgr)[:, 0, 0].tolist() == [3, 2, 1]


def turned(folder: Path, suffix: str, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = folder / f"{orientation}{suffix}"
    noise(64, 32).save(path, exif=exif, quality=95)
    return path


UPRIGHT = {
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: np.rot90(a, 1),
}  # fmt: skip
"""EXIF 2.3, tag 0x0112: where row 0 and column 0 of the file belong."""


@pytest.mark.parametrize("orientation", [1, *UPRIGHT])
def test_exif_turns_a_photograph_only_if_asked(tmp_path: Path, orientation: int) -> None:
    path = turned(tmp_path, ".jpg", orientation)
    with Image.open(path) as image:
        stored = np.asarray(image.convert("RGB"))
    plain = Preprocessing(crop=(32, 64), dtype="uint8", layout="nhwc")
    np.testing.assert_array_equal(preprocessing.load(path, plain), stored)
    expected = UPRIGHT.get(orientation, lambda a: a)(stored)
    asked = msgspec.structs.replace(plain, exif=True, crop=expected.shape[:2])
    np.testing.assert_array_equal(preprocessing.load(path, asked), expected)


def test_exif_of_png_webp_and_of_a_tiff_that_pillow_turns_itself(tmp_path: Path) -> None:
    for suffix in (".png", ".webp", ".tiff"):
        path = turned(tmp_path, suffix, 6)
        asked = Preprocessing(crop=(64, 32), exif=True, dtype="uint8", layout="nhwc")
        noisy = np.rot90(np.asarray(noise(64, 32)).astype(int), -1)
        x = preprocessing.load(path, asked)
        assert np.abs(x - noisy).mean() < 6, suffix  # the photograph, turned once (WebP is lossy)


def test_a_turned_picture_is_not_turned_again(tmp_path: Path) -> None:
    p = Preprocessing(crop=(64, 32), exif=True)
    with preprocessing.opened(turned(tmp_path, ".jpg", 6)) as image:
        once = preprocessing.upright(image, p)
        np.testing.assert_array_equal(preprocessing.apply(once, p), preprocessing.apply(image, p))
        assert once.size == (32, 64)


def test_a_damaged_exif_block_turns_nothing() -> None:
    image = noise(20, 10)
    image.info["exif"] = b"Exif\0\0II*\0\xff\xff\xff\xff"
    plain = Preprocessing(crop=(10, 20))
    asked = msgspec.structs.replace(plain, exif=True)
    with pytest.warns(UserWarning, match="Corrupt EXIF"):  # Pillow's own
        x = preprocessing.apply(image, asked)
    np.testing.assert_array_equal(x, preprocessing.apply(image, plain))


def test_an_array_is_a_picture() -> None:
    rgb = np.asarray(noise(11, 7))
    p = Preprocessing(crop=(7, 11), dtype="uint8", layout="nhwc")
    np.testing.assert_array_equal(preprocessing.apply(preprocessing.from_array(rgb), p), rgb)
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])  # as cv2.imread gives it
    np.testing.assert_array_equal(preprocessing.apply(preprocessing.from_array(bgr, "bgr"), p), rgb)
    gray = np.arange(77, dtype=np.uint8).reshape(7, 11)
    expected = np.repeat(gray[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(preprocessing.apply(preprocessing.from_array(gray), p), expected)


@pytest.mark.parametrize(
    ("array", "order", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "rgb", r"\(H, W, 3\) or \(H, W\) uint8; got \(4, 4, 3\) float32"),
        (np.zeros((1, 3, 4, 4), np.uint8), "rgb", r"got \(1, 3, 4, 4\) uint8"),
        (np.zeros((4, 4, 4), np.uint8), "rgb", r"got \(4, 4, 4\) uint8"),
        (np.zeros((0, 4, 3), np.uint8), "rgb", r"got \(0, 4, 3\) uint8"),
        (np.zeros((4, 4, 3), np.uint8), "rbg", "order is 'rgb' or 'bgr', not 'rbg'"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray[Any, Any], order: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preprocessing.from_array(array, order)


def test_unset_fields_are_not_in_the_json() -> None:
    assert msgspec.json.encode(Preprocessing(crop=(224, 224), resize=256)) == (
        b'{"crop":[224,224],"resize":256,"interpolation":"bilinear","mean":[0.485,0.456,0.406],'
        b'"std":[0.229,0.224,0.225]}'
    )


@pytest.mark.parametrize(
    "p",
    [
        Preprocessing(crop=(8, 9), color="gray"),
        Preprocessing(crop=(8, 9), dtype="uint8", layout="nhwc", exif=True),
        Preprocessing(crop=(8, 9), scale=1, mean=(0, 0, 0), std=(1, 1, 1), pad=(0, 0, 0), pad_at="end"),
        Preprocessing(crop=(8, 9), color="bgr", pad=114),
    ],
)
def test_json_gives_the_same_json_again(p: Preprocessing) -> None:
    """Otherwise the exporter and the edge would not agree about the fingerprint."""
    text = msgspec.json.encode(p)
    again = msgspec.json.decode(text, type=Preprocessing)
    assert again == p and msgspec.json.encode(again) == text


def test_mean_and_std_by_default() -> None:
    scaled, bgr = Preprocessing(crop=(8, 8), scale=1 / 127.5), Preprocessing(crop=(8, 8), color="bgr")
    assert (scaled.mean, scaled.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert (bgr.mean, bgr.std) == ((0.406, 0.456, 0.485), (0.225, 0.224, 0.229))
    paddle = Preprocessing(crop=(8, 8), color="bgr", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert paddle.mean == (0.485, 0.456, 0.406)  # what is said is taken, in the order of the network's channels
    gray, pixels = Preprocessing(crop=(8, 8), color="gray"), Preprocessing(crop=(8, 8), dtype="uint8")
    assert (gray.mean, gray.std, gray.input_shape) == ((0.449,), (0.226,), (1, 8, 8))
    assert (pixels.mean, pixels.std, pixels.input_dtype) == ((), (), "uint8")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"mean": (0.5, 0.5)}, "mean must have 3 entries for rgb, has 2"),
        ({"std": (1.0,)}, "std must have 3 entries for rgb, has 1"),
        ({"color": "gray", "mean": (0.1, 0.2, 0.3)}, "mean must have 1 entry for gray, has 3"),
        ({"std": (1.0, 0.0, 1.0)}, "std must not be 0, is 0.0"),
        ({"std": (1.0, 1e-50, 1.0)}, "std must not be 0, is 1e-50"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "mean must be finite, is nan"),
        ({"std": (float("inf"), 1.0, 1.0)}, "std must be finite, is inf"),
        ({"mean": (1e39, 0.0, 0.0)}, "mean must be finite, is 1e[+]39"),
        ({"scale": 0.0}, "scale must not be 0, is 0.0"),
        ({"scale": float("nan")}, "scale must be finite, is nan"),
        ({"scale": 1e37, "std": (1e-5, 1.0, 1.0)}, "over float32"),
        ({"dtype": "uint8", "mean": (0.0, 0.0, 0.0)}, "uint8 input is the pixels as they are"),
        ({"dtype": "uint8", "scale": 1.0}, "no scale, mean and std"),
        ({"pad": 256}, "pad must be a gray level or an RGB colour from 0 to 255, is 256"),
        ({"pad": (0, -1, 0)}, r"from 0 to 255, is \(0, -1, 0\)"),
        ({"pad": (1, 2, 3), "color": "gray"}, "pad must be a gray level from 0 to 255"),
        ({"pad": 0, "resize": 8}, "resize must be None with it"),
        ({"pad_at": "end"}, "pad_at goes with pad"),
    ],
)
def test_values_that_make_no_input(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(crop=(8, 8), **own)
