"""One batch of images through the network, whole and split, with every contender."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw
from PIL import Image

from splitwire.codec.errors import SplitwireError, UsageError
from splitwire.codec.profile import CodecProfile
from splitwire.codec.shared.pictures import spread
from splitwire.codec.shared.text import printable
from splitwire.codec.wire.reply import Outputs
from splitwire.evaluation.answer.wording import named
from splitwire.evaluation.contenders import SPLITWIRE
from splitwire.evaluation.contenders.protocol import FeatureContender, Features, ImageContender, Sent
from splitwire.evaluation.data.dataset import Dataset, Item
from splitwire.evaluation.tasks.tasks import Task

from .features import sample_size
from .pair import Fronted, Pair
from .store import Batch, Sending

WHOLE = "whole"
"""Key of the whole network's outcomes, beside those by what was received."""

Tick = Callable[[int], None]


def received(contender: FeatureContender | ImageContender) -> str:
    """Key of a contender's outcomes: contenders that give the same features back share it."""
    return getattr(contender, "received", None) or f"image {named(contender)}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some of the images. features: of each image. first: the first of them after the front half. picture: of one; None
    where the data are arrays of inputs."""

    features: list[Features] = field(repr=False)
    first: Fronted = field(repr=False)
    picture: Image.Image | None = field(repr=False)


class Reader:
    """Images by position. Those that cannot be read are left out, and listed in `skipped` as (name, reason)."""

    def __init__(self, data: Dataset, positions: Sequence[int]) -> None:
        self.skipped: list[tuple[str, str]] = []
        self._data = data
        self._positions = positions

    def __iter__(self) -> Iterator[tuple[int, Item]]:
        for i in self._positions:
            try:
                yield i, self._data.item(i)
            except UsageError as e:
                self.skipped.append((self._data.names[i], printable(str(e))))


def first_answer(pair: Pair, data: Dataset) -> Outputs:
    """The whole network's outputs for one image. Raises UsageError if none can be read."""
    reader = Reader(data, range(len(data)))
    for _, item in reader:
        fronts = pair.front([item.x])
        return pair.back([f.features for f in fronts], fronts)
    if not reader.skipped:
        raise UsageError(f"{data.source} holds no images")
    raise UsageError(f"none of the {len(reader.skipped)} images can be read; the first: {reader.skipped[0][1]}")


