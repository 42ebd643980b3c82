"""Bodies of the Open Inference Protocol over HTTP, byte by byte: what is accepted, one error for each wrong thing."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from runtime_helpers import Pair, Served, make_pair, raw_exchange, serving
from starlette.routing import Route

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.wire.oip.scan import MAX_FIELDS, MAX_PACKED
from splitwire.codec.wire.oip.tensors import MAX_ELEMENTS, pack_bytes
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.http.app import create_app
from splitwire.runtime_cloud.http.statuses import TABLE
from splitwire.runtime_cloud.oip.errors import GRPC_NAMES, STATUSES
from splitwire.runtime_cloud.oip.http import UNSUPPORTED
from splitwire.runtime_cloud.oip.inference import MAX_ANSWER_BYTES
from splitwire.runtime_cloud.oip.json_form import MAX_DEPTH, MAX_JSON, MAX_JSON_ELEMENTS
from splitwire.runtime_cloud.oip.requests import MAX_TENSORS
from splitwire.runtime_cloud.session import CloudSession

LENGTH = "Inference-Header-Content-Length"
MAX_BODY = 6 << 20


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Served]:
    with serving(pair, limits=ServerLimits(max_body=MAX_BODY)) as running:
        yield running


@pytest.fixture(scope="module")
def frame(pair: Pair) -> bytes:
    x = np.abs(np.random.default_rng(0).normal(size=(1, 4, 8, 8))).astype(np.float32)
    return FeatureCodec(pair.profile).encode([x], frame_id=7)


@pytest.fixture(scope="module")
def logits(pair: Pair, frame: bytes) -> np.ndarray:
    return CloudSession(pair.back).infer(frame).outputs["logits"]


def post(
    served: Served, body: bytes | dict[str, Any], length: int | str | None = None, **headers: str
) -> httpx.Response:
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    if length is not None:
        named[LENGTH] = str(length)
    return httpx.post(f"{served.url}/v2/models/tiny-0/infer", content=content, headers=named)


def error_of(response: httpx.Response) -> tuple[int, str]:
    """(status, text); checks that the body is the protocol's error and nothing else."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert isinstance(body["error"], str)
    assert body["error"]
    assert "\n" not in body["error"]
    return response.status_code, body["error"]


def outputs_of(response: httpx.Response) -> dict[str, np.ndarray]:
    """The outputs of an answer, read as the protocol says and without a client."""
    assert response.status_code == 200, response.text
    length = response.headers.get(LENGTH)
    head = json.loads(response.content if length is None else response.content[: int(length)])
    at = 0 if length is None else int(length)
    outputs = {}
    kinds = {"FP32": "<f4", "INT64": "<i8"}
    for o in head["outputs"]:
        size = o.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = np.array(o["data"], kinds[o["datatype"]])
        else:
            array = np.frombuffer(response.content[at : at + size], kinds[o["datatype"]])
            at += size
        outputs[o["name"]] = array.reshape(o["shape"])
    assert length is None or at == len(response.content)
    return outputs


def with_binary(body: dict[str, Any], *tensors: bytes) -> tuple[bytes, int]:
    text = json.dumps(body).encode()
    return b"".join([text, *tensors]), len(text)


def frame_body(frame: bytes, **more: Any) -> tuple[bytes, int]:
    data = pack_bytes([frame])
    tensor = {"name": "frame", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(data)}}
    return with_binary({"inputs": [tensor | more]}, data)


def feature(**more: Any) -> dict[str, Any]:
    return {"name": "feature", "datatype": "FP32", "shape": [1, 4, 8, 8], "data": [0.5] * 256} | more


