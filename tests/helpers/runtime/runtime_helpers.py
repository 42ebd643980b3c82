"""Shared by the tests of both runtimes: a tiny front/back pair, servers, and sockets that misbehave."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import uvicorn
from msgspec import UNSET
from mutations import long_form, seal
from onnx import TensorProto, helper, numpy_helper

from splitwire.codec.profile import (
    METADATA_KEY,
    Clipping,
    CodecProfile,
    OperatingPoint,
    Preprocessing,
    Quantizer,
    TensorPoint,
    TensorSpec,
)
from splitwire.codec.tables import ContextTables
from splitwire.codec.wire.frame import parse_frame
from splitwire.codec.wire.reply import encode_reply
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.engines.process import bind, make_server, url_of
from splitwire.runtime_cloud.http.app import Api, create_app
from splitwire.runtime_cloud.oip import GrpcOptions
from splitwire.runtime_cloud.repository.models import Models
from splitwire.runtime_cloud.security import Security
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge import session as edge_session

INPUT = (3, 8, 8)
CLASSES = 5
BLOCKS = {2: (2, 4), 4: (2, 2)}
"""Block shape for N levels: 256 symbols each."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    front: Path
    back: Path
    profile: CodecProfile


def flat_tables(levels: int, channels: int) -> ContextTables:
    """One table for every context, all symbols equally likely: valid, and as simple as they get."""
    block = BLOCKS[levels]
    symbols = levels ** (block[0] * block[1])
    frequency = (4096 - 1) // symbols
    row = [frequency] * symbols + [4096 - frequency * symbols]
    return ContextTables(
        block=block,
        padding=0,
        activities=1,
        left_activity=bytes(symbols),
        top_activity=bytes(symbols),
        context_map=bytes(channels * 4),
        frequencies=np.array(row, dtype="<u2").tobytes(),
    )


def make_point(levels: int, specs: Sequence[TensorSpec]) -> OperatingPoint:
    tensors = tuple(
        TensorPoint(
            quantizer=Quantizer.uniform(0.0, 2.0, levels),
            clipping=Clipping(method="histogram"),
            tables=flat_tables(levels, spec.planes[0]),
        )
        for spec in specs
    )
    return OperatingPoint(name=f"n{levels}", tensors=tensors, bits_per_element=math.log2(levels))


def make_pair(
    folder: Path,
    *,
    seed: int = 0,
    two_tensors: bool = False,
    pictures: bool = True,
    batch: int | str = "batch",
    labels: bool = True,
    segments: bool = False,
    exact: bool = False,
) -> Pair:
    """Conv + ReLU | flatten + gemm (→ logits) and argmax (→ best), with the profile in both files.

    two_tensors: a second tensor, (6,), crosses the cut too. seed: other weights, hence another fingerprint. batch: a
    number for a network that takes this batch only. segments: the back is a 1×1 convolution to (CLASSES, 8, 8) instead.
    exact: weights are eighths, so that for inputs that are eighths every order of the front's sums gives the same bits.
    """
    rng = np.random.default_rng(seed)
    specs = [TensorSpec(name="feature", shape=(4, 8, 8))]
    weights = {"w": rng.normal(0, 0.3, (4, 3, 3, 3)), "b": np.full(4, 0.1)}
    if exact:
        weights = {name: np.round(8 * value) / 8 for name, value in weights.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["feature"]),
    ]
    joined, width = "flat", 4 * 8 * 8
    back_nodes = [helper.make_node("Flatten", ["feature"], ["flat"])]
    if two_tensors:
        specs.append(TensorSpec(name="side", shape=(6,)))
        weights["v"] = rng.normal(0, 0.1, (3 * 8 * 8, 6))
        nodes += [helper.make_node("Flatten", ["x"], ["xf"]), helper.make_node("MatMul", ["xf", "v"], ["side"])]
        back_nodes.append(helper.make_node("Concat", ["flat", "side"], ["both"], axis=1))
        joined, width = "both", width + 6
    back_weights = {"g": rng.normal(0, 0.3, (width, CLASSES))}
    back_nodes += [
        helper.make_node("MatMul", [joined, "g"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
    ]
    answers: tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]] = {"logits": (CLASSES,)}, {"best": ()}
    if segments:
        back_weights = {"g": rng.normal(0, 0.3, (CLASSES, 4, 1, 1))}
        back_nodes = [helper.make_node("Conv", ["feature", "g"], ["out"])]
        answers = {"out": (CLASSES, 8, 8)}, {}
    cut = {s.name: s.shape for s in specs}
    front = _model(nodes, weights, batch, {"x": INPUT}, cut)
    back = _model(back_nodes, back_weights, batch, cut, *answers)
    profile = CodecProfile(
        model=f"tiny-{seed}",
        cut="relu",
        tensors=tuple(specs),
        operating_points=(make_point(2, specs), make_point(4, specs)),
        default_op="n4",
        front_sha256=f"{zlib.crc32(front.SerializeToString()):064x}",
        back_sha256=f"{zlib.crc32(back.SerializeToString()):064x}",
        preprocessing=Preprocessing(crop=INPUT[1:], resize=8) if pictures else None,
        labels=tuple(f"label {i}" for i in range(CLASSES)) if labels else None,
        task="segmentation" if segments else UNSET,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for model, name in ((front, "front.onnx"), (back, "back.onnx")):
        helper.set_model_props(model, {METADATA_KEY: profile.to_json()})
        onnx.checker.check_model(model)
        onnx.save(model, str(folder / name))
    return Pair(front=folder / "front.onnx", back=folder / "back.onnx", profile=profile)


def _model(nodes, weights, batch, inputs, outputs, integer_outputs=None) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "half",
        _values(inputs, batch, TensorProto.FLOAT),
        _values(outputs, batch, TensorProto.FLOAT) + _values(integer_outputs or {}, batch, TensorProto.INT64),
        [numpy_helper.from_array(np.asarray(a, dtype=np.float32), n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _values(shapes, batch, kind) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, kind, (batch, *shape)) for name, shape in shapes.items()]


def images(batch: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, *INPUT)).astype(np.float32)


