"""The Open Inference Protocol over gRPC, with tritonclient as it is: every call, and the outputs of the loopback."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import seal
from runtime_helpers import Pair, Served, make_pair, serving, until

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import ServerBusy
from splitwire.codec.wire.oip.tensors import pack_bytes
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.oip import GrpcOptions
from splitwire.runtime_cloud.session import CloudSession

triton = pytest.importorskip("tritonclient.grpc")
grpc = pytest.importorskip("grpc")
service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
utils = pytest.importorskip("tritonclient.utils")

METHOD = "/inference.GRPCInferenceService/"
MAX_BODY = 1 << 20


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("double"), seed=1, two_tensors=True)


@pytest.fixture(scope="module")
def listening(pair: Pair, double: Pair) -> Iterator[tuple[Served, str]]:
    target: queue.Queue[str] = queue.Queue()
    options = GrpcOptions(port=0, on_listen=target.put)
    with serving(pair, double, limits=ServerLimits(max_body=MAX_BODY, queue=64), grpc=options) as running:
        yield running, target.get(timeout=10)


@pytest.fixture(scope="module")
def target(listening: tuple[Served, str]) -> str:
    return listening[1]


@pytest.fixture
def client(target: str) -> Iterator[Any]:
    with triton.InferenceServerClient(target) as made:
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


def call(target: str, method: str, request: bytes, **more: Any) -> bytes:
    """One call with bytes, as any client could send them."""
    with grpc.insecure_channel(target) as channel:
        answer: bytes = channel.unary_unary(METHOD + method)(request, timeout=20, **more)
        return answer


def refused(target: str, request: Any, method: str = "ModelInfer") -> tuple[str, str]:
    """(status, text) of a call that is refused."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    with pytest.raises(grpc.RpcError) as error:
        call(target, method, data)
    assert "\n" not in error.value.details()
    return error.value.code().name, error.value.details()


# ------------------------------------------------------------------ every call of the client


def test_health(client: Any):
    assert client.is_server_live() is True
    assert client.is_server_ready() is True
    assert client.is_model_ready("tiny-0") is True
    assert client.is_model_ready("tiny-0", "1") is True
    assert client.is_model_ready("tiny-0", "2") is False
    assert client.is_model_ready("no such") is False


def test_metadata_and_config(client: Any):
    server = client.get_server_metadata(as_json=True)
    assert server["name"] == "splitwire"
    assert "statistics" in server["extensions"]
    model = client.get_model_metadata("tiny-1", "1")
    assert (model.name, list(model.versions), model.platform) == ("tiny-1", ["1"], "splitwire")
    assert [(i.name, i.datatype, list(i.shape)) for i in model.inputs] == [
        ("frame", "BYTES", [-1]),
        ("feature", "FP32", [-1, 4, 8, 8]),
        ("side", "FP32", [-1, 6]),
    ]
    assert [(o.name, o.datatype, list(o.shape)) for o in model.outputs] == [
        ("logits", "FP32", [-1, 5]),
        ("best", "INT64", [-1]),
    ]
    config = client.get_model_config("tiny-1").config
    assert (config.name, config.max_batch_size, config.backend) == ("tiny-1", 0, "splitwire")
    assert [(i.name, i.data_type, list(i.dims), i.optional) for i in config.input][:2] == [
        ("frame", 13, [-1], True),
        ("feature", 11, [-1, 4, 8, 8], True),
    ]
    assert [(o.name, o.data_type, list(o.dims)) for o in config.output][1] == ("best", 9, [-1])


def test_statistics(client: Any, pair: Pair):
    before = client.get_inference_statistics("tiny-0").model_stats[0]
    client.infer("tiny-0", [frame_tensor(frame_of(pair, 2))])
    (after,) = client.get_inference_statistics("tiny-0", "1").model_stats
    assert (after.name, after.version) == ("tiny-0", "1")
    assert after.inference_count - before.inference_count == 2
    assert after.execution_count - before.execution_count == 1
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert [s.name for s in client.get_inference_statistics().model_stats] == ["tiny-0", "tiny-1"]


