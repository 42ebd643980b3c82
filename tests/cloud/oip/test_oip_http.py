"""The Open Inference Protocol over HTTP, with tritonclient as it is: every call, and the outputs of the loopback."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, cast

import httpx
import numpy as np
import pytest
from mutations import seal
from runtime_helpers import Pair, Served, images, make_pair, serving

from splitwire.codec.codec import FeatureCodec
from splitwire.runtime_cloud.repository import Models
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport import LoopbackTransport

triton = pytest.importorskip("tritonclient.http")
utils = pytest.importorskip("tritonclient.utils")


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two tensors cross its cut, so its frames have the long form."""
    return make_pair(tmp_path_factory.mktemp("double"), seed=1, two_tensors=True)


@pytest.fixture(scope="module")
def served(pair: Pair, double: Pair) -> Iterator[Served]:
    with serving(pair, double) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[Any]:
    with triton.InferenceServerClient(served.url.removeprefix("http://")) as made:
        yield made


def features(pair: Pair, batch: int = 1, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.abs(rng.normal(size=(batch, *t.shape))).astype(np.float32) for t in pair.profile.tensors]


def frame_of(pair: Pair, batch: int = 1, seed: int = 0, frame_id: int = 7) -> bytes:
    return FeatureCodec(pair.profile).encode(features(pair, batch, seed), frame_id=frame_id)


def frame_tensor(*frames: bytes) -> Any:
    tensor = triton.InferInput("frame", [len(frames)], "BYTES")
    return tensor.set_data_from_numpy(np.array(frames, dtype=np.object_))


def assert_equal(result: Any, outputs: dict[str, np.ndarray]) -> None:
    for name, array in outputs.items():
        got = result.as_numpy(name)
        assert got.dtype == array.dtype
        assert got.shape == array.shape
        assert got.tobytes() == array.tobytes()


# ------------------------------------------------------------------ what the server says


def test_health(client: Any):
    assert client.is_server_live() is True
    assert client.is_server_ready() is True
    assert client.is_model_ready("tiny-0") is True
    assert client.is_model_ready("tiny-0", "1") is True
    assert client.is_model_ready("tiny-0", "2") is False
    assert client.is_model_ready("no such") is False


def test_a_server_that_warms_up_is_live_and_not_ready(pair: Pair):
    with serving(pair) as cold:
        cold.api.service.ready = False
        with triton.InferenceServerClient(cold.url.removeprefix("http://")) as early:
            assert early.is_server_live() is True
            assert early.is_server_ready() is False
            assert early.is_model_ready("tiny-0") is False
            with pytest.raises(utils.InferenceServerException, match="warming up") as error:
                early.infer("tiny-0", [frame_tensor(frame_of(pair))])
            assert error.value.status() == "503"


def test_metadata(client: Any):
    server = client.get_server_metadata()
    assert server["name"] == "splitwire"
    assert {"binary_tensor_data", "statistics", "model_repository", "model_configuration"} <= set(server["extensions"])
    model = client.get_model_metadata("tiny-0")
    assert {k: model[k] for k in ("name", "versions", "platform")} == {
        "name": "tiny-0",
        "versions": ["1"],
        "platform": "splitwire",
    }
    assert model["inputs"] == [
        {"name": "frame", "datatype": "BYTES", "shape": [-1]},
        {"name": "feature", "datatype": "FP32", "shape": [-1, 4, 8, 8]},
    ]
    assert model["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [-1, 5]},
        {"name": "best", "datatype": "INT64", "shape": [-1]},
    ]
    assert client.get_model_metadata("tiny-0", "1") == model


def test_config(client: Any):
    config = client.get_model_config("tiny-1")
    assert config["max_batch_size"] == 0
    assert [i["name"] for i in config["input"]] == ["frame", "feature", "side"]
    assert config["input"][0] == {"name": "frame", "data_type": "TYPE_STRING", "dims": [-1], "optional": True}
    assert config["output"][0] == {"name": "logits", "data_type": "TYPE_FP32", "dims": [-1, 5]}
    assert client.get_model_config("tiny-1", "1") == config


def test_a_network_with_one_batch_size_says_so(tmp_path):
    with (
        serving(make_pair(tmp_path, batch=2)) as fixed,
        triton.InferenceServerClient(fixed.url.removeprefix("http://")) as client,
    ):
        model = client.get_model_metadata("tiny-0")
        assert model["inputs"][1]["shape"] == [2, 4, 8, 8]
        assert model["outputs"][0]["shape"] == [2, 5]


