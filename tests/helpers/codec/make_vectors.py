"""Make the golden vectors under tests/vectors/, by hand only.

    python tests/helpers/codec/make_vectors.py --write [NAME …]

Vectors that exist are what older versions wrote: they are not made anew without --force, which is for a format that was
never released. Without --write nothing is written: the vectors are made in memory and compared with those that lie
there. Profiles are made here, not by codec/design, so that they show all the format allows and stay what they are.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, too: vectors/ lies there

import msgspec
import numpy as np
from coefficients import Chunks, make_coefficients, make_transform
from msgspec import UNSET
from numpy.typing import NDArray
from planes import block_symbols, coded_planes, count_escapes, decoded_tensors, level_planes
from reference import write_frame
from vectors import FOLDER, MANIFEST, SUFFIXES, chunk_table, coder_of, digest, is_made_as

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.profile import Clipping, CodecProfile, OperatingPoint, Quantizer, SizeSpec, TensorPoint, TensorSpec
from splitwire.codec.tables import (
    ACTIVITY_SUMS,
    CELLS,
    GROUP,
    OWN,
    PLACES,
    TABLE_SIZE,
    ContextTables,
    PredictionTables,
    Taps,
)

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Parameters of the tables of coder 4. taps: most taps of a channel. reach: largest prediction, at most 2^15 − 1.
    missing: how many levels, the most frequent but one, are in no table.
    """

    taps: int = 6
    activities: int = 2
    classes: int = 2
    shift: int = 2
    offset: int = 300
    reach: int = 1100
    missing: int = 0


@dataclass(frozen=True, kw_only=True)
class Transformed:
    """Parameters of coefficients for coder 5, or 6. step: index at the operating point. classes: highest and lowest.
    sent: the step index of a frame that does not use the point's. missing: whether tables lack some symbols. unsent:
    the share that is not sent, of classes in any order; None: all are sent, in order of their classes.
    """

    step: int = 64
    classes: tuple[int, int] = (78, 50)
    first: int = -16
    outward: tuple[float, float] = (0.203125, 0.09375)
    dead_zone: float = 0.42
    missing: bool = False
    unsent: float | None = None
    coder: Literal[5, 6] = 5