def test_the_repository(client: Any):
    models = client.get_model_repository_index().models
    assert [(m.name, m.version, m.state) for m in models] == [("tiny-0", "1", "READY"), ("tiny-1", "1", "READY")]
    client.load_model("tiny-0")
    for run, text in (
        (lambda: client.load_model("other"), "no model 'other'"),
        (lambda: client.load_model("tiny-0", config="{}"), "no parameters; got 'config'"),
        (lambda: client.load_model("tiny-0", config="{}", files={"file:1/m.py": b"x"}), "models are not uploaded"),
        (lambda: client.unload_model("other"), "no model 'other'"),
    ):
        with pytest.raises(utils.InferenceServerException, match=text):
            run()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_a_frame_gives_what_the_loopback_gives(
    pair: Pair, double: Pair, client: Any, which: int, compression: str | None
):
    model = (pair, double)[which]
    frame = frame_of(model, 2)
    expected = CloudSession(model.back).infer(frame).outputs
    result = client.infer(
        f"tiny-{which}", [frame_tensor(frame)], request_id="a", compression_algorithm=compression, client_timeout=20
    )
    assert_equal(result, expected)
    answer = result.get_response()
    assert (answer.model_name, answer.model_version, answer.id) == (f"tiny-{which}", "1", "a")
    assert len(answer.raw_output_contents) == len(answer.outputs) == 2
    assert answer.parameters["frame_id"].int64_param == 7


def test_several_frames_tensors_and_chosen_outputs(pair: Pair, double: Pair, client: Any):
    frames = [frame_of(pair, batch, batch) for batch in (1, 2)]
    near = CloudSession(pair.back)
    joined = np.concatenate([near.infer(f).outputs["logits"] for f in frames])
    assert client.infer("tiny-0", [frame_tensor(*frames)]).as_numpy("logits").tobytes() == joined.tobytes()
    tensors = features(double, 3)
    inputs = [
        triton.InferInput(spec.name, list(x.shape), "FP32").set_data_from_numpy(x)
        for spec, x in zip(double.profile.tensors, tensors, strict=True)
    ]
    outputs = [triton.InferRequestedOutput(name) for name in ("best", "logits")]
    result = client.infer("tiny-1", inputs, outputs=outputs, priority=3, timeout=10**8)
    assert_equal(result, CloudSession(double.back).run_back(tensors))
    assert [o.name for o in result.get_response().outputs] == ["best", "logits"]


def test_contents_that_are_not_raw(pair: Pair, target: str):
    """KServe's clients send the elements in fields of their type."""
    (x,) = features(pair)
    request = service_pb2.ModelInferRequest(model_name="tiny-0")
    tensor = request.inputs.add(name="feature", datatype="FP32", shape=x.shape)
    tensor.contents.fp32_contents.extend(x.ravel().tolist())
    got = service_pb2.ModelInferResponse.FromString(call(target, "ModelInfer", request.SerializeToString()))
    expected = CloudSession(pair.back).run_back([x])
    assert got.raw_output_contents[0] == expected["logits"].tobytes()
    frame = frame_of(pair)
    request = service_pb2.ModelInferRequest(model_name="tiny-0")
    request.inputs.add(name="frame", datatype="BYTES", shape=[1]).contents.bytes_contents.append(frame)
    got = service_pb2.ModelInferResponse.FromString(call(target, "ModelInfer", request.SerializeToString()))
    assert got.raw_output_contents[0] == CloudSession(pair.back).infer(frame).outputs["logits"].tobytes()


def test_many_requests_at_once(pair: Pair, client: Any):
    near = CloudSession(pair.back)
    frames = [frame_of(pair, seed=i) for i in range(30)]
    results: queue.Queue[tuple[int, Any, Any]] = queue.Queue()

    def done(i: int) -> Callable[..., None]:
        return lambda result, error: results.put((i, result, error))

    for i, frame in enumerate(frames):
        client.async_infer("tiny-0", [frame_tensor(frame)], callback=done(i))
    for _ in frames:
        i, result, error = results.get(timeout=20)
        assert error is None
        assert_equal(result, near.infer(frames[i]).outputs)


# ------------------------------------------------------------------ the stream


