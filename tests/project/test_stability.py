"""docs/stability.md against the code: versions of formats, commands, keys of JSON, exit statuses."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec
import pytest
import typer.main
from typer.core import TyperGroup

from splitwire import cli, closing
from splitwire.codec import drift, errors, profile
from splitwire.codec.entropy import MOST_LANES
from splitwire.codec.shared import device
from splitwire.codec.warmup import WarmUp
from splitwire.codec.wire import batch, frame, reply, sizes
from splitwire.commands import evaluate
from splitwire.evaluation.answer.compare import Comparison
from splitwire.evaluation.answer.results import Evaluation

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")

ERROR_CODES = {
    "SplitwireError": "error",
    "UsageError": "usage",
    "ExportError": "export",
    "CutNotBounded": "cut_not_bounded",
    "UnsupportedModel": "unsupported_model",
    "ProfileError": "profile",
    "FingerprintMismatch": "fingerprint_mismatch",
    "FeatureError": "features",
    "NonFiniteFeatures": "non_finite_features",
    "ShapeMismatch": "shape_mismatch",
    "BitstreamError": "bitstream",
    "Truncated": "truncated",
    "Corrupt": "corrupt",
    "UnsupportedVersion": "unsupported_version",
    "LimitExceeded": "limit_exceeded",
    "TransportError": "transport",
    "ConnectTimeout": "connect_timeout",
    "DeadlineExceeded": "deadline_exceeded",
    "RequestTimeout": "request_timeout",
    "CircuitOpen": "circuit_open",
    "UnknownModel": "unknown_model",
    "ServerBusy": "server_busy",
    "AuthRefused": "auth_refused",
    "Forbidden": "forbidden",
    "BadResponse": "bad_response",
    "DeviceError": "device",
    "SpoolError": "spool",
    "SpoolFull": "spool_full",
}
"""Of 0.1. A code that is here stays."""


def rows(heading: str) -> dict[str, list[str]]:
    """The first column of the table with this heading → the others."""
    lines = PAGE[PAGE.index(heading) :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {first: others for first, *others in cells}


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def commands(group: TyperGroup, above: str) -> set[str]:
    found = set()
    for name, command in group.commands.items():
        found |= commands(command, f"{above} {name}") if isinstance(command, TyperGroup) else {f"{above} {name}"}
    return found


def test_versions_of_the_formats():
    said = {name: re.findall(r"[\d.]+", version) for name, (version, *_) in rows("| format |").items()}
    minors = sorted({0, frame.SHORT, *frame.MINOR_OF_CODER.values()})
    assert said == {
        "frame": [f"{frame.MAJOR}.{minor}" for minor in minors],
        "coder ids": [str(i) for i in sorted({sizes.CODER_ID, *MOST_LANES})],
        "profile": [str(profile.FORMAT)],
        "reply": [str(reply.REPLY_VERSION), str(reply.CHECKED_VERSION)],
        "batch": [str(batch.VERSION)],
        "limits of drift": [str(drift.FORMAT)],
        "device profile": [str(device.FORMAT)],
    }


def test_codes_of_errors_stay():
    for name, expected in ERROR_CODES.items():
        assert getattr(errors, name).code == expected
    found = {e.code for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.SplitwireError)}
    assert found == set(ERROR_CODES.values()), "a new error: add its code to ERROR_CODES"


def test_every_command_is_listed():
    app = typer.main.get_command(cli.app)
    assert isinstance(app, TyperGroup)
    assert {code(first)[0] for first in rows("| command |")} == commands(app, "splitwire")


def test_exit_statuses():
    said = {int(status) for status in rows("| exit status |")}
    raised = {
        e.exit_status for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.SplitwireError)
    }
    assert said == {0, *raised, evaluate.NOTHING_WITHIN, closing.INTERRUPTED, closing.CLOSED_PIPE}
    text = (ROOT / "docs/command.md").read_text(encoding="utf-8")
    assert {int(status) for status in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)} == said


def returned(path: str, function: str) -> list[str]:
    """Keys of the dict that a function returns."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    body = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
    made = next(n.value for n in ast.walk(body) if isinstance(n, ast.Return))
    assert isinstance(made, ast.Dict)
    return [key.value for key in made.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]


def fields(kind: type[msgspec.Struct]) -> list[str]:
    return list(kind.__struct_fields__)


KEYS = {
    "splitwire export": returned("splitwire/commands/export/report.py", "document"),
    "splitwire plan": returned("splitwire/commands/plan/command.py", "document"),
    "splitwire compare": fields(Comparison),
    "splitwire models": returned("splitwire/commands/models.py", "_as_map"),
    "splitwire doctor": returned("splitwire/commands/doctor.py", "document"),
    "splitwire warmup": fields(WarmUp),
}


@pytest.mark.parametrize("command", KEYS)
def test_keys_of_json(command: str):
    assert code(rows("| command |")[f"`{command}`"][0]) == KEYS[command]


def test_keys_of_evaluate():
    keys = code(rows("| command |")["`splitwire evaluate`"][0])
    assert keys == ["results", "report", "results.json", *evaluate.OMITTED]
    assert set(evaluate.OMITTED) < set(fields(Evaluation))
