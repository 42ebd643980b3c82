"""`splitwire edge run` against a server in this process: table, JSON, and what it skips."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runtime_helpers import Pair, Served, make_pair, serving

from splitwire import console
from splitwire.codec.errors import ConnectTimeout, UsageError
from splitwire.commands import edge
from splitwire.runtime_edge.classes import top_classes


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Served]:
    with serving(pair) as running:
        yield running


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures (one in a folder, one with a name that looks like markup), a damaged one, and a text file."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "[bold]b.jpg", "sub/c.PNG"):
        Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(folder / name)
    (folder / "damaged.png").write_bytes((folder / "a.png").read_bytes()[:50])
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_json(served: Served, pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str]):
    edge.run([pictures], front=pair.front, url=served.url, op="n2", top=2, repeat=3, as_json=True)
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert [Path(row["image"]).name for row in document["images"]] == ["[bold]b.jpg", "a.png", "c.PNG"]
    for row in document["images"]:
        assert row["op"] == "n2"
        assert [g["label"] for g in row["top"]] == [f"label {g['index']}" for g in row["top"]]
        assert row["top"][0]["probability"] >= row["top"][1]["probability"] > 0
        assert len(row["top"]) == 2
        assert row["bytes_sent"] > row["frame_bytes"] > 0
        assert row["bits_per_element"] == 8 * row["bytes_sent"] / 256
        assert set(row["ms"]) == {"front", "encode", "network", "decode", "back", "total"}
        assert all(ms > 0 for ms in row["ms"].values())
    (skipped,) = document["skipped"]
    assert skipped["image"].endswith("damaged.png")
    assert "damaged.png" in skipped["reason"]
    assert said.err == f"skipped: {skipped['reason']}\n"
    summary = document["summary"]
    assert (summary["images"], summary["skipped"], summary["op"]) == (3, 1, "n2")


def test_table_fits_a_terminal(
    served: Served, pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(console.out, "width", 80)
    edge.run([pictures / "a.png", pictures / "[bold]b.jpg"], front=pair.front, url=served.url)
    said = capsys.readouterr()
    assert said.err == ""
    assert all(len(line.rstrip()) <= 80 for line in said.out.splitlines()[:-1])
    for words in ("a.png", "[bold]b.jpg", "label", "front", "net", "b/el", "%"):
        assert words in said.out
    last = said.out.splitlines()[-1]
    assert last.startswith("2 images at operating point n4: ")
    assert "bits per element sent" in last


def test_a_file_is_skipped_with_its_reason(
    served: Served, pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str]
):
    files = [pictures / "notes.txt", pictures / "none.png", pictures / "a.png"]
    edge.run(files, front=pair.front, url=served.url)
    said = capsys.readouterr()
    assert f"skipped: {files[0]}: not an image file" in said.err
    assert f"skipped: {files[1]}: no such file" in said.err
    assert "1 image, 2 skipped at operating point n4" in said.out


def test_all_unreadable(served: Served, pair: Pair, pictures: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UsageError, match="none of the 2 files can be read as a picture"):
        edge.run([pictures / "notes.txt", pictures / "damaged.png"], front=pair.front, url=served.url)
    assert capsys.readouterr().err.count("skipped: ") == 2


def test_nothing_to_run(pair: Pair, tmp_path: Path):
    with pytest.raises(UsageError, match="no pictures in"):
        edge.run([tmp_path], front=pair.front, url="http://127.0.0.1:1")


def test_server_down_and_missing_front(pair: Pair, pictures: Path):
    with pytest.raises(ConnectTimeout, match="is `splitwire cloud serve` running there"):
        edge.run([pictures], front=pair.front, url="http://127.0.0.1:1")
    with pytest.raises(UsageError, match="no such file; make it with `splitwire export`"):
        edge.run([pictures], front=pictures / "front.onnx", url="http://127.0.0.1:1")


def test_front_without_preprocessing(tmp_path: Path, pictures: Path):
    pair = make_pair(tmp_path / "pair", pictures=False)
    with pytest.raises(UsageError, match="exported without preprocessing"):
        edge.run([pictures], front=pair.front, url="http://127.0.0.1:1")


def test_top_classes():
    logits = np.array([[1.0, 3.0, 2.0], [9.0, 0.0, 0.0]], np.float32)
    first, second = top_classes({"y": logits}, ("a", "b", "c"), 2)
    assert (first.label, first.index, second.label) == ("b", 1, "c")
    assert first.probability == pytest.approx(np.exp(3) / np.exp([1, 2, 3]).sum())
    probabilities = np.array([[0.25, 0.75]], np.float32)
    assert [g.probability for g in top_classes({"y": probabilities}, None, 5)] == [0.75, 0.25]
    assert top_classes({"y": probabilities}, ("one", "two", "three"), 1)[0].label == "class 1"
    assert top_classes({"boxes": np.zeros((1, 5, 4), np.float32)}, None, 3) == []
    both = {"best": np.array([1]), "y": logits}
    assert top_classes(both, None, 1)[0].index == 1
