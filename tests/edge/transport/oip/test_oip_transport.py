"""The edge over the Open Inference Protocol, HTTP and gRPC, against the real server and against servers that err."""

from __future__ import annotations

import contextlib
import json
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_helpers import CLASSES, Pair, Served, canned, http_answer, images, make_pair, serving

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import (
    AuthRefused,
    BadResponse,
    BitstreamError,
    ConnectTimeout,
    Corrupt,
    DeadlineExceeded,
    FingerprintMismatch,
    LimitExceeded,
    RequestTimeout,
    ServerBusy,
    SplitwireError,
    TransportError,
    UnknownModel,
    UsageError,
)
from splitwire.codec.wire.oip.tensors import HEADER_LENGTH
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.oip import GrpcOptions
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport import (
    BatchTransport,
    CircuitBreaker,
    HttpTransport,
    Key,
    LoopbackTransport,
    OipGrpcTransport,
    OipHttpTransport,
    Reply,
    StreamTransport,
    Timeouts,
    Tls,
    TokenFile,
    open_url,
)
from splitwire.runtime_edge.transport.http import client as http_client

Open = Callable[..., OipHttpTransport | OipGrpcTransport]


@pytest.fixture(scope="module")
def listening(pair: Pair) -> Iterator[tuple[Served, str]]:
    pytest.importorskip("grpc")
    target: queue.Queue[str] = queue.Queue()
    options = GrpcOptions(port=0, on_listen=target.put)
    with serving(pair, limits=ServerLimits(max_body=100_000), grpc=options) as running:
        yield running, f"oip+grpc://{target.get(timeout=10)}"


@pytest.fixture(scope="module")
def served(listening: tuple[Served, str]) -> Served:
    return listening[0]


@pytest.fixture(params=["http", "grpc"])
def opened(request: pytest.FixtureRequest, listening: tuple[Served, str]) -> Open:
    """Opens a transport to the server: over HTTP, and over gRPC."""
    served, target = listening
    if request.param == "http":
        return lambda **more: OipHttpTransport(f"oip+{served.url}", **more)
    return lambda **more: OipGrpcTransport(target, **more)


@pytest.fixture(scope="module")
def frame(pair: Pair) -> bytes:
    return frame_of(pair)


def frame_of(pair: Pair, frame_id: int = 7) -> bytes:
    rng = np.random.default_rng(0)
    tensors = [np.abs(rng.normal(size=(1, *t.shape))).astype(np.float32) for t in pair.profile.tensors]
    return FeatureCodec(pair.profile).encode(tensors, frame_id=frame_id)


# ------------------------------------------------------------------ the real server


def test_outputs_are_those_of_the_loopback(pair: Pair, opened: Open):
    with (
        EdgeSession(pair.front, transport=opened()) as far,
        EdgeSession(pair.front, transport=LoopbackTransport(CloudSession(pair.back).handle)) as near,
    ):
        for op in ("n2", "n4"):
            for batch in (1, 3):
                x = images(batch)
                a, b = far.infer(x, op=op), near.infer(x, op=op)
                assert list(a.outputs) == list(b.outputs) == ["logits", "best"]
                for name, array in b.outputs.items():
                    assert a.outputs[name].dtype == array.dtype
                    assert a.outputs[name].tobytes() == array.tobytes()
                    assert a.outputs[name].flags.writeable
                assert a.frame_bytes == b.frame_bytes
                assert 0 < a.bytes_sent - a.frame_bytes < 230
                assert min(a.timings.network, a.timings.decode, a.timings.back) > 0


def test_a_model_by_name_and_version(frame: bytes, opened: Open):
    with contextlib.closing(opened(model="tiny-0", version="1")) as transport:
        assert transport.send(frame).frame_id == 7
    with (
        contextlib.closing(opened(model="tiny-0", version="2")) as transport,
        pytest.raises(UnknownModel, match="has no version '2'"),
    ):
        transport.send(frame)
    for wrong in ({"version": "one"}, {"version": "-1"}):
        with pytest.raises(UsageError, match="is no version of a model"):
            opened(**wrong)


def test_keys_are_answered_from_memory(served: Served, frame: bytes, opened: Open):
    with contextlib.closing(opened()) as transport:
        before = served.api.service.answers.count
        key = Key("dev", type(transport).__name__, 1)
        replies = [transport.send(frame, key) for _ in range(3)]
        assert served.api.service.answers.count == before + 1
        assert len({r.outputs["logits"].tobytes() for r in replies}) == 1


