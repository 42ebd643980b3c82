"""The words that CONTRIBUTING.md's Style section refuses, in every Python, Markdown and HTML file of the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REFUSED = re.compile(
    r"(?<![^\W_])(?:foret(?:ell(?:s|ing)?|old)|harm(?:s|ed|ing)?|so[ \n]+many|buys?|buying|bought|dear(?:est|er)|rooms"
    r"|mend(?:s|ed|ing)?|whoever)(?![^\W_])|\bin other arithmetic\b|\bthe face\b",
    re.IGNORECASE,
)
HERE = Path(__file__).resolve()
SKIPPED = (
    "CHANGELOG.md",  # what was said of older releases stays
    "docs/results/",  # reports as they were measured
    "build/",
    "dist/",
)


def texts() -> list[Path]:
    names = {
        path.relative_to(ROOT).as_posix(): path for kind in ("py", "md", "html") for path in ROOT.rglob(f"*.{kind}")
    }
    wanted = [n for n in names if not n.startswith(SKIPPED) and names[n].resolve() != HERE]
    return [names[n] for n in sorted(wanted) if n.startswith(".ci/") or not n.startswith(".")]


def refused(text: str) -> list[str]:
    """Each refused word with its line: "12: foretold"."""
    return [f"{text.count(chr(10), 0, m.start()) + 1}: {' '.join(m[0].split())}" for m in REFUSED.finditer(text)]


def test_the_tree_uses_plain_words():
    wrong = {}
    for path in texts():
        text = path.read_text(encoding="utf-8")
        if path.name == "CONTRIBUTING.md":
            text = re.sub(r"(?m)^\|.*$", "|", text)  # the table itself
        if words := refused(text):
            wrong[path.relative_to(ROOT).as_posix()] = words
    assert not wrong, "refused by CONTRIBUTING.md, Style"


def test_contributing_lists_what_is_refused():
    """Each row's second column holds a refused word, its first none."""
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("| Write | Not |\n|---|---|\n")[1]
    rows = [row.strip("|").split("|") for row in table.split("\n\n")[0].splitlines()]
    assert len(rows) >= 10
    assert [plain for plain, _ in rows if refused(plain)] == []
    assert [not_so for _, not_so in rows if not refused(not_so)] == []


@pytest.mark.parametrize(
    "text, words",
    [
        ("as many as were foretold", ["1: foretold"]),
        ("which harms\nso\nmany", ["1: harms", "2: so many"]),
        ("ROOMS = room", ["1: ROOMS"]),
        ("def buy_levels", ["1: buy"]),
        ("Recommended amendments; a harmonic mean; for charm; roomy; faces in the picture; mean so, many", []),
    ],
)
def test_words_are_met_whole(text: str, words: list[str]):
    assert refused(text) == words
