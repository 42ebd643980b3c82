"""Every Python and shell block of README.md runs, in order, in a copy of the tree.

A Python block is a program of its own. A shell block is run by bash, line after line, and stops at the first failure;
in a `console` block the lines after `$ ` are commands and the others are what they print. A command that ends in `&`
runs in the background, from its first line of output on, until `kill %1` or the end of the README. Files that one block
writes are there for the next. Nothing is left out silently: the table INSTEAD says which commands run as something
else, and a block in a language that is neither run nor listed in SHOWN fails.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sources import ROOT, copy_sources

pytestmark = pytest.mark.slow

SECONDS = 600
SHOWN = {"bibtex", "json", "mermaid", "text"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """line: number of the first line inside the fence, from 1."""

    language: str
    line: int
    text: str


class BlockFailed(Exception):
    """A block of the README does not work; the message says where, what and why."""


def blocks(markdown: str) -> Iterator[Block]:
    lines = enumerate(markdown.splitlines(), start=1)
    for number, line in lines:
        if fence := re.fullmatch(r"( *)(```+|~~~+) *([\w-]*).*", line):
            indent, mark, language = fence.groups()
            inside = []
            for _, text in lines:
                if text.strip() == mark:
                    break
                inside.append(text.removeprefix(indent))
            yield Block(language=language, line=number + 1, text="\n".join(inside))


def make_here(target: str) -> str:
    """`make lint` with the environment that runs this test in place of a new .venv, and without installing into it."""
    return (
        f"make {target} VENV='{sys.prefix}' -o '{sys.prefix}/.demo' -o '{sys.prefix}/.dev' -o '{sys.prefix}/.weights'"
    )


def check_wheel(folder: str) -> str:
    """Not built again: tests/system/test_packaging.py does it. Its name in the README is that of this version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    named = set(re.findall(r"splitwire-([\w.]+)-py3-none-any\.whl", (ROOT / "README.md").read_text(encoding="utf-8")))
    if named - {version}:
        raise BlockFailed(f"the wheel of this version is not splitwire-{', '.join(named)}: it is {version}")
    return "true"


def check_install(requirements: str) -> str:
    """Nothing is installed; but what the README asks pip for must be ours, with extras that exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in re.findall(r"'[^']*'|\"[^\"]*\"|\S+", requirements):
        wanted = re.fullmatch(r"(?:splitwire|\.)(?:\[([\w,-]+)\])?", requirement.strip("'\""))
        if not wanted:
            raise BlockFailed(f"pip install of {requirement}: only splitwire and its extras are expected here")
        if unknown := set(filter(None, (wanted[1] or "").split(","))) - set(project["optional-dependencies"]):
            raise BlockFailed(
                f"pip install names extras that pyproject.toml does not have: {', '.join(sorted(unknown))}"
            )
    return "true"


INSTEAD: list[tuple[str, Callable[[str], str]]] = [
    # The folder the blocks run in is a copy of the tree: it stands for the clone.
    (r"git clone \S*?(splitwire)(?:\.git)?", lambda _: "true"),
    (r"cd (splitwire)", lambda _: "true"),
    # `make test` is what runs this test: that it is there, and what it would do, is all that can be checked.
    (r"make (test)", lambda target: f"make -n {target}"),
    (r"make (\w+)", make_here),
    (r"python -m pip wheel --no-deps --wheel-dir (dist) \.", check_wheel),
    # The environment that runs this test has every extra; tests/system/test_packaging.py installs them apart.
    (r"(?:python -m )?pip install (?:-e |--upgrade )?(.*)", check_install),
    (r"(?:source|\.) (\S+/bin/activate)", lambda _: "true"),
]


def instead(command: str, demo: Path | None = None) -> str:
    if command == "make demo" and demo is not None:
        # It takes minutes, and the fixture has run it: what it left is copied, and make is asked what it would run.
        return f"{make_here('-n demo')} | grep -x '{sys.prefix}/bin/splitwire demo' && cp -R '{demo}' build/demo"
    for pattern, replace in INSTEAD:
        if match := re.fullmatch(pattern, command):
            return replace(match[1])
    return command


class Reader:
    """Someone who follows a README in `folder`."""

    def __init__(self, folder: Path, demo: Path | None = None) -> None:
        self.folder, self.demo = folder, demo
        self.background: list[subprocess.Popen[bytes]] = []
        self.log = folder / "build" / "readme.log"
        self.log.parent.mkdir(exist_ok=True)
        scripts = Path(sys.executable).parent
        self.environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        # A session of its own, to be ended with its children; a file, because a pipe stays open as long as they live.
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def foreground(self, command: list[str]) -> None:
        process = self.start(command)
        try:
            status = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise BlockFailed(f"still running after {SECONDS} s: {command[-1]}") from None
        finally:
            end(process)
        if status:
            raise BlockFailed(f"exit status {status}: {command[-1]}\n{self.log.read_text(errors='replace')[-4000:]}")

    def run(self, block: Block) -> None:
        if block.language == "python":
            self.foreground([sys.executable, "-W", "error", "-c", block.text])
        elif block.language in {"bash", "sh", "shell", "console"}:
            for command in commands(block):
                self.shell(command)
        elif block.language not in SHOWN:
            raise BlockFailed(f"language {block.language!r} is neither run nor in the list of what is only shown")

    def shell(self, command: str) -> None:
        if re.fullmatch(r"kill (%1|\$!)", command):
            if not self.background:
                raise BlockFailed(f"nothing runs in the background: {command}")
            end(self.background.pop())
        elif command.endswith("&"):
            process = self.start(["bash", "-c", "exec " + command.removesuffix("&")])
            self.background.append(process)
            log, deadline = self.log.rename(self.log.with_name(f"readme-{process.pid}.log")), time.monotonic() + 60
            while not log.stat().st_size and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if process.poll() is not None or not log.stat().st_size:
                raise BlockFailed(f"did not start in the background: {command}\n{log.read_text(errors='replace')}")
        else:
            parts = [instead(part.strip(), self.demo) for part in command.split("&&")]
            self.foreground(["bash", "-euo", "pipefail", "-c", " && ".join(parts)])


def commands(block: Block) -> Iterator[str]:
    """The commands of a shell block: comments and output removed, continued lines joined."""
    lines = block.text.splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
        if not lines:
            raise BlockFailed("a console block without a `$ ` line")
    for command in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if text := re.sub(r"(^|\s)#.*", "", command).strip():
            yield text


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that `start` started, with what it started itself: the process group of its number."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
    process.wait(10)


@contextmanager
def reader(folder: Path, demo: Path | None) -> Iterator[Reader]:
    person = Reader(folder, demo)
    try:
        yield person
    finally:
        for process in person.background:
            end(process)


def follow(markdown: str, folder: Path, demo: Path | None = None) -> list[Block]:
    """Run the blocks of `markdown` in `folder`; returns them. Raises BlockFailed at the first that does not work.

    demo: what `make demo` leaves, where it has been run."""
    done = []
    with reader(folder, demo) as person:
        for block in blocks(markdown):
            try:
                person.run(block)
            except BlockFailed as failure:
                raise BlockFailed(f"line {block.line}, {block.language or 'no language'}: {failure}") from None
            done.append(block)
    return done


def test_every_block_of_the_readme_runs(tmp_path: Path, demo_pair: Path):
    copy = copy_sources(tmp_path / "splitwire")
    done = follow((ROOT / "README.md").read_text(encoding="utf-8"), copy, demo_pair)
    languages = {block.language for block in done}
    assert "python" in languages
    assert languages & {"bash", "sh", "shell", "console"}


def test_blocks_run_in_order_and_share_files(tmp_path: Path):
    text = """