Kind = tuple[int, int] | Predicted | Transformed | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one vector is made of. tensors: (shape, levels, block) each; without block there are no tables, and it is
    coded by coder 2; with `Predicted` in its place, by coder 4; with `Transformed`, by coder 5 or 6, without levels.
    sizes: vectors of integers beside the tensors. chunks: (tensor, coder, lanes, planes) of each, for a frame that the
    encoder would not make; steps: their step indices, of coefficients. short: a single chunk in a short frame; without
    it in a long one, as the encoder sent it before version 1.1. compact: the profile asks for compact frames.
    frame_id: None for any.
    """

    about: str
    tensors: Sequence[tuple[tuple[int, ...], int, Kind]]
    batch: int = 1
    activities: int = 6
    tables: int = 3
    signed: bool = False
    uniform: bool = True
    extremes: bool = True
    chunks: Sequence[tuple[int, int, int, int]] = field(default=())
    sizes: Sequence[tuple[int, ...]] = ()
    short: bool = False
    steps: Sequence[int | None] = ()
    compact: bool = False
    frame_id: int | None = None


RECIPES = {
    "one-n2": Recipe(about="one element, in a block that reaches far over it", tensors=[((1, 1, 1), 2, (8, 1))]),
    "odd-n3": Recipe(about="odd sides, blocks five wide", tensors=[((5, 7, 3), 3, (1, 5))], batch=2),
    "vector-n4": Recipe(about="one axis, a batch", tensors=[((33,), 4, (1, 4))], batch=3),
    "tokens-n6": Recipe(about="two axes, blocks three wide", tensors=[((6, 10), 6, (1, 3))], uniform=False),
    "signed-n8": Recipe(about="signed, levels unevenly spaced", tensors=[((3, 9, 5), 8, (2, 1))], signed=True,
                        uniform=False),
    "lanes2-n16": Recipe(about="two lanes", tensors=[((3, 32, 43), 16, (1, 2))], tables=8),
    "lanes4-n256": Recipe(about="256 levels, four lanes", tensors=[((5, 30, 29), 256, (1, 1))], tables=2),
    "lanes8-n8": Recipe(about="eight lanes, the last group of one plane", tensors=[((9, 32, 29), 8, (1, 1))],
                        activities=8),
    "tensors": Recipe(about="three tensors of three kinds", batch=2,
                      tensors=[((8, 6, 6), 3, (2, 2)), ((4, 3, 3), 4, (1, 2)), ((10,), 2, (1, 8))]),
    "batch-n2": Recipe(about="a batch of seven, one table, one activity class", tensors=[((3, 5, 4), 2, (2, 4))],
                       batch=7, activities=1, tables=1),
    "tables64-n2": Recipe(about="as many tables and activity classes as there may be", tensors=[((4, 8, 9), 2, (4, 1))],
                          activities=8, tables=64),
    "rest-n4": Recipe(about="every feature is zero", tensors=[((8, 6, 6), 4, (2, 2))], signed=True, extremes=False),
    "chunks-n3": Recipe(about="three chunks of one tensor, of three, seven and eight lanes", batch=3, uniform=False,
                        tensors=[((4, 6, 5), 3, (1, 3))], chunks=[(0, 1, 3, 5), (0, 1, 7, 1), (0, 1, 8, 6)]),
    "chunks-two-tensors": Recipe(about="chunks of two tensors, more lanes than planes", batch=2, signed=True,
                                 tensors=[((3, 4, 4), 4, (2, 1)), ((5, 2), 16, (1, 2))],
                                 chunks=[(0, 1, 1, 2), (0, 1, 5, 4), (1, 1, 6, 1), (1, 1, 2, 1)]),
    "binary-n4": Recipe(about="coder 2", tensors=[((5, 7, 6), 4, None)], batch=2),
    "binary-n2": Recipe(about="coder 2, one axis", tensors=[((77,), 2, None)], signed=True),
    "binary-n256": Recipe(about="coder 2, 256 levels", tensors=[((3, 6, 5), 256, None)], uniform=False),
    "binary-rest-n3": Recipe(about="coder 2, every feature is zero", tensors=[((2, 9, 9), 3, None)], extremes=False),
    "both-coders": Recipe(about="a tensor of each coder, one in several chunks", batch=2, signed=True,
                          tensors=[((3, 4, 5), 3, (2, 2)), ((4, 7), 6, None)],
                          chunks=[(0, 1, 1, 1), (0, 1, 2, 4), (0, 1, 1, 1), (1, 2, 1, 2)]),
    "sizes": Recipe(about="two vectors of sizes beside two tensors", tensors=[((3, 5, 4), 4, (2, 2)), ((7,), 3, None)],
                    batch=2, sizes=[(0,), (13, 1 << 26, 640)]),
    "short-n2": Recipe(about="a short frame", tensors=[((6, 9, 7), 2, (2, 4))], batch=3, tables=1, short=True),
    "short-lanes4-n4": Recipe(about="a short frame of four lanes", tensors=[((5, 29, 31), 4, (1, 1))], short=True),
    "short-binary-n3": Recipe(about="a short frame of coder 2", tensors=[((4, 5, 6), 3, None)], signed=True,
                              short=True),
    "short-rest-n4": Recipe(about="a short frame, every feature is zero", tensors=[((40,), 4, (1, 4))],
                            extremes=False, tables=1, short=True),
    "predicted-n4": Recipe(about="coder 4, a short frame of three images, channels that are no multiple of 8", batch=3,
                           tensors=[((19, 4, 5), 4, Predicted())], tables=5, short=True),
    "predicted-lanes8-n3": Recipe(about="coder 4, eight lanes", tensors=[((17, 21, 24), 3, Predicted(taps=12))],
                                  short=True),
    "predicted-n64": Recipe(about="coder 4, as many levels, activities and taps as there may be, 16-bit predictions",
                            tensors=[((11, 6, 5), 64, Predicted(taps=255, activities=4, classes=3, shift=6, offset=-900,
                                                                reach=32767, missing=9))],
                            uniform=False, tables=4, short=True),
    "predicted-chunks-n5": Recipe(about="coder 4, chunks that begin and end within images and groups, of many lanes",
                                  batch=3, signed=True,
                                  tensors=[((21, 3, 4), 5, Predicted(activities=3, classes=1, missing=1))],
                                  chunks=[(0, 4, 3, 13), (0, 4, 8, 1), (0, 4, 7, 30), (0, 4, 5, 19)]),
    "predicted-planes-n2": Recipe(about="coder 4, planes of one element, as many tables and classes as there may be",
                                  batch=4, tables=64, short=True,
                                  tensors=[((70, 1, 1), 2, Predicted(activities=1, classes=16, shift=0, offset=3))]),
    "predicted-beside-n4": Recipe(about="a tensor of coder 1, one of coder 4 and one of coder 4 on one axis", batch=2,
                                  tensors=[((3, 6, 5), 4, (1, 2)), ((12, 3, 5), 6, Predicted()),
                                           ((23,), 3, Predicted(taps=0, classes=1))], tables=4),
    "predicted-rest-n4": Recipe(about="coder 4, every feature is zero", tensors=[((10, 9, 9), 4, Predicted(classes=1))],
                                extremes=False, tables=2, short=True),
    "transform-tile": Recipe(about="coder 5, one tile, a batch", tensors=[((1, 83), 0, Transformed())], batch=3,
                             tables=40, short=True),
    "transform-tiles": Recipe(about="coder 5, many tiles, their last group of one coefficient, dead zone 0, no shifts",
                              tensors=[((12, 33), 0, Transformed(step=60, outward=(0.0, 0.0), dead_zone=0.0))],
                              batch=2, tables=64, short=True),
    "transform-one": Recipe(about="coder 5, one coefficient, one table", tables=1, short=True,
                            tensors=[((1, 1), 0, Transformed(dead_zone=0.5))]),
    "transform-escapes": Recipe(about="coder 5, many escapes, symbols that are in no table, shifts inwards", batch=2,
                                tensors=[((3, 50), 0, Transformed(step=52, classes=(90, 60), missing=True,
                                                                  outward=(-0.5, -0.25)))], tables=9, short=True),
    "transform-rest": Recipe(about="coder 5, every coefficient is zero", tensors=[((9, 40), 0, Transformed())],
                             extremes=False, tables=30, short=True),
    "transform-finest": Recipe(about="coder 5, the smallest step", tables=8, short=True,
                               tensors=[((2, 40), 0, Transformed(step=0))]),
    "transform-coarsest": Recipe(about="coder 5, the largest step, classes and table offset at their ends", tables=64,
                                 tensors=[((4, 40), 0, Transformed(step=127, classes=(127, 0), first=-64))],
                                 short=True),
    "transform-lanes2": Recipe(about="coder 5, two lanes", tables=40, short=True,
                               tensors=[((5, 2000), 0, Transformed(step=63, classes=(80, 63)))]),
    "transform-chunks": Recipe(about="coder 5, chunks of three, eight and five lanes, each with a step of its own",
                               batch=7, tensors=[((2, 70), 0, Transformed())], tables=33,
                               chunks=[(0, 5, 3, 1), (0, 5, 8, 4), (0, 5, 5, 2)], steps=(64, 59, 71)),
    "transform-two": Recipe(about="coder 5, two tensors of different steps, and sizes", batch=2, tables=50,
                            tensors=[((1, 100), 0, Transformed(step=66)),
                                     ((16, 20), 0, Transformed(step=58, first=-30, outward=(0.25, 0.0)))],
                            sizes=[(7, 0)]),
    "transform-unsorted": Recipe(about="coder 5, classes in any order, all coefficients sent", batch=2, tables=12,
                                 tensors=[((3, 75), 0, Transformed(unsent=0.0))], short=True),
    "transform-unsent": Recipe(about="coder 5, a third of the coefficients not sent, and escapes", batch=3,
                               tensors=[((2, 110), 0, Transformed(step=61, classes=(84, 52), missing=True,
                                                                  unsent=0.35))],
                               tables=9, short=True),
    "transform-one-sent": Recipe(about="coder 5, one coefficient of forty sent, in many tiles", tables=5, short=True,
                                 tensors=[((20, 40), 0, Transformed(classes=(70, 70), unsent=1.0))]),
    "transform-unsent-chunks": Recipe(about="coder 5, two tensors in chunks, most coefficients of one not sent",
                                      batch=3, tables=7, tensors=[((2, 90), 0, Transformed(unsent=0.8)),
                                                                   ((5, 33), 0, Transformed(unsent=0.2))],
                                      chunks=[(0, 5, 2, 1), (0, 5, 1, 2), (1, 5, 4, 3)], steps=(60, 65, 68)),
    "terse-tile": Recipe(about="coder 6, one tile, a batch", tensors=[((1, 83), 0, Transformed(coder=6))], batch=3,
                         tables=40, compact=True, short=True),
    "terse-state": Recipe(about="coder 6, an odd payload: three bytes, a word", tables=7, compact=True, short=True,
                          tensors=[((1, 9), 0, Transformed(step=72, coder=6))]),
    "terse-one": Recipe(about="coder 6, one coefficient, one table", tables=1, short=True,
                        tensors=[((1, 1), 0, Transformed(dead_zone=0.5, coder=6))]),
    "terse-rest": Recipe(about="coder 6, every coefficient is zero: an empty payload", extremes=False, tables=30,
                         tensors=[((9, 40), 0, Transformed(coder=6))], compact=True, short=True),
    "terse-escapes": Recipe(about="coder 6, many escapes, symbols that are in no table, shifts inwards", batch=2,
                            tensors=[((3, 50), 0, Transformed(step=52, classes=(90, 60), missing=True, coder=6,
                                                              outward=(-0.5, -0.25)))], tables=9, short=True),
    "terse-finest": Recipe(about="coder 6, the smallest step, long form", tables=8,
                           tensors=[((2, 40), 0, Transformed(step=0, coder=6))]),
    "terse-coarsest": Recipe(about="coder 6, the largest step, classes and table offset at their ends", tables=64,
                             tensors=[((4, 40), 0, Transformed(step=127, classes=(127, 0), first=-64, coder=6))],
                             short=True),
    "terse-lanes2": Recipe(about="coder 6, two lanes", tables=40, short=True,
                           tensors=[((5, 2000), 0, Transformed(step=63, classes=(80, 63), coder=6))]),
    "terse-chunks": Recipe(about="coder 6, chunks of one, three, eight and two lanes; three steps of their own",
                           batch=9, tensors=[((2, 70), 0, Transformed(coder=6))], tables=33,
                           chunks=[(0, 6, 1, 2), (0, 6, 3, 1), (0, 6, 8, 4), (0, 6, 2, 2)], steps=(0, None, 127, 71)),
    "terse-two": Recipe(about="a tensor of coder 6 and one of coder 5, and sizes", batch=2, tables=50,
                        tensors=[((1, 100), 0, Transformed(step=66, coder=6)),
                                 ((16, 20), 0, Transformed(step=58, first=-30, outward=(0.25, 0.0)))],
                        sizes=[(7, 0)]),
    "terse-unsent": Recipe(about="coder 6, a third of the coefficients not sent, and escapes", batch=3,
                           tensors=[((2, 110), 0, Transformed(step=61, classes=(84, 52), missing=True, unsent=0.35,
                                                              coder=6))],
                           tables=9, short=True),
    "compact-n3": Recipe(about="a compact frame of coder 1, its frame id of five bytes", compact=True, short=True,
                         tensors=[((3, 6, 5), 3, (1, 2))], frame_id=(1 << 32) - 1),
    "compact-predicted": Recipe(about="a compact frame of coder 4, two images", compact=True, short=True, batch=2,
                                tensors=[((6, 4, 5), 3, Predicted())], frame_id=127),
    "compact-batch": Recipe(about="a compact frame of coder 5, a batch and a frame id of two bytes", compact=True,
                            tensors=[((1, 12), 0, Transformed())], short=True, batch=130, tables=6, frame_id=16383),
    "compact-point": Recipe(about="a compact frame of coder 6, a frame id of one byte", compact=True, short=True,
                            tensors=[((2, 30), 0, Transformed(step=66, coder=6))], tables=6, frame_id=127),
    "compact-smallest": Recipe(about="a compact frame of coder 5 without frame id", compact=True, short=True,
                               tensors=[((2, 30), 0, Transformed(step=70))], tables=6, frame_id=0),
}  # fmt: skip


def make(name: str) -> tuple[dict[str, bytes], dict[str, object]]:
    """The files of a vector by part, and its entry in the manifest."""
    recipe = RECIPES[name]
    rng = np.random.default_rng(list(name.encode()))
    profile, features = (make_transform_pair if is_transform(recipe) else make_scalar_pair)(rng, name, recipe)
    sizes = [np.array(s, np.int64) for s in recipe.sizes]
    codec = FeatureCodec(profile)
    frame_id = int(rng.integers(0, 1 << 32)) if recipe.frame_id is None else recipe.frame_id
    chunks: Chunks
    if recipe.chunks:
        chunks = [(*c, s) for c, s in zip(recipe.chunks, recipe.steps or [None] * len(recipe.chunks), strict=True)]
    else:
        encoded = codec.encode(features, frame_id=frame_id, sizes=sizes)
        chunks = chunk_table(encoded, coder_of(profile))
    planes = [p.tolist() for p in coded_planes(features, profile, 1, chunks)]
    decoded = decoded_tensors(features, profile, 1, chunks)
    escapes = count_escapes(features, profile)
    frame = write_frame(
        profile.to_json(), 1, frame_id, recipe.batch, planes, chunks, recipe.sizes, long=not recipe.short
    )
    if not recipe.chunks and not is_made_as(frame, encoded):
        raise SystemExit(f"{name}: the encoder and the oracle disagree; nothing to make a golden vector of")
    archive = io.BytesIO()
    arrays = {f"t{i}": x for i, x in enumerate(features)} | {f"s{i}": s for i, s in enumerate(sizes)}
    np.savez_compressed(archive, allow_pickle=False, **arrays)
    files = {"profile": profile.to_json().encode(), "features": archive.getvalue(), "frame": frame}
    entry = {
        "about": recipe.about, "op": "used", "frame_id": frame_id, "encoded": not recipe.chunks,
        "levels": [t[1] for t in recipe.tensors], "coders": [c[1] for c in chunks], "lanes": [c[2] for c in chunks],
        "escapes": escapes,
        "files": {part: hashlib.sha256(data).hexdigest() for part, data in files.items()},
        "decoded": [digest(x) for x in decoded],
    }  # fmt: skip
    return files, entry


def is_transform(recipe: Recipe) -> bool:
    return any(isinstance(kind, Transformed) for *_, kind in recipe.tensors)


def make_scalar_pair(rng: np.random.Generator, name: str, recipe: Recipe) -> tuple[CodecProfile, list[Float32Array]]:
    """The profile of level indices, whose second operating point is the used one, and features."""
    points, features, taps = [], [], []
    for shape, levels, block in recipe.tensors:
        quantizer = make_quantizer(rng, levels, recipe)
        x = make_features(rng, (recipe.batch, *shape), quantizer, recipe)
        features.append(x)
        found = make_taps(rng, shape, block.taps) if isinstance(block, Predicted) else UNSET
        taps.append(found)
        points.append(
            TensorPoint(
                quantizer=quantizer,
                clipping=Clipping(method="histogram"),
                tables=make_tables(rng, x, quantizer, block, recipe) if isinstance(block, tuple) else None,
                prediction=(
                    make_prediction(rng, x, quantizer, found, block, recipe)
                    if found is not UNSET and isinstance(block, Predicted)
                    else UNSET
                ),
            )
        )
    # The one that is used stands second, so that its index is not zero.
    spare = tuple(make_spare(1 if len(shape) < 3 else shape[0]) for shape, *_ in recipe.tensors)
    ops = tuple(
        OperatingPoint(name=op, tensors=t, bits_per_element=1.0)
        for op, t in (("spare", spare), ("used", tuple(points)))
    )
    # those with several chunks have a mean, to conceal damaged ones with
    specs = tuple(
        TensorSpec(name=f"t{i}", shape=t[0], mean=0.375 if recipe.chunks else None, taps=taps[i])
        for i, t in enumerate(recipe.tensors)
    )
    return make_profile(name, recipe, specs, ops), features


def make_transform_pair(rng: np.random.Generator, name: str, recipe: Recipe) -> tuple[CodecProfile, list[Float32Array]]:
    """The profile of coefficients, and coefficients."""
    specs, features, steps = [], [], []
    for i, (shape, _, kind) in enumerate(recipe.tensors):
        assert isinstance(kind, Transformed) and len(shape) == 2
        transform = make_transform(
            rng, shape, recipe.tables, classes=kind.classes, first=kind.first, missing=kind.missing,
            outward=kind.outward, dead_zone=kind.dead_zone, unsent=kind.unsent,
            coder=6 if kind.coder == 6 else UNSET,
        )  # fmt: skip
        specs.append(TensorSpec(name=f"t{i}", shape=shape, mean=0.0 if recipe.chunks else None, transform=transform))
        x = make_coefficients(rng, recipe.batch, shape, transform, kind.step)
        features.append(x if recipe.extremes else np.zeros_like(x))
        steps.append(kind.step)
    spare = tuple(max(0, step - 9) for step in steps)
    ops = tuple(
        OperatingPoint(name=op, tensors=(), bits_per_element=1.0, steps=indices)
        for op, indices in (("spare", spare), ("used", tuple(steps)))
    )
    return make_profile(name, recipe, tuple(specs), ops), features


def make_profile(
    name: str, recipe: Recipe, specs: tuple[TensorSpec, ...], ops: tuple[OperatingPoint, ...]
) -> CodecProfile:
    return CodecProfile(
        model=f"golden vector {name}", cut="none", front_sha256="0" * 64, back_sha256="1" * 64, default_op="used",
        tensors=specs, operating_points=ops,
        sizes=tuple(SizeSpec(name=f"s{i}", length=len(s)) for i, s in enumerate(recipe.sizes)) or msgspec.UNSET,
        frames="compact" if recipe.compact else UNSET,
    )  # fmt: skip


def make_quantizer(rng: np.random.Generator, levels: int, recipe: Recipe) -> Quantizer:
    c_min = -1.5 if recipe.signed else 0.0
    if recipe.uniform:
        return Quantizer.uniform(c_min, 3.3, levels)
    values = np.sort(rng.uniform(c_min, 3.3, 2 * levels - 1)).astype(np.float32)
    thresholds = values[1::2].tolist()
    if len(thresholds) > 2:
        thresholds[2] = thresholds[1]  # a level that is never used is allowed
    return Quantizer(levels=tuple(values[::2].tolist()), thresholds=tuple(thresholds))


def make_spare(channels: int) -> TensorPoint:
    """The smallest operating point there is."""
    tables = ContextTables(
        block=(1, 1), padding=0, activities=1, left_activity=bytes(2), top_activity=bytes(2),
        context_map=bytes(channels * 4), frequencies=np.array([2000, 2000, 96], "<u2").tobytes(),
    )  # fmt: skip
    return TensorPoint(
        quantizer=Quantizer.uniform(0.0, 1.0, 2), clipping=Clipping(method="histogram"), tables=tables
    )  # fmt: skip


def make_features(
    rng: np.random.Generator, shape: tuple[int, ...], quantizer: Quantizer, recipe: Recipe
) -> Float32Array:
    """Correlated, mostly at rest, in steps of 1/16 (so that they compress); with the values that decide something."""
    if not recipe.extremes:
        return np.zeros(shape, np.float32)
    noise = rng.laplace(-0.6, 1.0, shape)
    noise = noise + 0.7 * np.roll(noise, 1, -1)
    x = (np.round((noise if recipe.signed else np.maximum(noise, 0)) * 16) / 16).astype(np.float32)
    t = np.array(quantizer.thresholds, np.float32)
    edges = [t, np.nextafter(t, np.float32(-np.inf)), np.nextafter(t, np.float32(np.inf))]
    special = np.concatenate([*edges, np.array([-0.0, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)])
    count = min(x.size // 4, special.size)
    x.reshape(-1)[rng.choice(x.size, count, replace=False)] = rng.permutation(special)[:count]
    return x


def make_tables(
    rng: np.random.Generator, x: Float32Array, quantizer: Quantizer, block: tuple[int, int], recipe: Recipe
) -> ContextTables:
    """Tables near the features' own statistics, each a little different, without room for the rare and a few more."""
    levels = len(quantizer.levels)
    k = levels ** (block[0] * block[1])
    channels = (1, 1, *x.shape[1:])[-3]
    padding = int(rng.integers(levels))
    counts = np.bincount(block_symbols(x, quantizer, block, padding), minlength=k) + 0.05
    rows = make_rows(rng, counts, recipe.tables)
    side = recipe.activities + 1
    activity = [rng.integers(0, recipe.activities, k, dtype=np.uint8).tobytes() for _ in range(2)]
    return ContextTables(
        block=block, padding=padding, activities=recipe.activities, left_activity=activity[0], top_activity=activity[1],
        context_map=rng.integers(0, recipe.tables, channels * side * side, dtype=np.uint8).tobytes(),
        frequencies=rows.astype("<u2").tobytes(),
    )  # fmt: skip


