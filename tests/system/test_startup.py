"""Compiled kernels on disk: chosen folder, other users, damage, several processes at once; and `splitwire warmup`.

Everything is run in processes of its own, because what matters is what a new process finds.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kernels as tests_kernels
import pytest
from runtime_helpers import Pair

from splitwire.codec import kernels
from splitwire.codec.kernels.compilation.cache import KernelStore
from splitwire.codec.shared.cache import user_folder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("codec", "exporter", "models", "runtime_cloud", "runtime_edge")
NOBODY = 65534
CHOSEN = ("SPLITWIRE_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME")
LAST_KERNEL = "statistics.count_contexts"


def round_trip(*ops: str) -> str:
    """Code that sends a tensor through these operating points of the warm-up, all if none is given, those of
    coefficients too, and says what came and where the kernels came from."""
    return (
        f"OPS = {ops}"
        + """
import json
import numpy as np
from splitwire.codec import warmup
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.kernels import ans, cabac, predictive_interleaved, predictive_planes, quantize, rans, transform
from splitwire.codec.kernels.compilation.policy import STORE
codec = FeatureCodec(warmup.example_profile())
x = np.linspace(-1, 2, 64, dtype=np.float32).reshape(1, 2, 8, 4)
frames = [codec.encode([x], op=op) for op in OPS or [p.name for p in codec.profile.operating_points]]
values = [codec.decode(f).tensors[0].sum().item() for f in frames]
if not OPS:
    coefficients = FeatureCodec(warmup.example_transform())
    frames.append(coefficients.encode([x[:, 0].copy()]))
    values.append(coefficients.decode(frames[-1]).tensors[0].sum().item())
modules = (ans, cabac, predictive_interleaved, predictive_planes, quantize, rans, transform)
dispatchers = {k for m in modules for k in vars(m).values() if hasattr(k, "stats")}
print(json.dumps({
    "frames": [f.hex() for f in frames], "values": values,
    "hits": sum(sum(d.stats.cache_hits.values()) for d in dispatchers),
    "misses": sum(sum(d.stats.cache_misses.values()) for d in dispatchers),
    "folder": str(STORE.folder()),
    "source": warmup.__file__,
    "loaded": [(one.kernel, one.cached) for one in STORE.loaded],
    "files": [one.path for one in STORE.loaded],
}))
"""
    )


EVERYTHING = round_trip()
QUICK = round_trip("no-tables")
"""With few kernels: they compile in seconds."""


def environment(**chosen: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in CHOSEN and not k.startswith("NUMBA_")}
    return {**inherited, **chosen}


def python(code: str, *, folder: Path = ROOT, **chosen: str) -> tuple[dict[str, Any], str]:
    """Run the code; what it printed as JSON, and what it said on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(**chosen), cwd=folder, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def command(*arguments: str, **chosen: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "splitwire", *arguments], env=environment(**chosen), capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def warm() -> tuple[Path, dict[str, Any]]:
    """A cache folder that one warm-up filled from nothing, and what it said. To be copied, not written to."""
    return tests_kernels.cold()


def smallest(folder: Path) -> list[Path]:
    """The files of two kernels that `QUICK` uses: they compile in a second."""
    used = [Path(path) for path in python(QUICK, SPLITWIRE_CACHE_DIR=str(folder))[0]["files"]]
    assert len(used) >= 4
    return sorted(used, key=lambda path: path.stat().st_size)[:2]


