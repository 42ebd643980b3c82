"""The files of examples/edge and the pages of docs/deploy."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from splitwire.runtime_edge.service.config import load_config

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "edge"


def test_the_example_configuration_is_read() -> None:
    config = load_config(EXAMPLES / "edge.toml", {})
    assert config.spool.path and config.source.watch and config.log.format == "json"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze, of Debian's systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "splitwire-edge.service"
    text = (EXAMPLES / unit.name).read_text()
    unit.write_text(text.replace("/opt/splitwire/bin/splitwire", shutil.which("true") or "/bin/true"))
    run = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0 and unit.name not in run.stderr, run.stderr


def test_the_unit_tells_systemd_what_the_service_does() -> None:
    """Notification, watchdog, reload and a drain longer than the frames in flight need."""
    unit = dict(re.findall(r"^(\w+)=(.*)$", (EXAMPLES / "splitwire-edge.service").read_text(), re.MULTILINE))
    assert unit["Type"] == "notify" and int(unit["WatchdogSec"]) > 0 and "HUP" in unit["ExecReload"]
    assert int(unit["TimeoutStopSec"]) > load_config(EXAMPLES / "edge.toml", {}).server.deadline_s
    assert unit["DynamicUser"] == "yes" and unit["NoNewPrivileges"] == "yes" and unit["ProtectSystem"] == "strict"


def test_the_container_has_the_folders_of_the_configuration() -> None:
    docker, compose = ((EXAMPLES / name).read_text() for name in ("Dockerfile", "compose.yaml"))
    instructions = re.findall(r"^([A-Z]+) ", docker, re.MULTILINE)
    assert instructions[0] == "FROM" and {"USER", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT"} <= set(instructions)
    config = load_config(EXAMPLES / "edge.toml", {})
    mounted = re.findall(r"- [\w./]+:(/[\w/]+)", compose)
    for path in (config.model.front, config.spool.path, config.outlet[0].target):
        assert any(path.startswith(folder) for folder in mounted), path
    assert config.metrics.listen in docker


def test_the_container_is_trimmed_by_the_commands_of_the_page() -> None:
    page = (ROOT / "docs" / "startup.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ ((?:cd|find) .*)$", page, re.MULTILINE)
    assert len(commands) == 3
    docker = (EXAMPLES / "Dockerfile").read_text()
    assert [command for command in commands if command not in docker] == []


def test_the_page_names_every_kind_of_event_and_no_other() -> None:
    """The kinds of the spool are on its own page."""
    source = "".join(path.read_text() for path in sorted((ROOT / "runtime_edge").rglob("*.py")))
    raised = re.findall(r"""Event\(\s*kind="(\w+)"|\b_?tell(?:_sometimes)?\(\s*"(\w+)"|_event\(\s*"(\w+)\"""", source)
    kinds = {kind for found in raised for kind in found if kind}
    assert len(kinds) > 25
    page = (ROOT / "docs" / "deploy" / "README.md").read_text(encoding="utf-8")
    rows = page[page.index("## What happens when") : page.index("Each event is a log line too")]
    where = [row.split("|")[3] for row in rows.splitlines() if row.startswith("|")]
    named = {word for cell in where for word in re.findall(r"`([a-z_]+)`", cell)}
    named = {
        word
        for word in named
        if not word.startswith(("splitwire_", "spool_")) and word not in ("status", "drained", "where")
    }
    assert {kind for kind in kinds if not kind.startswith("spool_")} == named
    spool = (ROOT / "docs" / "spool.md").read_text(encoding="utf-8")
    assert [kind for kind in sorted(kinds) if kind.startswith("spool_") and f"`{kind}`" not in spool] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "deploy").glob("*.md")), ids=lambda p: p.stem)
def test_links_of_the_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).resolve().exists(), target