def test_several_frames(pair: Pair, tmp_path: Path, opened: Open):
    """One after the other, each with its reply or its error; so a spool drains over this protocol too."""
    foreign = frame_of(make_pair(tmp_path, seed=9))
    with contextlib.closing(opened(model="tiny-0")) as transport:
        assert isinstance(transport, BatchTransport)
        frames = [frame_of(pair, 1), foreign, frame_of(pair, 2)]
        first, second, third = transport.send_many(frames, [None, None, Key("a", "b", 1)])
        assert isinstance(first, Reply)
        assert first.frame_id == 1
        assert isinstance(second, FingerprintMismatch)
        assert isinstance(third, Reply)
        assert third.frame_id == 2
        with pytest.raises(UsageError, match="one key"):
            transport.send_many(frames, [None])


def test_errors_of_the_server(pair: Pair, frame: bytes, tmp_path: Path, opened: Open):
    foreign = frame_of(make_pair(tmp_path, seed=9))
    with contextlib.closing(opened()) as transport:
        with pytest.raises(UnknownModel, match=f"no model '{foreign[8:16].hex()}'"):
            transport.send(foreign)
        with pytest.raises(LimitExceeded):
            transport.send(frame + bytes(200_000))
        with pytest.raises(BitstreamError):
            transport.send(b"no frame")
        assert transport.send(frame).attempts == 1
    with contextlib.closing(opened(model="tiny-0", retries=0)) as transport, pytest.raises(Corrupt, match="checksum"):
        transport.send(frame[:-1] + b"\x55")


def test_a_damaged_frame_is_sent_again(frame: bytes, opened: Open, monkeypatch: pytest.MonkeyPatch):
    """The link may have damaged it; the error names it by its code."""
    monkeypatch.setattr(http_client, "pause", lambda *_: 0.0)
    with contextlib.closing(opened(model="tiny-0", retries=1)) as transport:
        with pytest.raises(Corrupt):
            transport.send(frame[:-1] + b"\x55")
        assert transport.breaker.failures == 0


