"""The contenders: each decodes the right features or picture, from the right number of bytes."""

from __future__ import annotations

import io
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from codec_helpers import expected, make_profile, relu_features
from coefficients import make_transform
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.entropy.cabac import AdaptiveBinary
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import CodecProfile, OperatingPoint, SizeSpec, TensorSpec
from splitwire.codec.quantizer import quantize
from splitwire.codec.wire.frame import COMPACT_IDS
from splitwire.demo import baselines
from splitwire.evaluation import contenders
from splitwire.evaluation.contenders import mosaic, x265
from splitwire.evaluation.contenders.ladders import AVIF, HEVC, HEVC_IMAGE, HEVC_SCREEN, JPEG, LADDERS, WEBP
from splitwire.evaluation.contenders.packed import packed_zstd_bytes
from splitwire.evaluation.contenders.protocol import FeatureContender, Features, ImageContender
from splitwire.evaluation.measuring.feature_profile import feature_profile

SHAPES = {
    "tiny": ((384, 3, 3),),
    "two tensors": ((6, 14, 10), (3, 5, 4)),
    "tokens": ((50, 24),),
    "vector": ((70,),),
}
SAME = (*contenders.KEYS["paper"], *contenders.ZSTD.values())
"""Families that decode the same features as splitwire."""


@lru_cache
def profile_of(name: str) -> CodecProfile:
    """Uniform points n2, n3 and n5, and three that count as points a, e and r."""
    profile = make_profile(SHAPES[name], levels=(2, 3, 5))
    points = profile.operating_points
    more = [replace(p, name=name) for p, name in zip(points, ("a2", "e3", "r0.5"), strict=True)]
    return replace(profile, operating_points=(*points, *more))


def images_of(name: str, count: int = 4) -> list[Features]:
    tensors = [relu_features((count, *(1, 1, 1, *s)[-3:]), 40 + i) for i, s in enumerate(SHAPES[name])]
    return [tuple(x[k].reshape(1, *s) for x, s in zip(tensors, SHAPES[name], strict=True)) for k in range(count)]


@lru_cache
def fitted(name: str) -> list[FeatureContender]:
    all_contenders, sample = contenders.feature_contenders(profile_of(name)), images_of(name)
    for contender in all_contenders:
        contender.fit(sample)
    return all_contenders


def family(name: str, wanted: str) -> list[FeatureContender]:
    return [c for c in fitted(name) if c.family == wanted]


def error(contender: FeatureContender, features: Features) -> float:
    """Mean squared, over all tensors."""
    decoded = contender.decode(contender.encode(features))
    return float(np.mean(np.concatenate([(a - b).reshape(-1) for a, b in zip(decoded, features, strict=True)]) ** 2))


