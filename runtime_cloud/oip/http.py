"""The routes under /v2, for Starlette. `oip_routes` makes them of a service.

Every answer but 200 has the body {"error": "text"}. A name may hold slashes, which clients do not quote.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import anyio.to_thread
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route

from splitwire.codec.errors import ServerBusy, SplitwireError, UnknownModel
from splitwire.codec.wire.oip.tensors import CODE, HEADER_LENGTH
from splitwire.codec.wire.reply import printable
from splitwire.runtime_cloud.asked import asked_by, gone
from splitwire.runtime_cloud.call import device_of
from splitwire.runtime_cloud.idempotency import parse_key
from splitwire.runtime_cloud.security import caller_of, public_text
from splitwire.runtime_cloud.security.actions import INFER, READ
from splitwire.runtime_cloud.session import CloudSession

from .describe import model_config, model_metadata, own_version, server_metadata
from .errors import FAILURE, NotSupported, http_status
from .inference import Inference, frame_input
from .json_form import header_length, inflate, read_index, read_load, read_request, read_unload, write_answer

log = logging.getLogger("splitwire.cloud")

Endpoint = Callable[[Request], Awaitable[Response]]

PREFIX = "/v2"
UNSUPPORTED = (
    "/v2/trace/setting",
    "/v2/models/{name:path}/trace/setting",
    "/v2/logging",
    "/v2/systemsharedmemory/{rest:path}",
    "/v2/cudasharedmemory/{rest:path}",
    "/v2/models/{name:path}/generate",
    "/v2/models/{name:path}/generate_stream",
)
"""Endpoints of Triton's extensions that the server does not have: 501."""
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]


class OipApi:
    """The endpoints of the protocol over HTTP."""

    def __init__(self, inference: Inference) -> None:
        self.inference = inference
        self.service = inference.service
        self._version = own_version()

    async def live(self, request: Request) -> Response:
        return Response()

    async def ready(self, request: Request) -> Response:
        self.service.require_ready()
        return Response()

    async def server(self, request: Request) -> Response:
        return _json(server_metadata(self._version))

    async def model_ready(self, request: Request) -> Response:
        self._session(request)
        self.service.require_ready()
        return Response()

    async def metadata(self, request: Request) -> Response:
        name, version = _model(request)
        session = self._session(request)
        return _json(model_metadata(session, name, [self.inference.version_of(session, version)]))

    async def config(self, request: Request) -> Response:
        return _json(model_config(self._session(request), _model(request)[0]))

    async def stats(self, request: Request) -> Response:
        name, version = _model(request)
        session = self._session(request)
        version = self.inference.version_of(session, version)
        return _json({"model_stats": [self.inference.statistics.of(name, version, session.pair)]})

    async def all_stats(self, request: Request) -> Response:
        of = self.inference.statistics.of
        return _json(
            {
                "model_stats": [
                    of(m.name, m.version, m.fingerprint) for m in self.service.access.index(caller_of(request.scope))
                ]
            }
        )

    async def index(self, request: Request) -> Response:
        only_ready = read_index(await self._body(request))
        return _json(
            [
                {"name": m.name, "version": m.version, "state": m.state, **({"reason": m.reason} if m.reason else {})}
                for m in self.service.access.index(caller_of(request.scope))
                if m.state == "READY" or not only_ready
            ]
        )

    async def load(self, request: Request) -> Response:
        read_load(await self._body(request))
        name = request.path_params["name"]
        change = partial(self.service.models.load, name)
        await self.service.access.manage(caller_of(request.scope), "load", name, change)
        return Response()

    async def unload(self, request: Request) -> Response:
        read_unload(await self._body(request))
        name = request.path_params["name"]
        change = partial(self.service.models.unload, name)
        await self.service.access.manage(caller_of(request.scope), "unload", name, change)
        return Response()

    async def infer(self, request: Request) -> Response:
        self.service.require_ready()
        model = _model(request)
        frame_name = frame_input(self._session(request, INFER))
        headers = request.headers
        begun = time.perf_counter()
        client = request.client.host if request.client else ""
        asked = asked_by(
            headers, begun, client=client, caller=caller_of(request.scope), abandoned=gone(request.receive)
        )
        asked = replace(asked, key=parse_key(headers.get("idempotency-key")), protocol="oip-http")
        await self.service.scheduler.admit(device_of(asked) or client, asked.priority)
        async with self.service.gate.body(request) as sent:
            asked = replace(asked, received=time.perf_counter() - begun)
            body = sent
            encoding = headers.get("content-encoding", "identity").strip().lower()
            if encoding not in ("", "identity"):
                body = await anyio.to_thread.run_sync(inflate, sent, encoding, self.service.limits.max_body)
            with self.service.gate.holding(0 if body is sent else len(body)):
                length = header_length(headers.get(HEADER_LENGTH), len(body))
                answer = await self.inference.run(model, read_request(body, length, frame_name), asked)
        text, length = write_answer(answer)
        if length is None:
            return Response(text, media_type="application/json")
        return Response(text, headers={HEADER_LENGTH: str(length)}, media_type="application/octet-stream")

    async def unsupported(self, request: Request) -> Response:
        raise NotSupported(f"{_line(request)}: the server does not have this extension of the protocol")

    def _session(self, request: Request, action: str = READ) -> CloudSession:
        """The model that a path names, if the caller may do this with it. Raises UnknownModel, Forbidden."""
        return self.service.access.named(caller_of(request.scope), action, *_model(request))

    async def _body(self, request: Request) -> bytes:
        async with self.service.gate.body(request) as body:
            return body

    def answering(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint with every error in the protocol's form."""

        async def answer(request: Request) -> Response:
            try:
                return await endpoint(request)
            except SplitwireError as e:
                return self._refused(request, e)
            except ClientDisconnect:
                raise
            except Exception as e:
                log.exception("%s fails", _line(request))
                self.service.observer.refused("internal", f"{_line(request)}: {type(e).__name__}", protocol="oip-http")
                return oip_error(500, FAILURE)

        return answer

    def _refused(self, request: Request, e: SplitwireError) -> Response:
        text = printable(str(e))
        self.service.observer.refused(e.code, text, protocol="oip-http")
        log.info("%s: %s: %s", _line(request), e.code, text)
        headers = {CODE: e.code}
        if getattr(request.state, "close", False):
            headers["Connection"] = "close"
        if isinstance(e, ServerBusy) and e.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(e.retry_after + 0.5)))
        return oip_error(http_status(e), public_text(e), headers)