```sh
echo 20 > number   # a comment
test -f number && \\
  echo 1 >> number
```
1. indented:
   ```python
   import pathlib
   numbers = pathlib.Path("number").read_text().split()
   pathlib.Path("sum").write_text(str(sum(map(int, numbers))))
   ```
```console
$ test "$(cat sum)" = 21
what it prints
```
```text
not run
```
"""
    assert [block.language for block in follow(text, tmp_path)] == ["sh", "python", "console", "text"]


@pytest.mark.parametrize(
    ("text", "where", "why"),
    [
        ("```sh\ntrue\nfalse\n```", "line 2, sh", "exit status 1: false"),
        ("```sh\nno-such-command --help\n```", "line 2, sh", "no-such-command"),
        ("```sh\nfalse | true\n```", "line 2, sh", "exit status 1"),
        ("words\n\n```python\nimport splitwire\nsplitwire.no_such_name\n```", "line 4, python", "no_such_name"),
        ("```python\nimport warnings\nwarnings.warn('old', DeprecationWarning)\n```", "line 2, python", "old"),
        ("```sh\nmake no_such_target\n```", "line 2, sh", "no_such_target"),
        ("```sh\npip install 'splitwire[nonsense]'\n```", "line 2, sh", "nonsense"),
        ("```sh\npip install something-else\n```", "line 2, sh", "something-else"),
        ("```console\nonly output\n```", "line 2, console", "without a `$ ` line"),
        ("```sh\nfalse &\n```", "line 2, sh", "did not start"),
        ("```sh\nkill %1\n```", "line 2, sh", "nothing runs"),
        ("```\nls\n```", "line 2, no language", "neither run nor"),
        ("```ruby\nputs 1\n```", "line 2, ruby", "neither run nor"),
    ],
)
def test_a_block_that_does_not_work_is_reported(tmp_path: Path, text: str, where: str, why: str):
    shutil.copy(ROOT / "Makefile", tmp_path)
    with pytest.raises(BlockFailed, match=re.escape(why)) as caught:
        follow(text, tmp_path)
    assert str(caught.value).startswith(where)


def test_what_runs_in_the_background_is_ended(tmp_path: Path):
    server = 'python -c \'import os, time; print(os.getpid(), flush=True); open("up", "w").close(); time.sleep(60)\''
    follow(f"```sh\n{server} &\ntest -f up\n```\n```sh\ntest -f up\n```", tmp_path)
    (log,) = (tmp_path / "build").glob("readme-*.log")
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)


def test_substitutes_say_what_they_stand_for():
    assert instead("git clone https://example.org/someone/splitwire.git") == "true"
    assert instead("make test") == "make -n test"
    assert instead("make demo").startswith("make demo VENV=")
    assert instead("pip install 'splitwire[edge]'") == "true"
    assert instead("splitwire --version") == "splitwire --version"
    assert instead("python -m pip wheel --no-deps --wheel-dir dist .") == "true"
    assert instead("make demo", Path("made")).endswith("/bin/splitwire demo' && cp -R 'made' build/demo")
