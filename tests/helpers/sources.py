"""A copy of the tree, as a clone has it."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
# .hypothesis: tests that run at the same time write there
MADE = (".git", ".venv", "build", "dist", "*.egg-info", ".*_cache", ".hypothesis", "__pycache__")


def copy_sources(to: Path) -> Path:
    """Everything but what was made in the tree; returns `to`."""
    return Path(shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*MADE)))
