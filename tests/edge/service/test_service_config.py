"""The configuration file of `splitwire edge serve`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from splitwire.codec.errors import UsageError
from splitwire.runtime_edge.service.config import EdgeConfig, OutletSection, load_config

PAGE = Path(__file__).parents[3] / "docs" / "deploy" / "configuration.md"
SMALLEST = """
[model]
front = "front.onnx"
[server]
url = "http://cloud:8500"
[source]
uri = "rtsp://camera/1"
"""


def load(tmp_path: Path, text: str, **environment: str) -> EdgeConfig:
    path = tmp_path / "edge.toml"
    path.write_text(text)
    return load_config(path, environment)


def test_the_smallest_file_has_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST)
    assert (config.model.front, config.server.url, config.source.uri) == (
        "front.onnx", "http://cloud:8500", "rtsp://camera/1",
    )  # fmt: skip
    assert config.source.policy == "drop-oldest" and config.spool.path == "" and config.outlet[0].kind == "stdout"


def test_every_key_can_be_set(tmp_path: Path) -> None:
    """Each key of each section takes its default, written out."""
    text = SMALLEST
    for field in msgspec.structs.fields(EdgeConfig):
        if field.name in ("model", "server", "source", "outlet"):
            continue
        values: dict[str, Any] = msgspec.to_builtins(field.default)
        text += f"\n[{field.name}]\n" + "".join(f"{k} = {msgspec.json.encode(v).decode()}\n" for k, v in values.items())
    assert load(tmp_path, text) == load(tmp_path, SMALLEST)


@pytest.mark.parametrize(
    ("addition", "says"),
    [
        ("[spol]\n", "unknown section [spol]; there are model, server"),
        ("[spool]\npth = 'x'\n", "[spool] has no key 'pth'; it has path, tier"),
        ("[spool]\ntier = 'safe'\n", "[spool] tier: invalid enum value 'safe'"),
        ("[spool]\nmax_mb = -1\n", "[spool] max_mb: expected `float` > 0.0"),
        ("[rate]\ntarget_ms = 'fast'\n", "[rate] target_ms: expected `float`, got `str`"),
        ("[[outlet]]\nkind = 'file'\n", "[[outlet]] of kind 'file' needs a target"),
        ("[[outlet]]\nkind = 'stdout'\ntarget = 'x'\n", "[[outlet]] of kind 'stdout' takes no target"),
        ("[[outlet]]\nkind = 'stdout'\ncolour = 1\n", "[outlet] has no key 'colour'"),
        ("spool = 3\n", "is not TOML|cannot"),
        ("[[spool]]\n", "[spool] : expected `object`, got `array`"),
        ("[log\n", "is not TOML"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path: Path, addition: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, SMALLEST + addition)
    message = str(caught.value)
    assert "edge.toml" in message and "\n" not in message
    assert any(part.replace(" :", ":") in message.replace(" :", ":") for part in says.split("|")) or (
        addition == "spool = 3\n"
    ), message


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing required field `url`"):
        load(tmp_path, SMALLEST.replace('url = "http://cloud:8500"', ""))
    with pytest.raises(UsageError, match=r"no such file.*; give the path"):
        load_config(tmp_path / "none.toml", {})
    with pytest.raises(UsageError, match=r"cert and key go together"):
        load(tmp_path, SMALLEST, SPLITWIRE_EDGE_SERVER_CERT="cert.pem")


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    config = load(
        tmp_path, SMALLEST + "[spool]\nmax_mb = 5.0\n",
        SPLITWIRE_EDGE_SPOOL_MAX_MB="7.5", SPLITWIRE_EDGE_SERVER_TOKEN_FILE="/run/token",
        SPLITWIRE_EDGE_DRIFT_WATCH="0",
        SPLITWIRE_OTHER="ignored",
    )  # fmt: skip
    assert (config.spool.max_mb, config.server.token_file, config.drift.watch) == (7.5, "/run/token", False)
    only = load(tmp_path, "", **{
        f"SPLITWIRE_EDGE_{k}": v
        for k, v in (("MODEL_FRONT", "f.onnx"), ("SERVER_URL", "http://c"), ("SOURCE_URI", "pictures"))
    })  # fmt: skip
    assert only.model.front == "f.onnx"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SPLITWIRE_EDGE_SPOOL_SIZE", "1", "[spool] has no key 'size'"),
        ("SPLITWIRE_EDGE_COLOUR_RED", "1", "is of no section"),
        ("SPLITWIRE_EDGE_SPOOL_MAX_MB", "much", "SPLITWIRE_EDGE_SPOOL_MAX_MB='much': expected `float`"),
    ],
)
def test_wrong_variables_are_refused(tmp_path: Path, name: str, value: str, says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        load(tmp_path, SMALLEST, **{name: value})


def test_the_page_has_every_key_with_its_default() -> None:
    page = PAGE.read_text(encoding="utf-8")
    tables = dict(re.findall(r"## `\[+(\w+)\]+`\n(.*?)(?=\n## |\Z)", page, re.DOTALL))
    sections = {f.name: f.type for f in msgspec.structs.fields(EdgeConfig)} | {"outlet": OutletSection}
    assert list(tables) == list(sections)
    for name, section in sections.items():
        described = re.findall(r"^\| `(\w+)` \| (.*?) \|", tables[name], re.MULTILINE)
        expected = [
            (f.encode_name, "required" if f.required else "`" + msgspec.json.encode(f.default).decode() + "`")
            for f in msgspec.structs.fields(section)
        ]
        assert described == expected, name
