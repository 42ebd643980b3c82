"""The gRPC service of the Open Inference Protocol, on a port of its own. Needs grpcio and protobuf (`cloud-grpc`).

It runs in the event loop of the HTTP server, because the service belongs to that loop's thread. Messages arrive as
bytes: their fields are counted before protobuf reads them (codec/wire/oip/scan.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import grpc
from grpc import aio

from splitwire.codec.errors import ServerBusy, SplitwireError, UnknownModel, UsageError
from splitwire.codec.wire.oip.messages import SERVICE, message
from splitwire.codec.wire.oip.tensors import CODE
from splitwire.codec.wire.reply import printable
from splitwire.runtime_cloud.asked import asked_by
from splitwire.runtime_cloud.call import Call, device_of
from splitwire.runtime_cloud.idempotency import parse_key
from splitwire.runtime_cloud.security import NOBODY, Caller, public_text
from splitwire.runtime_cloud.security.actions import OPEN, READ, RPCS
from splitwire.runtime_cloud.security.tls import ServerTls

from .describe import model_config, model_metadata, own_version, server_metadata
from .errors import FAILURE, grpc_status
from .grpc_form import from_json, read_request, read_small, write_answer
from .inference import Inference
from .options import GrpcOptions

log = logging.getLogger("splitwire.cloud")

OVERHEAD = 64 << 10
"""Bytes of a message beside a frame of the largest size."""
MAX_IN_FLIGHT = 8
"""Requests of one stream that run at a time; further ones wait in the connection."""
MAX_METADATA = 16 << 10

Context: TypeAlias = Any
"""grpc.aio.ServicerContext; grpcio has no types."""
Answering: TypeAlias = Callable[[bytes, Context, Caller], Awaitable[Any]]


def asked_of(context: Context, caller: Caller, *, keyed: bool) -> Call:
    """What the metadata and the deadline of a call say. keyed: it may have an idempotency key. Raises UsageError."""
    metadata = metadata_of(context)
    now = time.perf_counter()
    asked = asked_by(metadata, now, client=address_of(context.peer()), caller=caller)
    left = context.time_remaining()
    ends = [t for t in (asked.deadline, None if left is None else now + left) if t is not None]
    key = parse_key(metadata.get("idempotency-key")) if keyed else ""
    return replace(asked, key=key, protocol="oip-grpc", deadline=min(ends, default=None))


def metadata_of(context: Context) -> Mapping[str, str]:
    """The metadata of a call, by name; binary entries are left out."""
    return {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}


def address_of(peer: str) -> str:
    """The address in what gRPC calls a peer, such as ipv4:127.0.0.1:50312."""
    return peer.partition(":")[2].rpartition(":")[0].strip("[]").replace("%5B", "").replace("%5D", "")


class GrpcApi:
    """The procedures of the service."""

    def __init__(self, inference: Inference) -> None:
        self.inference = inference
        self.service = inference.service
        self._version = own_version()

    async def server_live(self, data: bytes, context: Context, caller: Caller) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def server_ready(self, data: bytes, context: Context, caller: Caller) -> Any:
        return message("ServerReadyResponse")(ready=self.service.ready)

    async def model_ready(self, data: bytes, context: Context, caller: Caller) -> Any:
        m = read_small("ModelReadyRequest", data)
        try:
            self.service.access.named(caller, READ, m.name, m.version)
        except UnknownModel:
            return message("ModelReadyResponse")(ready=False)
        return message("ModelReadyResponse")(ready=self.service.ready)

    async def server_metadata(self, data: bytes, context: Context, caller: Caller) -> Any:
        return from_json("ServerMetadataResponse", server_metadata(self._version))

    async def model_metadata(self, data: bytes, context: Context, caller: Caller) -> Any:
        m = read_small("ModelMetadataRequest", data)
        session = self.service.access.named(caller, READ, m.name, m.version)
        versions = [self.inference.version_of(session, m.version)]
        return from_json("ModelMetadataResponse", model_metadata(session, m.name, versions))

    async def model_config(self, data: bytes, context: Context, caller: Caller) -> Any:
        m = read_small("ModelConfigRequest", data)
        session = self.service.access.named(caller, READ, m.name, m.version)
        return from_json("ModelConfigResponse", {"config": model_config(session, m.name)})

    async def model_statistics(self, data: bytes, context: Context, caller: Caller) -> Any:
        m = read_small("ModelStatisticsRequest", data)
        of = self.inference.statistics.of
        if not m.name:
            stats = [of(s.name, s.version, s.fingerprint) for s in self.service.access.index(caller)]
        else:
            session = self.service.access.named(caller, READ, m.name, m.version)
            stats = [of(m.name, self.inference.version_of(session, m.version), session.pair)]
        return from_json("ModelStatisticsResponse", {"model_stats": stats})

    async def repository_index(self, data: bytes, context: Context, caller: Caller) -> Any:
        m = read_small("RepositoryIndexRequest", data)
        _same_repository(m.repository_name)
        answer = message("RepositoryIndexResponse")()
        for s in self.service.access.index(caller):
            if s.state == "READY" or not m.ready:
                answer.models.add(name=s.name, version=s.version, state=s.state, reason=s.reason)
        return answer

    async def load(self, data: bytes, context: Context, caller: Caller) -> Any:
        m = read_small("RepositoryModelLoadRequest", data)
        _same_repository(m.repository_name)
        for name in m.parameters:
            raise UsageError(
                f"a load takes a model of the repository, and no parameters; got {printable(name[:64])!r}: models are "
                "not uploaded"
            )
        change = partial(self.service.models.load, m.model_name)
        await self.service.access.manage(caller, "load", m.model_name, change)
        return message("RepositoryModelLoadResponse")()

    async def unload(self, data: bytes, context: Context, caller: Caller) -> Any:
        m = read_small("RepositoryModelUnloadRequest", data)
        _same_repository(m.repository_name)
        for name in m.parameters:
            if name != "unload_dependents":
                raise UsageError(f"an unload takes no parameter {printable(name[:64])!r}")
        change = partial(self.service.models.unload, m.model_name)
        await self.service.access.manage(caller, "unload", m.model_name, change)
        return message("RepositoryModelUnloadResponse")()

    async def infer(self, data: bytes, context: Context, caller: Caller) -> Any:
        return await self._infer(data, asked_of(context, caller, keyed=True))

    async def _infer(self, data: bytes, asked: Call, *, stream: bool = False) -> Any:
        self.service.require_ready()
        await self.service.scheduler.admit(device_of(asked) or asked.client, asked.priority)
        with self.service.gate.holding(len(data)):
            r = read_request(data)
            answer = await self.inference.run(r.model, r.request, asked)
        return write_answer(answer, final=r.final and stream)

    async def stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """One answer for each request, in their order; an error is an answer too, and the stream goes on."""
        try:
            caller = self._caller("ModelStreamInfer", context)
            asked = asked_of(context, caller, keyed=False)  # one key for many requests would be none
        except SplitwireError as e:
            await context.abort(getattr(grpc.StatusCode, grpc_status(e)), self._refused("ModelStreamInfer", e))
            return
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(MAX_IN_FLIGHT - 1)

        async def read() -> None:
            async for data in requests:
                await answers.put(asyncio.create_task(self._stream_one(data, asked)))
            await answers.put(None)

        reading = asyncio.create_task(read())
        answer: asyncio.Task[bytes] | None = None
        try:
            while (answer := await answers.get()) is not None:
                yield await answer
            await reading
        finally:
            reading.cancel()
            if answer is not None:
                answer.cancel()
            while not answers.empty():
                waiting = answers.get_nowait()
                if waiting is not None:
                    waiting.cancel()

    async def _stream_one(self, data: bytes, asked: Call) -> bytes:
        kind = message("ModelStreamInferResponse")
        try:
            answer = kind(infer_response=await self._infer(data, asked, stream=True))
        except SplitwireError as e:
            answer = kind(error_message=self._refused("ModelStreamInfer", e))
        except Exception as e:
            answer = kind(error_message=self._failed("ModelStreamInfer", e))
        if answer.error_message:
            answer.infer_response.id = _id_of(data)  # so that the client knows which request it was
        encoded: bytes = answer.SerializeToString()
        return encoded

    def answering(self, name: str, procedure: Answering) -> Callable[[bytes, Context], Awaitable[bytes]]:
        """The procedure with its errors as statuses of gRPC."""

        async def answer(data: bytes, context: Context) -> bytes:
            try:
                encoded: bytes = (await procedure(data, context, self._caller(name, context))).SerializeToString()
            except SplitwireError as e:
                trailing = [(CODE.lower(), e.code)]
                if isinstance(e, ServerBusy) and e.retry_after is not None:
                    trailing.append(("retry-after", str(max(1, math.ceil(e.retry_after)))))
                context.set_trailing_metadata(tuple(trailing))
                await context.abort(getattr(grpc.StatusCode, grpc_status(e)), self._refused(name, e))
            except Exception as e:
                await context.abort(grpc.StatusCode.INTERNAL, self._failed(name, e))
            return encoded

        return answer

    def _caller(self, name: str, context: Context) -> Caller:
        """Who calls, if they may call this procedure. Raises AuthRefused, Forbidden."""
        policy, rule = self.service.policy, RPCS[name]
        if policy.open or rule.action == OPEN:
            return NOBODY
        sent = [v for k, v in context.invocation_metadata() or () if k == "authorization"]
        shown = context.auth_context()
        names = shown.get("x509_common_name") or shown.get("x509_subject_alternative_name") or [b""]
        caller = policy.authenticate(
            sent[0] if len(sent) == 1 else "twice" if sent else "",
            address_of(context.peer()),
            certificate=names[0].decode("utf-8", "replace"),
            target=name,
        )
        policy.admit(caller, rule.action)
        return caller

    def _refused(self, name: str, e: SplitwireError) -> str:
        text = printable(str(e))
        self.service.observer.refused(e.code, text, protocol="oip-grpc")
        log.info("%s: %s: %s", name, e.code, text)
        return public_text(e)

    def _failed(self, name: str, e: Exception) -> str:
        log.error("%s fails", name, exc_info=e)
        self.service.observer.refused("internal", f"{name}: {type(e).__name__}", protocol="oip-grpc")
        return FAILURE


def procedures(api: GrpcApi) -> dict[str, Answering]:
    """The procedures with one answer, by name. The one that is a stream is GrpcApi.stream."""
    return {
        "ServerLive": api.server_live,
        "ServerReady": api.server_ready,
        "ModelReady": api.model_ready,
        "ServerMetadata": api.server_metadata,
        "ModelMetadata": api.model_metadata,
        "ModelConfig": api.model_config,
        "ModelStatistics": api.model_statistics,
        "ModelInfer": api.infer,
        "RepositoryIndex": api.repository_index,
        "RepositoryModelLoad": api.load,
        "RepositoryModelUnload": api.unload,
    }


@asynccontextmanager
async def grpc_port(inference: Inference, options: GrpcOptions) -> AsyncIterator[None]:
    """Serve while the block runs. Then no more calls are taken, and those that run get `options.grace_s` to end.

    Raises UsageError if it cannot listen on host and port.
    """
    limits = inference.service.limits
    server = aio.server(
        maximum_concurrent_rpcs=limits.concurrency + limits.queue + options.calls,
        options=[
            ("grpc.max_receive_message_length", limits.max_body + OVERHEAD),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", MAX_METADATA),
            ("grpc.absolute_max_metadata_size", MAX_METADATA),
            ("grpc.so_reuseport", int(options.share_port)),
            # A client that pings often is let be: the default closes its connection (too_many_pings).
            ("grpc.http2.min_ping_interval_without_data_ms", 1000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    api = GrpcApi(inference)
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(api.answering(name, procedure))
        for name, procedure in procedures(api).items()
    }
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(api.stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    host = f"[{options.host}]" if ":" in options.host else options.host
    try:
        if options.certificate is None:
            port = server.add_insecure_port(f"{host}:{options.port}")
        else:
            port = server.add_secure_port(f"{host}:{options.port}", _credentials(options))
    except RuntimeError as e:
        raise UsageError(f"cannot listen on {host}:{options.port} for gRPC; choose another with --grpc-port") from e
    await server.start()
    log.info("listening: gRPC at %s:%d", host, port)
    if options.on_listen is not None:
        options.on_listen(f"{host}:{port}")
    try:
        yield
    finally:
        await server.stop(options.grace_s)


def _credentials(options: GrpcOptions) -> Any:
    """The server's certificate; with `client_ca`, a client must show one too. The files are read again when they
    change. Raises UsageError for files that cannot be used."""
    assert options.certificate is not None and options.key is not None  # noqa: S101 - GrpcOptions has checked it
    certificate, key, client_ca = options.certificate, options.key, options.client_ca
    tls = ServerTls(certificate, key, client_ca)  # checks the files, and finds out when they change
    last: list[object] = []

    def read() -> Any:
        """For each handshake, in a thread of gRPC: what to use from now on; None for what was used last."""
        current = tls.current()
        if last == [current]:
            return None
        last[:] = [current]
        pair = (key.read_bytes(), certificate.read_bytes())
        ca = None if client_ca is None else client_ca.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair], ca)

    return grpc.dynamic_ssl_server_credentials(read(), read, require_client_authentication=client_ca is not None)


def _same_repository(name: str) -> None:
    if name:
        raise UsageError(f"there is no repository {printable(name[:64])!r}; leave its name out")


def _id_of(data: bytes) -> str:
    """The id of a request that was refused, if it can be read."""
    try:
        return read_request(data).request.id
    except SplitwireError:
        return ""
