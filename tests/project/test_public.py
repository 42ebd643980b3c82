"""The public names of splitwire/__init__.py: each resolves, the type checker sees it, and documents name no others."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import splitwire
from splitwire.codec import errors

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DEVELOPERS = {"architecture.md", "developing.md"}
"""Pages about the code itself, which name modules."""
FOR_EVERYBODY = {
    "splitwire.models",  # `from splitwire.models import detector`: the network that the catalogue does not know by name
    "splitwire.NAME",  # any of them
    "splitwire.codec",  # the name of its logger
    "splitwire.profile",  # the key in the metadata of both graphs
    "splitwire.toml",  # the settings of a model in a repository
    "splitwire.audit",  # the name of the logger of refusals
    "splitwire.drift",  # the key of the limits of drift in front.onnx
}


def homes() -> dict[str, str]:
    """Public name → "module" or "module:name", as the module has it."""
    return dict(vars(splitwire)["_HOME"])


def test_every_public_name_is_defined_at_its_home():
    assert sorted(homes()) == sorted(splitwire.__all__)
    for name, home in homes().items():
        module, _, attribute = home.partition(":")
        thing = getattr(splitwire, name)
        assert thing is vars(importlib.import_module(module))[attribute or name]
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__module__ == module, f"{name} is only passed on by {module}"
    assert set(splitwire.__all__) < set(dir(splitwire))


def test_the_type_checker_sees_the_same_names():
    tree = ast.parse((ROOT / "splitwire/__init__.py").read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names:
            seen[alias.asname or alias.name] = f"{node.module}:{alias.name}" if alias.asname else node.module
    assert seen == homes()


def test_no_public_name_hides_a_module():
    """`import splitwire.NAME` would replace it in the package."""
    assert not set(splitwire.__all__) & {module.name for module in pkgutil.iter_modules(splitwire.__path__)}


def test_every_error_is_public():
    raised = {n for n, e in vars(errors).items() if inspect.isclass(e) and issubclass(e, errors.SplitwireError)}
    assert len(raised) > 20
    assert raised <= set(splitwire.__all__)


def test_documents_name_public_names_only():
    """In Python code and in sentences; of modules only what `python -m` runs."""
    unknown = []
    named = set()
    for page in PAGES:
        text = re.sub(r"python -m splitwire[.\w]+", "", page.read_text(encoding="utf-8"))
        for module, name in re.findall(r"(?<![\w./-])(splitwire\.([A-Za-z_]\w*))", text):
            named.add(name)
            if name not in splitwire.__all__ and module not in FOR_EVERYBODY and page.name not in DEVELOPERS:
                unknown.append(f"{page.name}: {module}")
    assert not unknown
    assert {"export", "EdgeSession", "Preprocessing", "read_results"} <= named


def test_the_page_about_them_is_current():
    """docs/api.md is what `make api` writes now: every public name with its signature and its docstring."""
    pytest.importorskip("griffe", reason="griffelib is not installed; `make` installs it (splitwire[dev])")
    run = subprocess.run(
        [sys.executable, ".ci/api.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_public_name_says_what_it_is():
    """A sentence first, before parameters and fields; without modules of ours, which a user does not know."""
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    entries = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(entries) | {name for name in splitwire.__all__ if f"\n| {name} | " in page} == set(splitwire.__all__)
    for name, entry in entries.items():
        _, _, said = entry.partition("```\n\n") if entry.lstrip().startswith("```") else ("", "", entry.strip())
        assert re.match(r"[A-Z(`][^\n]{15,}", said), f"{name} does not begin with a sentence: {said[:60]!r}"
        assert not re.findall(r"\b\w+\.py\b", entry), f"{name} names a module"


def test_names_of_the_edge_and_the_cloud_load_no_torch():
    ends = ("splitwire.codec", "splitwire.runtime_edge", "splitwire.runtime_cloud")
    names = [name for name, home in homes().items() if home.startswith(ends)]
    assert {"EdgeSession", "CloudSession", "serve", "measure_device", "Preprocessing"} <= set(names)
    code = f"import sys, splitwire; [getattr(splitwire, n) for n in {names}]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "onnxruntime" in loaded
    assert not {"onnx", "onnx_ir", "torch", "torchvision", "matplotlib"} & set(
        loaded
    )  # numba imports scipy where it is