def test_statistics(pair: Pair, double: Pair):
    """What perf_analyzer reads without a guard; a wrong request counts as a failure, of its model only."""
    with serving(pair, double) as fresh, triton.InferenceServerClient(fresh.url.removeprefix("http://")) as client:
        for _ in range(3):
            client.infer("tiny-0", [frame_tensor(frame_of(pair, batch=2))])
        with pytest.raises(utils.InferenceServerException):
            client.infer("tiny-0", [frame_tensor(b"no frame")])
        (stats,) = client.get_inference_statistics("tiny-0")["model_stats"]
        assert (stats["name"], stats["version"]) == ("tiny-0", "1")
        assert (stats["inference_count"], stats["execution_count"]) == (6, 3)
        durations = stats["inference_stats"]
        assert set(durations) == {
            "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
        }  # fmt: skip
        assert all(set(d) == {"count", "ns"} for d in durations.values())
        assert durations["success"]["count"] == 3
        assert durations["fail"]["count"] == 1
        assert durations["success"]["ns"] >= durations["compute_infer"]["ns"] > 0
        assert durations["compute_input"]["ns"] > 0
        both = client.get_inference_statistics()["model_stats"]
        assert [s["name"] for s in both] == ["tiny-0", "tiny-1"]
        assert both[1]["inference_count"] == 0
        assert client.get_inference_statistics("tiny-0", "1")["model_stats"] == [stats]


# ------------------------------------------------------------------ the repository


def test_index_load_and_unload(client: Any):
    assert client.get_model_repository_index() == [
        {"name": "tiny-0", "version": "1", "state": "READY"},
        {"name": "tiny-1", "version": "1", "state": "READY"},
    ]
    client.load_model("tiny-0")
    with pytest.raises(utils.InferenceServerException, match="no model 'other'") as error:
        client.load_model("other")
    assert error.value.status() == "404"
    with pytest.raises(utils.InferenceServerException, match="no model 'other'"):
        client.unload_model("other")


@pytest.mark.parametrize(
    "upload",
    [
        {"config": "{}"},
        {"config": '{"backend": "python"}', "files": {"file:1/model.py": b"import os"}},
    ],
)
def test_a_load_uploads_nothing(served: Served, upload: dict[str, Any]):
    """Two public vulnerabilities of other servers came by such a load. (The client's own JSON writer refuses files.)"""
    parameters = {"config": upload["config"]}
    parameters |= {k: base64.b64encode(v).decode() for k, v in upload.get("files", {}).items()}
    body = json.dumps({"parameters": parameters})
    answer = httpx.post(f"{served.url}/v2/repository/models/tiny-0/load", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("a load takes a model of the repository, and no parameters")


def test_names(pair: Pair, served: Served, client: Any):
    """A model is also found by its fingerprint, 16 digits or the 8 that a compact frame has."""
    fingerprint = pair.profile.fingerprint.hex()
    for name in (fingerprint, fingerprint[:8]):
        answer = client.infer(name, [frame_tensor(frame_of(pair))])
        assert answer.get_response()["model_name"] == name
    assert client.is_model_ready(fingerprint[:10]) is False


def test_names_with_slashes_and_a_prefix(tmp_path):
    """Tritonclient keeps slashes as they are."""
    pair = make_pair(tmp_path)
    with serving(pair) as running, triton.InferenceServerClient(running.url.removeprefix("http://")) as client:
        models = cast(Models, running.api.service.models)
        models._by_name = {"a/b c/infer": next(iter(models))}
        frame = frame_tensor(frame_of(pair))
        assert client.infer("a/b c/infer", [frame]).get_response()["model_name"] == "a/b c/infer"
        assert client.infer("a/b c/infer", [frame], model_version="1").get_response()["model_version"] == "1"
        assert client.get_model_metadata("a/b c/infer")["name"] == "a/b c/infer"
        assert client.is_model_ready("a/b c/infer") is True
        client.load_model("a/b c/infer")


# ------------------------------------------------------------------ inference


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_frame_gives_what_the_loopback_gives(pair: Pair, double: Pair, client: Any, which: int, batch: int):
    model = (pair, double)[which]
    frame = frame_of(model, batch, seed=batch)
    expected = CloudSession(model.back).infer(frame).outputs
    for compression in (None, "gzip", "deflate"):
        result = client.infer(
            f"tiny-{which}",
            [frame_tensor(frame)],
            request_id="a 1",
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
        )
        assert_equal(result, expected)
        answer = result.get_response()
        assert (answer["model_name"], answer["model_version"], answer["id"]) == (f"tiny-{which}", "1", "a 1")
        assert answer["parameters"]["frame_id"] == 7


def test_an_edge_session_gives_the_same_frames_and_outputs(pair: Pair, client: Any):
    """The whole way: what the edge encodes goes over the protocol, and the outputs are the loopback session's."""
    frames: list[bytes] = []
    cloud = CloudSession(pair.back)

    def handle(frame: bytes) -> bytes:
        frames.append(frame)
        return cloud.handle(frame)

    with EdgeSession(pair.front, transport=LoopbackTransport(handle)) as session:
        for seed in range(5):
            outputs = session.infer(images(2, seed)).outputs
            assert_equal(client.infer("tiny-0", [frame_tensor(frames[-1])]), outputs)


def test_several_frames(pair: Pair, client: Any):
    """Their outputs are one behind the other, image by image."""
    frames = [frame_of(pair, batch, seed=batch) for batch in (1, 3, 2)]
    near = CloudSession(pair.back)
    results = [near.infer(frame).outputs for frame in frames]
    joined = {name: np.concatenate([r[name] for r in results]) for name in results[0]}
    result = client.infer("tiny-0", [frame_tensor(*frames)])
    assert_equal(result, joined)
    assert result.as_numpy("logits").shape == (6, 5)
    assert "frame_id" not in result.get_response()["parameters"]


@pytest.mark.parametrize("binary", [True, False])
def test_tensors_at_the_cut(pair: Pair, double: Pair, client: Any, binary: bool):
    """The back runs on them as they are; float32 survives the way through JSON bit for bit."""
    for model in (pair, double):
        tensors = features(model, batch=2)
        expected = CloudSession(model.back).run_back(tensors)
        inputs = [
            triton.InferInput(spec.name, list(x.shape), "FP32").set_data_from_numpy(x, binary_data=binary)
            for spec, x in zip(model.profile.tensors, tensors, strict=True)
        ]
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("best", "logits")]
        result = client.infer(model.profile.model, inputs, outputs=outputs)
        assert_equal(result, expected)
        assert [o["name"] for o in result.get_response()["outputs"]] == ["best", "logits"]
        assert all(("data" in o) is not binary for o in result.get_response()["outputs"])
    assert_equal(client.infer("tiny-1", inputs[::-1]), expected)