def picture(mode: str, size: tuple[int, int] = (61, 47)) -> Image.Image:
    """Smooth colours, an edge and a little noise."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[: size[1], : size[0]]
    rgb = np.stack([4 * x, 255 - 5 * y, 2 * (x + y)], axis=2) + rng.normal(0, 6, (*x.shape, 3))
    rgb[10:25, 20:40] = (220, 40, 60)
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("name", SHAPES)
def test_what_comes_back(name: str) -> None:
    """Shapes, types and the features of each family; the same bytes each time."""
    features = images_of(name)[1]
    codec = FeatureCodec(profile_of(name))
    for c in fitted(name):
        sent = c.encode(features)
        assert sent == c.encode(features) and 0 < sent.bytes == len(sent.payload) + sent.side
        decoded = c.decode(sent)
        assert [(x.dtype, x.shape) for x in decoded] == [(np.dtype(np.float32), x.shape) for x in features], c.family
        assert all(x.flags.c_contiguous for x in decoded)
        for i, (got, x) in enumerate(zip(decoded, features, strict=True)):
            if c.family == contenders.SPLITWIRE or c.family in SAME:
                np.testing.assert_array_equal(got, expected(codec, c.setting, i, x))
            elif c.family == "float32":
                np.testing.assert_array_equal(got, x)
            elif c.family == "float16":
                np.testing.assert_array_equal(got, x.astype(np.float16).astype(np.float32))


def test_the_same_received_is_the_same_features() -> None:
    features = images_of("two tensors")[0]
    by_received: dict[str, Features] = {}
    for c in fitted("two tensors"):
        decoded = c.decode(c.encode(features))
        for a, b in zip(by_received.setdefault(c.received, decoded), decoded, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{c.family} {c.setting}")
    # six points, three without a codec, HEVC
    assert len(by_received) == 6 + 3 + 2 * len(LADDERS[HEVC].usual)


def test_splitwire_is_the_real_frame() -> None:
    profile, features = profile_of("two tensors"), images_of("two tensors")[0]
    codec = FeatureCodec(profile)
    ours = family("two tensors", contenders.SPLITWIRE)
    assert [c.setting for c in ours] == ["n2", "n3", "n5", "a2", "e3", "r0.5"]
    for c in ours:
        sent = c.encode(features)
        assert sent.payload == codec.encode(features, op=c.setting, frame_id=COMPACT_IDS - 1) and sent.side == 0


def test_sizes_beside_the_tensors_cost_everyone_the_same() -> None:
    features = images_of("tiny")
    with_sizes = replace(profile_of("tiny"), sizes=(SizeSpec(name="grid", length=3),))
    for before, after in zip(fitted("tiny"), contenders.feature_contenders(with_sizes), strict=True):
        if after.received not in ("op n2", "int8", f"{HEVC} qp 42"):
            continue
        after.fit(features)
        more = after.encode(features[0]).bytes - before.encode(features[0]).bytes
        # the frame also names the vector in its chunk table
        assert more > 24 if after.family == contenders.SPLITWIRE else more == 24
        assert len(after.decode(after.encode(features[0]))) == 1


@pytest.mark.parametrize(("detections", "side"), [(False, 12), (True, 24)])
def test_paper_is_its_coder_and_its_side_information(detections: bool, side: int) -> None:
    profile, features = profile_of("two tensors"), images_of("two tensors")[2]
    all_contenders = contenders.feature_contenders(profile, detections=detections)
    papers = {c.setting: c for c in all_contenders if c.family in contenders.KEYS["paper"]}
    assert {op: c.family for op, c in papers.items()} == {
        "n2": contenders.PAPER_UNIFORM, "n3": contenders.PAPER_UNIFORM, "n5": contenders.PAPER_UNIFORM,
        "a2": contenders.PAPER_SEARCHED, "e3": contenders.PAPER_ECSQ, "r0.5": contenders.PAPER_OURS,
    }  # fmt: skip
    for point in profile.operating_points:
        coded = 0
        for t, x in zip(point.tensors, features, strict=True):
            q = quantize(x, t.quantizer)
            coded += len(AdaptiveBinary(len(t.quantizer.levels)).encode(q.reshape(-1), *q.shape[-2:])[0])
        assert papers[point.name].encode(features).bytes == coded + 2 * side


def test_packed_zstd_is_what_the_demo_counts() -> None:
    profile, features = profile_of("tiny"), images_of("tiny")[0]
    for c in family("tiny", contenders.ZSTD[3]):
        point = profile.operating_points[profile.point_index(c.setting)]
        assert c.encode(features).bytes == packed_zstd_bytes(features[0], point.tensors[0].quantizer)
    # the stronger level never needs more here, and both beat a byte per element by far
    for fast, strong in zip(family("tiny", contenders.ZSTD[3]), family("tiny", contenders.ZSTD[19]), strict=True):
        assert strong.encode(features).bytes <= fast.encode(features).bytes < features[0].size / 2


def test_raw_sizes_and_errors() -> None:
    sample = images_of("two tensors")
    elements = sum(x.size for x in sample[0])
    sizes = {c.family: c.encode(sample[0]).bytes for c in fitted("two tensors")}
    assert [sizes[f] for f in contenders.RAW] == [4 * elements, 2 * elements, elements]
    (int8,) = family("two tensors", "int8")
    steps = [(max(x[i].max() for x in sample) - min(x[i].min() for x in sample)) / 255 for i in range(2)]
    for x, y, step in zip(int8.decode(int8.encode(sample[3])), sample[3], steps, strict=True):
        assert np.abs(x - y).max() <= 0.5001 * step


def test_beyond_the_range_is_clipped() -> None:
    sample = images_of("tiny")
    far = (sample[0][0] + np.float32(1e6),)
    top = max(x[0].max() for x in sample)
    for c in fitted("tiny"):
        if c.family == "float16":
            np.testing.assert_array_equal(c.decode(c.encode(far))[0], np.finfo(np.float16).max)
        elif c.family == "int8":
            np.testing.assert_allclose(c.decode(c.encode(far))[0], top, rtol=1e-6)
        elif c.family == HEVC and c.setting == "qp 20":
            assert c.decode(c.encode(far))[0].max() <= top


def test_a_constant_tensor_goes_through() -> None:
    flat = (np.full((1, 384, 3, 3), 0.75, np.float32),)
    for c in contenders.feature_contenders(profile_of("tiny"), families=("int8", HEVC)):
        c.fit([flat, flat])
        assert error(c, flat) < 1e-12


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("tuning", [HEVC, HEVC_SCREEN])
def test_hevc_of_features_by_qp(name: str, tuning: str) -> None:
    """The lower the QP, the more bytes and the less error; at the lowest hardly more than int8."""
    features = images_of(name)[1]
    of_family = family(name, tuning)
    assert [c.setting for c in of_family] == [f"qp {qp}" for qp in LADDERS[tuning].usual]
    sizes = [c.encode(features).bytes for c in of_family]
    errors = [error(c, features) for c in of_family]
    assert all(a > b for a, b in pairwise(sizes)), sizes
    assert all(a < b for a, b in pairwise(errors)), errors
    power = float(np.mean(np.concatenate([x.reshape(-1) for x in features]) ** 2))
    assert errors[0] < 0.01 * power < errors[-1]


def test_screen_tuning_saves_on_small_maps() -> None:
    """Channels of 3 × 3 are all edges: coding without a transform needs clearly fewer bytes, at no more error."""
    features = images_of("tiny")[0]
    default, screen = family("tiny", HEVC)[0], family("tiny", HEVC_SCREEN)[0]
    assert screen.encode(features).bytes < 0.9 * default.encode(features).bytes
    assert error(screen, features) < 1.1 * error(default, features)


@pytest.mark.parametrize("name", SHAPES)
def test_mosaic_of_every_shape(name: str) -> None:
    """Near square, each channel whole and in raster order; `untile` gives every element back."""
    for spec in profile_of(name).tensors:
        q = np.random.default_rng(1).integers(0, 256, spec.elements, np.uint8)
        tiles = mosaic.Mosaic(spec)
        tiled = tiles.tile(q)
        assert tiled.shape == (tiles.height, tiles.width) and min(tiled.shape) >= x265.MINIMUM
        assert tiled.size < 2 * spec.elements or min(tiled.shape) == x265.MINIMUM
        np.testing.assert_array_equal(tiles.untile(tiled), q)
        channels, h, w = spec.planes
        if channels > 1:
            np.testing.assert_array_equal(tiled[:h, w : 2 * w], q.reshape(channels, h, w)[1])


def test_parameter_sets_are_those_of_every_picture() -> None:
    """The parameter sets are the same for all pictures, so both ends can have them in advance."""
    rng = np.random.default_rng(5)
    for tuning in (mosaic.DEFAULT, mosaic.SCREEN):
        known = x265.parameter_sets(40, 24, 30, tuple(tuning.items()))
        for _ in range(3):
            stream = x265.encode(rng.integers(0, 256, (24, 40), np.uint8), "gray", 30, tuning)
            before, rest = x265.split(stream)
            assert before == known and before + rest == stream
            assert 60 < len(before) < 120


def test_x265_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    image = picture("RGB")
    (contender, *_) = contenders.image_contenders(families=(HEVC_IMAGE,))
    contender.decode(contender.encode(image))
    assert capfd.readouterr() == ("", "")


def by_family() -> dict[str, list[ImageContender]]:
    grouped: dict[str, list[ImageContender]] = {}
    for c in contenders.image_contenders():
        grouped.setdefault(c.family, []).append(c)
    return grouped


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("form", [JPEG, WEBP, AVIF, HEVC_IMAGE])
def test_pictures_by_quality(form: str, mode: str) -> None:
    """Mode and size (odd ones too) stay; more bytes are less error; the same bytes each time."""
    image = picture(mode)
    pixels = np.asarray(image, np.float64)
    points = []
    for c in by_family()[form]:
        sent = c.encode(image)
        assert sent == c.encode(image) and sent.side == 0
        decoded = c.decode(sent)
        assert decoded.mode == mode and decoded.size == image.size
        points.append((sent.bytes, float(np.mean((np.asarray(decoded, np.float64) - pixels) ** 2))))
    points.sort()
    assert len(points) == 5 and all(a[0] < b[0] for a, b in pairwise(points))
    assert all(a[1] > b[1] for a, b in pairwise(points)), points
    # 4:2:0 blurs the sharp edges of the colours, whatever the quality
    assert points[-1][1] < min(0.75 * points[0][1], {"RGB": 75, "L": 5}[mode])


def test_payloads_are_the_files() -> None:
    image = picture("RGB")
    for form in (JPEG, WEBP, AVIF):
        with Image.open(io.BytesIO(by_family()[form][2].encode(image).payload)) as opened:
            assert opened.format == form.upper() and opened.size == image.size
    assert baselines.jpeg(image).startswith(b"\xff\xd8")


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_hevc_picture_smaller_than_x265_takes(mode: str) -> None:
    image = picture(mode, (9, 5))
    best = by_family()[HEVC_IMAGE][0]
    decoded = best.decode(best.encode(image))
    assert decoded.size == (9, 5) and decoded.mode == mode


def test_names_are_distinct_and_in_order() -> None:
    all_contenders: list[FeatureContender | ImageContender] = [
        *contenders.feature_contenders(profile_of("tiny")), *contenders.image_contenders()
    ]  # fmt: skip
    names = [f"{c.family} {c.setting}" for c in all_contenders]
    assert len(set(names)) == len(names)
    assert tuple(dict.fromkeys(c.family for c in all_contenders)) == contenders.FAMILIES


def transform_profile(features: dict[str, tuple[int, ...]]) -> CodecProfile:
    """Of a transform pair: names and shapes of its features."""
    transform = make_transform(np.random.default_rng(2), (2, 4), 3)
    specs = tuple(
        TensorSpec(
            name=f"{name}/coefficients",
            shape=(2, 4),
            transform=replace(transform, features=name, feature_shape=shape),
        )
        for name, shape in features.items()
    )
    point = OperatingPoint(name="q1", tensors=(), steps=(64,) * len(specs), bits_per_element=0.5)
    return CodecProfile(
        model="m", cut="c", tensors=specs, operating_points=(point,), default_op="q1", front_sha256="", back_sha256=""
    )


@pytest.mark.parametrize("fine", [False, True])
def test_the_profile_of_features_behind_a_transform(fine: bool) -> None:
    """Names, shapes, and uniform quantizers with about the least squared error that a range gives."""
    shapes, sample = dict(zip("ab", SHAPES["two tensors"], strict=True)), images_of("two tensors", 6)
    profile = transform_profile(shapes)
    made = feature_profile(profile, sample, fine=fine)
    assert {t.name: t.shape for t in made.tensors} == shapes
    levels = (2, 3, 4, 6, 8, *((16, 32, 64, 128) if fine else ()))
    assert [p.name for p in made.operating_points] == [f"n{n}" for n in levels]
    for n, point in zip(levels, made.operating_points, strict=True):
        for tensor, parts in zip(point.tensors, zip(*sample, strict=True), strict=True):
            x = np.concatenate(parts)
            assert (tensor.quantizer.clipping_range[0], len(tensor.quantizer.levels)) == (0.0, n)
            tops = np.linspace(0.02, 1, 99) * x.max()
            least = min(uniform_error(x, top, n) for top in tops)
            assert uniform_error(x, tensor.quantizer.clipping_range[1], n) < 1.12 * least
    # splitwire codes the coefficients, all others the features
    all_contenders = contenders.feature_contenders(profile, features=made)
    assert [c.setting for c in all_contenders if c.family == contenders.SPLITWIRE] == ["q1"]
    others = {c.family for c in all_contenders if c.family != contenders.SPLITWIRE}
    assert others == {contenders.PAPER_UNIFORM, *contenders.ZSTD.values(), *contenders.RAW, HEVC, HEVC_SCREEN}
    for c in all_contenders:
        if c.family != contenders.SPLITWIRE:
            c.fit(sample)
            assert [x.shape[1:] for x in c.decode(c.encode(sample[0]))] == list(shapes.values())


def uniform_error(x: NDArray[np.float32], top: float, levels: int) -> float:
    """Mean squared, of evenly spaced levels from 0 to `top`."""
    step = top / (levels - 1)
    return float(np.mean((np.clip(np.floor(x / step + 0.5), 0, levels - 1) * step - x) ** 2))


@pytest.mark.parametrize("constant", [0.0, 0.75, -2.0])
def test_features_that_do_not_vary_in_the_sample(constant: float) -> None:
    flat = (np.full((1, 4), constant, np.float32),)
    made = feature_profile(transform_profile({"f": (4,)}), [flat, flat], fine=False)
    for point in made.operating_points:
        levels = np.array(point.tensors[0].quantizer.levels)
        assert abs(levels - constant).min() < 1e-3


def test_select() -> None:
    assert contenders.select(["jpeg", "hevc"]) == (contenders.SPLITWIRE, HEVC, HEVC_SCREEN, JPEG)
    assert contenders.select(contenders.KEYS) == contenders.FAMILIES
    with pytest.raises(UsageError, match=r"no contender 'png'; choose from splitwire, paper, zstd, raw, hevc, jpeg"):
        contenders.select(["png"])
    chosen = contenders.select(["raw"])
    selected = contenders.feature_contenders(profile_of("tiny"), families=chosen)
    assert {c.family for c in selected} == {contenders.SPLITWIRE, *contenders.RAW}
    assert contenders.image_contenders(families=chosen) == []


def test_packed_zstd_is_the_real_thing() -> None:
    """Two bits per element for N = 4 before zstd: noise does not shrink below that, zeros do."""
    from splitwire.codec.profile import Quantizer

    quantizer = Quantizer.uniform(0.0, 3.0, 4)
    noise = np.random.default_rng(0).integers(0, 4, (1, 64, 16, 16)).astype(np.float32)
    assert noise.size / 4 <= packed_zstd_bytes(noise, quantizer) <= noise.size / 4 + 32
    assert packed_zstd_bytes(np.zeros_like(noise), quantizer) < 40
