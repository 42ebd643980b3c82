"""What a profile may ask of the predictive coder (docs/bitstream.md §6): damage is one clear line, the rest works."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import numpy as np
import pytest
from codec_helpers import expected, make_profile, predicted_profile, random_prediction, relu_features
from profile_damage import Json, array, put, refused
from reference import write_frame

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.profile import CodecProfile, Quantizer
from splitwire.codec.tables import Taps

C, LEVELS = 19, 4
FULL_BIAS = (1 << 15) - 1 - 700
"""What the bias of `plain_profile` may be: its weights reach 3·4·50, its offset is 100."""


def plain_profile() -> Json:
    """JSON of one tensor of 19 channels, the last with three taps, at one operating point."""
    rng = np.random.default_rng(0)
    taps = Taps(counts=bytes([0] * 18 + [3]), sources=np.array([8 * 15 + 4, 8 * 3, 8 * 8 + 1], "<u2").tobytes())
    weights = np.zeros(4 * C + 3, np.int8)
    weights[:4] = 50, -50, 50, -50
    prediction = msgspec.structs.replace(
        random_prediction(rng, LEVELS, taps), rest=0, weights=weights.tobytes(), bias=bytes(2 * C), offset=-100,
        activities=2, activity=bytes([0, 1] * 8), classes=3, channel_class=bytes([0, 1, 2, *[0] * 16]),
        context_map=bytes([*range(2)] * 768), frequencies=np.array([[4000, 0, 50, 5, 41]] * 2, "<u2").tobytes(),
    )  # fmt: skip
    profile = predicted_profile(((C, 5, 4),), (LEVELS,))
    (point,) = profile.operating_points
    found = msgspec.to_builtins(profile)
    (spec,), (json_point,) = found["tensors"], found["operating_points"]
    spec["taps"] = msgspec.to_builtins(taps)
    tensor = msgspec.structs.replace(point.tensors[0], prediction=prediction)
    json_point["tensors"] = [msgspec.to_builtins(tensor)]
    copy: dict[str, Any] = json.loads(json.dumps(found))
    return copy


def shorter(text: str) -> str:
    return base64.b64encode(base64.b64decode(text)[:-1]).decode()


def longer(text: str) -> str:
    return base64.b64encode(base64.b64decode(text) + b"\0").decode()


COUNTS = "taps of 19 channels need as many counts, and two bytes for each tap"
TAP = "a tap must be of an earlier group of 8 channels, at one of 5 places"
WEIGHTS = "prediction needs 79 weights and 19 biases"
ACTIVITY = "prediction needs 16 activity classes below 2"
CLASSES = "prediction needs a class below 3 for each of 19 channels"
MAP = "context map must have 3·256·2 entries"
ROWS = "frequencies must be 1..64 rows of 10 bytes"
TABLE = "each table must sum to 4096 with an escape of at least 1"

DAMAGE: list[tuple[str, object, str]] = [
    ("taps.counts", shorter, COUNTS),
    ("taps.counts", longer, COUNTS),
    ("taps.counts", put("u1", 18, 2), COUNTS),
    ("taps.counts", put("u1", 0, 1), COUNTS),
    ("taps.counts", array("u1", lambda n: n[::-1]), TAP),  # now the first channel has the taps
    ("taps.counts", array("u1", lambda n: np.roll(n, -3)), TAP),  # and now channel 15: 8 and 15 are of its own group
    ("taps.sources", shorter, COUNTS),
    ("taps.sources", longer, COUNTS),
    ("taps.sources", array("<u2", lambda t: t[:-1]), COUNTS),
    *[("taps.sources", put("<u2", 1, 8 * 3 + place), TAP) for place in (5, 6, 7)],
    *[("taps.sources", put("<u2", 0, 8 * c), TAP) for c in (16, 17, 18, 19, 8191)],
    ("taps.sources", "?", "Invalid base64"),
    ("taps.surprise", 1, "unknown field `surprise`"),
    ("taps.sources", None, "missing required field `sources`"),
    ("prediction.rest", 4, "rest must be one of 4 levels, is 4"),
    ("prediction.rest", 256, "Expected `int` <= 255"),
    ("prediction.rest", -1, "Expected `int` >= 0"),
    ("prediction.rest", 0.5, "Expected `int`, got `float`"),
    ("prediction.weights", shorter, WEIGHTS),
    ("prediction.weights", longer, WEIGHTS),
    ("prediction.bias", shorter, WEIGHTS),
    ("prediction.bias", longer, WEIGHTS),
    ("prediction.bias", array("<i2", lambda b: b[:-1]), WEIGHTS),
    ("prediction.bias", put("<i2", 0, FULL_BIAS + 1), "predictions reach 32768; they must stay within 16 bits"),
    ("prediction.bias", put("<i2", 0, -FULL_BIAS - 1), "predictions reach 32768; they must stay within 16 bits"),
    ("prediction.bias", put("<i2", 18, -32768), "predictions reach 32868; they must stay within 16 bits"),
    ("prediction.offset", 1 << 15, "Expected `int` <= 32767"),
    ("prediction.offset", -(1 << 15) - 1, "Expected `int` >= -32768"),
    ("prediction.offset", -(1 << 15), "predictions reach 33368"),
    ("prediction.offset", 32768 - 600, "predictions reach 32768"),
    ("prediction.shift", 16, "Expected `int` <= 15"),
    ("prediction.shift", -1, "Expected `int` >= 0"),
    ("prediction.activities", 0, "Expected `int` >= 1"),
    ("prediction.activities", 5, "Expected `int` <= 4"),
    ("prediction.activities", 1, "prediction needs 16 activity classes below 1"),
    ("prediction.activities", 3, "context map must have 3·256·3 entries"),
    ("prediction.activity", shorter, ACTIVITY),
    ("prediction.activity", longer, ACTIVITY),
    ("prediction.activity", put("u1", 15, 2), ACTIVITY),
    ("prediction.classes", 0, "Expected `int` >= 1"),
    ("prediction.classes", 17, "Expected `int` <= 16"),
    ("prediction.classes", 2, "prediction needs a class below 2 for each of 19 channels"),
    ("prediction.classes", 4, "context map must have 4·256·2 entries"),
    ("prediction.channel_class", shorter, CLASSES),
    ("prediction.channel_class", longer, CLASSES),
    ("prediction.channel_class", put("u1", 18, 3), CLASSES),
    ("prediction.context_map", shorter, MAP),
    ("prediction.context_map", longer, MAP),
    ("prediction.context_map", put("u1", 1535, 2), "context map names table 2 of 2"),
    ("prediction.frequencies", "", ROWS),
    ("prediction.frequencies", shorter, ROWS),
    ("prediction.frequencies", array("<u2", lambda f: np.tile(f[:5], 65)), ROWS),
    ("prediction.frequencies", array("<u2", lambda f: f[:5]), "context map names table 1 of 1"),
    ("prediction.frequencies", put("<u2", 0, 4001), TABLE),
    ("prediction.frequencies", array("<u2", lambda f: [4041, 0, 50, 5, 0, *f[5:]]), TABLE),
    ("prediction.frequencies", array("<u2", lambda f: [0, 0, 0, 0, 4096, *f[5:]]), TABLE),
    ("prediction.surprise", 1, "unknown field `surprise`"),
    ("prediction", None, "Expected `object`, got `null`"),
    ("tensor.taps", None, "Expected `object`, got `null`"),
]


def damage(profile: Json, field: str, change: object) -> None:
    (spec,), (point,) = profile["tensors"], profile["operating_points"][0]["tensors"]
    owner, _, name = field.partition(".")
    holder = {"taps": spec["taps"], "tensor": spec, "prediction": point["prediction"] if name else point}[owner]
    name = name or owner
    if name == "sources" and change is None:
        del holder[name]
    else:
        holder[name] = change(holder[name]) if callable(change) else change


@pytest.mark.parametrize(("field", "change", "message"), DAMAGE, ids=[f"{i}-{f}" for i, (f, _, _) in enumerate(DAMAGE)])
def test_a_damaged_field_is_one_clear_line(field: str, change: object, message: str) -> None:
    profile = plain_profile()
    CodecProfile.from_json(json.dumps(profile))
    damage(profile, field, change)
    assert message in refused(profile)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("prediction.bias", put("<i2", 0, FULL_BIAS)),
        ("prediction.bias", put("<i2", 0, -FULL_BIAS)),
        ("prediction.bias", put("<i2", 18, -32667)),
        ("prediction.offset", 32767 - 600),
        ("prediction.shift", 15),
        ("prediction.rest", 3),
        ("taps.sources", put("<u2", 0, 8 * 15)),
        ("prediction.frequencies", array("<u2", lambda f: np.tile(f[:5], 64))),
        ("prediction.frequencies", array("<u2", lambda f: [0, 0, 0, 1, 4095, *f[5:]])),
    ],
)
def test_what_is_just_allowed_is_accepted_and_works(field: str, change: object) -> None:
    profile = plain_profile()
    damage(profile, field, change)
    codec = FeatureCodec(CodecProfile.from_json(json.dumps(profile)))
    x = relu_features((2, C, 5, 4), 1)
    x[:, :, :2] = 2.0  # the highest level, all over
    frame = codec.encode([x])
    np.testing.assert_array_equal(codec.decode(frame).tensors[0], expected(codec, "n4", 0, x))
    thresholds = np.array(codec.profile.operating_points[0].tensors[0].quantizer.thresholds, np.float32)
    planes = np.searchsorted(thresholds, x, side="right").reshape(-1, 5, 4)
    assert frame == write_frame(codec.profile.to_json(), 0, 0, 2, [planes.tolist()])


def test_prediction_needs_taps_and_few_levels_and_no_tables() -> None:
    profile = plain_profile()
    del profile["tensors"][0]["taps"]
    assert "tensor 't0' has a prediction: it needs taps, and no tables" in refused(profile)
    profile = plain_profile()
    (point,) = profile["operating_points"][0]["tensors"]
    point["tables"] = msgspec.to_builtins(make_profile(((C, 5, 4),), (LEVELS,)))["operating_points"][0]["tensors"][0][
        "tables"
    ]
    assert "tensor 't0' has a prediction: it needs taps, and no tables" in refused(profile)
    profile = plain_profile()
    (point,) = profile["operating_points"][0]["tensors"]
    point["quantizer"] = msgspec.to_builtins(Quantizer.uniform(0.0, 1.0, 65))
    assert "prediction takes quantizers of up to 64 levels, not of 65" in refused(profile)


@pytest.mark.parametrize(("rest", "most"), [(0, 3), (1, 2), (2, 2), (3, 3)])
def test_predictions_are_bounded_by_the_level_furthest_from_rest(rest: int, most: int) -> None:
    profile = plain_profile()
    damage(profile, "prediction.rest", rest)
    largest = (1 << 15) - 1 - 100 - 200 * most
    damage(profile, "prediction.bias", put("<i2", 0, largest))
    CodecProfile.from_json(json.dumps(profile))
    damage(profile, "prediction.bias", put("<i2", 0, largest + 1))
    assert "predictions reach 32768; they must stay within 16 bits" in refused(profile)


def test_taps_are_checked_where_no_point_predicts() -> None:
    profile = plain_profile()
    (point,) = profile["operating_points"][0]["tensors"]
    del point["prediction"]
    assert CodecProfile.from_json(json.dumps(profile)).tensors[0].taps
    damage_taps = put("<u2", 0, 8 * 16)
    profile["tensors"][0]["taps"]["sources"] = damage_taps(profile["tensors"][0]["taps"]["sources"])
    assert TAP in refused(profile)


@pytest.mark.parametrize("shape", [(7,), (6, 10)], ids=str)
def test_tensors_of_one_plane_have_no_taps(shape: tuple[int, ...]) -> None:
    profile = msgspec.to_builtins(predicted_profile((shape,), (3,)))
    assert profile["tensors"][0]["taps"] == {"counts": "AA==", "sources": ""}
    profile["tensors"][0]["taps"] = {"counts": "AQ==", "sources": "AAA="}
    assert TAP in refused(profile)