def test_two_processes_warm_up_one_folder_at_the_same_time(warm: tuple[Path, dict[str, Any]], tmp_path: Path):
    """Two kernels are missing, and both compile them."""
    folder = Path(shutil.copytree(warm[0], tmp_path / "copy"))
    files = {path.name for path in folder.glob("*/*")}
    removed = set(smallest(folder))
    for path in removed:
        path.unlink()
    run = [sys.executable, "-m", "splitwire", "warmup", "--json", "--cache-dir", str(folder)]
    started = [subprocess.Popen(run, env=environment(), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [json.loads(process.communicate(timeout=300)[0]) for process in started]
    assert [process.returncode for process in started] == [0] * 2
    for report in said:
        assert Path(report["folder"]).parent == folder
        assert {Path(one["path"]).name for one in report["kernels"]} <= files
        assert any(one["kernel"] == LAST_KERNEL for one in report["kernels"])
        assert report["bytes"] > 100_000
    compiled = [{Path(one["path"]) for one in report["kernels"] if not one["cached"]} for report in said]
    assert compiled[0] | compiled[1] == removed
    assert {path.name for path in folder.glob("*/*")} == files  # the probe, and what was half written, are gone


def test_a_later_process_compiles_nothing(warm: tuple[Path, dict[str, Any]]):
    """And codes the same bytes as one that interprets."""
    folder, _ = warm
    cached, said = python(EVERYTHING, SPLITWIRE_CACHE_DIR=str(folder))
    assert said == ""
    assert (cached["misses"], cached["hits"]) == (0, len(cached["loaded"]))
    assert cached["hits"] >= 10
    assert Path(cached["folder"]).parent == folder
    interpreted, _ = python(EVERYTHING, NUMBA_DISABLE_JIT="1")
    assert (interpreted["hits"], interpreted["loaded"]) == (0, [])
    assert cached["frames"] == interpreted["frames"]
    assert cached["values"] == interpreted["values"]


def test_warm_up_covers_every_kernel(warm: tuple[Path, dict[str, Any]]):
    """A kernel that no step of codec/warmup.py uses is named here. It began in an empty folder, so that the inner ones
    were compiled too."""
    assert not any(one["cached"] for one in warm[1]["kernels"])
    modules = [importlib.import_module(f"{kernels.__name__}.{m.name}") for m in pkgutil.iter_modules(kernels.__path__)]
    every = {
        f"{m.__name__.rpartition('.')[2]}.{name}"
        for m in modules
        for name, value in vars(m).items()
        if hasattr(value, "signatures") and value.py_func.__module__ == m.__name__
    }
    assert len(every) >= 40
    assert every - {one["kernel"] for one in warm[1]["kernels"]} == set()


def test_damaged_files_are_compiled_anew(warm: tuple[Path, dict[str, Any]], tmp_path: Path):
    """In each of four ways: cut in half, empty, bytes changed, cut after a few. All are: inner kernels are looked up
    again when an outer one is compiled."""
    folder = Path(shutil.copytree(warm[0], tmp_path / "copy"))
    whole, _ = python(QUICK, SPLITWIRE_CACHE_DIR=str(folder))
    assert len(whole["files"]) >= 4
    used = [Path(path) for path in whole["files"]]
    for i, path in enumerate((*used, *(set(folder.glob("*/*")) - set(used)))):
        data = path.read_bytes()
        middle = len(data) // 2
        path.write_bytes([data[:middle], b"", data[:middle] + b"\0\xff" + data[middle + 2 :], data[:20]][i % 4])
    again, said = python(QUICK, SPLITWIRE_CACHE_DIR=str(folder))
    assert said == ""
    assert again["hits"] == 0
    healed, _ = python(QUICK, SPLITWIRE_CACHE_DIR=str(folder))
    assert healed["misses"] == 0
    assert healed["frames"] == again["frames"] == whole["frames"]


def test_whole_files_of_another_numba_are_compiled_anew(warm: tuple[Path, dict[str, Any]], tmp_path: Path):
    """The checksum is right, the content is not what this Numba wrote."""
    folder = Path(shutil.copytree(warm[0], tmp_path / "copy"))
    replaced = smallest(folder)
    code = f"""
import json
from splitwire.codec.kernels.compilation.policy import STORE
for name in {[path.name for path in replaced]}:
    STORE.write(name, b"\\x80\\x04N.")
print(json.dumps({{}}))
"""
    python(code, SPLITWIRE_CACHE_DIR=str(folder))
    again, said = python(QUICK, SPLITWIRE_CACHE_DIR=str(folder))
    compiled = {path for path, (_, cached) in zip(again["files"], again["loaded"], strict=True) if not cached}
    assert (compiled, said) == ({str(path) for path in replaced}, "")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_files_of_another_user_are_not_loaded(tmp_path: Path):
    """Loading runs code: a file that somebody else made, or may change, counts as not there."""
    store = KernelStore("test")
    store.require(tmp_path)
    path = Path(store.write("kernel", b"body"))
    assert store.read("kernel") == b"body"
    path.chmod(0o646)
    assert store.read("kernel") is None
    path.chmod(0o644)
    os.chown(path, 65534, 65534)
    assert store.read("kernel") is None
    os.chown(path, 0, 0)
    assert store.read("kernel") == b"body"


def test_importing_touches_nothing(tmp_path: Path):
    code = "import json, os, splitwire.codec.warmup as w; print(json.dumps({'environment': dict(os.environ)}))"
    chosen = str(tmp_path / "kernels")
    after, _ = python(code, SPLITWIRE_CACHE_DIR=chosen, HOME=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert {k for k in after["environment"] if k.startswith("NUMBA_")} == set()


def test_which_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ours, else Numba's, else the user's; equal code shares a folder below it, another compiler has another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("SPLITWIRE_CACHE_DIR", str(tmp_path / "ours"))
    assert KernelStore("numba1", "/numba").folder().parent == tmp_path / "ours"
    monkeypatch.setenv("SPLITWIRE_CACHE_DIR", "")
    assert KernelStore("numba1", str(tmp_path)).folder().parent == tmp_path
    if sys.platform == "linux":
        assert KernelStore("numba1").folder().parent == tmp_path / "user" / "splitwire"
    assert KernelStore("numba1").folder() == KernelStore("numba1").folder()
    assert KernelStore("numba1").folder() != KernelStore("numba2").folder()


def test_folder_of_each_system(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/h"))
    assert user_folder({}, "linux") == Path("/h/.cache/splitwire")
    assert user_folder({"XDG_CACHE_HOME": "/x"}, "linux") == Path("/x/splitwire")
    assert user_folder({"XDG_CACHE_HOME": "relative"}, "linux") == Path("/h/.cache/splitwire")
    assert user_folder({"XDG_CACHE_HOME": "/x"}, "darwin") == Path("/h/Library/Caches/splitwire")
    assert user_folder({"LOCALAPPDATA": "/l"}, "win32") == Path("/l/splitwire")
    assert user_folder({}, "win32") == Path("/h/AppData/Local/splitwire")


def test_numbas_folder_is_taken_where_only_it_is_set(warm: tuple[Path, dict[str, Any]], tmp_path: Path):
    folder = Path(shutil.copytree(warm[0], tmp_path / "copy"))
    found, _ = python(EVERYTHING, NUMBA_CACHE_DIR=str(folder), HOME="/nonexistent")
    assert Path(found["folder"]).parent == folder
    assert found["misses"] == 0


def test_warmup_where_nothing_can_be_written(tmp_path: Path):
    """The user asked for this and nothing else: one line, status 1."""
    file = tmp_path / "file"
    file.write_text("in the way")
    done = command("warmup", "--cache-dir", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert f"error: compiled kernels cannot be kept in {file}" in done.stderr
    done = command("warmup", NUMBA_DISABLE_JIT="1")
    assert done.returncode == 1
    assert "NUMBA_DISABLE_JIT" in done.stderr


def test_warmup_for_a_front_compiles_what_its_points_need(pair: Pair, tmp_path: Path):
    """The context coder's encoder, nothing else; then nothing is left to compile."""
    chosen = ("warmup", "--json", "--front", str(pair.front), "--cache-dir", str(tmp_path))
    done = command(*chosen)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    compiled = {one["kernel"] for one in report["kernels"]}
    assert {"quantize.quantize", "rans.encode"} <= compiled
    assert not compiled & {"rans.decode", "quantize.unpack", LAST_KERNEL}
    assert not any(kernel.startswith(("predictive", "transform", "cabac")) for kernel in compiled)
    assert Path(report["folder"]).parent == tmp_path
    again = json.loads(command(*chosen).stdout)
    assert all(one["cached"] for one in again["kernels"])


def test_warmup_prints_a_table(warm: tuple[Path, dict[str, Any]]):
    done = command("warmup", SPLITWIRE_CACHE_DIR=str(warm[0]), COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert LAST_KERNEL in done.stdout
    assert "uint64[:]" in done.stdout
    assert "0 compiled" in done.stderr
    assert str(warm[0]) in done.stderr


@pytest.fixture
def readable_tree() -> Iterator[Path]:
    """The package as an install would have it, owned by root, read by all, written by none but root.

    Not below pytest's own folder, which is closed to other users.
    """
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        unwanted = shutil.ignore_patterns("__pycache__", "data")
        shutil.copytree(ROOT / "splitwire", tree / "splitwire", ignore=unwanted)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, tree / "splitwire" / package, ignore=unwanted)
        for path in (tree, *tree.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield tree


def as_nobody(tree: Path, **chosen: str) -> tuple[dict[str, Any], str]:
    """`QUICK` as another user, with the package in `tree`; skips where that cannot be done.

    Python itself may lie where that user cannot read, so the modules, also what Numba imports on its first compilation,
    are loaded before the change of user. Importing ours touches no cache (test_importing_touches_nothing).
    """
    if sys.platform == "win32" or os.geteuid() != 0:
        pytest.skip("only root can become another user")
    become = f"""
import os
import numba, numpy as np
import splitwire.codec.warmup
numba.njit(lambda n: np.full(n, 1.0).reshape(1, -1)[0].sum())(3)
os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
assert not any(os.access(path, os.W_OK) for path in ({str(tree)!r}, {str(tree / "splitwire/codec/kernels")!r}))
"""
    found, said = python(become + QUICK, folder=tree, PYTHONPATH=str(tree), **chosen)
    assert Path(found["source"]).is_relative_to(tree)
    return found, said


def test_user_without_a_place_to_write(readable_tree: Path):
    """Everything works, compiled in memory, with one line about it."""
    found, said = as_nobody(readable_tree, HOME="/nonexistent")
    assert found["hits"] == 0
    assert {cached for _, cached in found["loaded"]} == {False}
    assert said.count("\n") == 1, said
    assert "compiled kernels cannot be kept in /nonexistent/.cache/splitwire" in said
    assert "SPLITWIRE_CACHE_DIR" in said


def test_user_who_can_read_the_cache_that_root_made(readable_tree: Path, warm: tuple[Path, dict[str, Any]]):
    """A container: warmed up in the image, started as nobody with nothing to write to; no warning."""
    folder = readable_tree / "kernels"
    shutil.copytree(warm[0], folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o022)  # as root's umask leaves it, less pytest's 0700 of the topmost
    folder.chmod(0o755)
    found, said = as_nobody(readable_tree, HOME="/nonexistent", SPLITWIRE_CACHE_DIR=str(folder))
    assert (found["misses"], said) == (0, "")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell a process's peak")
@pytest.mark.parametrize("op", ["whole-blocks", "padded-blocks", "no-tables", "predicted"])
def test_memory_stays_below_three_tensors(warm: tuple[Path, dict[str, Any]], op: str):
    """The tensor and the frame included; benchmarks/speed/startup.py has the figures for a larger one.

    Every array goes back to the system as soon as it is freed: what glibc kept of the encoder's would hide what the
    decoder takes.
    """
    code = f"""
import json
from pathlib import Path
import numpy as np
from splitwire.codec.codec import FeatureCodec
from splitwire.codec.warmup import example_profile
def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
small = FeatureCodec(example_profile())
small.decode(small.encode([np.zeros((1, 2, 8, 4), np.float32)], op={op!r}))
codec = FeatureCodec(example_profile((64, 128, 128)))
Path("/proc/self/clear_refs").write_text("5")
start = memory("VmRSS")
x = np.empty((4, 64, 128, 128), np.float32)
x.reshape(-1, 4096)[:] = np.random.default_rng(0).uniform(-1, 2, 4096)
frame = codec.encode([x], op={op!r})
encode = memory("VmHWM") - start
size = x.nbytes
del x
Path("/proc/self/clear_refs").write_text("5")
start = memory("VmRSS") - len(frame)
codec.decode(frame)
print(json.dumps({{"encode": encode / size, "decode": (memory("VmHWM") - start) / size}}))
"""
    found, _ = python(code, SPLITWIRE_CACHE_DIR=str(warm[0]), MALLOC_MMAP_THRESHOLD_="65536")
    assert 1 <= found["encode"] < 3
    assert 1 <= found["decode"] < 3
