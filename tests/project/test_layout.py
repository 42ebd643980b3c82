"""The rules of the tree (docs/architecture.md): who may import whom, where kernels live, how long a module gets."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGES = ("codec", "exporter", "models", "runtime_cloud", "runtime_edge", "splitwire")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "docs", ".ci")
PYTHON = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
TEXTS = sorted(
    p
    for p in [*(p for p in ROOT.iterdir() if p.name != ".git"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*"))]
    if p.is_file()
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> set[str]:
    """Every module that the file imports absolutely, wherever in it: {"numpy.typing", …}."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what `.ci/lint.py imports` reads."""
    copy = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for folder in (".ci", *PACKAGES):
        shutil.copytree(
            ROOT / folder,
            copy / folder,
            ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "*.npz", "*.onnx"),
        )
    return copy


def lint(check: str, tree: Path) -> tuple[int, str]:
    command = [sys.executable, ".ci/lint.py", check]
    run = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, timeout=120)
    return run.returncode, run.stdout + run.stderr


WRONG = [
    ("codec", "import torch", "torch"),
    ("codec", "import scipy.stats", "scipy"),
    ("codec", "from splitwire.runtime_edge import session", "splitwire.runtime_edge.session"),
    ("codec/design", "import onnx", "onnx"),
    ("codec/entropy", "from splitwire.codec.wire import frame", "splitwire.codec.wire.frame"),
    ("codec/kernels", "from splitwire.codec import quantizer", "splitwire.codec.quantizer"),
    ("codec/shared", "from splitwire.codec import profile", "splitwire.codec.profile"),
    ("codec/wire", "from splitwire.codec.codec import FeatureCodec", "splitwire.codec.codec"),
    ("exporter", "import splitwire.models", "splitwire.models"),
    ("exporter", "import scipy", "scipy"),
    ("exporter/network", "from splitwire.exporter.cutting import cuts", "splitwire.exporter.cutting.cuts"),
    ("exporter/calibration", "from splitwire.exporter.cutting.names import Names", "splitwire.exporter.cutting.names"),
    ("exporter/cutting", "from splitwire.exporter.calibration import inputs", "splitwire.exporter.calibration.inputs"),
    ("exporter/points", "from splitwire.exporter.pair import bake", "splitwire.exporter.pair.bake"),
    ("exporter/points", "from splitwire.exporter.cutting import split", "splitwire.exporter.cutting.split"),
    ("exporter/pair", "from splitwire.exporter import export", "splitwire.exporter.export"),
    ("exporter/pair", "from splitwire.exporter.planning import links", "splitwire.exporter.planning.links"),
    ("exporter/planning", "from splitwire.exporter.points import damage", "splitwire.exporter.points.damage"),
    ("models", "from splitwire.codec import design", "splitwire.codec.design"),
    ("models", "import splitwire.runtime_cloud", "splitwire.runtime_cloud"),
    ("splitwire/evaluation/answer", "from splitwire.evaluation.tasks import tasks", "splitwire.evaluation.tasks.tasks"),
    ("splitwire/evaluation/contenders", "from splitwire.evaluation.data import coco", "splitwire.evaluation.data.coco"),
    ("splitwire/evaluation/data", "from splitwire.exporter.points import damage", "splitwire.exporter.points.damage"),
    ("splitwire/evaluation/measuring", "import onnx_ir", "onnx_ir"),
    ("splitwire/evaluation/report", "from splitwire.evaluation import run", "splitwire.evaluation.run"),
    ("runtime_cloud", "import onnx", "onnx"),
    ("runtime_cloud", "import splitwire.exporter", "splitwire.exporter"),
    ("runtime_edge", "def late():\n    import torch.nn", "torch"),
    ("runtime_edge", "from ..runtime_cloud import session", "splitwire.runtime_cloud.session"),
    ("runtime_edge", "from splitwire.codec.design import anything", "splitwire.codec.design"),
    ("runtime_edge", "from splitwire import export", "splitwire"),
    ("runtime_edge", "from splitwire import console", "splitwire.console"),
]
"""(package, what a module in it says, the import that must be refused)"""


CIRCLES = ("codec/kernels", "exporter/network/adapting", "models/making", "runtime_cloud")
"""Folders in which two modules that import each other must be refused."""


