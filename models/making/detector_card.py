"""The measured figures of the detector, and its model card, which is written only from them."""

from __future__ import annotations

from msgspec import Struct

from splitwire.models.fashion import CLASSES
from splitwire.models.making.card import Training, settings_words, versions_words


class Precision(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """COCO's average precision in [0, 1], from pycocotools, on `scenes` scenes of a split and a seed.

    garments: in these scenes. map50: at an intersection over union of 0.5. map: mean over 0.5 to 0.95. map50_per_class:
    in the order of CLASSES.
    """

    split: str
    seed: int
    scenes: int
    garments: int
    map50: float
    map: float
    map50_per_class: tuple[float, ...]


class Results(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `models/data/fashion_detector.json`.

    macs, macs_front: multiply-accumulates of the convolutions for one picture, in the whole network and before the cut.
    feature_negative: share of negative values in the tensor at the cut. held_out: on garments and photographs that are
    not in the training scenes; samples: on the 1,000 garments in the package. training.images: number of scenes.
    remark: more information about the training.
    """

    name: str
    parameters: int
    macs: int
    macs_front: int
    weights_bytes: int
    weights_sha256: str
    cut: str
    feature_shape: tuple[int, ...]
    feature_negative: float
    held_out: Precision
    samples: Precision
    training: Training
    remark: str = ""


def render(r: Results) -> str:
    """The model card, Markdown."""
    t, held, samples = r.training, r.held_out, r.samples
    per_class = "\n".join(f"| {name} | {ap:.3f} |" for name, ap in zip(CLASSES, held.map50_per_class, strict=True))
    shape = "×".join(map(str, r.feature_shape))
    remark = f"\n{r.remark}" if r.remark else ""
    return f"""# Model card: {r.name}

*Written by `python -m splitwire.models.making.train_detector` from `data/{r.name}.json`; it measured every figure
below.*

A small anchor-free detector of the YOLO kind, with leaky ReLUs (slope 0.1): finds the garments of Fashion-MNIST in
composed scenes, and says which of ten kinds each is.

| | |
|---|---|
| mAP@0.5, {held.scenes:,} held-out scenes ({held.garments:,} garments) | **{held.map50:.3f}** |
| mAP@[.5:.95], the same | {held.map:.3f} |
| mAP@0.5, {samples.scenes:,} scenes of the garments in the package | {samples.map50:.3f} |
| Parameters | {r.parameters:,}, float32; the convolutions' are stored as float16 |
| Multiply-accumulates | {r.macs / 1e6:.0f} million, {r.macs_front / r.macs:.0%} of them before the cut |
| File | `data/{r.name}.safetensors`, {r.weights_bytes:,} bytes |
| SHA-256 | `{r.weights_sha256}` |
| Input | RGB picture → 160×160 (bilinear) → normalised; 3×160×160 |
| Output | 50 rows of box (pixels of the input), score, label 1…10; unused rows have score 0 |
| Cut | `{r.cut}`: {shape}, {r.feature_negative:.0%} of the elements are negative |

All figures are of the whole network, in float32, in PyTorch, by pycocotools.

## Scenes
160×160 pixels; one to six garments with sides of up to 80 pixels, tinted, flipped, cut out along their silhouettes, on
smooth noise, gradients, stripes, checks or crops of scikit-image's photographs. Scene i of a seed is always the same.
Training scenes have the 60,000 training garments, held-out scenes (split `{held.split}`, seed {held.seed}) the 10,000
test garments and other photographs; the drawn backgrounds are of the same kinds in both. A box is tight around the
silhouette, also where another garment covers it; two boxes share at most 15 % of the smaller.
`python -m splitwire.models.making.scenes OUT --count {held.scenes} --seed {held.seed}` writes the held-out scenes.

## Training
{t.images:,} scenes, each seen once, in {t.seconds / 60:.0f} minutes on {t.machine}
({versions_words(t)}).
AdamW, linear warm-up and half a cosine; the weights are the running average at the last step.{remark}
Settings: {settings_words(t)}.

`python -m splitwire.models.making.train_detector` does it again; another machine adds in another order, and makes
another network of about this precision.

## mAP@0.5 by class
| class | AP |
|---|--:|
{per_class}

## Use
For demonstrating and testing splitwire on detection. All it knows is composed scenes of grey 28×28 garments.

## Data and licence
Fashion-MNIST: H. Xiao, K. Rasul, R. Vollgraf, 2017, arXiv 1708.07747; MIT licence (`data/LICENSE-fashion-mnist`). The
photographs are scikit-image's own and not part of this package. The weights are under splitwire's own licence.
"""