def oip_routes(inference: Inference) -> list[BaseRoute]:
    """The routes of the protocol, in the order in which they are tried: the longest first."""
    api = OipApi(inference)
    table: list[tuple[str, str, Endpoint]] = [
        ("GET", "/v2", api.server),
        ("GET", "/v2/", api.server),
        ("GET", "/v2/health/live", api.live),
        ("GET", "/v2/health/ready", api.ready),
        ("POST", "/v2/repository/index", api.index),
        ("POST", "/v2/repository/models/{name:path}/load", api.load),
        ("POST", "/v2/repository/models/{name:path}/unload", api.unload),
        ("GET", "/v2/models/stats", api.all_stats),
    ]
    for method, tail, endpoint in (
        ("POST", "/infer", api.infer),
        ("GET", "/ready", api.model_ready),
        ("GET", "/config", api.config),
        ("GET", "/stats", api.stats),
        ("GET", "", api.metadata),
    ):
        table.append((method, "/v2/models/{name:path}/versions/{version}" + tail, endpoint))
        table.append((method, "/v2/models/{name:path}" + tail, endpoint))
    routes = [Route(path, api.answering(endpoint), methods=[method]) for method, path, endpoint in table[:-2]]
    routes += [Route(path, api.answering(api.unsupported), methods=METHODS) for path in UNSUPPORTED]
    routes += [Route(path, api.answering(endpoint), methods=[method]) for method, path, endpoint in table[-2:]]

    async def other(request: Request) -> Response:
        methods = {m for r in routes if r.matches(request.scope)[0] is Match.PARTIAL for m in r.methods or ()}
        if methods:
            return oip_error(405, f"{_line(request)}: method not allowed", {"Allow": ", ".join(sorted(methods))})
        return oip_error(404, f"{_line(request)}: not found")

    return [*routes, Route("/v2/{rest:path}", other, methods=METHODS)]


def _model(request: Request) -> tuple[str, str]:
    """(name, version) of the path. Raises UnknownModel for a version that is no number."""
    name, version = request.path_params["name"], request.path_params.get("version", "")
    if version and not (version.isascii() and version.isdigit() and len(version) <= 18):
        raise UnknownModel(f"model {printable(name[:64])!r}: the version {printable(version[:32])!r} is no number")
    return name, version


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def oip_error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error in the protocol's form."""
    return Response(msgspec.json.encode({"error": text}), status, headers, media_type="application/json")


def _line(request: Request) -> str:
    """Method and path, safe to log."""
    return printable(f"{request.method} {request.scope['path'][:64]}")
