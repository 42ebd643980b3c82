"""Compiled kernels of the tests: in build/kernels, made once, before processes that would each compile the same.

`python tests/helpers/kernels.py` fills the folder (`make check`, `make test`); `--cold` also from nothing, if that has
not been done with these sources, and keeps what `splitwire warmup` said of it: which kernels it compiled shows only
where there are none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "kernels"
"""What the tests give as SPLITWIRE_CACHE_DIR, where the user has set none."""
COLD = FOLDER / "cold"
SAID = "said.json"


def warm_up(folder: Path) -> dict[str, Any]:
    """`splitwire warmup` in a process of its own; what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "splitwire", "warmup", "--json", "--cache-dir", str(folder)],
        env={k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")},
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=600,
    )  # fmt: skip
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def sources() -> str:
    """A digest of what decides which kernels a warm-up compiles: the codec, less the design of quantizers."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted((ROOT / "codec").rglob("*.py")):
        if "design" not in path.parts:
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def cold() -> tuple[Path, dict[str, Any]]:
    """A cache folder that one warm-up of these sources filled from nothing, and what that warm-up said. To be copied,
    not written to."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / "cold.lock"):
        made = COLD / sources()
        if not (made / SAID).exists():
            shutil.rmtree(COLD, ignore_errors=True)
            said = warm_up(made)
            shutil.copytree(Path(said["folder"]), FOLDER / Path(said["folder"]).name, dirs_exist_ok=True)
            (made / SAID).write_text(json.dumps(said), encoding="utf-8")
    return made, json.loads((made / SAID).read_text(encoding="utf-8"))


if __name__ == "__main__":
    if sys.argv[1:] == ["--cold"]:
        cold()
    else:
        warm_up(FOLDER)