def test_a_stream(pair: Pair, client: Any):
    """Answers come in the order of the requests; a refused one has its id, and costs the others nothing."""
    near = CloudSession(pair.back)
    frames = [frame_of(pair, seed=i, frame_id=i) for i in range(60)]
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: results.put((result, error)))
    for i, frame in enumerate(frames):
        name = "other" if i % 10 == 3 else "tiny-0"
        body = frame[:-1] if i % 10 == 7 else frame
        client.async_stream_infer(name, [frame_tensor(body)], request_id=str(i), enable_empty_final_response=i % 2 == 0)
    for i, frame in enumerate(frames):
        result, error = results.get(timeout=20)
        match i % 10:
            case 3:
                assert error.message() == "no model 'other'; served are tiny-0, tiny-1"
            case 7:
                assert "checksum" in error.message()
            case _:
                assert error is None
                answer = result.get_response()
                assert answer.id == str(i)
                assert answer.parameters["frame_id"].int64_param == i
                assert answer.parameters["triton_final_response"].bool_param is (i % 2 == 0)
                assert_equal(result, near.infer(frame).outputs)
    client.stop_stream()
    assert results.empty()


def test_an_error_in_a_stream_has_the_id_of_its_request(target: str):
    request = service_pb2.ModelInferRequest(model_name="other", id="x 7")
    with grpc.insecure_channel(target) as channel:
        answers = channel.stream_stream(METHOD + "ModelStreamInfer")(iter([request.SerializeToString(), b"\xff"]))
        first, second = (service_pb2.ModelStreamInferResponse.FromString(a) for a in answers)
    assert first.error_message.startswith("no model 'other'")
    assert first.infer_response.id == "x 7"
    assert second.error_message == "the message ends within a number"
    assert second.infer_response.id == ""


def test_a_stream_that_is_given_up(pair: Pair, listening: tuple[Served, str], client: Any):
    """The server forgets it, with what it has not answered."""
    running, target = listening
    for _ in range(5):
        with grpc.insecure_channel(target) as channel:
            stream = channel.stream_stream(METHOD + "ModelStreamInfer")
            request = service_pb2.ModelInferRequest(
                model_name="tiny-0", raw_input_contents=[pack_bytes([frame_of(pair)])]
            )
            request.inputs.add(name="frame", datatype="BYTES", shape=[1])
            answers = stream(iter([request.SerializeToString()] * 50))
            next(answers)
            answers.cancel()
    until(lambda: running.api.service.gate._buffered == 0)
    assert_equal(
        client.infer("tiny-0", [frame_tensor(frame_of(pair))]), CloudSession(pair.back).infer(frame_of(pair)).outputs
    )


# ------------------------------------------------------------------ what is refused


def frame_request(*raw: bytes, shape: tuple[int, ...] = (1,), datatype: str = "BYTES", name: str = "frame") -> Any:
    request = service_pb2.ModelInferRequest(model_name="tiny-0", raw_input_contents=raw)
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


