"""Every route and every procedure, with every kind of credentials that must not do."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx
import numpy as np
import onnxruntime
import pytest
import starlette
import uvicorn
from runtime_helpers import Pair, Served, make_pair, raw_exchange, serving
from starlette.routing import Route
from token_helpers import INTERNAL, TokenSet, audit_lines, bearer, token_set

from splitwire.codec.codec import FeatureCodec
from splitwire.codec.errors import DeviceError, ExportError, SplitwireError
from splitwire.codec.wire.batch import FrameRecord, build_frames
from splitwire.codec.wire.stream import UPGRADE
from splitwire.runtime_cloud.http.app import create_app
from splitwire.runtime_cloud.http.door import guarded
from splitwire.runtime_cloud.repository.models import Models
from splitwire.runtime_cloud.security import Policy, Security
from splitwire.runtime_cloud.security.actions import ACTIONS, INFER, OPEN, READ, ROUTES, rule_of
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.transport import StreamTransport

OPEN_PATHS = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("second"), seed=1)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    return token_set(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "audit.jsonl"


@pytest.fixture(scope="module")
def served(pair: Pair, second: Pair, tokens: TokenSet, audit: Path) -> Iterator[Served]:
    with serving(pair, second, security=Security(tokens=tokens.path, audit=audit)) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=20, trust_env=False) as made:
        yield made


def frame_of(pair: Pair) -> bytes:
    spec = pair.profile.tensors
    features = [np.ones((1, *t.shape), np.float32) for t in spec]
    return FeatureCodec(pair.profile).encode(features, frame_id=7)


def all_routes(served: Served) -> list[tuple[str, str]]:
    """(method, path as the router has it) of every route of the application."""
    app: Any = served.server.config.app
    found = [(m, r.path) for r in app.router.routes for m in sorted(r.methods)]
    assert all(isinstance(r, Route) for r in app.router.routes)
    return found


def path_of(template: str, pair: Pair) -> str:
    values = {"fingerprint": CloudSession(pair.back).pair, "name": pair.profile.model, "version": "1", "rest": "x"}
    if template.startswith("/monitor/"):
        values["name"] = "monitor.css"
    return re.sub(r"{(\w+)(?::path)?}", lambda m: values[m[1]], template)


def body_of(template: str, pair: Pair) -> bytes:
    frame = frame_of(pair)
    if template == "/v1/batch":
        return build_frames([FrameRecord(frame=frame)])
    return frame if template == "/v1/infer" else b""


def ask(client: httpx.Client, method: str, template: str, pair: Pair, headers: dict[str, str]) -> httpx.Response:
    if template == "/v1/stream":
        headers = headers | {"Connection": "Upgrade", "Upgrade": UPGRADE}
    content = body_of(template, pair) if method == "POST" else b""
    return client.request(method, path_of(template, pair), headers=headers, content=content)


def assert_tells_nothing(answer: httpx.Response, *secrets: str) -> None:
    """No file, no library, no version, no name of a model."""
    shown = f"{answer.headers}\n{answer.text}"
    for word in (*INTERNAL, onnxruntime.__version__, uvicorn.__version__, starlette.__version__, *secrets):
        assert word.lower() not in shown.lower(), (word, shown)


def test_every_route_has_an_action_and_only_health_is_open(served: Served):
    routes = all_routes(served)
    assert len(routes) > 60
    rules = {(m, p): rule_of(m, p) for m, p in routes}
    assert None not in rules.values()
    assert {p for (_, p), rule in rules.items() if rule is not None and rule.action == OPEN} == OPEN_PATHS
    assert {rule.action for rule in rules.values() if rule is not None} == {OPEN, *ACTIONS}
    known = {(m, p) for m, p in routes} | {("*", p) for _, p in routes}
    assert set(ROUTES) <= known  # a rule without a route is an old one


def test_a_route_without_an_action_is_an_error():
    async def endpoint(request: object) -> Any:
        """Never called."""

    for policy in (Policy(), Policy(certificates=True)):
        with pytest.raises(LookupError, match="nothing says who may GET /v1/new"):
            guarded([Route("/v1/new", endpoint, methods=["GET"])], policy)


def test_every_route_without_credentials_that_do(served: Served, client: httpx.Client, tokens: TokenSet, pair: Pair):
    secrets = (pair.profile.model, CloudSession(pair.back).pair, str(pair.back.parent), str(tokens.path))
    for method, template in all_routes(served):
        for why, headers in tokens.useless.items():
            encoded: Any = {k: v.encode("latin-1") for k, v in headers.items()}
            answer = ask(client, method, template, pair, encoded)
            if template in OPEN_PATHS:
                assert answer.status_code == 200, (method, template, why)
            else:
                assert answer.status_code == 401, (method, template, why, answer.text)
                assert answer.headers["www-authenticate"].startswith(("Bearer", "Basic"))
            assert_tells_nothing(answer, *secrets)
            if answer.status_code == 401 and method != "HEAD":
                error = answer.json()["error"]
                assert isinstance(error, str) == template.startswith("/v2")
                known = why in ("expired", "revoked")  # who has the secret may know why
                text = error if isinstance(error, str) else error["message"]
                assert (why in text) == known


def test_every_route_with_the_token_of_another_model(
    served: Served, client: httpx.Client, tokens: TokenSet, pair: Pair, second: Pair
):
    """The token is for tiny-1, for infer and read. It learns nothing about tiny-0, not even that it is there."""
    secrets = (pair.profile.model, CloudSession(pair.back).pair)
    for method, template in all_routes(served):
        rule = rule_of(method, template)
        assert rule is not None
        answer = ask(client, method, template, pair, bearer(tokens.second))
        about_a_model = "{name" in template or "{fingerprint" in template or template in ("/v1/infer", "/v1/batch")
        if rule.action == OPEN:
            assert answer.status_code == 200
        elif rule.action not in (INFER, READ):
            assert answer.status_code == 403, (method, template)
        elif template == "/v1/batch":
            assert b'"forbidden"' in answer.content
        elif template == "/v1/models/{fingerprint}":
            assert answer.status_code == 404
            unknown = client.request(method, "/v1/models/" + "0" * 16, headers=bearer(tokens.second))
            assert answer.text.replace(secrets[1], "0" * 16) == unknown.text
        elif (
            about_a_model
            and "generate" not in template
            and "trace" not in template
            and template in {p for m, p in ROUTES if m != "*"}
        ):
            assert answer.status_code == 403, (method, template, answer.text)
        text = answer.text
        for secret in secrets:  # what the request itself says comes back in some errors
            text = text.replace(path_of(template, pair), "").replace(f"'{secret}'", "").replace(secrets[1], "")
            assert secret not in text, (method, template, text)


def test_every_route_with_a_token_that_does(served: Served, client: httpx.Client, tokens: TokenSet, pair: Pair):
    for method, template in all_routes(served):
        if template in ("/monitor/events", "/v1/stream"):
            continue  # they do not end
        answer = ask(client, method, template, pair, bearer(tokens.all))
        assert answer.status_code not in (401, 403), (method, template, answer.text)
    body = frame_of(pair)
    assert client.post("/v1/infer", content=body, headers=bearer(tokens.all)).status_code == 200
    assert client.post("/v1/infer", content=body, headers=bearer(tokens.first)).status_code == 200


def test_each_action_alone_opens_its_routes_only(pair: Pair, tmp_path: Path):
    from splitwire.runtime_cloud.security import tokens as store

    path = tmp_path / "tokens.json"
    with store.changing(path) as entries:
        made = {action: store.create(entries, action, actions=(action,))[1] for action in ACTIONS}
    with serving(pair, security=Security(tokens=path)) as served, httpx.Client(base_url=served.url) as client:
        for method, template in all_routes(served):
            rule = rule_of(method, template)
            assert rule is not None
            for action, token in made.items():
                if rule.action == action and template in ("/monitor/events", "/v1/stream"):
                    continue
                answer = ask(client, method, template, pair, bearer(token))
                if rule.action in (OPEN, action):
                    assert answer.status_code not in (401, 403), (method, template, action)
                else:
                    assert answer.status_code == 403, (method, template, action)


def test_a_frame_of_another_pair_names_the_served_ones_to_those_only_who_may_use_them(
    client: httpx.Client, tokens: TokenSet, pair: Pair, second: Pair, tmp_path: Path
):
    foreign = frame_of(make_pair(tmp_path, seed=2))
    pairs = {CloudSession(p.back).pair for p in (pair, second)}
    answer = client.post("/v1/infer", content=foreign, headers=bearer(tokens.all))
    assert answer.status_code == 409
    assert all(p in answer.text for p in pairs)
    for token, mine in ((tokens.first, pair), (tokens.second, second)):
        answer = client.post("/v1/infer", content=foreign, headers=bearer(token))
        assert answer.status_code == 403
        own = CloudSession(mine.back).pair
        assert own in answer.text
        assert not any(p in answer.text for p in pairs - {own})
    # A pair that is served to others looks just like one that is not served.
    theirs = client.post("/v1/infer", content=frame_of(pair), headers=bearer(tokens.second))
    assert theirs.status_code == 403
    words = [re.sub(r"the pair [0-9a-f]+", "the pair", a.text) for a in (answer, theirs)]
    assert words[0] == words[1]


def test_lists_hold_only_what_a_caller_may_see(client: httpx.Client, tokens: TokenSet):
    for token, names in ((tokens.all, ["tiny-0", "tiny-1"]), (tokens.first, ["tiny-0"]), (tokens.second, ["tiny-1"])):
        headers = bearer(token)
        assert [m["name"] for m in client.get("/v1/models", headers=headers).json()["models"]] == names
        assert [m["name"] for m in client.post("/v2/repository/index", headers=headers).json()] == names
        stats = client.get("/v2/models/stats", headers=headers).json()["model_stats"]
        assert [m["name"] for m in stats] == names
        asked = [client.get(f"/v2/models/{name}", headers=headers).status_code for name in ("tiny-0", "tiny-1")]
        assert asked == [200 if name in names else 403 for name in ("tiny-0", "tiny-1")]
    theirs = client.get("/v2/models/tiny-0", headers=bearer(tokens.second))
    nobodys = client.get("/v2/models/tiny-7", headers=bearer(tokens.second))
    assert theirs.text.replace("tiny-0", "tiny-7") == nobodys.text
    assert client.get("/v2/models/tiny-7", headers=bearer(tokens.all)).status_code == 404


# ------------------------------------------------------------------ ways around


TARGETS = (
    "//v1/infer",
    "/v1//infer",
    "/v1/infer/",
    "/V1/INFER",
    "/v1/%69nfer",
    "/%76%31/infer",
    "/v1/../v1/infer",
    "/healthz/../v1/infer",
    "/healthz/%2e%2e/v1/infer",
    "/healthz%2f..%2fv1%2finfer",
    "/healthz%00/v1/infer",
    "/healthz;/v1/infer",
    "/healthz/",
    "/HEALTHZ",
    "/healthz?/v1/infer",
    "/v1/infer?x=/healthz",
    "/v1/infer#/healthz",
    "http://127.0.0.1/v1/infer",
    "http://127.0.0.1/healthz/../v1/infer",
    "http://healthz/v1/infer",
    "/v2/health/live/../../models/tiny-0/infer",
    "/v2/models/x/../../health/live/infer",
    "/v2/repository/models/%2e%2e%2ftiny-0/load",
    "\\v1\\infer",
    "*",
)


@pytest.mark.parametrize("target", TARGETS)
def test_no_spelling_of_a_path_gets_around(served: Served, pair: Pair, target: str):
    """Whatever the path looks like: without a token there is health, or there is a refusal."""
    frame = frame_of(pair)
    for method in ("GET", "POST"):
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(frame)}\r\nConnection: close\r\n\r\n"
        answer = raw_exchange(served.address, head.encode("latin-1") + frame)
        status = answer.split(b" ", 2)[1] if answer else b""
        health = answer.endswith(b'{"status":"live"}') and target.startswith("/healthz?")
        assert status in (b"401", b"400", b"405") or health, answer
        assert pair.profile.model.encode() not in answer
        assert CloudSession(pair.back).pair.encode() not in answer


def test_an_absolute_request_target_is_the_same_path(served: Served, tokens: TokenSet):
    head = "GET http://elsewhere.example/{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{}\r\n"
    assert b" 200 " in raw_exchange(served.address, head.format("healthz", "").encode())
    assert b" 401 " in raw_exchange(served.address, head.format("v1/models", "").encode())
    allowed = head.format("v1/models", f"Authorization: Bearer {tokens.all}\r\n")
    assert b" 200 " in raw_exchange(served.address, allowed.encode())


def test_headers_that_proxies_read_change_nothing(client: httpx.Client, tokens: TokenSet):
    for name, value in (
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Original-URL", "/healthz"),
        ("X-Rewrite-URL", "/healthz"),
        ("X-HTTP-Method-Override", "GET"),
        ("Forwarded", "for=127.0.0.1"),
        ("X-SSL-Client-S-DN", "CN=all"),
        ("X-Splitwire-Device", "all"),
    ):
        assert client.get("/v1/models", headers={name: value}).status_code == 401, name
    # Which of two headers counts is a matter of taste, so none does.
    twice = [("Authorization", f"Bearer {tokens.all}"), ("Authorization", "Bearer x")]
    assert client.get("/v1/models", headers=twice).status_code == 401
    assert client.get("/v1/models", headers=twice[::-1]).status_code == 401


def test_unknown_paths_and_methods_are_refused_like_known_ones(client: httpx.Client, tokens: TokenSet):
    for method, path in (("GET", "/"), ("GET", "/admin"), ("DELETE", "/v1/models"), ("GET", "/v1/infer")):
        assert client.request(method, path).status_code == 401, path
        assert client.request(method, path, headers=bearer(tokens.all)).status_code in (404, 405), path


def test_a_browser_gives_the_token_as_a_password_to_pages_only(client: httpx.Client, tokens: TokenSet):
    auth = httpx.BasicAuth("anyone", tokens.all)
    assert client.get("/monitor", auth=auth).status_code == 200
    assert client.get("/metrics", auth=auth).status_code == 200
    assert client.get("/monitor").headers["www-authenticate"].startswith("Basic ")
    assert client.get("/v1/models", auth=auth).status_code == 401
    # A page of somebody else could make a browser send this with what it knows.
    assert client.post("/v2/repository/models/tiny-0/unload", auth=auth).status_code == 401
    assert client.get("/monitor", auth=httpx.BasicAuth("anyone", tokens.second)).status_code == 403
    for broken in ("Basic", "Basic %", "Basic YQ==", "Basic /w=="):
        assert client.get("/monitor", headers={"Authorization": broken}).status_code == 401


def test_an_endless_body_of_a_stranger_is_not_read(served: Served, tokens: TokenSet):
    with socket.create_connection(served.address, 10) as connection:
        connection.sendall(b"POST /v1/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.settimeout(10)
        answer = connection.recv(65536)
        assert b" 401 " in answer
        assert b"connection: close" in answer.lower()
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                pass  # until it is closed


# ------------------------------------------------------------------ the record


def test_refusals_are_recorded_and_hold_no_secret(pair: Pair, second: Pair, tmp_path: Path):
    tokens, path = token_set(tmp_path), tmp_path / "audit.jsonl"
    security = Security(tokens=tokens.path, audit=path)
    frame = frame_of(pair)
    with serving(pair, second, security=security) as served, httpx.Client(base_url=served.url) as client:
        useless = tokens.useless
        for why in ("none", "unknown", "expired", "revoked"):
            assert client.post("/v1/infer", content=frame, headers=useless[why]).status_code == 401
        assert client.post("/v1/infer", content=frame, headers=bearer(tokens.second)).status_code == 403
        assert client.get("/metrics", headers=bearer(tokens.first)).status_code == 403
        for _ in range(3):
            assert client.post("/v1/infer", content=frame, headers=bearer(tokens.first)).status_code == 200
        client.post("/v2/repository/models/tiny-0/unload", headers=bearer(tokens.all))
    lines = audit_lines(path)
    refused = [line for line in lines if line["outcome"] == "refused"]
    assert [(r["reason"], r.get("caller", ""), r.get("action", "")) for r in refused] == [
        ("no_token", "", ""),
        ("wrong_token", "", ""),
        ("expired", "expired", ""),
        ("revoked", "revoked", ""),
        ("other_model", "second", "infer"),
        ("other_action", "first", "metrics"),
    ]
    assert {r["peer"] for r in refused} == {"127.0.0.1"}
    assert refused[0]["target"] == "POST /v1/infer"
    assert refused[4]["model"] == "tiny-0"
    allowed = [line for line in lines if line["outcome"] == "allowed"]
    assert [(a["caller"], a["action"], a["model"], a.get("count", 0), a.get("target", "")) for a in allowed] == [
        ("all", "manage", "tiny-0", 0, "unload"),
        ("first", "infer", "tiny-0", 3, ""),
    ]
    text = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    for token in (tokens.all, tokens.first, tokens.second, tokens.expired, tokens.revoked):
        assert token[-43:] not in text
    for entry in tokens.path.read_text().split('"'):
        assert len(entry) != 64 or entry not in text  # nor a hash


def test_a_flood_of_refusals_is_counted_and_not_written(pair: Pair, tmp_path: Path):
    tokens, path = token_set(tmp_path), tmp_path / "audit.jsonl"
    security = Security(tokens=tokens.path, audit=path)
    with serving(pair, security=security) as served, httpx.Client(base_url=served.url) as client:
        for _ in range(200):
            assert client.get("/v1/models").status_code == 401
        # Somebody else behind the same address comes in all the same.
        assert client.get("/v1/models", headers=bearer(tokens.all)).status_code == 200
    lines = [line for line in audit_lines(path) if line["outcome"] == "refused"]
    assert 10 <= len(lines) <= 40
    assert sum(line.get("count", 1) for line in lines) == 200


# ------------------------------------------------------------------ without authentication


def test_without_authentication_everything_is_as_open_as_before(pair: Pair):
    with serving(pair) as served, httpx.Client(base_url=served.url) as client:
        assert client.post("/v1/infer", content=frame_of(pair), headers=bearer("x")).status_code == 200
        assert client.get("/metrics").status_code == 200


def test_the_application_refuses_a_call_whose_protocol_forgot_the_caller(pair: Pair, tokens: TokenSet):
    """A new protocol that does not authenticate is closed, not open."""
    import asyncio

    from splitwire.codec.errors import AuthRefused
    from splitwire.runtime_cloud.service import Call

    app = create_app(Models([CloudSession(pair.back)]), security=Security(tokens=tokens.path))
    service = app.state.api.service
    for call in (Call(frame=frame_of(pair)), Call(frame=b"", model=("tiny-0", ""))):
        with pytest.raises(AuthRefused):
            asyncio.run(service.answer(call))
    assert service.access.visible(Call(frame=b"").caller) == []
    assert service.access.index(Call(frame=b"").caller) == []
    with pytest.raises(AuthRefused):
        service.access.named(Call(frame=b"").caller, "read", "tiny-0")


def test_a_remembered_answer_is_for_those_who_may_run_the_model(client: httpx.Client, tokens: TokenSet, pair: Pair):
    keyed = {"Idempotency-Key": '"device:boot:1"'}
    frame = frame_of(pair)
    first = client.post("/v1/infer", content=frame, headers=bearer(tokens.first) | keyed)
    assert first.status_code == 200
    again = client.post("/v1/infer", content=frame, headers=bearer(tokens.all) | keyed)
    assert again.content == first.content  # it is remembered
    for token, status in ((tokens.second, 403), (tokens.revoked, 401)):
        assert client.post("/v1/infer", content=frame, headers=bearer(token) | keyed).status_code == status


def test_an_error_of_this_machine_is_not_shown(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    """Neither where one is foreseen nor where it is a bug, by HTTP, in a batch, by the stream and by /v2."""
    secret = "/srv/models/secret.onnx: libonnxruntime.so.1.2.3"

    frame = frame_of(pair)
    with serving(pair) as served:
        for error in (DeviceError(secret), SplitwireError(secret), ExportError(secret), OSError(secret)):
            fails = AsyncMock(side_effect=error)
            monkeypatch.setattr(served.api.service, "answer", fails)
            monkeypatch.setattr(served.api.service, "infer", fails)
            answers = [
                httpx.post(f"{served.url}/v1/infer", content=frame),
                httpx.post(f"{served.url}/v1/batch", content=body_of("/v1/batch", pair)),
                httpx.post(
                    f"{served.url}/v2/models/tiny-0/infer",
                    content=frame,
                    headers={"Inference-Header-Content-Length": "0"},
                ),
            ]
            assert [a.status_code for a in answers] == [500, 200, 500]
            stream = StreamTransport(served.url.replace("http", "stream"), retries=0)
            with contextlib.closing(stream), pytest.raises(SplitwireError) as caught:
                stream.send(frame)
            for text in (*(a.text for a in answers), str(caught.value)):
                assert "secret" not in text
                assert "onnx" not in text
                assert "its log says how" in text
