"""The HTTP server, over real sockets: routes, limits, and a status and a code for every wrong thing."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from runtime_helpers import (
    Pair,
    Served,
    images,
    make_pair,
    raw_exchange,
    reheaded,
    serving,
    until,
    with_chunk_length,
)
from starlette.routing import Route

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import (
    BitstreamError,
    Corrupt,
    FingerprintMismatch,
    LimitExceeded,
    ServerBusy,
    SplitwireError,
    TransportError,
    Truncated,
    UnsupportedVersion,
    UsageError,
)
from splitwire.codec.wire.reply import FRAME_MEDIA_TYPE, REPLY_MEDIA_TYPE, decode_reply
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.http.app import create_app
from splitwire.runtime_cloud.http.statuses import TABLE, status_of
from splitwire.runtime_cloud.repository.models import Models, describe
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport import HttpTransport, LoopbackTransport

DOCS = Path(__file__).parents[2] / "docs" / "runtime.md"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("other"), seed=1, two_tensors=True)


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Served]:
    with serving(pair, limits=ServerLimits(max_body=100_000)) as running:
        yield running


@pytest.fixture(scope="module")
def frame(pair: Pair) -> bytes:
    return frame_of(pair)


def frame_of(pair: Pair, frame_id: int = 9) -> bytes:
    tensors = [np.ones((1, *t.shape), np.float32) for t in pair.profile.tensors]
    return FeatureCodec(pair.profile).encode(tensors, frame_id=frame_id)


def post(served: Served, body: bytes, content_type: str | None = FRAME_MEDIA_TYPE) -> httpx.Response:
    headers = {} if content_type is None else {"Content-Type": content_type}
    return httpx.post(served.url + "/v1/infer", content=body, headers=headers)


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    """(status, code, message); checks that the body is our error and nothing else."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["code", "message"]
    assert "\n" not in body["error"]["message"]
    return response.status_code, body["error"]["code"], body["error"]["message"]


@contextlib.contextmanager
def held(session: CloudSession) -> Iterator[threading.Event]:
    """Inferences of `session` wait until the block ends, or the event is set; yields the event."""
    release = threading.Event()
    run_back = session.run_back

    def slow(*crossing: Any) -> Any:
        assert release.wait(20)
        return run_back(*crossing)

    session.run_back = slow  # type: ignore[method-assign, assignment]  # any arguments
    try:
        yield release
    finally:
        release.set()
        session.run_back = run_back  # type: ignore[method-assign]  # restored


def only(served: Served) -> CloudSession:
    (session,) = served.api.service.models
    return session


# ------------------------------------------------------------------ routes


def test_health_and_readiness(served: Served):
    assert httpx.get(served.url + "/healthz").json() == {"status": "live"}
    assert httpx.get(served.url + "/readyz").json() == {"status": "ready", "models": 1}


def test_models(served: Served):
    listed = httpx.get(served.url + "/v1/models").json()
    assert listed["models"] == [describe(only(served))]
    state = {"name": "tiny-0", "version": "1", "fingerprint": only(served).pair, "state": "READY", "reason": ""}
    assert listed["repository"] == [{**state, "quarantined": False, "share": 1.0, "answers": 0}]
    fingerprint = listed["models"][0]["fingerprint"]
    assert httpx.get(f"{served.url}/v1/models/{fingerprint}").json() == listed["models"][0]


@pytest.mark.parametrize("fingerprint", ["00" * 8, "zz", "0", "é"])
def test_unknown_model(served: Served, fingerprint: str):
    status, code, message = error_of(httpx.get(f"{served.url}/v1/models/{fingerprint}"))
    assert (status, code) == (404, "not_found")
    assert "GET /v1/models lists them" in message


def test_inference_over_http_is_that_in_process(served: Served, pair: Pair):
    x = images(3)
    with (
        EdgeSession(pair.front, transport=HttpTransport(served.url)) as far,
        EdgeSession(pair.front, transport=LoopbackTransport(CloudSession(pair.back).handle)) as near,
    ):
        for op in ("n2", "n4"):
            a, b = far.infer(x, op=op), near.infer(x, op=op)
            assert list(a.outputs) == list(b.outputs) == ["logits", "best"]
            for name, array in b.outputs.items():
                np.testing.assert_array_equal(a.outputs[name], array)
            assert a.frame_bytes == b.frame_bytes
            assert 0 < a.bytes_sent - a.frame_bytes < 200
            t = a.timings
            assert min(t.front, t.encode, t.network, t.decode, t.back) > 0


