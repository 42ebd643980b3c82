"""What every command prints, in any encoding and width, into closed pipes and full disks; Ctrl-C; progress in a log."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from evaluations import evaluation
from exporter_helpers import write_images
from runtime_helpers import make_pair, serving

import splitwire
from splitwire import cli, console, heartbeat
from splitwire.codec.kernels.compilation.cache import Loaded
from splitwire.codec.shared.device import DeviceProfile
from splitwire.codec.shared.text import printable
from splitwire.codec.warmup import WarmUp
from splitwire.demo import fashion
from splitwire.exporter.calibration.checkpoint import NAME, Checkpoint

pytestmark = pytest.mark.slow

ENCODINGS = ("ascii", "latin-1", "cp1252", "cp437", "cp932")
WIDTHS = (60, 40)
ODD = os.fsdecode(b"caf\xe9.png")
"""A name that is not UTF-8, as an archive from an old system unpacks it."""

needs_such_names = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names there are Unicode")


@dataclass(frozen=True)
class Printed:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Place:
    """A folder with a pair, pictures, a network and an evaluation; url: of a server of the pair."""

    folder: Path
    url: str
    made: dict[str, object]

    def arguments(self, command: str) -> list[str]:
        """Of a run that prints a table."""
        front, images = self.folder / "pair" / "front.onnx", self.folder / "images"
        return {
            "models": [],
            "models NAME": ["fashion_squeezenet1_1"],
            "export": ["net.onnx", "--cut", "layer1", "--data", str(images)],
            "plan": ["net.onnx", "--no-plot"],
            "evaluate": [str(self.folder / "pair"), "--data", str(images)],
            "compare": [str(self.folder / "pair")],
            "edge run": ["--front", str(front), "--url", self.url, str(images)],
            "edge profile": ["--out", str(self.folder / "device.json")],
            "cloud serve": [str(self.folder / "pair")],
            "demo": ["--out", str(self.folder / "demo")],
            "warmup": [],
        }[command]


COMMANDS = (
    *("models", "models NAME", "export", "plan", "evaluate", "compare"),
    *("edge run", "edge profile", "cloud serve", "demo", "warmup"),
)
WITH_TABLE = tuple(c for c in COMMANDS if c != "cloud serve")


def summary() -> fashion.Summary:
    ms = dict.fromkeys(fashion.STAGES, 1.25)
    points = [
        fashion.Point(
            op=op,
            accuracy=0.9125,
            bits_per_element=0.31,
            bytes_per_image=134.0,
            sent_bytes_per_image=268.0,
            ms=ms,
        )
        for op in ("q1", "q4", "q8")
    ]
    baselines = fashion.Baselines(float32_bytes=13824.0, float32_accuracy=0.92, jpeg_bytes=1203.0, jpeg_accuracy=0.91)
    return fashion.Summary(
        model="fashion_squeezenet1_1", cut="features.10", feature_shape=(384, 3, 3), images=10_000,
        whole=fashion.Whole(accuracy=0.92), float_agreement=10_000, default_op="q4", points=points, ms=ms,
        baselines=baselines, seconds={"export": 12.0},
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("text")
    images = folder / "images"
    first, *_ = write_images(images, 5, classes=1)
    if sys.platform not in ("win32", "darwin"):
        first.rename(first.with_name(ODD))
        (images / ODD).write_bytes(b"no picture")
    measured = DeviceProfile(
        name="here", source="measured", conv_macs=1e9, matmul_macs=1e9, depthwise_macs=1e9, elementwise_bytes=1e9,
        weight_bytes=1e9, node_overhead_us=2.5, encode_elements=1e7, decode_elements=1e7, jpeg_encode_pixels=1e7,
        jpeg_decode_pixels=1e7, note="4 threads · quiet",
    )  # fmt: skip
    kernel = Loaded(
        kernel="encode", signature="(array(uint8, 2d, C), int64)", milliseconds=812.0, cached=False, path=""
    )
    exported = splitwire.export(model, cut="layer1", calibration=images, out=folder / "made", levels=(2, "r0.5"))
    made = {
        "export": exported,
        "plan": splitwire.plan(model, data=images, link="5mbit"),
        "evaluate": evaluation(),
        "profile": measured,
        "demo": summary(),
        "warmup": WarmUp(folder="kernels", kernels=(kernel,), bytes=2_000_000, seconds=1.5),
    }
    pair = make_pair(folder / "pair")
    with serving(pair) as server:
        yield Place(folder=folder, url=server.url, made=made)


@pytest.fixture
def run(place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Printed]:
    """Run a command in this process, as `main` does. Long work gives back what the fixture made once."""

    def giving(name: str) -> Callable[..., object]:
        return lambda *_, **__: place.made[name]

    def serve(_: object, *, on_ready: Callable[[str], None], **__: object) -> int:
        on_ready("http://127.0.0.1:8500")
        return 0

    monkeypatch.setattr("splitwire.exporting.export", giving("export"))
    monkeypatch.setattr("splitwire.planning.plan", giving("plan"))
    monkeypatch.setattr("splitwire.evaluation.run.evaluate", giving("evaluate"))
    monkeypatch.setattr("splitwire.evaluation.answer.results.evaluation_folder", lambda path: path)
    monkeypatch.setattr("splitwire.evaluation.answer.results.read_results", giving("evaluate"))
    monkeypatch.setattr("splitwire.runtime_edge.device.measure_device", giving("profile"))
    monkeypatch.setattr("splitwire.runtime_cloud.engines.process.serve", serve)
    monkeypatch.setattr("splitwire.runtime_cloud.engines.process.log_to_stderr", lambda: None)
    monkeypatch.setattr("splitwire.codec.warmup.warm_up", giving("warmup"))
    monkeypatch.setattr("splitwire.demo.fashion.run", giving("demo"))
    monkeypatch.setattr("splitwire.demo.report.write_plot", lambda *_: None)

    def invoke(*arguments: str, encoding: str = "utf-8", columns: int = 100) -> Printed:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["splitwire", *arguments])
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = (s.buffer.getvalue().decode(encoding) for s in streams)
        assert isinstance(ended.value.code, int)
        return Printed(ended.value.code, out, err)

    return invoke


def words(command: str) -> list[str]:
    return command.removesuffix(" NAME").split()


IN_ASCII = {"·": "|", "–": "-", "…": "...", "×": "x", "→": "->", "µ": "u", "⁹": "^9"}
LINES = re.compile(r"[\s\-|+=_\u2500-\u257f]+")


def squeezed(text: str) -> str:
    """What a text says, without spaces and lines; milliseconds, which differ from run to run, are equal."""
    return LINES.sub("", re.sub(r"\d+\.\d\d\b", "0.00", text.replace("|", "")))


# Encodings


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_encoding_says_the_same(run, place: Place, command: str, encoding: str) -> None:
    arguments = [*words(command), *place.arguments(command)]
    if command == "edge run":
        arguments = ["edge", "run", "--help"]  # its times differ; it has a test below
    whole, shown = (run(*arguments, encoding=e, columns=240) for e in ("utf-8", encoding))
    assert (shown.status, whole.status) == (0, 0)
    expected = whole.out
    for character, plain in IN_ASCII.items():
        if character.encode(encoding, "ignore") == b"":
            expected = expected.replace(character, plain)
    assert squeezed(shown.out) == squeezed(expected)
    assert len(squeezed(expected)) > 40


@pytest.mark.parametrize("command", [*COMMANDS, ""])
def test_help_in_ascii(run, command: str) -> None:
    """In boxes whose right edge is straight, and in narrow terminals without any."""
    boxed = run(*words(command), "--help", encoding="ascii", columns=100)
    assert boxed.status == 0
    assert {len(line) for line in boxed.out.splitlines() if line[:1] in ("|", "+")} == {100}
    for width in WIDTHS:
        plain = run(*words(command), "--help", encoding="ascii", columns=width)
        assert max(len(line.rstrip()) for line in plain.out.splitlines()) <= width + 2  # where click breaks a word
        assert not stacked(plain.out)
        options = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", boxed.out))
        assert options <= set(re.findall(r"--[a-z][a-z-]*", plain.out))


def test_edge_run_in_ascii(run, place: Place) -> None:
    shown = run("edge", "run", *place.arguments("edge run"), encoding="ascii")
    assert shown.status == 0, shown.err
    assert "001.png" in shown.out
    assert sys.platform in ("win32", "darwin") or r"caf\xe9.png" in shown.out
    assert "?" not in shown.out


@needs_such_names
@pytest.mark.parametrize("encoding", ["utf-8", *ENCODINGS])
def test_names_that_are_not_utf8(run, place: Place, encoding: str) -> None:
    """Readable in messages; in JSON they stand for the same bytes."""
    shown = run("edge", "run", *place.arguments("edge run"), encoding=encoding)
    assert r"caf\xe9.png: not an image" in shown.err
    document = run("edge", "run", *place.arguments("edge run"), "--json", encoding=encoding)
    assert rb"caf\udce9.png" in document.out.encode(encoding)
    names = re.findall(r'"[^"]*\\udce9\.png"', document.out)
    assert os.fsencode(json.loads(names[0])).endswith(b"/caf\xe9.png")
    exported = run("export", *place.arguments("export"), "--json", encoding=encoding)
    assert os.fsencode(json.loads(exported.out)["skipped"][0]["path"]).endswith(b"/caf\xe9.png")


@pytest.mark.parametrize("command", ["models", "export", "plan", "evaluate", "compare", "demo", "edge profile"])
def test_json_is_the_same_in_ascii(run, place: Place, command: str) -> None:
    arguments = [*words(command), *place.arguments(command), "--json"]
    whole, shown = run(*arguments), run(*arguments, encoding="ascii")
    assert shown.status == 0
    assert json.loads(shown.out) == json.loads(whole.out)


def test_json_beyond_the_first_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    value = {"é": '日本 😀 \\ "', "odd": ODD, "number": float("nan"), "more": (1, [2.5, float("inf")])}
    console.print_json(value, indent=None)
    said = stream.buffer.getvalue()
    assert said.isascii()
    assert said.count(b"\n") == 1
    assert json.loads(said) == {"é": value["é"], "odd": ODD, "number": None, "more": [1, [2.5, None]]}


def test_printable() -> None:
    assert printable("x × y") == "x × y"
    assert printable(ODD) == r"caf\xe9.png"
    assert printable("a\ud800") == r"a\ud800"


# Widths


def stacked(text: str) -> bool:
    """Whether letters stand below each other: four lines in a row with next to nothing in them."""
    short = "".join("s" if 0 < len(line.strip()) <= 3 else "-" for line in text.splitlines())
    return "ssss" in short


def test_stacked_finds_them() -> None:
    assert stacked("net\n  f\n  e\n  a\n  t\n")
    assert not stacked("net\nfeatures.1\nn2\nn4\n\n")


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("command", WITH_TABLE)
def test_narrow_tables(run, place: Place, command: str, columns: int) -> None:
    wide = run(*words(command), *place.arguments(command), columns=200)
    shown = run(*words(command), *place.arguments(command), columns=columns)
    assert shown.status == 0, shown.err
    rows = [line for line in shown.out.splitlines() if re.search(r"\S {2,}\S.* {2,}\S", line)]
    assert max((len(line.rstrip()) for line in rows), default=0) <= columns
    assert not stacked(shown.out)
    assert not re.search(r"\w…|…\w", shown.out), "a cell is cut off"
    first = [m[1] for line in wide.out.splitlines() if (m := re.match(r"[ │]?\s?(\w\S*)( +│| {2,}\S)", line))]
    assert first
    assert [name for name in first if name not in shown.out.replace("\n", "")] == []


def test_what_is_left_out_is_named(run) -> None:
    assert "GMAC" in run("models", columns=100).out
    shown = run("models", columns=50).out
    assert "not shown in 50 columns: GMAC, M" in " ".join(shown.split())


# Pipes, disks, Ctrl-C


def started(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-m", "splitwire", *arguments], stderr=subprocess.PIPE, text=True, encoding="utf-8", **options
    )
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE")
def test_closed_pipe() -> None:
    """Nobody reads: silent, and the status that a shell gives for SIGPIPE."""
    commands = (["models"], ["export", "--help"], ["models", "--json"])
    running = []
    for command in commands:
        ours, theirs = os.pipe()
        os.close(ours)
        running.append(started(*command, stdout=theirs))
        os.close(theirs)
    for process in running:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk() -> None:
    with Path("/dev/full").open("w") as full:
        running = [started(*command, stdout=full) for command in (["models", "resnet18"], ["models", "--json"])]
    for process in running:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (1, "error: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "x.onnx"), "error: x.onnx: Permission denied\n"),
        (OSError(5, "Input/output error"), "error: Input/output error\n"),
        (FileExistsError(17, "File exists", b"caf\xe9", None, "b"), "error: caf\\xe9 and b: File exists\n"),
    ],
)
def test_errors_of_the_system_are_one_line(run, place: Place, monkeypatch, error: OSError, line: str) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("splitwire.exporting.export", failing)
    shown = run("export", *place.arguments("export"))
    assert (shown.status, shown.err) == (1, line)


@pytest.mark.parametrize(
    ("command", "work", "line"),
    [
        ("plan", "planning.plan", "interrupted; nothing was written\n"),
        ("export", "exporting.export", "interrupted; nothing of it was written; run it again\n"),
        (
            "evaluate",
            "evaluation.run.evaluate",
            "interrupted; the same command goes on after the last finished batch\n",
        ),
        ("demo", "demo.fashion.run", "interrupted; no summary was written; run it again\n"),
        (
            "warmup",
            "codec.warmup.warm_up",
            "interrupted; the kernels compiled so far are kept; the same command goes on\n",
        ),
    ],
)
def test_ctrl_c(run, place: Place, monkeypatch, command: str, work: str, line: str) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"splitwire.{work}", stopped)
    shown = run(*words(command), *place.arguments(command))
    assert (shown.status, shown.err) == (130, line)


def test_ctrl_c_after_a_checkpoint(run, place: Place, monkeypatch, tmp_path: Path) -> None:
    def stopped(*_: object, **__: object) -> None:
        with Checkpoint(tmp_path, "key"):
            (tmp_path / NAME).write_bytes(b"the state")
            raise KeyboardInterrupt

    monkeypatch.setattr("splitwire.exporting.export", stopped)
    shown = run("export", *place.arguments("export"), columns=300)
    kept = f"interrupted; {tmp_path} keeps the calibration so far, and the same command goes on with it\n"
    assert (shown.status, shown.err) == (130, kept)


# Progress


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (("Calibrate", 120, 512, 0.0, 0, 30.0), "Calibrate: 120 of 512, 1 min 38 s left"),
        (("Calibrate", 1200, 2000, 0.0, 1000, 30.0), "Calibrate: 1,200 of 2,000, 2 min left"),
        (("Calibrate", 0, 512, 5.0, 0, 30.0), "Calibrate: 0 of 512, 25 s"),
        (("Export to ONNX", 0, None, 0.0, 0, 8000.0), "Export to ONNX: 2 h 13 min"),
        (("Images", 7, None, 0.0, 0, 10.0), "Images: 7 so far, 10 s"),
    ],
)
def test_lines_of_progress(state: tuple[str, int, int | None, float, int, float], expected: str) -> None:
    assert heartbeat.line(*state) == expected


def test_progress_without_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A stage that reports once is heard of again and again; with --json, nothing is."""
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.02)
    for enabled in (True, False):
        with console.progress_bar(enabled) as progress:
            progress("Sensitivity", 3, 10)
            time.sleep(0.15)
        lines = capsys.readouterr().err.splitlines()
        assert (len(lines) >= 2) is enabled
        assert all(line.startswith("Sensitivity: 3 of 10") for line in lines)


# What Python prints


def test_results_print_as_summaries(place: Place) -> None:
    exported = str(place.made["export"])
    assert re.match(r"\w+ cut after layer1: 512 elements, calibrated on \d images\n  n2    \d\.\d+ bits per ", exported)
    assert exported.endswith(f"front.onnx, back.onnx in {place.folder / 'made'}")
    assert re.fullmatch(
        r"<ExportResult \w+ after layer1: n2, r0.5; default \S+; in .*made>", repr(place.made["export"])
    )
    assert "\nadvice: " in str(place.made["plan"])
    assert "whole network" in str(place.made["evaluate"])
    for result in place.made.values():
        assert len(repr(result)) < 4000
        assert len(str(place.made["plan"])) < 1000