def test_some_outputs_as_bytes_and_some_as_json(pair: Pair, client: Any):
    frame = frame_of(pair, 2)
    expected = CloudSession(pair.back).infer(frame).outputs
    for first in (True, False):
        outputs = [
            triton.InferRequestedOutput("best", binary_data=first),
            triton.InferRequestedOutput("logits", binary_data=not first),
        ]
        result = client.infer("tiny-0", [frame_tensor(frame)], outputs=outputs)
        assert_equal(result, expected)
    only = client.infer("tiny-0", [frame_tensor(frame)], outputs=[triton.InferRequestedOutput("best")])
    assert only.as_numpy("logits") is None


def test_many_requests_at_once(pair: Pair, served: Served):
    near = CloudSession(pair.back)
    frames = [frame_of(pair, seed=i, frame_id=i) for i in range(40)]
    with triton.InferenceServerClient(served.url.removeprefix("http://"), concurrency=8) as client:
        waiting = [client.async_infer("tiny-0", [frame_tensor(f)], priority=1 + i % 3) for i, f in enumerate(frames)]
        for frame, request in zip(frames, waiting, strict=True):
            assert_equal(request.get_result(), near.infer(frame).outputs)


def test_priority_and_timeout(pair: Pair, client: Any):
    frame = frame_tensor(frame_of(pair))
    expected = CloudSession(pair.back).infer(frame_of(pair)).outputs
    assert_equal(client.infer("tiny-0", [frame], priority=9, timeout=10**9), expected)
    with pytest.raises(utils.InferenceServerException, match="deadline") as error:
        client.infer("tiny-0", [frame], timeout=1)  # a microsecond
    assert error.value.status() == "504"
    assert_equal(client.infer("tiny-0", [frame], parameters={"mine": 3}), expected)


# ------------------------------------------------------------------ what the client cannot send well


def test_numpys_dtype_s_is_named(pair: Pair, client: Any):
    """It drops zero bytes at the end of a frame; the client sends what is left without a word."""
    frame = bytes(seal(bytearray(frame_of(pair)[:-3] + b"\1\0\0")))
    tensor = triton.InferInput("frame", [1], "BYTES").set_data_from_numpy(np.array([frame]))  # dtype S
    with pytest.raises(utils.InferenceServerException, match=r"numpy's dtype S strips them; .* dtype=object") as error:
        client.infer("tiny-0", [tensor])
    assert error.value.status() == "400"
    try:
        client.infer("tiny-0", [frame_tensor(frame)])
    except utils.InferenceServerException as e:
        assert "numpy" not in e.message()


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get_trace_settings(),
        lambda client: client.get_trace_settings("tiny-0"),
        lambda client: client.update_log_settings({}),
        lambda client: client.get_log_settings(),
        lambda client: client.get_system_shared_memory_status(),
        lambda client: client.register_system_shared_memory("a", "/a", 8),
        lambda client: client.get_cuda_shared_memory_status("a"),
    ],
)
def test_extensions_that_the_server_does_not_have(client: Any, call: Any):
    with pytest.raises(utils.InferenceServerException, match="does not have this extension") as error:
        call(client)
    assert error.value.status() == "501"


def test_parameters_that_would_change_the_answer_are_refused(pair: Pair, client: Any):
    frame = frame_tensor(frame_of(pair))
    shared = triton.InferInput("frame", [1], "BYTES")
    shared.set_shared_memory("region", 8)
    for run, word in (
        (lambda: client.infer("tiny-0", [frame], sequence_id=4, sequence_start=True), "sequences"),
        (lambda: client.infer("tiny-0", [shared]), "shared memory"),
        (
            lambda: client.infer("tiny-0", [frame], outputs=[triton.InferRequestedOutput("logits", class_count=2)]),
            "classification",
        ),
    ):
        with pytest.raises(utils.InferenceServerException, match=word) as error:
            run()
        assert error.value.status() == "501"