def test_wrong_requests(pair: Pair, target: str, tmp_path: Path):
    packed = pack_bytes([frame_of(pair)])
    x = np.zeros((1, 4, 8, 8), np.float32).tobytes()
    both = frame_request(packed)
    both.inputs[0].contents.bytes_contents.append(b"x")
    other_output = frame_request(packed)
    other_output.outputs.add(name="x")
    twice = frame_request(packed)
    twice.outputs.add(name="best")
    twice.outputs.add(name="best")
    version = frame_request(packed)
    version.model_version = "2"
    half = service_pb2.ModelInferRequest(model_name="tiny-0")
    half.inputs.add(name="feature", datatype="FP16", shape=[1]).contents.fp32_contents.append(1)
    foreign = make_pair(tmp_path, seed=5)
    cases = [
        (service_pb2.ModelInferRequest(model_name="x"), "NOT_FOUND", "no model 'x'"),
        (service_pb2.ModelInferRequest(), "NOT_FOUND", "no model ''"),
        (version, "NOT_FOUND", "no version '2'"),
        (service_pb2.ModelInferRequest(model_name="tiny-0"), "INVALID_ARGUMENT", "has the inputs none"),
        (frame_request(), "INVALID_ARGUMENT", "neither contents nor raw_input_contents"),
        (frame_request(packed, packed), "INVALID_ARGUMENT", "1 inputs and 2 raw contents"),
        (both, "INVALID_ARGUMENT", "contents beside the raw contents"),
        (half, "INVALID_ARGUMENT", "send it in raw_input_contents"),
        (other_output, "INVALID_ARGUMENT", "no output 'x'"),
        (twice, "INVALID_ARGUMENT", "'best' twice"),
        (frame_request(packed, shape=(2,)), "INVALID_ARGUMENT", "ends before the length of BYTES element 1"),
        (frame_request(packed[:-1]), "INVALID_ARGUMENT", "are left"),
        (frame_request(packed + b"x"), "INVALID_ARGUMENT", "1 bytes are left behind"),
        (frame_request(packed, shape=(-1,)), "INVALID_ARGUMENT", "the shape [-1] is none"),
        (frame_request(packed, shape=(257,)), "RESOURCE_EXHAUSTED", "over the limit of 256"),
        (frame_request(packed, datatype="FP32"), "INVALID_ARGUMENT", "takes frames as BYTES, not as FP32"),
        (frame_request(x, shape=(1, 4, 8, 8), datatype="FP64", name="feature"), "INVALID_ARGUMENT", "is FP64"),
        (
            frame_request(x, shape=(1, 4, 8), datatype="FP32", name="feature"),
            "INVALID_ARGUMENT",
            "has the shape [1, 4, 8]",
        ),
        (frame_request(x[4:], shape=(1, 4, 8, 8), datatype="FP32", name="feature"), "INVALID_ARGUMENT", "has 1020"),
        (
            frame_request(pack_bytes([FeatureCodec(foreign.profile).encode(features(foreign))])),
            "FAILED_PRECONDITION",
            foreign.profile.fingerprint.hex(),
        ),
        (b"\xff\xff", "INVALID_ARGUMENT", "the message ends within a number"),
        (b"\x0b", "INVALID_ARGUMENT", "wire type 3"),
        (b"\x0a\x02\xff\xfe", "INVALID_ARGUMENT", "the message is no ModelInferRequest"),
        (b"\x80" * 11 + b"\x01", "INVALID_ARGUMENT", "more than ten bytes"),
        (b"\x2a\x05\x0a", "INVALID_ARGUMENT", "which announces 5 bytes"),
    ]
    for request, status, text in cases:
        got = refused(target, request)
        assert got[0] == status, got
        assert text in got[1]


def test_numpys_dtype_s_is_named(pair: Pair, client: Any):
    frame = bytes(seal(bytearray(frame_of(pair)[:-3] + b"\1\0\0")))
    tensor = triton.InferInput("frame", [1], "BYTES").set_data_from_numpy(np.array([frame]))  # dtype S
    with pytest.raises(utils.InferenceServerException, match=r"2 zero bytes .* numpy's dtype S strips them"):
        client.infer("tiny-0", [tensor])


def test_small_messages_become_no_large_objects(target: str):
    """Two bytes on the wire, a hundred in memory, for each field: they are counted before protobuf reads them."""
    assert refused(target, b"\x2a\x00" * 100_000)[0] == "RESOURCE_EXHAUSTED"  # inputs
    assert refused(target, b"\x3a\x00" * 100_000)[0] == "RESOURCE_EXHAUSTED"  # raw contents
    assert refused(target, b"\x22\x00" * 100_000)[0] == "RESOURCE_EXHAUSTED"  # parameters
    request = service_pb2.ModelInferRequest(model_name="tiny-0")
    request.inputs.add(shape=[1] * 100_000)
    assert refused(target, request) == ("RESOURCE_EXHAUSTED", "field 3 has 100000 bytes; the limit is 65536")
    request = service_pb2.ModelInferRequest(model_name="tiny-0")
    request.inputs.add().contents.int64_contents.extend([1] * 100_000)
    assert refused(target, request)[0] == "RESOURCE_EXHAUSTED"
    request = service_pb2.ModelInferRequest(model_name="tiny-0", id="a" * 100_000)
    assert refused(target, request)[0] == "RESOURCE_EXHAUSTED"
    for method, kind in (
        ("ModelMetadata", "ModelMetadataRequest"),
        ("RepositoryModelLoad", "RepositoryModelLoadRequest"),
    ):
        assert refused(target, b"\x1a\x00" * 100_000, method) == (
            "RESOURCE_EXHAUSTED",
            f"the {kind} has 200000 bytes; the limit is 65536",
        )


def test_a_message_over_the_limit(target: str):
    assert refused(target, frame_request(bytes(2 * MAX_BODY)))[0] == "RESOURCE_EXHAUSTED"


