"""The routes. `create_app` makes an ASGI application; `serve.py` runs it.

    GET  /healthz                   the process answers
    GET  /readyz                    the models are loaded and warm
    GET  /v1/models                 the models that are served
    GET  /v1/models/{fingerprint}   one of them
    POST /v1/infer                  a frame in, a reply out; the frame's header names the model
    POST /v1/batch                  several frames in, the reply or the error of each out
    GET  /v1/stream                 becomes a stream of frames and replies (docs/stream.md)

/v2 stays free for the Open Inference Protocol.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, cast

import anyio
import anyio.to_thread
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from splitwire.codec.errors import ServerBusy, SplitwireError
from splitwire.codec.wire import frame as wire_frame
from splitwire.codec.wire.batch import FRAMES_MEDIA_TYPE, REPLIES_MEDIA_TYPE, build_replies, parse_frames
from splitwire.codec.wire.reply import (
    FRAME_MEDIA_TYPE,
    REPLY_MEDIA_TYPE,
    asks_for_checksum,
    printable,
    with_checksum,
)
from splitwire.codec.wire.stream import PATH

from .admission import Gate, ServerLimits
from .batch import answer_all
from .idempotency import Answers, parse_key
from .loading import Models, describe
from .statuses import code_of_status, error_response, refusal
from .stream import Streams, open_stream

log = logging.getLogger("splitwire.cloud")

BODY_TYPES = ("", FRAME_MEDIA_TYPE, "application/octet-stream")
BATCH_TYPES = ("", FRAMES_MEDIA_TYPE)


class Api:
    """The endpoints of one server. ready: False until every model has run once."""

    def __init__(self, models: Models, limits: ServerLimits) -> None:
        self.models = models
        self.gate = Gate(limits)
        self.answers = Answers(entries=limits.answers, max_bytes=limits.answer_bytes)
        self.streams = Streams(models, self.gate, self.answers)
        self.ready = False

    async def warm_up(self) -> None:
        """Compile the kernels and run every model once, in a thread beside the event loop."""
        for session in self.models:
            await anyio.to_thread.run_sync(session.warm_up, abandon_on_cancel=True)
        self.ready = True

    def require_ready(self) -> None:
        """Raise ServerBusy while the models warm up."""
        if not self.ready:
            raise ServerBusy("the models are warming up; come back in a moment", self.gate.limits.retry_after)

    async def healthz(self, request: Request) -> Response:
        return _json({"status": "live"})

    async def readyz(self, request: Request) -> Response:
        self.require_ready()
        return _json({"status": "ready", "models": len(self.models)})

    async def list_models(self, request: Request) -> Response:
        return _json({"models": [describe(s) for s in self.models]})

    async def one_model(self, request: Request) -> Response:
        text = request.path_params["fingerprint"]
        try:
            session = self.models.find(bytes.fromhex(text))
        except ValueError:
            session = None
        if session is None:
            raise HTTPException(404, f"no model has the fingerprint {text[:64]!r}; GET /v1/models lists them")
        return _json(describe(session))

    async def infer(self, request: Request) -> Response:
        self.require_ready()
        self.gate.check()
        content_type = _content_type(request, BODY_TYPES)
        key = parse_key(request.headers.get("idempotency-key"))
        async with self.gate.body(request) as frame:
            reply = await self.answer(frame, key)
        checked = asks_for_checksum(content_type) or asks_for_checksum(request.headers.get("accept", ""))
        return Response(with_checksum(reply) if checked else reply, media_type=REPLY_MEDIA_TYPE)

    async def batch(self, request: Request) -> Response:
        self.require_ready()
        self.gate.check()
        _content_type(request, BATCH_TYPES)
        async with self.gate.body(request) as body:
            replies = await answer_all(parse_frames(body), self.answer, retry_after=self.gate.limits.retry_after)
        return Response(build_replies(replies), media_type=REPLIES_MEDIA_TYPE)

    async def answer(self, frame: bytes, key: str) -> bytes:
        """The reply (version 1) to a frame, in its turn. key: of idempotency, "" for none.

        Raises BitstreamError, FingerprintMismatch, ShapeMismatch, ServerBusy.
        """
        session = self.models.of_frame(wire_frame.peek_fingerprint(frame))
        if not key:
            return await self.gate.run(session.handle, frame)
        return await self.answers.answer(key, frame, lambda: self.gate.run(session.handle, frame))


def create_app(
    models: Models,
    limits: ServerLimits | None = None,
    *,
    on_ready: Callable[[], None] | None = None,
    on_failure: Callable[[Exception], None] | None = None,
) -> Starlette:
    """Return the server as an ASGI application, for any ASGI server.

    The models warm up in the background when the application starts: it is live at once and ready later.
    limits: None for the defaults. on_ready, on_failure: called in the event loop when the warm-up has succeeded or
    failed.
    """
    api = Api(models, limits or ServerLimits())

    async def prepare() -> None:
        try:
            await api.warm_up()
        except Exception as e:
            log.error("warm-up failed: %s", e)
            if on_failure is None:
                raise
            on_failure(e)
            return
        if on_ready is not None:
            on_ready()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(prepare)
            yield
            tasks.cancel_scope.cancel()

    app = Starlette(
        routes=[
            Route("/v1/infer", api.infer, methods=["POST"]),
            Route("/v1/batch", api.batch, methods=["POST"]),
            Route(PATH, open_stream(api.streams, api.require_ready), methods=["GET"]),
            Route("/v1/models", api.list_models, methods=["GET"]),
            Route("/v1/models/{fingerprint}", api.one_model, methods=["GET"]),
            Route("/healthz", api.healthz, methods=["GET"]),
            Route("/readyz", api.readyz, methods=["GET"]),
        ],
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
    return app


def _content_type(request: Request, taken: Sequence[str]) -> str:
    """The Content-Type with its parameters. Raises HTTPException for one that is not taken."""
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in taken:
        raise HTTPException(415, f"the body is declared as {media_type[:64]!r}; send {taken[1]}")
    return content_type


def _json(value: Any) -> Response:
    """JSON, with the date: a device compares its clock. (Replies to frames have none: it costs 37 bytes.)"""
    return Response(
        msgspec.json.encode(value), media_type="application/json", headers={"Date": formatdate(usegmt=True)}
    )


def _line(request: Request) -> str:
    """Method and path, safe to log: a path can contain line ends."""
    return printable(f"{request.method} {request.scope['path'][:64]}")


def _close_header(request: Request) -> dict[str, str]:
    """`Connection: close` if the rest of the body will not be read (see Gate.body)."""
    return {"Connection": "close"} if getattr(request.state, "close", False) else {}


async def _refused(request: Request, e: Exception) -> Response:
    error = cast("SplitwireError", e)  # Starlette declares a wider type than the handler is registered for
    log.info("%s: %s: %s", _line(request), error.code, printable(str(error)))
    return refusal(error, _close_header(request))


async def _http_error(request: Request, e: Exception) -> Response:
    error = cast("HTTPException", e)
    text = error.detail
    if text == HTTPStatus(error.status_code).phrase:  # the router gives no other text
        text = f"{_line(request)}: {text.lower()}"
    return error_response(error.status_code, code_of_status(error.status_code), text, error.headers)


async def _gone(request: Request, e: Exception) -> Response:
    """The client closed the connection while it sent, so nobody reads this answer."""
    log.info("%s: the client hung up", _line(request))
    return Response(status_code=400)


async def _bug(request: Request, e: Exception) -> Response:
    """The answer to an unexpected exception. Starlette raises it again, and the server logs its traceback."""
    return error_response(500, "internal", "the server failed on this request; its log says how")
