"""A server of a repository in a thread of the test, and frames of its pairs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from runtime_helpers import Pair, Served, make_pair, until

from splitwire.codec.codec import FeatureCodec
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.engines.process import bind, make_server, url_of
from splitwire.runtime_cloud.http.app import create_app
from splitwire.runtime_cloud.repository import Repository, RepositoryLimits


@contextlib.contextmanager
def serving_repository(
    root: Path, *, watch: float | None = None, settle: float = 0.0, limits: RepositoryLimits | None = None
) -> Iterator[Served]:
    """The real server of a folder, on a free port, until the block ends."""
    repository = Repository(root, watch=watch, settle=settle, limits=limits)
    app = create_app(repository, ServerLimits(concurrency=2))
    sock = bind("127.0.0.1", 0)
    server = make_server(app, grace_s=10)
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        until(lambda: server.started and app.state.api.service.ready, 60)
        yield Served(url=url_of(sock), server=server, api=app.state.api)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server does not stop"


def frame_of(pair: Pair, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    tensors = [np.abs(rng.normal(size=(1, *t.shape))).astype(np.float32) for t in pair.profile.tensors]
    return FeatureCodec(pair.profile).encode(tensors)


def states(served: Served) -> dict[str, str]:
    """The state of each version, by "NAME VERSION"."""
    listed = httpx.get(f"{served.url}/v1/models").json()["repository"]
    return {f"{m['name']} {m['version']}".strip(): m["state"] for m in listed}


def reason(served: Served, model: str) -> str:
    """Why a "NAME VERSION" is not as it should be."""
    listed = httpx.get(f"{served.url}/v1/models").json()["repository"]
    return next(str(m["reason"]) for m in listed if f"{m['name']} {m['version']}".strip() == model)


def infer(served: Served, frame: bytes, device: str = "") -> httpx.Response:
    headers = {"x-splitwire-device": device} if device else {}
    return httpx.post(f"{served.url}/v1/infer", content=frame, headers=headers, timeout=60)


def change(served: Served, name: str, what: str, **query: str) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/models/{name}/{what}", params=query, timeout=120)


def put(pair: Pair, folder: Path, *, data: bytes | None = None) -> Path:
    """Put the back of a pair, or other bytes, into a folder, in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / ".scratch"
    scratch.write_bytes(pair.back.read_bytes() if data is None else data)
    return scratch.replace(folder / "back.onnx")


def make_pairs(folder: Path, count: int) -> list[Pair]:
    return [make_pair(folder / f"pair{seed}", seed=seed) for seed in range(count)]


@dataclass
class Load:
    """Sends frames of a pair, one after the other over one connection, until told to stop."""

    served: Served
    frame: bytes
    answers: int = 0
    failures: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[Load]:
        stop = threading.Event()

        def send() -> None:
            with httpx.Client(timeout=60) as client:
                while not stop.is_set():
                    try:
                        answer = client.post(f"{self.served.url}/v1/infer", content=self.frame)
                    except httpx.HTTPError as e:
                        self.failures.append(repr(e))
                        continue
                    if answer.status_code == 200:
                        self.answers += 1
                    else:
                        self.failures.append(answer.text)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            until(lambda: self.answers > 0 or bool(self.failures))
            yield self
        finally:
            stop.set()
            thread.join(60)
            assert not thread.is_alive()
