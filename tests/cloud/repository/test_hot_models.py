"""Loading, loading again and unloading while the server answers: nothing is dropped."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx
import pytest
from repositories import Load, change, frame_of, infer, make_pairs, put, reason, serving_repository, states
from runtime_helpers import Pair, until

from splitwire.codec.wire.reply import decode_reply
from splitwire.runtime_cloud.repository import RepositoryLimits
from splitwire.runtime_cloud.session import CloudSession


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return make_pairs(tmp_path_factory.mktemp("pairs"), 3)


def test_load_reload_unload_and_a_bad_model_drop_nothing_of_others(pairs: list[Pair], tmp_path: Path):
    put(pairs[0], tmp_path / "steady/1")
    put(pairs[1], tmp_path / "other/1")
    steady, other = frame_of(pairs[0]), frame_of(pairs[1])
    with serving_repository(tmp_path) as served, Load(served, steady).running() as load:
        put(pairs[2], tmp_path / "late/1")
        assert change(served, "late", "load").json()["repository"][0]["state"] == "READY"
        assert infer(served, frame_of(pairs[2])).status_code == 200
        for _ in range(3):
            assert change(served, "other", "reload").status_code == 200
            assert change(served, "steady", "reload").status_code == 200  # also the one under load
            assert infer(served, other).status_code == 200
        assert change(served, "other", "unload").status_code == 200
        assert states(served) == {"late 1": "READY", "other 1": "UNAVAILABLE", "steady 1": "READY"}
        refused = infer(served, other)
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "fingerprint_mismatch"
        put(pairs[1], tmp_path / "bad/1", data=pairs[1].back.read_bytes()[:-100])
        answer = change(served, "bad", "load")
        assert answer.status_code == 400
        assert "bad 1 cannot be loaded: " in answer.json()["error"]["message"]
        assert str(tmp_path) not in answer.text
        assert states(served)["bad 1"] == "UNAVAILABLE"
        assert change(served, "other", "load").status_code == 200
        assert infer(served, other).status_code == 200
        before = load.answers
        until(lambda: load.answers > before + 5)
    assert load.failures == []


def test_a_reloaded_pair_answers_running_and_queued_frames_on_the_session_they_leased(
    pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put(pairs[0], tmp_path / "one/1")
    frame = frame_of(pairs[0])
    hold, sessions, plain = threading.Event(), [], CloudSession.infer

    def held(self: CloudSession, data: bytes):
        if hold.is_set():
            return plain(self, data)
        sessions.append(self)
        hold.wait(30)
        return plain(self, data)

    with serving_repository(tmp_path) as served:
        scheduler = served.api.service.scheduler
        monkeypatch.setattr(type(scheduler), "_runs_here", lambda self, job: False)
        monkeypatch.setattr(CloudSession, "infer", held)
        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(infer(served, frame))) for _ in range(5)]
        for thread in threads:
            thread.start()
        until(lambda: scheduler.running == 2 and scheduler.waiting == 3)
        (old,) = set(sessions)
        assert old.leases == 5
        monkeypatch.setattr(CloudSession, "infer", plain)  # for the warm-up of the new one
        assert change(served, "one", "reload").status_code == 200
        new = served.api.service.models.named("one")
        assert new is not old
        assert old.leases == 5
        assert change(served, "one", "unload").json()["repository"][0]["state"] == "UNLOADING"
        hold.set()
        for thread in threads:
            thread.join(60)
        assert [a.status_code for a in answers] == [200] * 5
        expected = plain(CloudSession(pairs[0].back), frame).outputs["logits"]
        assert all((decode_reply(a.content).outputs["logits"] == expected).all() for a in answers)
        until(lambda: old.leases == 0)
        with pytest.raises(Exception, match="is closed"):
            plain(old, frame)
        until(lambda: states(served) == {"one 1": "UNAVAILABLE"})


def test_the_folder_is_followed(pairs: list[Pair], tmp_path: Path):
    put(pairs[0], tmp_path / "one/1")
    with (
        serving_repository(tmp_path, watch=0.05, settle=0.1) as served,
        Load(served, frame_of(pairs[0])).running() as load,
    ):
        put(pairs[1], tmp_path / "two/1")
        until(lambda: states(served).get("two 1") == "READY")
        assert infer(served, frame_of(pairs[1])).status_code == 200
        put(pairs[2], tmp_path / "two/2")  # another pair: version 1 serves on for its devices
        until(lambda: states(served).get("two 2") == "READY")
        assert served.api.service.models.named("two").version == "2"
        assert [infer(served, frame_of(p)).status_code for p in pairs] == [200] * 3
        (tmp_path / "two/1/back.onnx").unlink()
        until(lambda: "two 1" not in states(served))
        assert infer(served, frame_of(pairs[1])).status_code == 409
        # A version that was unloaded by hand stays so, whatever the folder does.
        assert change(served, "two", "unload").status_code == 200
        put(pairs[1], tmp_path / "two/3")
        until(lambda: states(served).get("two 3") == "UNAVAILABLE")
        assert reason(served, "two 3") == "unloaded"
        assert change(served, "two", "load", version="3").status_code == 200
        assert states(served) == {"one 1": "READY", "two 3": "READY", "two 2": "UNAVAILABLE"}
    assert load.failures == []


def test_a_half_written_file_is_not_loaded(pairs: list[Pair], tmp_path: Path):
    put(pairs[0], tmp_path / "one/1")
    data = pairs[1].back.read_bytes()
    with serving_repository(tmp_path, watch=0.05, settle=1.0) as served:
        folder = tmp_path / "two/1"
        folder.mkdir(parents=True)
        with (folder / "back.onnx").open("wb") as file:
            for start in range(0, len(data), len(data) // 8):
                file.write(data[start : start + len(data) // 8])
                file.flush()
                time.sleep(0.2)
                assert states(served) == {"one 1": "READY"}  # never tried
        until(lambda: states(served).get("two 1") == "READY")
        kinds = [happened.kind for happened in _events(served)]
        assert "model_quarantined" not in kinds
        assert kinds.count("model_loaded") == 2


def test_a_bad_model_is_quarantined_and_recovers_when_its_file_changes(pairs: list[Pair], tmp_path: Path):
    put(pairs[0], tmp_path / "one/1")
    put(pairs[1], tmp_path / "two/1", data=b"no graph")
    with serving_repository(tmp_path, watch=0.05, settle=0.1) as served:  # it starts all the same
        assert states(served) == {"one 1": "READY", "two 1": "UNAVAILABLE"}
        assert "is not a graph that ONNX Runtime can open" in reason(served, "two 1")
        until(lambda: len(_quarantines(served)) == 1)
        time.sleep(0.5)
        assert len(_quarantines(served)) == 1  # it is not tried again and again
        put(pairs[1], tmp_path / "two/1")
        until(lambda: states(served)["two 1"] == "READY")
        # Bad bytes over a good model: what was loaded serves on, and the index says why.
        put(pairs[1], tmp_path / "two/1", data=b"no graph")
        until(lambda: "is not a graph" in reason(served, "two 1"))
        assert states(served)["two 1"] == "READY"
        assert infer(served, frame_of(pairs[1])).status_code == 200
        put(pairs[2], tmp_path / "two/1")
        until(lambda: infer(served, frame_of(pairs[2])).status_code == 200)
        assert reason(served, "two 1") == ""


def test_a_model_that_fails_its_warm_up_is_quarantined(
    pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = CloudSession.warm_up

    def broken(self: CloudSession) -> None:
        if self.profile.model == "tiny-1":
            raise RuntimeError("no kernel for this GPU")
        plain(self)

    monkeypatch.setattr(CloudSession, "warm_up", broken)
    put(pairs[0], tmp_path / "one/1")
    put(pairs[1], tmp_path / "two/1")
    with serving_repository(tmp_path) as served:
        assert states(served) == {"one 1": "READY", "two 1": "UNAVAILABLE"}
        assert reason(served, "two 1") == "it fails to run: no kernel for this GPU"
        monkeypatch.setattr(CloudSession, "warm_up", plain)
        assert change(served, "two", "reload").status_code == 200
        assert infer(served, frame_of(pairs[1])).status_code == 200


def test_the_loop_answers_while_a_model_loads(pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(pairs[0], tmp_path / "one/1")
    put(pairs[1], tmp_path / "two/1")
    release, plain = threading.Event(), CloudSession.warm_up
    with serving_repository(tmp_path) as served:
        monkeypatch.setattr(CloudSession, "warm_up", lambda self: (release.wait(60), plain(self))[1])
        assert change(served, "two", "unload").status_code == 200
        thread = threading.Thread(target=change, args=(served, "two", "load"))
        thread.start()
        until(lambda: states(served)["two 1"] == "LOADING")
        assert [infer(served, frame_of(pairs[0])).status_code for _ in range(10)] == [200] * 10
        assert infer(served, frame_of(pairs[1])).status_code == 409  # not before it is warm
        assert httpx.get(served.url + "/readyz").status_code == 200
        release.set()
        thread.join(60)
        assert infer(served, frame_of(pairs[1])).status_code == 200


def test_without_any_model_the_server_is_not_ready_and_takes_one(pairs: list[Pair], tmp_path: Path):
    put(pairs[0], tmp_path / "one/1")
    with serving_repository(tmp_path) as served:
        assert change(served, "one", "unload").status_code == 200
        assert httpx.get(served.url + "/readyz").status_code == 503
        assert infer(served, frame_of(pairs[0])).status_code == 503
        assert change(served, "one", "load").status_code == 200
        assert httpx.get(served.url + "/readyz").status_code == 200
        assert infer(served, frame_of(pairs[0])).status_code == 200


def test_limits(pairs: list[Pair], tmp_path: Path):
    for i, pair in enumerate(pairs[:2]):
        put(pair, tmp_path / f"m{i}/1")
    with serving_repository(tmp_path, limits=RepositoryLimits(models=2)) as served:
        put(pairs[2], tmp_path / "m2/1")
        assert "2 versions are loaded, which is the limit" in change(served, "m2", "load").text
        assert change(served, "m0", "reload").status_code == 200
        assert change(served, "m0", "unload").status_code == 200
        assert change(served, "m2", "load").status_code == 200
    size = sum(p.back.stat().st_size for p in pairs)
    with serving_repository(tmp_path, limits=RepositoryLimits(file_bytes=size - 1)) as served:
        assert list(states(served).values()) == ["READY", "READY", "UNAVAILABLE"]
        assert reason(served, "m2 1") == f"with it the files would have {size} bytes; the limit is {size - 1}"


def test_requests_that_ask_for_what_is_not_there(pairs: list[Pair], tmp_path: Path):
    put(pairs[0], tmp_path / "one/1")
    with serving_repository(tmp_path) as served:
        for name in ("none", "..", "%2e%2e%2fone", "one%2f1", "%00", "a" * 5000):
            answer = httpx.post(f"{served.url}/v1/models/{name}/load")
            assert answer.status_code == 404, name
        assert change(served, "one", "unload", version="2").json()["error"] == {
            "code": "unknown_model",
            "message": "model one has no version '2', it has 1",
        }
        assert "nobody reads" in httpx.post(f"{served.url}/v1/models/one/load", content=b"{}").text
        assert "'file' is unknown" in change(served, "one", "load", file="x").text
        assert httpx.get(f"{served.url}/v1/models/one/load").status_code == 405
        assert states(served) == {"one 1": "READY"}


def _events(served):
    from splitwire.runtime_cloud.observe import Telemetry, all_observers

    telemetry = next(o for o in all_observers(served.api.service.observer) if isinstance(o, Telemetry))
    return list(telemetry.events)


def _quarantines(served):
    return [e for e in _events(served) if e.kind == "model_quarantined"]
