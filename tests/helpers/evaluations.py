"""A synthetic evaluation with the structure of a real one, for tests of the report and of `splitwire compare`."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from splitwire.codec.design.density import FeatureDensity
from splitwire.codec.profile import Clipping, Quantizer
from splitwire.evaluation.answer.results import Data, Design, Disagreement, Estimate, Evaluation, Point, Sends, Tensor

ELEMENTS = 192 * 8 * 8
WHOLE = 0.915
DENSITY = FeatureDensity(rate=0.77, location=-1.43, slope=0.1)


def point(
    family: str, setting: str, sent: float, loss: float, ms: float = 0.3, sends: Sends = "features", kl: float = 0.01
) -> Point:
    """A point whose loss is known to ±0.004."""
    half = 0.004 if loss > 0 else 0.001
    return Point(
        family=family,
        setting=setting,
        sends=sends,
        bytes=sent,
        bits_per_element=8 * sent / ELEMENTS,
        encode_ms=ms,
        figures={
            "top1": Estimate(value=WHOLE - loss, low=WHOLE - loss - 0.012, high=WHOLE - loss + 0.012),
            "top5": Estimate(value=0.995 - loss / 4, low=0.99 - loss / 4, high=0.999),
            "kl": Estimate(value=kl, low=0.85 * kl, high=1.18 * kl),
        },
        loss=Estimate(value=loss, low=loss - half, high=loss + half),
    )


def interval_point(setting: str, size: float, low: float, high: float, family: str = "splitwire") -> Point:
    """A point whose loss lies between low and high; `size` bytes."""
    loss = Estimate(value=(low + high) / 2, low=low, high=high)
    return Point(
        family=family, setting=setting, sends="features", bytes=size, bits_per_element=size / 100, encode_ms=0.1,
        figures={"top1": loss}, loss=loss,
    )  # fmt: skip


def sweep(
    family: str, settings: str, smallest: float, largest: float, half: float, ms: float, sends: Sends
) -> list[Point]:
    """Settings evenly spread over log bytes; the loss falls to zero above `half` bytes, and is noisy as real ones."""
    names = settings.split(",")
    points = []
    for k, name in enumerate(names):
        sent = smallest * (largest / smallest) ** (k / max(len(names) - 1, 1))
        loss = round(0.9 / (1 + (sent / half) ** 3) + 0.001 * math.sin(5 * k + half), 4)
        points.append(
            point(family, name, round(sent, 1), loss, ms * (1 + 0.1 * k), sends, kl=2 / (1 + (sent / half) ** 2.5))
        )
    return points


def points() -> tuple[Point, ...]:
    """As many as a real evaluation has."""
    return (
        *sweep("splitwire", "n2,n3,n4,n5,e4,n8", 520, 1900, 150, 0.08, "features"),
        point("float32", "", 4 * ELEMENTS, 0.0, 0.01, kl=1e-9),
        point("float16", "", 2 * ELEMENTS, 0.0, 0.02, kl=1e-6),
        point("int8", "", ELEMENTS + 8, 0.0005, 0.03, kl=1e-4),
        *sweep("zstd 3 of packed symbols", "n2,n3,n4,n5,e4,n8", 680, 2600, 190, 0.05, "features"),
        *sweep("zstd 19 of packed symbols", "n2,n3,n4,n5,e4,n8", 640, 2400, 180, 1.9, "features"),
        *sweep("paper, uniform", "n2,n3,n4,n5,n8", 600, 2200, 170, 1.1, "features"),
        *sweep("paper, searched range", "a2,a3,a4", 580, 1800, 165, 1.1, "features"),
        *sweep("paper, ECSQ", "e2,e3,e4", 560, 1500, 160, 1.1, "features"),
        *sweep("paper's coder, our ranges", "r0.5,r0.8", 540, 900, 150, 1.1, "features"),
        *sweep("HEVC of features", "QP 45,QP 40,QP 35,QP 30,QP 25,QP 20", 420, 5200, 330, 14, "features"),
        *sweep("HEVC of features, screen", "QP 45,QP 40,QP 35,QP 30,QP 25,QP 20", 430, 5300, 350, 18, "features"),
        *sweep("JPEG", "q 10,q 25,q 50,q 75,q 90,q 95", 380, 1200, 240, 0.2, "image"),
        *sweep("WebP", "q 10,q 25,q 50,q 75,q 90,q 95", 200, 1000, 190, 1.5, "image"),
        *sweep("AVIF", "q 10,q 25,q 50,q 75,q 90,q 95", 330, 1100, 250, 9, "image"),
        *sweep("HEVC image", "QP 45,QP 40,QP 35,QP 30,QP 25,QP 20", 230, 1000, 200, 5, "image"),
    )  # fmt: skip


def tensor(name: str = "features", seed: int = 0) -> Tensor:
    """Features that nearly follow DENSITY, over 8×8×192."""
    rng = np.random.default_rng(seed)
    right = rng.exponential(1 / (DENSITY.rate * DENSITY.kappa), 200_000)
    left = rng.exponential(DENSITY.kappa / DENSITY.rate, 200_000)
    x = DENSITY.location + np.where(rng.random(200_000) < 1 / (1 + DENSITY.kappa**2), right, -left)
    y = np.where(x >= 0, x, DENSITY.slope * x) * rng.normal(1, 0.05, x.size)
    densities, edges = np.histogram(np.clip(y, -1.5, 18), bins=200, range=(-1.5, 18))
    channels = rng.gamma(2, 0.5, 192)
    return Tensor(
        name=name,
        shape=(192, 8, 8),
        mean=float(y.mean()),
        deviation=float(y.std()),
        minimum=float(y.min()),
        maximum=float(y.max()),
        zeros=0.0,
        edges=tuple(edges.tolist()),
        densities=tuple((densities / densities.sum()).tolist()),
        channel_means=tuple(channels.tolist()),
        channel_deviations=tuple((1 + channels / 2).tolist()),
    )


def design(op: str, n: int, tensor: str = "features") -> Design:
    """Uniform, with the range of the fitted density."""
    return Design(
        op=op,
        tensor=tensor,
        quantizer=Quantizer.uniform(0.0, 4.0 + n, n),
        clipping=Clipping(
            method="leaky_relu_model", ks_distance=0.031, rate=DENSITY.rate, location=DENSITY.location
        ),
    )  # fmt: skip


def picture(seed: int) -> bytes:
    """A PNG."""
    pixels = np.random.default_rng(seed).integers(0, 255, (7, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def evaluation(**changes: object) -> Evaluation:
    """The whole, with `changes` to its fields."""
    fields: dict[str, object] = {
        "created": "2026-11-23T18:00:00+00:00",
        "command": "splitwire evaluate fashion --data test --max-loss 1%",
        "machine": {"architecture": "x86_64", "processor": "Some Processor @ 2.0 GHz", "cores": "2", "python": "3.11.9",
                    "splitwire": "0.1.0", "numpy": "2.3.1", "libx265": "4.1"},
        "model": "small_resnet",
        "cut": "layer2.1.relu",
        "fingerprint": "6f1d2c3b4a596877",
        "elements": ELEMENTS,
        "task": "classes",
        "figure": "top1",
        "data": Data(
            source="test", images=2000, labelled=True, digest="ab" * 32,
            skipped=(("a/broken.jpg", "truncated at byte 812"),),
        ),
        "whole": {
            "top1": Estimate(value=WHOLE, low=0.902, high=0.927),
            "top5": Estimate(value=0.995, low=0.992, high=0.998),
        },
        "points": points(),
        "default_op": "n4",
        "max_loss": 0.01,
        "chosen": "n4",
        "stages": {"front": 3.42, "encode": 0.081, "decode": 0.062, "back": 5.1},
        "tensors": (tensor(),),
        "designs": (design("n2", 2), design("n4", 4), design("n8", 8)),
        "disagreements": tuple(
            Disagreement(name=f"coat/{k:04d}.png", whole="Coat", split="Pullover", target="Coat" if k % 2 else "Shirt",
                         picture=picture(k) if k < 7 else None)
            for k in range(8)
        ),
        "notes": ("one core: OMP_NUM_THREADS=1",),
    }  # fmt: skip
    fields.update(changes)
    return Evaluation(**fields)  # type: ignore[arg-type]  # values of many types