@pytest.mark.slow
def test_wrong_imports_are_refused(tree: Path):
    """All at once, each in a module of its own; every one must be named. So must modules without a layer, and cycles
    of two modules."""
    added = {tree / package / f"wrong_{i}.py": line for i, (package, line, _) in enumerate(WRONG)}
    added[tree / "splitwire/without_layer.py"] = "import sys"
    added[tree / "codec/without_layer.py"] = "import sys"
    added[tree / "exporter/without_layer.py"] = "import sys"
    for package in CIRCLES:
        added |= {tree / package / f"{one}.py": f"from . import {other}" for one, other in (("a", "b"), ("b", "a"))}
    for path, text in added.items():
        path.write_text(text + "\n", encoding="utf-8")
    try:
        status, said = lint("imports", tree)
    finally:
        for path in added:
            path.unlink()
    assert status == 1
    modules = [
        f"splitwire.{package.removeprefix('splitwire/').replace('/', '.')}.wrong_{i}"
        for i, (package, _, _) in enumerate(WRONG)
    ]
    arrows = [f"{module} -> {target} (l." for module, (_, _, target) in zip(modules, WRONG, strict=True)]
    assert [arrow for arrow in arrows if arrow not in said] == [], said
    assert "- splitwire.without_layer" in said, said
    assert "- splitwire.codec.without_layer" in said, said
    assert "- splitwire.exporter.without_layer" in said, said
    packages = [f"splitwire.{package.replace('/', '.')}" for package in CIRCLES]
    assert [p for p in packages if f"No cycles are allowed in {p}.\n" not in said] == [], said


WRONG_TYPES = {
    "splitwire/__init__.py": "def half(x: float) -> float:\n    return x / 2\n",
    "codec/__init__.py": "",
    "codec/untyped.py": "def untyped(x):\n    return x\n",
    "benchmarks/untyped.py": "def untyped(x):\n    return x\n",
    "tests/helpers/words.py": "def word() -> str:\n    return 'two'\n",
    "tests/codec/test_wrong.py": "from splitwire import half\nfrom words import word\n\n\n"
    "def test_wrong(tmp_path):\n    assert half(word()) == half(3)\n",
}
"""A tree in little: files, some of them wrong. Tests need not say their types; what they do is checked all the same."""


@pytest.mark.slow
def test_wrong_types_are_found_in_tests_too(tmp_path: Path):
    """At the paths of the tree; a test finds a helper by its plain name, as pytest does."""
    own = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", ".ci/lint.py")}
    for file, text in (own | WRONG_TYPES).items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    status, said = lint("types", tmp_path)
    assert status == 1
    assert sorted(re.findall(r"^(.*?): error: .*?(\[[a-z-]+\])$", said, re.MULTILINE)) == [
        ("benchmarks/untyped.py:1", "[no-untyped-def]"),
        ("codec/untyped.py:1", "[no-untyped-def]"),
        ("tests/codec/test_wrong.py:6", "[arg-type]"),
    ], said


def test_packages_have_one_name():
    """`import codec` would find a user's folder of that name, or load ours a second time."""
    packages = set(PACKAGES) - {"splitwire"}
    wrong = {name(p): found for p in PYTHON if (found := {m for m in imported(p) if m.split(".")[0] in packages})}
    assert not wrong


