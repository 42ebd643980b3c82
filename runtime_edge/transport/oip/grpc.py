"""OipGrpcTransport sends frames over the Open Inference Protocol, over gRPC (docs/oip.md). Needs `splitwire[grpc]`."""

from __future__ import annotations

import math
import ssl
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitwire.codec.errors import (
    AuthRefused,
    BadResponse,
    ConnectTimeout,
    Corrupt,
    DeviceError,
    RequestTimeout,
    ServerBusy,
    SplitwireError,
    TransportError,
    Truncated,
    UsageError,
)
from splitwire.codec.wire.oip.tensors import BYTES, CODE, FRAME_INPUT, pack_bytes
from splitwire.codec.wire.reply import DecodedReply, printable
from splitwire.runtime_edge.events import EventSink, ignore
from splitwire.runtime_edge.transport.address import Address
from splitwire.runtime_edge.transport.answers import error_class, parse_retry_after
from splitwire.runtime_edge.transport.base import Key, Reply, Timeouts, make_reply, send_each
from splitwire.runtime_edge.transport.credentials import Tls, TokenFile, checked_token
from splitwire.runtime_edge.transport.http.client import MAX_REPLY_BYTES
from splitwire.runtime_edge.transport.retry import MAX_PAUSE_S, CircuitBreaker, RetryBudget, pause

from .answers import MAX_VERSION, make_decoded, model_of, reply_for

SCHEMES = ("oip+grpc", "oip+grpcs")
METHOD = "/inference.GRPCInferenceService/ModelInfer"
PREFIX_BYTES = 5
"""What gRPC puts in front of each message."""
KEEPALIVE_MS = 60_000
CODES = {
    "INVALID_ARGUMENT": "bitstream",
    "NOT_FOUND": "unknown_model",
    "FAILED_PRECONDITION": "fingerprint_mismatch",
    "RESOURCE_EXHAUSTED": "limit_exceeded",
    "UNIMPLEMENTED": "unsupported_version",
}
"""The code of an error by its status, from a server that does not name it."""