def text(*data: Any, shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": "frame", "datatype": "BYTES", "shape": [1] if shape is None else shape, "data": data}


# ------------------------------------------------------------------ what is accepted


def test_a_frame_alone(served: Served, frame: bytes, logits: np.ndarray):
    """The raw binary request: the body is the frame, without the length that a BYTES element has in front."""
    response = post(served, frame, 0)
    assert outputs_of(response)["logits"].tobytes() == logits.tobytes()
    assert response.headers["content-type"] == "application/octet-stream"


def test_no_headers_are_needed(served: Served, frame: bytes, logits: np.ndarray):
    """Tritonclient sends neither Content-Type nor Accept, and others send any."""
    body, length = frame_body(frame)
    assert outputs_of(post(served, body, length, Content_Type="text/plain"))["logits"].tobytes() == logits.tobytes()
    request = (
        f"POST /v2/models/tiny-0/infer HTTP/1.1\r\nHost: a\r\n{LENGTH}: {length}\r\nContent-Length: {len(body)}\r\n"
    )
    assert raw_exchange(served.address, request.encode() + b"Connection: close\r\n\r\n" + body).startswith(
        b"HTTP/1.1 200"
    )


def test_json_without_a_flag_is_answered_in_json(served: Served, frame: bytes, logits: np.ndarray):
    body, length = frame_body(frame)
    response = post(served, body, length)
    assert LENGTH not in response.headers
    assert response.headers["content-type"] == "application/json"
    assert outputs_of(response)["logits"].tobytes() == logits.tobytes()


def test_nested_data(served: Served):
    x = np.random.default_rng(1).normal(size=(2, 4, 8, 8)).astype(np.float32)
    flat = post(served, {"inputs": [feature(shape=list(x.shape), data=x.ravel().tolist())]})
    nested = post(served, {"inputs": [feature(shape=list(x.shape), data=x.tolist())]})
    assert outputs_of(flat)["logits"].tobytes() == outputs_of(nested)["logits"].tobytes()


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_many_chunks(served: Served, frame: bytes, logits: np.ndarray, size: int):
    body, length = frame_body(frame)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (body[i : i + size] for i in range(0, len(body), size)))
    head = f"POST /v2/models/tiny-0/infer HTTP/1.1\r\nHost: a\r\n{LENGTH}: {length}\r\nTransfer-Encoding: chunked\r\n"
    answer = raw_exchange(served.address, head.encode() + b"Connection: close\r\n\r\n" + chunks + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][0]["data"] == logits.ravel().tolist()


def test_an_empty_index(served: Served):
    for body in (b"", b"{}", b'{"ready": true}'):
        assert httpx.post(f"{served.url}/v2/repository/index", content=body).json()[0]["name"] == "tiny-0"


def test_idempotency_key(served: Served, frame: bytes, logits: np.ndarray):
    """A frame that comes again is not computed again, over this protocol neither."""
    count = served.api.service.answers.count
    key = '"dev:boot:1"'
    for _ in range(3):
        response = post(served, frame, 0, Idempotency_Key=key)
        assert outputs_of(response)["logits"].tobytes() == logits.tobytes()
    assert served.api.service.answers.count == count + 1


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "", "+5", " ", "99999999", "1" * 30, "٣"])
def test_a_header_length_out_of_range(served: Served, frame: bytes, length: str):
    body, _ = frame_body(frame)
    head = b"POST /v2/models/tiny-0/infer HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    lines = f"{LENGTH}: {length}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    answer = raw_exchange(served.address, head + lines + body)
    assert answer.startswith(b"HTTP/1.1 400"), answer[:200]
    assert f"it must be 0 to {len(body)}" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_a_header_length_that_cuts_the_json(served: Served, frame: bytes):
    body, length = frame_body(frame)
    for wrong in (length - 1, length + 1, len(body)):
        status, text = error_of(post(served, body, wrong))
        assert status == 400, text


@pytest.mark.parametrize("levels", [100, 500, 1000, 5000, 100_000])
@pytest.mark.parametrize(
    "make",
    [
        lambda deep: b'{"inputs": ' + deep + b"}",
        lambda deep: b'{"inputs": [], "unknown": ' + deep + b"}",
        lambda deep: (
            b'{"inputs": [{"name": "feature", "datatype": "FP32", "shape": [1, 4, 8, 8], "data": ' + deep + b"}]}"
        ),
        lambda deep: b'{"inputs": [], "parameters": {"a": ' + deep + b"}}",
        lambda deep: deep,
    ],
)
def test_deep_json(served: Served, levels: int, make: Callable[[bytes], bytes]):
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        status, text = error_of(post(served, make(opening * levels + b"1" + closing * levels)))
        assert (status, text) == (400, f"the JSON is nested more than {MAX_DEPTH} levels deep")