def test_every_package_is_in_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    setuptools = project["tool"]["setuptools"]
    folders: dict[str, str] = setuptools["package-dir"]
    assert sorted(folders.values()) == sorted(PACKAGES)
    found = {
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for package, folder in folders.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert set(setuptools["packages"]) == found


def test_every_dependency_has_its_tested_version():
    """constraints.txt names each direct dependency, inside the range that pyproject.toml promises, and no place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    tested = {canonicalize_name(pin.name): next(iter(pin.specifier)) for pin in pins}
    assert all(pin.url is None and len(pin.specifier) == 1 for pin in pins)
    for text in [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]:
        wanted = Requirement(text)
        if wanted.name != "splitwire":
            pin = tested[canonicalize_name(wanted.name)]
            assert pin.operator == "=="
            assert wanted.specifier.contains(pin.version), f"{text}, tested with {pin.version}"


def test_kernels_live_in_codec_kernels():
    """`numba` is met in codec/kernels alone, and compiled in its policy module alone."""
    users = {name(p) for p in PYTHON if any(m.split(".")[0] == "numba" for m in imported(p))}
    product = {path for path in users if path.split("/")[0] in PACKAGES}
    assert product == {"codec/kernels/compilation/policy.py"}
    decorated = {
        name(p)
        for p in PYTHON
        for node in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(d).endswith("kernel") for d in node.decorator_list)
    }
    assert decorated, "no kernel found: is the policy's decorator called otherwise now?"
    assert {str(Path(path).parent.as_posix()) for path in decorated} == {"codec/kernels"}


def test_no_module_is_over_500_lines():
    assert not {name(p): n for p in PYTHON if (n := p.read_text(encoding="utf-8").count("\n")) > 500}


def test_no_folder_has_more_than_ten_modules():
    """On one level, packages and `__init__.py` not counted: a reader finds a module by the folder names."""
    modules = Counter(name(p.parent) for p in PYTHON if p.name != "__init__.py")
    assert len(modules) > 40
    assert {folder: n for folder, n in modules.items() if n > 10} == {}


MACHINE = re.compile(
    r"(?<![\w.~])/(?:work|root|home/\w+|Users/\w+|opt/(?:pypi|wheels))(?![\w-])"
    r"|pypi\.org|python[h]osted|npmjs\.org|(?:deb|security)\.debian\.org"
)


def test_no_file_names_a_machine():
    """Folders of the machine it was made on, and package registries, do not belong in the repository."""
    found = {}
    for path in TEXTS:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if hits := MACHINE.findall(text):
            found[name(path)] = hits
    assert not found


LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)[^)]*\)")


def test_links_between_documents_lead_somewhere():
    """Every relative link in a Markdown file; and docs/README.md, the index, leads to each page beside it."""
    pages = [p for p in TEXTS if p.suffix == ".md"]
    targets = {page: [page.parent / link for link in LINK.findall(page.read_text(encoding="utf-8"))] for page in pages}
    assert [f"{name(page)}: {t}" for page, found in targets.items() for t in found if not t.exists()] == []
    indexed = {target.resolve() for target in targets[ROOT / "docs/README.md"]}
    missing = [name(p) for p in (ROOT / "docs").glob("*.md") if p.name != "README.md" and p.resolve() not in indexed]
    assert missing == []


def drawn(lines: list[str]) -> set[str]:
    """The paths of a tree drawn by indentation, two blanks a step; what is said of them stands behind two blanks."""
    above: list[str] = []
    found: set[str] = set()
    for line in lines:
        depth = (len(line) - len(line.lstrip())) // 2
        parts = re.split(r" {2,}", line.strip())
        names = parts if all(part.endswith("/") for part in parts) else parts[0].split(", ")
        del above[depth:]
        found.update("".join([*above, one]) for one in names)
        above += [names[-1]]
    return found


def test_the_tree_drawn_in_the_architecture_is_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = text.split("```text\n")[1].split("```")[0]
    paths = drawn(drawing.splitlines())
    assert {"codec/wire/frame.py", "codec/entropy/", "splitwire/commands/", "tests/", "docs/"} <= paths
    assert {path.split("/")[0] for path in paths} >= {*PACKAGES}
    # and what the page names in a sentence; build/ is made
    paths |= {p for p in re.findall(r"`([\w.]+/[\w./]*)`", text) if not p.startswith("build/")}
    missing = [p for p in paths if not ((ROOT / p).is_dir() if p.endswith("/") else (ROOT / p).is_file())]
    assert not missing, f"docs/architecture.md names what is not there: {', '.join(sorted(missing))}"


def test_importing_splitwire_loads_nothing_heavy():
    code = "import sys, splitwire; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "numba", "onnx", "onnxruntime", "rich", "scipy", "torch"} & set(loaded)


def test_each_suppressed_check_has_a_reason():
    """`# noqa: RULE - reason` and `# type: ignore[code]  # reason` on one line."""
    bare = re.compile(r"# (?:noqa\b(?!: [A-Z0-9, ]+ -)|type: ignore(?!\[[\w, -]+\]  # \w))")
    lines = {
        f"{name(path)}:{i}": line.strip()
        for folder in (".ci", "benchmarks", "tests", *PACKAGES)
        for path in (ROOT / folder).rglob("*.py")
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\S +# (?:noqa|type: ignore)", line) and path != Path(__file__)
    }
    assert len(lines) > 20
    assert {place: line for place, line in lines.items() if bare.search(line)} == {}


def test_each_claim_of_the_page_on_trust_names_a_test_that_exists():
    """Each row of the table names files that exist; each test named on the page is defined in a file that it names."""
    text = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1:4] for row in text.splitlines() if re.match(r"\| (?!Claim )\w", row)]
    files = {test: re.findall(r"`((?:tests|\.ci)/[\w./]+\.py)`", test) for _, test, _ in rows}
    assert len(rows) >= 6
    assert [claim for claim, test, _ in rows if not files[test]] == []
    named = {ROOT / file for file in re.findall(r"`((?:tests|\.ci)/[\w./]+\.py)`", text)}
    assert [name(path) for path in named if not path.is_file()] == []
    defined = {test for path in named for test in re.findall(r"(?m)^def (test_\w+)", path.read_text(encoding="utf-8"))}
    claimed = set(re.findall(r"`(test_\w+)`", text))
    assert len(claimed) >= 8
    assert sorted(claimed - defined) == []
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    assert [c for _, _, c in rows if not set(re.findall(r"make ([\w-]+)", c)) & targets] == []


NAMED_FILE = re.compile(r"`([\w./]+(?:\.py|\.md|/))`")


def test_the_map_for_developers_names_files_that_exist():
    """A name without its folder stands for a file beside the one named before it."""
    text = (ROOT / "docs" / "developing.md").read_text(encoding="utf-8")
    folder, missing = ROOT, []
    for found in NAMED_FILE.findall(text):
        if "NAME" in found:  # a file that the reader is to add
            continue
        whole = ROOT / found
        path = whole if whole.exists() else folder / found
        if path.exists():
            folder = path if path.is_dir() else path.parent
        else:
            missing.append(found)
    assert len(NAMED_FILE.findall(text)) > 30
    assert missing == []
