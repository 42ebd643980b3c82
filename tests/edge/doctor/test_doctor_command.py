"""`splitwire doctor`: the page, JSON, exit status, and that the command itself imports no wheel that could end it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from splitwire import console
from splitwire.cli import app
from splitwire.codec.errors import UsageError
from splitwire.commands import doctor
from splitwire.runtime_edge import doctor as package
from splitwire.runtime_edge.doctor import Check, Prediction, Questions, Report

POINT = Prediction(
    op="n4", bits_per_element=1.5, frame_bytes=1234, encode_ms=0.25, device_fps=250.0, link_fps=12.5, fps=12.5
)
LONG = "what was found takes a whole sentence, with words and figures such as 1,234 bytes, and does not fit one line"
REPORT = Report(
    checks=(
        Check(part="machine", name="processor", verdict="ok", text="a processor"),
        Check(part="machine", name="sqlite", verdict="note", text=LONG, remedy=f"do something: {LONG}"),
        Check(part="power", name="throttling", verdict="warning", text="now: undervoltage", remedy="[another] supply"),
        Check(part="runtime", name="onnxruntime", verdict="failed", text="it died", remedy="take another version"),
        Check(part="server", name="address", verdict="skipped", text="--url names the server to look at"),
    ),
    predictions=(POINT,),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Questions]:
    """What the command asks; the answer is REPORT."""
    questions: list[Questions] = []

    def examine(question: Questions, progress: object = None) -> Report:
        questions.append(question)
        return REPORT

    monkeypatch.setattr(package, "examine", examine)
    return questions


@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_the_page_fits(asked: list[Questions], monkeypatch: pytest.MonkeyPatch, width: int):
    monkeypatch.setattr(console.out, "width", width)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(result.stdout.split())
    assert "warning throttling now: undervoltage → [another] supply" in words
    assert f"note sqlite {LONG} → do something: {LONG}" in words
    assert "5 checks: 1 ok, 1 note, 1 warning, 1 failed, 1 skipped" in words
    assert [line for line in lines if line in {"Machine", "Power", "Runtime", "Server"}] == [
        "Machine", "Power", "Runtime", "Server",
    ]  # fmt: skip
    if width >= 80:
        assert "n4 1.500 1,234 0.25 250 12.5 12.5" in words


def test_json(asked: list[Questions]):
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["exit_status"] == 1
    assert document["counts"] == {"ok": 1, "note": 1, "warning": 1, "failed": 1, "skipped": 1}
    assert document["checks"][2]["remedy"] == "[another] supply"
    assert document["predictions"][0]["link_fps"] == 12.5


def test_options(asked: list[Questions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "token").write_text("secret\n")
    front = tmp_path / "front.onnx"
    options = ["--front", str(front), "--url", "http://x:1", "--link", "5Mbit", "--provider", "cpu", "--threads", "2"]
    CliRunner().invoke(app, ["doctor", *options, "--token-file", str(tmp_path / "token")])
    expected = Questions(front=front, url="http://x:1", token="secret", bits_per_second=5e6, provider="cpu", threads=2)
    assert asked == [expected]
    monkeypatch.setenv("SPLITWIRE_TOKEN", "other")
    CliRunner().invoke(app, ["doctor"])
    assert asked[1].token == "other"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--link", "fast"], "--link takes a bandwidth"),
        (["--token", "a", "--token-file", "b"], "give one of them"),
        (["--token-file", "/no/such"], "no token can be read"),
        (["--token", "a b"], "printable ASCII without spaces"),
        (["--ca", "/no/such"], "no certificates in PEM"),
    ],
)
def test_wrong_options(asked: list[Questions], options: list[str], said: str):
    result = CliRunner().invoke(app, ["doctor", *options])
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)
    assert asked == []


def test_a_front_that_is_not_there():
    result = CliRunner().invoke(app, ["doctor", "--front", "/no/such/front.onnx"])
    assert isinstance(result.exception, UsageError)
    assert "no such file; --front takes" in str(result.exception)


def test_a_link_does_not_show_where_no_front_is_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    doctor._print(Report(checks=REPORT.checks[:1]))
    assert "fps" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_imports_no_wheel_of_machine_code():
    """One that does not fit the processor would end it: only children import them."""
    code = """
import sys
from splitwire.cli import app
try:
    app(["doctor", "--json"], prog_name="splitwire")
except SystemExit as e:
    status = e.code
bad = {"numpy", "numba", "llvmlite", "onnxruntime", "PIL"} & set(sys.modules)
print(f"status {status}, imported {sorted(bad)}", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stderr.splitlines()[-1].endswith("imported []")
    document = json.loads(done.stdout)
    assert document["counts"]["failed"] == document["exit_status"] == 0, document


def test_the_commands_start_without_machine_code():
    """No command may import NumPy or the like at its top: `splitwire doctor` would not start either."""
    code = "import sys, splitwire.cli, splitwire.runtime_edge.doctor; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert [name for name in ("numpy", "numba", "llvmlite", "onnxruntime", "PIL") if f"'{name}'" in done.stdout] == []