# ------------------------------------------------------------------ servers


@dataclass(frozen=True, kw_only=True)
class Served:
    url: str
    server: uvicorn.Server
    api: Api

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)


@contextlib.contextmanager
def serving(
    *pairs: Pair,
    limits: ServerLimits | None = None,
    wait: bool = True,
    tls: tuple[Path, Path] | None = None,
    batching: bool = False,
    security: Security | None = None,
    port: int = 0,
    grpc: GrpcOptions | None = None,
) -> Iterator[Served]:
    """The real server, in a thread of this process, on a port of 127.0.0.1; 0: a free one.

    wait: until the models are warm. tls: certificate and private key. batching: requests share runs, and a lone one
    runs in the event loop; off, so that a test can count inferences, and hold one back while the server answers.
    security: who may use it. grpc: the gRPC port too.
    """
    limits = limits or ServerLimits()
    if not batching:
        limits = dataclasses.replace(limits, max_batch=1, inline=0.0)
    if tls is not None:
        security = Security(tls_cert=tls[0], tls_key=tls[1])
    app = create_app(Models([CloudSession(p.back) for p in pairs]), limits, security=security, grpc=grpc)
    sock = bind("127.0.0.1", port)
    url = url_of(sock)
    server = make_server(app, grace_s=10, tls=None if security is None else security.tls())
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        until(lambda: server.started and (app.state.api.service.ready or not wait))
        yield Served(url=url, server=server, api=app.state.api)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server does not stop"


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def good_answer(frame_id: int = 0) -> bytes:
    """A complete and correct HTTP answer of `splitwire cloud serve`."""
    body = encode_reply({"logits": np.zeros((1, CLASSES), np.float32)}, frame_id=frame_id, decode_ms=0.1, back_ms=0.2)
    return http_answer(200, body, "application/vnd.splitwire.reply")


def good_answer_to(frame: bytes) -> bytes:
    """A complete and correct HTTP answer to this very frame."""
    return good_answer(parse_frame(frame).frame_id)


def http_answer(status: int, body: bytes, content_type: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class Canned:
    """A server with prepared answers. None: it closes the connection. A float: it waits for that many seconds. A
    function makes the answer of the body."""

    url: str
    connections: int = 0
    requests: int = 0
    received: int = 0
    heads: list[bytes] = field(default_factory=list)


@contextlib.contextmanager
def canned(
    *answers: bytes | float | Callable[[bytes], bytes] | None, close_after_each: bool = False
) -> Iterator[Canned]:
    """The n-th request gets the n-th answer, the last one again and again.

    A session that is made meanwhile counts its frames from 0, as the prepared answers have it.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    record = Canned(url=url_of(listener))
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            while not stop.is_set() and (request := read_request(connection)) is not None:
                head, body = request
                record.heads.append(head)
                record.received += len(head) + len(body)
                answer = answers[min(record.requests, len(answers) - 1)]
                record.requests += 1
                if answer is None:
                    return
                if isinstance(answer, float):
                    stop.wait(answer)
                    return
                connection.sendall(answer(body) if callable(answer) else answer)
                if close_after_each:
                    return

    def accept() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                record.connections += 1
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    try:
        with patch.object(edge_session, "first_frame_id", lambda: 0):
            yield record
    finally:
        stop.set()
        threads[0].join(10)
        for thread in threads:
            thread.join(10)
        listener.close()


def read_request(connection: socket.socket) -> tuple[bytes, bytes] | None:
    """(head, body) of one request, or None when the client has closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(v) for k, v in _headers(head) if k == b"content-length"), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n", body


def _headers(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        yield key.strip().lower(), value.strip()


def raw_exchange(address: tuple[str, int], request: bytes, seconds: float = 10.0) -> bytes:
    """Send bytes, half-close, and return everything that comes back."""
    with socket.create_connection(address, seconds) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request)
        parts = []
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                parts.append(part)
                if b"\r\n\r\n" in (answer := b"".join(parts)) and _complete(answer):
                    break
        return b"".join(parts)


def _complete(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    return len(body) >= next((int(v) for k, v in _headers(head) if k == b"content-length"), 0)


# ------------------------------------------------------------------ frames


def reheaded(frame: bytes, *, major: int | None = None, op: int | None = None, batch: int | None = None) -> bytes:
    """The frame with header fields changed and its checksums made right again."""
    changed = bytearray(frame)
    for offset, size, value in ((4, 1, major), (7, 1, op), (20, 2, batch)):
        if value is not None:
            changed[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(seal(changed))


def with_chunk_length(frame: bytes, length: int) -> bytes:
    """A short frame in the long form, its chunk announcing `length` bytes, and the header's checksum right."""
    changed = bytearray(long_form(frame, planes=1))
    changed[32:36] = length.to_bytes(4, "little")
    return bytes(seal(changed))