def make_rows(rng: np.random.Generator, counts: NDArray[np.floating], tables: int) -> NDArray[np.int64]:
    """(tables, K + 1) frequencies for symbols that occur so often."""
    k = counts.size
    rows = np.zeros((tables, k + 1), np.int64)
    for row in rows:
        weights = counts * rng.uniform(0.3, 1.0, k) ** 2
        weights *= (weights > 0.002 * weights.sum()) & (rng.random(k) < 0.9)
        weights[counts.argmax()] += 1.0
        row[:k] = weights / weights.sum() * (TABLE_SIZE - 100)
        row[k] = 1 + rng.integers(60)
        row[int(row[:k].argmax())] += TABLE_SIZE - row.sum()
    return rows


def make_taps(rng: np.random.Generator, shape: tuple[int, ...], most: int) -> Taps:
    """Up to `most` of each channel that can have any, a third of these without; the last one has that many."""
    channels = (1, 1, *shape)[-3]
    counts = rng.integers(0, most + 1, channels) * (rng.random(channels) < 0.67)
    counts[-1] = most
    counts[:GROUP] = 0
    limits = np.repeat(np.arange(channels) // GROUP * GROUP, counts)
    sources = rng.integers(0, limits) * 8 + rng.integers(0, len(PLACES), limits.size)
    return Taps(counts=counts.astype(np.uint8).tobytes(), sources=sources.astype("<u2").tobytes())


def make_prediction(
    rng: np.random.Generator, x: Float32Array, quantizer: Quantizer, taps: Taps, kind: Predicted, recipe: Recipe
) -> PredictionTables:
    """Random weights, in each channel as large as may be; tables near the features' own statistics. The prediction
    means nothing, so every table has to fit all levels."""
    levels = np.array(level_planes(x, quantizer)).reshape(-1)
    counts = np.bincount(levels, minlength=len(quantizer.levels)) + 0.05
    rest = int(counts.argmax())
    counts[np.argsort(-counts, kind="stable")[1 : 1 + kind.missing]] = 0  # stable: ties are the same everywhere
    most = max(rest, counts.size - 1 - rest)
    weights, bias = [], []
    for number in np.frombuffer(taps.counts, np.uint8):
        w = rng.integers(-128, 128, len(OWN) + int(number))
        while abs(w).sum() * most + abs(kind.offset) > kind.reach:
            w = np.trunc(w / 2).astype(np.int64)
        left = kind.reach - abs(kind.offset) - int(abs(w).sum()) * most
        weights.append(w)
        bias.append(int(rng.integers(-left, left + 1)) // 4)
    number = len(bias)
    if number > 1:
        bias[-1] = -left
    return PredictionTables(
        rest=rest, weights=np.concatenate(weights).astype(np.int8).tobytes(), bias=np.array(bias, "<i2").tobytes(),
        offset=kind.offset, shift=kind.shift, activities=kind.activities,
        activity=rng.integers(0, kind.activities, ACTIVITY_SUMS, dtype=np.uint8).tobytes(), classes=kind.classes,
        channel_class=rng.integers(0, kind.classes, number, dtype=np.uint8).tobytes(),
        context_map=rng.integers(0, recipe.tables, kind.classes * CELLS * kind.activities, dtype=np.uint8).tobytes(),
        frequencies=make_rows(rng, counts, recipe.tables).astype("<u2").tobytes(),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which (default: all)")
    parser.add_argument("--write", action="store_true", help="write them; without it they are only compared")
    parser.add_argument("--force", action="store_true", help="write over vectors that exist")
    arguments = parser.parse_args()
    manifest = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    different = 0
    for name in arguments.names or RECIPES:
        files, entry = make(name)
        paths = {part: FOLDER / (name + suffix) for part, suffix in SUFFIXES.items()}
        same = manifest.get(name) == entry and all(p.exists() and p.read_bytes() == files[k] for k, p in paths.items())
        different += not same
        sizes = " + ".join(f"{len(data)} {part}" for part, data in files.items())
        kinds = f"coders {entry['coders']}, lanes {entry['lanes']}, escapes {entry['escapes']}"
        print(f"{name:20} {sizes} bytes, {kinds}{'' if same else '  NEW'}")
        if arguments.write and not same:
            if any(p.exists() for p in paths.values()) and not arguments.force:
                raise SystemExit(f"{name} exists and would change: that is another format (CONTRIBUTING.md, How to)")
            for part, path in paths.items():
                path.write_bytes(files[part])
            manifest[name] = entry
            MANIFEST.write_text(json.dumps(manifest, indent=1) + "\n")
    return 0 if arguments.write or not different else 1


if __name__ == "__main__":
    sys.exit(main())
