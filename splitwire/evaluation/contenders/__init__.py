"""The contenders that splitwire is compared with, one kind per module.

Everything encodes on one thread. Sizes beside the tensors (profile.sizes), where a pair has them, are counted for every
contender that sends features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import UsageError
from splitwire.codec.profile import CodecProfile
from splitwire.evaluation.contenders.ladders import AVIF, HEVC, HEVC_IMAGE, HEVC_SCREEN, JPEG, LADDERS, WEBP

from .protocol import FeatureContender, ImageContender

SPLITWIRE = "splitwire"
PAPER_UNIFORM, PAPER_SEARCHED = "paper, uniform", "paper, searched range"
PAPER_ECSQ, PAPER_OURS = "paper, ECSQ", "paper's coder, our ranges"
PAPER = (PAPER_UNIFORM, PAPER_SEARCHED, PAPER_ECSQ)
"""The paper's coder with the paper's quantizers."""
PAPER_OF = {"n": PAPER_UNIFORM, "a": PAPER_SEARCHED, "e": PAPER_ECSQ, "r": PAPER_OURS}
"""By the first letter of an operating point's name."""
ZSTD = {level: f"zstd {level} of packed symbols" for level in (3, 19)}
INT8 = "int8"
RAW = ("float32", "float16", INT8)

KEYS: dict[str, tuple[str, ...]] = {
    "splitwire": (SPLITWIRE,),
    "paper": (*PAPER, PAPER_OURS),
    "zstd": tuple(ZSTD.values()),
    "raw": RAW,
    "hevc": (HEVC, HEVC_SCREEN),
    "jpeg": (JPEG,),
    "webp": (WEBP,),
    "avif": (AVIF,),
    "hevc-image": (HEVC_IMAGE,),
}
"""Short name, as `--contenders` takes it → families."""

FAMILIES = tuple(family for families in KEYS.values() for family in families)
"""Every family, in the order that tables and legends have them."""


def select(keys: Iterable[str]) -> tuple[str, ...]:
    """The families of some short names, in the order of FAMILIES; splitwire's always. Raises UsageError."""
    wanted = {SPLITWIRE}
    for key in keys:
        if key not in KEYS:
            raise UsageError(f"there is no contender {key!r}; choose from {', '.join(KEYS)}")
        wanted |= set(KEYS[key])
    return tuple(f for f in FAMILIES if f in wanted)


def feature_contenders(
    profile: CodecProfile,
    *,
    features: CodecProfile | None = None,
    families: Collection[str] = FAMILIES,
    detections: bool = False,
) -> list[FeatureContender]:
    """Those that send features, in the order of FAMILIES. detections: the network is a detector (paper.py).

    features: of a transform pair, the profile of its features (measuring/feature_profile.py); None for another pair.
    splitwire codes the tensors of `profile`, all others those of `features`.
    """
    from .ours import Splitwire
    from .packed import PackedZstd
    from .paper import Paper
    from .raw import Floats, Int8

    codec = FeatureCodec(profile)
    contenders: list[FeatureContender] = [
        Splitwire(codec, p.name, family=SPLITWIRE) for p in profile.operating_points
    ]  # fmt: skip
    profile = profile if features is None else features
    side = _side(profile)
    ops = [p.name for p in profile.operating_points]
    papers = {op: PAPER_OF.get(op[0], PAPER_UNIFORM) for op in ops}
    for family in KEYS["paper"]:
        of_family = [op for op in ops if papers[op] == family]
        contenders += [Paper(profile, op, family=family, side=side, detections=detections) for op in of_family]
    for level, family in ZSTD.items():
        packed = [op for op in ops if papers[op] != PAPER_ECSQ]
        contenders += [PackedZstd(profile, op, level, family=family, side=side) for op in packed]
    contenders += [
        Floats(profile, "float32", side=side),
        Floats(profile, "float16", side=side),
        Int8(profile, side=side),
    ]
    for family in (HEVC, HEVC_SCREEN):
        contenders += [_hevc_features(profile, family, qp, side) for qp in LADDERS[family].usual]
    return [c for c in contenders if c.family in families]


def image_contenders(*, families: Collection[str] = FAMILIES) -> list[ImageContender]:
    """Those that send the picture, in the order of FAMILIES."""
    codecs = (JPEG, WEBP, AVIF, HEVC_IMAGE)
    return [_image(family, value) for family in codecs if family in families for value in LADDERS[family].usual]


def on_ladders(profile: CodecProfile, values: Mapping[str, int]) -> tuple[list[FeatureContender], list[ImageContender]]:
    """One more setting of each family in `values`, as (contenders that send features, those that send the picture)."""
    side = _side(profile)
    features: list[FeatureContender] = [
        _hevc_features(profile, family, qp, side) for family, qp in values.items() if family in (HEVC, HEVC_SCREEN)
    ]
    images = [_image(family, value) for family, value in values.items() if family not in (HEVC, HEVC_SCREEN)]
    return features, images


def _side(profile: CodecProfile) -> int:
    """Bytes of the sizes beside the tensors, of one image."""
    return sum(8 * s.length for s in profile.size_specs)


def _hevc_features(profile: CodecProfile, family: str, qp: int, side: int) -> FeatureContender:
    from . import mosaic

    tuning = {HEVC: mosaic.DEFAULT, HEVC_SCREEN: mosaic.SCREEN}[family]
    return mosaic.HevcFeatures(profile, qp, tuning, family=family, side=side)


def _image(family: str, value: int) -> ImageContender:
    if family == HEVC_IMAGE:
        from .hevc_image import HevcImage

        return HevcImage(value, family=family)
    from .images import PillowImage

    return PillowImage(family, value)