def test_a_server_that_is_busy(served: Served, frame: bytes, opened: Open, monkeypatch: pytest.MonkeyPatch):
    calls = 0
    infer = served.api.service.infer

    async def busy_once(call: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ServerBusy("come back later", 0.1)
        return await infer(call)

    monkeypatch.setattr(served.api.service, "infer", busy_once)
    with contextlib.closing(opened()) as transport:
        reply = transport.send(frame)
        assert reply.attempts == 2
        assert reply.bytes_sent > 2 * len(frame)
    calls = 0
    with (
        contextlib.closing(opened(retries=0)) as transport,
        pytest.raises(ServerBusy, match="come back later") as error,
    ):
        transport.send(frame)
    assert error.value.retry_after == 1.0


def test_a_deadline(served: Served, frame: bytes, opened: Open, monkeypatch: pytest.MonkeyPatch):
    import asyncio

    async def slow(*_: Any) -> Any:
        await asyncio.sleep(1)
        raise DeadlineExceeded("too late")

    monkeypatch.setattr(served.api.service, "infer", slow)
    with (
        contextlib.closing(opened(timeouts=Timeouts(total=0.2))) as transport,
        pytest.raises(RequestTimeout, match="within the deadline"),
    ):
        transport.send(frame)


def test_a_closed_transport(frame: bytes, opened: Open):
    transport = opened()
    transport.send(frame)
    transport.close()
    transport.close()
    with pytest.raises(UsageError, match=f"this {type(transport).__name__} is closed"):
        transport.send(frame)


@pytest.mark.parametrize("url", ["oip+http://127.0.0.1:1", "oip+grpc://127.0.0.1:1"])
def test_nobody_there(frame: bytes, url: str):
    with (
        contextlib.closing(open_url(url, timeouts=Timeouts(total=20))) as transport,
        pytest.raises(ConnectTimeout, match="is `splitwire cloud serve"),
    ):
        transport.send(frame)
    with contextlib.closing(OipGrpcTransport("oip+grpc://127.0.0.1:1", breaker=CircuitBreaker(failures=1))) as one:
        with pytest.raises(ConnectTimeout):
            one.send(frame)
        assert one.breaker.state == "open"


# ------------------------------------------------------------------ addresses


def test_the_scheme_says_the_transport():
    kinds = {
        "http://a:1": HttpTransport,
        "stream://a:1": StreamTransport,
        "oip+http://a:1": OipHttpTransport,
        "OIP+HTTPS://a": OipHttpTransport,
        "oip+grpc://a:1": OipGrpcTransport,
        "oip+grpcs://a:1": OipGrpcTransport,
    }
    for url, kind in kinds.items():
        with contextlib.closing(open_url(url, timeouts=Timeouts())) as transport:
            assert type(transport) is kind
    assert OipHttpTransport("oip+http://a:1/prefix").url == "http://a:1/prefix/v2"
    assert OipGrpcTransport("oip+grpc://[::1]:5").url == "oip+grpc://[::1]:5"
    for url, text in (
        ("oip+grpc://a:1/prefix", "gRPC has no paths"),
        ("grpc://a:1", "is not a server's address"),
        ("oip+ftp://a:1", "is not a server's address"),
    ):
        with pytest.raises(UsageError, match=text):
            open_url(url, timeouts=Timeouts())
    with pytest.raises(UsageError, match="is no name of a model"):
        OipHttpTransport("http://a:1", model="a b")
    with pytest.raises(UsageError, match="verify is True or a Tls"):
        OipGrpcTransport("oip+grpcs://a:1", verify=False)
    with pytest.raises(UsageError, match="--lean goes with"):
        open_url("oip+grpc://a:1", timeouts=Timeouts(), lean=True)


def test_the_request_over_http(frame: bytes):
    """A path for a proxy, the name quoted as URLs need it, the token, and nothing that the server does not need."""
    with canned(answer()) as server:
        for lean in (False, True):
            transport = OipHttpTransport(f"{server.url}/edge", model="ä/b", version="3", token="secret", lean=lean)
            with contextlib.closing(transport):
                reply = transport.send(frame, Key("d", "b", 5))
            assert reply.bytes_sent == len(server.heads[-1]) + len(frame)
    host = server.url.removeprefix("http://")
    first, second = (head.decode().split("\r\n") for head in server.heads)
    lines = ["POST /edge/v2/models/%C3%A4/b/versions/3/infer HTTP/1.1", f"Host: {host}", f"{HEADER_LENGTH}: 0"]
    named = ["Content-Type: application/octet-stream", "User-Agent: splitwire"]
    last = ['Idempotency-Key: "d:b:5"', "Authorization: Bearer secret", f"Content-Length: {len(frame)}", "", ""]
    assert first == lines + named + last
    assert second == lines + last


# ------------------------------------------------------------------ servers that err


def answer(
    change: Callable[[dict[str, Any]], None] = lambda head: None, behind: bytes = b"", length: str = ""
) -> bytes:
    """An answer of the protocol with one output of zeros, changed."""
    data = np.zeros((1, CLASSES), np.float32).tobytes()
    output = {
        "name": "logits",
        "datatype": "FP32",
        "shape": [1, CLASSES],
        "parameters": {"binary_data_size": len(data)},
    }
    head: dict[str, Any] = {"outputs": [output], "parameters": {"frame_id": 7, "decode_ns": 5, "back_ns": 6}}
    change(head)
    text = json.dumps(head).encode()
    header = f"{HEADER_LENGTH}: {length or len(text)}"
    return http_answer(200, text + data + behind, "application/octet-stream", header)


def outputs(**more: Any) -> Callable[[dict[str, Any]], None]:
    return lambda head: head["outputs"][0].update(more)


WRONG: list[tuple[bytes, str]] = [
    (answer(length="100000"), "without binary outputs"),
    (answer(length="-1"), "without binary outputs"),
    (answer(length="3"), "JSON that cannot be read"),
    (http_answer(200, b"{}", "application/json"), "without binary outputs"),
    (answer(behind=b"x"), "1 bytes behind its outputs"),
    (answer(lambda h: h.update(outputs=[])), "bytes behind its outputs"),
    (answer(lambda h: h.update(outputs=h["outputs"] * 2)), "without its bytes"),
    (answer(outputs(parameters={"binary_data_size": 1 << 60})), "without its bytes"),
    (answer(outputs(parameters={})), "without its bytes"),
    (answer(outputs(parameters={"binary_data_size": True})), "without its bytes"),
    (answer(outputs(datatype="BYTES")), "has datatype 'BYTES'"),
    (answer(outputs(datatype="FP64")), "must have 40 bytes, has 20"),
    (answer(outputs(shape=[1 << 30, 1 << 30])), "must have 4611686018427387904 bytes"),
    (answer(outputs(shape=[-1, 5])), "has the shape"),
    (answer(outputs(shape=[1] * 33)), "has the shape"),
    (answer(outputs(shape=["5"])), "JSON that cannot be read"),
    (answer(lambda h: h["parameters"].update(frame_id="7")), "a wrong frame_id"),
    (answer(lambda h: h["parameters"].update(back_ns=-5)), "a wrong back_ns"),
    (answer(lambda h: h["parameters"].update(frame_id=8)), "answered frame 8, this was frame 7"),
    (http_answer(500, b"boom", "text/plain"), "answered status 500"),
    (http_answer(500, b'{"error": {"code": "x"}}', "application/json"), "answered status 500"),
]


@pytest.mark.parametrize(("given", "text"), WRONG)
def test_a_wrong_answer(frame: bytes, given: bytes, text: str):
    with (
        canned(given) as server,
        contextlib.closing(OipHttpTransport(server.url, retries=0)) as transport,
        pytest.raises(BadResponse, match=text),
    ):
        transport.send(frame)


def test_an_answer_without_our_parameters(frame: bytes):
    """Another server says no frame id and no times."""
    with (
        canned(answer(lambda h: h.pop("parameters"))) as server,
        contextlib.closing(OipHttpTransport(server.url)) as transport,
    ):
        reply = transport.send(frame)
    assert (reply.frame_id, reply.decode_ms, reply.back_ms) == (7, 0.0, 0.0)


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (400, [], BitstreamError),
        (401, [], AuthRefused),
        (403, [], AuthRefused),
        (404, [], UnknownModel),
        (409, [], FingerprintMismatch),
        (413, [], LimitExceeded),
        (503, ["Retry-After: 3"], ServerBusy),
        (504, [], DeadlineExceeded),
        (400, ["X-Splitwire-Code: corrupt"], Corrupt),
        (400, ["X-Splitwire-Code: of the future"], TransportError),
        (418, [], TransportError),
    ],
)
def test_the_errors_of_any_server(frame: bytes, status: int, headers: list[str], error: type[SplitwireError]):
    given = http_answer(status, b'{"error": "a\\nb\\u001b[31m"}', "text/plain", *headers)
    with (
        canned(given) as server,
        contextlib.closing(OipHttpTransport(server.url, retries=0)) as transport,
        pytest.raises(error, match=r"a b \[31m") as raised,
    ):
        transport.send(frame)
    assert type(raised.value) is error