def test_two_models_are_told_apart_by_the_frame(pair: Pair, other: Pair):
    with serving(pair, other) as both:
        for p in (pair, other):
            with EdgeSession(p.front, transport=HttpTransport(both.url)) as session:
                assert session.infer(images()).outputs["logits"].shape == (1, 5)
        assert len(httpx.get(both.url + "/v1/models").json()["models"]) == 2


def test_the_reply_is_the_only_thing_sent_back(served: Served, frame: bytes):
    response = post(served, frame)
    assert response.status_code == 200
    assert sorted(response.headers) == ["content-length", "content-type"]
    assert response.headers["content-type"] == REPLY_MEDIA_TYPE
    assert decode_reply(response.content).frame_id == 9


def test_connections_are_kept(pair: Pair):
    """All requests of a session share one connection (uvicorn counts a request only after its reply is on the wire)."""
    with serving(pair) as fresh, EdgeSession(pair.front, transport=HttpTransport(fresh.url)) as session:
        used = set()
        for _ in range(5):
            session.infer(images())
            used |= set(fresh.server.server_state.connections)
        assert len(used) == 1


@pytest.mark.parametrize("content_type", [None, "application/octet-stream", FRAME_MEDIA_TYPE + "; v=1"])
def test_content_types_that_are_taken(served: Served, frame: bytes, content_type: str | None):
    assert post(served, frame, content_type).status_code == 200


# ------------------------------------------------------------------ wrong requests


def test_other_paths_and_methods(served: Served):
    cases = {
        ("GET", "/"): (404, "not_found", "GET /: not found"),
        ("POST", "/v1/infer/"): (404, "not_found", "POST /v1/infer/: not found"),
        ("GET", "/%0Aforged%1b%5b31m"): (404, "not_found", "GET / forged [31m: not found"),
        ("GET", "/v1/infer"): (405, "method_not_allowed", "GET /v1/infer: method not allowed"),
        ("DELETE", "/v1/models"): (405, "method_not_allowed", "DELETE /v1/models: method not allowed"),
    }
    for (method, path), expected in cases.items():
        assert error_of(httpx.request(method, served.url + path)) == expected
    assert httpx.get(served.url + "/v1/infer").headers["allow"] == "POST"


def test_other_content_types(served: Served, frame: bytes):
    status, code, message = error_of(post(served, frame, "multipart/form-data; boundary=x"))
    assert (status, code) == (415, "unsupported_media_type")
    assert FRAME_MEDIA_TYPE in message


def damaged(frame: bytes) -> bytes:
    return frame[:-1] + bytes([frame[-1] ^ 1])


