"""The routes. `create_app` makes an ASGI application; `engines/process.py` runs it.

    GET  /healthz                   the process answers
    GET  /readyz                    the models are loaded and warm
    GET  /v1/models, …              the models: models.py
    POST /v1/infer                  a frame in, a reply out; the frame's header names the model
    POST /v1/batch                  several frames in, the reply or the error of each out
    GET  /metrics, /monitor         what the server does: for Prometheus, and a live page (docs/observe.md)
    GET  /v1/stream                 becomes a stream of frames and replies (docs/stream.md)

Under /v2 are the routes of the Open Inference Protocol (oip/http.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import cast

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from splitwire.codec.errors import ServerBusy, SplitwireError
from splitwire.codec.wire.batch import FRAMES_MEDIA_TYPE, REPLIES_MEDIA_TYPE, build_replies, parse_frames
from splitwire.codec.wire.reply import (
    FRAME_MEDIA_TYPE,
    REPLY_MEDIA_TYPE,
    asks_for_checksum,
    printable,
    with_checksum,
)
from splitwire.codec.wire.stream import PATH
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.asked import asked_by, gone
from splitwire.runtime_cloud.idempotency import parse_key
from splitwire.runtime_cloud.observe import Levels, ModelState, Observer, Observers, Telemetry, all_observers
from splitwire.runtime_cloud.observe.monitor import Monitor
from splitwire.runtime_cloud.oip import PREFIX as OIP_PREFIX
from splitwire.runtime_cloud.oip import GrpcOptions, Inference, Statistics, oip_error, oip_routes, open_grpc
from splitwire.runtime_cloud.repository import ModelState as RepositoryState
from splitwire.runtime_cloud.repository import ServedModels
from splitwire.runtime_cloud.security import Policy, Security, caller_of, public_text
from splitwire.runtime_cloud.service import Call, Service, device_of
from splitwire.runtime_cloud.stream import Streams, open_stream

from .batch import answer_all
from .door import Door, guarded
from .models import ModelRoutes, to_json
from .statuses import code_of_status, error_response, refusal, status_of

log = logging.getLogger("splitwire.cloud")

KEEP_S = 5.0
"""Seconds between two looks of the policy at its files."""
BODY_TYPES = ("", FRAME_MEDIA_TYPE, "application/octet-stream")
BATCH_TYPES = ("", FRAMES_MEDIA_TYPE)


class Api:
    """The endpoints of one server."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.streams = Streams(service)

    def levels(self) -> Levels:
        """How full the server is now."""
        service = self.service
        return Levels(
            queued=service.scheduler.waiting,
            running=service.scheduler.running,
            buffered=service.gate.buffered,
            streams=len(self.streams),
            kept=service.answers.count,
            ready=service.ready and not service.stopping,
            models=tuple(_state(state, warm=service.ready) for state in service.models.index()),
        )

    async def healthz(self, request: Request) -> Response:
        return to_json({"status": "live"})

    async def readyz(self, request: Request) -> Response:
        self.service.require_ready()
        if self.service.stopping:  # frames are still taken, from those who have not heard of it
            raise ServerBusy("the server stops", self.service.limits.retry_after)
        count = {"models": len(self.service.models)} if self.service.policy.open else {}  # anyone may ask
        return to_json({"status": "ready", **count})

    async def infer(self, request: Request) -> Response:
        self.service.require_ready()
        headers = request.headers
        begun = time.perf_counter()
        asked = _asked(request, begun)
        key = parse_key(headers.get("idempotency-key"))
        await self.service.scheduler.admit(device_of(asked) or key.partition(":")[0] or asked.client, asked.priority)
        content_type = _content_type(request, BODY_TYPES)
        async with self.service.gate.body(request) as frame:
            received = time.perf_counter() - begun
            reply = await self.service.answer(replace(asked, frame=frame, key=key, received=received))
        checked = asks_for_checksum(content_type) or asks_for_checksum(request.headers.get("accept", ""))
        return Response(with_checksum(reply) if checked else reply, media_type=REPLY_MEDIA_TYPE)

    async def batch(self, request: Request) -> Response:
        self.service.require_ready()
        asked = _asked(request, time.perf_counter())
        await self.service.scheduler.admit(device_of(asked) or asked.client, asked.priority)
        _content_type(request, BATCH_TYPES)
        async with self.service.gate.body(request) as body:
            replies = await answer_all(parse_frames(body), self.service, asked)
        return Response(build_replies(replies), media_type=REPLIES_MEDIA_TYPE)