# ------------------------------------------------------------------ tokens and certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trustme = pytest.importorskip("trustme")
    folder: Path = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    server = authority.issue_cert("127.0.0.1", "localhost")
    server.private_key_pem.write_to_path(folder / "server.key")
    server.cert_chain_pems[0].write_to_path(folder / "server.pem")
    device = authority.issue_cert("device")
    device.private_key_pem.write_to_path(folder / "device.key")
    device.cert_chain_pems[0].write_to_path(folder / "device.pem")
    return folder


def test_tls_over_grpc(pair: Pair, frame: bytes, certificates: Path):
    target: queue.Queue[str] = queue.Queue()
    options = GrpcOptions(
        port=0,
        certificate=certificates / "server.pem",
        key=certificates / "server.key",
        client_ca=certificates / "ca.pem",
        on_listen=target.put,
    )
    with serving(pair, grpc=options):
        url = f"oip+grpcs://{target.get(timeout=10)}"
        trusted = Tls(ca=certificates / "ca.pem", cert=certificates / "device.pem", key=certificates / "device.key")
        with contextlib.closing(OipGrpcTransport(url, verify=trusted)) as transport:
            assert transport.send(frame).frame_id == 7
        for verify in (Tls(ca=certificates / "ca.pem"), True):  # no certificate of the device; an unknown authority
            with (
                contextlib.closing(OipGrpcTransport(url, verify=verify, retries=0)) as transport,
                pytest.raises(TransportError),
            ):
                transport.send(frame)


def test_tls_over_http(pair: Pair, frame: bytes, certificates: Path):
    with serving(pair, tls=(certificates / "server.pem", certificates / "server.key")) as running:
        url = running.url.replace("http://", "oip+https://")
        with contextlib.closing(OipHttpTransport(url, verify=Tls(ca=certificates / "ca.pem"))) as transport:
            assert transport.send(frame).frame_id == 7


def test_the_token_over_grpc(frame: bytes, tmp_path: Path):
    """A token that is refused is read again, because it may have been renewed in that moment."""
    grpc = pytest.importorskip("grpc")
    from concurrent.futures import ThreadPoolExecutor

    from splitwire.codec.wire.oip.messages import SERVICE, message

    seen: list[str] = []

    def infer(request: bytes, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata()).get("authorization", ""))
        if seen[-1] != "Bearer new":
            (tmp_path / "token").write_text("new")
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
        given = message("ModelInferResponse")()
        given.outputs.add(name="logits", datatype="FP32", shape=[1])
        given.raw_output_contents.append(bytes(4))
        answer: bytes = given.SerializeToString()
        return answer

    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    (tmp_path / "token").write_text("old")
    token = TokenFile(tmp_path / "token")
    try:
        with contextlib.closing(OipGrpcTransport(f"oip+grpc://127.0.0.1:{port}", token=token)) as transport:
            assert transport.send(frame).attempts == 2
        with (
            contextlib.closing(OipGrpcTransport(f"oip+grpc://127.0.0.1:{port}", token="old")) as transport,
            pytest.raises(AuthRefused, match="check the token"),
        ):
            transport.send(frame)
    finally:
        server.stop(None).wait()
    assert seen == ["Bearer old", "Bearer new", "Bearer old"]
