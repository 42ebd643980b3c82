"""What a folder holds: layouts, names, links, settings, and what is refused with which reason."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest
from repositories import make_pairs, put
from runtime_helpers import Pair

from splitwire.codec.errors import DeviceError, ProfileError, UnknownModel, UsageError
from splitwire.runtime_cloud.repository import Repository, RepositoryLimits
from splitwire.runtime_cloud.repository.layout import scan
from splitwire.runtime_cloud.repository.watch import Watch
from splitwire.runtime_cloud.session import CloudSession


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return make_pairs(tmp_path_factory.mktemp("pairs"), 3)


def started(root: Path, **options: object) -> Repository:
    repository = Repository(root, **options)  # type: ignore[arg-type]  # each test passes what it means
    anyio.run(repository.start)
    return repository


def shown(repository: Repository) -> dict[tuple[str, str], str]:
    return {(m.name, m.version): m.reason or m.state for m in repository.index()}


def test_the_layouts(pairs: list[Pair], tmp_path: Path):
    put(pairs[0], tmp_path / "plain")
    put(pairs[0], tmp_path / "many/a")
    put(pairs[1], tmp_path / "many/b/2")
    put(pairs[2], tmp_path / "many/b/10")
    put(pairs[2], tmp_path / "many/b/notes")  # no number
    put(pairs[2], tmp_path / "many/b/10/deep")
    put(pairs[2], tmp_path / "many/.hidden/1")
    (tmp_path / "many/empty/1").mkdir(parents=True)
    assert shown(started(tmp_path / "plain")) == {("plain", "1"): "READY"}
    assert shown(started(tmp_path / "plain/back.onnx")) == {("plain", "1"): "READY"}
    many = started(tmp_path / "many")
    assert list(shown(many)) == [("a", "1"), ("b", "10"), ("b", "2")]  # the newest first
    assert len(many) == 3
    for pair, (name, version) in zip(pairs, (("a", "1"), ("b", "2"), ("b", "10")), strict=True):
        session = many.of_frame(pair.profile.fingerprint)
        assert many.of_frame(pair.profile.fingerprint[:4]) is session
        assert many.named(name, version) is session
        assert many.named(pair.profile.fingerprint.hex()) is session
        assert many.named(pair.profile.model) is session
        assert session.version == version
    assert many.named("b").version == "10"
    for name, version, words in (("c", "", "no model 'c'; the repository has a, b"), ("b", "3", "it has 10, 2")):
        with pytest.raises(UnknownModel, match=words):
            many.named(name, version)


def test_what_cannot_be_served_is_listed_with_the_reason(pairs: list[Pair], tmp_path: Path):
    root = tmp_path / "root"
    put(pairs[0], root / "good/1")
    put(pairs[1], tmp_path / "outside/1")
    (root / "file/1").mkdir(parents=True)
    (root / "file/1/back.onnx").symlink_to(tmp_path / "outside/1/back.onnx")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "nowhere/1").mkdir(parents=True)
    (root / "nowhere/1/back.onnx").symlink_to(root / "none")
    put(pairs[1], root / "weights/1")
    (root / "weights/1/back.onnx.data").symlink_to("/etc/passwd")
    (root / "pipe/1").mkdir(parents=True)
    os.mkfifo(root / "pipe/1/back.onnx")
    put(pairs[1], root / "a b/1")
    put(pairs[1], root / "mixed")
    put(pairs[1], root / "mixed/1")
    put(pairs[0], root / "same/1")
    out = "is a link that leads out of the repository"
    assert shown(started(root)) == {
        ("good", "1"): "READY",
        ("file", "1"): f"back.onnx {out}",
        ("folder", "1"): f"back.onnx {out}",
        ("nowhere", "1"): "back.onnx is no file",
        ("weights", "1"): f"back.onnx.data {out}",
        ("pipe", "1"): "back.onnx is no file",
        ("a b", ""): "the name of its folder has other characters than A-Z a-z 0-9 . _ - or is longer than 128",
        ("mixed", "1"): "READY",
        ("mixed", ""): "back.onnx lies beside version folders; give it one of its own",
        ("same", "1"): f"it and good 1 are the same pair {pairs[0].profile.fingerprint.hex()}",
    }


def test_a_link_inside_of_the_folder_is_followed(pairs: list[Pair], tmp_path: Path):
    put(pairs[0], tmp_path / "root/.store/5")
    (tmp_path / "root/one").mkdir()
    (tmp_path / "root/one/5").symlink_to("../.store/5")
    (tmp_path / "link").symlink_to("root")
    assert shown(started(tmp_path / "link")) == {("one", "5"): "READY"}


def test_pairs_that_compact_frames_do_not_tell_apart(
    pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = CloudSession.__init__

    def clashing(self: CloudSession, *args: object, **options: object) -> None:
        plain(self, *args, **options)  # type: ignore[arg-type]  # as they came
        self.fingerprint = b"same" + self.fingerprint[4:]
        self.pair = self.fingerprint.hex()

    monkeypatch.setattr(CloudSession, "__init__", clashing)
    put(pairs[0], tmp_path / "a/1")
    put(pairs[1], tmp_path / "b/1")
    repository = started(tmp_path)
    assert [m.state for m in repository.index()] == ["READY", "UNAVAILABLE"]
    assert "both begin with 73616d65; export one of them again" in repository.index()[1].reason


def test_folders_in_which_nothing_can_be_served(pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").mkdir()
    for folder, words in (("none", "no such directory"), ("empty", "holds no back.onnx, nor does a folder in it")):
        with pytest.raises(UsageError, match=words):
            Repository(tmp_path / folder)
    put(pairs[0], tmp_path / "bad/a", data=b"x")
    with pytest.raises(ProfileError, match="is not a graph"):  # the error of the only model
        Repository(tmp_path / "bad")
    put(pairs[0], tmp_path / "bad/b/3", data=b"x")
    words = (
        r"none of the 2 models in .*/bad can be served: a 1: back.onnx is not a graph .*; b 3: back.onnx is not a gr"
    )
    with pytest.raises(UsageError, match=words):
        Repository(tmp_path / "bad")
    with pytest.raises(UsageError, match=r"the model in .* cannot be served: mixed 1: splitwire\.toml: "):
        put(pairs[0], tmp_path / "settings/mixed")
        (tmp_path / "settings/mixed/splitwire.toml").write_text("nonsense")
        Repository(tmp_path / "settings")

    def broken(self: CloudSession) -> None:
        raise DeviceError("it does not run here")

    monkeypatch.setattr(CloudSession, "warm_up", broken)
    put(pairs[0], tmp_path / "fails/a")
    with pytest.raises(DeviceError, match="it does not run here"):
        started(tmp_path / "fails")
    for options in ({"watch": 0.0}, {"settle": -1.0}, {"watch": float("nan")}):
        with pytest.raises(UsageError, match="need watch > 0"):
            Repository(tmp_path / "fails", **options)  # type: ignore[arg-type]  # the numbers are what is wrong
    with pytest.raises(UsageError, match="need models ≥ 1"):
        RepositoryLimits(models=0)


def test_settings_say_how_a_version_runs(pairs: list[Pair], tmp_path: Path):
    put(pairs[0], tmp_path / "a/1")
    put(pairs[0], tmp_path / "a/2")
    settings = tmp_path / "a/splitwire.toml"
    settings.write_text('[versions."2"]\nprovider = "CPU"\nthreads = 1\n')
    repository = started(tmp_path)
    assert shown(repository) == {("a", "1"): "READY", ("a", "2"): "READY"}
    before = scan(tmp_path).candidates
    settings.write_text('[versions."2"]\nprovider = "NoSuch"\n')
    after = scan(tmp_path).candidates
    assert [before[k].stamp == after[k].stamp for k in (("a", "1"), ("a", "2"))] == [True, False]
    anyio.run(repository_load_fails, repository, "a 2 cannot be loaded: .*NoSuch")
    assert repository.named("a", "2").version == "2"  # what was loaded serves on
    for text, words in (
        ('[versions."1"]\nthreads = 0\n', "Expected `int` >= 1"),
        ("other = 1\n", "unknown field `other`"),
        ('[canary]\n"1" = 0.6\n"2" = 0.6\n', "are more than 1 together"),
        ('[canary]\n"1" = nan\n', "Expected `float`|more than 1|is from 0"),
        ("x" * 70_000, "more than 65536 bytes"),
    ):
        settings.write_text(text)
        assert all(c.problem for c in scan(tmp_path).candidates.values()), text
        anyio.run(repository_load_fails, repository, words)
    settings.unlink()
    settings.symlink_to(tmp_path.parent / "none")
    assert scan(tmp_path).candidates["a", "1"].problem == "splitwire.toml is a link that leads out of the repository"


async def repository_load_fails(repository: Repository, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        await repository.load("a")


def test_the_watch_waits_until_files_are_at_rest(pairs: list[Pair], tmp_path: Path):
    now = [0.0]
    watch = Watch(1.0, lambda: now[0])
    put(pairs[0], tmp_path / "a/1")
    key = ("a", "1")

    def look(seconds: float, *, tried: bool) -> list[tuple[str, str]]:
        now[0] += seconds
        seen = scan(tmp_path).candidates
        return watch.settled({key: stamp} if tried else {}, seen)

    stamp = scan(tmp_path).candidates[key].stamp
    assert look(0, tried=True) == []
    assert look(9, tried=True) == []  # nothing has changed
    assert look(0, tried=False) == []  # new: seen for the first time
    assert look(0.9, tried=False) == []
    put(pairs[0], tmp_path / "a/1")  # the same bytes in another file
    assert look(0.9, tried=False) == []
    assert look(0.9, tried=False) == []
    assert look(0.2, tried=False) == [key]
    put(pairs[1], tmp_path / "a/1")
    assert look(0, tried=True) == []
    os.utime(tmp_path / "a/1/back.onnx", (1, 1))
    assert look(2, tried=True) == []
    assert look(2, tried=True) == [key]
    (tmp_path / "a/1/back.onnx").unlink()
    assert look(0, tried=True) == []
    assert look(2, tried=True) == [key]  # gone


def test_a_folder_that_is_away_for_a_moment_loses_nothing(pairs: list[Pair], tmp_path: Path):
    put(pairs[0], tmp_path / "root/a/1")

    async def follow() -> None:
        repository = Repository(tmp_path / "root", watch=0.02, settle=0.0)
        await repository.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(repository.watch)
            (tmp_path / "root").rename(tmp_path / "away")
            await anyio.sleep(0.3)
            assert len(repository) == 1
            (tmp_path / "away").rename(tmp_path / "root")
            put(pairs[1], tmp_path / "root/b/1")
            with anyio.fail_after(60):
                while len(repository) < 2:
                    await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()

    anyio.run(follow)
