"""All batches with all contenders: first the usual settings, then further ones of the ladders, round by round.

What is measured is kept on disk batch by batch (store.py), so that an interrupted evaluation goes on.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from splitwire.codec.errors import SplitwireError
from splitwire.codec.shared.progress import ProgressFn
from splitwire.evaluation.answer.standings import SLACK
from splitwire.evaluation.answer.wording import named
from splitwire.evaluation.contenders import FAMILIES, on_ladders
from splitwire.evaluation.contenders.ladders import LADDERS, following
from splitwire.evaluation.contenders.protocol import FeatureContender, ImageContender

from .figures import scored
from .measure import WHOLE, Measurement, received
from .stages import versions
from .store import Batch, Store

FORMAT = 2
"""Version of what the store keeps. Another number when that, or what a figure means, changes."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything that was measured. setup: with the contenders of all rounds. batches: in the order of the data.

    stores: the kept batches of each round.
    """

    setup: Measurement
    batches: Sequence[Batch]
    stores: Sequence[Store]

    def forget(self) -> None:
        """Remove what is kept for an interrupted run."""
        for store in self.stores:
            store.remove()


def measure_all(setup: Measurement, out: Path, *, budget: float, metric: str | None, progress: ProgressFn) -> Measured:
    """Measure the setup's contenders, then the settings of their ladders that the budget asks for.

    out: folder in which finished batches are kept. budget: a loss of the main figure. metric: the user's, by name.
    An error of ours removes the kept batches, since it would come again; any other interruption leaves them.
    Raises UsageError, NonFiniteFeatures, ShapeMismatch, DeviceError.
    """
    stores = [Store(out, *_key(setup, metric))]
    try:
        batches = _round(setup, stores[0], progress, "Images × contenders")
        while (following_round := _next_round(setup, batches, budget)) is not None:
            stores.append(Store(out, *_key(following_round, metric)))
            more = _round(following_round, stores[-1], progress, "Further settings of picture codecs")
            batches = [batch.with_more(other) for batch, other in zip(batches, more, strict=True)]
            setup = _joined(setup, following_round)
    except BaseException as e:
        for store in reversed(stores):
            if isinstance(e, SplitwireError) or store.empty:
                store.abandon()
        raise
    return Measured(setup=setup, batches=batches, stores=stores)


def _key(setup: Measurement, metric: str | None) -> list[str | bytes]:
    """Everything that the figures depend on."""
    contenders = [f"{named(c)} -> {received(c)}" for c in setup.contenders]
    settings = [FORMAT, setup.pair.batch, setup.task.kind, setup.task.main, contenders, metric, versions()]
    source = b"" if metric is None else _source_of(metric)
    return [setup.pair.fingerprint, setup.profile.fingerprint, setup.data.digest, msgspec.json.encode(settings), source]


def _source_of(metric: str) -> bytes:
    """The content of the file that defines a metric; b"" if it has none. Figures of an edited metric are not mixed with
    those of before."""
    file = getattr(sys.modules.get(metric.partition(":")[0]), "__file__", None)
    return Path(file).read_bytes() if file is not None else b""


def _round(setup: Measurement, store: Store, progress: ProgressFn, stage: str) -> list[Batch]:
    """All batches: those that an earlier run has kept, and the others now. stage: what progress is told."""
    earlier = [store.load(i) for i in range(len(setup.batches))]
    if None in earlier:
        setup.fit(lambda done, total: progress("Prepare the contenders", done, total))
    total = len(setup.data) * setup.passes
    batches = []
    done = 0

    def tick(images: int) -> None:
        nonlocal done
        done += images
        progress(stage, done, total)

    for i, (positions, kept) in enumerate(zip(setup.batches, earlier, strict=True)):
        batches.append(setup.batch(positions, tick) if kept is None else kept)
        if kept is None:
            store.save(i, batches[i])
        done = positions.stop * setup.passes
    tick(0)
    return batches


def _next_round(setup: Measurement, batches: Sequence[Batch], budget: float) -> Measurement | None:
    """The next setting of every ladder that is not done (ladders.py); None if all are."""
    main = setup.task.main
    whole = scored(setup, batches, WHOLE).figures()[main]
    losses: dict[str, dict[str, float]] = {}
    for c in setup.contenders:
        if c.family in LADDERS:
            loss = whole - scored(setup, batches, received(c)).figures()[main]
            losses.setdefault(c.family, {})[c.setting] = loss
    values = {family: following(family, by_setting, budget + SLACK) for family, by_setting in losses.items()}
    unmeasured = {family: value for family, value in values.items() if value is not None}
    if not unmeasured:
        return None
    features, images = on_ladders(setup.profile, unmeasured)
    return dataclasses.replace(setup, features=features, images=images)


def _joined(setup: Measurement, more: Measurement) -> Measurement:
    """The contenders of both, each family's settings together and in the ladder's order."""

    def place(c: FeatureContender | ImageContender) -> tuple[int, int]:
        ladder = LADDERS.get(c.family)
        return FAMILIES.index(c.family), (ladder.value(c.setting) or 0) if ladder is not None else 0

    return dataclasses.replace(
        setup,
        features=sorted([*setup.features, *more.features], key=place),
        images=sorted([*setup.images, *more.images], key=place),
    )