FAULTS = {
    "empty": (lambda f, o: b"", 400, "truncated", Truncated),
    "cut short": (lambda f, o: f[:-3], 400, "corrupt", Corrupt),
    "header only": (lambda f, o: f[:20], 400, "truncated", Truncated),
    "bit flipped": (lambda f, o: damaged(f), 400, "corrupt", Corrupt),
    "one byte more": (lambda f, o: f + b"\0", 400, "corrupt", Corrupt),
    "of a damaged pair": (lambda f, o: f[:9] + bytes([f[9] ^ 1]) + f[10:], 400, "corrupt", Corrupt),
    "no frame": (lambda f, o: b"hello" * 100, 400, "corrupt", Corrupt),
    "of another pair": (lambda f, o: o, 409, "fingerprint_mismatch", FingerprintMismatch),
    "of a newer version": (lambda f, o: reheaded(f, major=2), 501, "unsupported_version", UnsupportedVersion),
    "2 GB in a header": (lambda f, o: with_chunk_length(f, 2_000_000_000), 413, "limit_exceeded", LimitExceeded),
    "a batch of 65535": (lambda f, o: reheaded(f, batch=65535), 400, None, BitstreamError),
    "an operating point too many": (lambda f, o: reheaded(f, op=9), 400, "corrupt", Corrupt),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_frames(served: Served, frame: bytes, other: Pair, fault: str):
    """Status and code on the wire; at the edge the exception of ours, in one line."""
    make, status, code, kind = FAULTS[fault]
    body = make(frame, frame_of(other))
    got_status, got_code, message = error_of(post(served, body))
    assert (got_status, got_code) == (status, code or got_code)
    with contextlib.closing(HttpTransport(served.url)) as transport, pytest.raises(kind) as caught:
        transport.send(body)
    assert caught.value.code == got_code
    assert message in str(caught.value)
    if kind is FingerprintMismatch:
        assert other.profile.fingerprint.hex() in message
        assert only(served).fingerprint.hex() in message


# ------------------------------------------------------------------ limits

HEAD = b"POST /v1/infer HTTP/1.1\r\nHost: x\r\n"


def test_body_over_the_limit(served: Served):
    """By its Content-Length: refused before it is read, and the connection of a bearable one stays good."""
    with contextlib.closing(HttpTransport(served.url)) as transport:
        for _ in range(2):
            with pytest.raises(LimitExceeded, match="answered 413: the body has 100001 bytes; the limit is 100000"):
                transport.send(bytes(100_001))
            assert len(served.server.server_state.connections) == 1
        with pytest.raises(LimitExceeded):
            transport.send(bytes(5_000_000))


def test_2_gb_are_refused_on_the_announcement(served: Served):
    answer = raw_exchange(served.address, HEAD + b"Content-Length: 2000000000\r\n\r\nstart")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert b"the body has 2000000000 bytes" in answer


def test_chunked_body(served: Served, frame: bytes):
    def chunked(body: bytes, step: int) -> bytes:
        parts = (body[i : i + step] for i in range(0, len(body), step))
        return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"

    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert raw_exchange(served.address, head + chunked(frame, 50)).startswith(b"HTTP/1.1 200 ")
    answer = raw_exchange(served.address, head + chunked(bytes(150_000), 1000))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the body is longer than the limit of 100000 bytes" in answer


def test_body_that_does_not_arrive(pair: Pair):
    with serving(pair, limits=ServerLimits(body_timeout=0.2)) as server:
        answer = raw_exchange(server.address, HEAD + b"Content-Length: 1000\r\n\r\nhalf")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'{"error":{"code":"request_timeout","message":"the body did not arrive within 0.2 s"}}' in answer
        assert server.api.service.gate._buffered == 0


def test_all_bodies_together_over_the_limit(pair: Pair, frame: bytes):
    with (
        serving(pair, limits=ServerLimits(max_body=10_000, max_buffered=10_000)) as server,
        contextlib.closing(httpx.Client()) as client,
    ):
        half_sent = threading.Event()

        def halting() -> Iterator[bytes]:
            yield bytes(9_990)
            assert half_sent.wait(10)
            yield bytes(1)

        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.post, server.url + "/v1/infer", content=halting())
            until(lambda: server.api.service.gate._buffered == 9_990)
            response = post(server, frame)
            half_sent.set()
            assert error_of(response)[:2] == (503, "server_busy")
            assert response.headers["retry-after"] in ("1", "2")
            assert error_of(first.result())[:2] == (400, "corrupt")
        assert server.api.service.gate._buffered == 0
        assert post(server, frame).status_code == 200


