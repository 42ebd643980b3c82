"""docs/security.md names tests that exist, and says of actions and options what is true."""

from __future__ import annotations

import re
from pathlib import Path

from splitwire.runtime_cloud.security.actions import ACTIONS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_every_threat_names_tests_that_exist():
    tests = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    threats = rows("Threats")
    assert len(threats) >= 20
    for threat, defence, named in threats:
        names = re.findall(r"`(test_\w+)`", named)
        assert names, threat
        assert defence, threat
        assert set(names) <= tests, (threat, set(names) - tests)


def test_the_page_has_every_action():
    section = PAGE.split("## Tokens\n", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"^\| `(\w+)` \| [a-z`]", section, re.MULTILINE) == list(ACTIONS)


def test_the_page_has_every_reason_of_the_record():
    code = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "runtime_cloud" / "security").glob("*.py"))
    reasons = set(re.findall(r'"((?:no|wrong|unknown|other|expired)_\w+|expired|revoked|many)"', code))
    (row,) = (r for r in rows("The record") if r[0] == "`reason`")
    assert reasons == set(re.findall(r"`([a-z_]+)`", row[1]))
