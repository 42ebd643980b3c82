"""The results of an evaluation, as in results.json; the report and `splitwire compare` read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from splitwire.codec.errors import UsageError
from splitwire.codec.profile import Clipping, Quantizer

from .wording import count, figure_words, loss_words, named, title

FORMAT = 1
FILE = "results.json"

FOLDER = "evaluation"
"""Where `splitwire evaluate DIR` writes, below DIR."""

Task = Literal["classes", "detections", "segments", "custom"]
Sends = Literal["features", "image"]


class Estimate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A figure with the bounds of its 95 % interval from the bootstrap over images."""

    value: float
    low: float
    high: float


class Point(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One contender at one setting.

    family: the curve it belongs to ("splitwire", "JPEG"). setting: where on it ("n4", "q 75"). sends: what crosses the
    link. bytes: mean per image, side information included. bits_per_element: 8·bytes over the elements at the cut, for
    pictures too, so that all share an axis. encode_ms: median per image on one core; of a picture the codec's alone.
    figures: by name: "top1", "top5", "agreement" (shares in [0, 1]), "kl" (nats), "map50", "map", "miou", "pixels" (in
    [0, 1]), or the user's metric. loss: of the main figure against the whole network on the same images, in its own
    unit (0.01 is one per cent point); paired, positive is worse.
    """

    family: str
    setting: str
    sends: Sends
    bytes: float
    bits_per_element: float
    encode_ms: float
    figures: dict[str, Estimate]
    loss: Estimate

    @property
    def name(self) -> str:
        """Family and setting."""
        return named(self)


class Data(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The images. digest: SHA-256 of their list and targets, hex. skipped: unreadable ones, as (path, reason)."""

    source: str
    images: int
    labelled: bool
    digest: str
    skipped: tuple[tuple[str, str], ...] = ()


class Tensor(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The features of one tensor at the cut, over (a sample of) the images.

    edges: B + 1 bin edges; densities: B shares of all elements per bin, summing to 1 (values outside are in the outer
    bins). zeros: share of exact zeros. channel_means, channel_deviations: per channel.
    """

    name: str
    shape: tuple[int, ...]
    mean: float
    deviation: float
    minimum: float
    maximum: float
    zeros: float
    edges: tuple[float, ...]
    densities: tuple[float, ...]
    channel_means: tuple[float, ...]
    channel_deviations: tuple[float, ...]


class Design(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The quantizer of one tensor at one operating point, as the profile has it.

    Of a transform pair, whose profile has none: at a point of the contenders that quantize the features.
    """

    op: str
    tensor: str
    quantizer: Quantizer
    clipping: Clipping


class Disagreement(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An image that split (at the chosen point) and whole answer differently.

    name: as in the data. picture: PNG of what the network sees, at most 128 pixels a side; None for arrays.
    whole, split: the answers in words. target: the label in words, None without labels.
    """

    name: str
    whole: str
    split: str
    target: str | None = None
    picture: bytes | None = None


class Evaluation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One evaluation of one pair on one set of images.

    command: the command line that repeats it. machine: processor, cores, versions. elements: number of elements at the
    cut, of one image. figure: name of the main figure; losses are differences in it. whole: figures of the whole
    network. points: splitwire's first, in the profile's order. default_op: of the pair, after this evaluation.
    max_loss: the budget that was given, of the main figure. chosen: the operating point that it chose, None if none
    qualifies or no budget was given. over_budget: operating points that spend more than the bits that they are named
    after; they are chosen only if there are no others. stages: median ms per image of front, encode, decode and back
    at the default point, on one core.
    """

    format: Annotated[int, Meta(ge=1)] = FORMAT
    created: str
    command: str
    machine: dict[str, str]
    model: str
    cut: str
    fingerprint: str
    elements: int
    task: Task
    figure: str
    data: Data
    whole: dict[str, Estimate]
    points: tuple[Point, ...]
    default_op: str
    max_loss: float | None
    chosen: str | None
    stages: dict[str, float]
    tensors: tuple[Tensor, ...]
    designs: tuple[Design, ...]
    disagreements: tuple[Disagreement, ...]
    notes: tuple[str, ...] = ()
    over_budget: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A summary: the whole network, then a line per contender and setting; losses up to their upper bound."""
        whole = figure_words(self.figure, self.whole[self.figure].value)
        head = f"{self.model} cut after {self.cut}, {self.data.images:,} images"
        lines = [f"{head}: whole network {whole} {title(self.figure)}"]
        for p in self.points:
            loss = f"loses {loss_words(self.figure, p.loss.value)}, up to {loss_words(self.figure, p.loss.high)}"
            lines.append(f"  {p.name:<24} {count(p.bytes)} bytes, {loss}")
        return "\n".join([*lines, f"default {self.default_op}", *(f"note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        """One line."""
        return f"<Evaluation {self.model} after {self.cut}: {self.data.images:,} images, {len(self.points)} points>"


def evaluation_folder(path: Path) -> Path:
    """The folder with the results: `path`, or evaluation/ in it. Raises UsageError if there are none."""
    if not path.exists():
        raise UsageError(f"{path}: there is no such folder")
    if not path.is_dir():
        raise UsageError(f"{path} is a file; name the folder of a pair, or of an evaluation")
    for folder in (path, path / FOLDER):
        if (folder / FILE).is_file():
            return folder
    raise UsageError(f"{path} holds no {FILE}, nor does {path / FOLDER}; make one with splitwire evaluate {path}")


def read_results(folder: Path) -> Evaluation:
    """Read the results.json that `evaluate` wrote into `folder`.

    Raises UsageError if there is no such folder or file, or it is of another version.
    """
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Evaluation)
    except FileNotFoundError:
        if not folder.exists():
            raise UsageError(f"{folder}: there is no such folder") from None
        raise UsageError(f"{folder} holds no {FILE}; make one with splitwire evaluate") from None
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror or e}") from None
    except msgspec.DecodeError as e:
        raise UsageError(f"{path} is not an evaluation of this version of splitwire: {e}") from e