def test_client_that_hangs_up_leaves_no_trace(served: Served, frame: bytes, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    import socket

    with socket.create_connection(served.address, 5) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nhalf")
        until(lambda: served.api.service.gate._buffered > 0)
    until(lambda: served.api.service.gate._buffered == 0)
    assert post(served, frame).status_code == 200
    assert caplog.records == []


@pytest.mark.parametrize(
    "options",
    [{"max_body": 0}, {"max_body": 10, "max_buffered": 9}, {"concurrency": 0}, {"queue": -1}, {"body_timeout": 0}],
)
def test_limits_out_of_range(options: dict[str, Any]):
    with pytest.raises(UsageError):
        ServerLimits(**options)


# ------------------------------------------------------------------ busy


def test_busy(pair: Pair, frame: bytes):
    """One runs, one waits, the third is sent away at once; the event loop answers all the time."""
    with (
        serving(pair, limits=ServerLimits(concurrency=1, queue=1)) as server,
        held(only(server)) as release,
        ThreadPoolExecutor(4) as pool,
    ):
        running = pool.submit(post, server, frame)
        until(lambda: server.api.service.scheduler.running == 1)
        waiting = pool.submit(post, server, frame)
        until(lambda: server.api.service.scheduler.waiting == 1)

        response = post(server, frame)
        assert error_of(response) == (503, "server_busy", "1 inferences run and 1 wait; come back later")
        assert response.headers["retry-after"] in ("1", "2")
        with (
            contextlib.closing(HttpTransport(server.url, retries=0)) as transport,
            pytest.raises(ServerBusy, match="is busy: 1 inferences run and 1 wait") as caught,
        ):
            transport.send(frame)
        assert caught.value.retry_after in (1, 2)
        assert httpx.get(server.url + "/healthz").status_code == 200
        assert server.api.service.scheduler.running == 1

        with contextlib.closing(HttpTransport(server.url)) as transport:
            patient = pool.submit(transport.send, frame)  # comes back after Retry-After
            time.sleep(0.3)
            release.set()
            assert patient.result().attempts == 2
        assert running.result().status_code == waiting.result().status_code == 200


def test_inferences_run_side_by_side(pair: Pair, frame: bytes):
    with (
        serving(pair, limits=ServerLimits(concurrency=3)) as server,
        ThreadPoolExecutor(3) as pool,
        held(only(server)) as release,
    ):
        answers = [pool.submit(post, server, frame) for _ in range(3)]
        until(lambda: server.api.service.scheduler.running == 3)
        release.set()
        assert [a.result().status_code for a in answers] == [200, 200, 200]


# ------------------------------------------------------------------ bugs and warming up


def test_a_bug_is_answered_without_its_traceback(pair: Pair, frame: bytes, caplog: pytest.LogCaptureFixture):
    def explode(*_: Any) -> Any:
        raise ZeroDivisionError("secret detail")

    with serving(pair) as server:
        only(server).run_back = explode  # type: ignore[method-assign, assignment]  # any arguments
        response = post(server, frame)
        with contextlib.closing(HttpTransport(server.url)) as transport, pytest.raises(TransportError, match="500"):
            transport.send(frame)
    assert error_of(response)[:2] == (500, "internal")
    assert "secret" not in response.text
    assert "ZeroDivisionError" in caplog.text  # with its traceback, in the log


def test_live_before_ready(pair: Pair, frame: bytes, monkeypatch: pytest.MonkeyPatch):
    release = threading.Event()
    monkeypatch.setattr(CloudSession, "warm_up", lambda self: release.wait(20))
    with serving(pair, wait=False) as server:
        assert httpx.get(server.url + "/healthz").status_code == 200
        assert httpx.get(server.url + "/v1/models").status_code == 200
        for response in (httpx.get(server.url + "/readyz"), post(server, frame)):
            assert error_of(response)[:2] == (503, "server_busy")
            assert response.headers["retry-after"] in ("1", "2")
        release.set()
        until(lambda: httpx.get(server.url + "/readyz").status_code == 200)
        assert post(server, frame).status_code == 200


def test_stop_while_warming_up(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    release = threading.Event()
    monkeypatch.setattr(CloudSession, "warm_up", lambda self: release.wait(20))
    with serving(pair, wait=False) as server:
        until(lambda: server.server.started)
    release.set()


# ------------------------------------------------------------------ the one table, and the page that shows it


def family(root: type[SplitwireError]) -> list[type[SplitwireError]]:
    return [root, *(c for child in root.__subclasses__() for c in family(child))]


def test_every_error_has_a_status_and_every_row_a_meaning():
    rows = {row.code: row for row in TABLE}
    assert len(rows) == len(TABLE)
    assert [row.status for row in TABLE] == sorted(row.status for row in TABLE)
    for kind in family(SplitwireError):
        status = status_of(kind("x"))
        assert 400 <= status < 600
        if kind.code in rows:
            assert status == rows[kind.code].status
    known = {kind.code for kind in family(SplitwireError)}
    assert set(rows) - known == {"not_found", "method_not_allowed", "unsupported_media_type", "internal"}


def table_after(heading: str) -> list[list[str]]:
    """The cells of the Markdown table below a heading of docs/runtime.md, without its head."""
    section = DOCS.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_shows_the_table():
    assert table_after("Errors") == [[f"`{r.code}`", str(r.status), r.when] for r in TABLE]


def test_the_page_shows_the_routes(served: Served):
    app = create_app(Models([only(served)]))
    routes = {
        f"`{method} {route.path}`"
        for route in app.routes
        if isinstance(route, Route) and not route.path.startswith("/v2")  # test_oip_bodies.py has those
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert {cells[0] for cells in table_after("Endpoints")} == routes


def test_the_page_shows_the_reply(served: Served, frame: bytes):
    section = DOCS.read_text(encoding="utf-8").split("## The reply\n")[1].split("\n## ")[0]
    shown = set(re.findall(r"^\| `(?:outputs\[\]\.)?(\w+)` \|", section, flags=re.MULTILINE))
    reply = msgspec.msgpack.decode(only(served).handle(frame))
    assert shown == set(reply) | set(reply["outputs"][0])