WRONG: list[tuple[str, Any, int, str]] = [
    ("no inputs", {}, 400, "missing required field `inputs`"),
    ("empty inputs", {"inputs": []}, 400, "has the inputs none; the model takes frames as 'frame', or else 'feature'"),
    ("inputs are no list", {"inputs": {}}, 400, "Expected `array`"),
    ("another input", {"inputs": [feature(name="other")]}, 400, "has the inputs 'other'"),
    ("one too many", {"inputs": [feature(), feature(name="other")]}, 400, "has the inputs 'feature', 'other'"),
    ("the same input twice", {"inputs": [feature(), feature()]}, 400, "has the input 'feature' twice"),
    ("another type", {"inputs": [feature(datatype="FP64")]}, 400, "is FP64, the model takes FP32"),
    ("no type", {"inputs": [feature(datatype="FLOAT")]}, 400, "is FLOAT, the model takes FP32"),
    ("no axes", {"inputs": [feature(shape=[])]}, 422, "has the shape [], the model takes ['n', 4, 8, 8]"),
    ("an axis too many", {"inputs": [feature(shape=[1, 1, 4, 8, 8])]}, 422, "has the shape [1, 1, 4, 8, 8]"),
    ("no batch", {"inputs": [feature(shape=[0, 4, 8, 8], data=[])]}, 422, "has the shape [0, 4, 8, 8]"),
    ("a negative axis", {"inputs": [feature(shape=[-1, 4, 8, 8])]}, 400, "the shape [-1, 4, 8, 8] is none"),
    ("two variable axes", {"inputs": [feature(shape=[-1, -1, 8, 8])]}, 400, "the shape [-1, -1, 8, 8] is none"),
    ("a huge axis", {"inputs": [feature(shape=[1 << 62, 4, 8, 8])]}, 400, "is none"),
    ("an axis over 64 bits", {"inputs": [feature(shape=[1 << 70, 4, 8, 8])]}, 400, ""),
    ("a big batch", {"inputs": [feature(shape=[1 << 30, 4, 8, 8])]}, 400, "its shape says 274877906944"),
    ("many axes", {"inputs": [feature(shape=[1] * 33)]}, 400, "at most 32 of them"),
    ("an axis that is no integer", {"inputs": [feature(shape=[1.5, 4, 8, 8])]}, 400, "Expected `int`"),
    ("an element too many", {"inputs": [feature(data=[0.5] * 257)]}, 400, "more elements than the 256"),
    ("an element too few", {"inputs": [feature(data=[0.5] * 255)]}, 400, "has 255 elements, its shape says 256"),
    ("uneven data", {"inputs": [feature(data=[[0.5] * 128, 0.5])]}, 400, "nested unevenly"),
    ("data of text", {"inputs": [feature(data=["a"] * 256)]}, 400, "something else than numbers"),
    ("data of truth", {"inputs": [feature(data=[True] * 256)]}, 400, "something else than numbers"),
    ("data of nothing", {"inputs": [feature(data=[None] * 256)]}, 400, "something else than numbers"),
    ("no data", {"inputs": [{"name": "feature", "datatype": "FP32", "shape": [1]}]}, 400, "neither data nor"),
    ("data twice", {"inputs": [feature(parameters={"binary_data_size": 1024})]}, 400, "data and binary_data_size"),
    ("a frame as text", {"inputs": [text("SPLW")]}, 400, "frame"),
    ("a frame as numbers", {"inputs": [text(1)]}, 400, "no list of strings"),
    ("a frame of floats", {"inputs": [feature(name="frame")]}, 400, "takes frames as BYTES, not as FP32"),
    ("a frame without an axis", {"inputs": [text("a", shape=[])]}, 400, "shape [n]"),
    ("no frames", {"inputs": [text(shape=[0])]}, 400, "shape [n]"),
    ("another output", {"inputs": [feature()], "outputs": [{"name": "x"}]}, 400, "the pair has no output 'x'"),
    ("the same output twice", {"inputs": [feature()], "outputs": [{"name": "best"}] * 2}, 400, "'best' twice"),
    ("65 outputs", {"inputs": [feature()], "outputs": [{"name": f"{i}"} for i in range(65)]}, 413, "the limit is 64"),
    ("a flag that is a number", {"inputs": [feature()], "parameters": {"binary_data_output": 1}}, 400, "true or false"),
    ("priority of text", {"inputs": [feature()], "parameters": {"priority": "high"}}, 400, "must be an integer"),
    ("a negative timeout", {"inputs": [feature()], "parameters": {"timeout": -1}}, 400, "timeout must be an integer"),
    ("a long id", {"inputs": [feature()], "id": "a" * 1025}, 413, "the limit is 1024"),
    ("an id that is a number", {"inputs": [feature()], "id": 5}, 400, "Expected `str`"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "text"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_json(served: Served, body: dict[str, Any], status: int, text: str):
    got = error_of(post(served, body))
    assert got[0] == status, got
    assert text in got[1]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"inputs": [}', b'"a"', b"nan", b'{"inputs": []} x']
)
def test_what_is_no_json(served: Served, body: bytes):
    status, text = error_of(post(served, body))
    assert status == 400
    assert text.startswith("the JSON of the request cannot be read")


def test_binary_sizes(served: Served, frame: bytes):
    packed = pack_bytes([frame])

    def sent(size: Any, data: bytes, shape: list[int] | None = None) -> tuple[int, str]:
        tensor = {"name": "frame", "datatype": "BYTES", "shape": shape or [1], "parameters": {"binary_data_size": size}}
        return error_of(post(served, *with_binary({"inputs": [tensor]}, data)))

    assert sent(len(packed) + 1, packed)[1].endswith(f"announces {len(packed) + 1} bytes, {len(packed)} are left")
    assert sent(1 << 62, packed)[0] == 400
    assert "1 bytes follow the tensors" in sent(len(packed), packed + b"x")[1]
    assert "must be an integer of 0 or more" in sent(-1, packed)[1]
    assert "must be an integer of 0 or more" in sent(True, packed)[1]
    assert "must be an integer of 0 or more" in sent("8", packed)[1]
    assert "1 bytes are left behind the 1 BYTES elements" in sent(len(packed) + 1, packed + b"x")[1]
    assert "ends before the length of BYTES element 1" in sent(len(packed), packed, [2])[1]
    assert "ends before the length of BYTES element 0" in sent(3, packed[:3])[1]
    assert "announces 4294967295 bytes" in sent(8, b"\xff\xff\xff\xff" + bytes(4))[1]
    assert sent(0, b"", [257]) == (413, "257 elements of type BYTES are over the limit of 256")
    assert sent(0, b"", [1 << 31])[0] == 413
    x = np.zeros((1, 4, 8, 8), "<f4").tobytes()
    tensor = feature(parameters={"binary_data_size": len(x) - 4})
    del tensor["data"]
    assert "must have 1024 bytes, has 1020" in error_of(post(served, *with_binary({"inputs": [tensor]}, x[:-4])))[1]


def test_a_raw_body_that_is_no_frame(served: Served, frame: bytes):
    assert error_of(post(served, frame + b"\0", 0))[0] == 400
    assert error_of(post(served, frame[:-1], 0))[0] == 400
    assert error_of(post(served, b"", 0))[0] == 400


def test_a_frame_of_another_pair(served: Served, tmp_path):
    other = make_pair(tmp_path, seed=5)
    x = np.ones((1, 4, 8, 8), np.float32)
    status, text = error_of(post(served, FeatureCodec(other.profile).encode([x]), 0))
    assert status == 409
    assert other.profile.fingerprint.hex() in text


def test_compression(served: Served, frame: bytes, logits: np.ndarray):
    """The length in the header is that of the JSON before it is compressed."""
    body, length = frame_body(frame)
    for encoding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        response = post(served, compress(body), length, Content_Encoding=encoding)
        assert outputs_of(response)["logits"].tobytes() == logits.tobytes()
        assert error_of(post(served, body, length, Content_Encoding=encoding))[0] == 400
        assert "ends early" in error_of(post(served, compress(body)[:-1], length, Content_Encoding=encoding))[1]
        assert "1 bytes follow" in error_of(post(served, compress(body) + b"x", length, Content_Encoding=encoding))[1]
        status, text = error_of(post(served, compress(bytes(MAX_BODY + 1)), length, Content_Encoding=encoding))
        assert (status, text) == (413, f"the body is longer than the limit of {MAX_BODY} bytes when decompressed")
    for encoding in ("br", "zstd", "gzip, gzip", "x"):
        assert error_of(post(served, body, length, Content_Encoding=encoding))[0] == 501


def test_a_bomb_is_not_inflated(served: Served):
    """Hundreds of MiB in a few hundred KiB: the server makes no more of it than a body may have."""
    import resource

    bomb = gzip.compress(bytes(300 << 20), 9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for length in (None, 0, 10):
        assert error_of(post(served, bomb, length, Content_Encoding="gzip"))[0] == 413
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_outputs_that_json_cannot_hold(served: Served, pair: Pair):
    """JSON has no NaN; the binary form has."""
    body = {"inputs": [feature(data=[3e38] * 256)]}
    assert error_of(post(served, body))[1] == (
        "output 'logits' holds NaN or an infinity, which JSON has not: ask for binary_data"
    )
    got = outputs_of(post(served, body | {"parameters": {"binary_data_output": True}}))
    expected = CloudSession(pair.back).run_back([np.full((1, 4, 8, 8), 3e38, np.float32)])
    assert got["logits"].tobytes() == expected["logits"].tobytes()
    assert not np.isfinite(got["logits"]).all()


def test_limits(served: Served):
    status, text = error_of(post(served, bytes(MAX_BODY + 1)))
    assert (status, text) == (413, f"the body has {MAX_BODY + 1} bytes; the limit is {MAX_BODY}")
    status, text = error_of(post(served, {"inputs": [feature(data=[0.123456789] * (MAX_JSON // 12))]}))
    assert status == 413
    assert "send tensors in binary form" in text


def test_other_paths_and_methods(served: Served):
    for method, path, status, text in (
        ("GET", "/v2/models", 404, "GET /v2/models: not found"),
        ("GET", "/v2/x", 404, "GET /v2/x: not found"),
        ("POST", "/v2/models/tiny-0/config", 405, "POST /v2/models/tiny-0/config: method not allowed"),
        ("DELETE", "/v2/models/tiny-0", 405, "DELETE /v2/models/tiny-0: method not allowed"),
        ("GET", "/v2/repository/index", 405, "GET /v2/repository/index: method not allowed"),
        ("GET", "/v2/models/x", 404, "no model 'x'; served are tiny-0"),
        ("GET", "/v2/models/tiny-0/versions/2", 404, "model 'tiny-0' has no version '2', it has 1"),
        ("GET", "/v2/models/tiny-0/versions/one", 404, "model 'tiny-0': the version 'one' is no number"),
        ("GET", "/v2/models/tiny-0/versions/²/config", 404, "model 'tiny-0': the version '²' is no number"),
        ("GET", "/v2/%0Aforged%1b", 404, "GET /v2/ forged : not found"),
    ):
        assert error_of(httpx.request(method, served.url + path)) == (status, text)


def test_a_bug_reveals_nothing(pair: Pair, frame: bytes):
    with serving(pair) as running:
        (session,) = running.api.service.models
        session.run_back = lambda *_: 1 / 0  # type: ignore[assignment, method-assign]  # a bug
        assert error_of(post(running, frame, 0)) == (500, "the server failed on this request; its log says how")


def test_a_full_queue(pair: Pair, frame: bytes):
    with serving(pair, limits=ServerLimits(concurrency=1, queue=0)) as running:
        running.api.service.scheduler.admit = _busy  # type: ignore[method-assign]  # as if it were full
        response = post(running, frame, 0)
        assert error_of(response) == (503, "come back later")
        assert int(response.headers["retry-after"]) >= 1


async def _busy(*_: Any, **__: Any) -> None:
    from splitwire.codec.errors import ServerBusy

    raise ServerBusy("come back later", 1.5)


def test_a_client_that_goes_away(served: Served, frame: bytes):
    body, length = frame_body(frame)
    head = (
        f"POST /v2/models/tiny-0/infer HTTP/1.1\r\nHost: a\r\n{LENGTH}: {length}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for sent in (head.encode() + body[:10], head.encode() + body):
        with socket.create_connection(served.address, 5) as connection:
            connection.sendall(sent)
    assert post(served, frame, 0).status_code == 200


def test_statuses_are_those_of_v1():
    table = {row.code: row.status for row in TABLE}
    assert {code: status for code, status in STATUSES.items() if code in table and table[code] != status} == {}
    raised = {row.code for row in TABLE} - {"internal", "not_found", "method_not_allowed", "unsupported_media_type"}
    assert raised <= STATUSES.keys()
    assert set(STATUSES.values()) <= GRPC_NAMES.keys()


def test_the_page_shows_the_routes_and_the_limits(served: Served):
    page = (Path(__file__).parents[3] / "docs" / "oip.md").read_text(encoding="utf-8")
    app = create_app(served.api.service.models)
    routes = {
        f"`{method} {route.path}`"
        for route in app.routes
        if isinstance(route, Route) and route.path.startswith("/v2") and route.path not in UNSUPPORTED
        for method in (route.methods or set()) - {"HEAD"}
        if route.path != "/v2/{rest:path}"
    }
    assert {
        line.split("|")[1].strip() for line in page.splitlines() if line.startswith(("| `GET", "| `POST"))
    } == routes
    limits = page.split("## Limits")[1].split("## Traps")[0]
    for figure in (
        f"{ServerLimits().max_body >> 20} MiB",
        f"{MAX_JSON >> 20} MiB",
        f"| {MAX_DEPTH} |",
        f"| {MAX_JSON_ELEMENTS:,} |",
        f"| {MAX_ELEMENTS} |",
        f"| {MAX_TENSORS} |",
        f"{MAX_ANSWER_BYTES >> 20} MiB",
        f"{MAX_FIELDS:,}; {MAX_PACKED >> 10} KiB",
    ):
        assert figure in limits