def take_sample(pair: Pair, data: Dataset, tick: Callable[[int, int], None]) -> Sample:
    """The features of some images, evenly spread over those that can be read; the same in every run.

    Raises UsageError if none of them can be read.
    """
    positions = spread(len(data), sample_size(pair.elements))
    reader = Reader(data, positions)
    features: list[Features] = []
    first: Fronted | None = None
    picture = None
    for done, (_, item) in enumerate(reader):
        (fronted,) = pair.front([item.x])
        features.append(fronted.features)
        first = first or fronted
        picture = picture or item.picture
        tick(done + 1, len(positions))
    if first is None:
        why = reader.skipped[0][1]
        raise UsageError(f"none of {len(positions)} images, spread over the {len(data)}, can be read; the first: {why}")
    return Sample(features=features, first=first, picture=picture)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one round measures: the contenders, on a pair and data, judged by a task.

    profile: of the features at the cut: the pair's, unless it sends coefficients (feature_profile.py). sample: of the
    data.
    """

    pair: Pair
    profile: CodecProfile
    data: Dataset
    sample: Sample
    task: Task
    features: Sequence[FeatureContender]
    images: Sequence[ImageContender]

    @property
    def contenders(self) -> list[FeatureContender | ImageContender]:
        """All contenders: those that send features, then those that send the picture."""
        return [*self.features, *self.images]

    @property
    def batches(self) -> list[range]:
        """Positions in the data, batch by batch."""
        n = len(self.data)
        return [range(i, min(i + self.pair.batch, n)) for i in range(0, n, self.pair.batch)]

    @property
    def passes(self) -> int:
        """How often an image goes through the network."""
        return 1 + len({received(c) for c in self.features}) + len(self.images)

    def fit(self, tick: Callable[[int, int], None]) -> None:
        """Let the contenders learn their ranges from the sample, and call each once, so that no timing includes a
        compilation."""
        sample = self.sample
        total = len(self.features) + len(self.images)
        seen: dict[str, tuple[str, Features]] = {}
        for done, c in enumerate(self.features):
            c.fit(sample.features)
            decoded = c.decode(c.encode(_coded_by(c, sample.first)))
            first, same = seen.setdefault(c.received, (named(c), decoded))
            if not all(np.array_equal(a, b) for a, b in zip(decoded, same, strict=True)):
                raise RuntimeError(f"{named(c)} and {first} give different features back, and share {c.received!r}")
            tick(done + 1, total)
        for done, image_contender in enumerate(self.images, len(self.features)):
            if sample.picture is not None:
                image_contender.decode(image_contender.encode(sample.picture))
            tick(done + 1, total)

    def batch(self, positions: range, tick: Tick) -> Batch:
        """Measure these images. tick(n): called after each pass of n images through the network."""
        reader = Reader(self.data, positions)
        read = list(reader)
        sendings: dict[str, Sending] = {}
        outcomes: dict[str, Raw] = {}
        if read:
            self._measure([item for _, item in read], sendings, outcomes, tick)
        return Batch(
            images=tuple(i for i, _ in read), skipped=tuple(reader.skipped), sendings=sendings, outcomes=outcomes
        )

    def _measure(self, items: list[Item], sendings: dict[str, Sending], outcomes: dict[str, Raw], tick: Tick) -> None:
        fronts = self.pair.front([item.x for item in items])
        whole = self.pair.back([f.features for f in fronts], fronts)

        def keep(key: str, outputs: Outputs) -> None:
            outcomes[key] = Raw(msgspec.msgpack.encode(self.task.outcomes(outputs, whole, items)))
            tick(len(items))

        keep(WHOLE, whole)
        for c in self.features:
            sent = _encoded(c, [_coded_by(c, f) for f in fronts], items, sendings)
            if c.received not in outcomes:
                back = self.pair.receive if c.family == SPLITWIRE else self.pair.back
                keep(c.received, back([c.decode(s) for s in sent], fronts))
        for image_contender in self.images:
            pictures = [item.picture for item in items if item.picture is not None]
            sent = _encoded(image_contender, pictures, items, sendings)
            again = self.pair.front([self.data.input_of(image_contender.decode(s)) for s in sent])
            keep(received(image_contender), self.pair.back([f.features for f in again], again))


def _coded_by(contender: FeatureContender, fronted: Fronted) -> Features:
    """What a contender codes: splitwire what its pair sends, all others the features."""
    return fronted.crossing if contender.family == SPLITWIRE else fronted.features


def _encoded(
    contender: FeatureContender | ImageContender, inputs: Sequence[Any], items: list[Item], sendings: dict[str, Sending]
) -> list[Sent]:
    """Encode the features, or the picture, of each image; bytes and times go into `sendings`.

    inputs: what the contender encodes, for each of `items`. Raises what the contender raises, with the image's name.
    """
    sent, ns = [], []
    for item, one in zip(items, inputs, strict=True):
        try:
            start = time.perf_counter_ns()
            encoded = contender.encode(one)
            ns.append(time.perf_counter_ns() - start)
        except SplitwireError as e:
            raise type(e)(f"{item.name}: {named(contender)} cannot encode it: {e}") from e
        sent.append(encoded)
    sendings[named(contender)] = Sending(sent=tuple(s.bytes for s in sent), ns=tuple(ns))
    return sent


def thumbnail(picture: Image.Image, side: int = 128) -> bytes:
    """PNG of at most `side` pixels a side."""
    small = picture.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
