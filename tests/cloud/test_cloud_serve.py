"""The server as a process of its own: readiness line, signals, exit status. Only own children are signalled."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from runtime_helpers import Pair, images, until

from splitwire.codec.errors import DeviceError, SplitwireError, UsageError
from splitwire.commands.cloud import serve as command
from splitwire.runtime_cloud.admission import ServerLimits
from splitwire.runtime_cloud.engines import process
from splitwire.runtime_cloud.engines.process import bind, serve, url_of
from splitwire.runtime_cloud.repository.models import Models
from splitwire.runtime_cloud.session import CloudSession
from splitwire.runtime_edge.session import EdgeSession
from splitwire.runtime_edge.transport import HttpTransport


@contextlib.contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def first_line(process: subprocess.Popen[str], seconds: float = 60) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], seconds)[0], "the server does not get ready"
    return process.stdout.readline()


def serving(pair: Pair, *, slow: float = 0.0, **options: object) -> str:
    """Source of a process that runs `splitwire cloud serve --port 0 --json` on the pair; inferences take `slow` s."""
    return f"""
        import sys, time
        from pathlib import Path
        from splitwire.commands.cloud.serve import serve
        from splitwire.runtime_cloud.batching.scheduler import Scheduler
        from splitwire.runtime_cloud.session import CloudSession

        plain = CloudSession.reply
        def reply(self, result, outputs=None):
            if {slow}:
                print("working", file=sys.stderr, flush=True)
            time.sleep({slow})
            return plain(self, result, outputs)
        CloudSession.reply = reply
        Scheduler._runs_here = lambda self, job: False  # as for every model that takes this long
        serve(Path({str(pair.back.parent)!r}), port=0, as_json=True, **{options!r})
    """


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return
    raise AssertionError(f"{word!r} was never logged")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_line_and_clean_end(pair: Pair, number: signal.Signals):
    with child(serving(pair)) as process:
        ready = json.loads(first_line(process))
        assert ready["pid"] == process.pid
        assert ready["url"].startswith("http://127.0.0.1:")
        with EdgeSession(pair.front, transport=HttpTransport(ready["url"])) as session:
            assert session.infer(images()).outputs["logits"].shape == (1, 5)
            process.send_signal(number)  # with a kept, idle connection open
            out, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out == ""
    lines = log.splitlines()
    assert [line.split(maxsplit=2)[2].split(":")[0] for line in lines] == ["listening", "ready", "stopped"]
    assert all(len(line) < 100 for line in lines)


def test_a_request_that_runs_is_finished(pair: Pair):
    with child(serving(pair, slow=1.0)) as process, ThreadPoolExecutor(1) as pool:
        url = json.loads(first_line(process))["url"]
        with EdgeSession(pair.front, transport=HttpTransport(url, retries=0)) as session:
            answer = pool.submit(session.infer, images())
            wait_for(process, "working")
            process.send_signal(signal.SIGTERM)
            assert answer.result(20).outputs["logits"].shape == (1, 5)
            assert process.wait(20) == 0
            with pytest.raises(SplitwireError, match="connection refused"):
                session.infer(images())


def test_the_grace_is_bounded(pair: Pair):
    with child(serving(pair, slow=30.0, grace=1)) as process, ThreadPoolExecutor(1) as pool:
        url = json.loads(first_line(process))["url"]
        with EdgeSession(pair.front, transport=HttpTransport(url, retries=0)) as session:
            answer = pool.submit(session.infer, images())
            wait_for(process, "working")
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 1
            assert time.monotonic() - start < 10
            assert isinstance(answer.exception(20), SplitwireError)
        assert process.stderr is not None
        assert "1 inferences did not finish within 1 s and were cut off" in process.stderr.read()


def test_a_server_that_drains_says_so_first_and_serves(pair: Pair):
    with child(serving(pair, drain=30.0)) as process:
        url = json.loads(first_line(process))["url"]
        with EdgeSession(pair.front, transport=HttpTransport(url, retries=0)) as session:
            process.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(url + "/readyz").status_code == 503)
            assert httpx.get(url + "/readyz").json()["error"]["message"] == "the server stops"
            assert httpx.get(url + "/healthz").status_code == 200
            assert session.infer(images()).outputs["logits"].shape == (1, 5)
            process.send_signal(signal.SIGTERM)  # waits no longer
            assert process.wait(20) == 0


def test_what_waits_counts_as_cut_off(pair: Pair):
    with child(serving(pair, slow=30.0, grace=1, concurrency=1, max_batch=1)) as process, ThreadPoolExecutor(3) as pool:
        url = json.loads(first_line(process))["url"]
        with EdgeSession(pair.front, transport=HttpTransport(url, retries=0)) as session:
            answers = [pool.submit(session.infer, images()) for _ in range(3)]
            wait_for(process, "working")
            until(lambda: "queue_depth 2.0" in httpx.get(url + "/metrics").text)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 1
            assert all(isinstance(answer.exception(20), SplitwireError) for answer in answers)
        assert process.stderr is not None
        assert "3 inferences did not finish within 1 s and were cut off" in process.stderr.read()


def test_signal_before_the_server_is_ready(pair: Pair):
    code = f"""
        import signal, threading, os, sys
        from splitwire.runtime_cloud.engines import process as module
        from splitwire.commands.cloud.serve import serve
        from pathlib import Path
        make = module.make_server
        def at_once(app, **options):
            server = make(app, **options)
            run = server.run
            def signalled(**more):
                signal.raise_signal(signal.SIGTERM)
                run(**more)
            server.run = signalled
            return server
        module.make_server = at_once
        serve(Path({str(pair.back.parent)!r}), port=0)
    """
    with child(code) as process:
        assert process.wait(60) == 0


def test_signal_handlers_are_put_back(pair: Pair):
    before = signal.getsignal(signal.SIGTERM)
    models = Models([CloudSession(pair.back)])
    assert serve(models, port=0, on_ready=lambda url: os.kill(os.getpid(), signal.SIGTERM)) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_model_that_cannot_run_is_an_error_not_a_server(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    def broken(self: CloudSession) -> None:
        raise RuntimeError("no kernel for this GPU")

    monkeypatch.setattr(CloudSession, "warm_up", broken)
    with pytest.raises(DeviceError, match="a model fails to run: no kernel for this GPU"):
        serve(Models([CloudSession(pair.back)]), port=0)


def test_addresses_that_cannot_be_had():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"cannot listen on 127.0.0.1:{port}: .*in use; choose another"):
            bind("127.0.0.1", port)
    wrong = [("127.0.0.1", 70_000), ("127.0.0.1", -1), ("192.0.2.1", 0), ("no such host", 0), ("a" * 300, 0)]
    for host, port in wrong:
        with pytest.raises(UsageError, match="cannot listen on"):
            bind(host, port)


def test_urls():
    for host, shown in (("127.0.0.1", "http://127.0.0.1:"), ("localhost", "http://"), ("::1", "http://[::1]:")):
        try:
            sock = bind(host, 0)
        except UsageError:
            assert host == "::1"  # a machine without IPv6
            continue
        with sock:
            assert url_of(sock).startswith(shown)


def test_a_folder_without_models_ends_at_once(tmp_path: Path):
    from splitwire.commands.cloud.serve import serve as command

    with pytest.raises(UsageError, match=r"holds no back\.onnx"):
        command(tmp_path)


@pytest.mark.parametrize("size", [0, -1, float("nan"), float("inf"), 5000])
def test_a_largest_frame_that_is_none(pair: Pair, size: float):
    with pytest.raises(UsageError, match=r"^--max-body must be more than 0 and up to 4,096 MiB, is "):
        command.serve(pair.back.parent, max_body=size)


@pytest.mark.parametrize(
    ("soft", "hard", "files", "connections"),
    [(100, 150, 150, 86), (100, 4096, 124, 60), (300, 300, None, 60), (20, 50, 50, 1)],
)
def test_no_more_connections_than_open_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, files: int | None, connections: int
):
    """64 files are for the rest. The soft limit is raised as far as it helps and the system allows."""
    resource = pytest.importorskip("resource", reason="this system has no limit of open files")
    asked = 60 if connections == 60 else 960
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: raised.append(limits))
    assert process._allowed(ServerLimits(connections=asked)).connections == connections
    assert raised == ([] if files is None else [(files, hard)])