def create_app(
    models: ServedModels,
    limits: ServerLimits | None = None,
    *,
    observer: Observer | None = None,
    security: Security | None = None,
    grpc: GrpcOptions | None = None,
    on_ready: Callable[[], None] | None = None,
    on_failure: Callable[[Exception], None] | None = None,
) -> Starlette:
    """Return the server as an ASGI application, for any ASGI server.

    The models warm up in the background when the application starts: it is live at once and ready later.
    limits: None for the defaults. observer: hears of every answer and refusal; with a Telemetry there are /metrics
    and /monitor. None for a new Telemetry. security: who may do what, and the record of it; TLS is the ASGI server's.
    None: everybody may do everything. grpc: serve the Open Inference Protocol over gRPC too, on a port of its own,
    while the application runs. on_ready, on_failure: called in the event loop when the warm-up has succeeded, or when
    it or the gRPC port has failed.
    """
    observer = Telemetry() if observer is None else observer
    statistics = Statistics()
    policy = (security or Security()).policy()
    policy.told = observer.event
    limits = limits or ServerLimits()
    service = Service(models, limits, Observers([observer, statistics]), policy)

    def models_changed(kind: str, text: str) -> None:
        service.access.changed()
        observer.event(kind, text)

    models.listen(models_changed)
    api = Api(service)
    inference = Inference(service, statistics)
    telemetry = next((o for o in all_observers(observer) if isinstance(o, Telemetry)), None)
    monitor = None
    if telemetry is not None:
        telemetry.levels = api.levels
        monitor = Monitor(telemetry)

    async def prepare() -> None:
        try:
            await service.warm_up()
        except Exception as e:
            log.error("warm-up failed: %s", e)
            if on_failure is None:
                raise
            on_failure(e)
            return
        observer.event("ready", f"{len(models)} models are warm; frames are taken")
        if on_ready is not None:
            on_ready()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                if grpc is not None:
                    await stack.enter_async_context(open_grpc(inference, grpc))
            except SplitwireError as e:
                if on_failure is None:
                    raise
                on_failure(e)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(prepare)
                tasks.start_soon(models.watch)
                tasks.start_soon(_keep, policy)
                if monitor is not None:
                    tasks.start_soon(monitor.run)
                yield
                tasks.cancel_scope.cancel()
        service.scheduler.close()
        policy.close()

    routes = guarded(
        [
            Route("/v1/infer", api.infer, methods=["POST"]),
            Route("/v1/batch", api.batch, methods=["POST"]),
            Route(PATH, open_stream(api.streams), methods=["GET"]),
            *ModelRoutes(service.access).routes(),
            *oip_routes(inference),
            Route("/healthz", api.healthz, methods=["GET"]),
            Route("/readyz", api.readyz, methods=["GET"]),
            *(() if monitor is None else monitor.routes()),
        ],
        policy,
    )
    app = Starlette(
        routes=routes,
        middleware=[]
        if policy.open
        else [Middleware(Door, policy=policy, observer=observer, too_long=limits.max_body)],
        exception_handlers={
            SplitwireError: _refused,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _bug,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirected POST would send its frame twice
    app.state.api = api

    def stopping() -> None:
        observer.event("stopping", "the server stops: frames that were taken are answered")
        if monitor is not None:
            monitor.close()

    app.state.stopping = stopping
    return app


async def _keep(policy: Policy) -> None:
    """Look at the tokens and write the record now and then, also while no request comes."""
    while True:
        await anyio.sleep(KEEP_S)
        policy.tick()


def _asked(request: Request, now: float) -> Call:
    """What the head of a request says about its call, without the frame. Raises UsageError."""
    client, caller = request.client.host if request.client else "", caller_of(request.scope)
    return asked_by(request.headers, now, client=client, caller=caller, abandoned=gone(request.receive))


def _content_type(request: Request, taken: Sequence[str]) -> str:
    """The Content-Type with its parameters. Raises HTTPException for one that is not taken."""
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in taken:
        raise HTTPException(415, f"the body is declared as {media_type[:64]!r}; send {taken[1]}")
    return content_type


def _state(state: RepositoryState, *, warm: bool) -> ModelState:
    """A version as the metrics and the monitor page show it. warm: whether the server has started."""
    shown = {"READY": "ready", "LOADING": "loading", "UNLOADING": "unloading"}.get(state.state, "unloaded")
    if shown in ("ready", "loading") and not warm:
        shown = "warming"
    elif shown == "unloaded" and state.quarantined:
        shown = "quarantined"
    return ModelState(name=state.name, pair=state.fingerprint, version=state.version, state=shown, reason=state.reason)


def _line(request: Request) -> str:
    """Method and path, safe to log: a path can contain line ends."""
    return printable(f"{request.method} {request.scope['path'][:64]}")


def _close_header(request: Request) -> dict[str, str]:
    """`Connection: close` if the rest of the body will not be read (see Gate.body)."""
    return {"Connection": "close"} if getattr(request.state, "close", False) else {}


def _observer(request: Request) -> Observer:
    api: Api = request.app.state.api
    return api.service.observer


async def _refused(request: Request, e: Exception) -> Response:
    error = cast("SplitwireError", e)  # Starlette declares a wider type than the handler is registered for
    _observer(request).refused(error.code, printable(str(error)))
    log.info("%s: %s: %s", _line(request), error.code, printable(str(error)))
    if request.scope["path"].startswith(OIP_PREFIX):
        return oip_error(status_of(error), public_text(error), _close_header(request))
    return refusal(error, _close_header(request))


async def _http_error(request: Request, e: Exception) -> Response:
    error = cast("HTTPException", e)
    text = error.detail
    if text == HTTPStatus(error.status_code).phrase:  # the router gives no other text
        text = f"{_line(request)}: {text.lower()}"
    _observer(request).refused(code_of_status(error.status_code), printable(text))
    if request.scope["path"].startswith(OIP_PREFIX):
        return oip_error(error.status_code, text, error.headers)
    return error_response(error.status_code, code_of_status(error.status_code), text, error.headers)


async def _gone(request: Request, e: Exception) -> Response:
    """The client closed the connection while it sent, so nobody reads this answer."""
    log.info("%s: the client hung up", _line(request))
    return Response(status_code=400)


async def _bug(request: Request, e: Exception) -> Response:
    """The answer to an unexpected exception. Starlette raises it again, and the server logs its traceback."""
    _observer(request).refused("internal", f"{_line(request)}: {type(e).__name__}")
    return error_response(500, "internal", "the server failed on this request; its log says how")
