"""Shares of the devices by version, where versions answer the same pair."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from repositories import change, frame_of, infer, make_pairs, put, serving_repository
from runtime_helpers import Pair

from splitwire.codec.errors import UnknownModel, UsageError
from splitwire.runtime_cloud.repository import Repository
from splitwire.runtime_cloud.repository.canary import Route, make_route, position

DEVICES = [f"device-{i}" for i in range(10_000)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return make_pairs(tmp_path_factory.mktemp("pairs"), 2)


def share_of(route: Route[str], version: str) -> float:
    return sum(route.pick(d) == version for d in DEVICES) / len(DEVICES)


def test_shares_are_those_asked_for():
    versions = [("3", "new"), ("2", "middle"), ("1", "old")]
    for shares, expected in (
        ({}, {"new": 1.0, "middle": 0.0, "old": 0.0}),
        ({"3": 0.1}, {"new": 0.1, "middle": 0.9, "old": 0.0}),
        ({"3": 0.1, "2": 0.2}, {"new": 0.1, "middle": 0.2, "old": 0.7}),
        ({"2": 0.0}, {"new": 1.0, "middle": 0.0, "old": 0.0}),
        ({"3": 0.0}, {"new": 0.0, "middle": 1.0, "old": 0.0}),
        ({"3": 0.1, "2": 0.1, "1": 0.2}, {"new": 0.25, "middle": 0.25, "old": 0.5}),
        ({"3": 0.0, "2": 0.0, "1": 0.0}, {"new": 1.0, "middle": 0.0, "old": 0.0}),
        ({"3": 1.0}, {"new": 1.0, "middle": 0.0, "old": 0.0}),
        ({"9": 0.5}, {"new": 1.0, "middle": 0.0, "old": 0.0}),
    ):
        route = make_route(b"fingerpr", versions, shares)
        for version, share in expected.items():
            assert route.share(version) == pytest.approx(share), (shares, version)
            assert share_of(route, version) == pytest.approx(share, abs=0.015), (shares, version)


def test_a_larger_share_takes_no_device_away():
    versions = [("2", "new"), ("1", "old")]
    before: set[str] = set()
    for share in (0.01, 0.1, 0.5, 1.0):
        route = make_route(b"fingerpr", versions, {"2": share})
        now = {d for d in DEVICES if route.pick(d) == "new"}
        assert before <= now
        before = now
    assert before == set(DEVICES)


def test_who_has_no_name_gets_the_rest_and_pairs_choose_other_devices():
    assert make_route(b"fingerpr", [("2", "new"), ("1", "old")], {"2": 0.99}).pick("") == "old"
    places = [(position(d, b"pair one"), position(d, b"pair two")) for d in DEVICES]
    both = sum(a < 0.1 and b < 0.1 for a, b in places) / len(DEVICES)
    assert both == pytest.approx(0.01, abs=0.005)


@pytest.mark.slow
def test_a_share_by_settings_and_by_the_api(pairs: list[Pair], tmp_path: Path):
    put(pairs[0], tmp_path / "a/1")
    put(pairs[0], tmp_path / "a/2")
    put(pairs[1], tmp_path / "a/3")  # another pair: it has its own devices
    (tmp_path / "a/splitwire.toml").write_text('[canary]\n"2" = 0.3\n')
    frame = frame_of(pairs[0])
    with serving_repository(tmp_path) as served:

        def index() -> dict[str, tuple[float, int]]:
            listed = served.api.service.models.index()
            return {m.version: (m.share, m.answers) for m in listed}

        assert {v: share for v, (share, _) in index().items()} == {"1": 0.7, "2": 0.3, "3": 1.0}
        devices = DEVICES[:60]
        for device in devices * 2:
            assert infer(served, frame, device).status_code == 200
        chosen = [served.api.service.models.of_frame(pairs[0].profile.fingerprint, d).version for d in devices]
        assert {v: n for v, (_, n) in index().items()} == {
            "1": 2 * chosen.count("1"),
            "2": 2 * chosen.count("2"),
            "3": 0,
        }
        assert 5 <= chosen.count("2") <= 35
        answer = change(served, "a", "share", version="2", share="1")
        assert {m["version"]: m["share"] for m in answer.json()["repository"]} == {"1": 0.0, "2": 1.0, "3": 1.0}
        answer = change(served, "a", "share", version="2", share="none")  # then the newest answers all
        assert {m["version"]: m["share"] for m in answer.json()["repository"]} == {"1": 0.0, "2": 1.0, "3": 1.0}
        assert change(served, "a", "share", version="1", share="0.5").status_code == 200
        # The version with the rest goes: the other one answers all.
        assert change(served, "a", "unload", version="2").status_code == 200
        assert {v: share for v, (share, _) in index().items()} == {"1": 1.0, "2": 0.0, "3": 1.0}
        for query in (
            {"version": "2"},
            {"version": "2", "share": "2"},
            {"share": "0.5"},
            {"version": "2", "share": "nan"},
        ):
            assert change(served, "a", "share", **query).status_code == 400
        assert change(served, "a", "share", version="9", share="0.5").status_code == 404


def test_settings_are_followed_and_bad_ones_change_nothing(pairs: list[Pair], tmp_path: Path):
    put(pairs[0], tmp_path / "a/1")
    put(pairs[0], tmp_path / "a/2")
    settings = tmp_path / "a/splitwire.toml"

    async def follow() -> None:
        repository = Repository(tmp_path, watch=0.02, settle=0.0)
        await repository.start()

        async def becomes(first: float, reason: str = "") -> None:
            with anyio.fail_after(60):
                while True:
                    _, old = repository.index()
                    if (old.share, reason in old.reason) == (first, True):
                        return
                    await anyio.sleep(0.02)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(repository.watch)
            await becomes(0.0)
            settings.write_text('[canary]\n"1" = 0.25\n')
            await becomes(0.25)
            loaded = list(repository)
            settings.write_text("[canary\n")
            await becomes(0.25, "splitwire.toml: ")
            settings.write_text('[canary]\n"1" = 0.5\n')
            await becomes(0.5)
            settings.unlink()
            await becomes(0.0)
            assert len(loaded) == 2
            tasks.cancel_scope.cancel()
        with pytest.raises(UsageError, match="at most 1 together"):
            await repository.set_share("a", "1", 1.5)
        with pytest.raises(UnknownModel):
            await repository.set_share("b", "1", 0.5)

    anyio.run(follow)