def test_a_compressed_bomb_is_not_inflated(target: str):
    """Of 300 MiB in a few hundred KiB the server makes no more than a message may have."""
    import resource

    code = (
        "import grpc, sys\n"
        f"channel = grpc.insecure_channel({target!r}, options=[('grpc.max_send_message_length', -1)])\n"
        f"call = channel.unary_unary('{METHOD}ModelInfer')\n"
        "try:\n    call(bytes(300 << 20), compression=grpc.Compression.Gzip, timeout=60)\n"
        "except grpc.RpcError as e:\n    print(e.code().name)\n"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout == "RESOURCE_EXHAUSTED\n"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_procedures_that_the_server_does_not_have(client: Any):
    for run in (client.get_trace_settings, client.get_log_settings, client.get_system_shared_memory_status):
        with pytest.raises(utils.InferenceServerException) as error:
            run()
        assert error.value.status() == "StatusCode.UNIMPLEMENTED"


def test_parameters_that_would_change_the_answer_are_refused(pair: Pair, client: Any):
    with pytest.raises(utils.InferenceServerException, match="the server has no sequences") as error:
        client.infer("tiny-0", [frame_tensor(frame_of(pair))], sequence_id=3, sequence_start=True)
    assert error.value.status() == "StatusCode.UNIMPLEMENTED"


def test_deadlines(pair: Pair, client: Any):
    with pytest.raises(utils.InferenceServerException, match="deadline"):
        client.infer("tiny-0", [frame_tensor(frame_of(pair))], timeout=1)


def test_a_server_that_is_busy_or_has_a_bug(pair: Pair):
    where: queue.Queue[str] = queue.Queue()
    with serving(pair, grpc=GrpcOptions(port=0, on_listen=where.put)) as running:
        target = where.get(timeout=10)
        service = running.api.service
        request = frame_request(pack_bytes([frame_of(pair)]))
        infer = service.infer

        async def busy(*_: Any) -> Any:
            raise ServerBusy("come back later", 1.5)

        service.infer = busy  # type: ignore[method-assign, assignment]  # as if the queue were full
        with pytest.raises(grpc.RpcError) as error:
            call(target, "ModelInfer", request.SerializeToString())
        assert (error.value.code().name, error.value.details()) == ("UNAVAILABLE", "come back later")
        assert dict(error.value.trailing_metadata())["retry-after"] == "2"
        service.infer = infer  # type: ignore[method-assign]  # restored
        (session,) = service.models
        session.run_back = lambda *_: 1 / 0  # type: ignore[assignment, method-assign]  # a bug
        assert refused(target, request) == ("INTERNAL", "the server failed on this request; its log says how")
        service.ready = False
        assert refused(target, request)[0] == "UNAVAILABLE"
        with triton.InferenceServerClient(target) as client:
            assert client.is_server_live() is True
            assert client.is_server_ready() is False


@pytest.mark.slow
def test_a_client_that_pings_often_is_kept(pair: Pair, target: str):
    """The default of gRPC closes such a connection: GOAWAY, too_many_pings."""
    options = triton.KeepAliveOptions(
        keepalive_time_ms=100,
        keepalive_timeout_ms=5000,
        keepalive_permit_without_calls=True,
        http2_max_pings_without_data=0,
    )
    with triton.InferenceServerClient(target, keepalive_options=options) as client:
        for _ in range(10):
            assert client.is_server_live()
            threading.Event().wait(0.25)


def test_a_key_is_answered_from_memory(pair: Pair, listening: tuple[Served, str], client: Any):
    answers = listening[0].api.service.answers
    before = answers.count
    for _ in range(3):
        client.infer("tiny-0", [frame_tensor(frame_of(pair))], headers={"idempotency-key": '"dev:boot:9"'})
    assert answers.count == before + 1


def test_a_port_that_is_taken(pair: Pair, target: str):
    from splitwire.codec.errors import UsageError
    from splitwire.runtime_cloud.engines.process import serve
    from splitwire.runtime_cloud.repository.models import Models

    port = int(target.rpartition(":")[2])
    with pytest.raises(UsageError, match=rf"cannot listen on 127.0.0.1:{port} for gRPC"):
        serve(Models([CloudSession(pair.back)]), port=0, grpc=GrpcOptions(port=port))
