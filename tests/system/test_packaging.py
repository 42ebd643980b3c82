"""What is shipped: the wheel's content and metadata; and edge and cloud, installed apart, over a socket."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sources import ROOT, copy_sources

pytestmark = pytest.mark.slow

PACKAGES = ("codec", "exporter", "models", "runtime_cloud", "runtime_edge")
MAX_WHEEL_BYTES = 7_000_000
"""Weights of two networks, up to 3 MB each, test images up to 0.7 MB, and the code."""

EXPORT_ONLY = {"onnx", "onnx-ir", "onnxscript", "scipy", "torch", "torchvision"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made from the sdist, made from a copy of the tree (so that nothing old in build/ gets in)."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = copy_sources(folder / "tree")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(tree)], folder)
    (built,) = folder.glob("*.whl")
    return built


def run(command: list[str], folder: Path, seconds: float = 300) -> str:
    """Its stdout; what it said instead if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_holds_the_package_and_its_data(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        files = {n for n in archive.namelist() if ".dist-info/" not in n}
    tree = wheel.parent / "tree"
    sources = {path.relative_to(tree).as_posix() for path in tree.glob("splitwire/**/*.py")}
    for package in PACKAGES:
        paths = [*tree.glob(f"{package}/**/*.py"), *tree.glob(f"{package}/data/*")]
        sources |= {f"splitwire/{path.relative_to(tree).as_posix()}" for path in paths}
    assert sources <= files
    others = {"py.typed", "models/CARD.md", "models/DETECTOR.md", "evaluation/report/report.html"}
    others |= {f"codec/wire/oip/open_inference.{kind}" for kind in ("proto", "binpb")}
    page = "runtime_cloud/observe/monitor/page"
    others |= {path.relative_to(tree).as_posix() for path in tree.glob(f"{page}/*") if path.suffix != ".py"}
    assert files == sources | {f"splitwire/{path}" for path in others}, "something that is no part of the package"
    assert any(n.endswith(".safetensors") for n in files), "the weights of both networks"
    assert any(n.endswith(".npz") for n in files), "the test images"
    assert wheel.stat().st_size <= MAX_WHEEL_BYTES


def test_wheel_has_a_licence_and_a_command(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        by_name = {Path(n).name: n for n in archive.namelist() if ".dist-info/" in n}
        assert "Apache License" in archive.read(by_name["LICENSE"]).decode()
        assert "splitwire = splitwire.cli:main" in archive.read(by_name["entry_points.txt"]).decode()
    assert metadata(wheel)["License-Expression"] == "Apache-2.0"


def closure(requirements: list[str], extra: str) -> set[str]:
    """Names of all that pip installs for these requirements and this extra, by the metadata of what is installed."""
    found: set[str] = set()
    todo = [(requirement, extra) for requirement in requirements]
    while todo:
        text, wanted = todo.pop()
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": wanted}):
            continue
        name = canonicalize_name(requirement.name)
        if name in found and not requirement.extras:
            continue
        found.add(name)
        for needed in importlib.metadata.requires(name) or []:
            todo += [(needed, e) for e in requirement.extras or {""}]
    return found


def test_what_each_extra_brings(wheel: Path):
    requirements = metadata(wheel).get_all("Requires-Dist") or []
    edge, cloud, export = (closure(requirements, extra) for extra in ("edge", "cloud", "export"))
    assert {"numpy", "numba", "onnxruntime", "pillow"} <= edge
    assert not edge & {"httpx", "httpcore", "h11", "certifi"}
    assert not edge & EXPORT_ONLY
    assert {"numpy", "numba", "onnxruntime", "uvicorn"} <= cloud
    assert not cloud & EXPORT_ONLY
    assert export >= EXPORT_ONLY


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Extra → folder of the programs of an environment that holds the wheel with this extra and nothing else."""
    programs = {}
    for extra in ("edge", "cloud"):
        home = tmp_path_factory.mktemp(extra)
        venv.create(home, with_pip=True)
        programs[extra] = home / "bin"
        pip = [str(home / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        run([*pip, "install", f"{wheel}[{extra}]", "-c", str(ROOT / "constraints.txt")], home, seconds=600)
    return programs


@pytest.mark.parametrize(
    ("extra", "absent"), [("edge", EXPORT_ONLY | {"starlette"}), ("cloud", EXPORT_ONLY | {"httpx"})]
)
def test_an_install_does_not_bring_the_rest(installed: dict[str, Path], extra: str, absent: set[str]):
    python = str(installed[extra] / "python")
    listed = json.loads(run([python, "-m", "pip", "list", "--format", "json"], installed[extra]))
    assert not {canonicalize_name(entry["name"]) for entry in listed} & absent
    modules = sorted(name.replace("-", "_") for name in absent)
    code = f"from importlib.util import find_spec; print([m for m in {modules} if find_spec(m)])"
    assert run([python, "-c", code], installed[extra]).strip() == "[]"


@pytest.fixture
def server(installed: dict[str, Path], demo_pair: Path, tmp_path: Path) -> Iterator[str]:
    """URL of `splitwire cloud serve` in the environment that has only [cloud]."""
    said = tmp_path / "server.json"
    command = [str(installed["cloud"] / "splitwire"), "cloud", "serve", str(demo_pair), "--port", "0", "--json"]
    with said.open("wb") as out:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=out)
    try:
        deadline = time.monotonic() + 120
        while not said.read_text().endswith("\n"):
            assert process.poll() is None, f"the server ended with status {process.returncode}"
            assert time.monotonic() < deadline, "the server does not get ready"
            time.sleep(0.05)
        yield json.loads(said.read_text())["url"]
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
    assert process.returncode == 0, "no clean shutdown"


def test_edge_and_cloud_installed_apart_work_together(
    installed: dict[str, Path], server: str, demo_pair: Path, demo_images: dict[Path, int], tmp_path: Path
):
    """The split answers what the same pair answers in this process, to the byte on the wire; and mostly the truth."""
    from splitwire import CloudSession, EdgeSession, LoopbackTransport

    command = [str(installed["edge"] / "splitwire"), "edge", "run", "--front", str(demo_pair / "front.onnx")]
    command += ["--url", server, "--json", *map(str, demo_images)]
    rows: list[dict[str, Any]] = [json.loads(line) for line in run(command, tmp_path).splitlines()][:-1]
    assert [Path(row["image"]) for row in rows] == list(demo_images)

    loopback = LoopbackTransport(CloudSession(demo_pair / "back.onnx").handle)
    with EdgeSession(demo_pair / "front.onnx", transport=loopback) as here:
        for row in rows:
            result = here.infer(here.preprocess(Path(row["image"])))
            (scores,) = result.outputs.values()
            assert row["classes"][0]["index"] == scores[0].argmax()
            assert abs(row["frame_bytes"] - result.frame_bytes) <= 1  # the ids of a session start anywhere
            assert row["bytes_sent"] > row["frame_bytes"]
            assert all(row["ms"][stage] > 0 for stage in ("front", "encode", "network", "decode", "back"))
    right = sum(row["classes"][0]["index"] == label for row, label in zip(rows, demo_images.values(), strict=True))
    assert right >= 0.8 * len(rows)
