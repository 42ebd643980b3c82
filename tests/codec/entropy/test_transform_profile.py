"""What a profile may say of transform coefficients (docs/bitstream.md §7): damage is one clear line, the rest works."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from codec_helpers import make_profile, spec_of
from coefficients import make_transform, transform_profile
from profile_damage import Json, array, put, refused

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.profile import CodecProfile, TensorSpec
from splitwire.codec.tables import Taps

K, TABLES = 20, 6


def plain_profile(tensors: int = 1) -> Json:
    shapes = [(3, K)] * tensors
    transforms = [make_transform(np.random.default_rng(i), shape, TABLES) for i, shape in enumerate(shapes)]
    profile = transform_profile(shapes, transforms, {"q1": (64,) * tensors, "q2": (70,) * tensors})
    found: Json = json.loads(profile.to_json())
    return found


CLASSES = "transform of tensor 't0': classes of coefficients must be below 128, or 255 for what is not sent"
NONE_SENT = "transform of tensor 't0': at least one coefficient must be sent; all classes are that of what is not"
COUNT = "transform of tensor 't0': coefficients of shape (3, 20) need two axes, tiles and N, and N classes"
ROWS = "transform of tensor 't0': frequencies must be 1..64 rows of 64 bytes"
TABLE = "transform of tensor 't0': each table must sum to 4096 with an escape of at least 1"
ZERO = "transform of tensor 't0': zero_groups must"

DAMAGE: list[tuple[str, object, str]] = [
    ("classes", put("u1", 0, 128), CLASSES),
    ("classes", put("u1", 19, 254), CLASSES),
    ("classes", array("u1", lambda c: [*[255] * (K - 1), 128]), CLASSES),
    ("classes", array("u1", lambda c: np.full_like(c, 255)), NONE_SENT),
    ("classes", array("u1", lambda c: c[:-1]), COUNT),
    ("classes", array("u1", lambda c: np.append(c, 0)), COUNT),
    ("classes", "", COUNT),
    ("classes", "?", "Invalid base64"),
    ("frequencies", "", ROWS),
    ("frequencies", array("u1", lambda f: f[:-1]), ROWS),
    ("frequencies", array("<u2", lambda f: np.tile(f[:32], 65)), ROWS),
    ("frequencies", array("<u2", lambda f: f[:-32]), ZERO + " have 5 entries, as there are tables"),
    ("frequencies", array("<u2", lambda f: f.__setitem__(0, f[0] + 1)), TABLE),
    ("frequencies", array("<u2", lambda f: [4096 - f[1:31].sum(), *f[1:31], 0, *f[32:]]), TABLE),
    ("frequencies", array("<u2", lambda f: [*[0] * 31, 4096, *f[32:]]), TABLE),
    ("zero_groups", array("<u2", lambda z: z[:-1]), ZERO + " have 6 entries, as there are tables"),
    ("zero_groups", array("u1", lambda z: z[:-1]), ZERO + " have 6 entries, as there are tables"),
    ("zero_groups", put("<u2", 3, 0), ZERO + " be 1..4095"),
    ("zero_groups", put("<u2", 3, 4096), ZERO + " be 1..4095"),
    ("first", 128, "Expected `int` <= 127"),
    ("first", -129, "Expected `int` >= -128"),
    ("first", 0.5, "Expected `int`, got `float`"),
    ("dead_zone", 0.51, "Expected `float` <= 0.5"),
    ("dead_zone", -0.1, "Expected `float` >= 0.0"),
    ("outward", [0.51, 0.0], "Expected `float` <= 0.5"),
    ("outward", [0.0, -0.51], "Expected `float` >= -0.5"),
    ("outward", [0.1, 0.0], "transform of tensor 't0': outward must be two float32 values, is (0.1, 0.0)"),
    ("outward", [0.0], "Expected `array` of length 2"),
    ("feature_shape", [], "Expected `array` of length >= 1"),
    ("feature_shape", [1, 2, 3, 4], "Expected `array` of length"),
    ("feature_shape", [0], "Expected `int` >= 1"),
    ("feature_shape", [1 << 13, 1 << 14], "features 'features' have 134217728 elements; at most 67108864"),
    ("feature_shape", [1 << 26, 1 << 26, 1 << 12], "have 18446744073709551616 elements; at most 67108864"),
    ("features", 3, "Expected `str`, got `int`"),
    ("surprise", 1, "unknown field `surprise`"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "change", "message"), DAMAGE, ids=[f"{i}-{f}" for i, (f, _, _) in enumerate(DAMAGE)])
def test_a_damaged_field_is_one_clear_line(field: str, change: object, message: str) -> None:
    profile = plain_profile()
    CodecProfile.from_json(json.dumps(profile))
    transform = profile["tensors"][0]["transform"]
    transform[field] = change(transform[field]) if callable(change) else change
    assert message in refused(profile)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("classes", array("u1", lambda c: np.full_like(c, 127))),
        ("classes", array("u1", lambda c: 0 * c)),
        ("classes", array("u1", lambda c: c[::-1])),
        ("classes", array("u1", lambda c: np.where(np.arange(K) % 2, 127, 0))),
        ("frequencies", array("<u2", lambda f: [4095, *[0] * 30, 1, *f[32:]])),
        ("frequencies", array("<u2", lambda f: [1, *[0] * 30, 4095, *f[32:]])),
        ("zero_groups", array("<u2", lambda z: np.where(np.arange(z.size) % 2, 1, 4095))),
        ("first", -128),
        ("first", 127),
        ("dead_zone", 0),
        ("dead_zone", 0.5),
        ("outward", [-0.5, 0.5]),
        ("feature_shape", [1 << 26]),
    ],
)
def test_what_is_just_allowed_is_accepted_and_works(field: str, change: object) -> None:
    profile = plain_profile()
    transform = profile["tensors"][0]["transform"]
    transform[field] = change(transform[field]) if callable(change) else change
    codec = FeatureCodec(CodecProfile.from_json(json.dumps(profile)))
    x = np.random.default_rng(0).normal(0, 2, (1, 3, K)).astype(np.float32)
    again = codec.decode(codec.encode([x])).tensors[0]
    assert abs(x - again).max() <= 1.5 * 2**1.5  # at step index 70, at most half a step and a shift of another half


def test_one_coefficient_that_is_sent_is_enough() -> None:
    profile = plain_profile()
    transform = profile["tensors"][0]["transform"]
    transform["classes"] = array("u1", lambda c: [*[255] * (K - 1), 64])(transform["classes"])
    codec = FeatureCodec(CodecProfile.from_json(json.dumps(profile)))
    x = np.full((1, 3, K), 9, np.float32)
    again = codec.decode(codec.encode([x])).tensors[0]
    assert not again[..., :-1].any() and (again[..., -1] > 7).all()


@pytest.mark.parametrize("steps", [[-1], [128], [0.5], ["64"]])
def test_steps_out_of_range_are_refused(steps: list[object]) -> None:
    profile = plain_profile()
    profile["operating_points"][1]["steps"] = steps
    assert "Expected `int`" in refused(profile)


@pytest.mark.parametrize(
    ("steps", "says"),
    [([], "has 0 tensors, not 0, and no steps, not 2"), ([64], "and 1 steps, not 2"), ([64] * 3, "and 3 steps, not 2")],
)
def test_there_are_as_many_steps_as_tensors(steps: list[int], says: str) -> None:
    profile = plain_profile(tensors=2)
    profile["operating_points"][1]["steps"] = steps
    assert says in refused(profile)


def test_scalar_and_transform_do_not_mix() -> None:
    scalar = json.loads(make_profile(((3, K),), (2,)).to_json())
    point, spec = scalar["operating_points"][0]["tensors"][0], scalar["tensors"][0]

    profile = plain_profile()
    profile["operating_points"][1] |= {"tensors": [point]}
    assert "operating point 'q2' has 1 tensors, not 0" in refused(profile)
    profile["operating_points"][1] = {"name": "n2", "tensors": [point], "bits_per_element": 1.0}
    profile["default_op"] = "n2"
    assert "operating point 'n2' has 1 tensors, not 0, and no steps, not 1" in refused(profile)
    profile = plain_profile(tensors=2)
    profile["tensors"][1] = spec
    assert "tensors 't0' and 't0': all have a transform, or none has" in refused(profile)
    scalar["operating_points"][0]["steps"] = [64]
    assert "operating point 'n2' has 1 tensors, not 1, and 1 steps, not any" in refused(scalar)


def test_coefficients_have_two_axes_no_taps_and_a_mean_of_zero() -> None:
    for shape in ([60], [1, 3, K], [3, K + 1], [K, 3]):
        profile = plain_profile()
        profile["tensors"][0]["shape"] = shape
        assert "need two axes, tiles and N, and N classes" in refused(profile)
    says = "tensor 't0' holds coefficients: it has no taps, and a mean of 0 or none"
    profile = plain_profile()
    profile["tensors"][0]["mean"] = 0.25
    assert says in refused(profile)
    profile["tensors"][0]["mean"] = None
    CodecProfile.from_json(json.dumps(profile))
    profile["tensors"][0]["taps"] = msgspec.to_builtins(Taps(counts=b"\0", sources=b""))
    assert says in refused(profile)


def test_rates_are_per_element_of_the_features() -> None:
    transform = make_transform(np.random.default_rng(0), (3, K), TABLES)
    spec = TensorSpec(name="x", shape=(3, K), transform=transform)
    assert (spec.elements, spec.feature_elements) == (60, 12)
    assert (spec_of((4, 5, 6)).elements, spec_of((4, 5, 6)).feature_elements) == (120, 120)


def test_steps_and_tables_are_in_the_fingerprint() -> None:
    base = CodecProfile.from_json(json.dumps(plain_profile()))
    assert base.is_transform and not make_profile(((3, K),), (2,)).is_transform
    fingerprints = {base.fingerprint}
    for change in (lambda p: p["operating_points"][1].update(steps=[71]),
                   lambda p: p["tensors"][0]["transform"].update(first=3),
                   lambda p: p["tensors"][0]["transform"].update(dead_zone=0.25)):  # fmt: skip
        profile = plain_profile()
        change(profile)
        fingerprints.add(CodecProfile.from_json(json.dumps(profile)).fingerprint)
    assert len(fingerprints) == 4