class OipGrpcTransport:
    """Sends frames over the Open Inference Protocol, over gRPC, on one connection.

    url: oip+grpc://host:port, or oip+grpcs://host:port with TLS.
    model: name of the model on the server; "" for the fingerprint in each frame, by which `splitwire cloud serve` finds
        it. version: its version; "" for the newest.
    timeouts: `connect`, `read`, `write` and `pool` are not used: gRPC has one deadline, `total`.
    token: sent as metadata `authorization: Bearer …`; without TLS too.
    verify: for TLS: True for the system's certificates, or a Tls of files, which are read once.

    The other arguments and errors are those of HttpTransport; so are retries. `bytes_sent` and `bytes_received` of a
    reply are those of the messages, without the heads of HTTP/2. A child of fork() cannot use the transport of its
    parent. Raises UsageError, and DeviceError where grpcio or protobuf is missing.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        version: str = "",
        timeouts: Timeouts | None = None,
        retries: int = 2,
        token: str | TokenFile | None = None,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        verify: bool | Tls = True,
        breaker: CircuitBreaker | None = None,
        on_event: EventSink = ignore,
    ) -> None:
        try:
            import grpc

            from splitwire.codec.wire.oip.messages import message
        except ImportError as e:
            raise DeviceError(
                f"OipGrpcTransport needs grpcio and protobuf ({e.name} is missing): pip install 'splitwire[grpc]'"
            ) from e
        if retries < 0 or max_reply_bytes < 1:
            raise UsageError("retries must be 0 or more, max_reply_bytes 1 or more")
        if version and not (version.isascii() and version.isdigit() and len(version) <= MAX_VERSION):
            raise UsageError(f"{version[:64]!r} is no version of a model: a number, such as 1")
        address = Address(url, plain=SCHEMES[0], secure=SCHEMES[1])
        if address.path:
            raise UsageError(f"{url!r}: gRPC has no paths; give {SCHEMES[0]}://host:port")
        self._server = address.server
        self._url = address.base
        self._model = model
        self._version = version
        self._total = (timeouts or Timeouts()).total
        self._retries = retries
        self._token = token if isinstance(token, TokenFile) or token is None else checked_token(token)
        self._breaker = CircuitBreaker(on_event=on_event) if breaker is None else breaker
        self._budget = RetryBudget()
        self._closed = threading.Event()
        self._error = grpc.RpcError
        self._request: Any = message("ModelInferRequest")
        self._response: Any = message("ModelInferResponse")
        name = f"[{address.name}]" if ":" in address.name else address.name
        target = f"{name}:{address.port}"
        options = [
            ("grpc.max_receive_message_length", min(max_reply_bytes, (1 << 31) - 1)),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.enable_retries", 0),  # the retries are ours: only where a frame cannot run twice
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if address.tls:
            self._channel: Any = grpc.secure_channel(target, _credentials(grpc, verify), options)
        else:
            self._channel = grpc.insecure_channel(target, options)
        self._call: Any = self._channel.unary_unary(METHOD)

    @property
    def url(self) -> str:
        """The address of the server."""
        return self._url

    @property
    def breaker(self) -> CircuitBreaker:
        """The circuit breaker: its state says whether the server is tried."""
        return self._breaker

    def send(self, frame: bytes, key: Key | None = None) -> Reply:
        """Send one frame and wait for its reply, at most Timeouts.total seconds in all.

        key: sent as metadata `idempotency-key`. Raises TransportError (CircuitOpen: the server is not tried for now),
        the error that the server names, or BitstreamError for bytes that are no frame where no model is given.
        """
        if self._closed.is_set():
            raise UsageError("this OipGrpcTransport is closed; make a new one")
        request = self._request(model_name=model_of(frame, self._model), model_version=self._version)
        request.inputs.add(name=FRAME_INPUT, datatype=BYTES, shape=[1])
        request.raw_input_contents.append(pack_bytes([frame]))
        data: bytes = request.SerializeToString()
        deadline = math.inf if self._total is None else time.monotonic() + self._total
        attempt = sent = received = 0
        while True:
            attempt += 1
            self._breaker.admit(self._server)
            token = self._current_token()
            sent += len(data) + PREFIX_BYTES
            asked: float | None = None
            error: SplitwireError
            try:
                answer = self._attempt(data, token, key, deadline)
                received += len(answer) + PREFIX_BYTES
                decoded = reply_for(frame, self._understand(answer), self._server)
            except ServerBusy as e:
                asked, error = e.retry_after, e
                self._breaker.failed(self._server, "it is busy", asked or 0.0)
                again = asked is not None and asked <= MAX_PAUSE_S
            except AuthRefused as e:  # the token may have been renewed in this moment
                self._breaker.succeeded(self._server)
                error, again = e, self._token is not None and self._current_token(now=True) != token
            except (Corrupt, Truncated) as e:  # the server did not get the frame as it was sent
                self._breaker.succeeded(self._server)
                error, again = e, True
            except BadResponse as e:
                self._breaker.succeeded(self._server)
                error, again = e, key is not None
            except TransportError as e:
                self._breaker.failed(self._server, str(e))
                error = e
                again = isinstance(e, ConnectTimeout) or (key is not None and not isinstance(e, RequestTimeout))
            except SplitwireError:
                self._breaker.succeeded(self._server)
                raise
            except BaseException:
                self._breaker.forget()
                raise
            else:
                self._breaker.succeeded(self._server)
                self._budget.earn()
                return make_reply(decoded, sent=sent, received=received, attempts=attempt)
            if not again or attempt > self._retries or self._breaker.state != "closed" or not self._budget.spend():
                raise error
            nap = pause(attempt, asked)
            if time.monotonic() + nap >= deadline or self._closed.wait(nap):
                raise error

    def send_many(self, frames: Sequence[bytes], keys: Sequence[Key | None]) -> list[Reply | SplitwireError]:
        """Send one frame after the other, and return the reply or the error of each: a request holds one frame.

        A failure of the link is the error of every frame behind it too. Raises UsageError.
        """
        return send_each(self.send, frames, keys)

    def close(self) -> None:
        """Close the connection; a pause before a retry ends at once. A second call has no effect."""
        self._closed.set()
        self._channel.close()

    def _attempt(self, data: bytes, token: str, key: Key | None, deadline: float) -> bytes:
        """The bytes of the answer. Raises the error of the call."""
        metadata = [("authorization", f"Bearer {token}")] if token else []
        if key is not None:
            metadata.append(("idempotency-key", f'"{key}"'))
        left = None if deadline == math.inf else deadline - time.monotonic()
        try:
            answer: bytes = self._call(data, timeout=left, metadata=metadata)
        except self._error as e:
            raise self._explained(e) from e
        except ValueError as e:  # as gRPC says that the channel is closed
            raise UsageError("this OipGrpcTransport is closed; make a new one") from e
        return answer

    def _understand(self, data: bytes) -> DecodedReply:
        """The reply in a ModelInferResponse. Raises BadResponse."""
        try:
            m = self._response.FromString(data)
        except Exception as e:  # protobuf's DecodeError
            raise BadResponse(f"{self._server} answered what is no ModelInferResponse") from e
        if len(m.outputs) != len(m.raw_output_contents):
            raise BadResponse(
                f"{self._server} answered {len(m.outputs)} outputs, {len(m.raw_output_contents)} contents"
            )
        tensors = [
            (o.name, o.datatype, list(o.shape), memoryview(raw))
            for o, raw in zip(m.outputs, m.raw_output_contents, strict=True)
        ]
        parameters = {name: p.int64_param for name, p in m.parameters.items() if p.HasField("int64_param")}
        return make_decoded(tensors, parameters, self._server)

    def _explained(self, e: Any) -> SplitwireError:
        """The error for a call that failed."""
        status: str = e.code().name
        text = printable(e.details() or "it said no more")
        metadata = {k: v for k, v in e.trailing_metadata() or () if isinstance(v, str)}
        code = metadata.get(CODE.lower(), "")
        if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return AuthRefused(f"{self._server} refused the credentials: {text}; check the token")
        if code == ServerBusy.code or (status == "UNAVAILABLE" and "retry-after" in metadata):
            after = parse_retry_after(metadata.get("retry-after"))
            hint = "" if after is None else f"; it asks to come back in {after:g} s"
            return ServerBusy(f"{self._server} is busy: {text}{hint}", after)
        if code or status in CODES:
            return error_class(code or CODES[status])(f"{self._server} answered: {text}")
        if status == "DEADLINE_EXCEEDED":
            within = "" if self._total is None else f" of {self._total:g} s"
            return RequestTimeout(
                f"{self._server} did not answer within the deadline{within}; raise it, or send less at once"
            )
        if status == "UNAVAILABLE" and "failed to connect" in text.lower():
            return ConnectTimeout(
                f"{self._server}: no connection; is `splitwire cloud serve --grpc-port` running there?"
            )
        if status == "UNAVAILABLE":
            return TransportError(f"{self._server} closed the connection before it answered: {text}")
        return BadResponse(f"{self._server} answered {status}: {text}")

    def _current_token(self, *, now: bool = False) -> str:
        return self._token.current(now=now) if isinstance(self._token, TokenFile) else self._token or ""


def _credentials(grpc: Any, verify: bool | Tls) -> Any:
    """The credentials of a channel. Raises UsageError for a server that is trusted without a check."""
    if verify is False:
        raise UsageError("over gRPC a server is trusted by certificates: verify is True or a Tls")
    files = verify if isinstance(verify, Tls) else Tls()
    # Certificates in a folder are read only when one is needed, so there may be none here; gRPC then takes its own.
    roots = "".join(map(ssl.DER_cert_to_PEM_cert, files.context().get_ca_certs(binary_form=True)))
    key = files.cert if files.key is None else files.key
    pair = [None if path is None else Path(path).read_bytes() for path in (key, files.cert)]
    return grpc.ssl_channel_credentials(roots.encode() or None, *pair)
