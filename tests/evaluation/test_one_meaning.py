"""Bytes per image are those of the frame, wherever they are printed; what crossed the socket has another name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from runtime_helpers import make_pair, serving
from typer.testing import CliRunner

import splitwire
from splitwire.cli import app
from splitwire.codec import preprocessing
from splitwire.codec.codec import FeatureCodec
from splitwire.evaluation import run
from splitwire.runtime_edge.graph import open_front
from splitwire.runtime_edge.transport import HttpTransport


def test_the_same_image_and_point_have_the_same_bytes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "write_report", lambda evaluation, out: None)
    pair = make_pair(tmp_path / "pair")
    pixels = np.random.default_rng(5).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(pixels).save(tmp_path / "pictures" / "one.png")

    front = open_front(tmp_path / "pair" / "front.onnx")
    assert front.profile.preprocessing is not None
    x = preprocessing.apply(Image.fromarray(pixels), front.profile.preprocessing)[None]
    frame = FeatureCodec(front.profile).encode(front.run(x).features, op="n2")

    with serving(pair) as server:
        with splitwire.EdgeSession(tmp_path / "pair" / "front.onnx", transport=HttpTransport(server.url)) as session:
            result = session.infer(x, op="n2")
        arguments = [str(tmp_path / "pictures" / "one.png"), "--front", str(tmp_path / "pair" / "front.onnx")]
        shown = CliRunner().invoke(app, ["edge", "run", *arguments, "--url", server.url, "--op", "n2", "--json"])
    assert shown.exit_code == 0, shown.output
    row = json.loads(shown.stdout.splitlines()[0])
    evaluation = splitwire.evaluate(tmp_path / "pair", tmp_path / "pictures", contenders=[])
    (point,) = (p for p in evaluation.points if p.setting == "n2")

    assert {result.frame_bytes, row["frame_bytes"], int(point.bytes)} == {len(frame)}
    rates = {result.bits_per_element, row["bits_per_element"], point.bits_per_element}
    assert rates == {8 * len(frame) / point_elements(front)}
    assert result.bytes_sent > result.frame_bytes
    assert row["bytes_sent"] > row["frame_bytes"]


def point_elements(front) -> int:
    return sum(int(np.prod(t.shape)) for t in front.profile.tensors)
