"""`[model] back`: the service opens the back half; tests/edge/stream/test_fallback.py has what it answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from runtime_helpers import Pair

from splitwire.codec.errors import UsageError
from splitwire.commands.edge.link import LocalBack
from splitwire.commands.edge.serve import open_fallback
from splitwire.runtime_edge.service.config import EdgeConfig, load_config
from splitwire.runtime_edge.service.parts import Problems, prepare


def config(pair: Pair, back: str, tmp_path: Path) -> EdgeConfig:
    file = tmp_path / "edge.toml"
    file.write_text(
        f"""
[model]
front = {str(pair.front)!r}
back = {back!r}
[server]
url = "http://127.0.0.1:1"
[source]
uri = {str(tmp_path)!r}
watch = true
""",
        encoding="utf-8",
    )
    return load_config(file, {})


def test_a_service_opens_it(pair: Pair, tmp_path: Path):
    made = prepare(config(pair, str(pair.back), tmp_path), lambda event: None, open_fallback=open_fallback)
    made.source.close()
    made.session.close()
    assert isinstance(made.fallback, LocalBack)
    plain = prepare(config(pair, "", tmp_path), lambda event: None, open_fallback=open_fallback)
    plain.source.close()
    plain.session.close()
    assert plain.fallback is None


def test_a_back_half_that_is_none_is_one_line(pair: Pair, tmp_path: Path):
    for back, said in ((str(pair.front), "front half"), (str(tmp_path / "none.onnx"), "none.onnx")):
        with pytest.raises(Problems) as caught:
            prepare(config(pair, back, tmp_path), lambda event: None, open_fallback=open_fallback)
        (line,) = caught.value.lines
        assert line.startswith("[model] back: ")
        assert said in line
    with pytest.raises(UsageError, match="does not run back halves"):
        prepare(config(pair, str(pair.back), tmp_path), lambda event: None)
